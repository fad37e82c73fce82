"""ssl_kd: distil self-supervised vision teachers into small students, without labels.

    import ssl_kd

    teacher = ssl_kd.load_encoder("dino_deitsmall16_pretrain.pth")     # any lab's file, recognised and fully loaded
    result = ssl_kd.distill(teacher, "resnet18", "photos/", out="runs/first")
    features = result.student(images).embedding                        # images: (B, 3, H, W) in [0, 1]

Names are imported when first used, so that `ssl-kd --help` answers at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_kd.checkpoints.loading import inspect, load_teacher
    from ssl_kd.checkpoints.loading import load_teacher as load_encoder
    from ssl_kd.checkpoints.saving import save_student
    from ssl_kd.data.open import open_images
    from ssl_kd.distillation.config import DistillConfig
    from ssl_kd.distillation.distilled import Distilled
    from ssl_kd.distillation.trainer import distill
    from ssl_kd.errors import UserError
    from ssl_kd.exporters.export import export
    from ssl_kd.models.encoder import Encoder, build
    from ssl_kd.models.preprocessing import Preprocessing
    from ssl_kd.pretraining.config import PretrainConfig
    from ssl_kd.pretraining.trainer import pretrain
    from ssl_kd.search.index import Index
    from ssl_kd.types import Features

    __version__: str

# Where each name is, with another name behind a colon where it has one there.
# No module may bear a public function's name: importing it would put the module in the function's place.
_HOMES = {
    "load_encoder": "checkpoints.loading:load_teacher",
    "load_teacher": "checkpoints.loading",
    "save_student": "checkpoints.saving",
    "inspect": "checkpoints.loading",
    "Encoder": "models.encoder",
    "Features": "types",
    "Index": "search.index",
    "Preprocessing": "models.preprocessing",
    "build": "models.encoder",
    "open_images": "data.open",
    "DistillConfig": "distillation.config",
    "PretrainConfig": "pretraining.config",
    "distill": "distillation.trainer",
    "Distilled": "distillation.distilled",
    "pretrain": "pretraining.trainer",
    "UserError": "errors",
    "export": "exporters.export",
}

__all__ = [
    "DistillConfig",
    "Distilled",
    "Encoder",
    "Features",
    "Index",
    "Preprocessing",
    "PretrainConfig",
    "UserError",
    "build",
    "distill",
    "export",
    "inspect",
    "load_encoder",
    "load_teacher",
    "open_images",
    "pretrain",
    "save_student",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # written once, in pyproject.toml
        from importlib.metadata import version

        return version("ssl-kd")
    if name not in _HOMES:
        raise AttributeError(f"module 'ssl_kd' has no attribute {name!r}")
    from importlib import import_module

    module, _, there = _HOMES[name].partition(":")
    value = getattr(import_module(f"ssl_kd.{module}"), there or name)
    globals()[name] = value
    return value
