"""Batches of augmented views, cut in worker threads ahead of the training step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from PIL import Image

from ssl_kd.data.augment import Recipe, cut, finish
from ssl_kd.data.prefetch import prefetch
from ssl_kd.data.samplers import Batches, start_of
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.errors import ImagesError
from ssl_kd.types import ViewBatch


class ViewLoader:
    """Cuts batches of views in worker threads, ahead of the consumer; `finish_all` completes them on the device.

    seed: names the order of the images, view_seed the stream of views (None: seed does that too).
    threads: decoding and resizing release the interpreter lock.
    replay: after so many epochs the views come round again (0: never), though in another order.
    parts: with K a batch is K times `batch_size`, and comes in K pieces, one after another.
    """

    def __init__(
        self,
        images: ImageSource,
        recipes: tuple[Recipe, ...],
        size: int,
        batch_size: int,
        seed: int = 0,
        threads: int = 2,
        replay: int = 0,
        parts: int = 1,
        view_seed: int | None = None,
    ):
        self.images, self.recipes, self.size, self.parts = images, recipes, size, parts
        self.batch_size, self.seed, self.threads, self.replay = batch_size, seed, threads, replay
        self.view_seed = seed if view_seed is None else view_seed

    def batches_per_epoch(self) -> int:
        """Number of batches in every epoch. Raises ImagesError where there are too few images for one."""
        count = len(self.images)
        if count < 2:
            if count:
                self.images.read(0)  # ImagesError where the only one is no picture
            raise ImagesError(
                f"expected at least 2 images to relate to each other, got {count}; point to a larger folder"
            )
        return -(-count // (self.batch_size * self.parts))

    def looks(self, batches: int) -> int:
        """How many images the first so many batches of a run hold, each counted every time that it comes."""
        per_epoch = self.batches_per_epoch()
        epochs, rest = divmod(batches, per_epoch)
        return epochs * len(self.images) + start_of(rest, len(self.images), per_epoch)

    def epoch(self, epoch: int, start: int = 0, share: tuple[int, int] = (0, 1)) -> Iterator[ViewBatch]:
        """Batches (in their parts) of one epoch from batch `start` on, uint8, in a fixed order.

        share: (rank, ranks) of several processes; only this one's part of every batch is cut.
        """
        whole = Batches(self.images.order(self.seed, epoch), self.batch_size * self.parts).since(start)
        jobs = (part for job in whole for part in np.array_split(job, self.parts))
        rank, ranks = share
        mine = (np.array_split(job, ranks)[rank] for job in jobs)
        fewest = 2 if ranks == 1 else 1
        return prefetch(lambda index: self._cut_batch(index, epoch, fewest), mine, threads=self.threads)

    def first_views(self, count: int) -> Iterator[ViewBatch]:
        """The first views of so many evenly spaced images, in batches as `epoch` gives them; the seed of the order has no say."""
        index = np.unique(np.linspace(0, len(self.images) - 1, min(count, len(self.images))).astype(np.int64))
        for batch in np.array_split(index, -(-len(index) // self.batch_size)):
            yield self._cut_batch(batch, 0, 1)

    def _cut_batch(self, index: np.ndarray, epoch: int, fewest: int) -> ViewBatch:
        numbers = tuple(self.view_number(epoch, v) for v in range(len(self.recipes)))
        kept, rows = [], []
        for i in map(int, index):
            views = self.images.prepared(i, partial(self._cut_views, i, numbers))
            if views is None:  # counted and named by `images`; too many of them is its error to raise
                continue
            kept.append(i)
            rows.append(views)
        if len(kept) < fewest:
            raise ImagesError(
                f"a batch of {len(index)} images had {len(kept)} readable ones; see the list of bad files"
            )
        pixels = tuple(
            torch.from_numpy(np.stack([row[v] for row in rows])).permute(0, 3, 1, 2) for v in range(len(self.recipes))
        )
        return ViewBatch(np.asarray(kept, dtype=np.int64), epoch, pixels, numbers)

    def _cut_views(self, i: int, numbers: tuple[int, ...], image: Image.Image) -> list[np.ndarray]:
        return [
            cut(image, recipe, self.side(recipe), self.view_seed, i, number)
            for recipe, number in zip(self.recipes, numbers, strict=True)
        ]

    def side(self, recipe: Recipe) -> int:
        """Side in pixels of a recipe's views; small crops have multiples of 8."""
        return self.size if recipe.side == 1 else max(8, 8 * round(self.size * recipe.side / 8))

    @property
    def teacher_views(self) -> int:
        """How many views of an image and epoch teachers look at."""
        return sum(self.side(recipe) == self.size for recipe in self.recipes)

    def view_number(self, epoch: int, v: int) -> int:
        """The running number of view v of an epoch; equal numbers are equal pixels."""
        return self.cycle(epoch) * len(self.recipes) + v

    def cycle(self, epoch: int) -> int:
        """The epoch whose views this one shows: itself, or its place in the cycle of replayed views."""
        return epoch % self.replay if self.replay else epoch

    def finish_all(self, views: ViewBatch, device: torch.device | str = "cpu") -> ViewBatch:
        """Move to the device, flip, colour and blur: float32 in [0, 1], channels-last."""
        done = tuple(
            finish(
                pixels.to(device, non_blocking=True),
                recipe,
                self.view_seed,
                views.index,
                number,
                self.cycle(views.epoch),
            ).contiguous(memory_format=torch.channels_last)
            for pixels, recipe, number in zip(views.pixels, self.recipes, views.view_numbers, strict=True)
        )
        return ViewBatch(views.index, views.epoch, done, views.view_numbers)
