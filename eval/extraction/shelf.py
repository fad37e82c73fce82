"""The files of one stored bank, and the proof that they still hold what was written.

`features.npy` (N, D) and `kept.npy` (N,), the images' numbers, are memory-mapped and filled row by row. `state.json` says
how many rows are good and holds a checksum of those rows, of those numbers and of itself, and the bank's own key.
A byte that changed, a file that is cut, lost or another bank's is noticed when the bank is opened; the bank is then
begun anew: first `state.json` says that there is nothing, then the files are made, so it never vouches for holes.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import atomically, reserve

from ..banks import blocks

Sums = tuple[int, int]  # CRC-32 of the features' rows and of the images' numbers


@dataclass(frozen=True)
class State:
    """How far a bank is: images seen, rows written, seconds spent, whether it is done, its sums, the engine's parity."""

    key: str = ""
    images: int = 0
    rows: int = 0
    seconds: float = 0.0
    done: bool = False
    sums: Sums = (0, 0)
    parity: dict[str, float] = field(default_factory=dict)
    programs: str = ""

    def text(self) -> str:
        """Return the state as JSON with a checksum of itself."""
        plain = asdict(self)
        return json.dumps({**plain, "check": _crc(plain)})

    @classmethod
    def of(cls, text: str) -> State:
        """Read what `text` wrote. ValueError or TypeError where a character changed."""
        found: object = json.loads(text)
        if not isinstance(found, dict) or found.pop("check", None) != _crc(found):
            raise ValueError("the state's checksum does not fit")
        return cls(**{**found, "sums": tuple(found["sums"])})


def _crc(plain: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(plain, sort_keys=True).encode())


@dataclass(frozen=True)
class Shelf:
    """The folder of one bank of `rows` images, `width` wide, stored as `dtype`."""

    folder: Path
    key: str
    rows: int
    width: int
    dtype: str

    @property
    def state(self) -> State:
        """How far it is, by its own note; nothing where a file is missing, damaged or another bank's."""
        try:
            state = State.of((self.folder / "state.json").read_text(encoding="utf-8"))
            features, kept = self.open("r")
        except (OSError, ValueError, EOFError, TypeError, KeyError, RecursionError, UserError):
            return State(self.key)
        fits = features.shape == (self.rows, self.width) and features.dtype == self.dtype
        fits = fits and kept.shape == (self.rows,) and kept.dtype == np.int64
        return state if fits and state.key == self.key and state.rows <= state.images <= self.rows else State(self.key)

    def checked(self) -> State:
        """The same, after all rows were read and their checksums compared: one pass over the files."""
        state = self.state
        if not state.images:
            return state
        features, kept = self.open("r")
        return state if sums(features[: state.rows], kept[: state.rows]) == state.sums else State(self.key)

    def open(self, mode: Literal["r", "r+", "w+"]) -> tuple[np.memmap, np.memmap]:
        """Map both files; w+ makes them anew, all their room taken. UserError where the disk has none."""
        if mode == "w+":
            return self._begin()
        features = np.lib.format.open_memmap(self._paths[0], mode)
        return features, np.lib.format.open_memmap(self._paths[1], mode)

    @property
    def _paths(self) -> tuple[Path, Path]:
        return self.folder / "features.npy", self.folder / "kept.npy"

    def _begin(self) -> tuple[np.memmap, np.memmap]:
        """A disk that fills up later would kill the writer of a mapped file with holes; leave none and say so now."""
        self.note(State())  # first of all: an older note would vouch for the holes
        try:
            for (
                path
            ) in self._paths:  # whoever still reads the old rows keeps them: a file cut under a map kills its reader
                path.unlink(missing_ok=True)
            features = np.lib.format.open_memmap(self._paths[0], "w+", np.dtype(self.dtype), (self.rows, self.width))
            kept = np.lib.format.open_memmap(self._paths[1], "w+", np.dtype("int64"), (self.rows,))
            for path in self._paths:
                with path.open("r+b") as file:
                    reserve(file, path.stat().st_size)
        except OSError as error:
            for path in self._paths:
                path.unlink(missing_ok=True)
            raise UserError(
                f"features: {self.rows:,} rows of {self.width} numbers cannot be kept in {self.folder} "
                f"({error.strerror or error}); free some space or choose another folder"
            ) from error
        return features, kept

    def note(self, state: State) -> None:
        """Write down how far the bank is. UserError where the disk is full."""
        text = replace(state, key=self.key).text()
        atomically(self.folder / "state.json", lambda file: file.write(text.encode()))

    def missing(self, state: State) -> list[int]:
        """Return the numbers of the images that were seen and could not be read."""
        _, kept = self.open("r")
        return sorted(set(range(state.images)).difference(np.asarray(kept[: state.rows]).tolist()))


def sums(features: np.ndarray, kept: np.ndarray, begun: Sums = (0, 0)) -> Sums:
    """Return the checksums of rows (n, D) and numbers (n,), going on from those of the rows before them."""
    return _summed(features, begun[0]), _summed(kept, begun[1])


def _summed(rows: np.ndarray, total: int) -> int:
    for part in blocks(len(rows)):
        total = zlib.crc32(np.ascontiguousarray(rows[part]).data, total)
    return total
