"""Reads the pickles inside torch files as data. Nothing in a file is ever called.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
This one has no such step: its opcodes build numbers, strings, lists and dicts; a call is looked up by name in REBUILD,
a table of our own functions; classes that only carry settings (INERT) become empty records. Any other name is refused.
`torch.load(weights_only=True)` follows the same idea, but believes the sizes that a file claims; here each claim is
checked against the bytes that are there, and work and nesting are bounded by the size of the pickle.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_kd.errors import BrokenCheckpoint, UnsafeCheckpoint

MAX_OPCODES = 4_000_000  # published files have some ten thousand; this is a few seconds of work
SCALARS = (str, int, float, bool, bytes, type(None))


@dataclass(eq=False)
class Inert:
    """An object of a class that only carries settings, such as argparse.Namespace: its name and what came with it."""

    name: str
    given: tuple[Any, ...] = ()
    state: Any = None


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions, found in one of the tables below."""

    path: str


@dataclass(frozen=True)
class Storage:
    """The bytes of one saved storage, as a flat tensor over the file's pages."""

    flat: Tensor


def rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor | None:
    """A view of a storage; BrokenCheckpoint when it reaches beyond the bytes that are there."""
    if storage is None:  # the first of two passes over an old file, see containers.read_legacy
        return None
    if not isinstance(storage, Storage):
        raise BrokenCheckpoint("a tensor has no storage")
    numbers = (offset, *size, *stride)
    if any(type(n) is not int or not 0 <= n < 2**48 for n in numbers) or len(size) != len(stride) or len(size) > 16:
        raise BrokenCheckpoint("a tensor's size, stride or offset is not a list of small numbers")
    reach = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if all(size) else 0
    if reach > storage.flat.numel():
        raise BrokenCheckpoint(f"a tensor claims {reach:,} elements where the file holds {storage.flat.numel():,}")
    try:
        return storage.flat.as_strided(size, stride, offset)
    except RuntimeError as error:  # more elements than a 64-bit number counts
        raise BrokenCheckpoint("a tensor has more elements than can be counted") from error


def rebuild_typed(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Any:
    """A tensor whose dtype has no storage class of its own, so that it is named beside raw bytes."""
    kind = DTYPES.get(dtype.path) if isinstance(dtype, Global) else None
    if kind is None or not isinstance(storage, Storage) or storage.flat.numel() % kind.itemsize:
        return Inert("tensor of an unusual dtype")
    return rebuild_tensor(Storage(storage.flat.view(kind)), offset, size, stride)


def rebuild_number(dtype: Any, data: Any = None) -> Any:
    """A numpy scalar (some training scripts save learning rates so) as a Python number."""
    kind = dtype.given[0] if isinstance(dtype, Inert) and dtype.given else None
    if kind in ("f8", "f4", "f2", "i8", "i4", "u1", "b1") and isinstance(data, bytes) and len(data) == int(kind[1]):
        return np.frombuffer(data, f"<{kind}")[0].item()
    return Inert("numpy scalar")


def rebuild_bytes(text: Any = "", codec: Any = "latin1") -> Any:
    """The few bytes of a numpy scalar, which protocol 2 writes as text. Longer ones are nobody's weights."""
    return (
        text.encode("latin1", "replace")
        if isinstance(text, str) and len(text) <= 64 and codec == "latin1"
        else Inert("bytes")
    )


def rebuild_ordered(given: Any = ()) -> OrderedDict[Any, Any]:
    """An ordered dict, empty or from the pairs that Python 2 wrote."""
    return OrderedDict((checked_key(pair[0]), pair[1]) for pair in given)


def keep(name: str) -> Callable[..., Inert]:
    """A function that does nothing but remember the plain ones of its arguments."""
    return lambda *args: Inert(name, tuple(a for a in args if isinstance(a, SCALARS)))


# Every call that is answered, and our function that answers it.
REBUILD: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": rebuild_ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda *_: {},
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_typed,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": lambda size=(): tuple(size),
    "numpy.core.multiarray.scalar": rebuild_number,
    "numpy._core.multiarray.scalar": rebuild_number,
    "_codecs.encode": rebuild_bytes,
}

# Settings, bookkeeping and numbers that no weight needs: read as empty records.
INERT = {
    "argparse.Namespace",
    "types.SimpleNamespace",
    "easydict.EasyDict",
    "addict.addict.Dict",
    "yacs.config.CfgNode",
    "torch.device",
    "torch._utils._rebuild_qtensor",
    "torch._utils._rebuild_sparse_tensor",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "copy_reg._reconstructor",
    "copyreg._reconstructor",
    *(f"builtins.{name}" for name in ("object", "set", "frozenset", "bytearray", "complex", "slice", "range")),
    *(f"__builtin__.{name}" for name in ("object", "set", "frozenset", "bytearray", "complex", "slice", "xrange")),
}
INERT_PACKAGES = (
    "numpy.dtypes.",
    "pathlib.",
    "datetime.",
    "omegaconf.",
    "mmengine.",
    "mmcv.",
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "lightning_utilities.",
)

STORAGES: dict[str, torch.dtype] = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
STORAGE_DTYPES: dict[str, torch.dtype] = {
    **{f"torch.{name}Storage": dtype for name, dtype in STORAGES.items()},
    **{f"torch.cuda.{name}Storage": dtype for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.UntypedStorage": torch.uint8,
}
DTYPES: dict[str, torch.dtype] = {str(d): d for d in vars(torch).values() if isinstance(d, torch.dtype)}


def checked_name(module: Any, name: Any) -> Global:
    """The name if one of the tables has it; UnsafeCheckpoint otherwise."""
    path = f"{module}.{name}"
    plain = isinstance(module, str) and isinstance(name, str) and name.isidentifier()
    if plain and (
        path in REBUILD or path in INERT or path in STORAGE_DTYPES or path in DTYPES or path.startswith(INERT_PACKAGES)
    ):
        return Global(path)
    raise UnsafeCheckpoint(
        f"refused: it asks for {ascii(path)[1:81]}, which is code and not weights. "
        "Save only the model's state_dict(), with the program that wrote the file."
    )


def checked_key(key: Any) -> Any:
    """A dict key, plain: hashing a tuple of tuples of tuples can take longer than the universe has."""
    if isinstance(key, SCALARS) or (isinstance(key, tuple) and all(isinstance(k, SCALARS) for k in key)):
        return key
    if isinstance(key, (Global, Inert)):
        return id(key), str(getattr(key, "path", None) or getattr(key, "name", ""))
    raise BrokenCheckpoint(f"a {type(key).__name__} is used as a dict key")


class Machine:
    """Runs one pickle. `load_storage(type path, key, number of elements)` gives a Storage, or None to look only."""

    def __init__(self, load_storage: Callable[[str, str, int], Storage | None]):
        self.load_storage = load_storage
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.spent = 0  # elements copied by calls; a list can be passed to a million of them

    def run(self, file: Any) -> Any:
        """The object that the pickle in an open binary file describes; the file is left behind the pickle's last byte."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            handler = HANDLERS.get(opcode.name)
            if handler is None:
                raise BrokenCheckpoint(f"pickle opcode {opcode.name} has no place in a weight file")
            if count + self.spent > MAX_OPCODES:
                raise BrokenCheckpoint(f"more than {MAX_OPCODES:,} steps to read its bookkeeping")
            handler(self, argument)
        return self.stack[-1]

    def pop_marked(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self, _: Any) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def remember(self, index: Any) -> None:
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def push_tuple(self, count: int) -> None:
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise BrokenCheckpoint("its bookkeeping is cut short")
        self.stack[-count:] = [items]

    def store(self, target: Any, flat: list[Any]) -> None:
        """Put key, value, key, value, ... into a dict; items of an inert mapping are let go."""
        if len(flat) % 2 or not isinstance(target, (dict, Inert)):
            raise BrokenCheckpoint("dict items without a dict")
        if isinstance(target, dict):
            target.update(zip(map(checked_key, flat[::2]), flat[1::2], strict=True))

    def extend(self, target: Any, items: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise BrokenCheckpoint("list items without a list")

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise BrokenCheckpoint("a call of something that is no function")
        self.spent += sum(len(a) for a in args if isinstance(a, (list, tuple, str, bytes)))
        self.stack.append(REBUILD.get(function.path, keep(function.path))(*args))

    def set_state(self, state: Any) -> None:
        # OrderedDicts carry `_metadata`, parameters their hooks: neither is needed for the values.
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def persistent(self, identity: Any) -> None:
        if not isinstance(identity, tuple) or len(identity) < 5 or identity[0] != "storage":
            raise BrokenCheckpoint("a reference to something that is no storage")
        _, kind, key, _, count, *view = identity
        if not isinstance(kind, Global) or kind.path not in STORAGE_DTYPES or any(v is not None for v in view):
            raise BrokenCheckpoint(f"a storage of an unknown type {getattr(kind, 'path', '')[:60]}")
        if not isinstance(key, str) or type(count) is not int or count < 0:
            raise BrokenCheckpoint("a storage without a key or a size")
        self.stack.append(self.load_storage(kind.path, key, count))


def push(machine: Machine, value: Any) -> None:
    """Most opcodes only put their argument on the stack."""
    machine.stack.append(value)


HANDLERS: dict[str, Callable[[Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, a: None),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), push),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"), push),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), push),
    "BYTEARRAY8": lambda m, a: push(m, Inert("bytearray")),
    "NONE": lambda m, a: push(m, None),
    "NEWTRUE": lambda m, a: push(m, True),
    "NEWFALSE": lambda m, a: push(m, False),
    "EMPTY_LIST": lambda m, a: push(m, []),
    "EMPTY_TUPLE": lambda m, a: push(m, ()),
    "EMPTY_DICT": lambda m, a: push(m, {}),
    "EMPTY_SET": lambda m, a: push(m, Inert("set")),
    "MARK": Machine.mark,
    "LIST": lambda m, a: push(m, m.pop_marked()),
    "TUPLE": lambda m, a: push(m, tuple(m.pop_marked())),
    "DICT": lambda m, a: (items := m.pop_marked(), push(m, {}), m.store(m.stack[-1], items)),
    "FROZENSET": lambda m, a: (m.pop_marked(), push(m, Inert("frozenset"))),
    "TUPLE1": lambda m, a: m.push_tuple(1),
    "TUPLE2": lambda m, a: m.push_tuple(2),
    "TUPLE3": lambda m, a: m.push_tuple(3),
    "APPEND": lambda m, a: (item := m.stack.pop(), m.extend(m.stack[-1], [item])),
    "APPENDS": lambda m, a: (items := m.pop_marked(), m.extend(m.stack[-1], items)),
    "ADDITEMS": lambda m, a: (items := m.pop_marked(), m.extend(m.stack[-1], items)),
    "SETITEM": lambda m, a: (value := m.stack.pop(), key := m.stack.pop(), m.store(m.stack[-1], [key, value])),
    "SETITEMS": lambda m, a: (items := m.pop_marked(), m.store(m.stack[-1], items)),
    "POP": lambda m, a: m.stack.pop() if m.stack else m.pop_marked(),
    "POP_MARK": lambda m, a: m.pop_marked(),
    "DUP": lambda m, a: push(m, m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: push(m, m.memo[a])),
    "GLOBAL": lambda m, a: push(m, checked_name(*a.split(" ", 1))),
    "STACK_GLOBAL": lambda m, a: (name := m.stack.pop(), module := m.stack.pop(), push(m, checked_name(module, name))),
    "REDUCE": lambda m, a: (args := m.stack.pop(), function := m.stack.pop(), m.call(function, args)),
    "NEWOBJ": lambda m, a: (args := m.stack.pop(), function := m.stack.pop(), m.call(function, args)),
    "NEWOBJ_EX": lambda m, a: (m.stack.pop(), args := m.stack.pop(), function := m.stack.pop(), m.call(function, args)),
    "INST": lambda m, a: (args := tuple(m.pop_marked()), m.call(checked_name(*a.split(" ", 1)), args)),
    "OBJ": lambda m, a: (items := m.pop_marked(), m.call(items[0], tuple(items[1:]))),
    "BUILD": lambda m, a: (state := m.stack.pop(), m.set_state(state)),
    "BINPERSID": lambda m, a: m.persistent(m.stack.pop()),
}
