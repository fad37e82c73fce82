"""Terms on maps of cells: which places the channels choose, and what a small network makes of the map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss

from ssl_kd.errors import UserError
from ssl_kd.objectives.inputs import Widths, cell_widths, cells, onto_coarser, tokens
from ssl_kd.objectives.relations import unit
from ssl_kd.objectives.term import Term
from ssl_kd.types import Features, ViewBatch


class Selectivity(Term):
    """The channels of both networks choose the same places: squared MMD between two sets of maps, image by image.

    mean k(t, t') + mean k(s, s') - 2 mean k(s, t) over pairs of channels, each a unit vector over the cells, k(a, b) =
    <a, b>^2. No head: the numbers of channels may differ. The larger map is pooled to the smaller. Of patch tokens, or of
    the cells of one layer of each network.
    Source: neuron selectivity transfer (NST), read in HobbitLong/RepDistiller. Where there are fewer cells than channels the
    same is had from products of cells, |G_s / C_s - G_t / C_t|^2: our identity, less memory.
    """

    divisible = True

    def __init__(
        self,
        student_dim: int | Widths,
        teacher_dim: int | Widths,
        student_layers: Sequence[str] = (),
        teacher_layers: Sequence[str] = (),
    ):
        super().__init__()
        student, teacher = Widths.given(student_dim), Widths.given(teacher_dim)
        self.student_layers, self.teacher_layers = tuple(student_layers), tuple(teacher_layers)
        self.widths = cell_widths(student, teacher, self.student_layers, self.teacher_layers)
        self.needs_tokens = not self.student_layers

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 at a match."""
        s = cells(student, "student", self.widths[0], self.student_layers)
        t = cells(teacher, "teacher", self.widths[1], self.teacher_layers).detach()
        with torch.autocast(s.device.type, enabled=False):
            s, t = (unit(z.mT) for z in onto_coarser(s.float(), t.float()))  # (N, C, L)
            return by_cells(s, t) if s.shape[2] <= max(s.shape[1], t.shape[1]) else by_channels(s, t)


def by_channels(s: Tensor, t: Tensor) -> Tensor:
    """(N, Cs, L), (N, Ct, L) -> scalar, from the kernel of all pairs of channels."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.mT).square().mean()

    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


def by_cells(s: Tensor, t: Tensor) -> Tensor:
    """The same from the products of all pairs of cells."""
    ours, theirs = (z.mT @ z / z.shape[1] for z in (s, t))
    return (ours - theirs).square().sum((1, 2)).mean()


class Factors(Term):
    """strength x |unit factors of s - unit factors of t|, mean over all numbers, and what trains the teacher's paraphraser.

    Factors of the teacher are the code of an autoencoder of its map (three 3 x 3 convolutions and three back, leaky ReLU
    0.1, `rate` of its channels in the middle), which learns by |decoded - map|; those of the student come from three
    convolutions of its own. An image's factors are one unit vector. The autoencoder feels its own part alone.
    Source: factor transfer (NeurIPS 2018), read in its authors' Jangho-Kim/Factor-Transfer-pytorch: rate 0.5, strength 500.
    Differs: the paraphraser learns beside the student, not in epochs before it; the larger map of factors is pooled to
    the smaller. Its size grows as 31.5 Dt^2: 132 million numbers for a teacher of width 2,048, 5 million for one of 384.
    """

    needs_tokens = True
    divisible = True

    def __init__(
        self, student_dim: int | Widths, teacher_dim: int | Widths, rate: float = 0.5, strength: float = 500.0
    ):
        super().__init__()
        self.widths = Widths.given(student_dim).token, Widths.given(teacher_dim).token
        middle = max(1, round(rate * self.widths[1]))
        self.strength = strength
        self.translator = _convolutions(self.widths[0], self.widths[0], middle, middle)
        self.encoder = _convolutions(self.widths[1], self.widths[1], middle, middle)
        self.decoder = _convolutions(middle, middle, self.widths[1], self.widths[1], back=True)

    def compare(self, student: Features, teacher: Features, batch: ViewBatch) -> Tensor:
        """Scalar, float32, 0 where the factors match and the autoencoder gives back what it gets."""
        s, t = _map(student, "student", self.widths[0]), _map(teacher, "teacher", self.widths[1]).detach()
        ours, theirs = self.translator(s), self.encoder(t)
        back = self.decoder(theirs)
        with torch.autocast(s.device.type, enabled=False):
            pair = onto_coarser(*(z.float().flatten(2).mT for z in (ours, theirs.detach())))
            a, b = (unit(z.flatten(1)) for z in pair)
            return self.strength * l1_loss(a, b) + l1_loss(back.float(), t.float())


def _convolutions(*widths: int, back: bool = False) -> nn.Sequential:
    kind = nn.ConvTranspose2d if back else nn.Conv2d
    return nn.Sequential(*(part for a, b in pairwise(widths) for part in (kind(a, b, 3, padding=1), nn.LeakyReLU(0.1))))


def _map(features: Features, whose: str, width: int) -> Tensor:
    """(N, D', H, W) patch tokens on their grid; UserError where it is not square."""
    z = tokens(features, whose, width)
    side = math.isqrt(z.shape[1])
    if side * side != z.shape[1]:
        raise UserError(f"objective: {z.shape[1]} tokens of the {whose} are no square grid, which convolutions need")
    return z.mT.reshape(len(z), width, side, side)
