"""Prototypes and heads for the objectives of a run that ask for them.

Prototypes are k-means on the teacher's outputs on the unlabelled images, made once, before the first step, from the views
of the first epoch (which fills the stored targets, where a run has them; otherwise it costs one more pass of the teacher
over at most 256 images per prototype). They are kept in the run's folder under a digest of all that decides them, and in
the saved state: a run resumes to the same bits. `--overwrite` has them made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ssl_kd.checkpoints import zoo
from ssl_kd.checkpoints.heads import load_head
from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.sources.base import content_key
from ssl_kd.distillation.target_cache import versions
from ssl_kd.distillation.teachers import Autocast, Teacher, TeacherGroup
from ssl_kd.errors import UserError
from ssl_kd.objectives.multi_teacher import MultiTeacher
from ssl_kd.objectives.prototypes import ROWS_EACH, Prototypes, spherical_kmeans
from ssl_kd.objectives.teacher_heads import TeacherHead
from ssl_kd.runtime.run_dir import UNREADABLE
from ssl_kd.runtime.state import load_state, save_state

FOLDER = "prototypes"
R = TypeVar("R", bound=nn.Module)


def relations(module: nn.Module, kind: type[R], teacher: str = "") -> Iterator[tuple[str, R]]:
    """Every relation of that kind inside an objective, and the name of its teacher (empty for a single one)."""
    if isinstance(module, kind):
        yield teacher, module
    elif isinstance(module, MultiTeacher):
        for name, part in module.parts.items():
            yield from relations(part, kind, name)
    else:
        for child in module.children():
            yield from relations(child, kind, teacher)


def wanted(objective: nn.Module) -> Iterator[tuple[str, Prototypes]]:
    """Those that have no anchors yet."""
    return ((name, found) for name, found in relations(objective, Prototypes) if not int(found.laid))


def give_heads(objective: nn.Module, teachers: Mapping[str, Teacher]) -> None:
    """Load the teacher's own head for every relation that asks for it. UserError where its file has none."""
    for name, relation in relations(objective, TeacherHead):
        file = str(teachers[name].line.file)
        if not Path(file).exists() and "/" not in file and not zoo.known(file):
            raise UserError("objective: a teacher from Python has no head of its own here; name its file")
        relation.give(load_head(file))


def must_have_enough(objective: nn.Module, images: int) -> None:
    """UserError where a run has fewer images than prototypes."""
    for _, relation in wanted(objective):
        if relation.prototypes > images:
            raise UserError(
                f"objective: {images:,} images cannot have {relation.prototypes:,} prototypes; spell the term with fewer, "
                f"as in {{term: correlation, relation: prototypes, prototypes: {max(2, images // 8)}}}"
            )


def lay_anchors(
    objective: nn.Module, group: TeacherGroup, loader: ViewLoader, folder: Path, autocast: Autocast, precision: str
) -> None:
    """Give every relation on prototypes its anchors: from the file of an earlier start, or made and kept now."""
    rows: dict[str, Tensor] = {}
    asked = list(wanted(objective))
    most = max((relation.prototypes for _, relation in asked), default=0)
    for name, relation in asked:
        path = folder / FOLDER / f"{_key(group, name, loader, relation.prototypes, most, precision)}.pt"
        anchors = _kept(path)
        if anchors is None or anchors.shape != relation.anchors.shape:
            rows = rows or embeddings(group, loader, autocast, ROWS_EACH * most)
            anchors = spherical_kmeans(rows[name], relation.prototypes, loader.seed)
            path.parent.mkdir(exist_ok=True)
            save_state(path, {"anchors": anchors})
        relation.lay(anchors.to(relation.anchors.device))


@torch.no_grad()
def embeddings(group: TeacherGroup, loader: ViewLoader, autocast: Autocast, most: int) -> dict[str, Tensor]:
    """(N, Dt) of each teacher, float32 on the CPU: the first view of at most so many images, in the order of the images."""
    found: dict[str, list[Tensor]] = {name: [] for name in group.teachers}
    seen: list[int] = []
    device = next(iter(group.teachers.values())).encoder.mean.device
    for raw in loader.epoch(0):
        if len(seen) >= most:
            break
        seen += raw.index.tolist()
        for name, output in group.outputs(loader.finish_all(raw, device), autocast).items():
            found[name].append(output.embedding[: len(raw)].float().cpu())
    order = torch.tensor(seen).argsort()
    return {name: torch.cat(parts)[order] for name, parts in found.items()}


def _key(group: TeacherGroup, name: str, loader: ViewLoader, count: int, most: int, precision: str) -> str:
    teacher = group.teachers[name]
    encoder = teacher.encoder
    content = content_key(getattr(loader.images, "whole", loader.images))
    views = (
        loader.recipes,
        loader.size,
        loader.seed,
        loader.view_seed,
        loader.images.digest,
        content,
        loader.batch_size,
    )
    pixels = (encoder.preprocessing.mean, encoder.preprocessing.std)
    question = (encoder.digest, encoder.feature, pixels, teacher.size, views, precision, count, most)
    everything = repr((versions(), question))
    return hashlib.sha256(everything.encode()).hexdigest()[:16]


def _kept(path: Path) -> Tensor | None:
    """The anchors of an intact file; None where there is none, or where it was damaged, so that they are made again."""
    try:
        anchors = load_state(path)["anchors"]
    except UNREADABLE:
        return None
    return anchors if isinstance(anchors, Tensor) else None
