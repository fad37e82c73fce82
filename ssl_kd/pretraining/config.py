"""The settings of training a teacher on your own images."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ssl_kd.validation import Rule, must_hold, rules_of_training


@dataclass
class PretrainConfig:
    """Train a small self-supervised teacher with lightly on unlabelled images.

    Args:
        images: unlabelled images: folder, zip, tar shards (pattern, folder or URL) or data set
        out: checkpoint to write, in the layout of the method's training script; one that is there is resumed by the same settings
        method: moco (MoCo v2), moco_v3, simclr or dino
        arch: resnet18 to resnet200; for moco_v3 a ViT of 12 heads, for dino also a ViT of one head per 64 channels
        arch_args: extra arguments of the architecture, e.g. {channels: [32, 64, 128, 256]}
        size: side of the square views, in pixels
        epochs: passes over the images
        batch_size: images per step
        lr: learning rate per 256 images (SGD, momentum 0.9; AdamW for moco_v3 and dino; one epoch of warm-up, cosine to 0)
        weight_decay: L2 penalty; decoupled for moco_v3 and dino
        momentum: of the moving average, 0 to 1 (moco, moco_v3: key encoder, dino: teacher)
        temperature: of the contrastive softmax, or of dino's student
        teacher_temperature: of dino's teacher
        prototypes: outputs of dino's head
        queue: negatives kept, in embeddings (moco)
        views: augmentation scheme with two views
        seed: of weights, shuffling and views
        threads: decoding threads
        accelerator: auto, cpu or cuda
        precision: auto (bf16 where a probe finds it faster), 32-true or bf16-mixed
        quiet: no progress bar
    """

    images: str = ""
    out: str = ""
    method: str = "moco"
    arch: str = "resnet18"
    arch_args: dict[str, Any] = field(default_factory=dict)
    size: int = 224
    epochs: int = 200
    batch_size: int = 256
    lr: float = 0.03
    weight_decay: float = 1e-4
    momentum: float = 0.999
    temperature: float = 0.2
    teacher_temperature: float = 0.04
    prototypes: int = 65536
    queue: int = 65536
    views: str = "two_strong"
    seed: int = 0
    threads: int = 2
    accelerator: str = "auto"
    precision: str = "auto"
    quiet: bool = False


def check(config: PretrainConfig) -> None:
    """Raise UserError for the first setting that cannot be right, before anything is loaded or written."""
    must_hold((*_of_pretraining(config), *rules_of_training(config)))


def _of_pretraining(config: PretrainConfig) -> tuple[Rule, ...]:
    return (
        (config.size >= 1, f"size: expected a side in pixels, got {config.size}"),
        (0 <= config.momentum <= 1, f"momentum: expected a share from 0 to 1, got {config.momentum}"),
        (0 < config.temperature < math.inf, f"temperature: expected above 0, got {config.temperature}"),
        (
            0 < config.teacher_temperature < math.inf,
            f"teacher_temperature: expected above 0, got {config.teacher_temperature}",
        ),
        (config.prototypes >= 1, f"prototypes: expected at least 1, got {config.prototypes}"),
        (config.queue >= 1, f"queue: expected at least 1 embedding, got {config.queue}"),
    )
