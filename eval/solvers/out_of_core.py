"""Rows of a bank that stays on disk: what a probe reads where a tensor would not fit into memory.

A `Rows` is asked like a tensor of shape (N, D) - `rows[part]`, `rows.split(n)`, `rows.mean(0)` - and reads float32 blocks
from the array behind it, which may be memory-mapped, float16 and larger than memory. What has to be kept as large as
the bank lies in a scratch file (in TMPDIR), which is gone when its tensor is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import reserve

from ..banks import blocks

IN_MEMORY = 1 << 31  # bytes as float32; a memory-mapped bank above it stays on disk


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows `numbers` (N,) of an array (M, D), as float32 and through `ready`."""

    features: np.ndarray
    numbers: np.ndarray
    ready: Callable[[Tensor], Tensor] | None = None

    dtype = torch.float32
    device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.numbers), self.features.shape[1]

    def __getitem__(self, which: slice | Tensor) -> Any:
        """Read a block or batch, (n, D); booleans (N,) give `Rows` and read nothing."""
        if isinstance(which, Tensor) and which.dtype == torch.bool:
            return Rows(self.features, self.numbers[which.numpy()], self.ready)
        chosen = self.numbers[which if isinstance(which, slice) else which.numpy()]
        # a run of rows is one read; an index array would be copied row by row
        whole = len(chosen) and chosen[-1] - chosen[0] == len(chosen) - 1 and isinstance(which, slice)
        found = self.features[chosen[0] : chosen[-1] + 1] if whole else self.features[chosen]
        block = torch.from_numpy(np.array(found, dtype=np.float32, order="C"))
        return block if self.ready is None else self.ready(block)

    def index_select(self, _: int, rows: Tensor) -> Tensor:
        """Read the rows of these numbers (n,), as (n, D)."""
        return torch.as_tensor(self[rows])

    def split(self, size: int) -> Iterator[Tensor]:
        """Read all rows, `size` at a time."""
        return (self[part] for part in blocks(len(self), size))

    def mean(self, _: int = 0) -> Tensor:
        """The mean row (D,)."""
        total = sum(block.sum(0, dtype=torch.float64) for block in self.split(8192))
        return torch.as_tensor(total).div(len(self)).float()


def scratch(rows: int, width: int) -> Tensor:
    """Return a float32 tensor (rows, width) that lies in an unnamed file of the temporary folder.

    UserError where that has no room: a mapped file with holes would kill its writer later.
    """
    try:
        with tempfile.TemporaryFile(prefix="ssl_kd-") as file:
            reserve(file, rows * width * 4)
            return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(rows, width)))
    except OSError as error:
        raise UserError(
            f"probe: a bank that stays on disk needs {rows * width * 4 / 1e9:.1f} GB in {tempfile.gettempdir()} "
            f"({error.strerror or error}); free some space or set TMPDIR to another folder"
        ) from error


def stays_on_disk(features: np.ndarray) -> bool:
    """Whether an array is memory-mapped and too large to be copied into memory."""
    mapped = isinstance(features, np.memmap) and getattr(features, "_mmap", None) is not None
    return mapped and features.shape[0] * features.shape[1] * 4 > IN_MEMORY
