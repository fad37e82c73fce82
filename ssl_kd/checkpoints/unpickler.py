"""Reads the pickles inside torch files as data. Nothing in a file is ever called.

A pickle is a program for a small stack machine, and Python's own machine imports and calls whatever the program names.
This one has no such step: its opcodes build numbers, strings, lists and dicts; a call is looked up by name in REBUILD,
a table of our own functions; classes that only carry settings (INERT) become empty records. object other name is refused.
`torch.load(weights_only=True)` follows the same idea, but believes the sizes that a file claims; here each claim is
checked against the bytes that are there, and work and nesting are bounded by the size of the pickle.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from torch import Tensor

from ssl_kd.errors import BrokenCheckpoint, UnsafeCheckpoint, one_line

MAX_OPCODES = 4_000_000  # published files have some ten thousand; this is a few seconds of work
SCALARS = (str, int, float, bool, bytes, type(None))
LARGEST_KEY = 2**61 - 1  # whole numbers below this have hashes of their own; those above may all have the same one
LARGEST_INDEX = 2**32  # of what is noted for later
LONGEST_NAME = 300  # characters of a class's name or of a storage's
LONGEST_TUPLE = 16
MANY_DEVICES = 64  # more are not counted


@dataclass(eq=False)
class Inert:
    """An object of a class that only carries settings, such as argparse.Namespace: its name and what came with it."""

    name: str
    given: tuple[object, ...] = ()
    state: object = None


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions, found in one of the tables below."""

    path: str


@dataclass(frozen=True)
class Storage:
    """The bytes of one saved storage, as a flat tensor over the file's pages."""

    flat: Tensor


def rebuild_tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> Tensor | None:
    """A view of a storage; BrokenCheckpoint when it reaches beyond the bytes that are there."""
    if storage is None:  # the first of two passes over an old file, see containers.read_legacy
        return None
    if not isinstance(storage, Storage):
        raise BrokenCheckpoint("a tensor has no storage")
    if not isinstance(size, (list, tuple)) or not isinstance(stride, (list, tuple)):
        raise BrokenCheckpoint("a tensor has no size or stride")
    given = (offset, *size, *stride)
    numbers = [n for n in given if type(n) is int and 0 <= n < 2**48]
    if len(numbers) != len(given) or len(size) != len(stride) or len(size) > 16:
        raise BrokenCheckpoint("a tensor's size, stride or offset is not a list of small numbers")
    first, sizes, steps = numbers[0], numbers[1 : 1 + len(size)], numbers[1 + len(size) :]
    reach = first + sum((n - 1) * s for n, s in zip(sizes, steps, strict=True)) + 1 if all(sizes) else 0
    if reach > storage.flat.numel():
        raise BrokenCheckpoint(f"a tensor claims {reach:,} elements where the file holds {storage.flat.numel():,}")
    try:
        return storage.flat.as_strided(sizes, steps, first)
    except RuntimeError as error:  # more elements than a 64-bit number counts
        raise BrokenCheckpoint("a tensor has more elements than can be counted") from error


def rebuild_typed(
    storage: object,
    offset: object,
    size: object,
    stride: object,
    _grad: object,
    _hooks: object,
    dtype: object,
    *_: object,
) -> object:
    """A tensor whose dtype has no storage class of its own, so that it is named beside raw bytes."""
    kind = DTYPES.get(dtype.path) if isinstance(dtype, Global) else None
    if kind is None or not isinstance(storage, Storage) or storage.flat.numel() % kind.itemsize:
        return Inert("tensor of an unusual dtype")
    return rebuild_tensor(Storage(storage.flat.view(kind)), offset, size, stride)


def rebuild_number(dtype: object, data: object = None) -> object:
    """A numpy scalar (some training scripts save learning rates so) as a Python number."""
    kind = dtype.given[0] if isinstance(dtype, Inert) and dtype.given else None
    if kind in ("f8", "f4", "f2", "i8", "i4", "u1", "b1") and isinstance(data, bytes) and len(data) == int(kind[1]):
        return np.frombuffer(data, f"<{kind}")[0].item()
    return Inert("numpy scalar")


def rebuild_bytes(text: object = "", codec: object = "latin1") -> object:
    """The few bytes of a numpy scalar, which protocol 2 writes as text. Longer ones are nobody's weights."""
    return (
        text.encode("latin1", "replace")
        if isinstance(text, str) and len(text) <= 64 and codec == "latin1"
        else Inert("bytes")
    )


def rebuild_ordered(given: object = ()) -> OrderedDict[object, object]:
    """An ordered dict, empty or from the pairs that Python 2 wrote."""
    if not isinstance(given, (list, tuple)):
        raise BrokenCheckpoint("an ordered dict is not made of pairs")
    return OrderedDict((checked_key(pair[0]), pair[1]) for pair in given)


def rebuild_size(size: object = ()) -> tuple[object, ...]:
    """A tensor's size by itself."""
    return tuple(size) if isinstance(size, (list, tuple)) else ()


def keep(name: str) -> Callable[..., Inert]:
    """A function that does nothing but remember the plain ones of its arguments."""
    return lambda *args: Inert(name, tuple(a for a in args if isinstance(a, SCALARS)))


# Every call that is answered, and our function that answers it.
REBUILD: dict[str, Callable[..., object]] = {
    "collections.OrderedDict": rebuild_ordered,
    "collections.defaultdict": lambda *_: {},
    "collections.Counter": lambda *_: {},
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch._utils._rebuild_tensor_v3": rebuild_typed,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch.Size": rebuild_size,
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
    "torch.serialization._get_layout",
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

# Programs that put code into their checkpoints, and weights alone beside them.
WEIGHTS_ELSEWHERE = {
    "lightly_train.": "LightlyTrain writes the weights alone to exported_models/exported_last.pt, beside checkpoints/.",
}

# Functions of the training script, named by the optimizer's settings (Barlow Twins, VICReg). A mention is borne, a call is not.
SCRIPT = "__main__."

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


def checked_name(module: object, name: object) -> Global:
    """The name if one of the tables has it; UnsafeCheckpoint otherwise."""
    words = [part if isinstance(part, str) else type(part).__name__ for part in (module, name)]
    if words == [module, name] and sum(map(len, words)) < LONGEST_NAME and words[1].isidentifier():
        path = ".".join(words)
        known = any(path in table for table in (REBUILD, INERT, STORAGE_DTYPES, DTYPES))
        if known or path.startswith((*INERT_PACKAGES, SCRIPT)):
            return Global(path)
    raise asks_for_code(".".join(map(one_line, words)))


def asks_for_code(path: str) -> UnsafeCheckpoint:
    """The error for a name that only the program behind the file knows."""
    instead = next((text for package, text in WEIGHTS_ELSEWHERE.items() if path.startswith(package)), "")
    return UnsafeCheckpoint(
        f"refused: it asks for {path}, which is code and not weights. "
        + (instead or "Save only the model's state_dict(), with the program that wrote the file.")
    )


def checked_key(key: object) -> object:
    """A dict key that can be hashed at once, and whose hash is not that of a million others.

    Strings and bytes are hashed with a secret of the process. The hash of a number is no secret, but below LARGEST_KEY
    no two whole numbers share one, and few fractions; that of a tuple can be chosen, so a tuple is kept as its text.
    """
    if isinstance(key, int) and abs(key) >= LARGEST_KEY:
        raise BrokenCheckpoint(f"a number of {key.bit_length():,} bits is used as a dict key")
    if isinstance(key, SCALARS):
        return key
    if isinstance(key, tuple) and len(key) <= LONGEST_TUPLE and all(isinstance(part, SCALARS) for part in key):
        return f"({', '.join(repr(checked_key(part))[:LONGEST_NAME] for part in key)})"
    if isinstance(key, (Global, Inert)):
        return id(key), str(getattr(key, "path", None) or getattr(key, "name", ""))
    raise BrokenCheckpoint(f"a {type(key).__name__} is used as a dict key")


class Machine:
    """Runs one pickle. `load_storage(type, key, number of elements)` gives a Storage, or None to look only.

    Its methods are the opcodes: each takes the opcode's argument, if any, and changes the stack.
    """

    def __init__(self, load_storage: Callable[[str, str, int], Storage | None]):
        self.load_storage = load_storage
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[object, object] = {}
        self.devices: set[str] = set()  # where the storages lay
        self.steps = 0  # opcodes
        self.spent = 0  # elements handed to calls; one long list can be handed to a million of them

    def run(self, file: IO[bytes]) -> object:
        """The object that a pickle in an open binary file describes; the file is left right behind it."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            handler = OPCODES.get(opcode.name)
            if handler is None:
                raise BrokenCheckpoint(f"pickle opcode {opcode.name} has no place in a weight file")
            self.steps = count
            self.within()
            handler(self, argument)
        return self.stack.pop()

    def within(self) -> None:
        """BrokenCheckpoint once all this takes too long."""
        if self.steps + self.spent > MAX_OPCODES:
            raise BrokenCheckpoint(f"its bookkeeping takes more than {MAX_OPCODES:,} steps to read")

    def push(self, value: object) -> None:
        """Most opcodes only put their argument on the stack."""
        self.stack.append(value)

    def mark(self, _: object) -> None:
        """Begin a run of items."""
        self.marks.append(self.stack)
        self.stack = []

    def marked(self) -> list[object]:
        """End the run of items and return it."""
        items, self.stack = self.stack, self.marks.pop()
        return items

    def pop(self, _: object) -> None:
        """Forget the top of the stack, or an empty run."""
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def push_tuple(self, count: int) -> None:
        """The last items as a tuple."""
        items = tuple(self.stack[-count:])
        if len(items) < count:
            raise BrokenCheckpoint("the file is damaged: its bookkeeping is cut short")
        self.stack[-count:] = [items]

    def remember(self, index: object) -> None:
        """Note the top of the stack under a number, or under the next one."""
        index = len(self.memo) if index is None else index
        if type(index) is not int or not 0 <= index < LARGEST_INDEX:
            raise BrokenCheckpoint("the file is damaged: something is noted under no small number")
        self.memo[index] = self.stack[-1]

    def recall(self, index: object) -> None:
        """Put what was noted under a number on the stack."""
        self.stack.append(self.memo[index])

    def fill_list(self, items: list[object]) -> None:
        """Append to the list on the stack. An inert object lets its items go."""
        target = self.stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise BrokenCheckpoint("the file is damaged: list items without a list")

    def fill_dict(self, items: list[object]) -> None:
        """Put key, value, key, value, ... into the dict on the stack. An inert object lets them go."""
        target = self.stack[-1]
        if len(items) % 2 or not isinstance(target, (dict, Inert)):
            raise BrokenCheckpoint("the file is damaged: dict items without a dict")
        if isinstance(target, dict):
            target.update(zip(map(checked_key, items[::2]), items[1::2], strict=True))

    def new_dict(self, _: object) -> None:
        """A dict of the run of items."""
        items = self.marked()
        self.push({})
        self.fill_dict(items)

    def last(self, count: int) -> list[object]:
        """Take that many items off the stack, oldest first."""
        self.push_tuple(count)
        found = self.stack.pop()
        assert isinstance(found, tuple)  # it was made a line ago
        return list(found)

    def name(self, text: object) -> None:
        """A global, written as 'module name'."""
        self.push(checked_name(*str(text).split(" ", 1)))

    def stacked_name(self, _: object) -> None:
        """A global whose module and name are on the stack."""
        self.push(checked_name(*self.last(2)))

    def call(self, function: object, args: object) -> None:
        """Put what our function of that name makes of the arguments on the stack."""
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise BrokenCheckpoint("the file is damaged: a call of something that is no function")
        for name in (function, *args):
            if isinstance(name, Global) and name.path.startswith(SCRIPT):
                raise asks_for_code(name.path)
        self.spent += len(args)
        self.spent += sum(len(a) for a in args if isinstance(a, (list, tuple, dict, str, bytes)))
        self.within()
        answer = REBUILD.get(function.path) or keep(function.path)
        self.push(answer(*args))

    def call_instance(self, text: object) -> None:
        """Protocol 0's way to make an object: the class by name, the arguments as a run of items."""
        self.call(checked_name(*str(text).split(" ", 1)), tuple(self.marked()))

    def call_object(self, _: object) -> None:
        """Protocol 1's way: class and arguments as a run of items."""
        function, *args = self.marked()
        self.call(function, tuple(args))

    def call_extended(self, _: object) -> None:
        """Class, arguments and keyword arguments; settings need none of the latter."""
        function, args, _keywords = self.last(3)
        self.call(function, args)

    def build(self, _: object) -> None:
        """Give an object its state. What OrderedDicts and parameters carry so has no bearing on their values."""
        (state,) = self.last(1)
        if isinstance(self.stack[-1], Inert):
            self.stack[-1].state = state

    def persistent(self, _: object) -> None:
        """A reference to a storage outside the pickle."""
        (identity,) = self.last(1)
        if not isinstance(identity, tuple) or not 5 <= len(identity) <= 6 or identity[0] != "storage":
            raise BrokenCheckpoint("the file is damaged: a reference to something that is no storage")
        _, kind, key, device, count, *view = identity
        if not isinstance(kind, Global) or kind.path not in STORAGE_DTYPES or any(v is not None for v in view):
            raise BrokenCheckpoint(f"a storage of an unknown type {getattr(kind, 'path', '')[:60]}")
        if not isinstance(key, str) or len(key) > LONGEST_NAME or type(count) is not int or not 0 <= count < 2**48:
            raise BrokenCheckpoint("the file is damaged: a storage without a key or a size")
        if isinstance(device, str) and len(self.devices) < MANY_DEVICES:
            self.devices.add(device)
        self.push(self.load_storage(kind.path, key, count))


NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
BYTES = ("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
TEXTS = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
OPCODES: dict[str, Callable[[Machine, object], None]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda m, _: None),
    **dict.fromkeys((*NUMBERS, *BYTES, *TEXTS), Machine.push),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "BYTEARRAY8": lambda m, _: m.push(Inert("bytearray")),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(Inert("set")),
    "MARK": Machine.mark,
    "LIST": lambda m, _: m.push(m.marked()),
    "TUPLE": lambda m, _: m.push(tuple(m.marked())),
    "TUPLE1": lambda m, _: m.push_tuple(1),
    "TUPLE2": lambda m, _: m.push_tuple(2),
    "TUPLE3": lambda m, _: m.push_tuple(3),
    "DICT": Machine.new_dict,
    "FROZENSET": lambda m, _: m.push(Inert("frozenset", (len(m.marked()),))),
    "APPEND": lambda m, _: m.fill_list(m.last(1)),
    "APPENDS": lambda m, _: m.fill_list(m.marked()),
    "ADDITEMS": lambda m, _: m.fill_list(m.marked()),
    "SETITEM": lambda m, _: m.fill_dict(m.last(2)),
    "SETITEMS": lambda m, _: m.fill_dict(m.marked()),
    "POP": Machine.pop,
    "POP_MARK": lambda m, _: m.marked().clear(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.remember),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.recall),
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.stacked_name,
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda m, _: m.call(*m.last(2))),
    "NEWOBJ_EX": Machine.call_extended,
    "INST": Machine.call_instance,
    "OBJ": Machine.call_object,
    "BUILD": Machine.build,
    "BINPERSID": Machine.persistent,
}
