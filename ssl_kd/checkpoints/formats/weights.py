"""What a format makes of a file, and the three verbs on state dicts: select a branch, drop a head, rename keys."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ssl_kd.errors import BrokenCheckpoint, one_line
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space_head import SpaceHead

DEEPEST = 30  # levels of nesting; the published files have at most nine
UNKNOWN = "of unknown origin"  # what is said of a network whose file does not tell whose it is
COMPILED = "_orig_mod."  # what torch.compile puts before the names of a module's tensors
SMALL = 1 << 16  # elements: biases, norms and tokens, which some formats must look at
LONGEST = 500  # characters of a path; in the published files at most a hundred
State = dict[str, Tensor]
Rules = Mapping[str, str | Callable[[re.Match[str]], str]]  # regular expression -> replacement, as in re.sub


@dataclass(frozen=True)
class Contents:
    """A weight file as plain data: nothing in it has run.

    A tensor's shape is known at once, its values are read when `tree`, `at` or `state` return it. Not so while `reading`
    is off, as when formats are compared: names and shapes tell them apart, and values are zeros until then.
    """

    nodes: object  # nested dicts, lists, numbers, strings and tensors, whose values may not be read yet
    container: str  # "zip" or "legacy" (torch.save of today and before 1.6), or "safetensors"
    metadata: Mapping[str, str] = field(default_factory=dict)  # safetensors' own header entry
    verify: Callable[[Iterable[Tensor]], None] = lambda used: None  # raises where their bytes are damaged
    fill: Callable[[Iterable[Tensor]], None] = lambda wanted: None  # reads their values
    reading: bool = True
    config: Mapping[str, object] = field(
        default_factory=dict
    )  # of config.json beside the file, as transformers writes it
    devices: frozenset[str] = frozenset()  # on which the tensors lay when they were saved; safetensors does not say
    vouched: bool = False  # somebody who knows the file named its format

    @property
    def tree(self) -> object:
        """Everything in the file."""
        return self.at()

    def size(self) -> int:
        """How many entries there are at the root, weights and bookkeeping."""
        return len(self.nodes) if isinstance(self.nodes, (Mapping, list, tuple)) else 0

    def leaves(self) -> Iterator[tuple[str, Tensor]]:
        """Path of every tensor in the file as it stands there, and the tensor, whose values may not be read yet."""
        return _leaves(self.nodes)

    def at(self, *path: str) -> object:
        """The entry below these keys, or None."""
        node = self._node(path)
        if self.reading:
            self.fill(tensor for _, tensor in _leaves(node))
        return node

    def _node(self, path: Sequence[str]) -> object:
        node = self.nodes
        for key in path:
            node = node.get(key) if isinstance(node, Mapping) else None
        return node

    def state(self, *path: str) -> State:
        """The tensors right below these keys, by name; empty when there are none."""
        node = self._node(path)
        items = node.items() if isinstance(node, Mapping) else ()
        state = {key: value for key, value in items if isinstance(key, str) and isinstance(value, Tensor)}
        if any(COMPILED in key for key in state):
            state = rename(state, {rf"(^|\.){re.escape(COMPILED)}": r"\1"})
        if self.reading:
            self.fill(state.values())
        return state

    def tensors(self) -> Iterator[str]:
        """Path of every tensor in the file, keys joined by '/', down to DEEPEST levels; a longer path than LONGEST is cut.

        torch.compile's `_orig_mod.` changes no weight, and is left out of the names here as everywhere.
        """
        return (re.sub(rf"(^|[./]){re.escape(COMPILED)}", r"\1", path) for path, _ in _leaves(self.nodes))

    def outline(self) -> Contents:
        """The same file, whose larger tensors have a shape and no memory: what it is takes no more to see."""

        def small(wanted: Iterable[Tensor]) -> None:
            self.fill([tensor for tensor in wanted if not tensor.is_meta])

        return replace(self, nodes=_outlined(self.nodes), fill=small)

    def without_values(self) -> Contents:
        """The same file, whose tensors keep their shapes and are not read."""
        return replace(self, reading=False)

    def credit(self, lab: str, what: str, sure: bool, like: str = "") -> str:
        """Whose network it is, in words. Where the file does not decide it and nobody vouches, its origin is unknown."""
        return f"{lab} {what}" if sure or self.vouched else f"{what} {UNKNOWN}, read as {like or possessive(lab)}"


def _outlined(node: object, depth: int = 0) -> object:
    if isinstance(node, Tensor):
        return node if node.numel() <= SMALL else torch.empty(node.shape, dtype=node.dtype, device="meta")
    if isinstance(node, Mapping) and depth < DEEPEST:
        return {key: _outlined(value, depth + 1) for key, value in node.items()}
    return None if isinstance(node, (list, tuple)) else node


def possessive(lab: str) -> str:
    """DINO's, Barlow Twins'."""
    return f"{lab}'" if lab.endswith("s") else f"{lab}'s"


def _leaves(tree: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor below a node and its path."""
    todo: list[tuple[str, int, object]] = [("", 0, tree)]
    seen: set[int] = set()  # a file may hold a list that holds itself, or one list a billion times
    while todo:
        path, depth, node = todo.pop()
        if isinstance(node, Tensor):
            yield path, node
        elif isinstance(node, (Mapping, list, tuple)) and id(node) not in seen and depth < DEEPEST:
            seen.add(id(node))
            items = node.items() if isinstance(node, Mapping) else enumerate(node)
            below = [((f"{path}/{key}" if path else str(key))[:LONGEST], depth + 1, value) for key, value in items]
            todo += reversed(below)


@dataclass(frozen=True)
class Weights:
    """The branch that the authors evaluate, in the names of an architecture, ready to be loaded strictly."""

    arch: str
    arch_args: dict[str, object]
    dim: int  # width of the default feature
    state: State
    preprocessing: Preprocessing
    feature: str
    origin: str
    branch: str  # where the tensors were in the file, for people
    used: Mapping[str, Tensor]  # path in the file -> tensor, as it is there
    heads: Mapping[str, SpaceHead] = field(default_factory=dict)  # into other spaces, by the names of features

    def __post_init__(self) -> None:
        for name, tensor in self.used.items():
            must_be_held(name, tensor)


def must_be_held(name: str, tensor: Tensor) -> Tensor:
    """The tensor. BrokenCheckpoint where stride 0 lets a few bytes claim terabytes: such a thing is nobody's weight."""
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise BrokenCheckpoint(f"{shown([name])} claims {tensor.numel():,} elements and holds fewer")
    return tensor


@dataclass(frozen=True)
class Format:
    """One row of the table: who writes such files, how to tell, how to read them."""

    name: str
    family: str
    wrote: str  # the published files or the program behind them, for people
    reads: str  # the branch and the default feature, for people
    pixels: Preprocessing  # what the authors' evaluation feeds it
    matches: Callable[[Contents], bool]
    convert: Callable[[Contents], Weights]


@dataclass(frozen=True)
class Place:
    """A state dict in a file: the keys that lead to it, what stands before its names, and it without that."""

    path: tuple[str, ...]
    prefix: str
    state: State

    @property
    def where(self) -> str:
        """For people: `state_dict/module.encoder.`."""
        return "/".join([*self.path, self.prefix]).removesuffix("/") or "the whole file"

    @property
    def used(self) -> dict[str, Tensor]:
        """Its tensors by their paths in the file."""
        return paths(("/".join([*self.path, self.prefix]), self.state))


WRAPPED = ("", "module.")  # DataParallel puts the second before the names


def find(
    file: Contents,
    matches: Callable[[State], bool],
    places: Iterable[Sequence[str]] = ((),),
    prefixes: Sequence[str] = WRAPPED,
) -> Place | None:
    """The first state dict that matches, below one of the places, under one of the prefixes; its values are not read."""
    for path in places:
        whole = file.without_values().state(*path)
        for prefix in prefixes:
            if matches(state := select(whole, prefix)):
                return Place(tuple(path), prefix, state)
    return None


def anywhere(file: Contents, matches: Callable[[State], bool]) -> Place | None:
    """The one state dict in the file that matches, whatever leads to it; None where there is none, or more than one."""
    found = [place for place in backbones(file) if matches(place.state)]
    return found[0] if len(found) == 1 else None


def must(place: Place | None, what: str) -> Place:
    """The place; BrokenCheckpoint where a format was named that the file is not laid out as."""
    if place is None:
        raise BrokenCheckpoint(f"holds no place for {what}, or more than one")
    return place


# A first layer and the first block of each kind of network that is read here: only a backbone has both.
BACKBONES = (
    ("conv1.weight", "layer1.0.conv1.weight"),
    ("patch_embed.proj.weight", "blocks.0.norm1.weight"),
)


def backbones(file: Contents) -> Iterator[Place]:
    """Every ResNet and ViT in the file by its names, wherever it lies and whatever stands before them."""
    file = file.without_values()
    folders = dict.fromkeys(tuple(path.split("/")[:-1]) for path in file.tensors())
    for folder in folders:
        state = file.state(*folder)
        for first, block in BACKBONES:
            for name in [name for name in state if name == first or name.endswith(f".{first}")]:
                prefix = name.removesuffix(first)
                if f"{prefix}{block}" in state:
                    yield Place(folder, prefix, select(state, prefix))


def select(state: Mapping[str, Tensor], prefix: str) -> State:
    """The tensors whose names start with the prefix, without it."""
    return {name[len(prefix) :]: tensor for name, tensor in state.items() if name.startswith(prefix)}


def drop(state: Mapping[str, Tensor], heads: Sequence[str]) -> State:
    """All but the tensors whose names start with one of the listed heads, such as 'fc.'."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(tuple(heads))}


def rename(state: Mapping[str, Tensor], rules: Rules) -> State:
    """Each name rewritten by every rule in order; BrokenCheckpoint when two tensors would get one name."""
    out: State = {}
    for name, tensor in state.items():
        new = name
        for pattern, replacement in rules.items():
            new = re.sub(pattern, replacement, new)
        if new in out:
            raise BrokenCheckpoint(f"two tensors of the file would both be {shown([new])}")
        out[new] = tensor
    return out


def require(state: Mapping[str, Tensor], expected: Iterable[str], what: str) -> None:
    """BrokenCheckpoint unless the state dict holds exactly these names; batch norm's step counters may lack."""
    wanted = set(expected)
    missing = [name for name in wanted - set(state) if not name.endswith("num_batches_tracked")]
    surplus = set(state) - wanted
    for problem, names in (("lacks", missing), ("has no place for", surplus)):
        if names:
            raise BrokenCheckpoint(f"{what} {problem} {len(names)} tensors: {shown(sorted(names))}")


def shown(names: Sequence[str], most: int = 4) -> str:
    """The first names, on one line whatever they contain."""
    text = ", ".join(one_line(name) for name in names[:most])
    return f"{text}, ..." if len(names) > most else text


def paths(*places: tuple[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Tensors by their place in the file: each (prefix as written there, tensors without it) in turn."""
    return {f"{prefix}{name}": tensor for prefix, tensors in places for name, tensor in tensors.items()}
