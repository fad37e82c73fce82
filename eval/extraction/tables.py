"""Embeddings as files that other programs read, of any number of rows: `.npy` with ids beside it, and Parquet.

    x.npy      (N, D) float32; x.ids.txt: the pictures' names, one on each line; x.json: what made them, sealed
    x.parquet  columns `id` (text) and `embedding` (list of D float32), what made them in the file's metadata (`ssl_kd`)

Rows go through in parts, so memory does not grow with N, and a file appears whole or not at all. While pictures are embedded,
the rows lie in `x.npy.work` (see `ssl_kd.search.store`), which survives a kill: the same call resumes there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ssl_kd.errors import UserError, one_line
from ssl_kd.runtime.files import atomic_text, atomically, part_of, put_in_place, sealed, unsealed

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

    Reading gives None for a file that is none of ours.
    """

    write: Callable[[Path, Rows], None]
    read: Callable[[Path], Rows | None]
    files: Callable[[Path], tuple[Path, ...]]


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
    ids, about = _beside(path)
    head = {"descr": "<f4", "fortran_order": False, "shape": (rows.count, rows.width)}

    def write(file: IO[bytes]) -> None:
        np.lib.format.write_array_header_1_0(file, head)
        for _, part in rows.parts():
            file.write(np.ascontiguousarray(part, "<f4").data)

    def name(file: IO[bytes]) -> None:
        for names, _ in rows.parts():
            if broken := next((one for one in names if "\n" in one or "\r" in one), ""):
                raise UserError(f"out: {one_line(broken)} holds a line break; write .parquet")
            file.write("".join(f"{one}\n" for one in names).encode("utf-8", "surrogateescape"))

    atomically(ids, name)
    atomically(path, write)
    known = {"ssl_kd": "embeddings", "rows": rows.count, "width": rows.width, **rows.about}
    atomic_text(about, sealed(known | {"bytes": [path.stat().st_size, ids.stat().st_size]}))


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
    ".npy": Kind(_write_npy, _read_npy, _files_of_npy),
    ".parquet": Kind(_write_parquet, _read_parquet, lambda path: (path,)),
}


def names_in(rows: Rows) -> Iterable[str]:
    """The names of all rows."""
    return (name for names, _ in rows.parts() for name in names)
