"""What can be known about a student without labels, from images that it is not trained on.

Every so often the student embeds the held-out images as they are (resized, centre crop), and its embeddings are compared
with the teacher's, which are computed once. The figures go to the run's log, the best student by neighbour overlap is
kept, a run may stop early by it, and a collapsed student is noticed. docs/health.md shows how well each figure ranks
students.

All measures take rows, one per image, and give a float; nothing here draws random numbers or moves a training state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.data.prefetch import prefetch
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.errors import Collapsed
from ssl_kd.metrics import (
    NEIGHBOURS,
    centred_kernel_alignment,
    chance_overlap,
    effective_rank,
    mean_of,
    neighbour_overlap,
    shared_neighbours,
    spread,
    uniformity,
)
from ssl_kd.models.encoder import Encoder, at_rest
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.objectives.alignment import Alignment

BATCH = 64  # images per forward pass
ILL = 3  # measurements in a row of a collapsed student before the run stops
SAME_PLACE = 1e-4  # spread below which all images lie in one place
FLAT = 0.05  # share of the teacher's effective rank (or of the student's width) below which dimensions are lost
FAINT = 0.1  # neighbours in common by chance above which the figure hardly tells students apart
ENOUGH = 200  # held-out images of which chance is 5 %
LINE = 1.5  # effective rank below which all images lie along one line

# ------------------------------------------------------------------------------------------------- measures


# What an encoder's embeddings (N, D) say by themselves: logged of the teacher too, for comparison.
OWN: dict[str, Callable[[Tensor], float]] = {
    "effective_rank": effective_rank,
    "uniformity": uniformity,
    "spread": spread,
}


def figures(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """All measures that need nothing but the embeddings (N, Ds) and (N, Dt) of the same images."""
    return {
        "neighbour_overlap": neighbour_overlap(student, teacher),
        "cka": centred_kernel_alignment(student, teacher),
        **{name: of(student) for name, of in OWN.items()},
    }


def collapsed(student: Tensor, teacher: Tensor) -> str:
    """Why the student counts as collapsed, in words; empty while it does not."""
    if (value := spread(student)) < SAME_PLACE:
        return f"all held-out images lie in one place: spread {value:.2g}, below {SAME_PLACE:.0e}"
    ours, theirs, width = effective_rank(student), effective_rank(teacher), student.shape[1]
    least = max(LINE, FLAT * min(theirs, width)) if min(theirs, width) > LINE else 0
    if ours < least:
        return f"effective rank {ours:.2g}, below {least:.2g} (width {width}, the teacher's rank {theirs:.3g})"
    return ""


# --------------------------------------------------------------------------------------------- held-out images


def few_held_out(held: int, others: int, option: str) -> str:
    """What to know first where none of `held + others` images is held out, or so few that chance is high; else empty.

    option: the one that holds out more.
    """
    if not held:
        return (
            f"none of {others:,} images is held out, as of any set so small: nothing will tell how much is "
            f"learned; {option} {min(ENOUGH, others // 2)} holds out some"
        )
    if (chance := chance_overlap(held)) <= FAINT:
        return ""
    more = min(ENOUGH, (held + others) // 2)
    return (
        f"{held} images are held out, of which unrelated networks share {100 * chance:.1f} % of {NEIGHBOURS} neighbours: "
        f"neighbours will hardly tell anything; "
        + (f"{option} {more} holds out more" if more > held else "more images would")
    )


def plain_views(images: ImageSource, contract: Preprocessing, threads: int = 2) -> Tensor:
    """Resized and cropped, nothing else: uint8 (N, 3, S, S) of the readable ones."""
    read = prefetch(lambda i: images.prepared(i, contract), range(len(images)), threads)
    return torch.stack([pixels for pixels in read if pixels is not None])


# ------------------------------------------------------------------------------------------------- in a run


@dataclass
class Course:
    """What is remembered from one measurement to the next; saved with the run's state."""

    best: float = -math.inf  # neighbour overlap
    best_half: float = 0.0  # half its 95 % interval over the held-out images
    best_step: int = 0
    since: int = 0  # measurements without a better one
    ill: int = 0  # measurements in a row of a collapsed student
    last: float = 0.0  # neighbour overlap
    last_half: float = 0.0
    last_step: int = 0  # 0: no measurement yet


@dataclass(frozen=True)
class Measurement:
    """The figures of one measurement."""

    figures: dict[str, float]
    better: bool  # the best neighbour overlap so far
    alarm: str  # empty, or why the student counts as collapsed


class HeldOut:
    """Held-out images, read once, and the teacher's outputs on them, asked once; several students' monitors may share it."""

    def __init__(self, images: ImageSource):
        self.images = images
        self.pixels: Tensor | None = None
        self.teacher: Tensor | None = None


class Monitor:
    """Measures the student on held-out images. One teacher pass over them, at the first measurement.

    every: steps between measurements; the last step has one too. patience: measurements without a better neighbour
    overlap after which `enough` is true and the run may end; 0: never.
    """

    def __init__(
        self,
        images: ImageSource | HeldOut,
        contract: Preprocessing,
        every: int,
        total: int,
        patience: int = 0,
        threads: int = 2,
    ):
        self.held = images if isinstance(images, HeldOut) else HeldOut(images)
        self.contract, self.threads = contract, threads
        self.every, self.total, self.patience = max(every, 1), total, patience
        self.course = Course()

    def due(self, step: int) -> bool:
        """Whether to measure after this many steps."""
        return step % self.every == 0 or step == self.total

    @property
    def enough(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.course.since

    def measure(
        self,
        step: int,
        student: Encoder,
        teacher: Callable[[Tensor], Tensor],
        objective: nn.Module | None = None,
        whose: str = "the student",
    ) -> Measurement:
        """Measure the student after `step` steps. teacher: pixels (B, 3, S, S) in [0, 1] to rows (B, Dt).

        An objective with an alignment on embeddings has its head tried too. Raises Collapsed at the third
        measurement in a row of a collapsed student.
        """
        ours, theirs = self._rows(student, teacher)
        found = figures(ours, theirs) | {"chance_neighbour_overlap": chance_overlap(len(ours))}
        interval = mean_of(shared_neighbours(ours, theirs))
        half = found["half_neighbour_overlap"] = (interval.high - interval.low) / 2
        found |= {f"teacher_{name}": of(theirs) for name, of in OWN.items()}
        if objective is not None and (cosine := head_cosine(objective, ours, theirs)) is not None:
            found["alignment"] = cosine
        why = collapsed(ours, theirs)
        found["collapsed"] = float(bool(why))
        better = not why and found["neighbour_overlap"] > self.course.best
        self._remember(step, found["neighbour_overlap"], half, better, bool(why))
        if self.course.ill >= ILL:
            raise Collapsed(
                f"{whose} has collapsed ({why}) in {ILL} measurements in a row, the last at step {step}; lower lr, or "
                f"change the objective, in a new run folder"
            )
        return Measurement({f"health/{name}": value for name, value in found.items()}, better, why)

    def _remember(self, step: int, overlap: float, half: float, better: bool, ill: bool) -> None:
        course = self.course
        course.since = 0 if better else course.since + 1
        course.ill = course.ill + 1 if ill else 0
        course.last, course.last_half, course.last_step = overlap, half, step
        if better:
            course.best, course.best_half, course.best_step = overlap, half, step

    def _rows(self, student: Encoder, teacher: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings of the held-out images, float32 on the CPU."""
        held, device = self.held, student.mean.device
        if held.pixels is None:
            held.pixels = plain_views(held.images, self.contract, self.threads)
        if held.teacher is None:
            held.teacher = _embed(held.pixels, teacher, device)
        with at_rest(student):
            return _embed(held.pixels, lambda x: student(x).embedding, device), held.teacher

    def state(self) -> dict[str, object]:
        """For the run's saved state."""
        return dict(vars(self.course))

    def restore(self, state: dict[str, object]) -> None:
        """The inverse of `state`."""
        make: Callable[..., Course] = Course
        self.course = make(**state)


@torch.no_grad()
def _embed(pixels: Tensor, network: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    parts = (
        part.to(device).float().div_(255).contiguous(memory_format=torch.channels_last)
        for part in torch.split(pixels, BATCH)
    )
    return torch.cat([network(part).float().cpu() for part in parts])


@torch.no_grad()
def head_cosine(objective: nn.Module, student: Tensor, teacher: Tensor) -> float | None:
    """Mean cosine of the projected student to the teacher, by the first alignment of embeddings; None without one."""
    terms = [m for m in objective.modules() if isinstance(m, Alignment) and m.of == "embedding"]
    if not terms:
        return None
    term = terms[0]
    device = next((p.device for p in term.parameters()), student.device)
    with at_rest(term):
        projected, target = term.projector(student.to(device)), term.space(teacher.to(device))
    return float(F.cosine_similarity(projected.double(), target.double(), dim=1).mean())
