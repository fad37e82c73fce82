"""The bytes of a weight file: read by position, tensors only when they are asked for.

A file is not mapped into memory: one that is cut while it is mapped (copied over in place, a network disk) ends the
process with SIGBUS, where a read comes back short and is one line. Until `fill` reads it a tensor is memory that was
reserved and never touched, so looking at the teacher in a 1.5 GB training checkpoint costs the teacher's bytes only.
"""

from __future__ import annotations

import os
import weakref
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_kd.errors import BrokenCheckpoint, one_line

AT_ONCE = 1 << 28  # bytes of one read
SHARED, SMALL = 8, 1 << 20  # tensors may share storages: together they are so many times as large, or that many bytes


@dataclass
class Record:
    """Where a storage lies in the file, the memory that it is read into, and its check sum where the file has one."""

    start: int
    memory: memoryview
    name: str = ""
    crc: int = 0  # torch writes 0 where it is told to skip check sums
    read: bool = False


class FileBytes:
    """An open file. It stays open, at the state in which it was opened, as long as this object lives."""

    def __init__(self, path: Path):
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._number)
        self._opened = self._state()
        self.size = self._opened[0]
        self._left = self.size  # bytes that no storage has claimed yet
        self._records: dict[int, Record] = {}

    def bytes(self, start: int, length: int) -> bytes:
        """Bytes of the bookkeeping. BrokenCheckpoint where the file has fewer."""
        if not 0 <= start <= start + length <= self.size:
            raise BrokenCheckpoint("the file is cut short")
        found = bytearray(length)
        self._read(start, memoryview(found))
        return bytes(found)

    def storage(self, dtype: torch.dtype, start: int, count: int, length: int, name: str = "", crc: int = 0) -> Tensor:
        """The first `count` numbers of `length` bytes from byte `start`; zeros until `fill`.

        BrokenCheckpoint where all storages together claim more bytes than the file has.
        """
        self._left -= length
        if not 0 <= start <= start + length <= self.size or self._left < 0 or count * dtype.itemsize > length:
            raise BrokenCheckpoint("its tensors claim more bytes than the file has")
        if not count:
            return torch.empty(0, dtype=dtype)
        memory = np.zeros(length, np.uint8)  # untouched, and so without cost where it is large
        flat = torch.frombuffer(memory, dtype=dtype, count=count)
        self._records[flat.data_ptr()] = Record(start, memory.data, name, crc)
        return flat

    def fill(self, tensors: Iterable[Tensor]) -> None:
        """Read the storages of these tensors. BrokenCheckpoint where the file is no longer the one that was opened."""
        tensors = list(tensors)
        records = self._of(tensors)
        held = sum(len(record.memory) for record in records)
        claimed = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
        if claimed > SHARED * held + SMALL:
            raise BrokenCheckpoint(f"its tensors claim {claimed:,} bytes where the file holds {held:,}")
        wanted = [record for record in records if not record.read]
        for record in wanted:
            self._read(record.start, record.memory)
            record.read = True
        if wanted and self._state() != self._opened:
            raise BrokenCheckpoint("the file changed while it was read; try again when it is written")

    def verify(self, tensors: Iterable[Tensor]) -> None:
        """Check the sums of the storages of these tensors: damage elsewhere in the file does not matter."""
        for record in self._of(tensors):
            check_sum(record.memory, record.name, record.crc)

    def _of(self, tensors: Iterable[Tensor]) -> list[Record]:
        pointers = dict.fromkeys(tensor.untyped_storage().data_ptr() for tensor in tensors)
        return [self._records[pointer] for pointer in pointers if pointer in self._records]

    def _read(self, start: int, into: memoryview) -> None:
        done = 0
        while done < len(into):  # by position: whoever reads the bookkeeping keeps his place
            count = os.preadv(self._number, [into[done : done + AT_ONCE]], start + done)
            if not count:
                raise BrokenCheckpoint("the file was cut while it was read; try again when it is written")
            done += count

    def bookkeeping(self, most: int) -> Bookkeeping:
        """The file from its begin, for a reader that must not take more than so many bytes at once."""
        return Bookkeeping(open(self._number, "rb", closefd=False), most)

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._number)
        return found.st_size, found.st_mtime_ns


def check_sum(data: bytes | memoryview, name: str, crc: int) -> None:
    """BrokenCheckpoint when a member's bytes are not those that were written."""
    if crc and zlib.crc32(data) != crc:
        raise BrokenCheckpoint(f"the file is damaged: the checksum of {one_line(name)} does not match")


class Bookkeeping:
    """A part of a file as a pickle's reader or a zip's wants it, which takes no more than so many bytes at once."""

    def __init__(self, file: BufferedReader, most: int):
        self._file, self._most = file, most
        self.seek(0)

    def read(self, count: int = -1) -> bytes:
        """That many bytes, or all that are left; BrokenCheckpoint past the bound."""
        allowed = self._most - (self.tell() - self._begun)
        found = self._file.read(allowed + 1 if count < 0 else min(count, allowed + 1))
        return self._within(found, allowed)

    def readline(self) -> bytes:
        """Bytes up to a line's end."""
        allowed = self._most - (self.tell() - self._begun)
        return self._within(self._file.readline(allowed + 1), allowed)

    def _within(self, found: bytes, allowed: int) -> bytes:
        if len(found) > allowed:
            raise BrokenCheckpoint(f"its bookkeeping is longer than {self._most / 1e6:,.0f} MB")
        return found

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to a place, from which the bound counts anew."""
        self._begun = self._file.seek(place, whence)
        return self._begun

    def tell(self) -> int:
        """The place."""
        return self._file.tell()

    def seekable(self) -> bool:
        """Yes."""
        return True
