"""Tables of parts by name, open to other packages: a mapping whose built-in rows are plain to see in its own module.

A name is looked up among

1. the built-in rows of the table,
2. those that were added from Python:             `TERMS["margin"] = Margin`
3. those that installed packages offer by an entry point in the table's group (`ssl_kd.terms`, ...).

`resolve(table, name)` also takes `module:name`, an object of any importable module, found in the working folder as well.
`table[name]` does not: a name that was read from a file must never import what it says.

Entry points are read only when a name is not built in, or when the table is listed, and a package is imported only
when its own name is looked up. docs/extending.md says for each table what its objects must be.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from types import UnionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from ssl_kd.errors import UserError, nearest, one_line

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

T = TypeVar("T")
D = TypeVar("D")

OBJECT = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")  # module:name, both may have dots
BROKEN = (Exception, SystemExit)  # whatever somebody else's module does while it is imported


class PluginWarning(UserWarning):
    """An installed package offers a part that cannot be used. The message is one line and names the package."""


class Registry(MutableMapping[str, T], Generic[T]):
    """Parts of one kind by name.

    what: the kind in the plural, as messages name it. built_in: the rows of this package, which nobody can replace.
    group: of entry points; empty for a table that packages cannot add to. kind: what every part must be an instance
    of; None for anything. named: whether a part has a `name` of its own, which must then be the row's.

    `table[name]` raises UserError with all names and the near ones. Listing (`list`, `keys`, `len`) tells the names of
    packages without importing them; `items` and `values` import them, and leave out, with a PluginWarning, what cannot
    be used.
    """

    def __init__(
        self,
        what: str,
        built_in: Mapping[str, T],
        group: str = "",
        kind: type | UnionType | None = None,
        named: bool = False,
    ):
        self.what, self.group, self.kind, self.named = what, group, kind, named
        self.built_in: Mapping[str, T] = dict(built_in)
        self._added: dict[str, T] = {}
        self._loaded: dict[str, T] = {}
        self._offers: dict[str, list[EntryPoint]] | None = None

    def __getitem__(self, name: str) -> T:
        """The part of that name; UserError in one line for any other."""
        for rows in (self.built_in, self._added, self._loaded):
            if name in rows:
                return rows[name]
        if name in self.offers:
            self._loaded[name] = self._load(name)
            return self._loaded[name]
        raise UserError(self.unknown(name))

    def __setitem__(self, name: str, part: T) -> None:
        """Add a part for this process; UserError for the name of a built-in one."""
        if name in self.built_in:
            raise UserError(f"{self.what}: {name!r} is built in and cannot be replaced; choose another name")
        if not isinstance(name, str) or not name or is_object(name):
            raise UserError(f"{self.what}: a name is a string that is not empty and no module:name; got {name!r}")
        self._added[name] = self._called(name, self.fitting(part, name))

    def __delitem__(self, name: str) -> None:
        """Forget a part that was added from Python; UserError for any other."""
        if name not in self._added:
            raise UserError(f"{self.what}: only what was added from Python can be taken out; {name!r} was not")
        del self._added[name]

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; no package is imported."""
        return any(name in rows for rows in (self.built_in, self._added)) or name in self.offers

    def __iter__(self) -> Iterator[str]:
        """Every name: built in first, then added ones, then those of packages."""
        return iter(dict.fromkeys((*self.built_in, *self._added, *self.offers)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return f"Registry({self.what}: {', '.join(self)})"

    @overload
    def get(self, name: str, /) -> T | None: ...
    @overload
    def get(self, name: str, /, default: T | D) -> T | D: ...
    def get(self, name: str, /, default: object = None) -> object:
        """The part of that name, or the default where there is none."""
        return self[name] if name in self else default  # noqa: SIM401  this is that get

    def usable(self) -> dict[str, T]:
        """Every part that can be had, packages' ones imported; PluginWarning for each that cannot."""
        parts: dict[str, T] = {}
        for name in self:
            try:
                parts[name] = self[name]
            except UserError as error:
                warnings.warn(str(error), PluginWarning, stacklevel=2)
        return parts

    def items(self) -> Any:
        """Names and parts, as `usable` has them."""
        return self.usable().items()

    def values(self) -> Any:
        """Parts, as `usable` has them."""
        return self.usable().values()

    def unknown(self, name: object) -> str:
        """What is wrong with a name that is in no row, in one line."""
        names = list(self)
        known = ", ".join(map(_shown, names)) or "none"
        return f"{self.what}: no {_shown(name)!r}; known: {known}, or module:name.{nearest(name, names)}"

    @property
    def offers(self) -> dict[str, list[EntryPoint]]:
        """Entry points of installed packages by name, read once; a built-in name is left out with a PluginWarning."""
        if self._offers is None:
            self._offers = self._read() if self.group else {}
        return self._offers

    def _read(self) -> dict[str, list[EntryPoint]]:
        from importlib.metadata import entry_points

        offers: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            if point.name in self.built_in:
                message = f"{self.what}: {_shown(point.name)!r} is built in; that of {_maker(point)} is left out"
                warnings.warn(message, PluginWarning, stacklevel=4)
            elif point not in offers.setdefault(point.name, []):  # a path that is listed twice tells everything twice
                offers[point.name].append(point)
        return offers

    def _load(self, name: str) -> T:
        first, *others = self.offers[name]
        if others:
            makers = ", ".join(f"{_maker(point)} ({point.value})" for point in (first, *others))
            raise UserError(f"{self.what}: several packages call a part {_shown(name)!r}: {makers}; give module:name")
        try:
            part = first.load()
        except BROKEN as error:
            raise UserError(
                f"{self.what}: {_shown(name)!r} of {_maker(first)} cannot be imported from {_shown(first.value)}: {_reason(error)}"
            ) from error
        return self._called(name, self.fitting(part, f"{name} of {_maker(first)}"))

    def _called(self, name: str, part: T) -> T:
        own = getattr(part, "name", None)
        if self.named and own != name:
            raise UserError(
                f"{self.what}: the part offered as {_shown(name)} calls itself {_shown(own)}; give both one name"
            )
        return part

    def maker(self, name: str) -> str:
        """Name and version of the installed package that offers a part; empty where none does, or none that has a name."""
        if name in self.built_in or name in self._added or name not in self.offers:
            return ""
        point = self.offers[name][0]
        return _maker(point) if point.dist else ""

    def fitting(self, part: Any, name: str) -> T:
        """The part itself; UserError where it is not of the table's kind."""
        if self.kind is not None and not isinstance(part, self.kind):
            expected = getattr(self.kind, "__name__", str(self.kind))
            raise UserError(f"{self.what}: {_shown(name)} is no {expected}, but {type(part).__name__}")
        fitting: T = part
        return fitting


def resolve(registry: Registry[T], name: str) -> T:
    """The part that a setting names, the `name` of a row or `module:name`; UserError in one line where there is none."""
    return registry.fitting(load_object(name, registry.what), name) if is_object(name) else registry[name]


def is_object(name: object) -> bool:
    """Whether a setting reads as `module:name`."""
    return isinstance(name, str) and OBJECT.fullmatch(name) is not None


def load_object(name: str, what: str) -> Any:
    """The object of `module:name`. UserError where the module cannot be imported, or has no such name.

    A module is looked for where Python looks, then in the working folder: a console script does not look there by itself.
    """
    place, _, path = name.partition(":")
    try:
        found: Any = _imported(place)
    except BROKEN as error:
        raise UserError(f"{what}: {name}: module {place} cannot be imported: {_reason(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise UserError(f"{what}: {name}: module {place} has no {path}.{nearest(part, known)}")
        found = getattr(found, part)
    return found


def _imported(module: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0] or os.getcwd() in sys.path:
            raise
    sys.path.append(os.getcwd())  # last: a file there can hide no module of ours, nor of a library
    return import_module(module)


def _maker(point: EntryPoint) -> str:
    """The package that offers an entry point, with its version."""
    return f"{one_line(point.dist.name)} {one_line(point.dist.version)}" if point.dist else "an unnamed package"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {one_line(error, 160)}"


def _shown(name: object) -> str:
    return one_line(name, 200)
