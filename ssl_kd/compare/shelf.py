"""What a comparison keeps: a folder for each cell with its record, written when it is finished, and a claim while it is worked on.

Several processes share a shelf. A cell is claimed by a lock that its process loses when it dies, so that another one
resumes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import atomic_text, locked, sealed, unsealed
from ssl_kd.runtime.ownership import Kind

Record = dict[str, Any]  # plain data, as JSON keeps it
OUTPUTS = ("config.yaml", "compare.md", "compare.csv", "compare.jsonl", "pairs.csv", "report.html")
CELL = "cell.json"


def _is_older(folder: Path) -> bool:
    return False


COMPARISON = Kind(
    "comparison",
    "out",
    "a comparison's folder",
    (*OUTPUTS, "cells", "judged", "features", "targets"),
    _is_older,
)


def key_of(identity: Mapping[str, object]) -> str:
    """The name of a cell: 24 hexadecimal digits of everything that decides it."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:24]


class Shelf:
    """Cells by key, below one folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: dict[str, Record] = {}

    def place(self, key: str) -> Path:
        """The cell's folder."""
        return self.folder / key

    def record(self, key: str) -> Record | None:
        """What is kept of a finished cell; None for one that is not finished, or whose record is damaged."""
        if key not in self._known:
            try:
                self._known[key] = unsealed((self.place(key) / CELL).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                return None
        return self._known[key]

    def keep(self, key: str, record: Record) -> Record:
        """Write a finished cell's record."""
        self.place(key).mkdir(parents=True, exist_ok=True)
        atomic_text(self.place(key) / CELL, sealed(record))
        self._known[key] = json.loads(json.dumps(record))
        return self._known[key]

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process may work on the cell now; until the end of the block no other one may."""
        place = self.place(key)
        try:
            place.mkdir(parents=True, exist_ok=True)
            file = open(place / ".claim", "ab")  # noqa: SIM115 - closed below
        except OSError as error:
            raise UserError(f"out: cannot write in {place} ({error.strerror}); choose another folder") from error
        with file:
            try:
                mine = locked(file)
            except OSError:
                mine = False
            yield mine
