"""The teacher's own prototypes, through its own projection and temperature: DINO's and iBOT's heads, SwAV's and MSN's prototypes.

Published files often hold the head that the teacher was trained with. It is frozen here, and what it says of an embedding
is what the student shall say: through a head of its own as in DINOv3's distillation, or through the teacher's.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.relations import Relation, Tables
from ssl_kd.types import ViewBatch

HIDDEN = 2048  # width of the student's own head, as DINO's


class Head(nn.Module):
    """(N, D) -> (N, K) cosines, or products, of a projected and normalised embedding with K prototypes; - centre.

    Everything is float32 and frozen: `projection` (D -> E), `prototypes` (K, E), `centre` (K,), `temperature`. feature: the
    teacher's that it reads, where that is not the one which the teacher is evaluated by.
    """

    prototypes: Tensor
    centre: Tensor

    def __init__(
        self,
        projection: nn.Module,
        prototypes: Tensor,
        temperature: float,
        centre: Tensor | None = None,
        feature: str = "",
    ):
        super().__init__()
        self.feature = feature
        self.projection = projection.eval().requires_grad_(False)
        self.temperature = temperature
        self.register_buffer("prototypes", prototypes.float())
        self.register_buffer("centre", torch.zeros(len(prototypes)) if centre is None else centre.float().flatten())

    def train(self, mode: bool = True) -> Head:
        """Frozen: its batch norms stay as they are."""
        return super().train(False)

    def forward(self, z: Tensor) -> Tensor:
        """(N, D) -> (N, K)."""
        return F.normalize(self.projection(z), dim=1) @ self.prototypes.T - self.centre


class TeacherHead(Relation):
    """What the teacher's own head says: of the teacher, and of the student through a head of its own or the teacher's.

    patches: the head is the one for patch tokens, and so are the rows.
    own_head: the student speaks through Linear, GELU, Linear, GELU, Linear -> E, normalised, and K free prototypes (DINO's
    head, trained); without, its projection to the teacher's width goes through the frozen head. Tables are the teacher's
    logits x 1 / its temperature and the student's as they are, so `tau_teacher` of a comparison is 1 where the published
    temperature shall stand.
    Source: distillation with frozen heads as in DINOv3 (facebookresearch/dinov3); the second form is that of Retro and of
    VISSL's. UserError in training where no head was given.
    """

    divisible = True

    def __init__(self, own_head: bool = True, patches: bool = False):
        super().__init__()
        self.own_head, self.patches = own_head, patches
        self.needs_teacher_width = not own_head
        self.head: Head | None = None
        self.student_head: nn.Module | None = None
        self.student_prototypes: nn.Linear | None = None

    def fit(self, student: Widths, teacher: Widths) -> None:
        """The widths that a head must fit."""
        self.widths = student.embedding, teacher.embedding

    def give(self, head: Head) -> None:
        """Take the teacher's head; UserError where it reads embeddings of another width."""
        try:
            classes, width = head(torch.zeros(2, self.widths[1])).shape[1], head.prototypes.shape[1]
        except RuntimeError:
            raise UserError(
                f"objective: the teacher's head does not read its {self.widths[1]} numbers; take the feature it was trained on"
            ) from None
        self.head = head
        if self.own_head:
            self.student_head = nn.Sequential(
                *(nn.Linear(self.widths[0], HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU()),
                nn.Linear(HIDDEN, width),
            )
            self.student_prototypes = nn.Linear(width, classes, bias=False)

    def tables(self, s: Tensor, t: Tensor, batch: ViewBatch) -> Tables:
        """(N, Ds or Dt), (N, Dt) -> two (N, K) tables; (N, 0) before a head is given, which training refuses."""
        if self.head is None:
            if self.training:
                raise UserError("objective: no head of the teacher was given; call give(load_head(file)) first")
            return s[:, :0], t[:, :0]
        if self.student_head is None or self.student_prototypes is None:
            ours = self.head(s)
        else:
            ours = self.student_prototypes(F.normalize(self.student_head(s), dim=1))
        return ours, self.head(t) / self.head.temperature


def sinkhorn(logits: Tensor, iterations: int = 3) -> Tensor:
    """(N, K) assignment: softmax rows, rescaled in turn so that every prototype has the same share of the batch.

    Source: Sinkhorn-Knopp centring of SwAV, DINOv2 and DINOv3, read in the last one's code.
    """
    log = logits - logits.logsumexp((0, 1))
    for _ in range(iterations):
        log = log - log.logsumexp(0, keepdim=True)
        log = log - log.logsumexp(1, keepdim=True)
    return log.exp()


def assignment_kl(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """Mean over rows of KL(sinkhorn(teacher / tau) || softmax(student / tau)): DINO's cross-entropy less its own entropy."""
    return assignment_gaps(student, teacher, tau_student, tau_teacher).mean()


def assignment_gaps(student: Tensor, teacher: Tensor, tau_student: float, tau_teacher: float) -> Tensor:
    """(N,): the same, row by row."""
    p = sinkhorn(teacher / tau_teacher)
    log_q = F.log_softmax(student / tau_student, dim=1)
    gap = torch.where(p > 0, p.clamp_min(1e-38).log() - log_q, 0)
    return (p * gap).sum(1)
