"""What can be known about a student without labels, from images that it is not trained on.

Every so often the student looks at the held-out images as they are (resized, centre crop), and is compared with what
the teacher said about them, once. The figures go to the run's log, the best student by neighbour overlap is kept, a run
may stop early by it, and a collapsed student is noticed. docs/health.md says how well each figure ranks students.

All measures take rows, one per image, and give a float; nothing here draws random numbers or moves a training state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ssl_kd.data.open import Images, prefetch
from ssl_kd.data.sources.listing import Names
from ssl_kd.errors import Collapsed, ImagesError
from ssl_kd.models.encoder import Encoder, Preprocessing
from ssl_kd.objectives.alignment import Alignment

NEIGHBOURS = 10  # k of the neighbour overlap
MOST, SHARE = 512, 0.02  # images held out unless a number is asked for: whichever is fewer
FEWEST = 32  # fewer held-out images say nothing about ten neighbours
FEW_SHARDS = 8  # of streamed shards so many give the held-out images
BATCH = 64  # images per forward pass
ILL = 3  # looks in a row at a collapsed student before the run stops
SAME_PLACE = 1e-4  # spread below which all images lie in one place
FLAT = 0.05  # share of the teacher's effective rank (or of the student's width) below which dimensions are lost
LINE = 1.5  # effective rank below which all images lie along one line

# ------------------------------------------------------------------------------------------------- measures


def neighbour_overlap(student: Tensor, teacher: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of each image's k nearest others (by cosine, exact) that both networks agree on, mean over images, 0 to 1.

    student (N, Ds), teacher (N, Dt), N > k. Two unrelated networks agree on k / (N - 1).
    """
    assert len(student) == len(teacher) > k
    ours, theirs = (_nearest(z, k) for z in (student, teacher))
    return float((ours[:, :, None] == theirs[:, None, :]).any(2).float().mean())


def _nearest(z: Tensor, k: int) -> Tensor:
    """Row numbers (N, k) of the k most similar other rows."""
    unit = F.normalize(z.double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(-math.inf).topk(k, dim=1).indices


def centred_kernel_alignment(student: Tensor, teacher: Tensor) -> float:
    """Linear CKA of (N, Ds) and (N, Dt): do they tell the same images apart alike? At most 1; 0 for unrelated networks.

    Source: Kornblith et al., ICML 2019, arXiv:1905.00414, with the unbiased HSIC of Song et al., JMLR 2012: the plain
    estimate calls wide random features alike when N is below their width.
    """
    a, b = (_hollow(z) for z in (student, teacher))
    scale = math.sqrt(max(_hsic(a, a), 0.0)) * math.sqrt(max(_hsic(b, b), 0.0))
    return _hsic(a, b) / scale if scale > 0 else 0.0


def _hollow(z: Tensor) -> Tensor:
    """Products of centred rows (N, N) in double precision, of unit mean square, with an empty diagonal."""
    z = z.double()
    z = z - z.mean(0)
    z = z / z.square().mean().sqrt().clamp_min(1e-150)
    return (z @ z.T).fill_diagonal_(0)


def _hsic(a: Tensor, b: Tensor) -> float:
    n = len(a)
    rows_a, rows_b = a.sum(1), b.sum(1)
    total = (a * b).sum() + rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2)) - 2 * (rows_a @ rows_b) / (n - 2)
    return float(total) / (n * (n - 3))


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of the centred rows (N, D): 1 (a line) to min(N - 1, D); 0 for a point.

    Source: Roy & Vetterli, EUSIPCO 2007; RankMe (Garrido et al., ICML 2023, arXiv:2210.02885). Differs from RankMe:
    rows are centred, since one mean direction dominates features that end in a ReLU.
    """
    z = z.double()
    values = torch.linalg.svdvals(z - z.mean(0))
    # What centring leaves of equal rows is rounding: not a dimension.
    values = values[values > 1e-7 * z.norm()]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def uniformity(z: Tensor) -> float:
    """log of the mean over pairs of exp(-2 ||x - y||^2), x and y of unit length: 0 (one point) down to -8.

    Source: Wang & Isola, ICML 2020, arXiv:2005.10242, t = 2.
    """
    return float(torch.pdist(F.normalize(z.double(), dim=1)).square().mul(-2).exp().mean().log())


def spread(z: Tensor) -> float:
    """Variance of the unit vectors about their mean: 0 (all images in one place) to 1 (directions even out)."""
    return 1 - float(F.normalize(z.double(), dim=1).mean(0).square().sum())


def figures(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """All measures that need nothing but the embeddings (N, Ds) and (N, Dt) of the same images."""
    return {
        "neighbour_overlap": neighbour_overlap(student, teacher),
        "cka": centred_kernel_alignment(student, teacher),
        "effective_rank": effective_rank(student),
        "uniformity": uniformity(student),
        "spread": spread(student),
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


class Part(Images):
    """The pictures of a set whose sorted numbers are given, or all the others; unreadable ones count for the whole."""

    def __init__(self, whole: Images, numbers: np.ndarray, others: bool = False):
        self.whole, self.numbers, self.others = whole, numbers, others
        self._gaps = numbers - np.arange(len(numbers))  # others that come before each number
        super().__init__(whole.name, _Ids(self), whole.max_unreadable)
        self.unreadable = whole.unreadable

    def __len__(self) -> int:
        return len(self.whole) - len(self.numbers) if self.others else len(self.numbers)

    def number(self, i: int) -> int:
        """What picture i is called in the whole set. No table is kept: a million images would fill it."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return int(i + np.searchsorted(self._gaps, i, side="right") if self.others else self.numbers[i])

    def read(self, i: int, shorter: int | None = None) -> Image.Image | None:
        """As the whole set reads it."""
        return self.whole.read(self.number(i), shorter)

    def runs(self) -> np.ndarray | None:
        """The runs of the whole set, without what is not of this part."""
        if (runs := self.whole.runs()) is None:
            return None
        inside = np.diff(np.searchsorted(self.numbers, np.cumsum(runs)), prepend=0)
        return runs - inside if self.others else inside

    def coming(self, runs: np.ndarray) -> None:
        """As the whole set hears it."""
        self.whole.coming(runs)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return self.whole._load(self.number(i), shorter)

    def _identity(self) -> Iterator[bytes]:
        yield f"{self.whole.digest} {self.others}".encode()
        yield self.numbers.astype("<i8").tobytes()


class _Ids(Names):
    def __init__(self, part: Part):
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def name(self, i: int) -> str:
        return self._part.whole.ids[self._part.number(i)]


def hold_out(images: Images, count: int = 0) -> tuple[Images, Images | None]:
    """Images to train on, and those held out for `Watch`: every so-many-th, whatever the seed, so that runs compare.

    Of streamed shards they come from a few: single ones out of all would have all of these fetched.
    count: how many; 0 takes the fewer of 512 and 2 %, or none (the second is then None) where those are below 32.
    """
    wanted = count or min(MOST, int(SHARE * len(images)))
    if not count and wanted < FEWEST:
        return images, None
    if not FEWEST <= wanted <= len(images) // 2:
        raise ImagesError(
            f"health_images: expected {FEWEST} images to half of the {len(images):,}, got {wanted}; or health_every 0"
        )
    numbers = _spread_out(len(images), wanted)
    runs = images.runs()
    if runs is not None:  # a look should not cost a pass over all shards
        begins, few = np.cumsum(runs) - runs, _spread_out(len(runs), min(len(runs), FEW_SHARDS))
        pool = np.concatenate([begins[s] + np.arange(runs[s]) for s in few])
        if len(pool) >= 2 * wanted:
            numbers = pool[_spread_out(len(pool), wanted)]
    return Part(images, numbers, others=True), Part(images, numbers)


def _spread_out(count: int, wanted: int) -> np.ndarray:
    """So many of range(count), evenly spaced."""
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)


def plain_views(images: Images, contract: Preprocessing, threads: int = 2) -> Tensor:
    """Resized and cropped, nothing else: uint8 (N, 3, S, S) of the readable ones."""
    read = (contract(p) for p in prefetch(images.read, range(len(images)), threads) if p is not None)
    return torch.stack(list(read))


# ------------------------------------------------------------------------------------------------- in a run


@dataclass
class Course:
    """What is remembered from look to look; saved with the run's state."""

    best: float = -math.inf  # neighbour overlap
    best_step: int = 0
    since: int = 0  # looks without a better one
    ill: int = 0  # looks in a row at a collapsed student


@dataclass(frozen=True)
class Look:
    """What one look found."""

    figures: dict[str, float]
    better: bool  # the best neighbour overlap so far
    alarm: str  # empty, or why the student counts as collapsed


class Watch:
    """Looks at the student on held-out images. One teacher pass over them, at the first look.

    every: steps between looks; the last step has one too. patience: looks without a better neighbour overlap after
    which `enough` says that the run may end; 0: never.
    """

    def __init__(
        self, images: Images, contract: Preprocessing, every: int, total: int, patience: int = 0, threads: int = 2
    ):
        self.images, self.contract, self.threads = images, contract, threads
        self.every, self.total, self.patience = max(every, 1), total, patience
        self.course = Course()
        self._pixels: Tensor | None = None
        self._teacher: Tensor | None = None

    def due(self, step: int) -> bool:
        """Whether to look after this many steps."""
        return step % self.every == 0 or step == self.total

    @property
    def enough(self) -> bool:
        """Whether patience has run out."""
        return 0 < self.patience <= self.course.since

    def look(
        self, step: int, student: Encoder, teacher: Callable[[Tensor], Tensor], objective: nn.Module | None = None
    ) -> Look:
        """Measure the student after `step` steps. teacher: pixels (B, 3, S, S) in [0, 1] to rows (B, Dt).

        An objective with an alignment on embeddings has its head tried too. Raises Collapsed at the third look in a
        row at a collapsed student.
        """
        ours, theirs = self._rows(student, teacher)
        found = figures(ours, theirs) | {"teacher_effective_rank": effective_rank(theirs)}
        if objective is not None and (cosine := head_cosine(objective, ours, theirs)) is not None:
            found["alignment"] = cosine
        why = collapsed(ours, theirs)
        found["collapsed"] = float(bool(why))
        better = not why and found["neighbour_overlap"] > self.course.best
        self._remember(step, found["neighbour_overlap"], better, bool(why))
        if self.course.ill >= ILL:
            raise Collapsed(
                f"the student has collapsed ({why}) at {ILL} looks in a row, the last at step {step}; lower lr, or "
                f"change the objective, in a new run folder"
            )
        return Look({f"health/{name}": value for name, value in found.items()}, better, why)

    def _remember(self, step: int, overlap: float, better: bool, ill: bool) -> None:
        course = self.course
        course.since = 0 if better else course.since + 1
        course.ill = course.ill + 1 if ill else 0
        if better:
            course.best, course.best_step = overlap, step

    def _rows(self, student: Encoder, teacher: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Embeddings of the held-out images, float32 on the CPU."""
        if self._pixels is None:
            self._pixels = plain_views(self.images, self.contract, self.threads)
        if self._teacher is None:
            self._teacher = _embed(self._pixels, teacher, student.mean.device)
        with at_rest(student):
            return _embed(self._pixels, lambda x: student(x).embedding, student.mean.device), self._teacher

    def state(self) -> dict[str, Any]:
        """For the run's saved state."""
        return dict(vars(self.course))

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.course = Course(**state)


@torch.no_grad()
def _embed(pixels: Tensor, network: Callable[[Tensor], Tensor], device: torch.device) -> Tensor:
    parts = (
        part.to(device).float().div_(255).contiguous(memory_format=torch.channels_last) for part in pixels.split(BATCH)
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


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Eval mode inside, every part's own mode again afterwards."""
    modes = [(part, part.training) for part in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
