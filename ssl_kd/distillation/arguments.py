"""What a call gives, in words and objects, as one config of words and numbers that YAML can keep.

Paths become text, numpy's numbers Python's, tuples lists; whatever has another type than its field is refused in one line.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError, nearest, one_line
from ssl_kd.models.encoder import MODULE, Encoder


def merge(config: DistillConfig | None, teacher, student, images, settings: Mapping[str, Any]) -> DistillConfig:
    """One config of what was given in three ways; UserError for a setting that does not exist, or of a wrong type."""
    known = [f.name for f in fields(DistillConfig)]
    for key in settings:
        if key not in known:
            raise UserError(f"distill has no setting {key!r}.{nearest(key, known)} It knows: {', '.join(known)}")
    named = {"teacher": _teacher(teacher), "student": _student(student), "images": _images(images)}
    given = dict(settings) | {key: value for key, value in named.items() if value}
    merged = replace(config or DistillConfig(), **given)
    return replace(merged, **{f.name: _checked(f.name, str(f.type), getattr(merged, f.name)) for f in fields(merged)})


def is_path(source: Any) -> bool:
    """Whether images are given by a path, which the config holds."""
    return isinstance(source, str | os.PathLike)


def _teacher(given: Any) -> str:
    if isinstance(given, Encoder):
        return given.origin
    if given is None or is_path(given):
        return str(given or "")
    raise UserError(
        f"teacher: expected a file, a name or an Encoder, got {type(given).__name__}; Encoder.from_module wraps a module"
    )


def _student(given: Any) -> str:
    if isinstance(given, nn.Module):
        return given.arch if isinstance(given, Encoder) else f"{MODULE}{type(given).__name__}"
    if given is None or isinstance(given, str):
        return given or ""
    raise UserError(f"student: expected an architecture's name, an Encoder or a module, got {type(given).__name__}")


def _images(given: Any) -> str:
    """A path as it is; of objects how many pictures they hold. What cannot be opened is left for `open_images` to say."""
    if given is None or is_path(given):
        return str(given or "")
    if not isinstance(given, ImageSource) and isinstance(given, list | tuple) and given and all(map(is_path, given)):
        return "::".join(map(str, given))
    return f"<{len(given)} images from Python>" if hasattr(given, "__len__") else f"<{type(given).__name__}>"


# ------------------------------------------------------------------------------------------------ types

KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {  # by a field's annotation: what it takes, in words and in code
    "str": ("text or a path", lambda value: isinstance(value, str)),
    "bool": ("true or false", lambda value: isinstance(value, bool)),
    "int": ("a whole number", lambda value: isinstance(value, int) and not isinstance(value, bool)),
    "float": ("a number", lambda value: isinstance(value, int | float) and not isinstance(value, bool)),
    "dict[str, Any]": ("a mapping", lambda value: isinstance(value, dict)),
    "str | list[dict[str, Any]]": (
        "a preset's name or a list of terms",
        lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(v, dict) for v in value)),
    ),
}


def _checked(name: str, kind: str, value: Any) -> Any:
    words, fits = KINDS[kind]
    found = plain(name, value)
    if not fits(found):
        raise UserError(f"{name}: expected {words}, got {one_line(repr(value), 60)} ({type(value).__name__})")
    return found


def plain(name: str, value: Any) -> Any:
    """The value in Python's own types, which YAML keeps; Encoders stay. UserError, by that name, for anything else."""
    if value is None or isinstance(value, bool | Encoder):
        return value
    for kind in (str, int, float):  # numpy has subclasses of two of them
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {plain(name, key): plain(name, below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [plain(name, below) for below in value]
    if hasattr(value, "tolist"):  # arrays and tensors
        return value.tolist()
    raise UserError(f"{name}: expected words, numbers, lists and mappings of them, got {type(value).__name__}")
