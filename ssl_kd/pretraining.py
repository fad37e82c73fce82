"""Small self-supervised teachers for an own domain, from lightly's parts, saved in the layout that their users know.

`ssl_kd.pretexts` has the methods. All come back through the ordinary loader and are resumable.

    ssl-kd pretrain --images photos/ --method moco --arch resnet18 --size 48 --epochs 30 --out runs/teacher.pth.tar
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from ssl_kd.config import PretrainConfig
from ssl_kd.errors import NonFinite, UserError, one_of
from ssl_kd.images import Images, open_images
from ssl_kd.precision import make_fabric
from ssl_kd.pretexts import BY_ADAMW, METHODS, Pretext
from ssl_kd.progress import Progress
from ssl_kd.run import atomic_save, own_state
from ssl_kd.views import ViewLoader, scheme


def pretrain(config: PretrainConfig, images: Images | None = None) -> Path:
    """Train a teacher on unlabelled images; returns the checkpoint's path. A checkpoint that is there is gone on with.

    SGD with momentum 0.9 (AdamW for MoCo v3 and DINO), one epoch of warm-up, cosine to 0. Raises UserError for bad
    settings, NonFinite for a loss that is no number; the checkpoint then holds the last whole epoch.
    """
    one_of("method", config.method, METHODS)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("pretrain runs in one process; start it without torchrun")
    recipes = scheme(config.views)
    if len(recipes) != 2:
        raise UserError(f"views: contrast needs a scheme of two views, but {config.views!r} gives {len(recipes)}")
    images = images if images is not None else open_images(config.images)
    loader = ViewLoader(images, recipes, config.size, config.batch_size, config.seed, config.threads)
    steps = loader.batches_per_epoch()
    torch.manual_seed(config.seed)
    fabric, _ = make_fabric(config.accelerator, config.precision)
    model = METHODS[config.method](config).to(fabric.device)
    peak = config.lr * config.batch_size / 256
    optimizer = _optimizer(model, config, peak)
    out = Path(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    first = _resume(out, model, optimizer) if out.exists() else 0
    with Progress("pretrain", len(images) * config.epochs, quiet=config.quiet, start=first * len(images)) as bar:
        for epoch in range(first, config.epochs):
            for step, raw in enumerate(loader.epoch(epoch), start=epoch * steps):
                for group in optimizer.param_groups:
                    group["lr"] = peak * _rate(step, steps, steps * config.epochs)
                views = loader.finish_all(raw, fabric.device)
                loss = model(*views.pixels, fabric.autocast())
                value = loss.item()
                if not math.isfinite(value):
                    raise NonFinite(
                        f"pretrain: the loss became {value} in epoch {epoch + 1}; lower lr (now {config.lr})"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                bar.advance(len(raw), epoch=f"{epoch + 1}/{config.epochs}", loss=f"{value:.3f}")
            about = {"epoch": epoch + 1, "arch": config.arch, "optimizer": optimizer.state_dict()}
            atomic_save(out, model.checkpoint() | about)
    return out


def _rate(step: int, warmup: int, total: int) -> float:
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def _optimizer(model: Pretext, config: PretrainConfig, rate: float) -> torch.optim.Optimizer:
    """SGD or AdamW, as the method's script has it."""
    parameters = [p for p in model.encoder_q.parameters() if p.requires_grad]
    if type(model) in BY_ADAMW:
        return torch.optim.AdamW(parameters, rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=config.weight_decay)


def _resume(path: Path, model: Pretext, optimizer: torch.optim.Optimizer) -> int:
    """Load a checkpoint of this very method and architecture; returns the epochs done."""
    try:
        saved = own_state(path)
        model.restore(saved)
        optimizer.load_state_dict(saved["optimizer"])
        return int(saved["epoch"])
    except Exception as error:
        raise UserError(
            f"out: {path} exists and is not a checkpoint of this method and architecture; choose another name or remove it"
        ) from error
