"""Small self-supervised teachers for an own domain, from lightly's parts, saved in the layout that their users know.

`ssl_kd.pretraining.methods` has the methods. Their checkpoints are read by the ordinary loader, which is tried out before
the first step, and a run can be resumed.

    ssl-kd pretrain --images photos/ --method moco --arch resnet18 --size 48 --epochs 30 --out runs/teacher.pth.tar
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sized
from dataclasses import asdict
from pathlib import Path

import torch

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.data.augment import Recipe
from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.open import open_without_limit_setting
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.view_settings import as_views, recipes_of, views_record
from ssl_kd.errors import NonFinite, UserError, one_line
from ssl_kd.models.factory import BAD_ARGUMENTS, must_be_an_architecture
from ssl_kd.pretraining.config import PretrainConfig, check
from ssl_kd.pretraining.methods import BY_ADAMW, METHODS, Pretext, pixels_record
from ssl_kd.registry import load_object
from ssl_kd.runtime.devices import make_fabric, sound_gradients
from ssl_kd.runtime.files import PART, probe
from ssl_kd.runtime.objects import is_record, names_code
from ssl_kd.runtime.progress import Progress
from ssl_kd.runtime.run_dir import FREE
from ssl_kd.runtime.state import load_state, save_state
from ssl_kd.validation import with_settings

LIMIT = 1e-3  # largest relative error of features that were written and read back; equal networks have 1e-6


def pretrain(config: PretrainConfig | None = None, images: object = None, **settings: object) -> Path:
    """Train a teacher on unlabelled images; returns the checkpoint's path. A checkpoint that is there is resumed.

    images: whatever `open_images` takes, in place of the config's. Settings are the fields of PretrainConfig; views may
    be objects as well (two `Recipe`s, or two functions from a picture to a view). SGD with momentum 0.9 (AdamW for
    MoCo v3 and DINO), one epoch of warm-up, cosine to 0. Raises UserError for bad settings, for a network that its
    method's layout cannot hold and for a checkpoint of other settings or images; NonFinite for a loss that is not
    finite: the checkpoint then holds the last whole epoch.
    """
    config, own_views = _merged(config or PretrainConfig(), images, settings)
    check(config)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("pretrain runs in one process; start it without torchrun")
    recipes = own_views or recipes_of(config.views)
    if len(recipes) != 2:
        raise UserError(f"views: contrast needs two views of an image, but {config.views!r} gives {len(recipes)}")
    must_be_an_architecture("arch", config.arch)
    pictures = open_without_limit_setting(config.images if images is None else images)
    loader = ViewLoader(pictures, recipes, config.size, config.batch_size, config.seed, config.threads)
    steps = loader.batches_per_epoch()
    torch.manual_seed(config.seed)
    fabric, _ = make_fabric(config.accelerator, config.precision)
    model = METHODS[config.method](config).to(fabric.device)
    settings = _decisive(config, pictures)
    peak = config.lr * config.batch_size / 256
    optimizer = _optimizer(model, config, peak)
    out = Path(config.out)
    first = _resume(out, model, optimizer, settings) if out.exists() else 0
    if first >= config.epochs:
        return out
    _rehearse(config, out)
    with Progress("pretrain", len(pictures) * config.epochs, quiet=config.quiet, start=first * len(pictures)) as bar:
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
                with sound_gradients(model):
                    loss.backward()
                optimizer.step()
                bar.advance(len(raw), epoch=f"{epoch + 1}/{config.epochs}", loss=f"{value:.3f}")
            about = {"epoch": epoch + 1, "arch": config.arch, "optimizer": optimizer.state_dict(), "settings": settings}
            about["preprocessing"] = pixels_record(model, config.size)
            save_state(out, model.checkpoint() | about)
    return out


def _merged(
    config: PretrainConfig, images: object, settings: Mapping[str, object]
) -> tuple[PretrainConfig, tuple[Recipe, ...] | None]:
    """One config of what was given in three ways, and the views that were given as objects, of which it has the names."""
    given = dict(settings)
    if images is not None:
        path = isinstance(images, str | os.PathLike)
        count = f"{len(images)} " if isinstance(images, Sized) else ""
        given["images"] = images if path else f"<{count}images from Python>"
    views = given.get("views")
    found = as_views(load_object(str(views), "views") if names_code(views) else views)
    if found is not None:
        given["views"] = views if names_code(views) else views_record(found)
    merged = with_settings(config, given, "pretrain")
    if found is None and (is_record(merged.views) or names_code(merged.views)):
        raise UserError(
            f"views: {merged.views} was an object from Python; give it again, as ssl_kd.pretrain(views=...)"
        )
    return merged, found


def _rate(step: int, warmup: int, total: int) -> float:
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))


def _optimizer(model: Pretext, config: PretrainConfig, rate: float) -> torch.optim.Optimizer:
    """SGD or AdamW, as the method's script has it."""
    parameters = [p for p in model.encoder_q.parameters() if p.requires_grad]
    if type(model) in BY_ADAMW:
        return torch.optim.AdamW(parameters, rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=config.weight_decay)


def _decisive(config: PretrainConfig, images: ImageSource) -> dict[str, object]:
    """What decides the result, as plain data: the settings and the images' digest, wherever they lie."""
    settings = {name: value for name, value in asdict(config).items() if name not in FREE | {"images"}}
    plain: dict[str, object] = json.loads(json.dumps(settings | {"images_digest": images.digest}, default=str))
    return plain


def _resume(path: Path, model: Pretext, optimizer: torch.optim.Optimizer, settings: Mapping[str, object]) -> int:
    """Load a checkpoint of this very method, architecture, settings and images; returns the epochs done."""
    try:
        saved = load_state(path)
        model.restore(saved)
        done, moments = saved["epoch"], saved["optimizer"]
        before = saved.get("settings", {})  # none in checkpoints of earlier versions
        if not isinstance(done, int) or not isinstance(moments, dict) or not isinstance(before, Mapping):
            raise TypeError("expected the epoch, the optimiser and the settings of a checkpoint")
        optimizer.load_state_dict(moments)
    except Exception as error:
        raise UserError(
            f"out: {path} exists and is not a checkpoint of this method and architecture; choose another name or remove it"
        ) from error
    changed = [
        f"{k} was {before[k]!r}, now {settings[k]!r}" for k in settings if k in before and before[k] != settings[k]
    ]
    if changed:
        raise UserError(
            f"out: {path} was begun with other settings ({', '.join(changed[:4])}); choose another name or remove it"
        )
    return done


def _rehearse(config: PretrainConfig, out: Path) -> None:
    """Write and read back a twin of the network; UserError unless the teacher that is read has the twin's outputs.

    The labs' layouts hold no architecture: their readers tell it by names and shapes, and many networks share those.
    Global random numbers and the network that will be trained are left alone.
    """
    probe(out)
    trial = out.with_name(f"{out.name}.{os.getpid()}.trial{PART}")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        twin = _worn(METHODS[config.method](config).eval())
        try:
            pixels = torch.rand(2, 3, config.size, config.size)
            own = twin.features(pixels)
        except BAD_ARGUMENTS as error:
            raise UserError(
                f"size: {config.arch} cannot take {config.size} px ({one_line(error, 120)}); "
                "choose another size, or img_size in arch_args"
            ) from error
        try:
            save_state(trial, twin.checkpoint())
            read = load_teacher(trial)(pixels).embedding
            same = read.shape == own.shape and bool((read - own).norm() <= LIMIT * own.norm())
            reason = "" if same else f"its file reads back as another network at {config.size} px"
        except UserError as error:
            if not trial.exists():
                raise  # it could not be written
            reason = str(error).removeprefix(f"{trial}: ")
        finally:
            trial.unlink(missing_ok=True)
    if reason:
        given = f"{config.arch} with {config.arch_args}" if config.arch_args else config.arch
        raise UserError(
            f"arch: {config.method} cannot save {given} so that it can be loaded ({one_line(reason, 120)}); "
            f"it trains {twin.TEACHES}"
        )


def _worn(model: Pretext) -> Pretext:
    """The network with weights as after a long training: fresh zeros and near-uniform attention would hide much."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.ndim > 1:
            tensor.add_(torch.randn_like(tensor) / (tensor.numel() / len(tensor)) ** 0.5)
        elif tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + (-0.5 if name.endswith(("bias", "running_mean")) else 0.5))
    return model
