"""What finished runs leave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssl_kd.metrics import Overlap
from ssl_kd.models.encoder import Encoder


@dataclass(frozen=True)
class Distilled:
    """What a finished run leaves: the student (eval mode), where it lies, and how it went."""

    student: Encoder
    path: Path
    out: Path
    seconds: float
    images_per_second: float
    last: dict[str, float]
    best: Path | None = None  # the student with most neighbours in common with the teacher, if images were held out
    overlap: Overlap | None = None  # the student's own neighbours in common, likewise


@dataclass(frozen=True)
class DistilledGroup:
    """What a finished run with several students leaves: each of them by name, as a run of its own would, and the folder."""

    students: Mapping[str, Distilled]
    out: Path
    seconds: float
    images_per_second: float

    def __getitem__(self, name: str) -> Distilled:
        return self.students[name]
