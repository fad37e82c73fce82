"""Objects of Python where a setting takes a name, and what they are called in a run's record.

An object is recorded by its name. `package.module:name` is one that can be imported again; anything else is
`<package.module.Class from Python>`, and a run that had it is resumed by giving it again.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping

from ssl_kd.registry import is_object, objects_in
from ssl_kd.validation import About

_RECORD = re.compile(r"<.+ from Python>")


def names_code(value: object) -> bool:
    """Whether a setting (or one of several with commas between them) is `package.module:name`."""
    return isinstance(value, str) and any(is_object(one.strip()) for one in value.split(","))


def code_in(value: object, known: About) -> list[str]:
    """Every `module:name` in the value of a setting which would be imported if it were typed on the command line.

    Where the setting may be a path as well, some of them may be parts of one.
    """
    return [name for key, name in objects_in(value) if key in known.tables or (known.code and not key)]


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
