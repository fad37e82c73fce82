"""What programs put around a network's tensors without changing one: prefixes, a level of nesting. Here it comes off.

`unwrapped` gives the file without them, step by step; `branch_of` the part of a file that a person names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ssl_kd.checkpoints.formats.report import summary
from ssl_kd.checkpoints.formats.weights import DEEPEST, Contents
from ssl_kd.errors import UnknownCheckpoint, one_line

ANYWHERE = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # by torch, at any depth
LEADING = ("module.", "model.")  # where every name of a state dict begins so
LEVELS = ("state_dict", "model", "model_state_dict", "module")
IN_FRONT = re.compile(rf"^(?:(?:{'|'.join(LEVELS)})/|module\.|model\.|_orig_mod\.|_fsdp_wrapped_module\.)+")


@dataclass(frozen=True)
class Unwrapped:
    """A file without its wrappers, and their names."""

    file: Contents
    taken_off: tuple[str, ...] = ()


def at_a_level(names: Iterable[str]) -> set[str]:
    """The levels that these paths of a file begin with, where all of them begin with one; nothing otherwise."""
    tops = {name.partition("/")[0] if "/" in name else "" for name in names}
    return tops if tops <= set(LEVELS) else set()


def unwrapped(file: Contents) -> Iterator[Unwrapped]:
    """The file without prefixes, then without one level of nesting after another. Nothing where there are no wrappers."""
    off: set[str] = set()
    nodes = _clean(file.nodes, off, 0)
    if off:
        yield Unwrapped(replace(file, nodes=nodes), tuple(sorted(off)))
    while isinstance(nodes, Mapping):
        levels = [name for name in LEVELS if isinstance(nodes.get(name), Mapping)]
        if len(levels) != 1 or not nodes[levels[0]]:
            return
        nodes = nodes[levels[0]]
        off.add(levels[0])
        yield Unwrapped(replace(file, nodes=nodes), tuple(sorted(off)))


def _clean(node: object, off: set[str], depth: int) -> object:
    """Mappings with cleaned names; anything else as it is."""
    if not isinstance(node, Mapping) or depth > DEEPEST:
        return node
    names = {key: key for key in node}
    tensors = [key for key, value in node.items() if isinstance(key, str) and isinstance(value, Tensor)]
    found: set[str] = set()
    for key in tensors:
        names[key] = ANYWHERE.sub("", key)
        found |= set(ANYWHERE.findall(key))
    while tensors and (front := next((p for p in LEADING if all(names[k].startswith(p) for k in tensors)), None)):
        names |= {key: names[key].removeprefix(front) for key in tensors}
        found.add(front)
    if len(set(names.values())) != len(names):  # two would have one name
        names, found = {key: key for key in node}, set()
    off |= found
    return {names[key]: _clean(value, off, depth + 1) for key, value in node.items()}


def branch_of(file: Contents, branch: str) -> Contents:
    """The tensors below a place (`state_dict/module.encoder.`), without it. UnknownCheckpoint where there are none.

    Wrappers in front of the place need not be written. A dot or slash at its end may be left out.
    """
    leaves = list(file.leaves())
    for shorten in (lambda path: path, lambda path: ANYWHERE.sub("", IN_FRONT.sub("", path))):
        rest = {}
        for path, tensor in leaves:
            name = shorten(path)
            below = name[len(branch) :]
            if name.startswith(branch) and below and (branch.endswith((".", "/")) or below[0] in "./"):
                rest[below.lstrip("./")] = tensor
        if rest:
            return replace(file, nodes=_nested(rest))
    raise UnknownCheckpoint(
        f"branch: no tensor lies below {one_line(branch)}; the file has {summary([path for path, _ in leaves])}"
    )


def _nested(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Tensors by path as nested mappings."""
    tree: dict[str, object] = {}
    for path, tensor in state.items():
        *above, leaf = path.split("/")
        node = tree
        for key in above:
            below = node.setdefault(key, {})
            node = below if isinstance(below, dict) else {}
        node[leaf] = tensor
    return tree
