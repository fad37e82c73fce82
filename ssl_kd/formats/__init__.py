"""The table of checkpoint formats. `recognise` demands exactly one claim."""

from __future__ import annotations

from ssl_kd.errors import UnknownCheckpoint, UserError, nearest
from ssl_kd.formats.moco import MOCO
from ssl_kd.formats.student import STUDENT
from ssl_kd.formats.weights import Contents, Format, Weights

__all__ = ["FORMATS", "Contents", "Format", "Weights", "recognise"]

FORMATS: dict[str, Format] = {f.name: f for f in (STUDENT, MOCO)}


def recognise(file: Contents, name: str | None = None) -> Format:
    """The one format that claims the file, or the named one; UnknownCheckpoint says what was seen."""
    if name is not None:
        if name not in FORMATS:
            raise UserError(f"format={name!r} is not one of {', '.join(FORMATS)}.{nearest(name, list(FORMATS))}")
        return FORMATS[name]
    claims = [f for f in FORMATS.values() if f.matches(file)]
    if len(claims) == 1:
        return claims[0]
    seen = list(file.tensors())
    first = ", ".join(seen[:6]) or "no tensors at all"
    if claims:
        raise UnknownCheckpoint(f"{len(claims)} formats claim it ({', '.join(f.name for f in claims)}). Pass format=.")
    raise UnknownCheckpoint(
        f"no known teacher format among {len(seen)} tensors. First keys: {first}. "
        f"Pass format= one of {', '.join(FORMATS)} if you know what it is."
    )
