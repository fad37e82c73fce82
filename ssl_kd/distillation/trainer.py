"""Distil: frozen teachers and a student get the same views, the objective compares their outputs, Fabric steps.

    done = ssl_kd.distill(teacher="swav_800ep_pretrain.pth.tar", student="resnet18", images="photos/", out="runs/x")

The same call resumes an interrupted run: shuffling and views are functions of (seed, epoch, index), and the saved
state holds the student, the heads, the memory banks, the optimiser, the position and the random state.

`setup` makes the parts, `loop` runs them; `teachers` is the teachers' side of a step, `module` the student's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, overload

from torch import nn

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.distillation.arguments import NOTHING, Objects, merge
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.distilled import Distilled, DistilledGroup
from ssl_kd.distillation.loop import Loop
from ssl_kd.distillation.setup import prepare
from ssl_kd.distillation.target_cache import TARGETS, TargetStore
from ssl_kd.errors import ImagesError, UserError
from ssl_kd.runtime.devices import make_fabric
from ssl_kd.runtime.loggers import Lightning
from ssl_kd.runtime.ownership import require_ours
from ssl_kd.runtime.run_dir import RUN, RUN_OF_STUDENTS, RunDir
from ssl_kd.runtime.stores import in_store


@overload
def distill(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: None = None,
    images: object = None,
    config: DistillConfig | None = None,
    *,
    students: Mapping[str, object],
    **settings: object,
) -> DistilledGroup: ...


@overload
def distill(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: object = None,
    config: DistillConfig | None = None,
    **settings: Any,
) -> Distilled: ...


def distill(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: object = None,
    config: DistillConfig | None = None,
    **settings: object,
) -> Distilled | DistilledGroup:
    """Distil `teacher` into `student` on unlabelled `images`; returns the trained student.

    teacher: file, name, Encoder, or any module from normalised pixels to (B, D), a map or Features (several: the setting
    `teachers`). student: architecture name, Encoder or such a module; the last two are trained in place, and a module's
    file is its plain state dict. images: whatever `open_images` takes. Settings are the fields of DistillConfig, and three
    of them take objects as well: objective (a module of the `Criterion` protocol, see `AnyCriterion`; its parameters are
    trained and saved with the run), views (`Recipe`s, or functions from a picture to a view, which cannot be replayed) and
    log (Lightning loggers, beside names in a list). config.yaml keeps their names; the same call with the same objects
    resumes. Raises UserError for bad input before anything is written.

    students: several instead of one, {name: architecture, Encoder, module or {arch, objective, lr, ...}}; they share each
    pass of the teacher, and a DistilledGroup is returned.
    """
    merged, objects = merge(config, teacher, student, images, settings)
    with _loop(merged, teacher, student, images, objects) as loop:
        return loop.run()


def fill_targets(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: object = None,
    config: DistillConfig | None = None,
    **settings: object,
) -> dict[str, TargetStore]:
    """Store the teachers' outputs on all replayed views ahead of `distill` with the same settings, in the same run folder.

    Returns the store of each teacher; a single one has the name "".
    """
    merged, objects = merge(config, teacher, student, images, settings)
    if not merged.replay:
        raise UserError("replay: expected at least 1 view of each image to store targets for, got 0")
    with _loop(merged, teacher, student, images, objects) as loop:
        return loop.fill()


@contextmanager
def _loop(
    config: DistillConfig, teacher: object, student: object, images: object, objects: Objects = NOTHING
) -> Iterator[Loop]:
    """Everything that a run needs, tried out before its folder is touched; the folder is locked while this is open."""
    parts = prepare(config, teacher, student, images, objects)
    config = parts.config
    if config.targets and not in_store(config.targets):
        require_ours(Path(config.targets), TARGETS)
    run = RunDir(
        config.out,
        parts.settings,
        config.overwrite,
        writes=os.environ.get("RANK", "0") == "0",
        defaults=asdict(DistillConfig()),
        kind=RUN if "" in parts.members else RUN_OF_STUDENTS,
        derived=parts.derived,
    )
    loggers = [Lightning(logger) for logger in objects.loggers if run.writes]
    try:
        saved = None if config.overwrite else run.restore()
        # An interrupted run is resumed in the precision it began with, whatever a new trial would choose.
        fabric, precision = make_fabric(
            config.accelerator, str(saved.get("precision", config.precision)) if saved else config.precision
        )
        loop = Loop(fabric, precision, config, run, parts, saved)
        loop.loggers = loggers
        del saved  # the loop lets go of it once it is restored
        try:
            _try_again(run.kept_unreadable(), parts.loader.images, parts.held)
            yield loop
        except ImagesError:
            run.keep_unreadable(run.kept_unreadable() | parts.loader.images.unreadable)
            raise
    finally:
        for logger in loggers:
            logger.close()
        run.close()


def _try_again(unreadable: Mapping[str, str], *sources: ImageSource | None) -> None:
    """Read the images at which an earlier process stopped; ImagesError where there are still too many of them."""
    for source in sources if unreadable else ():
        for i, name in enumerate(source.ids if source else ()):
            if name in unreadable and source:
                source.read(i)
