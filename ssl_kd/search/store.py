"""Vectors and names on disk that only ever grow, and a journal that says what counts.

    index.json     what the vectors are, and how many bytes of the other files count: sealed, replaced in one step
    vectors.f32    rows of float32, one behind the other; read through a memory map
    names.utf8     the names, one behind the other; rows.bin: where each ends, and its hash
    journal.jsonl  one line for each addition (with check sums of its part of the three files) and each removal
    lock           held by the one process that writes

Data are written and synced first, `index.json` last: whatever moment a process is killed at, the index is what it was
before the step or after it. Bytes beyond those that count are what a killed writer left; the next one cuts them off.
Every byte that counts has a check sum. Names, journal and `index.json` are compared when an index is opened, vectors
before they are first searched.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np

from ssl_kd.errors import UserError, one_line, shown_name
from ssl_kd.runtime.files import atomic_text, locked, sealed, sweep, unsealed
from ssl_kd.runtime.ownership import MARKER, Kind, mark, require_ours
from ssl_kd.validation import built

VERSION = 1
HEAD, VECTORS, NAMES, ROWS, JOURNAL, LOCK = (
    "index.json",
    "vectors.f32",
    "names.utf8",
    "rows.bin",
    "journal.jsonl",
    "lock",
)
GROWING = (VECTORS, NAMES, ROWS, JOURNAL)
FAST, NEW = "fast-*.faiss", "fast-new.faiss"  # approximate indexes; the name of one that is being written
ROW = np.dtype([("end", "<i8"), ("hash", "<u8")])
LARGEST_HEAD = 1 << 20
LONGEST_NAME = 1 << 16
INDEX = Kind("index", "out", "an index", (HEAD, JOURNAL, ROWS, NAMES, VECTORS, LOCK, FAST), lambda folder: False)

Runs = list[list[int]]  # [[first, one behind the last], ...] of row numbers


@dataclass(frozen=True)
class Head:
    """What `index.json` says.

    about: what the vectors are (see `ssl_kd.search.index`). bytes: how many of each growing file count. chain: SHA-256
    of the journal. fast: the approximate index beside the vectors, if there is one.
    """

    about: dict[str, object]
    width: int
    rows: int = 0
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(GROWING, 0))
    chain: str = hashlib.sha256().hexdigest()
    fast: dict[str, object] = field(default_factory=dict)
    version: int = VERSION


@dataclass(frozen=True)
class Added:
    """One addition: rows from `first` on, where they came from, and the check sums of their bytes."""

    first: int
    rows: int
    begin: int  # of the names, in bytes
    names: int  # bytes
    sums: tuple[int, int, int]  # CRC-32 of vectors, names, rows
    source: str
    root: str


class Store:
    """An opened index, as it was at that moment. UserError in one line for one that is missing or damaged.

    vectors: (N, D) float32, memory-mapped, removed rows among them; gone: numbers of those, ascending.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._sound = 0  # additions whose vectors were compared with their check sums
        self._named = 0  # and those whose names were
        self.reload()

    def reload(self) -> None:
        """Read what is on the disk by now."""
        self.head = read_head(self.folder)
        with _damage(self.folder, "is damaged"):
            for name in GROWING:
                if (size := os.path.getsize(self.folder / name)) < self.head.bytes[name]:
                    raise ValueError(f"{name} ends after {size:,} of {self.head.bytes[name]:,} bytes")
            entries, self.chain = _journal(self.folder, self.head)
            self.additions, self.gone = _replayed(entries, self.head)
            self._names = _mapped(self.folder / NAMES, np.dtype(np.uint8), self.head.bytes[NAMES])
            self._rows = _mapped(self.folder / ROWS, ROW, self.head.rows)
            self.vectors = _mapped(self.folder / VECTORS, np.dtype("<f4"), self.head.rows * self.head.width).reshape(
                self.head.rows, self.head.width
            )
            self._compare_names()

    def __len__(self) -> int:
        return self.head.rows - len(self.gone)

    # ------------------------------------------------------------------------------------------------- reading

    def check(self) -> None:
        """Compare all vectors with their check sums, each once. UserError where a bit has changed."""
        with _damage(self.folder, "is damaged"):
            for number, one in enumerate(self.additions[self._sound :], self._sound):
                part = self.vectors[one.first : one.first + one.rows]
                if zlib.crc32(part.data if part.size else b"") != one.sums[0]:
                    raise ValueError(f"{VECTORS} has changed in rows {one.first:,} to {one.first + one.rows - 1:,}")
                self._sound = number + 1

    def name(self, row: int) -> str:
        """The name of a row."""
        begin = int(self._rows["end"][row - 1]) if row else 0
        return self._names[begin : int(self._rows["end"][row])].tobytes().decode("utf-8", "surrogateescape")

    def root(self, row: int) -> tuple[str, str]:
        """Where a row's picture came from: its source by name, and as a whole path (empty where it has none)."""
        at = int(np.searchsorted([one.first for one in self.additions], row, side="right")) - 1
        return self.additions[at].source, self.additions[at].root

    def live(self) -> np.ndarray:
        """Numbers of the rows that were not removed, ascending."""
        return np.setdiff1d(np.arange(self.head.rows), self.gone, assume_unique=True)

    def rows_of(self, names: Sequence[str]) -> np.ndarray:
        """The row of each name (n,), -1 for those that are not there. Some 20 bytes of memory for each row."""
        hashes, found = np.fromiter(map(name_hash, names), np.uint64, len(names)), np.full(len(names), -1, np.int64)
        if not len(names) or not self.head.rows:
            return found
        order = np.argsort(hashes, kind="stable")
        wanted, stored = hashes[order], np.ascontiguousarray(self._rows["hash"])
        first = np.searchsorted(wanted, stored)
        rows = np.flatnonzero(wanted[np.minimum(first, len(wanted) - 1)] == stored)
        for row in np.setdiff1d(rows, self.gone, assume_unique=True).tolist():
            place, name = int(first[row]), self.name(row)
            while place < len(wanted) and wanted[place] == stored[row]:  # names may share a hash: the text decides
                if names[int(order[place])] == name:
                    found[order[place]] = row
                place += 1
        return found

    def _compare_names(self) -> None:
        """Compare what came since the last time."""
        for number, one in enumerate(self.additions[self._named :], self._named):
            names = self._names[one.begin : one.begin + one.names]
            rows = self._rows[one.first : one.first + one.rows]
            if (zlib.crc32(names.tobytes()), zlib.crc32(rows.tobytes())) != one.sums[1:]:
                raise ValueError(f"names of rows {one.first:,} to {one.first + one.rows - 1:,} have changed")
            self._named = number + 1

    # ------------------------------------------------------------------------------------------------- writing

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """The one who may write. UserError while another process does; what is on the disk by now is read first."""
        with _locked(self.folder):
            self.reload()
            with ExitStack() as opened:
                files = {name: opened.enter_context(_opened(self.folder / name)) for name in GROWING}
                writer = Writer(self, files)
                writer.cut()
                yield writer


class Writer:
    """Adds and removes; nothing counts before `commit`, and a full disk leaves what there was."""

    def __init__(self, store: Store, files: dict[str, IO[bytes]]):
        self.store, self._files = store, files
        self._begin()

    def _begin(self) -> None:
        self._head = self.store.head
        self._lines: list[str] = []

    def cut(self) -> None:
        """Cut off what does not count."""
        for name, file in self._files.items():
            file.truncate(self.store.head.bytes[name])
        self._sweep()

    def _sweep(self) -> None:
        sweep(self.store.folder, (NEW, HEAD))
        for path in self.store.folder.glob(FAST):
            if path.name != self.store.head.fast.get("file"):
                path.unlink(missing_ok=True)

    def add(self, names: Sequence[str], vectors: np.ndarray, source: str = "", root: str = "") -> None:
        """Append rows (n, D) float32 with their names. They count from the next `commit` on."""
        if vectors.shape != (len(names), self._head.width) or vectors.dtype != np.float32:
            raise ValueError(f"expected {len(names)} rows of {self._head.width} float32, got {vectors.shape}")
        if not names:
            return
        texts = [name.encode("utf-8", "surrogateescape") for name in names]
        if any(len(text) > LONGEST_NAME or not text for text in texts):
            raise UserError(f"names: expected 1 to {LONGEST_NAME:,} bytes for each")
        rows = np.empty(len(names), ROW)
        rows["end"] = np.cumsum([len(text) for text in texts]) + self._head.bytes[NAMES]
        rows["hash"] = [name_hash(name) for name in names]
        parts = {VECTORS: np.ascontiguousarray(vectors).tobytes(), NAMES: b"".join(texts), ROWS: rows.tobytes()}
        for name, data in parts.items():
            self._append(name, data)
        sums = [zlib.crc32(data) for data in parts.values()]
        line = {"do": "add", "rows": len(names), "names": len(parts[NAMES]), "sums": sums}
        self._note(line | {"source": source, "root": root}, len(names))

    def remove(self, rows: Iterable[int]) -> None:
        """Take rows out of every later search, from the next `commit` on."""
        if runs := _runs(rows):
            self._note({"do": "remove", "runs": runs}, 0)

    def commit(self, fast: dict[str, object] | None = None) -> None:
        """Make what was added and removed count, on the disk. fast: a new approximate index to be named."""
        before, lines = self.store.head, "".join(self._lines).encode()
        chain = self.store.chain.copy()
        chain.update(lines)
        self._append(JOURNAL, lines)
        try:
            for file in self._files.values():
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error) from error
        fast = before.fast if fast is None else fast
        head = replace(self._head, fast=fast, chain=chain.hexdigest())
        try:
            atomic_text(self.store.folder / HEAD, sealed(asdict(head)))
        except UserError:
            self._undo()
            raise
        self.store.reload()
        self._begin()
        self._sweep()

    def _note(self, entry: dict[str, object], rows: int) -> None:
        self._lines.append(json.dumps(entry | {"time": round(time.time())}) + "\n")
        self._head = replace(self._head, rows=self._head.rows + rows)

    def _append(self, name: str, data: bytes) -> None:
        file, left = self._files[name], memoryview(data)
        try:
            file.seek(self._head.bytes[name])
            while left:  # a nearly full disk takes a part
                left = left[file.write(left) :]
        except OSError as error:
            raise self._failed(error) from error
        self._head = replace(self._head, bytes={**self._head.bytes, name: self._head.bytes[name] + len(data)})

    def _failed(self, error: OSError) -> UserError:
        self._undo()
        return UserError(
            f"{self.store.folder}: could not be written ({error.strerror or error}); nothing of it is lost: free some "
            "space and give the command again"
        )

    def _undo(self) -> None:
        self._begin()
        self.cut()


def create(folder: Path, width: int, about: dict[str, object]) -> Store:
    """A new, empty index. UserError, and nothing touched, where something else lies there."""
    require_ours(folder, INDEX)
    if (folder / HEAD).exists():
        raise UserError(f"out: {folder} is an index already; add to it, or remove it first")
    mark(folder, INDEX)
    with _locked(folder):
        for name in GROWING:
            (folder / name).touch()
        atomic_text(folder / HEAD, sealed(asdict(Head(about, width))))
    return Store(folder)


def is_index(folder: Path) -> bool:
    """Whether an index is there, whole or not."""
    return (folder / HEAD).is_file() and (folder / MARKER).is_file()


def name_hash(name: str) -> int:
    """64 bits of a name."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


# ------------------------------------------------------------------------------------------------------ files


@contextmanager
def _damage(folder: Path, what: str) -> Iterator[None]:
    """Whatever damaged bytes make of reading, in one line."""
    try:
        yield
    except (OSError, ValueError, TypeError, KeyError, LookupError, RecursionError, OverflowError) as error:
        if isinstance(error, UserError):
            raise
        why = error.strerror or str(error) if isinstance(error, OSError) else one_line(error, 160)
        raise UserError(
            f"{shown_name(str(folder))}: the index {what}: {why}; put a copy in its place, or build it anew"
        ) from None


def read_head(folder: Path) -> Head:
    """What `index.json` of a folder says. UserError where there is none or it is damaged."""
    path = folder / HEAD
    if not path.is_file():
        raise UserError(f"{shown_name(str(folder))}: no index there; make one with ssl-kd index build")
    with _damage(folder, "is damaged"):
        if path.stat().st_size > LARGEST_HEAD:
            raise ValueError(f"{HEAD} is too large")
        found = unsealed(path.read_text(encoding="utf-8"))
        if found.get("version") != VERSION:
            raise UserError(
                f"{shown_name(str(folder))}: is an index of version {one_line(found.get('version'), 20)}, and this "
                f"program reads version {VERSION}; update ssl-kd, or build the index anew"
            )
        head = built(Head, found)
        sizes = {VECTORS: head.rows * head.width * 4, ROWS: head.rows * ROW.itemsize}
        if head.width < 1 or set(head.bytes) != set(GROWING) or any(head.bytes[n] != size for n, size in sizes.items()):
            raise ValueError(f"{HEAD} does not fit itself")
        return head


def _journal(folder: Path, head: Head) -> tuple[list[dict[str, object]], hashlib._Hash]:
    """Its lines, and its check sum, ready for more of them."""
    with open(folder / JOURNAL, "rb") as file:
        data = file.read(head.bytes[JOURNAL])
    chain = hashlib.sha256(data)
    if chain.hexdigest() != head.chain:
        raise ValueError(f"{JOURNAL} has changed")
    return [json.loads(line) for line in data.splitlines()], chain


def _replayed(entries: Sequence[dict[str, object]], head: Head) -> tuple[list[Added], np.ndarray]:
    """All additions, and the numbers of the rows that were removed."""
    additions: list[Added] = []
    gone: list[np.ndarray] = []
    rows = begin = 0
    for entry in entries:
        if entry["do"] == "remove":
            runs: Runs = entry["runs"]  # type: ignore[assignment]
            if not all(0 <= first < stop <= rows for first, stop in runs):
                raise ValueError(f"{JOURNAL} removes rows that there are not")
            gone += [np.arange(first, stop) for first, stop in runs]
        else:
            first, second, third = entry["sums"]  # type: ignore[misc]
            sums: tuple[int, int, int] = first, second, third  # type: ignore[has-type]
            count, size = int(str(entry["rows"])), int(str(entry["names"]))
            additions.append(Added(rows, count, begin, size, sums, str(entry["source"]), str(entry["root"])))
            rows, begin = rows + count, begin + size
    if (rows, begin) != (head.rows, head.bytes[NAMES]):
        raise ValueError(f"{JOURNAL} tells of {rows:,} rows and {HEAD} of {head.rows:,}")
    return additions, np.unique(np.concatenate([np.empty(0, np.int64), *gone]))


def _runs(rows: Iterable[int]) -> Runs:
    numbers = np.unique(np.fromiter(rows, np.int64))
    parts = np.split(numbers, np.flatnonzero(np.diff(numbers) > 1) + 1) if len(numbers) else []
    return [[int(part[0]), int(part[-1]) + 1] for part in parts]


def _mapped(path: Path, dtype: np.dtype, count: int) -> np.ndarray:
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(path, "r+b", buffering=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the index's lock, which ends with the process that has it. UserError while another one writes."""
    try:
        file = open(folder / LOCK, "a")  # noqa: SIM115 - closed below, the error of opening is another
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error})") from error
    with file:
        try:
            if not locked(file):
                raise UserError(f"{folder}: another process is writing to this index; try again when it is done")
        except OSError as error:
            raise UserError(f"{folder}: cannot be locked ({error.strerror or error})") from error
        yield
