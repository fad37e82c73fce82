"""safetensors: the length of a header, the header as JSON (names, types, shapes, places, notes), and the tensors' bytes.

The rules of the format are checked here, not by its library, because the library maps the file into memory (see
`file_bytes`): https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from typing import TypeGuard

import torch
from torch import Tensor

from ssl_kd.checkpoints.file_bytes import FileBytes
from ssl_kd.checkpoints.formats.weights import Contents
from ssl_kd.errors import BrokenCheckpoint, one_line

LONGEST_HEADER = 100_000_000  # as the library has it
MOST_AXES = 16
METADATA = "__metadata__"
DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "C64": torch.complex64,
}


def read_safetensors(file: FileBytes) -> Contents:
    """A safetensors file. BrokenCheckpoint where header and bytes do not fit each other."""
    length = int.from_bytes(file.bytes(0, 8), "little")
    if length > LONGEST_HEADER:
        raise BrokenCheckpoint(f"the safetensors header claims {length:,} bytes")
    header = json.loads(file.bytes(8, length), object_pairs_hook=_once)
    if not isinstance(header, dict):
        raise BrokenCheckpoint("the safetensors header is no mapping")
    notes = header.pop(METADATA, {})
    if not isinstance(notes, dict) or not all(isinstance(text, str) for text in notes.values()):
        raise BrokenCheckpoint("the safetensors header's notes are not strings by name")
    entries = {name: _entry(name, given) for name, given in header.items()}
    _must_be_whole(entries, file.size - 8 - length)
    tree = {name: _tensor(file, 8 + length + begin, dtype, shape) for name, (dtype, shape, begin, _) in entries.items()}
    return Contents(tree, "safetensors", notes, fill=file.fill)


Entry = tuple[torch.dtype, list[int], int, int]  # type, shape, first byte and the one behind the last


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise BrokenCheckpoint("the safetensors header has a name twice")
    return found


def _entry(name: str, given: object) -> Entry:
    if not isinstance(given, dict) or set(given) != {"dtype", "shape", "data_offsets"}:
        raise BrokenCheckpoint(f"the safetensors header does not describe {one_line(name)}")
    dtype, shape, place = DTYPES.get(str(given["dtype"])), given["shape"], given["data_offsets"]
    if dtype is None:
        raise BrokenCheckpoint(f"{one_line(name)} is of a type that is not read here, {one_line(given['dtype'], 20)}")
    if not _numbers(shape) or len(shape) > MOST_AXES or not _numbers(place) or len(place) != 2:
        raise BrokenCheckpoint(f"shape or place of {one_line(name)} is not a list of small numbers")
    begin, end = place
    if prod(shape) * dtype.itemsize != end - begin:
        raise BrokenCheckpoint(f"{one_line(name)} claims {prod(shape):,} elements and {end - begin:,} bytes")
    return dtype, shape, begin, end


def _numbers(given: object) -> TypeGuard[list[int]]:
    return isinstance(given, list) and all(type(n) is int and 0 <= n < 2**48 for n in given)


def _must_be_whole(entries: Mapping[str, Entry], size: int) -> None:
    """The tensors lie one behind another, without overlap or gap, up to the file's end."""
    reached = 0
    for name, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != reached:
            raise BrokenCheckpoint(f"{one_line(name)} begins at byte {begin:,}, where {reached:,} is next")
        reached = end
    if reached != size:
        raise BrokenCheckpoint(
            f"the file is damaged or cut short: its tensors take {reached:,} bytes, {size:,} are there"
        )


def _tensor(file: FileBytes, start: int, dtype: torch.dtype, shape: list[int]) -> Tensor:
    count = prod(shape)
    return file.storage(dtype, start, count, count * dtype.itemsize).view(shape)
