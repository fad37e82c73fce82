"""Divergences: how far the student's similarity table is from the teacher's. A normaliser and its divergence.

Tables are (R, C), float32. A column that takes no part in a row holds -inf in both tables; the gradient there is zero.
All are zero when the tables are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_kd.errors import UserError
from ssl_kd.objectives.decoupled import class_level, decoupled_kl, softened_kl
from ssl_kd.objectives.teacher_heads import assignment_kl
from ssl_kd.objectives.top_columns import decoupled_differences, top_k_kl
from ssl_kd.registry import Registry


def _log_softmaxes(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> tuple[Tensor, Tensor]:
    return F.log_softmax(student / tau_student, dim=1), F.log_softmax(teacher / tau_teacher, dim=1)


def _kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Mean over rows of KL(p || q); what is impossible for p takes no part."""
    gap = (log_p - log_q).masked_fill(torch.isneginf(log_p), 0)
    total: Tensor = (log_p.exp() * gap).sum()
    return total / len(log_p)


def row_softmax_kl(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """Mean over rows of KL(softmax(teacher / tau) || softmax(student / tau)). No tau^2."""
    return _kl(*_log_softmaxes(student, teacher, tau_student, tau_teacher))


def row_pearson(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - Pearson correlation of each row with the teacher's, mean over rows, in [0, 2]."""
    taking_part = ~torch.isneginf(teacher)
    count = taking_part.sum(1, keepdim=True)

    def centred(z: Tensor) -> Tensor:
        z = torch.where(taking_part, z, 0)
        return torch.where(taking_part, z - z.sum(1, keepdim=True) / count, 0)

    return 1 - F.cosine_similarity(centred(student), centred(teacher), dim=1).mean()


def table_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the entries."""
    taking_part = ~torch.isneginf(teacher)
    return torch.where(taking_part, student - teacher, 0).square().sum() / taking_part.sum()


def table_huber(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean Huber distance of the entries, corner at 1 (RKD)."""
    taking_part = ~torch.isneginf(teacher)
    s, t = torch.where(taking_part, student, 0), torch.where(taking_part, teacher, 0)
    return F.smooth_l1_loss(s, t, reduction="sum") / taking_part.sum()


def frobenius(student: Tensor, teacher: Tensor) -> Tensor:
    """Square root of the sum of squared differences (EGA): grows with the batch."""
    norm: Tensor = torch.linalg.vector_norm(torch.where(torch.isneginf(teacher), 0, student - teacher))
    return norm


def row_unit_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the entries after each row was made a unit vector.

    With relation "products" this is similarity-preserving distillation, as in RepDistiller's code (sum over N^2).
    """
    taking_part = ~torch.isneginf(teacher)
    s, t = (F.normalize(torch.where(taking_part, z, 0), dim=1) for z in (student, teacher))
    return F.mse_loss(s, t)


def pkt(student: Tensor, teacher: Tensor, eps: float = 1e-7) -> Tensor:
    """Cosines moved to [0, 1], rows divided by their sums, then the mean over all entries of p log(p / q).

    Source: probabilistic knowledge transfer, read in RepDistiller's code (mean over N^2 entries: small numbers).
    """

    def shares(table: Tensor) -> Tensor:
        raised = torch.where(torch.isneginf(table), 0, (table + 1) / 2)
        return raised / raised.sum(1, keepdim=True)

    q, p = shares(student), shares(teacher)
    return (p * torch.log((p + eps) / (q + eps))).mean()


def rows_and_columns(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """1 - Pearson of the row softmaxes, row by row, plus the same column by column, weights 1 and 1 (DIST).

    Source: DIST, read in hunto/DIST_KD, with a table of similarities for its class logits.
    """
    q, p = (z.exp() for z in _log_softmaxes(student, teacher, tau_student, tau_teacher))
    return 2 - _damped_pearson(q, p) - _damped_pearson(q.T, p.T)


def _damped_pearson(x: Tensor, y: Tensor) -> Tensor:
    """Mean over rows of <x, y> / (|x| |y| + 1e-8), x and y centred, as published.

    Over thousands of columns the constant is no detail: columns without mass, whose lengths are near it, count little.
    """
    x, y = (z.double() - z.double().mean(1, keepdim=True) for z in (x, y))
    lengths = torch.linalg.vector_norm(x, dim=1) * torch.linalg.vector_norm(y, dim=1)
    rho: Tensor = (x * y).sum(1) / (lengths + 1e-8)
    return rho.mean().float()


def soft_rank(table: Tensor, tau: float) -> Tensor:
    """How many entries of its row each entry exceeds, softly: sum over others of sigmoid(gap / tau). (R, C), cost R C^2."""
    return torch.sigmoid((table[:, :, None] - table[:, None, :]) / tau).sum(2)


def rank(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """1 - Pearson correlation of soft ranks, mean over rows: Spearman's in the limit of small temperatures.

    The rank-based half of R2KD's correlation distance (its abstract; the soft rank is ours).
    """
    rows, columns = teacher.shape
    taking_part = ~torch.isneginf(teacher)
    kept = taking_part.sum(1)
    if int(kept.min()) < columns:  # rows of equal length without the columns that take no part
        if int(kept.min()) != int(kept.max()):
            raise UserError("comparison rank: it needs as many columns in each row; take relation batch, gram or views")
        student, teacher = (z[taking_part].view(rows, -1) for z in (student, teacher))
    return row_pearson(soft_rank(student, tau_student), soft_rank(teacher, tau_teacher))


def nearest_neighbours(
    student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float, neighbours: int = 20
) -> Tensor:
    """KL over the teacher's k nearest columns, each by itself, and all others as one outcome.

    Our stand-in for soft targets from k-NN densities (OSAKD's need classes): the k neighbours share the attention, and
    that the rest is far away is kept as one number.
    """
    k = min(neighbours, student.shape[1])
    log_q, log_p = _log_softmaxes(student, teacher, tau_student, tau_teacher)
    columns = log_p.topk(k, dim=1).indices

    def lumped(log: Tensor) -> Tensor:
        rest = log.scatter(1, columns, -torch.inf)
        near = log.gather(1, columns)
        if k == log.shape[1]:
            return near
        nobody = torch.isneginf(rest).all(1, keepdim=True)
        total = torch.where(nobody, 0, rest.masked_fill(nobody, 0)).logsumexp(1, keepdim=True)
        return torch.cat([near, total.masked_fill(nobody, -torch.inf)], dim=1)

    return _kl(lumped(log_q), lumped(log_p))


def target_ratio(
    student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float, strength: float = 1.0
) -> Tensor:
    """The teacher's nearest column plays the target: non-target KL + strength x (log p_target - log q_target)^2 / 2.

    The two parts of decoupled distillation (DKD, read in mdistiller): how the others relate, renormalised, and how sure
    one is of the target. The gradient of the second on the target's logit is -log(p / q) (1 - q): its strength follows
    the teacher/student ratio. Our proposal for images without labels, after the idea in AEKT's abstract; not AEKT.
    """
    log_q, log_p = _log_softmaxes(student, teacher, tau_student, tau_teacher)
    top = log_p.argmax(1, keepdim=True)
    sure = (log_p.gather(1, top) - log_q.gather(1, top)).square().mean() / 2
    others_q, others_p = (
        (z / tau).scatter(1, top, -torch.inf) for z, tau in ((student, tau_student), (teacher, tau_teacher))
    )
    if bool(torch.isneginf(others_p).all(1).any()):  # nobody but the target
        return strength * sure
    return _kl(F.log_softmax(others_q, dim=1), F.log_softmax(others_p, dim=1)) + strength * sure


class Divergence:
    """How far the student's table is from the teacher's, with its constants: (R, C), (R, C) -> scalar, 0 where they are equal.

    whole_table: whether the value over a batch is something else than the mean over its rows or entries.
    """

    whole_table: ClassVar[bool] = False

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        raise NotImplementedError


@dataclass(frozen=True)
class _BySoftmax(Divergence):
    """Rows are softmaxes at a temperature: `tau_student`, and `tau_teacher` where the teacher's is another one."""

    tau_student: float = 0.07
    tau_teacher: float | None = None

    @property
    def taus(self) -> tuple[float, float]:
        """Both temperatures."""
        return self.tau_student, self.tau_student if self.tau_teacher is None else self.tau_teacher


@dataclass(frozen=True)
class SoftmaxKL(_BySoftmax):
    """See `row_softmax_kl`."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return row_softmax_kl(student, teacher, *self.taus)


@dataclass(frozen=True)
class RowsAndColumns(_BySoftmax):
    """See `rows_and_columns`."""

    whole_table = True

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return rows_and_columns(student, teacher, *self.taus)


@dataclass(frozen=True)
class SoftRank(_BySoftmax):
    """See `rank`."""

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return rank(student, teacher, *self.taus)


@dataclass(frozen=True)
class NearestNeighbours(_BySoftmax):
    """See `nearest_neighbours`."""

    neighbours: int = 20

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return nearest_neighbours(student, teacher, *self.taus, self.neighbours)


@dataclass(frozen=True)
class TargetRatio(_BySoftmax):
    """See `target_ratio`."""

    strength: float = 1.0

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return target_ratio(student, teacher, *self.taus, self.strength)


@dataclass(frozen=True)
class TopK(_BySoftmax):
    """See `top_k_kl`."""

    neighbours: int = 20

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return top_k_kl(student, teacher, *self.taus, self.neighbours)


@dataclass(frozen=True)
class Assignment(_BySoftmax):
    """See `assignment_kl`."""

    whole_table = True

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return assignment_kl(student, teacher, *self.taus)


@dataclass(frozen=True)
class Differences(Divergence):
    """See `decoupled_differences`."""

    whole_table = True

    neighbours: int = 10
    own: float = 100.0
    wrong: float = 5.0
    right: float = 1.0

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return decoupled_differences(student, teacher, self.neighbours, self.own, self.wrong, self.right)


@dataclass(frozen=True)
class Softened(Divergence):
    """See `softened_kl`."""

    tau: float = 0.025
    temperature: float = 4.0

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return softened_kl(student, teacher, self.tau, self.temperature)


@dataclass(frozen=True)
class Decoupled(Divergence):
    """See `decoupled_kl`."""

    tau: float = 0.025
    temperature: float = 4.0
    target: float = 1.0
    others: float = 8.0

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return decoupled_kl(student, teacher, self.tau, self.temperature, self.target, self.others)


@dataclass(frozen=True)
class ClassLevel(Divergence):
    """See `class_level`."""

    whole_table = True

    tau: float = 0.1

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return class_level(student, teacher, self.tau)


@dataclass(frozen=True)
class Plain(Divergence):
    """A divergence without constants, from any function of two tables."""

    compare: Callable[[Tensor, Tensor], Tensor]

    @property
    def whole_table(self) -> bool:  # type: ignore[override]
        """Two of them look at the table as a whole."""
        return self.compare in (frobenius, pkt)

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The divergence of two tables."""
        return self.compare(student, teacher)


# By name: what makes the divergence from its options.
DIVERGENCES: Registry[Callable[..., Divergence]] = Registry(
    "divergences",
    {
        "softmax_kl": SoftmaxKL,
        "pearson": partial(Plain, row_pearson),
        "l2": partial(Plain, table_l2),
        "huber": partial(Plain, table_huber),
        "frobenius": partial(Plain, frobenius),
        "row_unit_l2": partial(Plain, row_unit_l2),
        "pkt": partial(Plain, pkt),
        "rows_and_columns": RowsAndColumns,
        "rank": SoftRank,
        "nearest": NearestNeighbours,
        "target_ratio": TargetRatio,
        "kd": Softened,
        "dkd": Decoupled,
        "class_level": ClassLevel,
        "sinkhorn": Assignment,
        "top_k": TopK,
        "differences": Differences,
    },
    group="ssl_kd.divergences",
)
