"""Terms with a shape of their own: a residual learned by a second head, uncertainty over views, hard pairs."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.objectives.alignment import ACROSS_SAMPLES, distance_by, head_to_teacher, target_norm
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.term import Term
from ssl_kd.types import Features, ViewBatch


class Residual(Term):
    """One head looks for the teacher, an assistant for what the first one misses: d(g1(s), t) + d(g2(s), t - sg g1(s)).

    Source: Residual KD (its abstract). Differs: two heads on one embedding instead of two networks, so the student
    alone is deployed. Our reconstruction.
    """

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "simreg",
        space: str | nn.Module = "standardised",
        distance: str | Callable[[Tensor, Tensor], Tensor] = "mse",
    ):
        super().__init__()
        ds, dt = Widths.given(student_dim).embedding, Widths.given(teacher_dim).embedding
        self.projector = head_to_teacher(projector, ds, dt)
        self.assistant = copy_of(projector, ds, dt)
        self.space = target_norm(space, dt)
        self.distance = distance_by(distance)
        self.divisible = distance not in ACROSS_SAMPLES

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 where the first head is at the teacher and the second at 0."""
        first, second = self.projector(student.embedding), self.assistant(student.embedding)
        with torch.autocast(first.device.type, enabled=False):
            t = self.space(teacher.embedding.detach().float())
            first, second = first.float(), second.float()
            return self.distance(first, t) + self.distance(second, t - first.detach())


def copy_of(projector: str | nn.Module, student_dim: int, teacher_dim: int) -> nn.Module:
    """A second head of the same kind, with weights of its own."""
    if isinstance(projector, str):
        return head_to_teacher(projector, student_dim, teacher_dim)
    return copy.deepcopy(projector)


class Uncertainty(Term):
    """Alignment with the teacher's mean over the views of an image, softer where the teacher itself wavers.

    mean (g(s) - mu)^2 / (v + eps), mu and v the mean and variance of the teacher over the image's views, dimension by
    dimension, in the standardised space. Source of the idea: UET (its abstract), where dropout makes the samples;
    self-supervised teachers have none, so views do. Our form.
    """

    min_views = 2
    divisible = True

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "simreg",
        space: str | nn.Module = "standardised",
        eps: float = 0.1,
    ):
        super().__init__()
        ds, dt = Widths.given(student_dim).embedding, Widths.given(teacher_dim).embedding
        self.projector = head_to_teacher(projector, ds, dt)
        self.space = target_norm(space, dt)
        self.eps = eps

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 where all views of an image are at the teacher's mean."""
        s = self.projector(student.embedding)
        with torch.autocast(s.device.type, enabled=False):
            t = self.space(teacher.embedding.detach().float()).unflatten(0, (-1, len(batch)))
            gap = s.float().unflatten(0, (-1, len(batch))) - t.mean(0)
            soft: Tensor = gap.square() / (t.var(0, unbiased=False) + self.eps)
            return soft.mean()


class HardPairs(Term):
    """Hard-aware metric distillation: for each teacher sample, its hardest far and its hardest near student sample.

    A student sample j is far from anchor i when the teachers of i and j are farther apart than teacher and student of
    i. The closest far one and the farthest near one are told apart by a cross-entropy over their distances, weighted by
    how much each distance disagrees with the teacher's (no gradient through the weights). View by view, then averaged.
    The gradient vanishes at a match; the value there is log 2, and is not the smallest possible.

    Source: SMD (ECCV 2022), read in liuhao-lh/SMD: linear head, tau 0.04. Differs: a sample always counts as near to
    itself, and an anchor without far samples has weight 0 there.
    """

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "linear",
        tau: float = 0.04,
    ):
        super().__init__()
        ds, dt = Widths.given(student_dim).embedding, Widths.given(teacher_dim).embedding
        self.projector = head_to_teacher(projector, ds, dt)
        self.tau = tau

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32."""
        s = self.projector(student.embedding)
        with torch.autocast(s.device.type, enabled=False):
            count = len(batch)
            pairs = zip(s.float().reshape(-1, count, s.shape[1]), _by_view(teacher.embedding, count), strict=True)
            return torch.stack([self._one_view(a, b) for a, b in pairs]).mean()

    def _one_view(self, s: Tensor, t: Tensor) -> Tensor:
        s, t = F.normalize(s, dim=1), F.normalize(t, dim=1)
        among, across = _distances(t, t), _distances(t, s)
        own = torch.eye(len(t), dtype=torch.bool, device=t.device)
        far = (among > across.diagonal()[:, None]) & ~own
        closest = across.masked_fill(~far, torch.inf).min(1)
        farthest = across.masked_fill(far, -torch.inf).max(1)
        anyone = far.any(1)
        near_miss = torch.where(anyone, closest.values, 0)
        with torch.no_grad():
            far_weight = (among.gather(1, closest.indices[:, None])[:, 0] - near_miss).clamp_min(0) * anyone
            near_weight = (farthest.values - among.gather(1, farthest.indices[:, None])[:, 0]).clamp_min(0)
        logits = torch.stack([far_weight * near_miss, near_weight * farthest.values], dim=1) / self.tau
        return -F.log_softmax(logits, dim=1)[:, 0].mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M) of unit rows, never quite 0 so that the root has a gradient."""
    return (2 - 2 * a @ b.T).clamp_min(1e-12).sqrt()


def _by_view(z: Tensor, count: int) -> Tensor:
    """View-major rows (V x B, D) -> (V, B, D), float32, without a gradient."""
    return z.detach().float().reshape(-1, count, z.shape[1])
