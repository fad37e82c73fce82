"""Samples at a boundary between two prototypes, where the student errs first: the teacher's outputs on them are matched.

The training loop makes them: it moves each image along the student's own gradient until its two nearest prototypes are
about equally near, and has both networks look again.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.alignment import head_to_teacher
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.prototypes import Prototypes
from ssl_kd.objectives.relations import unit
from ssl_kd.objectives.term import Term
from ssl_kd.types import Features, ViewBatch

BOUNDARY = "boundary"  # the layer in which a term finds both networks' embeddings of the moved images


class Boundary(Term):
    """KL of softmaxes of cosines to prototypes, teacher || student, on images moved to the student's nearest boundary.

    lead: by how much a student's nearest prototype leads over the second. The loop moves pixels x by
    - lead x gradient / |gradient|^2, `steps` times, and passes what both networks say of the result in layers["boundary"].
    Cost: `steps` more passes of the student forward and backward, one more of it in training, one more of the teacher.
    Source of the idea: knowledge distillation with boundary supporting samples (BSS, AAAI 2019), as its title and abstract
    tell it; ours: prototypes for classes, no labels, all images of a batch, and this step.
    """

    at_boundary = True
    divisible = True

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        projector: str | nn.Module = "simreg",
        prototypes: int = 1024,
        tau: float = 0.1,
        steps: int = 1,
        refresh: int = 0,
    ):
        super().__init__()
        ds, dt = Widths.given(student_dim).embedding, Widths.given(teacher_dim).embedding
        self.projector = head_to_teacher(projector, ds, dt)
        self.relation = Prototypes(prototypes, refresh)
        self.relation.fit(Widths(dt), Widths(dt))
        self.tau, self.steps = tau, steps

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 at a match."""
        if BOUNDARY not in student.layers or BOUNDARY not in teacher.layers:
            raise UserError("objective: it compares images at a boundary, and this loop does not move images there")
        s = self.projector(student.layers[BOUNDARY])
        with torch.autocast(s.device.type, enabled=False):
            ours, theirs = self.relation(s.float(), teacher.layers[BOUNDARY].detach().float(), batch)
            if not ours.shape[1]:
                nothing: Tensor = s.sum() * 0
                return nothing
            log_q, log_p = (F.log_softmax(z / self.tau, dim=1) for z in (ours, theirs))
            total: Tensor = (log_p.exp() * (log_p - log_q)).sum()
            return total / len(log_p)

    def lead(self, embedding: Tensor) -> Tensor:
        """(N,) cosine to the student's nearest prototype less that to its second nearest, 0 at a boundary."""
        cosines = unit(self.projector(embedding).float()) @ self.relation.anchors.T
        nearest: Tensor = cosines.topk(2, dim=1).values
        ahead: Tensor = nearest[:, 0] - nearest[:, 1]
        return ahead
