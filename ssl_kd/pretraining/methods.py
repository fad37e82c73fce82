"""How a teacher is taught without labels, from lightly's parts: what is learnt, and the checkpoint its users know.

    moco     MoCo v2 (arXiv:1911.05722, arXiv:2003.04297); the file of the official main_moco.py
    moco_v3  MoCo v3 (arXiv:2104.02057), for ViTs; the file of the official main_moco.py of moco-v3
    simclr   SimCLR (arXiv:2002.05709); the file of the sthalles/SimCLR training script (Google's own are TensorFlow's)
    dino     DINO (arXiv:2104.14294), two large views and no small ones; a full checkpoint of the official main_dino.py

Each takes two views in [0, 1] and gives its loss; `encoder_q` is what learns, `features` what its users will read from
the checkpoint, and `TEACHES` names the networks that the lab's layout can hold.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.models.backbones import PooledNet, VisionTransformerNet
from ssl_kd.models.factory import make
from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from ssl_kd.pretraining.config import PretrainConfig

if TYPE_CHECKING:
    from timm.models import ResNet

WIDTH = 128  # of the projected embedding of MoCo v2 and SimCLR, in both papers
WIDTH_V3, HIDDEN, HEADS = 256, 1024, 12  # of MoCo v3: projection, hidden layers here, heads of all its ViTs
RESNETS = "resnet18, resnet34, resnet50, resnet101, resnet152 or resnet200 (arch_args: channels or small_stem)"


def _timm(config: PretrainConfig, *kinds: type) -> ResNet:
    """A timm network without classifier that is read in one of these ways; UserError for any other."""
    network = make(config.arch, config.arch_args)
    if not isinstance(network, kinds):
        known = METHODS[config.method].TEACHES
        raise UserError(f"arch: {config.method} trains {known}; {config.arch} is another network")
    return cast("ResNet", network.backbone)  # or a ViT, which has all of it that is used of one


def _network(config: PretrainConfig) -> ResNet:
    """A timm ResNet whose fc is the two-layer projection head, as both training scripts have it."""
    from lightly.models.modules import MoCoProjectionHead

    backbone = _timm(config, PooledNet)
    if not hasattr(backbone, "fc"):
        raise UserError(f"arch: {config.method} trains ResNets, whose head is called fc: {RESNETS}; got {config.arch}")
    dim = backbone.num_features
    backbone.fc = MoCoProjectionHead(dim, dim, WIDTH).layers
    return backbone.to(memory_format=torch.channels_last)


def _pooled(network: ResNet, images: Tensor) -> Tensor:
    """What enters the projection head, (B, D)."""
    pooled: Tensor = network.global_pool(network.forward_features(images))
    return pooled


def _embed(network: ResNet, images: Tensor) -> Tensor:
    """Projected, unit-length embeddings (B, 128)."""
    return nn.functional.normalize(network.fc(_pooled(network, images)).float(), dim=1)


class Normalise(nn.Module):
    """Pixels (B, 3, H, W) in [0, 1] by ImageNet's mean and deviation; nothing of it goes into a checkpoint."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Of the same shape."""
        return (pixels - self.mean) / self.std


def pixels_record(model: nn.Module, size: int) -> dict[str, object]:
    """What a checkpoint says of the pixels it was trained on, as `ssl_kd.checkpoints.pixels_record` reads it back."""
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if hasattr(model, "normalise") else ((0.0,) * 3, (1.0,) * 3)
    return {"mean": list(mean), "std": list(std), "size": size, "resize": size, "crop": size}


class MoCo(nn.Module):
    """Query encoder, key encoder (a moving average) and a queue of keys, named as in the official checkpoints."""

    TEACHES: ClassVar[str] = RESNETS

    def __init__(self, config: PretrainConfig):
        from lightly.loss import NTXentLoss

        super().__init__()
        self.config = config
        self.encoder_q = _network(config)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.contrast = NTXentLoss(temperature=config.temperature, memory_bank_size=(config.queue, WIDTH))
        self.normalise = Normalise()

    def forward(self, first: Tensor, second: Tensor, autocast: AbstractContextManager[object]) -> Tensor:
        """Contrastive loss of two views in [0, 1]."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder_q, self.encoder_k, self.config.momentum)
        with autocast:
            query = _embed(self.encoder_q, self.normalise(first))
            with torch.no_grad():
                key = _embed(self.encoder_k, self.normalise(second))
        loss: Tensor = self.contrast(query, key)
        return loss

    def features(self, pixels: Tensor) -> Tensor:
        """The teacher's features (B, D) of pixels (B, 3, H, W) in [0, 1]: its checkpoint, read back, must give the same."""
        return _pooled(self.encoder_q, self.normalise(pixels))

    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """The state dict of the official script."""
        state = {f"module.encoder_q.{k}": v for k, v in self.encoder_q.state_dict().items()}
        state |= {f"module.encoder_k.{k}": v for k, v in self.encoder_k.state_dict().items()}
        bank = self.contrast.memory_bank
        return {"state_dict": state | {"module.queue": bank.bank.T.contiguous(), "module.queue_ptr": bank.bank_ptr}}

    def restore(self, saved: Mapping[str, object]) -> None:
        """The inverse of `checkpoint`."""
        state = _tensors(saved, "state_dict")
        for encoder, name in ((self.encoder_q, "encoder_q"), (self.encoder_k, "encoder_k")):
            encoder.load_state_dict(_below(state, f"module.{name}."))
        bank = self.contrast.memory_bank
        bank.bank.copy_(state["module.queue"].T)
        bank.bank_ptr.copy_(state["module.queue_ptr"])


class SimCLR(nn.Module):
    """One encoder, both views through it, the other images of the batch as negatives. Pixels stay in [0, 1]."""

    TEACHES: ClassVar[str] = RESNETS

    def __init__(self, config: PretrainConfig):
        from lightly.loss import NTXentLoss

        super().__init__()
        self.encoder_q = _network(config)
        self.contrast = NTXentLoss(temperature=config.temperature, memory_bank_size=0)

    def forward(self, first: Tensor, second: Tensor, autocast: AbstractContextManager[object]) -> Tensor:
        """Contrastive loss of two views in [0, 1]."""
        with autocast:
            both = _embed(self.encoder_q, torch.cat([first, second]))
        loss: Tensor = self.contrast(*both.chunk(2))
        return loss

    def features(self, pixels: Tensor) -> Tensor:
        """The teacher's features (B, D) of pixels (B, 3, H, W) in [0, 1]: its checkpoint, read back, must give the same."""
        return _pooled(self.encoder_q, pixels)

    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """The state dict of sthalles/SimCLR: the projection head inside the backbone, as its fc."""
        return {"state_dict": {f"backbone.{k}": v for k, v in self.encoder_q.state_dict().items()}}

    def restore(self, saved: Mapping[str, object]) -> None:
        """The inverse of `checkpoint`."""
        self.encoder_q.load_state_dict(_below(_tensors(saved, "state_dict"), "backbone."))


class DINO(nn.Module):
    """A student learns to predict on one view its moving average's output on the other, centred and sharpened.

    For ViTs (timm's) and ResNets. Differs from the official script: two large views only, a constant momentum of the
    average, a constant weight decay and a constant temperature of the teacher.
    """

    TEACHES: ClassVar[str] = (
        f"ViTs with a class token and one head per 64 channels, such as vit_tiny_patch16_224, and {RESNETS}"
    )

    def __init__(self, config: PretrainConfig):
        from lightly.loss import DINOLoss
        from lightly.models.modules import DINOProjectionHead

        super().__init__()
        self.config = config

        def network() -> nn.ModuleDict:
            backbone = _timm(config, PooledNet, VisionTransformerNet)
            head = DINOProjectionHead(backbone.num_features, hidden_dim=1024, output_dim=config.prototypes)
            return nn.ModuleDict({"backbone": backbone, "head": head}).to(memory_format=torch.channels_last)

        self.encoder_q, self.encoder_k = network(), network().requires_grad_(False)
        self.encoder_k.load_state_dict(self.encoder_q.state_dict())  # weight norm cannot be deep-copied
        warm = {"warmup_teacher_temp": config.teacher_temperature, "warmup_teacher_temp_epochs": 1}
        self.loss = DINOLoss(
            config.prototypes, teacher_temp=config.teacher_temperature, student_temp=config.temperature, **warm
        )
        self.normalise = Normalise()

    def forward(self, first: Tensor, second: Tensor, autocast: AbstractContextManager[object]) -> Tensor:
        """Cross-entropy between the average's output on one view and the student's on the other, views in [0, 1]."""
        from lightly.models.utils import update_momentum

        update_momentum(self.encoder_q, self.encoder_k, self.config.momentum)
        both = self.normalise(torch.cat([first, second]))
        with autocast:
            ours = self._logits(self.encoder_q, both)
            with torch.no_grad():
                theirs = self._logits(self.encoder_k, both)
        loss: Tensor = self.loss(list(theirs.float().chunk(2)), list(ours.float().chunk(2)))
        return loss

    @staticmethod
    def _logits(network: nn.ModuleDict, images: Tensor) -> Tensor:
        logits: Tensor = network["head"](network["backbone"](images))
        return logits

    def features(self, pixels: Tensor) -> Tensor:
        """The teacher's features (B, D) of pixels (B, 3, H, W) in [0, 1]: its checkpoint, read back, must give the same."""
        features: Tensor = self.encoder_k["backbone"](self.normalise(pixels))
        return features

    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """Teacher, student and centre as the official script keeps them."""
        return {
            "student": {f"module.{k}": v for k, v in self.encoder_q.state_dict().items()},
            "teacher": dict(self.encoder_k.state_dict()),
            "dino_loss": {"center": self.loss.center.flatten(0, -2)},
        }

    def restore(self, saved: Mapping[str, object]) -> None:
        """The inverse of `checkpoint`."""
        self.encoder_q.load_state_dict(_below(_tensors(saved, "student"), "module."))
        self.encoder_k.load_state_dict(_tensors(saved, "teacher"))
        self.loss.center.data.copy_(_tensors(saved, "dino_loss")["center"].view_as(self.loss.center))


class MoCoV3(nn.Module):
    """Each view's prediction finds the other view's projection by the moving average among the batch. For ViTs.

    Differs from the official script: hidden layers of 1024 numbers (4096 there), a learned position embedding, a
    constant momentum of the average, batch norms of a convolutional stem over both views at once. The patch
    projection keeps its random weights, as there; a convolutional stem learns.
    """

    TEACHES: ClassVar[str] = (
        f"ViTs of {HEADS} heads, as its lab's loader takes them (num_heads: {HEADS} goes into arch_args, img_size too "
        "where size is not 224)"
    )

    def __init__(self, config: PretrainConfig):
        from lightly.models.modules import MoCoProjectionHead

        super().__init__()
        self.config = config
        backbone = make(config.arch, config.arch_args)
        if not isinstance(backbone, VisionTransformerNet):
            raise UserError(f"arch: moco_v3 trains {self.TEACHES}; {config.arch} is another network")
        self.encoder_q = nn.ModuleDict(
            {
                "backbone": backbone,
                "head": MoCoProjectionHead(
                    backbone.width("cls"), HIDDEN, WIDTH_V3, num_layers=3, batch_norm=True
                ).layers,
            }
        ).to(memory_format=torch.channels_last)
        self.encoder_k = copy.deepcopy(self.encoder_q).requires_grad_(False)
        self.encoder_q["predictor"] = MoCoProjectionHead(WIDTH_V3, HIDDEN, WIDTH_V3, 2, batch_norm=True).layers
        if isinstance(patches := backbone.backbone.patch_embed.proj, nn.Conv2d):
            patches.requires_grad_(False)
        self.normalise = Normalise()

    def forward(self, first: Tensor, second: Tensor, autocast: AbstractContextManager[object]) -> Tensor:
        """Symmetric contrastive loss, times 2 tau, of two views in [0, 1] (arXiv:2104.02057, Algorithm 1)."""
        from lightly.models.utils import update_momentum

        for part in ("backbone", "head"):
            update_momentum(self.encoder_q[part], self.encoder_k[part], self.config.momentum)
        both = self.normalise(torch.cat([first, second]))
        with autocast:
            queries = [self.encoder_q["predictor"](q) for q in self._project(self.encoder_q, both).chunk(2)]
            with torch.no_grad():
                keys = self._project(self.encoder_k, both).chunk(2)
        return self._match(queries[0], keys[1]) + self._match(queries[1], keys[0])

    @staticmethod
    def _project(network: nn.ModuleDict, images: Tensor) -> Tensor:
        """Both views by one pass of the backbone. The heads' batch norms take each view by itself, as in the script."""
        embeddings = network["backbone"](images, ["cls"])[0]["cls"]
        return torch.cat([network["head"](half) for half in embeddings.chunk(2)])

    def _match(self, query: Tensor, key: Tensor) -> Tensor:
        tau = self.config.temperature
        query, key = (nn.functional.normalize(x.float(), dim=1) for x in (query, key))
        return 2 * tau * nn.functional.cross_entropy(query @ key.T / tau, torch.arange(len(query), device=query.device))

    def features(self, pixels: Tensor) -> Tensor:
        """The teacher's features (B, D) of pixels (B, 3, H, W) in [0, 1]: its checkpoint, read back, must give the same."""
        features: Tensor = self.encoder_q["backbone"](self.normalise(pixels), ["cls"])[0]["cls"]
        return features

    def checkpoint(self) -> dict[str, dict[str, Tensor]]:
        """The state dict of the official script: the projector inside the encoder, as its head."""
        state: dict[str, Tensor] = {}
        for name, encoder in (("base_encoder", self.encoder_q), ("momentum_encoder", self.encoder_k)):
            backbone = encoder["backbone"].get_submodule("backbone")
            state |= {f"module.{name}.{k}": v for k, v in backbone.state_dict().items()}
            state |= {f"module.{name}.head.{k}": v for k, v in encoder["head"].state_dict().items()}
        state |= {f"module.predictor.{k}": v for k, v in self.encoder_q["predictor"].state_dict().items()}
        return {"state_dict": state}

    def restore(self, saved: Mapping[str, object]) -> None:
        """The inverse of `checkpoint`."""
        for name, encoder in (("base_encoder", self.encoder_q), ("momentum_encoder", self.encoder_k)):
            state = _below(_tensors(saved, "state_dict"), f"module.{name}.")
            head = _below(state, "head.")
            backbone = encoder["backbone"].get_submodule("backbone")
            backbone.load_state_dict({k: v for k, v in state.items() if not k.startswith("head.")})
            encoder["head"].load_state_dict(head)
        self.encoder_q["predictor"].load_state_dict(_below(_tensors(saved, "state_dict"), "module.predictor."))


def _tensors(saved: Mapping[str, object], name: str) -> dict[str, Tensor]:
    """One state dict of a checkpoint; KeyError or TypeError where there is none."""
    state = saved[name]
    if not isinstance(state, dict):
        raise TypeError(f"{name}: expected a state dict, got {type(state).__name__}")
    return state


def _below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


Pretext = MoCo | MoCoV3 | SimCLR | DINO
METHODS: dict[str, type[MoCo] | type[MoCoV3] | type[SimCLR] | type[DINO]] = {
    "moco": MoCo,
    "moco_v3": MoCoV3,
    "simclr": SimCLR,
    "dino": DINO,
}
BY_ADAMW = {MoCoV3, DINO}  # the others by SGD, as their scripts have it
