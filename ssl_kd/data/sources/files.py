"""Picture files that are named one by one: one picture, several, or the lines of a list."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.fingerprint import files_content
from ssl_kd.data.sources.folder import load_file
from ssl_kd.data.sources.listing import PackedNames, files_identity, size_of
from ssl_kd.errors import ImagesError, shown_name

LONGEST = 1 << 16  # bytes of a line; no path is longer


class FileImages(ImageSource):
    """Picture files in the order in which they are named; the ids are their paths as given."""

    def __init__(self, paths: Iterable[str], max_unreadable: float = 0.01, name: str = "pictures"):
        ids = PackedNames(paths)
        if not len(ids):
            raise ImagesError(f"{shown_name(name)}: names no picture; expected one path or more")
        for path in ids:
            if not os.path.isfile(path):
                raise ImagesError(f"{shown_name(path)}: no such picture file{_named_in(name)}")
        super().__init__(ids[0] if len(ids) == 1 and name == "pictures" else name, ids, max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return load_file(self.ids[i], shorter)

    def _identity(self) -> Iterator[bytes]:
        sizes = np.fromiter((size_of(path) for path in self.ids), np.int64, len(self))
        yield from files_identity(self.ids, sizes)

    def _content(self, full: bool) -> Iterator[bytes]:
        return files_content(self.ids, full)


def lines_of(path: str | Path) -> Iterator[str]:
    """The paths in a list file, one on each line; empty lines are passed over. ImagesError for what is no list."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
            yield from paths_in(file, str(path))
    except OSError as error:
        raise ImagesError(f"{shown_name(str(path))}: cannot be read: {error.strerror or error}") from None


def paths_in(lines: Iterable[str], name: str) -> Iterator[str]:
    """The paths that lines hold, without their ends."""
    for number, line in enumerate(lines, 1):
        path = line.rstrip("\r\n")
        if "\0" in path or len(path) > LONGEST:
            raise ImagesError(f"{shown_name(name)}: line {number} is no path; expected a list of picture files")
        if path.strip():
            yield path


def _named_in(name: str) -> str:
    return "" if name == "pictures" else f" (named in {shown_name(name)}; paths are read from the current folder on)"
