"""Pictures in a uint8 array, also memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource, Numbers
from ssl_kd.errors import ImagesError

HASHED_ROWS = 1 << 16  # pictures of an array that its digest looks at


class ArrayImages(ImageSource):
    """Pictures in a uint8 array (N, H, W, 3), also memory-mapped. The digest is of the pixels."""

    def __init__(self, array: np.ndarray, max_unreadable: float = 0.01, name: str = "array"):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise ImagesError(f"{name}: expected uint8 of shape (N, H, W, 3), got {array.dtype} of shape {array.shape}")
        if not array.size:
            raise ImagesError(f"{name}: no images in an array of shape {array.shape}")
        self.array = array
        super().__init__(name, Numbers(len(array)), max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.array[i]))

    def _identity(self) -> Iterator[bytes]:
        yield repr(self.array.shape).encode()
        for row in self.array[:: -(-len(self.array) // HASHED_ROWS)]:
            yield np.ascontiguousarray(row).tobytes()
