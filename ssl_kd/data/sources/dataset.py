"""Pictures of any map-style data set."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource, Numbers
from ssl_kd.data.sources.decode import UnreadableError, check_pixels, to_rgb
from ssl_kd.errors import ImagesError

SAMPLED = 64  # pictures of a data set that its digest looks at


class DatasetImages(ImageSource):
    """Pictures of a map-style data set: items are PIL pictures or tuples with one first; the rest is dropped.

    Its `__getitem__` is called from several threads. The digest is of the pixels of some evenly spaced items.
    """

    def __init__(self, dataset: Any, max_unreadable: float = 0.01, name: str = ""):
        self.dataset = dataset
        super().__init__(name or type(dataset).__name__, Numbers(len(dataset)), max_unreadable)
        if not len(self):
            raise ImagesError(f"{self.name}: the data set is empty")
        self.read(0)  # a wrong kind of item is said now, not after an hour

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        try:
            item = self.dataset[i]
        except (OSError, SyntaxError) as error:  # what Pillow raises for bad files; other errors are the data set's own
            raise UnreadableError(" ".join(str(error).split())) from None
        picture = item[0] if isinstance(item, tuple | list) and item else item
        if not isinstance(picture, Image.Image):
            raise ImagesError(
                f"{self.name}: expected items that are PIL images or tuples with one first, but item {i} holds "
                f"{type(picture).__name__}; leave out the data set's own transform, or wrap it"
            )
        check_pixels(picture)
        try:
            return to_rgb(picture)
        except (OSError, SyntaxError) as error:  # Pillow decodes late
            raise UnreadableError(" ".join(str(error).split())) from None

    def _identity(self) -> Iterator[bytes]:
        yield str(len(self)).encode()
        for i in np.linspace(0, len(self) - 1, min(SAMPLED, len(self)), dtype=int):
            picture = self.read(int(i))
            yield b"unreadable" if picture is None else repr(picture.size).encode() + picture.tobytes()
