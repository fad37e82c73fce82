"""Correlation: samples relate to each other as they do for the teacher. Relation x normaliser x divergence."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.encoder import Features
from ssl_kd.errors import UserError, nearest
from ssl_kd.objectives.projectors import projector
from ssl_kd.objectives.relations import RELATIONS
from ssl_kd.views import Views


def row_softmax_kl(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """Mean over rows of KL(softmax(teacher / tau) || softmax(student / tau)); -inf columns take no part. No tau^2."""
    log_q = F.log_softmax(student / tau_student, dim=1)
    log_p = F.log_softmax(teacher / tau_teacher, dim=1)
    taking_part = ~torch.isneginf(log_p)
    gap = torch.where(taking_part, log_p, 0) - torch.where(taking_part, log_q, 0)
    return (log_p.exp() * gap).sum() / len(log_p)


def row_pearson(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """1 - Pearson correlation of each row with the teacher's, mean over rows, in [0, 2]; temperatures play no part."""
    taking_part = ~torch.isneginf(teacher)
    count = taking_part.sum(1, keepdim=True)

    def centred(z: Tensor) -> Tensor:
        z = torch.where(taking_part, z, 0)
        return torch.where(taking_part, z - z.sum(1, keepdim=True) / count, 0)

    return 1 - F.cosine_similarity(centred(student), centred(teacher), dim=1).mean()


def table_l2(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """Mean squared difference of the cosines; temperatures play no part."""
    taking_part = ~torch.isneginf(teacher)
    return torch.where(taking_part, student - teacher, 0).square().sum() / taking_part.sum()


# A normaliser and the divergence that belongs to it.
COMPARISONS: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "softmax_kl": row_softmax_kl,
    "pearson": row_pearson,
    "l2": table_l2,
}


class Correlation(nn.Module):
    """Compare the student's similarity table with the teacher's, row by row.

    relation="views" with projector="square" and tau 0.5 is DLKD's correlation: augmented against plain views,
    divided by the number of rows. Source: Ding et al., TNNLS 35(2):2425-2435 and its published code.
    """

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        relation: str = "queue",
        comparison: str = "softmax_kl",
        projector_name: str = "linear",
        tau_student: float = 0.07,
        tau_teacher: float = 0.07,
        size: int = 8192,
    ):
        super().__init__()
        for what, name, table in (("relation", relation, RELATIONS), ("comparison", comparison, COMPARISONS)):
            if name not in table:
                raise UserError(
                    f"{what}: expected one of {', '.join(table)}; got {name!r}.{nearest(name, list(table))}"
                )
        if min(tau_student, tau_teacher) <= 0:
            raise UserError(f"temperatures: expected above 0, got {tau_student} (student) and {tau_teacher} (teacher)")
        self.relation = RELATIONS[relation](teacher_dim, size)
        if (
            self.relation.needs_teacher_width
            and student_dim != teacher_dim
            and projector_name in ("identity", "square")
        ):
            raise UserError(
                f"relation {relation!r} compares the student with the teacher: projector {projector_name!r} keeps the "
                f"student's width {student_dim}, but the teacher's is {teacher_dim}; use linear, mlp or simreg"
            )
        self.min_views = self.relation.min_views
        self.projector = projector(projector_name, student_dim, teacher_dim)
        self.comparison = comparison
        self.tau_student, self.tau_teacher = tau_student, tau_teacher

    def forward(self, student: Features, teacher: Features, views: Views) -> Tensor:
        """Scalar, float32, 0 at a match. Embeddings are (N, Ds) and (N, Dt), rows view-major."""
        s = self.projector(student.embedding)
        with torch.autocast(s.device.type, enabled=False):
            tables = self.relation(s.float(), teacher.embedding.detach().float(), views)
            return COMPARISONS[self.comparison](tables[0], tables[1], self.tau_student, self.tau_teacher)
