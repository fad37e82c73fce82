"""Relations: who is compared with whom. Each gives the student's and the teacher's similarity table, row by row.

Tables are float32, (R, C), cosines unless said otherwise. Rows of N = V x B samples are view-major: row v * B + i is view
v of image i. A column that must not take part in a row holds -inf in both tables.

Here: relations within the batch. Memories are in `queues`, patches and layers in `dense`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.term import batch_of
from ssl_kd.types import Features, Index, ViewBatch

Tables = tuple[Tensor, Tensor]  # student's (R, C), teacher's (R, C)


class Relation(nn.Module):
    """What every relation says of itself, and how it reads `Features`. Options are the arguments of its constructor."""

    min_views: int = 1
    needs_teacher_width: bool = False  # the projected student must have the teacher's width
    of: str = "embedding"  # what the projector sees: "embedding", "tokens" or nothing ("layers")
    divisible: bool = False  # each image has rows of its own, which the rest of the batch does not touch
    student_layers: tuple[str, ...] = ()  # taps this relation reads
    teacher_layers: tuple[str, ...] = ()
    student_momentum: float = 0.0  # above 0: reads what a moving average of the student says, from layers["ema"]

    def fit(self, student: Widths, teacher: Widths) -> None:
        """Learn the widths, which are those after the projector; memories are laid out here."""

    def forward(self, s: Tensor, t: Tensor, batch: ViewBatch | None = None, *, index: Index | None = None) -> Tables:
        """Rows (N, Ds) and (N, Dt) -> the student's and the teacher's table (see `tables` of each relation).

        batch: the views that the rows show; without it each row is another image, named by `index` (N,) if given.
        """
        return self.tables(s, t, batch_of(len(s), batch, index, self.min_views, type(self).__name__))

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """The two tables."""
        raise NotImplementedError

    def read(self, student: Features, teacher: Features) -> tuple[Tensor, Tensor]:
        """What a relation of layers compares in place of projected embeddings."""
        raise NotImplementedError


def unit(z: Tensor) -> Tensor:
    """Rows (last axis) of length 1."""
    return F.normalize(z, dim=-1)


def without_diagonal(table: Tensor) -> Tensor:
    """A square table with -inf on its diagonal."""
    return table.masked_fill(torch.eye(len(table), dtype=torch.bool, device=table.device), -torch.inf)


class ViewsTable(Relation):
    """Augmented views (rows, (V-1) B) against the plain views (columns, B) of the batch, each network with itself.

    The own image's column takes part. Source: DLKD's published code (view 0 is the plain one).
    """

    min_views = 2

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two ((V-1) B, B) tables."""
        b = len(batch)
        s, t = unit(s), unit(t)
        return s[b:] @ s[:b].T, t[b:] @ t[:b].T


class BatchTable(Relation):
    """Every sample of the batch against every other, each network with itself; the diagonal is left out."""

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two (N, N) tables with -inf on the diagonal."""
        s, t = unit(s), unit(t)
        return without_diagonal(s @ s.T), without_diagonal(t @ t.T)


class GramTable(Relation):
    """Cosines of all samples of the batch, each with itself as well (PKT)."""

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two (N, N) tables with a diagonal of ones."""
        s, t = unit(s), unit(t)
        return s @ s.T, t @ t.T


class ProductsTable(Relation):
    """Inner products of all samples, lengths included (SP): compare them by `row_unit_l2`, which removes the scale."""

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two (N, N) tables."""
        return s @ s.T, t @ t.T


class DistancesTable(Relation):
    """Euclidean distances of all pairs, divided by the mean of the positive ones, each network by its own.

    Source: relational knowledge distillation (RKD), read in RepDistiller's code.
    """

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two (N, N) tables with a diagonal of zeros."""
        return self._relative(s), self._relative(t)

    @staticmethod
    def _relative(z: Tensor) -> Tensor:
        distances = pairwise(z)
        pairs = len(z) * (len(z) - 1)
        return distances / (distances.sum() / pairs).clamp_min(1e-12)


def pairwise(z: Tensor) -> Tensor:
    """Euclidean distances (N, N) with a diagonal of exact zeros and a finite gradient there."""
    table = _squares(z.double()).clamp_min(1e-12)
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    return table.masked_fill(own, 1).sqrt().masked_fill(own, 0).to(z.dtype)


def _squares(z: Tensor) -> Tensor:
    """Squared distances (N, N), 0 to rounding for equal rows: in float32 the lengths of the rows would drown them."""
    z = z - z.mean(0)
    squares = z.square().sum(1)
    return squares[:, None] + squares[None] - 2 * z @ z.T


class AnglesTable(Relation):
    """Cosine of the angle at sample i between samples j and k, for all triplets of the first `rows` samples.

    Source: RKD, read in RepDistiller's code. Differs: the cube grows as N^3, so only the first `rows` of the (shuffled)
    batch enter; and it is made from inner products instead of N x N difference vectors.
    """

    def __init__(self, rows: int = 128):
        super().__init__()
        self.rows = rows

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two (n^2, n) tables, n = min(N, rows): row i n + j, column k."""
        return self._angles(s[: self.rows]), self._angles(t[: self.rows])

    @staticmethod
    def _angles(z: Tensor) -> Tensor:
        z = z.double()  # the cosines of close samples are differences of large numbers
        z = z - z.mean(0)
        gram, squares = z @ z.T, _squares(z)
        equal = squares <= 1e-12 * squares.detach().max()  # no direction leads from a sample to its copy
        lengths = squares.masked_fill(equal, 1).sqrt()
        # <j - i, k - i> = <j, k> - <i, j> - <i, k> + <i, i>
        products = gram[None] - gram[:, :, None] - gram[:, None, :] + gram.diagonal()[:, None, None]
        cosines = products / (lengths[:, :, None] * lengths[:, None, :])
        return cosines.masked_fill(equal[:, :, None] | equal[:, None, :], 0).flatten(0, 1).float()


class PearsonTable(Relation):
    """Pearson correlations between samples over their dimensions, each network with itself: EGA's edges."""

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two (N, N) tables."""
        s, t = (unit(z - z.mean(1, keepdim=True)) for z in (s, t))
        return s @ s.T, t @ t.T


class AcrossTable(Relation):
    """Pearson correlations of each teacher sample with each student sample, against the identity: EGA's nodes.

    Not zero at a match: it asks other samples to be uncorrelated, as published.
    """

    needs_teacher_width = True

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Dt), (N, Dt) -> the (N, N) table of correlations and the identity."""
        s, t = (unit(z - z.mean(1, keepdim=True)) for z in (s, t))
        return t @ s.T, torch.eye(len(t), device=t.device)


class CrossTable(Relation):
    """Each student sample against all teacher samples of the batch, beside each teacher sample against them.

    Own image included. Relations inside each space leave the student's space free to turn; these tie it to the
    teacher's, as a query encoder for an index of teacher embeddings needs it. Source: the batch-wise form of CSD and
    D3still (SCY-X/D3still).
    """

    needs_teacher_width = True

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Dt), (N, Dt) -> two (N, N) tables."""
        s, t = unit(s), unit(t)
        return s @ t.T, t @ t.T


class KernelTable(Relation):
    """A Gaussian kernel of the unit vectors, by its Taylor series up to `order`: correlation congruence.

    exp(-2 gamma) sum_p (2 gamma)^p / p! cos^p, gamma 0.4 and order 2 as in public re-implementations (the authors' own
    code was not available to us).
    """

    def __init__(self, gamma: float = 0.4, order: int = 2):
        super().__init__()
        self.gamma, self.order = gamma, order

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds), (N, Dt) -> two (N, N) tables."""
        return self._kernel(s), self._kernel(t)

    def _kernel(self, z: Tensor) -> Tensor:
        z = unit(z)
        cosines, twice = z @ z.T, 2 * self.gamma
        series = sum(twice**p / math.factorial(p) * cosines**p for p in range(self.order + 1))
        return math.exp(-twice) * torch.as_tensor(series)


class DimensionsTable(Relation):
    """Correlations between dimensions over the batch, after the projector: CLKD's class correlation, with dimensions.

    Differs: Pearson correlations instead of covariances, so that scales play no part. Our form.
    """

    needs_teacher_width = True

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Dt), (N, Dt) -> two (Dt, Dt) tables."""
        s, t = (F.normalize(z - z.mean(0), dim=0) for z in (s, t))
        return s.T @ s, t.T @ t


def keys_of(student: Features, needed: bool) -> Tensor | None:
    """What the moving average of the student says of this batch; UserError where it is needed and not given."""
    if not needed:
        return None
    if "ema" not in student.layers:
        raise UserError(
            "objective: this queue keeps what a moving average of the student says, and this run keeps no such average; "
            "say momentum: 0 for a queue of the student's own embeddings"
        )
    return student.layers["ema"].detach()
