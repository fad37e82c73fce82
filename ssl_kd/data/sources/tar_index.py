"""A tar archive -> where each member lies, read from its headers alone; nothing is ever unpacked.

The standard library's tarfile takes some 50 microseconds a member and forgives much; a training set has millions, and a
loss of members must not go unnoticed. So this reader knows only where data begins, is strict about structure (check
sums, sizes within the file, an end mark), and leaves judging a member by its kind to the caller.

Formats: V7, ustar, GNU (long names), pax. Source: POSIX.1-2017 "pax", GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512
AHEAD = 4096  # bytes read at a header: a small label file and the next header often lie in them
EXTENDED = 1 << 20  # a longer list of long names or pax records is not a list of names
PADDING = 1 << 20  # zeros that may follow the end mark; writers pad to 10 KiB
ZEROS = bytes(BLOCK)
PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
# Kinds of members by type flag; all others hold ordinary data. Links, devices and folders have no data behind them.
EMPTY = {b"1": "link", b"2": "link", b"3": "device", b"4": "device", b"5": "folder", b"6": "pipe"}
FILE, SPARSE = "file", "sparse"


class TarError(Exception):
    """The archive's structure is broken; the message says what and at which byte, without the archive's name."""


class Member(NamedTuple):
    """One member: its name as stored, the first byte of its data, the data's length in bytes, and its kind."""

    name: bytes
    data: int
    size: int
    kind: str  # file, link, device, folder, pipe or sparse


def members(descriptor: int, length: int) -> Iterator[Member]:
    """Yield the members of the archive of `length` bytes that is open at `descriptor`, in their order.

    Raises TarError for compressed, damaged and cut archives, at the place where that shows.
    """
    at, base, buffer = 0, 0, b""
    told: dict[bytes, bytes] = {}  # what long-name and pax headers say about the next member
    while True:
        if not base <= at <= base + len(buffer) - BLOCK:
            base, buffer = at, os.pread(descriptor, AHEAD, at)
        block = buffer[at - base : at - base + BLOCK]
        if len(block) < BLOCK:
            raise TarError(f"ends at byte {length} without an end mark: cut short")
        if block == ZEROS:
            _must_end(descriptor, at, length)
            return
        if not is_header(block):
            raise TarError(_no_header(block, at))
        kind = block[156:157]
        size = _size(told, block, at)
        data = at + BLOCK
        if kind == b"S" and block[482]:
            data = _behind_sparse_map(descriptor, data)
        if kind in EMPTY:
            size = 0
        at = data + -(-size // BLOCK) * BLOCK
        if data + size > length:
            name = ascii(_name(told, block))[2:-1]
            raise TarError(
                f"member {name} at byte {data - BLOCK} claims {size} bytes, but the file has {length}: cut short"
            )
        if kind in b"LKxXg":
            told |= _extended(kind, descriptor, data, size)
        else:
            yield Member(_name(told, block), data, size, _kind(told, kind))
            if told:
                told = {}


def is_header(block: bytes) -> bool:
    """Whether 512 bytes carry the check sum that every tar header has: the sum of its bytes, itself taken as spaces."""
    try:
        stated = int(block[148:156].split(b"\0", 1)[0], 8)
    except ValueError:
        return False
    # The low half of Adler-32 is one more than the sum of the bytes, modulo 65521, and comes at C's speed.
    total = (zlib.adler32(block) & 0xFFFF) - 1 - sum(block[148:156]) + 8 * 32
    return len(block) == BLOCK and (total - stated) % 65521 == 0


def _no_header(block: bytes, at: int) -> str:
    packer = next((name for magic, name in PACKERS.items() if at == 0 and block.startswith(magic)), "")
    if packer:
        return f"packed by {packer}; a shard must be a plain tar, or its pictures cannot be found without unpacking it"
    return f"no member header at byte {at}: " + ("damaged, or members are lost" if at else "not a tar archive")


def _must_end(descriptor: int, at: int, length: int) -> None:
    """Nothing but zeros may follow the end mark: no second archive, no hole in the middle of one."""
    rest = os.pread(descriptor, PADDING + 1, at)
    if len(rest) > PADDING or rest.strip(b"\0"):
        raise TarError(f"end mark at byte {at}, but the file has {length}: two archives in one file, or a damaged one")


def _size(told: dict[bytes, bytes], block: bytes, at: int) -> int:
    try:
        if told and b"size" in told:
            size = int(told[b"size"])
        elif block[124] & 0x80:  # base 256, for 8 GiB and more
            size = int.from_bytes(block[124:136], "big", signed=True) + (1 << 95)
        else:
            size = int(block[124:136].split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        size = -1
    if size < 0:
        raise TarError(f"the member at byte {at} states a size that is none")
    return size


def _name(told: dict[bytes, bytes], block: bytes) -> bytes:
    if told and (name := told.get(b"GNU.sparse.name") or told.get(b"path")) is not None:
        return name
    name = block[:100].split(b"\0", 1)[0]
    if block[345] and block[257:263] == b"ustar\0":
        return block[345:500].split(b"\0", 1)[0] + b"/" + name
    return name


def _kind(told: dict[bytes, bytes], flag: bytes) -> str:
    if flag == b"S" or (told and any(key.startswith(b"GNU.sparse.") for key in told)):
        return SPARSE
    return EMPTY.get(flag, FILE)


def _behind_sparse_map(descriptor: int, at: int) -> int:
    """The first byte behind the further blocks of an old GNU sparse map."""
    while True:
        block = os.pread(descriptor, BLOCK, at)
        if len(block) < BLOCK:
            raise TarError(f"a sparse map at byte {at} has no end: cut short")
        at += BLOCK
        if not block[504]:
            return at


def _extended(flag: bytes, descriptor: int, at: int, size: int) -> dict[bytes, bytes]:
    """What an extended header says about the next member."""
    if size > EXTENDED:
        raise TarError(f"an extended header at byte {at - BLOCK} claims {size} bytes, more than {EXTENDED}")
    body = os.pread(descriptor, size, at)
    if flag == b"K":
        return {}
    if flag == b"L":
        return {b"path": body.split(b"\0", 1)[0]}
    records = _records(body, at)
    if flag == b"g" and any(key in (b"path", b"size") or key.startswith(b"GNU.sparse.") for key in records):
        raise TarError(f"a global header at byte {at - BLOCK} renames or resizes all members, which is not supported")
    return {} if flag == b"g" else records


def _records(body: bytes, at: int) -> dict[bytes, bytes]:
    """Read pax records: each is its own length in decimal, a space, key=value and a line end."""
    records: dict[bytes, bytes] = {}
    start = 0
    while start < len(body) and body[start]:
        digits, space, _ = body[start : start + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = body[start + len(digits) + 1 : start + length]
        key, equals, value = record.partition(b"=")
        if not (space and equals and record.endswith(b"\n")) or len(record) != length - len(digits) - 1:
            raise TarError(f"an extended header at byte {at - BLOCK} is damaged")
        records[key] = value[:-1]
        start += length
    return records
