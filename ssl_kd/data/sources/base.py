"""What every source of pictures is: numbered RGB pictures without labels."""

from __future__ import annotations

import hashlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ssl_kd.data.samplers import WINDOW, ByShard, Order, Shuffled
from ssl_kd.data.sources.decode import UnreadableError
from ssl_kd.data.sources.listing import (
    NAMED_IN_ERRORS,
    Names,
)
from ssl_kd.errors import ImagesError, shown_name

if TYPE_CHECKING:
    pass


class ImageSource(ABC):
    """Numbered RGB pictures: `len`, `ids`, `read(i)`, `digest`, and `unreadable` (id -> reason) as it is found out.

    Reading is safe from several threads. Subclasses say how picture i is loaded and what identifies the whole.
    """

    def __init__(self, name: str, ids: Sequence[str], max_unreadable: float = 0.01):
        if not 0 <= max_unreadable <= 1:
            raise ImagesError(f"max_unreadable: expected a share from 0 to 1, got {max_unreadable}")
        self.name, self.ids, self.max_unreadable = name, ids, max_unreadable
        self.unreadable: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} images)"

    def read(self, i: int, shorter: int | None = None) -> Image.Image | None:
        """Return picture i as RGB, or None when it is unreadable; its id and the reason are then in `unreadable`.

        shorter: see decode. Raises ImagesError when more pictures are unreadable than `allowed`.
        """
        if self.unreadable and self.ids[i] in self.unreadable:
            return None
        try:
            return self._load(i, shorter)
        except UnreadableError as reason:
            self._remember(self.ids[i], str(reason))
            return None

    def order(self, seed: int, epoch: int) -> Order:
        """The shuffle of an epoch, a function of (seed, epoch): of all pictures, or run by run where there are runs."""
        runs = self.runs()
        if runs is None:
            return Shuffled(len(self), seed, epoch)
        order = ByShard(runs, WINDOW, seed, epoch)
        self.coming(order.shards)
        return order

    def runs(self) -> np.ndarray | None:
        """Sizes of the runs of pictures that should be read together (shards), or None where any may follow any."""
        return None

    def coming(self, runs: np.ndarray) -> None:  # noqa: B027 - only what is fetched has a use for it
        """Hear in which order the runs will be read, so that they can be fetched ahead."""

    @property
    def allowed(self) -> int:
        """How many unreadable pictures are borne: the share, but at least one (unless the share is 0) and never all."""
        share = int(self.max_unreadable * len(self))
        return min(max(share, 1 if self.max_unreadable else 0), len(self) - 1)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal name of what is in here, equal for equal content wherever it lies."""
        digest = hashlib.sha256()
        for part in self._identity():
            digest.update(part)
        return digest.hexdigest()

    def recall(self, unreadable: Mapping[str, str]) -> None:
        """Take up what an earlier process found out, so that a run that goes on skips and names the same pictures."""
        with self._lock:
            self.unreadable.update(unreadable)

    @abstractmethod
    def _load(self, i: int, shorter: int | None) -> Image.Image:
        """Return picture i as RGB or raise UnreadableError."""

    @abstractmethod
    def _identity(self) -> Iterator[bytes]:
        """Yield the bytes that the digest is made of."""

    def _remember(self, name: str, reason: str) -> None:
        with self._lock:
            self.unreadable[name] = reason
            bad = list(self.unreadable.items())
        if len(bad) > self.allowed:
            shown = "; ".join(f"{shown_name(name)} ({why})" for name, why in bad[:NAMED_IN_ERRORS])
            raise ImagesError(
                f"{self.name}: {len(bad)} of {len(self)} images are unreadable, {self.allowed} would be borne: {shown}"
                f"{'; ...' if len(bad) > NAMED_IN_ERRORS else ''}. Mend or remove them, or raise max_unreadable"
            )


class Numbers(Names):
    """The ids "0", "1", ... of pictures that have no names."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name(self, i: int) -> str:
        """See Names."""
        return str(i)


def content_key(images: Any) -> str:
    """Name the content of images more strictly than their digest, which knows files by name and size only.

    Archives add their members' checksums, folders the times of the last change: a picture painted over in place is
    another picture.
    """
    extra = b""
    if (checksums := getattr(images, "crcs", None)) is not None:
        extra = np.asarray(checksums).tobytes()
    elif (folder := getattr(images, "folder", None)) is not None:
        times = (_changed(f"{folder}/{name}") for name in images.ids)
        extra = np.fromiter(times, np.int64, len(images)).tobytes()
    return hashlib.sha256(images.digest.encode() + extra).hexdigest()


def _changed(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return -1
