"""The containers that torch.save writes, zip and the older stream, and the door to all containers."""

from __future__ import annotations

import io
import re
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, cast

from ssl_kd.checkpoints.file_bytes import FileBytes, check_sum
from ssl_kd.checkpoints.formats.weights import Contents
from ssl_kd.checkpoints.safetensors_file import read_safetensors
from ssl_kd.checkpoints.unpickler import STORAGE_DTYPES, Machine, Storage
from ssl_kd.errors import (
    BrokenCheckpoint,
    CheckpointError,
    UnknownCheckpoint,
    UnsafeCheckpoint,
    nearest_files,
    one_line,
)

MAX_MEMBERS = 200_000
MAX_DIRECTORY = 1 << 25  # bytes of a zip's list of members: 200,000 of them take less
MAX_PICKLE = 1 << 28  # bytes of bookkeeping; published files have less than a hundredth
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the number with which torch < 1.6 opens a file
# What damaged bookkeeping makes Python raise; anything else would be our own mistake.
DAMAGE = (
    ValueError,
    IndexError,
    KeyError,
    TypeError,
    AttributeError,
    EOFError,
    OverflowError,
    RecursionError,
    struct.error,
)

# First bytes of what people pass by mistake, and what to tell them.
MISTAKES: dict[bytes, str] = {
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"RIFF": "a RIFF file (WebP or sound)",
    b"\x1f\x8b": "gzip data; unpack it first",
    b"BZh": "bzip2 data; unpack it first",
    b"\xfd7zXZ": "xz data; unpack it first",
    b"\x89HDF": "an HDF5 file (Keras?); convert it to a PyTorch state dict first",
    b"\x93NUMPY": "a numpy array",
    b"version https://git-lfs": "a Git LFS pointer, not the file itself; run `git lfs pull`",
    b"<": "a web page or XML, perhaps a failed download",
    b"{": "JSON text",
}


def open_contents(path: Path) -> Contents:
    """A weight file as plain data. CheckpointError says what else it is, or what is wrong with it."""
    try:
        file = FileBytes(path)
        start = file.bytes(0, min(512, file.size))
    except FileNotFoundError:
        hint = nearest_files(str(path))
        raise CheckpointError(f"no such file.{hint}" if hint else "no such file") from None
    except OSError as error:
        raise CheckpointError(f"cannot be opened: {error.strerror}") from error
    if not start:
        raise CheckpointError("the file is empty")
    if start.startswith(b"PK\x03\x04"):
        return guarded(read_zip, file)
    # Before the pickle: one safetensors header in 32 has a length whose first byte is a pickle's too.
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= file.size - 8:
        return guarded(read_safetensors, file)
    if start[:1] == b"\x80":
        return guarded(read_legacy, file)
    raise UnknownCheckpoint(f"is not a checkpoint but {described(path.name, start)}")


def described(name: str, start: bytes) -> str:
    """What a file of that name that begins so probably is."""
    if re.search(r"\.ckpt-\d+(\.|$)|\.data-\d+-of-\d+$", name):
        return "a part of a TensorFlow checkpoint; convert it to PyTorch first (docs/formats.md)"
    if start[257:262] == b"ustar":
        return "a tar archive; unpack it and name the checkpoint in it"
    for magic, what in MISTAKES.items():
        if start.startswith(magic):
            return what
    return "text" if all(byte in b"\t\n\r" or byte >= 32 for byte in start) else "binary data of an unknown kind"


def guarded(read: Callable[[FileBytes], Contents], file: FileBytes) -> Contents:
    """The contents, with damage reported as BrokenCheckpoint."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's codecs remark on the odd escapes of a damaged pickle
            return read(file)
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or one_line(error, 120)}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, MemoryError, *DAMAGE) as error:
        reason = one_line(error, 120) or type(error).__name__
        raise BrokenCheckpoint(f"the file is damaged or cut short: {reason}") from error


def read_zip(file: FileBytes) -> Contents:
    """torch.save since 1.6: a zip of data.pkl and one uncompressed record per storage."""
    directory = cast("IO[bytes]", file.bookkeeping(MAX_DIRECTORY))  # reads and seeks as a file does
    archive = zipfile.ZipFile(directory)
    members = {info.filename: info for info in archive.infolist()}
    refuse_odd_archive(archive, members)
    root = next(name for name in members if PurePosixPath(name).name == "data.pkl").removesuffix("data.pkl")
    find = partial(locate, file, members)
    if f"{root}byteorder" in members and file.bytes(*find(f"{root}byteorder")) != b"little":
        raise BrokenCheckpoint("it was written on a big-endian machine; save it again on a little-endian one")
    loaded: dict[str, Storage] = {}

    def load(kind: str, key: str, count: int) -> Storage:
        if key not in loaded:
            dtype, name = STORAGE_DTYPES[kind], f"{root}data/{key}"
            place, length = find(name)
            count = count if "Untyped" not in kind else length
            if count * dtype.itemsize > length:
                raise BrokenCheckpoint(
                    f"a tensor claims {count:,} elements where the file holds {length // dtype.itemsize:,}"
                )
            loaded[key] = Storage(file.storage(dtype, place, count, length, name, members[name].CRC))
        return loaded[key]

    start, size = find(f"{root}data.pkl")
    if size > MAX_PICKLE:
        raise BrokenCheckpoint(f"its bookkeeping is longer than {MAX_PICKLE / 1e6:,.0f} MB")
    program = file.bytes(start, size)
    check_sum(program, f"{root}data.pkl", members[f"{root}data.pkl"].CRC)
    machine = Machine(load)
    tree = machine.run(io.BytesIO(program))
    return Contents(tree, "zip", verify=file.verify, fill=file.fill, devices=frozenset(machine.devices))


def refuse_odd_archive(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> None:
    """Only an archive as torch writes it goes further."""
    names = archive.namelist()
    if len(names) > MAX_MEMBERS or len(names) != len(members):
        raise UnsafeCheckpoint(f"refused: an archive of {len(names):,} members, {len(members):,} of them distinct")
    if bad := next((n for n in names if n.startswith("/") or "\\" in n or ".." in PurePosixPath(n).parts), None):
        raise UnsafeCheckpoint(f"refused: the archive holds a path that leads outside, {one_line(bad)}")
    pickles = [n for n in names if PurePosixPath(n).name == "data.pkl"]
    if any(PurePosixPath(n).name == "constants.pkl" for n in names):
        raise UnsafeCheckpoint("is a TorchScript archive, which holds code; save the model's state_dict() instead")
    if len(pickles) != 1:
        inside = ", ".join(one_line(n, 40) for n in names[:3])
        raise UnknownCheckpoint(f"is not a checkpoint but a zip archive (of {inside or 'nothing'})")


def locate(file: FileBytes, members: dict[str, zipfile.ZipInfo], name: str) -> tuple[int, int]:
    """First byte and length of an uncompressed member."""
    if name not in members:
        raise BrokenCheckpoint(f"the archive lacks {one_line(name)}")
    info = members[name]
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise UnsafeCheckpoint(f"refused: {one_line(name)} is compressed or encrypted, which torch never does")
    header = file.bytes(info.header_offset, 30)
    if header[:4] != b"PK\x03\x04":
        raise BrokenCheckpoint(f"the archive's entry {one_line(name)} is damaged")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + info.file_size > file.size:
        raise BrokenCheckpoint("the file is cut short")
    return start, info.file_size


def read_legacy(file: FileBytes) -> Contents:
    """torch.save before 1.6: five pickles, then the storages one after another, each behind its element count.

    The types of the storages are known from the fourth pickle, their places only after the fifth, so that the fourth
    is read twice: once to look, once to build.
    """
    kinds: dict[str, str] = {}

    def look(kind: str, key: str, count: int) -> None:
        kinds[key] = kind

    pages = cast("IO[bytes]", file.bookkeeping(MAX_PICKLE))  # reads as a file does
    if Machine(look).run(pages) != LEGACY_MAGIC:
        raise UnknownCheckpoint(
            "is a Python pickle, but not one that torch.save wrote; save a state_dict with torch.save"
        )
    Machine(look).run(pages)  # protocol version
    system = Machine(look).run(pages)
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise BrokenCheckpoint("it was written on a big-endian machine; save it again on a little-endian one")
    body = pages.tell()
    Machine(look).run(pages)
    keys = Machine(look).run(pages)
    if not isinstance(keys, list) or set(keys) != set(kinds):
        raise BrokenCheckpoint("the file's list of storages does not match its tensors")
    storages: dict[str, Storage] = {}
    place = pages.tell()
    for key in keys:
        (count,) = struct.unpack("<q", file.bytes(place, 8))
        dtype = STORAGE_DTYPES[kinds[key]]
        end = place + 8 + count * dtype.itemsize
        if count < 0 or end > file.size:
            raise BrokenCheckpoint(
                f"the file is cut short: a storage claims {count:,} elements, {file.size - place - 8:,} bytes are left"
            )
        storages[key], place = Storage(file.storage(dtype, place + 8, count, end - place - 8)), end
    pages.seek(body)
    machine = Machine(lambda _, key, __: storages[key])
    return Contents(machine.run(pages), "legacy", fill=file.fill, devices=frozenset(machine.devices))
