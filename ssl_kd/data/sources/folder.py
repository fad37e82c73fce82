"""Picture files of a folder and of the folders below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.decode import MAX_BYTES, UnreadableError, decode
from ssl_kd.data.sources.listing import (
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
        ids = PackedNames(picture_paths(self.folder))
        if not len(ids):
            raise ImagesError(no_images(self.folder, some_files(self.folder)))
        super().__init__(self.folder, ids, max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        try:
            with open(f"{self.folder}/{self.ids[i]}", "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > MAX_BYTES:
                    raise UnreadableError(f"larger than {MAX_BYTES >> 20} MiB")
                data = file.read()
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from None
        return decode(data, shorter)

    def _identity(self) -> Iterator[bytes]:
        sizes = np.fromiter((size_of(f"{self.folder}/{name}") for name in self.ids), np.int64, len(self))
        yield from files_identity(self.ids, sizes)
