"""Distances of information theory: how likely the teacher is given the student, how much one says of the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.objectives.alignment import Alignment, head_to_teacher
from ssl_kd.objectives.inputs import Widths, onto_coarser
from ssl_kd.objectives.relations import unit
from ssl_kd.objectives.term import Term
from ssl_kd.types import Features, ViewBatch


class Variational(Alignment):
    """((g(s) - t)^2 / v + log v) / 2, mean over samples and dimensions: a Gaussian around g(s), its variances v trained.

    v = log(1 + exp(a)) + 1e-5, one for each of the teacher's dimensions, 5 at the beginning: a dimension that the student
    cannot follow comes to count less. With `of: tokens` of cells, on the coarser of both grids. For given v lowest at a
    match, where it is the mean of log v / 2.
    Source: variational information distillation (VID, CVPR 2019), the authors' code as HobbitLong/RepDistiller keeps it.
    """

    first_variance, least_variance = 5.0, 1e-5

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "vid",
        space: str | nn.Module = "raw",
        of: str = "embedding",
        student_layers: Sequence[str] = (),
        teacher_layers: Sequence[str] = (),
    ):
        super().__init__(student_dim, teacher_dim, projector, space, "mse", of, student_layers, teacher_layers)
        first = math.log(math.expm1(self.first_variance - self.least_variance))
        self.log_scale = nn.Parameter(torch.full((self.widths[1],), first))
        self.distance = self.unlikelihood

    def unlikelihood(self, s: Tensor, t: Tensor) -> Tensor:
        """(N, Dt), (N, Dt) -> scalar, less the constant of a Gaussian."""
        variance = F.softplus(self.log_scale.float()) + self.least_variance
        return ((s - t).square() / variance + variance.log()).mean() / 2

    def on_one_grid(self, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """The larger map is pooled to the smaller, as published."""
        return onto_coarser(s, t)


class _OfEmbeddings(Term):
    """The projected student beside the teacher, float32."""

    def __init__(self, student_dim: int | Widths, teacher_dim: int | Widths, projector: str | nn.Module = "linear"):
        super().__init__()
        ds, dt = Widths.given(student_dim).embedding, Widths.given(teacher_dim).embedding
        self.projector = head_to_teacher(projector, ds, dt)

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32."""
        s = self.projector(student.embedding)
        with torch.autocast(s.device.type, enabled=False):
            return self.gap(s.float(), teacher.embedding.detach().float())

    def gap(self, s: Tensor, t: Tensor) -> Tensor:
        """(N, Dt), (N, Dt) -> scalar."""
        raise NotImplementedError


class RenyiCorrelation(_OfEmbeddings):
    """log2 sum_d (1 - c_d)^(2 alpha), c_d the correlation over the batch of dimension d of the student with the teacher's.

    c_d is (N - 1) / N at most, as published (a standard deviation over N - 1, a mean over N), so that the value at a match is
    log2(Dt N^(-2 alpha)), the smallest possible. A dimension that rests in one of both has c_d = 0.
    Source: the correlation loss of ITRD (BMVC 2022), read in roymiles/ITRD.
    """

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "linear",
        alpha: float = 1.5,
    ):
        super().__init__(student_dim, teacher_dim, projector)
        self.alpha = alpha

    def gap(self, s: Tensor, t: Tensor) -> Tensor:
        """(N, Dt), (N, Dt) -> scalar."""
        s, t = (F.normalize(z - z.mean(0), dim=0) for z in (s, t))
        missing = 1 - (s * t).sum(0) * (len(s) - 1) / len(s)
        return missing.pow(2 * self.alpha).sum().log2()


class RenyiMutual(_OfEmbeddings):
    """sum (S / tr S)^2 - sum (S T / tr(S T))^2 over pairs of samples, S and T cosines of student and teacher, S T by entry.

    After Renyi's mutual information of order 2 (entropies are -log2 of such sums), without the logarithms, as published. Not
    lowest at a match: it also spreads out samples whose cosine is below 1 for the teacher.
    Source: the mutual information loss of ITRD (BMVC 2022), read in roymiles/ITRD. Differs: one head also where widths are
    equal.
    """

    def gap(self, s: Tensor, t: Tensor) -> Tensor:
        """(N, Dt), (N, Dt) -> scalar."""
        s, t = unit(s), unit(t)
        ours, theirs = s @ s.T, t @ t.T  # ones on the diagonal: both traces are N
        return ours.square().mean() - (ours * theirs).square().mean()
