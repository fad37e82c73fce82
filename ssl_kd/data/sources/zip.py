"""Zip archives -> numbered pictures, read where they lie; see ssl_kd.data.open."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.decode import MAX_BYTES, UnreadableError, decode
from ssl_kd.data.sources.listing import PackedNames, files_identity, is_picture_path, nothing_in_zip
from ssl_kd.errors import ImagesError

LOCAL_HEADER = 30  # bytes before the name in a zip member


class ZipImages(ImageSource):
    """The picture files of a zip archive, or of one folder in it, read where they lie (stored or deflated).

    Only offsets and sizes are kept (some 40 bytes a picture beside its id), and every read opens the archive anew: no
    open file is shared between threads or processes.
    """

    def __init__(self, archive: str | Path, inside: str = "", max_unreadable: float = 0.01):
        self.archive = os.fspath(archive)
        name = f"{self.archive}/{inside}".rstrip("/")
        prefix = f"{inside.strip('/')}/" if inside.strip("/") else ""
        try:
            with zipfile.ZipFile(self.archive) as opened:
                members = {m.filename: m for m in opened.infolist() if not m.is_dir()}
        except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
            raise ImagesError(f"{self.archive}: expected a folder or a zip archive, but {error}") from None
        except OSError as error:
            raise ImagesError(f"{self.archive}: cannot be read: {error.strerror or error}") from None
        chosen = sorted(n for n in members if n.startswith(prefix) and is_picture_path(n[len(prefix) :]))
        if not chosen:
            raise ImagesError(nothing_in_zip(name, prefix, list(members)))
        if any(members[n].flag_bits & 1 for n in chosen):
            raise ImagesError(f"{name}: the archive is encrypted; unpack it with its password and pass the folder")
        numbers = [
            (m.header_offset, m.compress_size, m.file_size, m.CRC, m.compress_type)
            for m in map(members.get, chosen)
            if m
        ]
        self.offsets, self.packed, self.sizes, self.crcs, self.methods = np.array(numbers, np.int64).T.copy()
        super().__init__(name, PackedNames(n[len(prefix) :] for n in chosen), max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        if self.methods[i] not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UnreadableError(f"zip method {self.methods[i]}; only stored and deflated members are read")
        if self.sizes[i] > MAX_BYTES:
            raise UnreadableError(f"larger than {MAX_BYTES >> 20} MiB")
        data = self._member(int(self.offsets[i]), int(self.packed[i]))
        if self.methods[i] == zipfile.ZIP_DEFLATED:
            try:  # max_length: a bomb stops at the size that the archive's index states
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, int(self.sizes[i]) + 1)
            except zlib.error as error:
                raise UnreadableError(f"damaged in the archive: {error}") from None
        if len(data) != self.sizes[i] or zlib.crc32(data) != self.crcs[i]:
            raise UnreadableError("damaged in the archive: size or checksum differs")
        return decode(data, shorter)

    def _member(self, offset: int, length: int) -> bytes:
        try:
            with open(self.archive, "rb", buffering=0) as file:
                file.seek(offset)
                header = file.read(LOCAL_HEADER)
                if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
                    raise UnreadableError("damaged in the archive: no member where the index says")
                extra = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                file.seek(extra, os.SEEK_CUR)
                return file.read(length)
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from None

    def _identity(self) -> Iterator[bytes]:
        yield from files_identity(self.ids, self.sizes)
