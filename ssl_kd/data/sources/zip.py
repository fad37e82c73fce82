"""Zip archives -> numbered pictures, read where they lie; see ssl_kd.data.open."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.decode import MAX_BYTES, UnreadableError, decode, not_this_time
from ssl_kd.data.sources.fingerprint import read_bytes
from ssl_kd.data.sources.listing import (
    PackedNames,
    count_ending,
    files_identity,
    is_hidden_path,
    is_picture_path,
    nothing_in_zip,
)
from ssl_kd.errors import ImagesError, shown_name

LOCAL_HEADER = 30  # bytes before the name in a zip member
TWICE = "(of a name that a later member has)"  # counted like an ending
# What zipfile raises for archives that are none, or whose index lies.
NOT_ZIP = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OverflowError, MemoryError, LookupError)


class ZipImages(ImageSource):
    """The picture files of a zip archive, or of one folder in it, read where they lie (stored or deflated).

    Only offsets and sizes are kept (some 40 bytes a picture beside its id), and every read opens the archive anew: no
    open file is shared between threads or processes. Of several members of one name the last counts, as for unzip.
    """

    def __init__(self, archive: str | Path, inside: str = "", max_unreadable: float = 0.01):
        self.archive = os.fspath(archive)
        name = f"{self.archive}/{inside}".rstrip("/")
        prefix = f"{inside.strip('/')}/" if inside.strip("/") else ""
        passed_over: Counter[str] = Counter()
        members = _members(self.archive, passed_over)
        chosen = sorted(n for n in members if n.startswith(prefix) and is_picture_path(n[len(prefix) :]))
        if not chosen:
            raise ImagesError(nothing_in_zip(name, prefix, list(members)))
        if any(members[n].flag_bits & 1 for n in chosen):
            raise ImagesError(
                f"{shown_name(name)}: the archive is encrypted; unpack it with its password and pass the folder"
            )
        for other in members.keys() - set(chosen):
            if other.startswith(prefix) and not is_hidden_path(other[len(prefix) :]):
                count_ending(other, passed_over)
        self.offsets, self.packed, self.sizes, self.crcs, self.methods = _numbers([members[n] for n in chosen])
        super().__init__(name, PackedNames(n[len(prefix) :] for n in chosen), max_unreadable, passed_over)
        _must_lie_inside(self.archive, self.ids, self.offsets, self.packed)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return decode(self._data(i), shorter)

    def _data(self, i: int) -> bytes:
        """Picture i as it was packed. UnreadableError for other methods than stored and deflated, and for damage."""
        if self.methods[i] not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableError(f"zip method {self.methods[i]}; only stored and deflated members are read")
        if self.sizes[i] > MAX_BYTES or self.packed[i] > MAX_BYTES:
            raise UnreadableError(f"larger than {MAX_BYTES >> 20} MiB")
        data = self._member(int(self.offsets[i]), int(self.packed[i]))
        if self.methods[i] == zipfile.ZIP_DEFLATED:
            try:  # max_length: a bomb stops at the size that the archive's index states
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(self.sizes[i]) + 1)
            except zlib.error as error:
                raise UnreadableError(f"damaged in the archive: {error}") from None
        if len(data) != self.sizes[i] or zlib.crc32(data) != self.crcs[i]:
            raise UnreadableError("damaged in the archive: size or checksum differs")
        return data

    def _member(self, offset: int, length: int) -> bytes:
        try:
            header = read_bytes(self.archive, offset, LOCAL_HEADER)
            if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                raise UnreadableError("damaged in the archive: no member where the index says")
            extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            return read_bytes(self.archive, offset + LOCAL_HEADER + extra, length)
        except OSError as error:
            raise not_this_time(error) from None

    def _identity(self) -> Iterator[bytes]:
        yield from files_identity(self.ids, self.sizes)

    def _content(self, full: bool) -> Iterator[bytes]:
        """The checksums of the archive's index, which every read is held to; full: the bytes themselves."""
        yield self.crcs.tobytes()
        for i in range(len(self) if full else 0):
            try:
                yield self._data(i)
            except UnreadableError:
                yield b"unreadable"


def _members(archive: str, passed_over: Counter[str]) -> dict[str, zipfile.ZipInfo]:
    """The archive's files by name. Names whose folders are set off by backslashes alone (Windows) get slashes."""
    try:
        with zipfile.ZipFile(archive) as opened:
            found = opened.infolist()
    except (*NOT_ZIP, struct.error) as error:
        reason = shown_name(" ".join(str(error).split())[:200]) or type(error).__name__
        raise ImagesError(f"{shown_name(archive)}: expected a folder or a zip archive, but {reason}") from None
    except OSError as error:
        raise ImagesError(f"{shown_name(archive)}: cannot be read: {error.strerror or error}") from None
    if not any("/" in m.filename for m in found):
        for member in found:
            member.filename = member.filename.replace("\\", "/")
    members = {m.filename: m for m in found if not m.is_dir()}
    if twice := sum(not m.is_dir() for m in found) - len(members):
        passed_over[TWICE] = twice
    return members


def _numbers(members: list[zipfile.ZipInfo]) -> np.ndarray:
    """Offset, packed size, size, checksum and method of each, int64; an index may state 2^64, no file is so large."""
    most = 1 << 62
    rows = [
        (min(m.header_offset, most), min(m.compress_size, most), min(m.file_size, most), m.CRC, m.compress_type)
        for m in members
    ]
    return np.array(rows, np.int64).T.copy()


def _must_lie_inside(archive: str, ids: Sequence[str], offsets: np.ndarray, packed: np.ndarray) -> None:
    """ImagesError where the index names bytes that the archive does not have: it is cut, or it lies."""
    length = os.path.getsize(archive)
    wrong = np.flatnonzero((offsets < 0) | (packed < 0) | (offsets > length) | (packed > length - offsets))
    if len(wrong):
        i = int(wrong[0])
        raise ImagesError(
            f"{shown_name(archive)}: its index says that {shown_name(ids[i])} has {packed[i]:,} bytes "
            f"from byte {offsets[i]:,} on, but the archive has {length:,}: damaged or cut short"
        )
