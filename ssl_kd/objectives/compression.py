"""Compression: the teacher's space is squeezed into the student's width, and the student stands where that puts each image.

The other way round than a projector on the student: no head is between what is trained and what is used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.objectives.inputs import Widths, to_grid, tokens
from ssl_kd.objectives.projectors import over_rows, projector
from ssl_kd.objectives.relations import unit
from ssl_kd.objectives.term import Term
from ssl_kd.types import Features, ViewBatch

TEMPERATURES = tuple(k / 100 for k in range(1, 11))


class Compressed(Term):
    """1 - cos(s, sg h(t)), and the head h on the teacher learns to keep the cosines between images.

    h is trained by the mean over ten temperatures (0.01 to 0.10) of KL(P || Q): P from the teacher's cosines, Q from those
    of h(t), each a softmax over rows plus its transpose, divided by the sum. With `of_tokens` the same between the patches of
    each image, by the same h, and 1 - cos of each image's map as one vector. The student has no head.
    Source: CosPress (TMLR 2025, arXiv 2411.15239), read in its authors' code. Differs: patches without the class token,
    which has a term of its own; a student's grid is brought onto the teacher's.
    """

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        compressor: str | nn.Module = "layernorm",
        of_tokens: bool = False,
    ):
        super().__init__()
        self.student, self.teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        self.compressor = _head(compressor, self.teacher.embedding, self.student.embedding)
        self.needs_tokens = of_tokens
        one_for_both = (self.teacher.token, self.student.token) == (self.teacher.embedding, self.student.embedding)
        self.token_compressor: nn.Module | None = None
        if of_tokens and not one_for_both:
            self.token_compressor = _head(compressor, self.teacher.token, self.student.token)

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 where cosines are kept and the student is at the compressed teacher."""
        total = self._one(student.embedding, teacher.embedding.detach(), self.compressor)
        if self.needs_tokens:
            t = tokens(teacher, "teacher", self.teacher.token).detach()
            s = to_grid(tokens(student, "student", self.student.token), t.shape[1])
            total = total + self._one(s, t, self.token_compressor or self.compressor)
        return total

    @staticmethod
    def _one(s: Tensor, t: Tensor, head: nn.Module) -> Tensor:
        """Of (N, D) between images, of (N, L, D) between the patches of each."""
        squeezed = over_rows(head, t)
        with torch.autocast(s.device.type, enabled=False):
            s, t, squeezed = s.float(), t.float(), squeezed.float()
            near = F.cosine_similarity(s.flatten(1), squeezed.detach().flatten(1), dim=1, eps=1e-6).mean()
            return 1 - near + neighbour_embedding(_cosines(squeezed), _cosines(t))


def _head(given: str | nn.Module, teacher_dim: int, student_dim: int) -> nn.Module:
    return projector(given, teacher_dim, student_dim) if isinstance(given, str) else given


def _cosines(z: Tensor) -> Tensor:
    """(M, L, L) cosines of the L rows of each of M tables, -inf on the diagonals; (N, D) is one table of N rows."""
    z = unit(z if z.ndim == 3 else z[None])
    own = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    return (z @ z.mT).masked_fill(own, -torch.inf)


def neighbour_embedding(ours: Tensor, theirs: Tensor) -> Tensor:
    """Mean over tables and temperatures of KL(P || Q) between symmetrised softmaxes of cosines (M, L, L)."""
    if ours.shape[1] < 2:
        return ours.new_zeros(())  # a single row has no neighbour
    values = []
    for tau in TEMPERATURES:
        log_q, log_p = (_symmetric(z / tau) for z in (ours, theirs))
        gap = (log_p - log_q).masked_fill(torch.isneginf(log_p), 0)
        values.append((log_p.exp() * gap).sum((1, 2)).mean())
    return torch.stack(values).mean()


def _symmetric(z: Tensor) -> Tensor:
    """log of (softmax over rows + its transpose) / its sum, which is twice the number of rows."""
    log = F.log_softmax(z, dim=2)
    own = torch.isneginf(log)
    pairs = torch.logaddexp(log.masked_fill(own, 0), log.mT.masked_fill(own, 0)) - math.log(2 * z.shape[1])
    return pairs.masked_fill(own, -torch.inf)
