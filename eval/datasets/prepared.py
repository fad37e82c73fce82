"""A task made small and ready for many networks: evenly spaced pictures, resized once for all that see the same pixels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.errors import UserError
from ssl_kd.models.preprocessing import Preprocessing

from .tasks import Split, Task, part_of


def evenly(task: Task, train: int, test: int) -> Task:
    """Return the task with at most so many evenly spaced train and test images (0: all); of a set sorted by class each keeps its share."""
    kept = replace(task, train=_part(task.train, train), test=_part(task.test, test))
    if task.held is None:
        return kept
    return replace(kept, held=task.held[_rows(len(task.train.labels), train)])


def _part(split: Split, count: int) -> Split:
    rows = _rows(len(split.labels), count)
    return split if len(rows) == len(split.labels) else part_of(split, rows)


def _rows(n: int, count: int) -> np.ndarray:
    return np.linspace(0, n - 1, min(count or n, n)).astype(np.int64)


def prepared(task: Task, pixels: Preprocessing) -> Task:
    """Return the task with its images as `pixels` makes them, uint8 (N, S, S, 3) in memory.

    A network of the same preprocessing sees just what it would have seen, if its crop is its whole image.
    """
    return replace(task, train=_prepared(task.train, pixels), test=_prepared(task.test, pixels))


def _prepared(split: Split, pixels: Preprocessing) -> Split:
    found = [
        split.images.prepared(i, lambda image: pixels(image).permute(1, 2, 0).numpy()) for i in range(len(split.images))
    ]
    if any(one is None for one in found):
        raise UserError(f"{split.images.name}: a comparison needs every image of a task, and some cannot be read")
    return Split(ArrayImages(np.stack([one for one in found if one is not None]), name=split.images.name), split.labels)
