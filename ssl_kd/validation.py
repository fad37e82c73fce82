"""The one place for what a setting may be: its type, its range, its choices, and the line that says so.

A setting is written once, where its dataclass has it:

    epochs: int = setting(100, "passes over the images", least=1, first=True)

From this line come the command line's option, its help and group, the reading of YAML, and the check of a value from
Python. Nothing heavy is imported here, so that `--help` answers at once.
"""

from __future__ import annotations

import math
import os
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, Unpack, cast

from ssl_kd.errors import UserError, nearest, one_line

SEEDS = 2**63  # exclusive: torch, numpy and the hash of the views take any below
# What people write for a choice, where the nearest name in letters is another one.
ALIASES = {"gpu": "cuda", "bf16": "bf16-mixed", "fp32": "32-true", "32": "32-true", "adam": "adamw"}

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T")
Settings = TypeVar("Settings", bound="DataclassInstance")

# ------------------------------------------------------------------------------------------------ one setting


@dataclass(frozen=True)
class About:
    """What is known of a setting beside its name, type and default.

    least, most: inclusive ends of its range; above, below: exclusive ones; a float is always finite. expects: its type
    in words, where the annotation's own would say too little. why: the reason for its range. first: one of the few that
    people set first. code: it may name an object as `package.module:name`. tables: Registries to which
    such a name adds a row, each as `module:NAME`, by key (see `ssl_kd.registry.admit`). paths: it may be a path as well, which comes first.
    networks: there may be networks inside. also: a shorter name on the command line. several: there it may be several
    words, such as three numbers.
    """

    help: str = ""
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf
    expects: str = ""
    why: str = ""
    first: bool = False
    code: bool = False
    tables: Mapping[str, Sequence[str]] = field(default_factory=dict)
    paths: bool = False
    networks: bool = False
    also: str = ""
    several: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number is in the range."""
        return self.least <= value <= self.most and self.above < value < self.below

    @property
    def range(self) -> str:
        """The range in words."""
        lower, upper = max(self.least, self.above), min(self.most, self.below)
        closed = "" if self.below == math.inf else "below "
        if math.isfinite(self.least) and math.isfinite(upper):
            return f"from {_figure(lower)} to {closed}{_figure(upper)}"
        ends = []
        if math.isfinite(lower):
            ends.append(f"{'at least' if self.above == -math.inf else 'above'} {_figure(lower)}")
        if math.isfinite(upper):
            ends.append(f"{closed or 'at most '}{_figure(upper)}")
        return " and ".join(ends) or "a finite number"


def _figure(value: float) -> str:
    return "2^63" if value == SEEDS else f"{value:g}"


class Known(TypedDict, total=False):
    """What `described` takes beside the help; see `About`."""

    least: float
    above: float
    most: float
    below: float
    expects: str
    why: str
    first: bool
    code: bool
    tables: Mapping[str, Sequence[str]]
    paths: bool
    networks: bool
    also: str
    several: bool


def described(help: str, **known: Unpack[Known]) -> dict[str, About]:  # noqa: A002 - as argparse calls it
    """The metadata of a dataclass field that knows its help and its range."""
    return {"about": About(help, **known)}


def setting(default: T, help: str, **known: Unpack[Known]) -> T:  # noqa: A002
    """A dataclass field of a plain type, with what `described` takes; for lists and mappings write `field(...)` itself."""
    return field(default=default, metadata=described(help, **known))


def about(one: Field[object]) -> About:
    """What a field says of itself; of a plain field nothing."""
    return cast(About, one.metadata.get("about", About()))


def types_of(settings: type) -> dict[str, object]:
    """The types of a dataclass's fields, by name."""
    return typing.get_type_hints(settings)


# ------------------------------------------------------------------------------------------------------ types

ANYTHING = (object, Any)  # annotations that every value fits
WORDS: dict[object, str] = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    type(None): "nothing",
    **dict.fromkeys(ANYTHING, "anything"),
}


def in_words(kind: object) -> str:
    """An annotation as a person would say it."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        named = [str(choice) for choice in inside if choice != ""]
        nothing = ["nothing"] if "" in inside else []
        return ", or ".join([_listed(named), *nothing] if named else nothing)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(in_words, inside))
    if (origin or kind) in (dict, Mapping):
        return "a mapping"
    if (origin or kind) in (list, tuple, Sequence):
        return "a list" + (f" (each item {in_words(inside[0])})" if inside and inside[0] not in ANYTHING else "")
    return WORDS[kind] if kind in WORDS else str(getattr(kind, "__name__", kind))


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}" if len(names) > 1 else names[0]


def fits(kind: object, value: object) -> bool:
    """Whether a value has the type of an annotation; to us a bool is no number, and a whole number is a number."""
    origin, inside = typing.get_origin(kind), typing.get_args(kind)
    if kind in ANYTHING:
        return True
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in inside)
    if origin in (typing.Union, types.UnionType):
        return any(fits(one, value) for one in inside)
    if (origin or kind) in (dict, Mapping):
        keys, values = inside or (object, object)
        return isinstance(value, Mapping) and all(fits(keys, k) and fits(values, v) for k, v in value.items())
    if (origin or kind) in (list, tuple, Sequence):
        return isinstance(value, list | tuple) and all(fits(inside[0] if inside else object, v) for v in value)
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else cast(type, kind))


def must_fit(name: str, value: object, kind: object, expects: str = "") -> object:
    """The value, a whole number made a float where one is asked for. UserError by that name for any other type."""
    if not fits(kind, value):
        got = one_line(repr(value), 60)
        raise UserError(f"{name}: expected {expects or in_words(kind)}, got {got}{_meant(kind, value)}")
    kinds = typing.get_args(kind) or (kind,)
    whole = isinstance(value, int) and not isinstance(value, bool) and float in kinds and int not in kinds
    return float(cast(int, value)) if whole else value


def _meant(kind: object, value: object) -> str:
    """A hint at the choice that was meant, if there are choices."""
    choices = [str(choice) for choice in typing.get_args(kind)] if typing.get_origin(kind) is Literal else []
    alias = ALIASES.get(str(value).lower())
    if alias in choices:
        return f". Did you mean {alias}?"
    hint = nearest(value, [choice for choice in choices if choice])
    return f".{hint}" if hint else ""


# -------------------------------------------------------------------------------------------------- all settings


def check_settings(config: DataclassInstance) -> None:
    """Raise UserError for the first setting of a dataclass whose type or range is wrong."""
    kinds = types_of(type(config))
    for one in fields(config):
        value, known = getattr(config, one.name), about(one)
        must_fit(one.name, value, kinds[one.name], known.expects)
        if isinstance(value, int | float) and not known.holds(value):
            why = f" ({known.why})" if known.why else ""
            raise UserError(f"{one.name}: expected {known.range}{why}, got {value}")


def with_settings(config: Settings, settings: Mapping[str, object], command: str) -> Settings:
    """The config with other settings, all as plain data of the right types.

    UserError for a setting that there is not, or of a wrong type. Ranges are `check_settings`'s.
    """
    kinds = types_of(type(config))
    must_be_known(settings, list(kinds), command)
    merged = replace(config, **settings)
    values = {
        one.name: must_fit(
            one.name,
            plain(one.name, getattr(merged, one.name), about(one).networks),
            kinds[one.name],
            about(one).expects,
        )
        for one in fields(merged)
    }
    return replace(merged, **values)


def built(kind: type[Settings], record: Mapping[str, object]) -> Settings:
    """The dataclass that a record of its fields, as a file keeps it, tells of. ValueError for fields or types of another."""
    kinds = types_of(kind)
    for name, value in record.items():
        if name not in kinds or not fits(kinds[name], value):
            raise ValueError(f"not the record of {kind.__name__}: {one_line(name, 40)}")
    return kind(**record)


def must_be_known(settings: Iterable[str], known: Sequence[str], command: str) -> None:
    """UserError with near names for the first setting that there is not."""
    for key in settings:
        if key not in known:
            raise UserError(
                f"{command} has no setting {key!r}.{nearest(key, list(known))} It knows: {', '.join(known)}"
            )


def plain(name: str, value: object, networks: bool = False) -> object:
    """The value in Python's own types, which YAML keeps. UserError, by that name, for anything else.

    networks: let them be as they are (modules have a `state_dict`).
    """
    if value is None or isinstance(value, bool) or (networks and hasattr(type(value), "state_dict")):
        return value
    for kind in (str, int, float):  # numpy has subclasses of two of them
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return {plain(name, key): plain(name, below, networks) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, below, networks) for below in value]
    if hasattr(value, "tolist"):  # arrays and tensors
        return value.tolist()
    raise UserError(f"{name}: expected text, numbers, lists and mappings of them, got {type(value).__name__}")


Rule = tuple[bool, str]  # whether settings suit each other, and the message where they do not


def must_hold(rules: Iterable[Rule]) -> None:
    """Raise UserError with the message of the first rule that does not hold."""
    for good, message in rules:
        if not good:
            raise UserError(message)
