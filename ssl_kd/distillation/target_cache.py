"""The teacher's outputs on replayable views, stored once and read for the rest of training.

A view is a function of (image, index, view number, seed), so with `replay: K` the epochs cycle through K views of each
image (times the recipes of the scheme) and the teacher runs only the first time it sees one. The store is filled during
the first pass, or ahead of it by `ssl-kd targets`; a killed fill resumes where it stopped.

The embedding, the tokens and each tapped layer have a store of their own, so that runs whose objectives read different
parts share those that they have in common (patches take much more room: 196 of 384 numbers are 150 kB a view).

Patches and layers may be kept in four bits a number (`four_bits`): their levels lie in a file of their own, `<key>.levels`,
fitted before the first row on some images, and are part of what a row's checksum covers.

Rows are float16 (or packed bytes) in one memory-mapped file, (views, images, width), beside one CRC-32 per row, which also covers the
row's place and the store's key. A row counts only while its checksum fits: a torn write, a flipped bit, a file that was
cut or swapped is found and done again. The file's name is a digest of everything that decides the targets: weights,
feature, content of the images, recipes, size, seed, precision, and the versions of the libraries that made them.

A folder in a store (s3://, gs://, hf://) is worked on as a copy in the cache: files that are whole there are fetched, and what
was filled here goes there once every row is in it, rows before the sums that vouch for them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_kd.distillation.four_bits import LEVELS, FourBits, fit_levels, packed_width
from ssl_kd.errors import UserError
from ssl_kd.runtime.download import Check, download
from ssl_kd.runtime.files import reserve
from ssl_kd.runtime.ownership import Kind, mark, require_ours
from ssl_kd.runtime.run_dir import UNREADABLE
from ssl_kd.runtime.state import load_state, save_state
from ssl_kd.runtime.stores import about, in_store, local_folder, put
from ssl_kd.runtime.versions import installed
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
    return all(re.fullmatch(rf"[0-9a-f]{{16}}\.({'|'.join(SUFFIXES)})", name) for name in names)


SUFFIXES = ("crc", "f16", "u4", "levels")
TARGETS = Kind(
    "targets", "targets", "a folder of stored targets", tuple(f"{HEX}.{one}" for one in SUFFIXES), _has_only_stores
)


def versions() -> tuple[str, ...]:
    """The versions of what decodes images and runs teachers."""
    return tuple(f"{name} {installed(name)}" for name in MADE_BY)


class TargetCache:
    """Teacher outputs (views, images, width), float16 on disk; `get` and `put` work on rows of one view number.

    vector: above 0 rows are vectors of that length, one after another, kept in four bits a number, once `fit` has had a
    sample of them. UserError, and nothing touched, for a folder that holds anything else.
    """

    def __init__(self, folder: str | Path, question: object, views: int, images: int, width: int, vector: int = 0):
        everything = repr((VERSION, versions(), question, views, images, width, *([vector] if vector else [])))
        self.key = hashlib.sha256(everything.encode()).hexdigest()[:16]
        self.there = str(folder).rstrip("/") if in_store(folder) else ""  # the folder of a store
        self.folder = local_folder("targets", self.there) if self.there else Path(folder)
        self.shape = (views, images, width)
        self.vector = vector
        self.codec: FourBits | None = None  # until levels are known
        self.kind = np.dtype(np.uint8 if vector else np.float16)
        self.columns = packed_width(width) if vector else width
        self.path = self.folder / f"{self.key}.{'u4' if vector else 'f16'}"
        self.seal = self.key.encode()  # what vouches for all rows
        require_ours(self.folder, TARGETS)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room()
            self._make_files()
            mark(self.folder, TARGETS)
            self._map()
            if self.there and self.filled() < 1 and self._fetch():
                self._map()
        except OSError as error:
            raise UserError(
                f"targets: cannot keep them in {self.folder} ({error.strerror or error}); use replay 0"
            ) from error
        if vector:
            self._read_levels()

    @property
    def must_fit(self) -> bool:
        """Whether `fit` is wanted before anything is put."""
        return bool(self.vector) and self.codec is None

    def _map(self) -> None:
        self.rows = np.memmap(self.path, self.kind, "r+", shape=(*self.shape[:2], self.columns))
        self.sums = np.memmap(self.path.with_suffix(".crc"), np.uint32, "r+", shape=self.shape[:2])

    def _fetch(self) -> bool:
        """Whether the store has all files, which are here then. Each row is compared with its sum when it is read."""
        *others, sums = self._files()
        if about(f"{self.there}/{sums.name}") is None:
            return False
        for path in (*others, sums):
            check = Check(size=path.stat().st_size) if path.exists() and path.suffix != ".levels" else None
            download(f"{self.there}/{path.name}", path, check, quiet=True)
        return True

    def _files(self) -> list[Path]:
        """What makes the store, the sums that vouch for the others last."""
        suffixes = (".levels", self.path.suffix, ".crc") if self.vector else (self.path.suffix, ".crc")
        return [self.path.with_suffix(suffix) for suffix in suffixes]

    @property
    def bytes(self) -> int:
        """Size on disk when full."""
        views, images, width = self.shape
        return views * images * _row_bytes(width, bool(self.vector))

    def fit(self, sample: Tensor) -> None:
        """Find the levels of each dimension on vectors (N, vector), and keep them; rows of other levels count as empty."""
        levels = fit_levels(sample)
        save_state(self.path.with_suffix(".levels"), {"levels": levels})
        self._lay(levels)

    def _read_levels(self) -> None:
        """Take the levels of an intact file; one that is damaged or missing leaves `must_fit` set."""
        try:
            levels = load_state(self.path.with_suffix(".levels"))["levels"]
        except UNREADABLE:
            return
        if isinstance(levels, Tensor) and levels.shape == (self.vector, LEVELS):
            self._lay(levels)

    def _lay(self, levels: Tensor) -> None:
        self.codec = FourBits(levels)
        self.seal = self.key.encode() + b"%d" % zlib.crc32(levels.numpy().tobytes())

    def _make_room(self) -> None:
        free = shutil.disk_usage(self.folder).free
        if not self.path.exists() and self.bytes > 0.95 * free:
            raise UserError(
                f"targets: {self.shape[0]} views of {self.shape[1]:,} images need {self.bytes / 1e9:.1f} GB, but "
                f"{self.folder} has {free / 1e9:.1f} GB free; lower replay, or use 0 to keep none"
            )

    def _make_files(self) -> None:
        """Both files at their full size, zeros where nothing was written; one of another size was cut, and begins anew."""
        views, images, _ = self.shape
        sums, size = self.path.with_suffix(".crc"), views * images * self.columns * self.kind.itemsize
        if not _has_size(self.path, size):
            sums.unlink(missing_ok=True)  # sums must not outlive the rows that they vouch for
            _make(self.path, size)
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
        return self._read(rows)

    def put(self, view: int, index: np.ndarray, embeddings: Tensor) -> Tensor:
        """Keep rows and return them as they will be read: rounded. UserError if they do not fit into float16."""
        given = embeddings.detach().cpu()
        if not given.half().isfinite().all():
            raise UserError("targets: the teacher's embeddings overflow float16 (or are not numbers); use replay 0")
        rows = self._codec.encode(given) if self.vector else given.half().numpy()
        self.rows[view, index] = rows
        self.sums[view, index] = self._sums_of(view, index, rows)
        return self._read(rows)

    def _read(self, rows: np.ndarray) -> Tensor:
        """Stored rows as float32 (B, width)."""
        if self.vector:
            return self._codec.decode(rows, self.shape[2])
        return torch.from_numpy(rows.astype(np.float32))

    @property
    def _codec(self) -> FourBits:
        assert self.codec is not None, "fit comes first"
        return self.codec

    def _sums_of(self, view: int, index: np.ndarray, rows: np.ndarray) -> list[int]:
        """A checksum per row, of its bytes, its place and the store; never 0, which means empty."""
        store = zlib.crc32(self.seal + b" %d" % view)
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
        """Ask the system to write everything out: rows before the sums that vouch for them; to a store when all are there."""
        self.rows.flush()
        self.sums.flush()
        if not self.there or self.filled() < 1 or os.environ.get("RANK", "0") != "0":
            return
        files = self._files()
        if about(f"{self.there}/{files[-1].name}") is None:
            for path in files:
                put(path, f"{self.there}/{path.name}")


class TargetStore:
    """All that one teacher said about replayed views: a `TargetCache` for each part of its outputs.

    question: everything that decides the outputs; with a part's name and shape it decides that part's file.
    bits: 16, or 4 for patches and layers, whose levels must then be fitted where `must_fit` says so.
    """

    def __init__(self, folder: str | Path, question: object, views: int, images: int, layout: Layout, bits: int = 16):
        self.layout, self.shape = layout, (views, images)
        self.parts = {
            name: TargetCache(
                folder, (question, name, shape), views, images, width, _vector(shape) if _is_packed(name, bits) else 0
            )
            for name, shape, width in layout
        }

    @property
    def must_fit(self) -> bool:
        """Whether `fit` is wanted before anything is put or read."""
        return any(part.must_fit for part in self.parts.values())

    def fit(self, sample: Features) -> None:
        """Find the levels of every part that has none yet on the outputs for some images."""
        for name, part in _parts(sample):
            if name in self.parts and self.parts[name].must_fit:
                vectors = _rows(part.detach().cpu().float(), self.parts[name])
                self.parts[name].fit(torch.unflatten(vectors, 1, (-1, self.parts[name].vector)).flatten(0, 1))

    @property
    def path(self) -> str:
        """The embeddings' file, or object; those of other parts lie beside it."""
        part = self.parts[EMBEDDING]
        return f"{part.there}/{part.path.name}" if part.there else str(part.path)

    def get(self, numbers: Sequence[int], index: np.ndarray, device: torch.device | str = "cpu") -> Features | None:
        """Features of these views of images (B,), view-major; None unless every row of every part is there and whole."""
        found: dict[str, Tensor] = {}
        for name, shape, _ in self.layout:
            rows = [self.parts[name].get(number, index) for number in numbers]
            whole = [part for part in rows if part is not None]
            if len(whole) < len(numbers):
                return None
            found[name] = _shaped(torch.cat(whole).to(device), shape, self.parts[name])
        return _features(found)

    def put(self, numbers: Sequence[int], index: np.ndarray, outputs: Features) -> Features:
        """Keep features of these views of images (B,), view-major, and return them as they will be read."""
        found: dict[str, Tensor] = {}
        parts = dict(_parts(outputs))
        for name, shape, _ in self.layout:
            chunks = _rows(parts[name].float(), self.parts[name]).chunk(len(numbers))
            kept = [self.parts[name].put(number, index, one) for number, one in zip(numbers, chunks, strict=True)]
            found[name] = _shaped(torch.cat(kept).to(outputs.embedding.device), shape, self.parts[name])
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


def bytes_of(part: str, width: int, bits: int) -> int:
    """What one part of a teacher's outputs takes for one view of an image, with its checksum. bits: as of a `TargetStore`."""
    return _row_bytes(width, _is_packed(part, bits))


def _row_bytes(width: int, packed: bool) -> int:
    return (packed_width(width) if packed else 2 * width) + 4


def _is_packed(part: str, bits: int) -> bool:
    """Whether a part is kept in four bits a number: embeddings never are."""
    return bits == 4 and part != EMBEDDING


def _vector(shape: tuple[int, ...]) -> int:
    """How many dimensions have levels of their own: the channels of a map (C, H, W), else the last axis."""
    return shape[0] if len(shape) == 3 else shape[-1]


def _rows(part: Tensor, store: TargetCache) -> Tensor:
    """(B, ...) -> (B, width); a map that is kept in four bits with its channels last."""
    return (part.movedim(1, -1) if part.ndim == 4 and store.vector else part).flatten(1)


def _shaped(rows: Tensor, shape: tuple[int, ...], store: TargetCache) -> Tensor:
    """`_rows` undone."""
    if len(shape) == 3 and store.vector:
        return torch.unflatten(rows, 1, (*shape[1:], shape[0])).movedim(-1, 1)
    return torch.unflatten(rows, 1, shape)


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
