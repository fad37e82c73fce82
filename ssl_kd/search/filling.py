"""What goes into an index: pictures opened, their names, and their rows brought to the disk every now and then."""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.data.open import open_images, open_without_limit_setting
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.files import FileImages
from ssl_kd.data.sources.listing import Names
from ssl_kd.errors import ImagesError, shown_name
from ssl_kd.search.store import Store, Writer, name_hash
from ssl_kd.search.vectors import unit_rows

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

COMMIT_SECONDS = 10.0  # what a kill may cost
COMMIT_BYTES = 64 << 20  # of vectors that wait in memory to be written


def opened(images: object, max_unreadable: float) -> ImageSource:
    """A source of pictures; one picture, and a list of them, as well."""
    return open_images(_as_source(images), max_unreadable)


def opened_queries(images: object) -> ImageSource:
    """The same of queries, of which none may be unreadable."""
    return open_without_limit_setting(_as_source(images), 0.0)


def _as_source(images: object) -> object:
    from PIL import Image

    return [images] if isinstance(images, Image.Image) else images


def loaded(
    encoder: Encoder | str | os.PathLike[str], feature: str = "", reading: Mapping[str, object] | None = None
) -> Encoder:
    """The frozen encoder of a file or name, or one that is there; reading: what `load_teacher` is told beside it.

    feature: which is read; an encoder that is there keeps its own for others.
    """
    from ssl_kd.checkpoints.loading import load_teacher

    if isinstance(encoder, str | os.PathLike):
        return load_teacher(encoder, feature=feature or None, **(reading or {}))  # type: ignore[arg-type]  # it checks them
    return copy.copy(encoder).read_as(feature) if feature else encoder


class PathNames(Names):
    """The names of a source's pictures in an index: the source's own, and behind it the picture's."""

    def __init__(self, source: ImageSource):
        self.source = source
        self.before = "" if isinstance(source, FileImages) else f"{source.name}/"

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        """See Names."""
        return f"{self.before}{self.source.ids[i]}"


def must_differ(names: Names) -> None:
    """ImagesError for two pictures of one name: only one of them could be found again."""
    hashes = np.fromiter(map(name_hash, names), np.uint64, len(names))
    values, counts = np.unique(hashes, return_counts=True)
    for number in np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist():
        twins = [i for i in np.flatnonzero(hashes == hashes[number]).tolist() if names[i] == names[number]]
        if len(twins) > 1:
            raise ImagesError(f"{shown_name(names[number])}: is named {len(twins)} times; name each picture once")


def place_of(source: str) -> str:
    """The whole path of a source that lies on the disk, also of a folder in an archive; empty for any other."""
    return os.path.abspath(source) if os.path.exists(source) or archive_in(source) else ""


def holds_some_of(source: ImageSource, places: set[tuple[str, str]], store: Store) -> bool:
    """Whether pictures that came from these places (a source's name and whole path) came from this source too.

    A folder of that name elsewhere is another one, unless the old one is gone: then it was moved. A list of pictures is
    known by the names in it.
    """
    name, root = place_in_index(source)
    if not name:
        return bool((store.rows_of(PathNames(source)) >= 0).any())
    return any(name == old and (root == there or not place_of(there)) for old, there in places)


def place_in_index(source: ImageSource) -> tuple[str, str]:
    """What an index keeps of where pictures came from: the source's name and whole path; nothing for a list of pictures."""
    return ("", "") if isinstance(source, FileImages) else (source.name, place_of(source.name))


def archive_in(path: str) -> str:
    """The file that a path leads into: photos.zip of photos.zip/lake/7.png; empty where there is none."""
    folders = (path[: cut.start()] for cut in re.finditer("/", path))
    return next((folder for folder in folders if os.path.isfile(folder)), "")


class Filler:
    """Collects rows, and brings them to the disk every now and then."""

    def __init__(self, writer: Writer, source: ImageSource, old: np.ndarray, norm: str):
        self.writer, self.old, self.norm = writer, old, norm
        self.place = place_in_index(source)
        self.added = self.replaced = 0
        self._empty()

    def _empty(self) -> None:
        self.names: list[str] = []
        self.rows: list[np.ndarray] = []
        self.gone: list[int] = []
        self.since = time.monotonic()

    def take(self, names: list[str], rows: np.ndarray, numbers: Sequence[int]) -> None:
        """Rows (n, D) of so many pictures, by their numbers in the source."""
        self.names += names
        self.rows.append(unit_rows(rows) if self.norm == "unit" else np.ascontiguousarray(rows, np.float32))
        self.gone += [int(self.old[i]) for i in numbers if self.old[i] >= 0]
        size = len(self.names) * rows.shape[1] * 4
        if size > COMMIT_BYTES or time.monotonic() - self.since > COMMIT_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Make what was taken count."""
        if self.names:
            self.writer.add(self.names, np.concatenate(self.rows), *self.place)
            self.writer.remove(self.gone)
            self.writer.commit()
        self.added, self.replaced = self.added + len(self.names), self.replaced + len(self.gone)
        self._empty()
