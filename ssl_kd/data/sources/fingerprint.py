"""Has a file changed? Cheap signs of it, for content digests: times and inode of every file, the bytes of some.

A file that is replaced, or painted over with its size and its date kept, has another inode or another time of change
(ctime), which no program can set back. Where a file system keeps neither, the sampled bytes are what is left.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

SMALL_BYTES = 64 << 20  # files that hold no more together are hashed whole: a fraction of a second
SMALL_FILES = 4096
SAMPLED_FILES = 256  # files of a large set whose content is looked at
SAMPLE = 1 << 16  # bytes at the start, in the middle and at the end of such a file
BLOCK = 1 << 20  # bytes hashed at a time
# What the system says when it is busy, or a network disk away for a moment: asked again after each of these seconds.
PAUSES = (0.05, 0.5)
BUSY = {
    *(errno.EAGAIN, errno.EBUSY, errno.EIO, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.ENOLCK, errno.EDEADLK),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENETDOWN, errno.ENETRESET, errno.EHOSTDOWN),
}


def read_bytes(path: str, offset: int = 0, length: int = -1) -> bytes:
    """Up to `length` bytes of a file from `offset` on, or all of them (-1). OSError where even a third try fails.

    The file is opened anew each time: no open file is shared between threads or processes.
    """
    for pause in (*PAUSES, None):
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(offset)
                return _whole(file.fileno(), length)
        except OSError as error:
            if pause is None or error.errno not in BUSY:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _whole(descriptor: int, length: int) -> bytes:
    """What one read leaves out (2 GiB at most on Linux, less on network disks) comes with the next."""
    parts: list[bytes] = []
    while length:
        part = os.read(descriptor, BLOCK if length < 0 else min(length, 1 << 30))
        if not part:
            break
        parts.append(part)
        length -= len(part) if length > 0 else 0
    return parts[0] if len(parts) == 1 else b"".join(parts)


def stamp(path: str) -> tuple[int, int, int, int]:
    """Size in bytes, times of last write and last change in ns, and inode; all -1 for what is not there."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1, -1, -1
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def files_content(paths: Sequence[str], full: bool) -> Iterator[bytes]:
    """Yield bytes that tell whether any of the files changed, in their order; names are the caller's to add.

    full: every byte. Of a small set every byte and the date of last write, so that a copy which keeps it is equal.
    Otherwise the stamp of every file and samples of SAMPLED_FILES evenly spaced ones.
    """
    total = sum(max(stamp(path)[0], 0) for path in paths) if len(paths) <= SMALL_FILES else SMALL_BYTES + 1
    if full or total <= SMALL_BYTES:
        yield b"bytes" if full else b"bytes, dates"
        for path in paths:
            if not full:
                yield b"%d " % stamp(path)[1]
            yield from _bytes_of(path)
        return
    yield b"stamps"
    for start in range(0, len(paths), SMALL_FILES):
        yield repr([stamp(path) for path in paths[start : start + SMALL_FILES]]).encode()
    for i in spread(len(paths), SAMPLED_FILES):
        yield from _samples_of(paths[i])


def spread(count: int, most: int) -> Iterable[int]:
    """Up to `most` of range(count), evenly spaced, the first and the last among them."""
    return [int(i) for i in np.linspace(0, count - 1, min(most, count), dtype=np.int64)] if count else []


def _bytes_of(path: str) -> Iterator[bytes]:
    yield b"%d\n" % stamp(path)[0]
    at = 0
    try:
        while block := read_bytes(path, at, BLOCK):
            yield block
            at += len(block)
    except OSError:
        yield b"unreadable"


def _samples_of(path: str) -> Iterator[bytes]:
    size = stamp(path)[0]
    for at in (0, max(size // 2 - SAMPLE // 2, 0), max(size - SAMPLE, 0)):
        try:
            yield read_bytes(path, at, SAMPLE)
        except OSError:
            yield b"unreadable"
