"""A part of a source: held-out pictures and everything else, the splits of a task."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from ssl_kd.data.sources.base import ImageSource, Prepared
from ssl_kd.data.sources.listing import Names
from ssl_kd.errors import ImagesError, shown_name

MOST, SHARE = 512, 0.02  # images held out unless a number is asked for: whichever is fewer


FEWEST = 32  # fewer held-out images say nothing about ten neighbours


FEW_SHARDS = 8  # of streamed shards so many give the held-out images


class Subset(ImageSource):
    """The pictures of a set whose numbers are given, or all the others; unreadable ones count for the whole.

    numbers: (n,) integers, sorted where `others` is true. Ids are those of the whole, content too.
    mark: what stands behind the whole's digest in this one's; runs and caches on disk know their parts by it.
    """

    def __init__(
        self,
        whole: ImageSource,
        numbers: np.ndarray,
        others: bool = False,
        name: str = "",
        mark: str | None = None,
    ):
        if len(numbers) and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(whole):
            raise ImagesError(f"{shown_name(whole.name)}: a part names pictures beyond its {len(whole):,}")
        self.whole, self.numbers, self.others = whole, numbers, others
        self._mark = f" {others}" if mark is None else mark
        self._gaps = numbers - np.arange(len(numbers))  # others that come before each number
        super().__init__(name or whole.name, _Ids(self), whole.max_unreadable, whole.passed_over)
        self.unreadable, self.limit_is_setting = whole.unreadable, whole.limit_is_setting

    def __len__(self) -> int:
        return len(self.whole) - len(self.numbers) if self.others else len(self.numbers)

    @property
    def allowed(self) -> int:
        """As the whole set bears."""
        return self.whole.allowed

    def number(self, i: int) -> int:
        """What picture i is called in the whole set. No table is kept: a million images would fill it."""
        if not 0 <= i < len(self):
            raise IndexError(i)
        return int(i + np.searchsorted(self._gaps, i, side="right") if self.others else self.numbers[i])

    def read(self, i: int, shorter: int | None = None) -> Image.Image | None:
        """As the whole set reads it."""
        return self.whole.read(self.number(i), shorter)

    def prepared(
        self, i: int, prepare: Callable[[Image.Image], Prepared], shorter: int | None = None
    ) -> Prepared | None:
        """As the whole set prepares it."""
        return self.whole.prepared(self.number(i), prepare, shorter)

    def runs(self) -> np.ndarray | None:
        """The runs of the whole set, without what is not of this part. None where its order is another."""
        if (runs := self.whole.runs()) is None or (np.diff(self.numbers) <= 0).any():
            return None
        inside = np.diff(np.searchsorted(self.numbers, np.cumsum(runs)), prepend=0)
        return runs - inside if self.others else inside

    def window(self) -> int:
        """As the whole set's."""
        return self.whole.window()

    def coming(self, runs: np.ndarray) -> None:
        """As the whole set hears it."""
        self.whole.coming(runs)

    def _must_be_borne(self) -> None:
        self.whole._must_be_borne()

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return self.whole._load(self.number(i), shorter)

    def _identity(self) -> Iterator[bytes]:
        yield f"{self.whole.digest}{self._mark}".encode()
        yield self.numbers.astype("<i8").tobytes()

    def _content(self, full: bool) -> Iterator[bytes]:
        yield (self.whole.full_digest if full else self.whole.content_digest).encode()


class _Ids(Names):
    def __init__(self, part: Subset):
        self._part = part

    def __len__(self) -> int:
        return len(self._part)

    def name(self, i: int) -> str:
        return self._part.whole.ids[self._part.number(i)]


def hold_out(images: ImageSource, count: int = 0) -> tuple[ImageSource, ImageSource | None]:
    """Images to train on, and those held out for `Monitor`: every so-many-th, whatever the seed, so that runs compare.

    Of streamed shards they come from a few: single ones out of all would have all of these fetched.
    count: how many; 0 takes the fewer of 512 and 2 %, or none (the second is then None) where those are below 32.
    """
    wanted = count or min(MOST, int(SHARE * len(images)))
    if not count and wanted < FEWEST:
        return images, None
    if not FEWEST <= wanted <= len(images) // 2:
        raise ImagesError(
            f"health_images: expected {FEWEST} images to half of the {len(images):,}, got {wanted}; or health_every 0"
        )
    numbers = _spread_out(len(images), wanted)
    runs = images.runs()
    if runs is not None:  # a look should not cost a pass over all shards
        begins, few = np.cumsum(runs) - runs, _spread_out(len(runs), min(len(runs), FEW_SHARDS))
        pool = np.concatenate([begins[s] + np.arange(runs[s]) for s in few])
        if len(pool) >= 2 * wanted:
            numbers = pool[_spread_out(len(pool), wanted)]
    return Subset(images, numbers, others=True), Subset(images, numbers)


def _spread_out(count: int, wanted: int) -> np.ndarray:
    """So many of range(count), evenly spaced."""
    return ((np.arange(wanted) + 0.5) * count / wanted).astype(np.int64)
