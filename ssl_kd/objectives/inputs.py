"""Reading `Features`: embeddings, patch tokens and tapped layers, checked and brought onto one grid.

The objective learns the widths when it is built (`Widths`), long before it sees the first batch, so that the optimiser
finds all of its parameters. What a network does not give is one clear line, not a traceback.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor

from ssl_kd.errors import UserError, nearest
from ssl_kd.types import Features


@dataclass(frozen=True)
class Widths:
    """How wide a network's outputs are: of the embedding, of its tokens, of each tapped layer."""

    embedding: int
    tokens: int | None = None  # None: like the embedding, as for average-pooled CNNs and class-token ViTs
    layers: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, features: Features) -> Widths:
        """The widths seen in one batch of features."""
        return cls(
            features.embedding.shape[1],
            None if features.tokens is None else features.tokens.shape[2],
            {name: channels(tap) for name, tap in features.layers.items()},
        )

    @classmethod
    def given(cls, width: int | Widths) -> Widths:
        """A bare number is the embedding's width."""
        return width if isinstance(width, Widths) else cls(width)

    @property
    def token(self) -> int:
        """Width of the tokens."""
        return self.embedding if self.tokens is None else self.tokens

    def layer(self, name: str, whose: str) -> int:
        """Width of a tapped layer; UserError where nobody taps it."""
        if name not in self.layers:
            raise UserError(
                f"objective: it compares layer {name!r} of the {whose}, but the layers tapped there are "
                f"{', '.join(self.layers) or 'none'}; name layers that this run taps.{nearest(name, list(self.layers))}"
            )
        return self.layers[name]


def channels(tap: Tensor) -> int:
    """Width of a tapped layer: of a map (N, C, H, W) or of tokens (N, L, C)."""
    return tap.shape[1] if tap.ndim == 4 else tap.shape[-1]


def tokens(features: Features, whose: str, width: int | None = None) -> Tensor:
    """(N, L, D') patch tokens; UserError where the network gives none, or not of that width."""
    if features.tokens is None:
        raise UserError(
            f"objective: it compares patch tokens, but the {whose} gives none; take a network with patches or a map, "
            "or an objective on embeddings such as default_light"
        )
    if width is not None and features.tokens.shape[2] != width:
        raise UserError(
            f"objective: expected {width} numbers per token of the {whose}, got {features.tokens.shape[2]}; build the "
            f"objective with Widths.of(features), or read the {whose}'s plain pooled or class-token feature"
        )
    return features.tokens


def layer(features: Features, name: str, whose: str) -> Tensor:
    """A tapped layer as it left the network; UserError where it was not tapped."""
    if name not in features.layers:
        raise UserError(
            f"objective: it compares layer {name!r} of the {whose}, but the layers tapped there are "
            f"{', '.join(features.layers) or 'none'}; name layers that this run taps.{nearest(name, list(features.layers))}"
        )
    return features.layers[name]


def layer_tokens(features: Features, name: str, whose: str) -> Tensor:
    """A tapped layer as (N, L, C): maps become rows of cells, and what comes before a square of patches is cut off."""
    tap = layer(features, name, whose)
    if tap.ndim == 4:
        return tap.flatten(2).transpose(1, 2)
    if tap.ndim != 3:
        raise UserError(f"objective: layer {name!r} of the {whose} is {tuple(tap.shape)}; expected a map or tokens")
    # Class and register tokens come first; the patches are the largest square.
    return tap[:, tap.shape[1] - math.isqrt(tap.shape[1]) ** 2 :]


def cells(features: Features, whose: str, width: int, layers: Sequence[str]) -> Tensor:
    """(N, L, C): the cells of the one tapped layer that is named, else the patch tokens."""
    return layer_tokens(features, layers[0], whose) if layers else tokens(features, whose, width)


def cell_widths(student: Widths, teacher: Widths, ours: Sequence[str], theirs: Sequence[str]) -> tuple[int, int]:
    """How wide `cells` will be for both networks."""
    if ours or theirs:
        named_layers(ours, theirs, 1, "a term on cells reads one layer of each")
        return student.layer(ours[0], "student"), teacher.layer(theirs[0], "teacher")
    return student.token, teacher.token


def named_layers(ours: Sequence[str], theirs: Sequence[str], count: int, why: str) -> None:
    """UserError unless so many layers are named for both networks."""
    for key, given in (("student_layers", ours), ("teacher_layers", theirs)):
        if isinstance(given, str) or len(given) != count:
            raise UserError(f"{key}: {why}, so a list of {count}; got {given or None!r}")


def to_grid(z: Tensor, length: int, sampled: bool = False) -> Tensor:
    """Tokens (N, L, D) of a square grid onto one of `length` cells: bilinear to a finer, means to a coarser one.

    sampled: bilinear to a coarser one as well, which leaves out what lies between the samples.
    """
    if z.shape[1] == length:
        return z
    side, wanted = math.isqrt(z.shape[1]), math.isqrt(length)
    if side * side != z.shape[1] or wanted * wanted != length:
        raise UserError(f"objective: {z.shape[1]} tokens cannot be laid over {length}: both must be square grids")
    grid = z.transpose(1, 2).reshape(len(z), -1, side, side)
    if wanted > side or sampled:
        grid = F.interpolate(grid, size=(wanted, wanted), mode="bilinear")
    else:
        grid = F.adaptive_avg_pool2d(grid, wanted)
    return grid.flatten(2).transpose(1, 2)


def onto_coarser(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the coarser of their two grids, by means over cells."""
    length = min(s.shape[1], t.shape[1])
    return to_grid(s, length), to_grid(t, length)
