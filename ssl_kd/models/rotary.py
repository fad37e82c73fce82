"""Rotary positions of DINOv3 (Simeoni et al. 2025, https://arxiv.org/abs/2508.10104), for timm's `Eva`, at any grid.

A patch's centre, each axis on its own from -1 to 1, gives angles 2 pi centre / period for every period: those of the row,
then those of the column. The lab's files hold the periods rounded to bfloat16, and its code uses them so; the other
libraries compute them. Features differ by 0.001, so both are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

BASE = 100.0


class Rotary(nn.Module):
    """Sines and cosines for a grid of patches, in the order that timm's `Eva` wants: (H*W, 2 * head width).

    stored: whether the periods are part of the state dict, as in the lab's files.
    """

    periods: Tensor

    def __init__(self, head_width: int, stored: bool):
        super().__init__()
        self.register_buffer("periods", torch.empty(head_width // 4), persistent=stored)
        self.init_non_persistent_buffers()

    def init_non_persistent_buffers(self) -> None:
        """The published periods, unrounded."""
        count = self.periods.numel()
        self.periods.copy_(BASE ** (torch.arange(count, dtype=torch.float32) / count))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Rotary:
        """Moves go through; a cast to fewer bits does not, because the angles would be coarse."""
        periods = self.periods
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if not periods.is_meta:
            self.periods = periods.to(self.periods.device)
        return self

    def get_embed(self, shape: Sequence[int]) -> Tensor:
        """The table for a grid of that height and width."""
        height, width = int(shape[0]), int(shape[1])
        device = self.periods.device
        rows, columns = (
            2 * (torch.arange(side, device=device, dtype=torch.float32) + 0.5) / side - 1 for side in (height, width)
        )
        centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).flatten(0, 1)
        angles = (2 * math.pi * centres[:, :, None] / self.periods.float()).flatten(1).tile(2)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class FixedRotary(nn.Module):
    """The table of one grid as a constant, for programs that are written out at one input size."""

    table: Tensor

    def __init__(self, rotary: Rotary, shape: Sequence[int]):
        super().__init__()
        self.register_buffer("table", rotary.get_embed(shape).detach(), persistent=False)

    def get_embed(self, shape: Sequence[int]) -> Tensor:
        """The table. The grid is that of the size at which it was made."""
        return self.table


def has_rotary(module: object) -> bool:
    """Whether a network of timm rotates as DINOv3 does."""
    return type(getattr(module, "rope", None)).__name__ == "RotaryEmbeddingDinoV3"
