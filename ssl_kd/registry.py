"""Tables of parts by name, open to other packages: a mapping whose built-in rows are plain to see in its own module.

A name is looked up among

1. the built-in rows of the table,
2. those that were added from Python:             `TERMS["margin"] = Margin`
3. those that installed packages offer by an entry point in the table's group (`ssl_kd.terms`, ...).

`table[name]` never imports what a name says, for it may have been read from a file. `admit` does: the command line calls
it for each `module:name` that a person typed, and the object is then a row of that name in this process.

Entry points are read only when a name is not built in, or when the table is listed, and a package is imported only
when its own name is looked up. docs/extending.md says for each table what its objects must be.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import ItemsView, Iterator, Mapping, MutableMapping, Sequence, ValuesView
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType, UnionType
from typing import TYPE_CHECKING, Generic, TypeVar, cast, overload

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

    def admit(self, name: str, found: object) -> None:
        """Make what `module:name` led to a row of that very name, for this process; UserError where it does not fit."""
        self._added[name] = self.fitting(found, name)

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

    def items(self) -> ItemsView[str, T]:
        """Names and parts, as `usable` has them."""
        return self.usable().items()

    def values(self) -> ValuesView[T]:
        """Parts, as `usable` has them."""
        return self.usable().values()

    def unknown(self, name: object) -> str:
        """What is wrong with a name that is in no row, in one line."""
        if is_object(name):
            return (
                f"{self.what}: {_shown(name)} names code, which is imported only where the command line itself says so"
            )
        names = list(self)
        known = ", ".join(map(_shown, names)) or "none"
        return f"{self.what}: no {_shown(name)!r}.{nearest(name, names)} Known: {known}, or module:name"

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
            raise UserError(
                f"{self.what}: several packages call a part {_shown(name)!r}: {makers}; give module:name on the command line"
            )
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

    def fitting(self, part: object, name: str) -> T:
        """The part itself; UserError where it is not of the table's kind."""
        if not self.takes(part):
            raise UserError(f"{self.what}: {_shown(name)} is no {self.expects}, but {type(part).__name__}")
        return cast(T, part)

    def takes(self, part: object) -> bool:
        """Whether it is of the table's kind."""
        return self.kind is None or isinstance(part, self.kind)

    @property
    def expects(self) -> str:
        """The table's kind in words."""
        return getattr(self.kind, "__name__", str(self.kind))


def admit(setting: str, value: object, tables: Mapping[str, Sequence[str]], paths: bool = False) -> None:
    """Import each `module:name` in a setting that was typed on a command line, as a row of the table that it fits.

    value: as `objects_in` takes it. tables: homes of Registries, each itself `module:NAME` and imported only where there
    is a name to look for, by the key of the mapping under which names stand; "" where they stand under none. paths: the
    setting may also be a path, which comes first, and a module that is not there is left for the path's own error.
    UserError in one line for what cannot be imported, or fits no table.
    """
    for key, name in objects_in(value):
        if not tables.get(key) or (paths and (_is_path(name) or not _is_module(name))):
            continue
        found = load_object(name, setting)
        parts = [cast(Registry[object], load_object(home, setting)) for home in tables[key]]
        table = next((one for one in parts if one.takes(found)), None)
        if table is None:
            expected = " or ".join(dict.fromkeys(one.expects for one in parts))
            raise UserError(f"{setting}: {name} is no {expected}, but {type(found).__name__}")
        table.admit(name, found)


def objects_in(value: object, key: str = "") -> list[tuple[str, str]]:
    """Every `module:name` in a setting: alone, among names with commas between them, beside a `/`, in lists and mappings.

    Each comes with the key of the mapping that it stands under, "" for none.
    """
    if isinstance(value, str):
        words = [word.strip() for one in value.split(",") for word in one.split("/")]
        return [(key, word) for word in words if is_object(word)]
    if isinstance(value, Mapping):
        return [found for name, one in value.items() for found in objects_in(one, str(name))]
    return [found for one in value for found in objects_in(one, key)] if isinstance(value, list | tuple) else []


def _is_path(name: str) -> bool:
    """Whether `photos.zip:train` is a file or folder with something behind it; a package's folder is none."""
    place = name.partition(":")[0]
    return os.path.exists(place) and not os.path.exists(os.path.join(place, "__init__.py"))


def _is_module(name: str) -> bool:
    first = name.partition(":")[0].partition(".")[0]
    spec = find_spec(first)
    if spec is not None and spec.origin is not None:  # any folder would do for a package without a file
        return True
    return any(os.path.exists(os.path.join(os.getcwd(), f"{first}{end}")) for end in (".py", "/__init__.py"))


def is_object(name: object) -> bool:
    """Whether a setting reads as `module:name`."""
    return isinstance(name, str) and OBJECT.fullmatch(name) is not None


def load_object(name: str, what: str) -> object:
    """The object of `module:name`. UserError where the module cannot be imported, or has no such name.

    A module is looked for where Python looks, then in the working folder: a console script does not look there by itself.
    """
    place, _, path = name.partition(":")
    try:
        found: object = _imported(place)
    except BROKEN as error:
        raise UserError(f"{what}: {name}: module {place} cannot be imported: {_reason(error)}") from error
    for part in path.split("."):
        if not hasattr(found, part):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise UserError(f"{what}: {name}: module {place} has no {path}.{nearest(part, known)}")
        found = getattr(found, part)
    return found


def _imported(module: str) -> ModuleType:
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
