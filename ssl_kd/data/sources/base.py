"""What every source of pictures is: a data set of numbered RGB pictures without labels."""

from __future__ import annotations

import hashlib
import logging
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from ssl_kd.data.samplers import WINDOW, ByShard, Order, Shuffled
from ssl_kd.data.sources.decode import UnreadableError, is_temporary
from ssl_kd.data.sources.fingerprint import spread
from ssl_kd.data.sources.listing import NAMED_IN_ERRORS, Names, passed_over_line
from ssl_kd.errors import ImagesError, UserError, shown_name

LOG = logging.getLogger("ssl_kd.data")
SAMPLED = 64  # pictures that the content digest of a source looks at which has no better sign of its own

Prepared = TypeVar("Prepared")


class ImageSource(Dataset[Image.Image], ABC):
    """Numbered RGB pictures: `len`, `ids`, `read(i)`, two digests, and `unreadable` (id -> reason) as it is found out.

    A map-style data set, so a plain `DataLoader` takes it: `images[i]` is picture i as a PIL image, after `transform`
    if there is one, and ImagesError where it cannot be read; `read(i)` gives None there. Reading is safe from several
    threads and processes. Subclasses say how picture i is loaded and what identifies the whole.

    digest: names ids and sizes (pixels, where there are no files); the same wherever the pictures lie.
    content_digest: tells in addition whether pictures were replaced or painted over; caches are keyed by it. What each
    source checks for it is in docs/images.md; `verify` makes it check every byte.
    passed_over: files that were not taken, counted by ending.
    """

    transform: Callable[[Image.Image], object] | None = None
    verify = False
    limit_is_setting = True  # whether an error may advise to raise max_unreadable: not every command has that setting

    def __init__(
        self, name: str, ids: Sequence[str], max_unreadable: float = 0.01, passed_over: Counter[str] | None = None
    ):
        if not 0 <= max_unreadable <= 1:
            raise ImagesError(f"max_unreadable: expected a share from 0 to 1, got {max_unreadable}")
        self.name, self.ids, self.max_unreadable = name, ids, max_unreadable
        self.unreadable: dict[str, str] = {}
        self.passed_over = Counter() if passed_over is None else passed_over
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> Any:
        """Picture i as RGB (or what `transform` makes of it). ImagesError, with its id, where it cannot be read."""
        i = range(len(self))[i]  # negative numbers and IndexError as for a list
        picture = self.read(i) if self.transform is None else self.prepared(i, self.transform)
        if picture is None:
            name = self.ids[i]
            raise ImagesError(f"{shown_name(self.name)}: {shown_name(name)} cannot be read: {self.unreadable[name]}")
        return picture

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} images)"

    def __getstate__(self) -> dict[str, object]:
        """Without locks, so that a loader's processes can be given it."""
        return {key: value for key, value in self.__dict__.items() if not isinstance(value, type(threading.Lock()))}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        self._lock = threading.Lock()

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

    def prepared(
        self, i: int, prepare: Callable[[Image.Image], Prepared], shorter: int | None = None
    ) -> Prepared | None:
        """Return prepare(picture i), or None when it is unreadable or cannot be prepared (too large, say)."""
        picture = self.read(i, shorter)
        if picture is None:
            return None
        try:
            return prepare(picture)
        except UserError:
            raise
        except (ValueError, OverflowError, MemoryError, OSError) as error:
            reason = shown_name(" ".join(str(error).split())[:200]) or type(error).__name__
            self._remember(self.ids[i], f"{picture.width} x {picture.height} pixels cannot be prepared: {reason}")
            return None

    def order(self, seed: int, epoch: int) -> Order:
        """The shuffle of an epoch, a function of (seed, epoch): of all pictures, or run by run where there are runs."""
        runs = self.runs()
        if runs is None:
            return Shuffled(len(self), seed, epoch)
        order = ByShard(runs, self.window(), seed, epoch)
        self.coming(order.shards)
        return order

    def runs(self) -> np.ndarray | None:
        """Sizes of the runs of pictures that should be read together (shards), or None where any may follow any."""
        return None

    def window(self) -> int:
        """How many runs are shuffled together: so many are read in turns."""
        return WINDOW

    def coming(self, runs: np.ndarray) -> None:
        """Hear in which order the runs will be read, so that they can be fetched ahead."""

    @property
    def allowed(self) -> int:
        """How many unreadable pictures are borne: the share, but at least one (unless the share is 0) and never all."""
        share = int(self.max_unreadable * len(self))
        return min(max(share, 1 if self.max_unreadable else 0), len(self) - 1)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal name of what is in here, equal for equal content wherever it lies."""
        return _hashed(self._identity())

    @property
    def content_digest(self) -> str:
        """Hexadecimal name of the very pictures, as strict as this source can be without reading all of them.

        Computed once. With `verify` it is `full_digest`.
        """
        return self.full_digest if self.verify else self._quick_digest

    @cached_property
    def full_digest(self) -> str:
        """Hexadecimal name of every byte of the pictures: one pass over all of them."""
        return _hashed([self.digest.encode()], self._content(full=True))

    @cached_property
    def _quick_digest(self) -> str:
        return _hashed([self.digest.encode()], self._content(full=False))

    def passed_over_line(self) -> str:
        """Say in one line which files that look like pictures were not taken; empty where there are none."""
        line = passed_over_line(self.passed_over)
        return f"{shown_name(self.name)}: {line}" if line else ""

    def recall(self, unreadable: Mapping[str, str]) -> None:
        """Take up what an earlier process found out, so that a run that goes on skips and names the same pictures.

        Those with a temporary reason (`is_temporary`) are not: they are tried again when their turn comes. ImagesError
        where more are unreadable than `allowed`: a command given again does not begin to count anew.
        """
        with self._lock:
            self.unreadable.update({name: why for name, why in unreadable.items() if not is_temporary(why)})
        self._must_be_borne()

    def readable_now(self, unreadable: Mapping[str, str]) -> list[str]:
        """Try those of the unreadable pictures again whose reason is temporary; return the ids of those that can be read.

        For caches: an answer that was made without these pictures is not served any more.
        """
        again = {name for name, why in unreadable.items() if is_temporary(why)}
        if not again:
            return []
        self.forget_temporary(again)
        return [name for i, name in enumerate(self.ids) if name in again and self.read(i) is not None]

    def forget_temporary(self, names: Iterable[str]) -> None:
        """Have those of these pictures tried again whose reason is temporary (a lock, a network) and may be gone."""
        with self._lock:
            for name in names:
                if is_temporary(self.unreadable.get(name, "")):
                    del self.unreadable[name]

    @abstractmethod
    def _load(self, i: int, shorter: int | None) -> Image.Image:
        """Return picture i as RGB or raise UnreadableError."""

    @abstractmethod
    def _identity(self) -> Iterator[bytes]:
        """Yield the bytes that the digest is made of."""

    def _content(self, full: bool) -> Iterable[bytes]:
        """Yield what tells pictures of equal ids and sizes apart; full: of every picture. Here: pixels, decoded."""
        return pixels_of(self, range(len(self)) if full else spread(len(self), SAMPLED))

    def _remember(self, name: str, reason: str) -> None:
        with self._lock:
            self.unreadable[name] = reason
        self._must_be_borne()

    def _must_be_borne(self) -> None:
        if len(self.unreadable) <= self.allowed:  # the list is made for the message only: costs stay linear
            return
        with self._lock:
            bad = list(self.unreadable.items())
        shown = "; ".join(f"{shown_name(name)} ({why})" for name, why in bad[:NAMED_IN_ERRORS])
        could_help = self.limit_is_setting and len(bad) < len(self)  # no setting bears that all are unreadable
        advice = "Mend or remove them" + (", or raise max_unreadable" if could_help else "")
        raise ImagesError(
            f"{shown_name(self.name)}: {len(bad)} of {len(self)} images are unreadable, {self.allowed} would be borne: "
            f"{shown}{'; ...' if len(bad) > NAMED_IN_ERRORS else ''}. {advice}"
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


def content_key(images: ImageSource) -> str:
    """The name under which caches know the pictures: their content digest."""
    return images.content_digest


def pixels_of(images: ImageSource, numbers: Iterable[int]) -> Iterator[bytes]:
    """Yield size and pixels of these pictures, as decoded; nothing is counted as unreadable for it."""
    for i in numbers:
        try:
            picture = images._load(i, None)
        except UnreadableError:
            yield b"unreadable"
        else:
            yield repr(picture.size).encode() + picture.tobytes()


def _hashed(*parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for some in parts:
        for part in some:
            digest.update(part)
    return digest.hexdigest()
