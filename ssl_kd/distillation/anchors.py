"""Prototypes and heads for the objectives of a run that ask for them.

Prototypes are k-means on the teacher's outputs on the unlabelled images, made once, before the first step, from the views
of the first epoch (which fills the stored targets, where a run has them; otherwise it costs one more pass of the teacher
over at most 256 images per prototype, whatever the number of students and relations). They are kept in the run's folder
under a digest of all that decides them, and in the saved state: a run resumes to the same bits. `--overwrite` has them made
again, `refresh: EPOCHS` of a relation at the beginning of every so many epochs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
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
        head, feature = load_head(file, relation.patches), teachers[name].encoder.feature
        if head.feature and head.feature != feature:
            raise UserError(
                f"objective: the teacher's head reads its feature {head.feature}, not {feature}; say teacher_feature "
                f"{head.feature}"
            )
        relation.give(head)


def must_have_enough(objective: nn.Module, images: int) -> None:
    """UserError where a run has fewer images than prototypes."""
    for _, relation in wanted(objective):
        if relation.prototypes > images:
            raise UserError(
                f"objective: {images:,} images cannot have {relation.prototypes:,} prototypes; spell the term with fewer, "
                f"as in {{term: correlation, relation: prototypes, prototypes: {max(2, images // 8)}}}"
            )


@dataclass(frozen=True)
class Wish:
    """A relation that is to be laid, of which teacher, by the outputs on how many images, and where its anchors are kept."""

    relation: Prototypes
    teacher: str
    rows: int
    path: Path


def lay_anchors(
    objectives: Iterable[nn.Module],
    group: TeacherGroup,
    loader: ViewLoader,
    folder: Path,
    autocast: Autocast,
    precision: str,
    epoch: int = 0,
) -> None:
    """Give every relation on prototypes its anchors: from the file of an earlier start, or made and kept now.

    However many students and relations ask, the teachers look once. epoch: 0 lays those that have none; a later one
    lays those anew that are due (`refresh`), from that epoch's views, and their older files go.
    """
    wishes = []
    for objective in objectives:
        asked = list(wanted(objective) if not epoch else due(objective, epoch))
        most = max((relation.prototypes for _, relation in asked), default=0)
        for name, relation in asked:
            key = _key(group, name, loader, relation.prototypes, most, precision)
            path = folder / FOLDER / (f"{key}-{epoch}.pt" if epoch else f"{key}.pt")
            wishes.append(Wish(relation, name, ROWS_EACH * most, path))
    found = {wish.path: anchors for wish in wishes if (anchors := _kept(wish)) is not None}
    missing = [wish for wish in wishes if wish.path not in found]
    looks = look(group, loader, autocast, max((wish.rows for wish in missing), default=0), epoch) if missing else []
    for wish in missing:
        if wish.path not in found:
            rows = embeddings(looks, wish.teacher, wish.rows)
            found[wish.path] = spherical_kmeans(rows, wish.relation.prototypes, loader.seed + epoch)
            wish.path.parent.mkdir(exist_ok=True)
            save_state(wish.path, {"anchors": found[wish.path]})
    for wish in wishes:
        wish.relation.lay(found[wish.path].to(wish.relation.anchors.device))
        for old in wish.path.parent.glob(f"{wish.path.stem.partition('-')[0]}-*.pt") if epoch else ():
            if old != wish.path:
                old.unlink(missing_ok=True)


def due(objective: nn.Module, epoch: int) -> Iterator[tuple[str, Prototypes]]:
    """Those that are to be made anew at the beginning of an epoch."""
    return (
        (name, found)
        for name, found in relations(objective, Prototypes)
        if found.refresh and epoch % found.refresh == 0
    )


@torch.no_grad()
def look(
    group: TeacherGroup, loader: ViewLoader, autocast: Autocast, most: int, epoch: int = 0
) -> list[tuple[list[int], dict[str, Tensor]]]:
    """Batch by batch the images' numbers and each teacher's (N, Dt) of their first view, float32 on the CPU, up to `most` images."""
    found: list[tuple[list[int], dict[str, Tensor]]] = []
    device = next(iter(group.teachers.values())).encoder.mean.device
    for raw in loader.epoch(epoch):
        if sum(len(numbers) for numbers, _ in found) >= most:
            break
        outputs = group.outputs(loader.finish_all(raw, device), autocast)
        rows = {name: output.embedding[: len(raw)].float().cpu() for name, output in outputs.items()}
        found.append((raw.index.tolist(), rows))
    return found


def embeddings(looks: Sequence[tuple[list[int], Mapping[str, Tensor]]], teacher: str, most: int) -> Tensor:
    """(N, Dt) of the first batches that have so many images, in the order of the images: the same whoever else asks for more."""
    seen: list[int] = []
    parts: list[Tensor] = []
    for numbers, rows in looks:
        if len(seen) >= most:
            break
        seen += numbers
        parts.append(rows[teacher])
    return torch.cat(parts)[torch.tensor(seen).argsort()]


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


def _kept(wish: Wish) -> Tensor | None:
    """The anchors of an intact file; None where there is none, or where it was damaged, so that they are made again."""
    try:
        anchors = load_state(wish.path)["anchors"]
    except UNREADABLE:
        return None
    return anchors if isinstance(anchors, Tensor) and anchors.shape == wish.relation.anchors.shape else None
