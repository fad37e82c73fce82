"""Batches of augmented views, cut in worker threads ahead of the training step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from ssl_kd.data.augment import Recipe, cut, finish
from ssl_kd.data.prefetch import prefetch
from ssl_kd.data.samplers import Batches
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.errors import ImagesError
from ssl_kd.types import ViewBatch


class ViewLoader:
    """Cuts batches of views in worker threads, ahead of the consumer; `finish_all` completes them on the device.

    seed: names the whole stream of views. threads: decoding and resizing release the interpreter lock.
    replay: after so many epochs the views come round again (0: never), though in another order.
    `share` = (rank, ranks) makes it cut only this process's part of every batch. With `parts` = K a batch is K times
    `batch_size`, and comes in K pieces, one after another.
    """

    share = (0, 1)
    parts = 1

    def __init__(
        self,
        images: ImageSource,
        recipes: tuple[Recipe, ...],
        size: int,
        batch_size: int,
        seed: int = 0,
        threads: int = 2,
        replay: int = 0,
    ):
        self.images, self.recipes, self.size = images, recipes, size
        self.batch_size, self.seed, self.threads, self.replay = batch_size, seed, threads, replay

    def batches_per_epoch(self) -> int:
        """Number of batches in every epoch. Raises ImagesError where there are too few images for one."""
        count = len(self.images)
        if count < 2:
            raise ImagesError(
                f"expected at least 2 images to relate to each other, got {count}; point to a larger folder"
            )
        return -(-count // (self.batch_size * self.parts))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[ViewBatch]:
        """Batches (in their parts) of one epoch from batch `start` on, uint8, in a fixed order."""
        whole = Batches(self.images.order(self.seed, epoch), self.batch_size * self.parts).since(start)
        jobs = (part for job in whole for part in np.array_split(job, self.parts))
        rank, ranks = self.share
        mine = (np.array_split(job, ranks)[rank] for job in jobs)
        return prefetch(lambda index: self._cut_batch(index, epoch), mine, threads=self.threads)

    def _cut_batch(self, index: np.ndarray, epoch: int) -> ViewBatch:
        kept, rows = [], []
        for i in index:
            image = self.images.read(int(i))
            if image is None:  # counted and named by `images`; too many of them is its error to raise
                continue
            kept.append(int(i))
            rows.append(
                [
                    cut(image, recipe, self.side(recipe), self.seed, int(i), self.view_number(epoch, v))
                    for v, recipe in enumerate(self.recipes)
                ]
            )
        if len(kept) < (2 if self.share[1] == 1 else 1):
            raise ImagesError(
                f"a batch of {len(index)} images had {len(kept)} readable ones; see the list of bad files"
            )
        pixels = tuple(
            torch.from_numpy(np.stack([row[v] for row in rows])).permute(0, 3, 1, 2) for v in range(len(self.recipes))
        )
        return ViewBatch(np.asarray(kept, dtype=np.int64), epoch, pixels)

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
                self.seed,
                views.index,
                self.view_number(views.epoch, v),
                self.cycle(views.epoch),
            ).contiguous(memory_format=torch.channels_last)
            for v, (pixels, recipe) in enumerate(zip(views.pixels, self.recipes, strict=True))
        )
        return ViewBatch(views.index, views.epoch, done)
