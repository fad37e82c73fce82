"""Whether a smaller copy still says what the student says: neighbours on the user's photos, no labels.

Photos are divided into three parts that share no picture: `calibration` sets the ranges of the integers, `choice` decides
which nodes stay float, and `proof` gives the figures, on the file as it was written, with intervals.

With a teacher the copy may lose `within` points of the student's own neighbour overlap with that teacher. `keep` is the share
of the float student's own nearest ten that must stay: KEPT where there is no teacher, which is what eight bits reach on a
sound network; a weak student, whose overlap with its teacher is low, is better asked for both.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ssl_kd.data.open import open_without_limit_setting
from ssl_kd.errors import UserError
from ssl_kd.metrics import Mean, chance_overlap, mean_of, shared_neighbours
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.runtime.timing import Timing, threads_said

MOST = {"calibration": 128, "choice": 256, "proof": 1000}  # photos of each part
LEAST = 60  # photos in all
SHARES = {"calibration": 1, "choice": 2, "proof": 2}  # fifths, where there are fewer photos than that
KEPT = 0.9
MARGIN = 0.75  # of what may be lost is used up when nodes are chosen: the proof has other photos
BATCH = 32

Ask = Callable[[Tensor], Tensor]  # images (B, 3, S, S) in [0, 1] -> embeddings (B, D)


@dataclass(frozen=True)
class Part:
    """Some photos, and what the float student and the teacher say to them."""

    photos: Tensor  # uint8 (N, 3, S, S)
    student: Tensor  # (N, D)
    teacher: Tensor | None  # (N, Dt)

    def rows(self, ask: Ask) -> Tensor:
        """What a program says to these photos: (N, D)."""
        return torch.cat([ask(part.float() / 255) for part in torch.split(self.photos, BATCH)]).float()


@dataclass(frozen=True)
class Verdict:
    """What a smaller copy kept, on photos that nothing was chosen by. `met`: whether that is what was asked for."""

    photos: int
    chance: float  # of the overlap between unrelated networks
    with_student: Mean
    with_teacher: Mean | None
    student_with_teacher: Mean | None
    lost: Mean | None  # points of overlap with the teacher, paired by photo
    met: bool
    asked: str
    floats: tuple[str, ...] = ()  # nodes that were left float
    nodes: int = 0  # that could have become integers
    smaller: float = 0.0  # size, as a share of the float file's
    timings: dict[str, Timing] = field(default_factory=dict)
    machine: str = ""
    threads: int = 0
    teacher_size: int = 0  # pixels at which the teacher was asked

    def lines(self) -> list[str]:
        """What the command prints."""
        told = [f"neighbours shared with the float student: {self.with_student} (chance {100 * self.chance:.1f} %)"]
        if self.with_teacher is not None:
            told.append(
                f"with the teacher, at {self.teacher_size} px: {self.with_teacher}; the float student: "
                f"{self.student_with_teacher}; lost {self.lost}"
            )
        told.append(
            f"{self.photos} photos that nothing was chosen by; asked: {self.asked}: {'met' if self.met else 'MISSED'}"
        )
        if self.nodes:
            names = ", ".join(self.floats[:6]) + (", ..." if len(self.floats) > 6 else "")
            told.append(f"{len(self.floats)} of {self.nodes} nodes stay float" + (f": {names}" if names else ""))
        if self.timings:
            spent = "; ".join(f"{name} {timing}" for name, timing in self.timings.items())
            told.append(
                f"{100 * self.smaller:.0f} % of the float file's size; one image: {spent}; {threads_said(self.threads)}"
            )
            told.append(f"on {self.machine}")
        return told


class Judge:
    """Photos, a float student and perhaps its teacher: what every smaller copy is held against."""

    def __init__(
        self,
        encoder: Encoder,
        images: Tensor | str | os.PathLike[str] | None,
        teacher: Encoder | None = None,
        within: float = 2.0,
        keep: float | None = None,
    ):
        """images: (B, 3, S, S) in [0, 1], or a folder or zip. within: points. keep: percent. UserError for too few photos."""
        if images is None:
            raise UserError("images: int8 and float16 files are made and judged on your photos; give --images FOLDER")
        if not 0 <= within <= 100:
            raise UserError(f"within: expected points of overlap from 0 to 100, got {within}")
        if keep is not None and not 0 <= keep <= 100:
            raise UserError(f"keep: expected percent of the float student's neighbours from 0 to 100, got {keep}")
        self.encoder, self.within = encoder, within / 100
        self.teacher_size = 0 if teacher is None else teacher.preprocessing.size
        self.keep = keep / 100 if keep is not None else KEPT if teacher is None else 0.0
        seen, taught = _both(images, encoder.preprocessing, teacher.preprocessing if teacher else None)
        if len(seen) < LEAST:
            raise UserError(f"images: expected at least {LEAST} readable photos, got {len(seen)}")
        where = _divided(len(seen))
        self.calibration = seen[where["calibration"]]
        self.choice, self.proof = (
            Part(seen[rows], _rows(encoder, seen[rows]), None if teacher is None else _rows(teacher, taught[rows]))
            for rows in (where["choice"], where["proof"])
        )

    def lack(self, rows: Tensor) -> float:
        """How much is missing on the photos of `choice`, as a share of neighbours; 0 or less: nothing."""
        part = self.choice
        missing = 1 - MARGIN * (1 - self.keep) - float(shared_neighbours(rows, part.student).mean())
        if part.teacher is None:
            return missing
        lost = shared_neighbours(part.student, part.teacher) - shared_neighbours(rows, part.teacher)
        return max(missing, float(lost.mean()) - MARGIN * self.within)

    def apart(self, rows: Tensor) -> float:
        """How far rows (n, D) are from the float student's first n on `choice`, relative to their length."""
        own = self.choice.student[: len(rows)]
        return float((rows - own).norm(dim=1).mean() / own.norm(dim=1).mean())

    def verdict(self, ask: Ask, **further: object) -> Verdict:
        """Judge the finished file on the photos of `proof`."""
        verdict: Callable[..., Verdict] = Verdict
        part = self.proof
        rows = part.rows(ask)
        same = mean_of(shared_neighbours(rows, part.student))
        chance = chance_overlap(len(rows))
        met, asked = same.value >= self.keep, f"at least {100 * self.keep:.0f} % of the float student's neighbours"
        if part.teacher is None:
            return verdict(len(rows), chance, same, None, None, None, met, asked, **further)
        theirs, own = (shared_neighbours(z, part.teacher) for z in (rows, part.student))
        lost = mean_of(own - theirs)
        points = f"at most {100 * self.within:g} points of overlap with the teacher lost"
        asked = f"{points}, {asked}" if self.keep else points
        met = met and lost.value <= self.within
        size = self.teacher_size
        return verdict(
            len(rows), chance, same, mean_of(theirs), mean_of(own), lost, met, asked, teacher_size=size, **further
        )


def _divided(count: int) -> dict[str, Tensor]:
    """Numbers of the photos of each part, spread evenly over all of them."""
    sizes = {name: min(MOST[name], count * share // sum(SHARES.values())) for name, share in SHARES.items()}
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    ends = np.cumsum([0, *sizes.values()]).tolist()
    return {name: order[ends[i] : ends[i + 1]].sort().values for i, name in enumerate(sizes)}


def _both(
    images: Tensor | str | os.PathLike[str], eyes: Preprocessing, other: Preprocessing | None
) -> tuple[Tensor, Tensor]:
    """The same photos, uint8, as the student and as the teacher see them."""
    if isinstance(images, Tensor):
        if other is not None and other.size != images.shape[-1]:
            raise UserError(
                f"images: the teacher sees {other.size} px, the tensor has {images.shape[-1]}; give a folder"
            )
        pixels = (images * 255).round().to(torch.uint8)
        return pixels, pixels
    opened = open_without_limit_setting(images)
    wanted = np.unique(np.linspace(0, len(opened) - 1, min(len(opened), sum(MOST.values()))).round().astype(int))
    pairs = [(opened.prepared(i, eyes), None if other is None else opened.prepared(i, other)) for i in wanted.tolist()]
    seen = [ours for ours, _ in pairs if ours is not None]
    taught = [theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    if not seen:
        raise UserError(f"images: no readable picture in {images}")
    return torch.stack(seen), torch.stack(taught or seen)


@torch.no_grad()
def _rows(encoder: Encoder, photos: Tensor) -> Tensor:
    return torch.cat([encoder(part).embedding for part in torch.split(photos, BATCH)]).float()
