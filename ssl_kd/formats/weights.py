"""What a format makes of a file, and the three verbs on state dicts: select a branch, drop a head, rename keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ssl_kd.encoder import Preprocessing
from ssl_kd.errors import BrokenCheckpoint

State = dict[str, Tensor]


@dataclass(frozen=True)
class Contents:
    """A weight file as plain data: nothing in it has run, and no tensor has been copied yet."""

    tree: Any  # nested dicts, lists, numbers, strings and tensors
    container: str  # "zip" or "legacy" (torch.save of today and before 1.6), or "safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict)  # safetensors' own header entry

    def at(self, *path: str) -> Any:
        """The entry below these keys, or None."""
        node = self.tree
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def state(self, *path: str) -> State:
        """The tensors right below these keys, by name; empty when there are none."""
        node = self.at(*path)
        return (
            {k: v for k, v in node.items() if isinstance(k, str) and isinstance(v, Tensor)}
            if isinstance(node, Mapping)
            else {}
        )

    def tensors(self) -> Iterator[str]:
        """Path of every tensor in the file, keys joined by '/'."""
        todo: list[tuple[str, Any]] = [("", self.tree)]
        while todo:  # not recursive: files may nest deeper than Python's stack
            path, node = todo.pop()
            if isinstance(node, Tensor):
                yield path
            elif isinstance(node, Mapping):
                todo += [(f"{path}/{key}" if path else str(key), value) for key, value in reversed(node.items())]
            elif isinstance(node, (list, tuple)):
                todo += [(f"{path}/{i}" if path else str(i), value) for i, value in reversed(list(enumerate(node)))]


@dataclass(frozen=True)
class Weights:
    """The official branch of a checkpoint in the names of an architecture, ready to be loaded strictly."""

    arch: str
    arch_args: dict[str, Any]
    state: State
    preprocessing: Preprocessing
    feature: str
    origin: str
    branch: str  # where in the file the tensors were, in words that a reader of the file understands
    used: tuple[str, ...]  # paths in the file, as Contents.tensors() spells them


@dataclass(frozen=True)
class Format:
    """One row of the table: who writes such files, how to tell, how to read them."""

    name: str
    family: str
    wrote: str  # the published files or the program behind them, for people
    matches: Callable[[Contents], bool]
    convert: Callable[[Contents], Weights]


def select(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names start with the prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def drop(state: Mapping[str, Tensor], heads: Sequence[str]) -> State:
    """All but the tensors whose names start with one of the listed heads, such as 'fc.'."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(tuple(heads))}


def rename(state: Mapping[str, Tensor], rules: Mapping[str, str]) -> State:
    """Each name rewritten by every rule, a regular expression and its replacement, in order; no two may collide."""
    out: State = {}
    for name, tensor in state.items():
        for pattern, new in rules.items():
            name = re.sub(pattern, new, name)
        if name in out:
            raise BrokenCheckpoint(f"two tensors of the file would both be {name}")
        out[name] = tensor
    return out
