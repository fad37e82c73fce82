"""Alignment: each sample lands where the teacher puts it. Projector x space x distance.

Every distance is a mean over samples, zero at a match, computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.encoder import Features
from ssl_kd.errors import UserError, nearest
from ssl_kd.objectives.projectors import projector
from ssl_kd.views import Views


def cosine_distance(s: Tensor, t: Tensor) -> Tensor:
    """2 - 2 cos(s, t), mean over rows: the squared distance of the unit vectors, in [0, 4] (SimReg; DLKD)."""
    return 2 - 2 * F.cosine_similarity(s, t, dim=1, eps=1e-6).mean()


def squared_distance(s: Tensor, t: Tensor) -> Tensor:
    """Mean over samples and dimensions of (s - t)^2."""
    return F.mse_loss(s, t)


def smooth_l1(s: Tensor, t: Tensor) -> Tensor:
    """Huber distance with a corner at 1, mean over samples and dimensions."""
    return F.smooth_l1_loss(s, t)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cosine": cosine_distance,
    "mse": squared_distance,
    "smooth_l1": smooth_l1,
}


class Standardise(nn.Module):
    """The teacher's features with zero mean and unit variance per dimension, by running statistics.

    The first batch sets the statistics; later ones move them by `momentum`. Source: the moving averages of UNIC
    (Sariyildiz et al., ECCV 2024), with a constant momentum.
    """

    mean: Tensor
    var: Tensor
    seen: Tensor

    def __init__(self, dim: int, momentum: float = 0.01):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("var", torch.ones(dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, t: Tensor) -> Tensor:
        """(N, Dt) -> (N, Dt)."""
        if self.training:
            rate = 1.0 if int(self.seen) == 0 else self.momentum
            self.mean.lerp_(t.mean(0), rate)
            self.var.lerp_(t.var(0, unbiased=False), rate)
            self.seen += 1
        return (t - self.mean) * torch.rsqrt(self.var + 1e-6)


# The space in which teacher features are compared; `unit` is what the cosine distance sees anyway.
SPACES: dict[str, Callable[[int], nn.Module]] = {
    "raw": lambda dim: nn.Identity(),
    "standardised": Standardise,
}


class Alignment(nn.Module):
    """The distance between the projected student and the teacher, per sample.

    The defaults are SimReg's: its four-layer head and 2 - 2 cos on the backbone features.
    Source: Navaneet et al., "SimReg: Regression as a Simple Yet Effective Tool for Self-supervised Knowledge
    Distillation", BMVC 2021 (constants read in its code). With projector "dlkd": Ding et al., DLKD, TNNLS 35(2).
    """

    min_views = 1

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        projector_name: str = "simreg",
        space: str = "raw",
        distance: str = "cosine",
    ):
        super().__init__()
        if space not in SPACES:
            raise UserError(f"space: expected one of {', '.join(SPACES)}; got {space!r}.{nearest(space, list(SPACES))}")
        if distance not in DISTANCES:
            raise UserError(
                f"distance: expected one of {', '.join(DISTANCES)}; got {distance!r}.{nearest(distance, list(DISTANCES))}"
            )
        self.projector = projector(projector_name, student_dim, teacher_dim)
        self.space = SPACES[space](teacher_dim)
        self.distance = distance

    def forward(self, student: Features, teacher: Features, views: Views) -> Tensor:
        """Scalar, float32, 0 at a match. Embeddings are (N, Ds) and (N, Dt)."""
        s = self.projector(student.embedding)
        with torch.autocast(s.device.type, enabled=False):
            t = self.space(teacher.embedding.detach().float())
            return DISTANCES[self.distance](s.float(), t)
