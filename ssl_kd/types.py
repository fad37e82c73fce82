"""The contracts that every part shares: features, a batch of views, and what an objective is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Index = Tensor | np.ndarray | Sequence[int]  # numbers of images
_NAMELESS = itertools.count(2**62)  # numbers for images that nobody has numbered: no two are the same image


@dataclass(frozen=True)
class Features:
    """What an Encoder says about a batch."""

    embedding: Tensor  # (B, D) what k-NN and probes use
    tokens: Tensor | None = None  # (B, L, D') patch tokens or map cells, row-major
    layers: Mapping[str, Tensor] = field(default_factory=dict)  # only those asked for

    @classmethod
    def of(cls, given: Features | Tensor) -> Features:
        """Features as they are; a tensor (B, D) is the embedding."""
        return given if isinstance(given, Features) else cls(given)


@dataclass(frozen=True)
class ViewBatch:
    """A batch: V views of B images. `pixels[v]` is (B, 3, S, S); `index` names the samples. No labels exist here."""

    index: np.ndarray  # (B,) int64
    epoch: int
    pixels: tuple[Tensor, ...]  # uint8 when it leaves the loader, float32 in [0, 1] after `finish_all`
    view_numbers: tuple[int, ...] = ()  # (sample, view number, seed) names a view: equal numbers are equal pixels

    def __len__(self) -> int:
        return len(self.index)

    @property
    def teacher_views(self) -> int:
        """How many of the views teachers look at: those as large as the first. The others are for the student only."""
        return sum(pixels.shape[-1] == self.pixels[0].shape[-1] for pixels in self.pixels)

    @classmethod
    def of_rows(cls, rows: int, views: int = 1, index: Index | None = None, epoch: int = 0) -> ViewBatch:
        """The batch that `rows` feature rows come from, when no pixels are at hand: view-major, rows = views x images.

        index: (rows / views,) numbers of the images, for memory banks that must not show an image an older view of
        itself; without it every image counts as a new one.
        """
        if views < 1 or rows % views:
            raise ValueError(f"expected rows of {views} views of each image, got {rows} rows")
        count = rows // views
        if index is None:
            numbers = np.fromiter(itertools.islice(_NAMELESS, count), np.int64, count)
        else:
            numbers = np.asarray(index.cpu() if isinstance(index, Tensor) else index, dtype=np.int64)
        if numbers.shape != (count,):
            raise ValueError(f"index: expected the numbers of {count} images, got shape {numbers.shape}")
        return cls(numbers, epoch, tuple(torch.empty(count, 3, 1, 1) for _ in range(views)))


@runtime_checkable
class Criterion(Protocol):
    """What the trainer needs of an objective: any `nn.Module` of this form, ours or yours.

    It gets the features of student and teacher on the same rows and the batch that they come from, and returns a scalar
    to be minimised, or that and its parts by name. Attributes that it may have, with what is assumed where it has none:
    `needs_tokens` (False), `student_layers` and `teacher_layers` (none are tapped), `student_momentum` (0: no moving
    average of the student), `masks` (False: no second look at half-hidden images), `min_views` (1), `divisible` (False: its value
    over a batch is not the mean over parts).
    """

    def __call__(
        self, student: Features, teacher: Features, batch: ViewBatch | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        """The value to be minimised, or that and its parts by name."""
        ...
