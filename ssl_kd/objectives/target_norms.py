"""Spaces: how teacher features are laid out before a distance is measured. All work on rows (N, Dt), in float32.

Statistics are buffers: a run saves and restores them, and in eval mode nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssl_kd.objectives.hadamard import even_rotation
from ssl_kd.registry import Registry


class Standardise(nn.Module):
    """The teacher's features with zero mean and unit variance per dimension, by running statistics.

    The first 1 / momentum batches count equally, so that a dimension that rested in the very first is not blown up;
    later ones move the statistics by `momentum`. Source: the moving averages of UNIC (Sariyildiz et al., ECCV 2024).
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
            rate = max(1 / (int(self.seen) + 1), self.momentum)
            self.mean.lerp_(t.mean(0), rate)
            self.var.lerp_(t.var(0, unbiased=False), rate)
            self.seen += 1
        return (t - self.mean) * torch.rsqrt(self.var + 1e-6)


class Centre(nn.Module):
    """The teacher's features without their running mean: cosines then measure directions from the centre of the data."""

    mean: Tensor
    seen: Tensor

    def __init__(self, dim: int, momentum: float = 0.01):
        super().__init__()
        self.momentum = momentum
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, t: Tensor) -> Tensor:
        """(N, Dt) -> (N, Dt)."""
        if self.training:
            self.mean.lerp_(t.mean(0), 1.0 if int(self.seen) == 0 else self.momentum)
            self.seen += 1
        return t - self.mean


class Whiten(nn.Module):
    """The teacher's features with zero mean and (nearly) unit covariance, turned as little as possible (ZCA).

    Mean and covariance are averages over the first `batches` batches and then stay. The matrix is made anew only when
    the count of batches is a power of two: an eigendecomposition of Dt = 2048 takes seconds. `shrinkage` mixes in that
    share of the mean variance, since a few batches do not fill all dimensions. Our own form.
    """

    mean: Tensor
    covariance: Tensor
    matrix: Tensor
    seen: Tensor

    def __init__(self, dim: int, batches: int = 1024, shrinkage: float = 0.1):
        super().__init__()
        self.batches, self.shrinkage = batches, shrinkage
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("covariance", torch.zeros(dim, dim))
        self.register_buffer("matrix", torch.eye(dim))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def forward(self, t: Tensor) -> Tensor:
        """(N, Dt) -> (N, Dt)."""
        seen = int(self.seen)
        if self.training and seen < self.batches:
            self._learn(t, seen + 1)
        return (t - self.mean) @ self.matrix

    @torch.no_grad()
    def _learn(self, t: Tensor, seen: int) -> None:
        centre = t.mean(0)
        moved, rate = centre - self.mean, 1 / seen
        spread = (t - centre).T @ (t - centre) / len(t)
        # Two sets of equal size: their covariances average, and the gap between their means adds to it.
        self.covariance.lerp_(spread, rate).addr_(moved, moved, alpha=rate * (1 - rate))
        self.mean.lerp_(centre, rate)
        self.seen.fill_(seen)
        if seen & (seen - 1) == 0:
            self.matrix.copy_(self._made(*torch.linalg.eigh(self.covariance)))

    def _made(self, values: Tensor, vectors: Tensor) -> Tensor:
        """What centred rows are multiplied by, from the covariance's eigenvalues and eigenvectors."""
        share = self.shrinkage
        shrunk = (1 - share) * values.clamp_min(0) + share * values.mean().clamp_min(1e-12)
        return (vectors * shrunk.rsqrt()) @ vectors.T


class PhiS(Whiten):
    """PHI-S: one number scales all dimensions, and a rotation first gives each of them the same variance.

    alpha H V^T (t - mean), V the eigenvectors of the covariance, alpha its mean eigenvalue to the power -1/2, H a Hadamard
    matrix of length-1 rows (see `even_rotation`). Distances and angles between teacher samples stay what they are.
    Source: PHI-S, read in RADIO's training code (NVIDIA-TAO/tao-pytorch). Differs: made anew at powers of two up to
    `batches`, there every 100 batches up to 3,000; eigenvectors have a sign of their own, so that a new matrix is near
    the last one; where no Hadamard matrix is known, Hartley's instead of a random one; heads predict the standardised
    features, theirs the plain ones, which are then standardised as well.
    """

    even: Tensor

    def __init__(self, dim: int, batches: int = 1024):
        super().__init__(dim, batches, shrinkage=0.0)
        self.register_buffer("even", even_rotation(dim).float(), persistent=False)

    def _made(self, values: Tensor, vectors: Tensor) -> Tensor:
        signs = torch.where(vectors.pow(3).sum(0) < 0, -1.0, 1.0)
        return ((vectors * signs) @ self.even.T) * values.clamp_min(0).mean().clamp_min(1e-12).rsqrt()


# The space in which teacher features are compared; directions alone ("unit") are what the cosine distance sees anyway.
TARGET_NORMS: Registry[Callable[[int], nn.Module]] = Registry(
    "target norms",
    {
        "raw": lambda dim: nn.Identity(),
        "standardised": Standardise,
        "centred": Centre,
        "whitened": Whiten,
        "phi_s": PhiS,
    },
    group="ssl_kd.target_norms",
)
