"""The contracts that every part shares: features, a batch of views, and what an objective is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Features:
    """What an Encoder says about a batch."""

    embedding: Tensor  # (B, D) what k-NN and probes use
    tokens: Tensor | None = None  # (B, L, D') patch tokens or map cells, row-major
    layers: Mapping[str, Tensor] = field(default_factory=dict)  # only those asked for


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
