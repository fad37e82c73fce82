"""The teacher's outputs on replayable views, stored once and read for the rest of training.

A view is a function of (image, index, view number, seed), so with `replay: K` the epochs cycle through K views of each
image (times the recipes of the scheme) and the teacher runs only the first time it sees one. The store is filled during
the first pass, or ahead of it by `ssl-kd targets`; a killed fill resumes where it stopped.

The embedding, the tokens and each tapped layer have a store of their own, so that runs whose objectives read different
parts share those that they have in common (patches take much more room: 196 of 384 numbers are 150 kB a view).

Rows are float16 in one memory-mapped file, (views, images, width), beside one CRC-32 per row, which also covers the
row's place and the store's key. A row counts only while its checksum fits: a torn write, a flipped bit, a file that was
cut or swapped is found and done again. The file's name is a digest of everything that decides the targets: weights,
feature, content of the images, recipes, size, seed, precision, and the versions of the libraries that made them.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import zlib
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import reserve
from ssl_kd.runtime.ownership import Kind, mark, require_ours
from ssl_kd.types import Features

VERSION = 4  # raise it when a change of code changes what a view or a target is
HEX = "[0-9a-f]" * 16
CHUNK = 4096  # rows that are checked at once
MADE_BY = ("ssl-kd", "torch", "timm", "Pillow", "numpy")  # whose versions are part of the key

# Of each part of a teacher's outputs: its name (a tapped layer's own), its shape for one image, how many numbers that is.
Layout = Sequence[tuple[str, tuple[int, ...], int]]
EMBEDDING, TOKENS = "", "tokens of "  # no layer of a network can be called so


def _parts(features: Features) -> list[tuple[str, Tensor]]:
    tokens = [] if features.tokens is None else [(TOKENS, features.tokens)]
    return [(EMBEDDING, features.embedding), *tokens, *sorted(features.layers.items())]


def layout_of(features: Features) -> Layout:
    """Which parts such features have."""
    return [(name, tuple(part.shape[1:]), part[0].numel()) for name, part in _parts(features)]


def _has_only_stores(folder: Path) -> bool:
    names = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    return all(re.fullmatch(r"[0-9a-f]{16}\.(crc|f16)", name) for name in names)


TARGETS = Kind("targets", "targets", "a folder of stored targets", (f"{HEX}.crc", f"{HEX}.f16"), _has_only_stores)


def versions() -> tuple[str, ...]:
    """The versions of what decodes images and runs teachers."""
    return tuple(f"{name} {version(name)}" for name in MADE_BY)


class TargetCache:
    """Teacher outputs (views, images, width), float16 on disk; `get` and `put` work on rows of one view number.

    UserError, and nothing touched, for a folder that holds anything else.
    """

    def __init__(self, folder: str | Path, question: object, views: int, images: int, width: int):
        everything = repr((VERSION, versions(), question, views, images, width))
        self.key = hashlib.sha256(everything.encode()).hexdigest()[:16]
        self.folder = Path(folder)
        self.shape = (views, images, width)
        self.path = self.folder / f"{self.key}.f16"
        require_ours(self.folder, TARGETS)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            self._make_files()
            mark(self.folder, TARGETS)
            self.rows = np.memmap(self.path, np.float16, "r+", shape=self.shape)
            self.sums = np.memmap(self.path.with_suffix(".crc"), np.uint32, "r+", shape=self.shape[:2])
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

    def _make_files(self) -> None:
        """Both files at their full size, zeros where nothing was written; one of another size was cut, and begins anew."""
        views, images, width = self.shape
        sums = self.path.with_suffix(".crc")
        if not _has_size(self.path, views * images * width * 2):
            sums.unlink(missing_ok=True)  # sums must not outlive the rows that they vouch for
            _make(self.path, views * images * width * 2)
        if not _has_size(sums, views * images * 4):
            try:
                _make(sums, views * images * 4)
            except OSError:
                self.path.unlink(missing_ok=True)  # of no use without sums
                raise

    def get(self, view: int, index: np.ndarray) -> Tensor | None:
        """Rows of one view as float32 (B, width), or None unless every one of them is there and whole."""
        sums = self.sums[view, index]
        if not sums.all():
            return None
        rows = self.rows[view, index]
        if self._sums_of(view, index, rows) != sums.tolist():
            return None
        return torch.from_numpy(rows.astype(np.float32))

    def put(self, view: int, index: np.ndarray, embeddings: Tensor) -> Tensor:
        """Keep rows and return them as they will be read: rounded to float16. UserError if they do not fit in it."""
        rows = embeddings.detach().to("cpu", torch.float16).numpy()
        if not np.isfinite(rows).all():
            raise UserError("targets: the teacher's embeddings overflow float16 (or are not numbers); use replay 0")
        self.rows[view, index] = rows
        self.sums[view, index] = self._sums_of(view, index, rows)
        return torch.from_numpy(rows.astype(np.float32))

    def _sums_of(self, view: int, index: np.ndarray, rows: np.ndarray) -> list[int]:
        """A checksum per row, of its bytes, its place and the store; never 0, which means empty."""
        store = zlib.crc32(f"{self.key} {view}".encode())
        return [
            zlib.crc32(row.tobytes(), zlib.crc32(b"%d" % i, store)) or 1
            for i, row in zip(index.tolist(), rows, strict=True)
        ]

    def recheck(self) -> None:
        """Read all rows against their checksums; what does not fit counts as empty from now on."""
        for view in range(self.shape[0]):
            for start in range(0, self.shape[1], CHUNK):
                index = np.arange(start, min(start + CHUNK, self.shape[1]))
                index = index[self.sums[view, index] != 0]
                wrong = index[self.sums[view, index] != self._sums_of(view, index, self.rows[view, index])]
                self.sums[view, wrong] = 0

    def filled(self) -> float:
        """Share of rows that are there, 0 to 1 (their checksums are tried when they are read, and by `recheck`)."""
        return float(np.count_nonzero(self.sums)) / self.sums.size

    def flush(self) -> None:
        """Ask the system to write everything out: rows before the sums that vouch for them."""
        self.rows.flush()
        self.sums.flush()


class TargetStore:
    """All that one teacher said about replayed views: a `TargetCache` for each part of its outputs.

    question: everything that decides the outputs; with a part's name and shape it decides that part's file.
    """

    def __init__(self, folder: str | Path, question: object, views: int, images: int, layout: Layout):
        self.layout, self.shape = layout, (views, images)
        self.parts = {
            name: TargetCache(folder, (question, name, shape), views, images, width) for name, shape, width in layout
        }

    @property
    def path(self) -> Path:
        """The embeddings' file; those of other parts lie beside it."""
        return self.parts[EMBEDDING].path

    def get(self, numbers: Sequence[int], index: np.ndarray, device: torch.device | str = "cpu") -> Features | None:
        """Features of these views of images (B,), view-major; None unless every row of every part is there and whole."""
        found: dict[str, Tensor] = {}
        for name, shape, _ in self.layout:
            rows = [self.parts[name].get(number, index) for number in numbers]
            whole = [part for part in rows if part is not None]
            if len(whole) < len(numbers):
                return None
            found[name] = torch.unflatten(torch.cat(whole).to(device), 1, shape)
        return _features(found)

    def put(self, numbers: Sequence[int], index: np.ndarray, outputs: Features) -> Features:
        """Keep features of these views of images (B,), view-major, and return them as they will be read."""
        found: dict[str, Tensor] = {}
        parts = dict(_parts(outputs))
        for name, shape, _ in self.layout:
            chunks = parts[name].float().flatten(1).chunk(len(numbers))
            kept = [self.parts[name].put(number, index, one) for number, one in zip(numbers, chunks, strict=True)]
            found[name] = torch.unflatten(torch.cat(kept).to(outputs.embedding.device), 1, shape)
        return _features(found)

    def recheck(self) -> None:
        """Read all rows of all parts against their checksums."""
        for part in self.parts.values():
            part.recheck()

    def filled(self) -> float:
        """Share of rows that are there, 0 to 1, of the part that has fewest."""
        return min(part.filled() for part in self.parts.values())

    def flush(self) -> None:
        """Ask the system to write everything out."""
        for part in self.parts.values():
            part.flush()


def _features(parts: dict[str, Tensor]) -> Features:
    return Features(parts.pop(EMBEDDING), parts.pop(TOKENS, None), parts)


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _make(path: Path, size: int) -> None:
    try:
        with open(path, "wb") as file:
            reserve(file, size)
    except OSError:
        path.unlink(missing_ok=True)
        raise
