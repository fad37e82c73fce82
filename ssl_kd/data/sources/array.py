"""Pictures in a uint8 array, in memory or in a .npy file."""

from __future__ import annotations

import math
import os
import tokenize
from collections.abc import Iterator

import numpy as np
from numpy.lib import format as npy
from PIL import Image

from ssl_kd.data.sources.base import ImageSource, Numbers
from ssl_kd.data.sources.decode import UnreadableError, not_this_time
from ssl_kd.data.sources.fingerprint import files_content, read_bytes
from ssl_kd.errors import ImagesError, shown_name

HASHED_ROWS = 1 << 16  # pictures of an array that its digest looks at
HASHED_BYTES = 4 << 30  # of a .npy file that its content digest reads whole: some seconds
BLOCK = 64 << 20  # bytes hashed at a time
# What numpy's reader of headers raises for bytes that are none; they are parsed as Python's literals.
NOT_NPY = (ValueError, OSError, EOFError, TypeError, KeyError, SyntaxError, tokenize.TokenError)
TOO_MUCH = (OverflowError, MemoryError, RecursionError)


class ArrayImages(ImageSource):
    """Pictures in a uint8 array (N, H, W, 3), also memory-mapped. The digests are of the pixels."""

    def __init__(self, array: np.ndarray, max_unreadable: float = 0.01, name: str = "array"):
        _must_be_pictures(name, array.dtype, array.shape)
        self.array = array
        super().__init__(name, Numbers(len(array)), max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.array[i]))

    def _identity(self) -> Iterator[bytes]:
        yield repr(self.array.shape).encode()
        for row in self.array[:: -(-len(self.array) // HASHED_ROWS)]:
            yield np.ascontiguousarray(row).tobytes()

    def _content(self, full: bool) -> Iterator[bytes]:
        """Every byte, unless the digest has seen them all."""
        if len(self.array) > HASHED_ROWS:
            step = max(BLOCK // self.array[0].nbytes, 1)
            for start in range(0, len(self.array), step):
                yield np.ascontiguousarray(self.array[start : start + step]).tobytes()


class NpyImages(ImageSource):
    """The pictures of a .npy file, uint8 (N, H, W, 3), each read from the file when it is asked for.

    Not memory-mapped: a file that is cut while it is mapped ends the process without a word.
    """

    def __init__(self, path: str, shape: tuple[int, ...], start: int, max_unreadable: float = 0.01):
        self.path, self.shape, self._start = path, shape, start
        self._row = math.prod(shape[1:])
        super().__init__(path, Numbers(shape[0]), max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        try:
            data = self._bytes(i)
        except OSError as error:
            raise not_this_time(error) from None
        if len(data) < self._row:
            raise UnreadableError("the file was cut short since it was opened")
        return Image.frombytes("RGB", (self.shape[2], self.shape[1]), data)

    def _bytes(self, i: int) -> bytes:
        return read_bytes(self.path, self._start + i * self._row, self._row)

    def _identity(self) -> Iterator[bytes]:
        yield repr(self.shape).encode()
        for i in range(0, len(self), -(-len(self) // HASHED_ROWS)):
            try:
                yield self._bytes(i)
            except OSError as error:
                raise ImagesError(f"{shown_name(self.path)}: cannot be read: {error.strerror or error}") from None

    def _content(self, full: bool) -> Iterator[bytes]:
        """Every byte up to HASHED_BYTES; of a larger file its times and inode beside what the digest has seen."""
        return files_content([self.path], full or self._row * len(self) <= HASHED_BYTES)


def open_npy(path: str, max_unreadable: float = 0.01) -> ImageSource:
    """Open a .npy file of pictures. ImagesError, in one line, for one that is damaged or holds something else."""
    shape, in_fortran_order, dtype, start = _header(path)
    _must_be_pictures(path, dtype, shape)
    held = os.path.getsize(path) - start
    if math.prod(shape) > held:
        raise ImagesError(
            f"{shown_name(path)}: not a readable .npy array: its header states {math.prod(shape):,} bytes of pixels, "
            f"but the file holds {held:,}: cut short, or damaged"
        )
    if in_fortran_order:  # the pixels of a picture do not lie together
        return ArrayImages(np.load(path, mmap_mode="r", allow_pickle=False), max_unreadable, path)
    return NpyImages(path, shape, start, max_unreadable)


def _header(path: str) -> tuple[tuple[int, ...], bool, np.dtype[np.generic], int]:
    """Shape, order, kind and first byte of the numbers of a .npy file."""
    try:
        with open(path, "rb") as file:
            version = npy.read_magic(file)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"format {version[0]}.{version[1]}, expected 1.0 or 2.0")
            read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, in_fortran_order, dtype = read(file)
            return shape, in_fortran_order, dtype, file.tell()
    except TOO_MUCH:
        raise ImagesError(f"{shown_name(path)}: not a readable .npy array: its header cannot be parsed") from None
    except NOT_NPY as error:
        reason = shown_name(" ".join(str(error).split())[:200])
        raise ImagesError(f"{shown_name(path)}: not a readable .npy array: {reason}") from None


def _must_be_pictures(name: str, dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> None:
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
        hint = "; scale floating-point pixels to 0..255 and round them" if dtype.kind == "f" else ""
        raise ImagesError(
            f"{shown_name(name)}: expected uint8 of shape (N, H, W, 3), got {dtype} of shape {shape}{hint}"
        )
    if min(shape) < 1:
        raise ImagesError(f"{shown_name(name)}: no images in an array of shape {shape}")
