"""What the teacher said about replayable views, stored once and read for the rest of training.

A view is a function of (image, index, view number, seed), so with `replay: K` the epochs cycle through K views of each
image (times the recipes of the scheme) and the teacher runs only the first time it sees one. The store is filled during
the first pass, or ahead of it by `ssl-kd targets`; a killed fill goes on where it stopped.

A row is the embedding, and behind it the tokens and tapped layers that the objective reads (patches take much more
room: 196 of 384 numbers are 150 kB a view).

Rows are float16 in one memory-mapped file, (views, images, width), beside one CRC-32 per row. A row counts only while its
checksum fits, so a torn write is found and done again. The file's name is a digest of everything that decides the
targets (weights, feature, images, recipes, size, seed, precision): another question is another file, never a stale one.
"""

from __future__ import annotations

import hashlib
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import reserve
from ssl_kd.types import Features

VERSION = 2  # raise it when a change of code changes what a view or a target is


# Of each part of a row: its name (a tapped layer's own), its shape for one image, how many numbers that is.
Layout = Sequence[tuple[str, tuple[int, ...], int]]
EMBEDDING, TOKENS = "", "tokens of "  # no layer of a network can be called so


def _parts(features: Features) -> list[tuple[str, Tensor]]:
    tokens = [] if features.tokens is None else [(TOKENS, features.tokens)]
    return [(EMBEDDING, features.embedding), *tokens, *sorted(features.layers.items())]


def layout_of(features: Features) -> Layout:
    """How the rows of such features are laid out."""
    return [(name, tuple(part.shape[1:]), part[0].numel()) for name, part in _parts(features)]


def flattened(features: Features) -> Tensor:
    """Features of N views as rows (N, width), float32."""
    return torch.cat([part.float().flatten(1) for _, part in _parts(features)], dim=1)


def unflattened(rows: Tensor, layout: Layout, device: torch.device | str = "cpu") -> Features:
    """The inverse of `flattened`."""
    pieces = rows.to(device).split([width for _, _, width in layout], dim=1)
    parts = {name: piece.unflatten(1, shape) for (name, shape, _), piece in zip(layout, pieces, strict=True)}
    return Features(parts.pop(EMBEDDING), parts.pop(TOKENS, None), parts)


class TargetCache:
    """Teacher outputs (views, images, width), float16 on disk; `get` and `put` work on rows of one view number."""

    def __init__(self, folder: str | Path, question: Any, views: int, images: int, width: int):
        self.key = hashlib.sha256(repr((VERSION, question, views, images, width)).encode()).hexdigest()[:16]
        self.folder = Path(folder)
        self.shape = (views, images, width)
        self.path = self.folder / f"{self.key}.f16"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            self.rows = self._open(self.path, np.float16, self.shape)
            self.sums = self._open(self.path.with_suffix(".crc"), np.uint32, self.shape[:2])
        except OSError as error:
            raise UserError(
                f"targets: cannot keep them in {self.folder} ({error.strerror or error}); use replay 0"
            ) from error

    @property
    def bytes(self) -> int:
        """Size on disk when full."""
        views, images, width = self.shape
        return views * images * (2 * width + 4)

    def _make_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if not self.path.exists() and self.bytes > 0.95 * free:
            raise UserError(
                f"targets: {self.shape[0]} views of {self.shape[1]:,} images need {self.bytes / 1e9:.1f} GB, but "
                f"{self.folder} has {free / 1e9:.1f} GB free; lower replay, or use 0 to keep none"
            )

    @staticmethod
    def _open(path: Path, kind: type, shape: tuple[int, ...]) -> np.memmap:
        """The whole file, zeros where nothing was written; a file of another size is not ours to trust."""
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        if not path.exists() or path.stat().st_size != size:
            try:
                with open(path, "wb") as file:
                    reserve(file, size)
            except OSError:
                path.unlink(missing_ok=True)
                raise
        return np.memmap(path, kind, "r+", shape=shape)

    def get(self, view: int, index: np.ndarray) -> Tensor | None:
        """Rows of one view as float32 (B, width), or None unless every one of them is there and whole."""
        sums = self.sums[view, index]
        if not sums.all():
            return None
        rows = self.rows[view, index]
        if any(_sum(row) != known for row, known in zip(rows, sums.tolist(), strict=True)):
            return None
        return torch.from_numpy(rows.astype(np.float32))

    def put(self, view: int, index: np.ndarray, embeddings: Tensor) -> Tensor:
        """Keep rows and return them as they will be read: rounded to float16. UserError if they do not fit in it."""
        rows = embeddings.detach().to("cpu", torch.float16).numpy()
        if not np.isfinite(rows).all():
            raise UserError("targets: the teacher's embeddings overflow float16 (or are not numbers); use replay 0")
        self.rows[view, index] = rows
        self.sums[view, index] = [_sum(row) for row in rows]
        return torch.from_numpy(rows.astype(np.float32))

    def filled(self) -> float:
        """Share of rows that are there, 0 to 1 (their checksums are tried when they are read)."""
        return float(np.count_nonzero(self.sums)) / self.sums.size

    def flush(self) -> None:
        """Ask the system to write everything out: rows before the sums that vouch for them."""
        self.rows.flush()
        self.sums.flush()


def _sum(row: np.ndarray) -> int:
    return zlib.crc32(row.tobytes()) or 1  # 0 means empty
