"""Parquet files with a column of encoded pictures -> numbered pictures; the layout of Hugging Face's data sets.

    open_images("data/train-00000-of-00004.parquet")        # the only column of pictures
    open_images("data/train-*.parquet")                     # several files, in the order of their names
    open_images("data/train-00000-of-00004.parquet:photo")  # of several such columns this one

A column holds the bytes of each picture's file, or a struct with `bytes` (and `path`) as Hugging Face's `Image` does.
No other column is read, so labels never come in. Parquet gives its rows group by group: groups are what shards are
elsewhere, some of them shuffled together, and the last ones stay in memory. Needs pyarrow (`pip install ssl-kd[parquet]`).
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ssl_kd.data.samplers import WINDOW
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.dataset import KEYS
from ssl_kd.data.sources.decode import MAX_BYTES, UnreadableError, decode, not_this_time
from ssl_kd.data.sources.fingerprint import files_content, read_bytes
from ssl_kd.data.sources.listing import Names
from ssl_kd.data.sources.webdataset import expand, is_remote
from ssl_kd.errors import ImagesError, UserError, shown_name

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import FileMetaData

SPELLING = re.compile(r"(?P<files>.*\.parquet\}?)(:(?P<column>[^/\\]*))?", re.DOTALL | re.IGNORECASE)
HELD_GROUPS = WINDOW + 2  # row groups in memory: those that are shuffled together, and their neighbours
HELD_BYTES = 2 << 30  # and no more bytes of them than this, except that one is always held
GROUP_BYTES = 4 << 30  # of one row group, all columns; more would have to be read for its first picture


class ParquetImages(ImageSource):
    """The pictures of one column of Parquet files, in the order of the list and of the rows; ids are `file/row`."""

    def __init__(self, files: Sequence[str], column: str = "", max_unreadable: float = 0.01, name: str = ""):
        self.files = list(files)
        name = name or (self.files[0] if len(files) == 1 else f"{self.files[0]} and {len(files) - 1} more")
        footers = [_footer(path) for path in self.files]
        with _readable(self.files[0]):
            self.column = column or _picture_column(self.files[0], footers[0][1])
        self._footers = [digest for _, _, digest in footers]
        sizes = [_group_sizes(path, meta) for path, (meta, _, _) in zip(self.files, footers, strict=True)]
        self._groups = [(file, g) for file, groups in enumerate(sizes) for g in range(len(groups))]
        self._ends = np.cumsum([rows for groups in sizes for rows in groups], dtype=np.int64)
        self._file_begins = np.cumsum([0, *map(sum, sizes)], dtype=np.int64)
        if not self._file_begins[-1]:
            raise ImagesError(f"{shown_name(name)}: no rows")
        largest = 0
        for path, (meta, schema, _) in zip(self.files, footers, strict=True):
            with _readable(path):
                _must_be_bytes(path, schema, self.column)
                largest = max(largest, _largest_group(path, meta))
        self._window = int(np.clip(HELD_BYTES // max(largest, 1) - 1, 1, WINDOW))
        self._held: OrderedDict[int, pyarrow.ChunkedArray] = OrderedDict()
        self._holding = threading.Lock()
        super().__init__(name, _RowIds(self.files, self._file_begins), max_unreadable)

    def __getstate__(self) -> dict[str, object]:
        return super().__getstate__() | {"_held": OrderedDict()}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._holding = threading.Lock()

    def runs(self) -> np.ndarray | None:
        """Rows of each row group."""
        return np.diff(self._ends, prepend=0)

    def window(self) -> int:
        """As many row groups as memory is granted for."""
        return self._window

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        group = int(np.searchsorted(self._ends, i, side="right"))
        row = i - (int(self._ends[group - 1]) if group else 0)
        column = self._group(group)
        if row >= len(column):
            raise UnreadableError(f"row group {self._groups[group][1]} has fewer rows than the file states")
        cell = column[row]
        if cell.is_valid and hasattr(cell, "keys"):  # a struct
            path, cell = cell.get("path"), cell["bytes"]
            if not cell.is_valid and path is not None and path.is_valid:
                raise UnreadableError(f"the row holds no bytes, only the path {shown_name(str(path.as_py()))}")
        data = cell.as_py() or b""
        if len(data) > MAX_BYTES:
            raise UnreadableError(f"larger than {MAX_BYTES >> 20} MiB")
        return decode(data, shorter)

    def _group(self, group: int) -> pyarrow.ChunkedArray:
        """The column of one row group, read if it is not among the last ones."""
        with self._holding:
            if group not in self._held:
                self._held[group] = self._read(*self._groups[group])
                while len(self._held) > 1 and (
                    len(self._held) > HELD_GROUPS or sum(c.nbytes for c in self._held.values()) > HELD_BYTES
                ):
                    self._held.popitem(last=False)
            self._held.move_to_end(group)
            return self._held[group]

    def _read(self, file: int, group: int) -> pyarrow.ChunkedArray:
        import pyarrow
        from pyarrow import parquet

        try:  # opened anew, in this thread alone: no file and no thread is shared between processes
            with parquet.ParquetFile(self.files[file], pre_buffer=False) as opened:
                column: pyarrow.ChunkedArray = opened.read_row_group(
                    group, columns=[self.column], use_threads=False
                ).column(0)
                return column
        except pyarrow.ArrowException as error:
            raise UnreadableError(f"row group {group} is damaged: {_one_line(error)}") from None
        except OSError as error:
            if error.errno is None:  # Arrow's own word on the bytes
                raise UnreadableError(f"row group {group} is damaged: {_one_line(error)}") from None
            raise not_this_time(error) from None

    def _identity(self) -> Iterator[bytes]:
        """Names, column and footers; a footer has the sizes of all row groups."""
        yield self.column.encode("utf-8", "surrogateescape")
        for name, footer in zip(_short_names(self.files), self._footers, strict=True):
            yield f"\n{name}\n{footer}".encode("utf-8", "surrogateescape")

    def _content(self, full: bool) -> Iterator[bytes]:
        return files_content(self.files, full)


class _RowIds(Names):
    """`file/row` for each picture."""

    def __init__(self, files: Sequence[str], begins: np.ndarray):
        self._files, self._begins = _short_names(files), begins

    def __len__(self) -> int:
        return int(self._begins[-1])

    def name(self, i: int) -> str:
        """See Names."""
        file = int(np.searchsorted(self._begins, i, side="right")) - 1
        return f"{self._files[file]}/{i - int(self._begins[file])}"


def names_parquet(path: str) -> bool:
    """Whether a source is spelled as Parquet files: by its ending, a pattern too, with `:column` behind it or not."""
    return SPELLING.fullmatch(path) is not None


def open_parquet(source: str | Sequence[str], max_unreadable: float = 0.01, name: str = "") -> ParquetImages:
    """Open Parquet files by a pattern (`*`, `{0..3}`, `a::b`) with `:column` behind it or not, or from a list of such."""
    files: list[str] = []
    columns: set[str] = set()
    for spelled in [source] if isinstance(source, str) else source:
        found = SPELLING.fullmatch(spelled)
        if found is None:
            raise ImagesError(f"{shown_name(spelled)}: expected a .parquet file")
        columns.add(found["column"] or "")
        for path in expand(os.path.expanduser(found["files"])):
            files += sorted(glob.glob(path)) or [path]
    if remote := next((path for path in files if is_remote(path)), ""):
        raise ImagesError(f"{shown_name(remote)}: Parquet is read from disk only; download it first")
    gone = [path for path in files if not os.path.isfile(path)]
    if gone:
        raise ImagesError(f"{shown_name(gone[0])}: no such file ({len(gone)} of {len(files)} are missing)")
    if len(columns) > 1:
        raise ImagesError(f"expected one column for all files, got {', '.join(map(shown_name, sorted(columns)))}")
    twice = [path for path, times in Counter(files).items() if times > 1]
    if twice:
        raise ImagesError(f"{shown_name(twice[0])}: named twice among the files")
    return ParquetImages(files, columns.pop(), max_unreadable, name)


def parquet_in(folder: str) -> list[str]:
    """Return the .parquet files that lie in a folder, in the order of their names, as paths."""
    with os.scandir(folder) as found:
        names = sorted(e.name for e in found if e.name.endswith(".parquet") and e.name[0] != "." and e.is_file())
    return [f"{folder.rstrip('/')}/{name}" for name in names]


def _footer(path: str) -> tuple[FileMetaData, pyarrow.Schema, str]:
    """Metadata, Arrow's schema and the SHA-256 of the footer of a file. ImagesError for what is none."""
    try:
        from pyarrow import parquet
    except ImportError:
        raise ImagesError(f"{shown_name(path)}: needs pyarrow; run pip install 'ssl-kd[parquet]'") from None
    with _readable(path):
        with parquet.ParquetFile(path, pre_buffer=False) as opened:
            metadata, schema = opened.metadata, opened.schema_arrow
        end = read_bytes(path, os.path.getsize(path) - 8, 8)
        length = int.from_bytes(end[:4], "little")
        footer = read_bytes(path, os.path.getsize(path) - 8 - length, length + 8)
    return metadata, schema, hashlib.sha256(footer).hexdigest()


@contextmanager
def _readable(path: str) -> Iterator[None]:
    """Turn what Arrow raises for damaged footers, names that are no text among it, into one ImagesError."""
    import pyarrow

    try:
        yield
    except UserError:
        raise
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise ImagesError(f"{shown_name(path)}: not a readable Parquet file: {_one_line(error)}") from None


def _picture_column(path: str, schema: pyarrow.Schema) -> str:
    """The column that Hugging Face's notes call an image, or the only one that can be; of several the best known name."""
    told = _told_by_hugging_face(schema)
    columns = [n for n in schema.names if n in told] or [n for n in schema.names if _has_bytes(schema.field(n).type)]
    columns = columns or [n for n in schema.names if _is_binary(schema.field(n).type)]
    if len(columns) == 1:
        return str(columns[0])
    if known := next((key for key in KEYS if key in columns), ""):
        return known
    shown = ", ".join(shown_name(n) for n in (columns or schema.names)[:8]) or "none"
    if columns:
        raise ImagesError(
            f"{shown_name(path)}: several columns may hold pictures ({shown}); write {shown_name(path)}:NAME"
        )
    raise ImagesError(f"{shown_name(path)}: expected a column of encoded pictures (bytes), but the columns are {shown}")


def _told_by_hugging_face(schema: pyarrow.Schema) -> set[str]:
    """The columns whose type is Image in the notes that Hugging Face's `datasets` leaves in a file."""
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"]
        return {str(name) for name, kind in features.items() if kind.get("_type") == "Image"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return set()


def _must_be_bytes(path: str, schema: pyarrow.Schema, column: str) -> None:
    where = shown_name(path)
    if column not in schema.names:
        shown = ", ".join(map(shown_name, schema.names[:8]))
        raise ImagesError(f"{where}: no column {shown_name(column)!r}; it has {shown}")
    kind = schema.field(column).type
    if not _is_binary(kind) and not _has_bytes(kind):
        raise ImagesError(
            f"{where}: column {shown_name(column)} holds {shown_name(str(kind))[:80]}, expected encoded pictures (bytes)"
        )


def _is_binary(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _has_bytes(kind: pyarrow.DataType) -> bool:
    from pyarrow import types

    return bool(types.is_struct(kind)) and any(f.name == "bytes" and _is_binary(f.type) for f in kind)


def _group_sizes(path: str, metadata: FileMetaData) -> list[int]:
    """Rows of each row group. ImagesError where they are not the rows of the file."""
    rows = [int(metadata.row_group(g).num_rows) for g in range(metadata.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
        raise ImagesError(
            f"{shown_name(path)}: not a readable Parquet file: it states {metadata.num_rows} rows, its row groups {sum(rows)}"
        )
    return rows


def _largest_group(path: str, metadata: FileMetaData) -> int:
    """Bytes of the largest row group, all columns of it. ImagesError where memory could not hold it.

    Not the bytes of the one column: pyarrow ends the process (std::terminate) where it is asked for a column's part of
    damaged metadata. Reading the same part raises.
    """
    largest = 0
    for g in range(metadata.num_row_groups):
        size = int(metadata.row_group(g).total_byte_size)
        if size > GROUP_BYTES:
            raise ImagesError(
                f"{shown_name(path)}: row group {g} has {size / 1e9:.1f} GB, more than {GROUP_BYTES / 1e9:.1f}, and its "
                "pictures must be read together; write the file again with a row_group_size of 1,000"
            )
        largest = max(largest, size)
    return largest


def _short_names(files: Sequence[str]) -> list[str]:
    """The files' own names, or paths below the folder they share where two have one name."""
    names = [os.path.basename(path) for path in files]
    if len(set(names)) == len(names):
        return names
    common = os.path.commonpath([os.path.abspath(path) for path in files])
    return [os.path.relpath(path, common) for path in files]


def _one_line(error: Exception) -> str:
    return shown_name(" ".join(str(error).split())[:200]) or type(error).__name__
