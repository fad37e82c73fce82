"""Objects of Python where a setting takes a name: what they are called in a run's record, and `package.module:name`.

An object is recorded by its name. `package.module:name` is one that can be imported again; anything else is
`<package.module.Class from Python>`, and a run that had it is resumed by giving it again.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from ssl_kd.errors import UserError, nearest, one_line

_CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_RECORD = re.compile(r"<.+ from Python>")


def names_code(value: object) -> bool:
    """Whether a setting (or one of several with commas between them) is `package.module:name`."""
    return isinstance(value, str) and any(_CODE.fullmatch(one.strip()) for one in value.split(","))


def is_record(value: object) -> bool:
    """Whether a setting (or one of several) is the record of an object that cannot be imported."""
    return isinstance(value, str) and any(_RECORD.fullmatch(one.strip()) for one in value.split(","))


def record_of(found: object) -> str:
    """The name of an object as a run's config.yaml keeps it."""
    kind = type(found)
    home = getattr(found, "__module__", None) or kind.__module__
    title = getattr(found, "__qualname__", None)  # of classes and functions
    if home != "__main__":  # a script's module has another name elsewhere
        place = vars(sys.modules[home]) if home in sys.modules else {}
        name = title if title and _reached(place, title) is found else None
        name = name or next((name for name, value in place.items() if value is found), None)
        if name:
            return f"{home}:{name}"
    title = title or kind.__qualname__
    return f"<{title if home == '__main__' else f'{home}.{title}'} from Python>"


def _reached(place: Mapping[str, object], path: str) -> object:
    first, *rest = path.split(".")
    value = place.get(first)
    for part in rest:
        value = getattr(value, part, None)
    return value


def imported(what: str, name: str) -> Any:
    """The object that `package.module:name` names, looked for in the current folder as well.

    what: the setting, for the message. UserError in one line where there is no such module or no such name in it.
    """
    home, _, path = name.partition(":")
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        value: Any = importlib.import_module(home)
    except ModuleNotFoundError as error:
        missing = "there is no such module" if error.name and home.startswith(error.name) else str(error)
        raise UserError(f"{what}: cannot import {home} for {name}: {missing} (here or installed)") from error
    except Exception as error:
        raise UserError(
            f"{what}: cannot import {home} for {name}: {type(error).__name__}: {one_line(error, 160)}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)
    for part in path.split("."):
        if not hasattr(value, part):
            raise UserError(f"{what}: {home} has no {path!r}.{nearest(part, [n for n in dir(value) if n[0] != '_'])}")
        value = getattr(value, part)
    return value
