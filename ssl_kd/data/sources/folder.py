"""Picture files of a folder and of the folders below it."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.decode import MAX_BYTES, UnreadableError, decode, not_this_time
from ssl_kd.data.sources.fingerprint import files_content, read_bytes
from ssl_kd.data.sources.listing import (
    Names,
    PackedNames,
    files_identity,
    no_images,
    picture_paths,
    size_of,
    some_files,
)
from ssl_kd.errors import ImagesError


class FolderImages(ImageSource):
    """The picture files of a folder and of the folders below it, in the order of their paths.

    Hidden files and folders, and files without a picture's extension, are passed over. Links to folders are followed
    unless they lead back to a folder above.
    """

    def __init__(self, folder: str | Path, max_unreadable: float = 0.01):
        self.folder = os.fspath(folder)
        passed_over: Counter[str] = Counter()
        ids = PackedNames(picture_paths(self.folder, passed_over))
        if not len(ids):
            raise ImagesError(no_images(self.folder, some_files(self.folder)))
        super().__init__(self.folder, ids, max_unreadable, passed_over)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return load_file(f"{self.folder}/{self.ids[i]}", shorter)

    def _identity(self) -> Iterator[bytes]:
        sizes = np.fromiter((size_of(f"{self.folder}/{name}") for name in self.ids), np.int64, len(self))
        yield from files_identity(self.ids, sizes)

    def _content(self, full: bool) -> Iterator[bytes]:
        return files_content(_Below(self.folder, self.ids), full)


def load_file(path: str, shorter: int | None = None) -> Image.Image:
    """The picture in a file as RGB; UnreadableError where there is none, see `decode`."""
    try:
        if os.stat(path).st_size > MAX_BYTES:
            raise UnreadableError(f"larger than {MAX_BYTES >> 20} MiB")
        data = read_bytes(path, 0, MAX_BYTES)
    except OSError as error:
        raise not_this_time(error) from None
    return decode(data, shorter)


class _Below(Names):
    """Paths of names below a folder."""

    def __init__(self, folder: str, names: Sequence[str]):
        self._folder, self._names = folder, names

    def __len__(self) -> int:
        return len(self._names)

    def name(self, i: int) -> str:
        """See Names."""
        return f"{self._folder}/{self._names[i]}"
