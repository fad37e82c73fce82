"""Small self-supervised teachers for an own domain, from lightly's parts, saved in the layout that their users know.

    moco     MoCo v2 (arXiv:1911.05722, arXiv:2003.04297); the file of the official main_moco.py
    simclr   SimCLR (arXiv:2002.05709); the file of the sthalles/SimCLR training script (Google's own are TensorFlow's)
    dino     DINO (arXiv:2104.14294), two large views and no small ones; a full checkpoint of the official main_dino.py

All come back through the ordinary loader and are resumable.

    ssl-kd pretrain --images photos/ --method moco --arch resnet18 --size 48 --epochs 30 --out runs/teacher.pth.tar
"""

from __future__ import annotations

import copy
import math
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kd.config import PretrainConfig
from ssl_kd.encoder import IMAGENET_MEAN, IMAGENET_STD
from ssl_kd.errors import NonFinite, UserError, one_of
from ssl_kd.images import Images, open_images
from ssl_kd.precision import make_fabric
from ssl_kd.progress import Progress
from ssl_kd.run import atomic_save, own_state
from ssl_kd.views import ViewLoader, scheme

WIDTH = 128  # of the projected embedding, in both papers


def _network(config: PretrainConfig) -> Any:
    """A timm ResNet whose fc is the two-layer projection head, as both training scripts have it."""
    import timm
    from lightly.models.modules import MoCoProjectionHead

    backbone = timm.create_model(config.arch, num_classes=0, **config.arch_args)
    if not hasattr(backbone, "fc"):
        raise UserError(f"arch: pretrain knows ResNets, whose head is called fc; {config.arch} is another network")
    dim = backbone.num_features
    backbone.fc = MoCoProjectionHead(dim, dim, WIDTH).layers
    return backbone.to(memory_format=torch.channels_last)


def _embed(network: Any, images: Tensor) -> Tensor:
    """Projected, unit-length embeddings (B, 128)."""
    return nn.functional.normalize(network.fc(network.global_pool(network.forward_features(images))).float(), dim=1)


class MoCo(nn.Module):
    """Query encoder, key encoder (a moving average) and a queue of keys, named as in the official checkpoints."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: PretrainConfig):
        from lightly.loss import NTXentLoss

        super().__init__()
        self.config = config
        self.encoder_q = _network(config)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.contrast = NTXentLoss(temperature=config.temperature, memory_bank_size=(config.queue, WIDTH))
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, first: Tensor, second: Tensor, autocast: Any) -> Tensor:
        """Contrastive loss of two views in [0, 1]."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder_q, self.encoder_k, self.config.momentum)
        with autocast:
            query = _embed(self.encoder_q, (first - self.mean) / self.std)
            with torch.no_grad():
                key = _embed(self.encoder_k, (second - self.mean) / self.std)
        return self.contrast(query, key)

    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """The state dict of the official script."""
        state = {f"module.encoder_q.{k}": v for k, v in self.encoder_q.state_dict().items()}
        state |= {f"module.encoder_k.{k}": v for k, v in self.encoder_k.state_dict().items()}
        bank = self.contrast.memory_bank
        return {"state_dict": state | {"module.queue": bank.bank.T.contiguous(), "module.queue_ptr": bank.bank_ptr}}

    def restore(self, saved: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of `checkpoint`."""
        state = saved["state_dict"]
        for encoder, name in ((self.encoder_q, "encoder_q"), (self.encoder_k, "encoder_k")):
            encoder.load_state_dict(_below(state, f"module.{name}."))
        bank = self.contrast.memory_bank
        bank.bank.copy_(state["module.queue"].T)
        bank.bank_ptr.copy_(state["module.queue_ptr"])


class SimCLR(nn.Module):
    """One encoder, both views through it, the other images of the batch as negatives. Pixels stay in [0, 1]."""

    def __init__(self, config: PretrainConfig):
        from lightly.loss import NTXentLoss

        super().__init__()
        self.encoder_q = _network(config)
        self.contrast = NTXentLoss(temperature=config.temperature, memory_bank_size=0)

    def forward(self, first: Tensor, second: Tensor, autocast: Any) -> Tensor:
        """Contrastive loss of two views in [0, 1]."""
        with autocast:
            both = _embed(self.encoder_q, torch.cat([first, second]))
        return self.contrast(*both.chunk(2))

    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """The state dict of sthalles/SimCLR: the projection head inside the backbone, as its fc."""
        return {"state_dict": {f"backbone.{k}": v for k, v in self.encoder_q.state_dict().items()}}

    def restore(self, saved: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of `checkpoint`."""
        self.encoder_q.load_state_dict(_below(saved["state_dict"], "backbone."))


class DINO(nn.Module):
    """A student learns to say of one view what its moving average says of the other, centred and sharpened.

    For ViTs (timm's) and ResNets. Differs from the official script: two large views only, a constant momentum of the
    average, a constant weight decay and a constant temperature of the teacher.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: PretrainConfig):
        import timm
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        super().__init__()
        self.config = config

        def network() -> nn.ModuleDict:
            backbone = timm.create_model(config.arch, num_classes=0, **config.arch_args)
            head = DINOProjectionHead(backbone.num_features, hidden_dim=1024, output_dim=config.prototypes)
            return nn.ModuleDict({"backbone": backbone, "head": head}).to(memory_format=torch.channels_last)

        self.encoder_q, self.encoder_k = network(), network().requires_grad_(False)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())  # weight norm cannot be deep-copied
        warm = {"warmup_teacher_temp": config.teacher_temperature, "warmup_teacher_temp_epochs": 1}
        self.loss = DINOLoss(
            config.prototypes, teacher_temp=config.teacher_temperature, student_temp=config.temperature, **warm
        )
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, first: Tensor, second: Tensor, autocast: Any) -> Tensor:
        """Cross-entropy between what the average says of one view and the student of the other, views in [0, 1]."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder_q, self.encoder_k, self.config.momentum)
        both = (torch.cat([first, second]) - self.mean) / self.std
        with autocast:
            said = self._say(self.encoder_q, both)
            with torch.no_grad():
                heard = self._say(self.encoder_k, both)
        return self.loss(list(heard.float().chunk(2)), list(said.float().chunk(2)))

    @staticmethod
    def _say(network: Any, images: Tensor) -> Tensor:
        return network["head"](network["backbone"](images))

    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """Teacher, student and centre as the official script keeps them."""
        return {
            "student": {f"module.{k}": v for k, v in self.encoder_q.state_dict().items()},
            "teacher": dict(self.encoder_k.state_dict()),
            "dino_loss": {"center": self.loss.center.flatten(0, -2)},
        }

    def restore(self, saved: dict[str, dict[str, Tensor]]) -> None:
        """The inverse of `checkpoint`."""
        self.encoder_q.load_state_dict(_below(saved["student"], "module."))
        self.encoder_k.load_state_dict(saved["teacher"])
        self.loss.center.data.copy_(saved["dino_loss"]["center"].view_as(self.loss.center))


METHODS: dict[str, type[MoCo] | type[SimCLR] | type[DINO]] = {"moco": MoCo, "simclr": SimCLR, "dino": DINO}


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def pretrain(config: PretrainConfig, images: Images | None = None) -> Path:
    """Train a teacher on unlabelled images; returns the checkpoint's path. A checkpoint that is there is gone on with.

    SGD with momentum 0.9 (AdamW for DINO), one epoch of warm-up, cosine to 0. Raises UserError for bad settings, NonFinite for a loss
    that is no number; the checkpoint then holds the last whole epoch.
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


def _optimizer(model: MoCo | SimCLR | DINO, config: PretrainConfig, rate: float) -> torch.optim.Optimizer:
    """SGD for the contrastive methods, AdamW for DINO, as their scripts have it."""
    parameters = model.encoder_q.parameters()
    if config.method == "dino":
        return torch.optim.AdamW(parameters, rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=config.weight_decay)


def _resume(path: Path, model: MoCo | SimCLR | DINO, optimizer: torch.optim.Optimizer) -> int:
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
