"""Pictures of any map-style data set: torchvision's, Hugging Face's, your own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Protocol

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import SAMPLED, ImageSource, Numbers, pixels_of
from ssl_kd.data.sources.decode import UnreadableError, check_pixels, decode, not_this_time, to_rgb, upright
from ssl_kd.data.sources.fingerprint import files_content, spread
from ssl_kd.errors import ImagesError, shown_name

KEYS = ("image", "img", "pixel_values")  # where rows that are dictionaries keep their picture; the first that is there
LOOKED_AT = 256  # items of a large data set that its content digest looks at
ALL_PIXELS = 1 << 26  # a data set of no more pixels is looked at whole: CIFAR's 60,000 pictures, or 200 photographs
ALL_BYTES = 4 << 30  # of an array in which a data set holds all its pictures
EXPECTED = "expected items that are PIL images, tuples with one first, or rows with one under " + " or ".join(KEYS)


class MapStyle(Protocol):
    """A data set whose items are asked for by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int, /) -> object: ...


class DatasetImages(ImageSource):
    """Pictures of a map-style data set: PIL pictures, tuples with one first, or rows (dictionaries); no labels.

    Of a row the picture is under `image`, `img` or `pixel_values`, whichever comes first in this list, or else its only
    PIL picture. As an item, uint8 arrays (H, W, 3) or (H, W) and Hugging Face's undecoded `{"bytes": ..., "path": ...}`
    are pictures too. The data set's `__getitem__` is called from several threads. The digest is of the pixels of some
    evenly spaced items, so it must not augment by chance.
    """

    def __init__(self, dataset: MapStyle, max_unreadable: float = 0.01, name: str = ""):
        self.dataset = _image_column_alone(dataset)
        super().__init__(name or type(dataset).__name__, Numbers(len(dataset)), max_unreadable)
        if not len(self):
            raise ImagesError(f"{shown_name(self.name)}: the data set is empty")
        self.read(0)  # a wrong kind of item is said now, not after an hour

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        try:
            item = self.dataset[i]
        except (OSError, SyntaxError) as error:  # what Pillow raises for bad files; other errors are the data set's own
            raise _unreadable(error) from None
        found = _picture_of(item)
        if isinstance(found, bytes):
            return decode(found, shorter)
        if isinstance(found, np.ndarray) and found.dtype == np.uint8 and (found.ndim == 2 or found.shape[2:] == (3,)):
            found = Image.fromarray(np.ascontiguousarray(found))
        if not isinstance(found, Image.Image):
            raise ImagesError(
                f"{shown_name(self.name)}: {EXPECTED}, but item {i} holds {_kind(item, found)}; "
                "leave out the data set's own transform, or wrap it"
            )
        check_pixels(found)
        try:
            return to_rgb(upright(found) if isinstance(item, Mapping) else found)
        except (OSError, SyntaxError) as error:  # Pillow decodes late
            raise _unreadable(error) from None

    def _identity(self) -> Iterator[bytes]:
        yield str(len(self)).encode()
        for i in np.linspace(0, len(self) - 1, min(SAMPLED, len(self)), dtype=int):
            picture = self.read(int(i))
            yield b"unreadable" if picture is None else repr(picture.size).encode() + picture.tobytes()

    def _content(self, full: bool) -> Iterator[bytes]:
        """Pixels: of all items where that is little or asked for, otherwise of some, with what lies behind the others.

        Behind them: the array `data` of torchvision's small sets, the files that its `samples` lists.
        """
        few = list(islice(pixels_of(self, spread(len(self), LOOKED_AT)), len(self)))
        pixels = sum(map(len, few)) / 3 / len(few) * len(self)
        if full or (pixels <= ALL_PIXELS and len(few) < len(self)):
            yield from pixels_of(self, range(len(self)))
            return
        yield from few
        data = np.asarray(getattr(self.dataset, "data", ()))
        if data.dtype != object and 0 < data.nbytes <= ALL_BYTES:
            yield np.ascontiguousarray(data).tobytes()
        yield from files_content(_listed_files(self.dataset), full=False)


def _image_column_alone(dataset: MapStyle) -> MapStyle:
    """A Hugging Face data set without its other columns, so that no label or second picture is decoded for nothing."""
    if isinstance(dataset, Mapping):
        parts = ", ".join(shown_name(str(key)) for key in islice(dataset, 6))
        raise ImagesError(
            f"{type(dataset).__name__}: holds parts ({parts}), no pictures by number; pass one of its parts"
        )
    columns = getattr(dataset, "column_names", None)
    if not isinstance(columns, list) or not hasattr(dataset, "select_columns"):
        return dataset
    key = next((key for key in KEYS if key in columns), None)
    return dataset if key is None else dataset.select_columns([key])


def _picture_of(item: object) -> object:
    """What in an item is the picture, of whatever type."""
    if isinstance(item, tuple | list) and item:
        return item[0]
    if not isinstance(item, Mapping):
        return item
    key = next((key for key in KEYS if key in item), None)
    if key is None:
        pictures = [value for value in item.values() if isinstance(value, Image.Image)]
        return pictures[0] if len(pictures) == 1 else None
    found = item[key]
    return found["bytes"] if isinstance(found, Mapping) and found.get("bytes") is not None else found


def _kind(item: object, found: object) -> str:
    """What came instead of a picture."""
    if not isinstance(item, Mapping):
        return type(found if isinstance(item, tuple | list) and item else item).__name__
    keys = ", ".join(shown_name(str(key)) for key in islice(item, 8))
    return f"dict with {keys}" + (f" ({type(found).__name__} for its picture)" if found is not None else "")


def _unreadable(error: OSError | SyntaxError) -> UnreadableError:
    """An error with a number comes from the system, and may pass; one without is Pillow's verdict on the file."""
    if isinstance(error, OSError) and error.errno is not None:
        return not_this_time(error)
    return UnreadableError(shown_name(" ".join(str(error).split())))


def _listed_files(dataset: object) -> list[str]:
    """The files of data sets that list them as torchvision's folders do."""
    listed = getattr(dataset, "samples", None)
    if not isinstance(listed, list):
        return []
    return [row[0] for row in listed if isinstance(row, tuple) and row and isinstance(row[0], str)]
