"""The saved state of a run: written whole or not at all, read back as data, with a digest of every byte.

A state is an ordinary torch file. The SHA-256 of its bytes stands in the comment at the end of the zip, where torch does
not look. States of older versions have none; of those the checksums of the zip's members are tried.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, cast

import torch

from ssl_kd.runtime.files import atomically

CHUNK = 1 << 20
_LABEL = b"ssl_kd sha256 "
_COMMENT = len(_LABEL) + 64
_NEAR_THE_END = 4096  # bytes in which the comment is looked for
_LENGTH = _COMMENT.to_bytes(2, "little")
_NO_COMMENT = b"\0\0"  # the length of the comment, the last two bytes of a zip without one


class _Digested:
    """A file that is written from beginning to end, and the digest of what was written."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.digest, self.length = hashlib.sha256(), 0

    def write(self, data: bytes | memoryview) -> int:
        """Pass on the bytes."""
        self.digest.update(data)
        self.length += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Pass on the wish."""
        self._file.flush()


def save_state(path: Path, state: Mapping[str, object]) -> None:
    """Write a torch file so that `path` holds either the old state or the whole new one, never a part."""

    def write(file: IO[bytes]) -> None:
        digested = _Digested(file)
        torch.save(dict(state), cast(IO[bytes], digested))
        file.seek(digested.length - len(_NO_COMMENT))
        file.write(_LENGTH + _LABEL + digested.digest.hexdigest().encode())

    atomically(path, write)


def load_state(path: Path) -> dict[str, object]:
    """Read back what `save_state` wrote, as plain data on the CPU. Foreign files go through `ssl_kd.checkpoints.loading`.

    ValueError, or what torch raises, for a damaged file.
    """
    _check(path)
    state: dict[str, object] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _check(path: Path) -> None:
    """ValueError where a byte is not the one that was written."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _NEAR_THE_END))
        tail = file.read()
        length, comment = tail[-_COMMENT - 2 : -_COMMENT], tail[-_COMMENT:]
        if length == _LENGTH or _LABEL in tail:  # one damaged byte spoils one of them; a byte more or less, the place
            file.seek(0)
            digest = _digest(file, max(0, size - _COMMENT - 2)).encode()
            if length + comment != _LENGTH + _LABEL + digest:
                raise ValueError("its checksum does not match")
        elif zipfile.is_zipfile(file):
            _check_members(file)


def _digest(file: IO[bytes], length: int) -> str:
    """SHA-256 of the next `length` bytes and of what stood behind them before there was a comment."""
    digest = hashlib.sha256()
    while length and (block := file.read(min(CHUNK, length))):
        digest.update(block)
        length -= len(block)
    digest.update(_NO_COMMENT)
    return digest.hexdigest()


def _check_members(file: IO[bytes]) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise ValueError(f"its zip is damaged: {error}") from error
    if bad is not None:
        raise ValueError("a checksum does not match")
