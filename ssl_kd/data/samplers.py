"""Which picture comes when: an epoch's shuffle as a function of (seed, epoch, position), not as a list.

`order[a:b]` gives the picture numbers at those positions. Nothing is kept that grows with the number of pictures, any
rank can ask for its part of any batch, and an interrupted epoch resumes at the very sample where it stopped.

* `Shuffled`: every picture may follow every other, where pictures can be read at random.
* `ByShard`: some shards at a time in a new order each epoch, shuffled together, where pictures come shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from ssl_kd.rng import scrambled

DRAWN = 1 << 20  # up to so many numbers a permutation is drawn and kept for the epoch (8 MB); beyond it is computed
WINDOW = 16  # shards that are read, and shuffled, together
ROUNDS = 6  # of the Feistel network; four already give a pseudo-random permutation (Luby & Rackoff 1988)


class Order(Protocol):
    """Each number from 0 to len - 1 at exactly one position."""

    def __len__(self) -> int: ...
    def __getitem__(self, positions: slice) -> np.ndarray: ...


class Shuffled:
    """A permutation of range(count) that depends on `key` alone: (seed, epoch), or whatever integers name it."""

    def __init__(self, count: int, *key: int):
        self.count = count
        self._drawn: np.ndarray | None = np.random.default_rng(key).permutation(count) if count <= DRAWN else None
        if self._drawn is None:
            self._half = -(-(count - 1).bit_length() // 2)  # bits of each half: the domain is below 4 x count
            self._keys = np.random.default_rng(key).integers(0, 1 << 63, ROUNDS, np.uint64)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, positions: slice) -> np.ndarray:
        if self._drawn is not None:
            return self._drawn[positions]
        start, stop, step = positions.indices(self.count)
        return self.at(np.arange(start, stop, step, dtype=np.int64))

    def at(self, positions: np.ndarray) -> np.ndarray:
        """The numbers at `positions`, int64 of the same shape (n,)."""
        if self._drawn is not None:
            return np.asarray(self._drawn[positions])
        x = self._scramble(positions.astype(np.uint64))
        while (outside := x >= self.count).any():  # walk on until inside: still a permutation (Black & Rogaway 2002)
            x[outside] = self._scramble(x[outside])
        return x.astype(np.int64)

    def _scramble(self, x: np.ndarray) -> np.ndarray:
        half, mask = np.uint64(self._half), np.uint64((1 << self._half) - 1)
        left, right = x >> half, x & mask
        for key in self._keys:
            left, right = right, left ^ (scrambled(right + key) & mask)
        return (left << half) | right


class ByShard:
    """Shards in a random order, `window` of them at a time, the pictures of such a window shuffled together.

    sizes: pictures in each shard; picture numbers count through the shards in turn. Memory: some 24 bytes a shard.
    """

    def __init__(self, sizes: Sequence[int] | np.ndarray, window: int, seed: int, epoch: int):
        sizes = np.asarray(sizes, dtype=np.int64)
        self.window, self._key = window, (seed, epoch)
        self.shards = Shuffled(len(sizes), seed, epoch)[:]
        self._sizes = sizes[self.shards]
        self._begins = (np.cumsum(sizes) - sizes)[self.shards]  # number of each shard's first picture
        self._ends = np.cumsum(self._sizes)  # position behind each shard
        self._last: tuple[int, Shuffled] | None = None

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, positions: slice) -> np.ndarray:
        start, stop, step = positions.indices(len(self))
        wanted = np.arange(start, stop, step, dtype=np.int64)
        which = np.searchsorted(self._ends, wanted, side="right") // self.window
        numbers = np.empty_like(wanted)
        for w in np.unique(which):
            first = int(w) * self.window
            before = int(self._ends[first - 1]) if first else 0
            place = before + self._shuffle(int(w), before).at(wanted[which == w] - before)
            shard = np.searchsorted(self._ends, place, side="right")
            numbers[which == w] = self._begins[shard] + place - (self._ends[shard] - self._sizes[shard])
        return numbers

    def _shuffle(self, w: int, before: int) -> Shuffled:
        """The order inside window w; the last one asked for is kept."""
        if self._last is None or self._last[0] != w:
            last = min((w + 1) * self.window, len(self._ends)) - 1
            self._last = w, Shuffled(int(self._ends[last]) - before, *self._key, w)
        return self._last[1]


class Batches:
    """An order cut into batches, computed when asked: sizes equal to within one and none above `batch_size`."""

    def __init__(self, order: Order, batch_size: int):
        self._order, self._count = order, -(-len(order) // batch_size)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, b: int) -> np.ndarray:
        b = range(self._count)[b]
        return self._order[self._start(b) : self._start(b + 1)]

    def since(self, b: int) -> Iterator[np.ndarray]:
        """Batch b and those after it."""
        return (self[i] for i in range(b, self._count))

    def _start(self, b: int) -> int:
        return start_of(b, len(self._order), self._count)


def start_of(b: int, count: int, batches: int) -> int:
    """The position at which batch b begins where so many pictures are cut into so many batches; their count for the last's end."""
    small, larger = divmod(count, batches)  # as np.array_split: the larger ones come first
    return b * small + min(b, larger)
