"""What a checkpoint itself says of the pixels that its network was trained on: it decides, whatever its family does.

`ssl-kd pretrain` writes the entry `preprocessing`, with any of mean, std, size, resize, crop, interpolation and square.
Its files of earlier versions hold the size among their settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import cast

from ssl_kd.checkpoints.formats.weights import Contents
from ssl_kd.errors import BrokenCheckpoint, UserError, one_line
from ssl_kd.models.preprocessing import Preprocessing

ENTRY = "preprocessing"
NAMES = {field.name for field in fields(Preprocessing)}


def recorded(file: Contents, family: Preprocessing) -> Preprocessing:
    """The family's preprocessing with what the file records in its place. BrokenCheckpoint for a record that cannot be."""
    own = file.at(ENTRY)
    try:
        if isinstance(own, Mapping) and own and NAMES >= own.keys():
            return _with(family, own)
        size = _trained_at(file)
        return family if size in (None, family.size) else family.at(int(size or 0), crop_ratio=1.0)
    except (UserError, TypeError, ValueError) as error:
        raise BrokenCheckpoint(f"its record of the pixels cannot be used: {one_line(error, 160)}") from error


def _with(family: Preprocessing, own: Mapping[str, object]) -> Preprocessing:
    """The record's fields, and the family's for what it does not say; a size alone takes the whole of the image."""
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in own.items()}
    if "size" in given and "resize" not in given and "crop" not in given:
        family = family.at(cast(int, given["size"]), crop_ratio=1.0)
    with_these: Callable[..., Preprocessing] = partial(replace, family)
    return with_these(**given)


def _trained_at(file: Contents) -> int | None:
    """The side of the views of one of our own earlier checkpoints."""
    settings = file.at("settings")
    if not isinstance(settings, Mapping) or not {"size", "method", "images_digest"} <= settings.keys():
        return None
    size = settings["size"]
    return size if isinstance(size, int) and not isinstance(size, bool) else None
