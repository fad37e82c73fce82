"""ssl_kd: distil self-supervised vision teachers into small students, without labels.

    import ssl_kd

    teacher = ssl_kd.load_teacher("dino_deitsmall16_pretrain.pth")     # any lab's file, recognised and fully loaded
    result = ssl_kd.distill(teacher, "resnet18", "photos/", out="runs/first")
    features = result.student(images).embedding                        # images: (B, 3, H, W) in [0, 1]

Names are imported when first used, so that `ssl-kd --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_kd.checkpoint import inspect, load_teacher, save_student
    from ssl_kd.config import DistillConfig, PretrainConfig
    from ssl_kd.encoder import Encoder, Features, Preprocessing, build
    from ssl_kd.errors import UserError
    from ssl_kd.exporting import export
    from ssl_kd.images import open_images
    from ssl_kd.loop import Distilled, distill
    from ssl_kd.pretraining import pretrain

# No module may bear a public function's name: importing it would put the module in the function's place.
_HOMES = {
    "load_teacher": "checkpoint",
    "save_student": "checkpoint",
    "inspect": "checkpoint",
    "Encoder": "encoder",
    "Features": "encoder",
    "Preprocessing": "encoder",
    "build": "encoder",
    "open_images": "images",
    "DistillConfig": "config",
    "PretrainConfig": "config",
    "distill": "loop",
    "Distilled": "loop",
    "pretrain": "pretraining",
    "UserError": "errors",
    "export": "exporting",
}

__all__ = [
    "DistillConfig",
    "Distilled",
    "Encoder",
    "Features",
    "Preprocessing",
    "PretrainConfig",
    "UserError",
    "build",
    "distill",
    "export",
    "inspect",
    "load_teacher",
    "open_images",
    "pretrain",
    "save_student",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ssl_kd' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"ssl_kd.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
