"""The settings of training a teacher on your own images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssl_kd.runtime.settings import MachineSettings
from ssl_kd.validation import check_settings, described, must_hold, setting


@dataclass
class DataSettings:
    """Images and views."""

    images: str = setting(
        "",
        "unlabelled images: folder, zip, tar shards (pattern, folder or URL) or data set",
        first=True,
        tables={"": ["ssl_kd.data.open:SOURCES"]},
        paths=True,
    )
    size: int = setting(224, "side of the square views, in pixels", least=1, first=True)
    views: str | list[dict[str, object]] = field(
        default="two_strong",
        metadata=described(
            "augmentation scheme with two views, or a list of two recipes",
            expects="a scheme's name or a list of recipes",
            first=True,
            code=True,
        ),
    )


@dataclass
class MethodSettings:
    """Method and network."""

    method: Literal["moco", "moco_v3", "simclr", "dino"] = setting(
        "moco", "moco (MoCo v2), moco_v3, simclr or dino", first=True
    )
    arch: str = setting(
        "resnet18",
        "resnet18 to resnet200; for moco_v3 a ViT of 12 heads, for dino also a ViT of one head per 64 channels",
        first=True,
    )
    arch_args: dict[str, object] = field(
        default_factory=dict,
        metadata=described(
            "extra arguments of the architecture, e.g. {channels: [32, 64, 128, 256]}", expects="a mapping"
        ),
    )
    momentum: float = setting(
        0.999, "of the moving average, 0 to 1 (moco, moco_v3: key encoder, dino: teacher)", least=0, most=1
    )
    temperature: float = setting(0.2, "of the contrastive softmax, or of dino's student", above=0)
    teacher_temperature: float = setting(0.04, "of dino's teacher", above=0)
    prototypes: int = setting(65536, "outputs of dino's head", least=1)
    queue: int = setting(65536, "negatives kept, in embeddings (moco)", least=1)


@dataclass
class OptimiserSettings:
    """Optimiser and schedule."""

    epochs: int = setting(200, "passes over the images", least=1, first=True)
    batch_size: int = setting(256, "images per step", least=2, why="samples are related to each other", first=True)
    lr: float = setting(
        0.03,
        "learning rate per 256 images (SGD, momentum 0.9; AdamW for moco_v3 and dino; one epoch of warm-up, cosine to 0)",
        above=0,
        first=True,
    )
    weight_decay: float = setting(1e-4, "L2 penalty; decoupled for moco_v3 and dino", least=0)


@dataclass
class RunSettings:
    """Checkpoint."""

    out: str = setting(
        "",
        "checkpoint to write, in the layout of the method's training script; one that is there is resumed by the same settings",
        first=True,
    )


@dataclass
class PretrainConfig(MachineSettings, RunSettings, OptimiserSettings, MethodSettings, DataSettings):
    """Train a small self-supervised teacher with lightly on unlabelled images."""


def check(config: PretrainConfig) -> None:
    """Raise UserError for the first setting that cannot be right, before anything is loaded or written."""
    must_hold(
        (
            (bool(config.images), "images: expected a folder, a zip or a data set; got nothing"),
            (bool(config.out), "out: expected a path to write to; got nothing"),
        )
    )
    check_settings(config)
