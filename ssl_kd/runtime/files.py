"""Files that appear whole or not at all: written beside their place, synced, then renamed into it in one step.

A process that is killed in between leaves `NAME.PID.part`, which `sweep` removes once nobody else can be writing.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from ssl_kd.errors import UserError

PART = ".part"


class _Told:
    """A file that remembers why it could not be written: torch.save turns a full disk into "unexpected pos"."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def atomically(path: Path, write: Callable[[Any], object]) -> None:
    """Call `write` with a binary file; `path` then holds the whole new content, or still the old one and UserError says why."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    told: _Told | None = None
    try:
        with open(part, "wb") as file:
            told = _Told(file)
            write(told)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else told.error if told else None
        if reason is None:
            raise
        raise _unwritten(path, reason) from error
    finally:
        with contextlib.suppress(OSError):  # a read-only folder refuses this as well, and the first refusal says why
            part.unlink(missing_ok=True)


def probe(path: Path) -> None:
    """Make the folder of a file that is to come and try to write there: UserError now, not after hours of work."""
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb"):
            pass
        part.unlink()
    except OSError as error:
        raise _unwritten(path, error) from error


def _unwritten(path: Path, reason: OSError) -> UserError:
    return UserError(
        f"{path}: could not be written ({reason.strerror or reason}); free some space or choose another place"
    )


def _sync_folder(folder: Path) -> None:
    """Let the new name outlive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def append_line(path: Path, line: str) -> None:
    """Add a line to a text file, the whole line or nothing; UserError where it cannot be written."""
    data = memoryview(f"{line}\n".encode())
    try:
        with open(path, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while data:  # a nearly full disk takes a part
                    data = data[file.write(data) :]
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise _unwritten(path, error) from error


def reserve(file: IO[bytes], size: int) -> None:
    """Give a file its length and its room: a disk that fills up later would kill whoever writes to a mapped hole."""
    file.truncate(size)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # a file system that cannot promise room
                raise


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder (not below it)."""
    for part in folder.glob(f"*{PART}"):
        part.unlink(missing_ok=True)


def atomic_text(path: Path, text: str) -> None:
    """Write text so that `path` holds either the old or the whole new content. Names of files need not be UTF-8."""
    atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))
