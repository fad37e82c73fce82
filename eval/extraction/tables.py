"""Embeddings as files that other programs read, of any number of rows: `.npy` with ids beside it, and Parquet.

    x.npy      (N, D) float32; x.ids.txt: the pictures' names, one on each line; x.json: what made them, sealed
    x.parquet  columns `id` (text) and `embedding` (list of D float32), what made them in the file's metadata (`ssl_kd`)

Rows go through in parts, so memory does not grow with N, and a table appears whole or not at all. While pictures are embedded,
the rows lie in `x.npy.work` (see `ssl_kd.search.store`), which survives a kill: the same call resumes there. The three files
of a `.npy` are written in there as well, and take their places when all are whole; a call that finds them goes on with that.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssl_kd.errors import UserError, one_line
from ssl_kd.runtime.files import atomic_text, atomically, part_of, put_in_place, sealed, sweep, unsealed

PART = 1 << 14  # rows that are written at a time
KEY = b"ssl_kd"
PARQUET = "parquet: needs pyarrow, which is not installed; pip install 'ssl-kd[parquet]', or write .npy"

Part = tuple[list[str], np.ndarray]  # names, rows (n, D) float32


@dataclass(frozen=True)
class Rows:
    """Rows of a width, in parts, and what made them: plain values for JSON."""

    count: int
    width: int
    about: Mapping[str, Any]
    parts: Callable[[], Iterator[Part]]


@dataclass(frozen=True)
class Kind:
    """A kind of file: how it is written and read, and which files it is, the one that vouches for the others last.

    Reading gives None for a file that is none of ours. `finish` completes what a killed writer had whole but not in its
    place. `lines`: its names are lines of text, so none may hold a line break.
    """

    write: Callable[[Path, Rows], None]
    read: Callable[[Path], Rows | None]
    files: Callable[[Path], tuple[Path, ...]]
    finish: Callable[[Path], None]
    lines: bool


def kind_of(path: Path) -> Kind:
    """The kind by a file's ending. UserError for another, and without pyarrow."""
    if path.suffix not in KINDS:
        raise UserError(f"out: expected a file that ends in .npz, {', '.join(KINDS)}, got {path.name}")
    if path.suffix == ".parquet":
        _pyarrow()
    return KINDS[path.suffix]


def joined(*tables: Rows) -> Rows:
    """One table behind the other; what made them is the last one's."""

    def parts() -> Iterator[Part]:
        for table in tables:
            yield from table.parts()

    return Rows(sum(table.count for table in tables), tables[-1].width, tables[-1].about, parts)


# ------------------------------------------------------------------------------------------------------- .npy


def _beside(path: Path) -> tuple[Path, Path]:
    return path.with_suffix(".ids.txt"), path.with_suffix(".json")


def _files_of_npy(path: Path) -> tuple[Path, ...]:
    ids, about = _beside(path)
    return ids, path, about


def _write_npy(path: Path, rows: Rows) -> None:
    head = {"descr": "<f4", "fortran_order": False, "shape": (rows.count, rows.width)}

    def write(file: IO[bytes]) -> None:
        np.lib.format.write_array_header_1_0(file, head)
        for _, part in rows.parts():
            file.write(np.ascontiguousarray(part, "<f4").data)

    def name(file: IO[bytes]) -> None:
        for names, _ in rows.parts():
            file.write("".join(f"{one}\n" for one in names).encode("utf-8", "surrogateescape"))

    ready = _ready(path)
    ready[0].parent.mkdir(parents=True, exist_ok=True)
    sweep(ready[0].parent, [file.name for file in ready])
    atomically(ready[0], name)
    atomically(ready[1], write)
    known = {"ssl_kd": "embeddings", "rows": rows.count, "width": rows.width, **rows.about}
    atomic_text(ready[2], sealed(known | {"bytes": [file.stat().st_size for file in (ready[1], ready[0])]}))
    _finish_npy(path)


def _ready(path: Path) -> list[Path]:
    """Where the files of a table lie until all are whole."""
    return [path.with_name(f"{path.name}.work") / "ready" / file.name for file in _files_of_npy(path)]


def _finish_npy(path: Path) -> None:
    """Put the files in their places, if the last is there: then all are whole. Among several processes the first does it."""
    ready = _ready(path)
    if os.environ.get("RANK", "0") != "0":
        while _is_ready(ready[2]):
            time.sleep(0.1)
        return
    if not _is_ready(ready[2]):
        return
    for file, place in zip(ready, _files_of_npy(path), strict=True):
        try:
            if file.exists():  # one that is not is in its place
                put_in_place(file, place)
        except OSError as error:
            raise UserError(f"{place}: could not be written ({error.strerror}); the same call resumes there") from error
    with contextlib.suppress(OSError):  # where somebody else has put something in there
        ready[0].parent.rmdir()


def _is_ready(about: Path) -> bool:
    try:
        return unsealed(about.read_text())["ssl_kd"] == "embeddings"
    except (OSError, ValueError, KeyError):
        return False


def _read_npy(path: Path) -> Rows | None:
    ids, beside = _beside(path)
    try:
        about = unsealed(beside.read_text())
        features = np.load(path, mmap_mode="r", allow_pickle=False)
        whole = about.pop("bytes") == [os.path.getsize(path), os.path.getsize(ids)]
        if (
            about.pop("ssl_kd") != "embeddings"
            or not whole
            or features.shape != (about.pop("rows"), about.pop("width"))
        ):
            return None
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None

    def parts() -> Iterator[Part]:
        with open(ids, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
            for begin in range(0, len(features), PART):
                some = np.asarray(features[begin : begin + PART])
                yield [next(file).rstrip("\n") for _ in range(len(some))], some

    return Rows(len(features), features.shape[1], about, parts)


# ---------------------------------------------------------------------------------------------------- Parquet


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(PARQUET) from error
    return pyarrow


def _write_parquet(path: Path, rows: Rows) -> None:
    pa = _pyarrow()
    columns = [("id", pa.string()), ("embedding", pa.list_(pa.float32(), rows.width))]
    schema = pa.schema(columns, metadata={KEY: json.dumps(dict(rows.about)).encode()})
    part = part_of(path)
    try:
        with pa.parquet.ParquetWriter(part, schema) as file:
            for names, some in rows.parts():
                flat = pa.array(np.ascontiguousarray(some, np.float32).reshape(-1))
                texts = [one.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for one in names]
                lists = pa.FixedSizeListArray.from_arrays(flat, rows.width)
                file.write_table(pa.Table.from_arrays([pa.array(texts, pa.string()), lists], schema=schema))
        put_in_place(part, path)
    except OSError as error:
        raise UserError(
            f"{path}: could not be written ({error.strerror or one_line(error)}); free some space"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _read_parquet(path: Path) -> Rows | None:
    pa = _pyarrow()
    try:
        file = pa.parquet.ParquetFile(path)
        about = json.loads((file.schema_arrow.metadata or {})[KEY])
        kind = file.schema_arrow.field("embedding").type
        width, count = int(kind.list_size), int(file.metadata.num_rows)
    except (OSError, ValueError, KeyError, AttributeError, pa.ArrowException):
        return None

    def parts() -> Iterator[Part]:
        for batch in pa.parquet.ParquetFile(path).iter_batches(PART, columns=["id", "embedding"]):
            flat = batch.column(1).flatten().to_numpy(zero_copy_only=False)
            yield batch.column(0).to_pylist(), flat.reshape(-1, width).astype(np.float32, copy=False)

    return Rows(count, width, about, parts)


KINDS: dict[str, Kind] = {
    ".npy": Kind(_write_npy, _read_npy, _files_of_npy, _finish_npy, True),
    ".parquet": Kind(_write_parquet, _read_parquet, lambda path: (path,), lambda path: None, False),
}


def names_in(rows: Rows) -> Iterable[str]:
    """The names of all rows."""
    return (name for names, _ in rows.parts() for name in names)
