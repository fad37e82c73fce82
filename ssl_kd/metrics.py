"""Figures that need no labels: neighbour overlap, kernel alignment, effective rank, uniformity."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = 10  # k of the neighbour overlap
Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution


def neighbour_overlap(student: Tensor, teacher: Tensor, k: int = NEIGHBOURS) -> float:
    """Share of each image's k nearest others (by cosine, exact) that both networks agree on, mean over images, 0 to 1.

    student (N, Ds), teacher (N, Dt), N > k. Two unrelated networks agree on k / (N - 1).
    """
    return float(shared_neighbours(student, teacher, k).float().mean())


def chance_overlap(images: int, k: int = NEIGHBOURS) -> float:
    """The neighbour overlap that unrelated embeddings of so many images have: k / (N - 1), at most 1."""
    return min(1.0, k / max(images - 1, 1))


@dataclass(frozen=True)
class Overlap:
    """A neighbour overlap on some images, half its 95 % interval, and what unrelated embeddings of them share; all 0 to 1."""

    value: float
    half: float
    chance: float

    @property
    def above_chance(self) -> bool:
        """Whether the whole interval is."""
        return self.value - self.half > self.chance

    def __str__(self) -> str:
        """Percent, and half the interval's width."""
        return f"{100 * self.value:.1f} ±{100 * self.half:.1f} %"


def shared_neighbours(student: Tensor, teacher: Tensor, k: int = NEIGHBOURS) -> Tensor:
    """What each image contributes to `neighbour_overlap`: (N,) from 0 to 1."""
    assert len(student) == len(teacher) > k
    ours, theirs = (_nearest(z, k) for z in (student, teacher))
    return (ours[:, :, None] == theirs[:, None, :]).any(2).double().mean(1)


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval: how far it would move had other images of the same kind been drawn."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """Percent, and half the interval's width."""
        return f"{100 * self.value:.1f} ±{50 * (self.high - self.low):.1f} %"


def mean_of(values: Tensor) -> Mean:
    """The mean of (N,) values, N at least 2, and its normal interval."""
    z = values.double()
    value, arm = float(z.mean()), Z95 * float(z.std()) / math.sqrt(len(z))
    return Mean(value, value - arm, value + arm)


def _nearest(z: Tensor, k: int) -> Tensor:
    """Row numbers (N, k) of the k most similar other rows."""
    unit = F.normalize(z.double(), dim=1)
    return (unit @ unit.T).fill_diagonal_(-math.inf).topk(k, dim=1).indices


def centred_kernel_alignment(student: Tensor, teacher: Tensor) -> float:
    """Linear CKA of (N, Ds) and (N, Dt): do they tell the same images apart alike? At most 1; 0 for unrelated networks.

    Source: Kornblith et al., ICML 2019, arXiv:1905.00414, with the unbiased HSIC of Song et al., JMLR 2012: the plain
    estimate calls wide random features alike when N is below their width.
    """
    return cka_of(hollow_products(student), hollow_products(teacher))


def cka_of(a: Tensor, b: Tensor) -> float:
    """Linear CKA of two tables of `hollow_products` (N, N), or of the same rows and columns of both."""
    scale = math.sqrt(max(_hsic(a, a), 0.0)) * math.sqrt(max(_hsic(b, b), 0.0))
    return _hsic(a, b) / scale if scale > 0 else 0.0


def hollow_products(z: Tensor) -> Tensor:
    """Products of centred rows (N, N) in double precision, of unit mean square, with an empty diagonal."""
    z = z.double()
    z = z - z.mean(0)
    z = z / z.square().mean().sqrt().clamp_min(1e-150)
    return (z @ z.T).fill_diagonal_(0)


def _hsic(a: Tensor, b: Tensor) -> float:
    n = len(a)
    rows_a, rows_b = a.sum(1), b.sum(1)
    total = (a * b).sum() + rows_a.sum() * rows_b.sum() / ((n - 1) * (n - 2)) - 2 * (rows_a @ rows_b) / (n - 2)
    return float(total) / (n * (n - 3))


def effective_rank(z: Tensor) -> float:
    """exp of the entropy of the singular values of the centred rows (N, D): 1 (a line) to min(N - 1, D); 0 for a point.

    Source: Roy & Vetterli, EUSIPCO 2007; RankMe (Garrido et al., ICML 2023, arXiv:2210.02885). Differs from RankMe:
    rows are centred, since one mean direction dominates features that end in a ReLU.
    """
    z = z.double()
    values = torch.linalg.svdvals(z - z.mean(0))
    # What centring leaves of equal rows is rounding: not a dimension.
    values = values[values > 1e-7 * z.norm()]
    if not len(values):
        return 0.0
    p = values / values.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def uniformity(z: Tensor) -> float:
    """log of the mean over pairs of exp(-2 ||x - y||^2), x and y of unit length: 0 (one point) down to -8.

    Source: Wang & Isola, ICML 2020, arXiv:2005.10242, t = 2.
    """
    return float(torch.pdist(F.normalize(z.double(), dim=1)).square().mul(-2).exp().mean().log())


def spread(z: Tensor) -> float:
    """Variance of the unit vectors about their mean: 0 (all images in one place) to 1 (directions even out)."""
    return 1 - float(F.normalize(z.double(), dim=1).mean(0).square().sum())
