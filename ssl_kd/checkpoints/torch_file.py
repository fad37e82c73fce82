"""The containers that weights come in: torch's zip, torch's older stream, safetensors. All are read in place.

A file is mapped into memory and tensors are views of its pages, so looking at the teacher in a 1.5 GB training
checkpoint touches the teacher's bytes only. The mapping is private: nothing here can write to the file.
"""

from __future__ import annotations

import io
import mmap
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from ssl_kd.checkpoints.formats.weights import Contents
from ssl_kd.checkpoints.unpickler import STORAGE_DTYPES, Machine, Storage
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UnknownCheckpoint, UnsafeCheckpoint, one_line

MAX_MEMBERS = 200_000
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
        with path.open("rb") as file:
            start = file.read(512)
            if not start:
                raise CheckpointError("the file is empty")
            pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise CheckpointError("no such file") from None
    except OSError as error:
        raise CheckpointError(f"cannot be opened: {error.strerror}") from error
    if start.startswith(b"PK\x03\x04"):
        return guarded(read_zip, pages)
    # Before the pickle: one safetensors header in 32 has a length whose first byte is a pickle's too.
    if len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= len(pages) - 8:
        return read_safetensors(path)
    if start[:1] == b"\x80":
        return guarded(read_legacy, pages)
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


def guarded(read: Callable[[mmap.mmap], Contents], pages: mmap.mmap) -> Contents:
    """The contents, with damage reported as BrokenCheckpoint."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's codecs remark on the odd escapes of a damaged pickle
            return read(pages)
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, MemoryError, *DAMAGE) as error:
        reason = one_line(error, 120) or type(error).__name__
        raise BrokenCheckpoint(f"the file is damaged or cut short: {reason}") from error


def view(pages: mmap.mmap, dtype: torch.dtype, start: int, count: int) -> Tensor:
    """`count` numbers from byte `start`, without a copy."""
    return torch.frombuffer(pages, dtype=dtype, count=count, offset=start) if count else torch.empty(0, dtype=dtype)


def read_zip(pages: mmap.mmap) -> Contents:
    """torch.save since 1.6: a zip of data.pkl and one uncompressed record per storage."""
    file: Any = pages  # a mapping reads and seeks as a file does
    archive = zipfile.ZipFile(file)
    members = {info.filename: info for info in archive.infolist()}
    refuse_odd_archive(archive, members)
    root = next(name for name in members if PurePosixPath(name).name == "data.pkl").removesuffix("data.pkl")
    find = partial(locate, pages, members)
    start, size = find(f"{root}data.pkl")
    if f"{root}byteorder" in members:
        place, length = find(f"{root}byteorder")
        if pages[place : place + length] != b"little":
            raise BrokenCheckpoint("it was written on a big-endian machine; save it again on a little-endian one")
    records: dict[int, tuple[int, zipfile.ZipInfo]] = {}
    loaded: dict[str, Storage] = {}

    def load(kind: str, key: str, count: int) -> Storage:
        if key not in loaded:
            dtype = STORAGE_DTYPES[kind]
            place, length = find(f"{root}data/{key}")
            count = count if "Untyped" not in kind else length
            if count * dtype.itemsize > length:
                raise BrokenCheckpoint(
                    f"a tensor claims {count:,} elements where the file holds {length // dtype.itemsize:,}"
                )
            loaded[key] = Storage(view(pages, dtype, place, count))
            records[loaded[key].flat.data_ptr()] = (place, members[f"{root}data/{key}"])
        return loaded[key]

    check_sum(pages, start, members[f"{root}data.pkl"])
    tree = Machine(load).run(io.BytesIO(pages[start : start + size]))
    return Contents(tree, "zip", verify=partial(verify, pages, records))


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


def locate(pages: mmap.mmap, members: dict[str, zipfile.ZipInfo], name: str) -> tuple[int, int]:
    """First byte and length of an uncompressed member."""
    if name not in members:
        raise BrokenCheckpoint(f"the archive lacks {one_line(name)}")
    info = members[name]
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
        raise UnsafeCheckpoint(f"refused: {one_line(name)} is compressed or encrypted, which torch never does")
    header = pages[info.header_offset : info.header_offset + 30]
    if header[:4] != b"PK\x03\x04":
        raise BrokenCheckpoint(f"the archive's entry {one_line(name)} is damaged")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + info.file_size > len(pages):
        raise BrokenCheckpoint("the file is cut short")
    return start, info.file_size


def check_sum(pages: mmap.mmap, start: int, info: zipfile.ZipInfo) -> None:
    """BrokenCheckpoint when a member's bytes are not those that were written."""
    # torch writes 0 for every member when it is told to skip checksums.
    if info.CRC and zlib.crc32(memoryview(pages)[start : start + info.file_size]) != info.CRC:
        raise BrokenCheckpoint(f"the file is damaged: the checksum of {one_line(info.filename)} does not match")


def verify(pages: mmap.mmap, records: dict[int, tuple[int, zipfile.ZipInfo]], used: Iterable[Tensor]) -> None:
    """Check the sums of the records that these tensors live in: damage elsewhere in the file does not matter."""
    for pointer in {tensor.untyped_storage().data_ptr() for tensor in used} & set(records):
        check_sum(pages, *records[pointer])


def read_legacy(pages: mmap.mmap) -> Contents:
    """torch.save before 1.6: five pickles, then the storages one after another, each behind its element count.

    The types of the storages are known from the fourth pickle, their places only after the fifth, so that the fourth
    is read twice: once to look, once to build.
    """
    kinds: dict[str, str] = {}

    def look(kind: str, key: str, count: int) -> None:
        kinds[key] = kind

    pages.seek(0)
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
        (count,) = struct.unpack("<q", pages[place : place + 8])
        dtype = STORAGE_DTYPES[kinds[key]]
        end = place + 8 + count * dtype.itemsize
        if count < 0 or end > len(pages):
            raise BrokenCheckpoint(
                f"the file is cut short: a storage claims {count:,} elements, {len(pages) - place - 8:,} bytes are left"
            )
        storages[key], place = Storage(view(pages, dtype, place + 8, count)), end
    pages.seek(body)
    return Contents(Machine(lambda _, key, __: storages[key]).run(pages), "legacy")


def read_safetensors(path: Path) -> Contents:
    """A safetensors file: a JSON header and bytes; the library checks that they fit."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return Contents({key: file.get_tensor(key) for key in file.keys()}, "safetensors", file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, RuntimeError, MemoryError, *DAMAGE) as error:
        raise BrokenCheckpoint(f"the safetensors file is damaged or cut short: {one_line(error, 120)}") from error
