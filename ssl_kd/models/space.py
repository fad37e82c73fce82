"""Whose coordinates a feature is in. Vectors of two spaces must never be compared: the distances would mean nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from ssl_kd.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Space:
    """The coordinates of one feature of one network, fed its own pixels.

    digest: `Encoder.digest`, over architecture and weights. pixels: `Preprocessing.key`. width: D, numbers per image.
    arch and origin are for messages and are not compared.
    """

    digest: str
    feature: str
    pixels: str
    width: int
    arch: str = ""
    origin: str = ""

    @classmethod
    def from_record(cls, record: object) -> Space:
        """The inverse of `record`. ValueError for anything else."""
        kinds = {one.name: int if one.name == "width" else str for one in fields(cls)}
        if not isinstance(record, Mapping) or record.keys() != kinds.keys():
            raise ValueError("not the record of a space")
        for name, kind in kinds.items():
            if type(record[name]) is not kind:
                raise ValueError(f"{name} is no {kind.__name__}")
        return cls(**record)

    def record(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)

    def difference(self, other: Space) -> str:
        """What the other space differs in, in words; empty where both are one."""
        if self.digest != other.digest:
            return f"other weights ({other.arch}, {other.digest[:12]})"
        if self.feature != other.feature:
            return f"another feature ({other.feature})"
        if self.width != other.width:
            return f"another width ({other.width})"
        return "" if self.pixels == other.pixels else f"other preprocessing ({Preprocessing.from_key(other.pixels)})"

    def holds(self, head: Space) -> bool:
        """Whether a head that was trained into `head` answers in this space.

        Preprocessing may differ: it is that of the pictures here, and a head's pictures are seen by its student.
        """
        return (self.digest, self.feature, self.width) == (head.digest, head.feature, head.width)

    def __str__(self) -> str:
        return f"{self.arch}, feature {self.feature}, width {self.width}, weights {self.digest[:12]}"
