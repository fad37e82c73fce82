"""Files that appear whole or not at all: written beside their place, synced, then renamed into it in one step.

A process that is killed in between leaves `NAME.PID.part`. `sweep` removes such a file once its process is gone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from ssl_kd.errors import UserError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

PART = ".part"
TRIAL = ".trial"  # in the name of a file that is written only to be read back
CHECK = "check"  # the field of a record that vouches for the others
# NAME.PID.part, also hidden, also of a part itself: .student.safetensors.123.part.123.part
_PART_NAME = re.compile(rf"\.?(.+?)(?:\.(\d{{1,19}})(?:{re.escape(TRIAL)})?{re.escape(PART)})+", re.DOTALL)
_SLACK = 2.0  # seconds by which clocks of files and processes may differ
_ONE_DAY = 86_400.0


class _Told:
    """A file that remembers why it could not be written: torch.save turns a full disk into "unexpected pos"."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def write(self, data: ReadableBuffer) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> object:
        return getattr(self._file, name)


def locked(file: IO[bytes] | IO[str], wait: bool = False) -> bool:
    """Lock an open file until it is closed or this process dies; False where another process has it, unless `wait`.

    Where the platform has no such locks (Windows) nothing is held, and the answer is True. OSError where it cannot be locked.
    """
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def part_of(path: Path, kind: str = "", hidden: bool = False) -> Path:
    """The name beside `path` under which this process writes it. kind: TRIAL for what is only tried."""
    return path.with_name(f"{'.' if hidden else ''}{path.name}.{os.getpid()}{kind}{PART}")


def atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` with a binary file; `path` then holds the whole new content, or still the old one and UserError says why."""
    part = part_of(path)
    told: _Told | None = None
    try:
        with open(part, "wb") as file:
            told = _Told(file)
            write(cast(IO[bytes], told))
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


def put_in_place(part: Path, path: Path) -> None:
    """Rename a whole file into its place, its bytes on the disk before its name. OSError where that fails."""
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)
    _sync_folder(path.parent)


def probe(path: Path) -> None:
    """Make the folder of a file that is to come and try to write there: UserError now, not after hours of work.

    What killed writers left of this very file is swept.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent, (path.name,))
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


def atomic_text(path: Path, text: str) -> None:
    """Write text so that `path` holds either the old or the whole new content. Names of files need not be UTF-8."""
    atomically(path, lambda file: file.write(text.encode(errors="backslashreplace")))


# ------------------------------------------------------------------------------------------ what killed writers left


def sweep(folder: Path, names: Iterable[str]) -> None:
    """Remove what killed writers left of files of these names in a folder (not below it)."""
    for part in abandoned(folder, names):
        part.unlink(missing_ok=True)


def abandoned(folder: Path, names: Iterable[str]) -> list[Path]:
    """Parts of files of these names whose process is gone. Processes of other machines count as gone."""
    wanted = {name.removeprefix(".") for name in names}
    with os.scandir(folder) as entries:
        parts = [(entry, match) for entry in entries if (match := _PART_NAME.fullmatch(entry.name))]
        return [
            Path(entry.path)
            for entry, match in parts
            if match.group(1) in wanted
            and entry.is_file(follow_symlinks=False)
            and _writer_is_gone(entry, int(match.group(2)))
        ]


def _writer_is_gone(part: os.DirEntry[str], process: int) -> bool:
    """Whether no process has the number, or the one that has it began after the part was last written to."""
    if os.name == "nt":  # asking for a process there would end it
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # it lives, as another user's
    try:
        written = part.stat(follow_symlinks=False).st_mtime
    except FileNotFoundError:
        return False
    began = _began(process)
    return written < (time.time() - _ONE_DAY if began is None else began - _SLACK)


def _began(process: int) -> float | None:
    """When a process began, in seconds since 1970; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        boot = re.search(r"^btime (\d+)", Path("/proc/stat").read_text(), re.MULTILINE)
        return int(boot.group(1)) + int(fields[19]) / os.sysconf("SC_CLK_TCK") if boot else None
    except (OSError, ValueError, IndexError):
        return None


# ----------------------------------------------------------------------------------------------- small sealed records


def sealed(record: Mapping[str, object]) -> str:
    """A record as JSON text, with a checksum of its other fields among them."""
    plain = {key: value for key, value in record.items() if key != CHECK}
    return json.dumps(plain | {CHECK: _seal(plain)}, indent=1)


def unsealed(text: str, older: Collection[str] = ()) -> dict[str, object]:
    """What `sealed` wrote, without the checksum. ValueError for damage.

    older: the fields of a record of older versions, which had no checksum.
    """
    record = json.loads(text)
    if not isinstance(record, dict):
        raise ValueError("not a record")
    if older and record.keys() == set(older):
        return record
    if record.pop(CHECK, None) != _seal(record):
        raise ValueError("its checksum does not match")
    return record


def _seal(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
