"""The demo's unlabelled side: a small SimCLR teacher, trained once and kept, and a student that is distilled from it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from pathlib import Path

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.distilled import Distilled
from ssl_kd.distillation.trainer import distill
from ssl_kd.models.encoder import Encoder
from ssl_kd.pretraining.config import PretrainConfig
from ssl_kd.pretraining.trainer import pretrain
from ssl_kd.runtime.cache import cache_folder
from ssl_kd.runtime.ownership import refuse_replacing
from ssl_kd.runtime.run_dir import UNREADABLE
from ssl_kd.runtime.signals import Interrupted
from ssl_kd.runtime.state import load_state

SIZE = 32  # pixels
TEACHER = PretrainConfig(
    method="simclr",
    arch="resnet18",
    arch_args={"channels": [32, 64, 128, 256]},  # half the width: a teacher in a minute
    size=SIZE,
    epochs=12,
    batch_size=128,
    lr=0.24,
    weight_decay=5e-4,
    temperature=0.2,
    views="two_gentle",
)
STUDENT = DistillConfig(
    student="resnet18",
    student_args={"channels": [24, 40, 80, 104]},
    views="gentle",  # what the student never sees, it does not learn to ignore
    size=SIZE,
    crop_ratio=1.0,
    epochs=8,
    batch_size=32,
    health_every=0,  # so few images are all needed
)


def teacher_file(images: ImageSource) -> Path:
    """Where the demo's teacher is kept between runs: under a name that says its settings and images."""
    recipe = hashlib.sha256(f"{asdict(TEACHER)}{images.digest}".encode()).hexdigest()[:12]
    return cache_folder() / "demo" / f"simclr_{recipe}.pth.tar"


def teacher(images: ImageSource, fresh: bool = False, quiet: bool = False) -> Encoder:
    """The demo's teacher: trained unless an equal one is in the cache, and read back through the ordinary loader."""
    path = teacher_file(images)
    if fresh:
        refuse_replacing("fresh-teacher", path, _is_a_teacher)
        path.unlink(missing_ok=True)
    pretrain(replace(TEACHER, out=str(path), quiet=quiet), images)
    return load_teacher(path)


def _is_a_teacher(path: Path) -> bool:
    try:
        return {"epoch", "settings"} <= load_state(path).keys()
    except UNREADABLE:
        return False


def distilled(teacher: Encoder, images: ImageSource, out: Path, seed: int = 0, quiet: bool = False) -> Distilled:
    """The student of the demo, in a run folder that starts anew each time."""
    config = replace(STUDENT, out=str(out), seed=seed, quiet=quiet, overwrite=True)
    try:
        return distill(teacher, images=images, config=config)
    except Interrupted as stop:
        raise Interrupted(stop.what, "the demo distils anew each time") from None
