"""Weights in several files with an index beside them, as `save_pretrained` leaves them: read as one file would be.

`model.safetensors.index.json` (or `pytorch_model.bin.index.json`) says for every tensor in which shard it lies. Each shard is
opened, but its tensors are read only where they are asked for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ssl_kd.checkpoints.formats.weights import Contents, shown
from ssl_kd.checkpoints.torch_file import open_contents
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, one_line

INDEX = ".index.json"
LARGEST_INDEX = 1 << 26  # bytes; of a network with 7 billion parameters it has a hundredth
MOST_SHARDS = 256  # each is held open
PART = re.compile(r"-(\d{5})-of-(\d{5})\.(safetensors|bin|pt|pth)$")


def refuse_a_part(path: Path) -> None:
    """CheckpointError for a shard on its own."""
    found = PART.search(path.name)
    if found and int(found[2]) > 1:
        raise CheckpointError(
            f"is part {int(found[1])} of {int(found[2])} of a network (a shard); name the folder, or the index beside it "
            f"({PART.sub('', path.name)}.{found[3]}{INDEX})"
        )


def read_json(path: Path, most: int = LARGEST_INDEX) -> dict[str, object]:
    """A JSON file that holds a mapping. BrokenCheckpoint, by the file's name, for anything else."""
    try:
        with open(path, "rb") as file:
            text = file.read(most + 1)
        if len(text) > most:
            raise BrokenCheckpoint(f"{path.name} is longer than {most / 1e6:,.0f} MB")
        found = json.loads(text)
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BrokenCheckpoint(f"{path.name} is not readable as JSON: {one_line(error, 100)}") from error
    if not isinstance(found, dict):
        raise BrokenCheckpoint(f"{path.name} holds no mapping")
    return found


def open_index(index: Path) -> tuple[Contents, int]:
    """What all shards of an index hold together, and how many bytes they have. CheckpointError for one that is amiss."""
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise BrokenCheckpoint(f"{index.name} has no weight_map from tensors to files")
    files = sorted(set(where.values()))
    if len(files) > MOST_SHARDS:
        raise BrokenCheckpoint(f"{index.name} names {len(files):,} files; expected at most {MOST_SHARDS}")
    opened = {file: _shard(index, file) for file in files}
    nodes: dict[str, Tensor] = {}
    lying = {file: part.nodes if isinstance(part.nodes, Mapping) else {} for file, part in opened.items()}
    for name, file in where.items():
        tensor = lying[file].get(name)
        if not isinstance(tensor, Tensor):
            raise BrokenCheckpoint(f"{index.name} says that {one_line(name)} lies in {file}, which lacks it")
        nodes[name] = tensor
    surplus = [name for part in opened.values() for name in part.tensors() if name not in nodes]
    if surplus:
        raise BrokenCheckpoint(
            f"its shards hold {len(surplus)} tensors that {index.name} does not name: {shown(surplus)}"
        )
    parts = list(opened.values())
    if len({part.container for part in parts}) > 1:
        raise BrokenCheckpoint(f"{index.name} names files of several kinds")
    size = sum((index.parent / file).stat().st_size for file in files)
    fill, verify = _routed(parts, "fill"), _routed(parts, "verify")
    return Contents(nodes, parts[0].container, parts[0].metadata, verify, fill), size


def _shard(index: Path, file: str) -> Contents:
    if Path(file).name != file or not PART.search(file):
        raise BrokenCheckpoint(f"{index.name} names {one_line(file)}, which is no shard beside it")
    try:
        found = open_contents(index.parent / file)
    except CheckpointError as error:
        raise type(error)(f"shard {file}: {error}") from error
    if not isinstance(found.nodes, Mapping):
        raise BrokenCheckpoint(f"shard {file}: holds no tensors by name")
    return found


def _routed(parts: list[Contents], verb: str) -> Callable[[Iterable[Tensor]], None]:
    """`fill` or `verify` of many files: each is asked for its own tensors."""
    home = {_place(tensor): number for number, part in enumerate(parts) for _, tensor in part.leaves()}

    def run(tensors: Iterable[Tensor]) -> None:
        split: dict[int, list[Tensor]] = {}
        for tensor in tensors:
            if (number := home.get(_place(tensor))) is not None:
                split.setdefault(number, []).append(tensor)
        for number, own in split.items():
            getattr(parts[number], verb)(own)

    return run


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
