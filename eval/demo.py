"""The demo's labelled side: tasks cut from images that ship inside scikit-learn, its verdict and its picture.

Digits are the 1,797 scans of `load_digits` (8 x 8 pixels, enlarged). Patches are cut from the two photographs of
`load_sample_images`; the label is the region they came from. A photograph is laid out in tiles of 40 pixels; train and
test patches come from different tiles, like the colours of a chessboard, so no test pixel was ever seen in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eval.tasks import ArrayTask

if TYPE_CHECKING:
    from ssl_kd.encoder import Encoder

SIZE = 32  # pixels, of every image of the demo
TILE = 40
REGIONS = (3, 4)  # rows and columns of regions in a photograph
PATCHES = 40  # per tile


def demo_tasks() -> tuple[ArrayTask, ...]:
    """Digits and two sets of photo regions. The second photograph is for evaluation only: no network trains on it."""
    from sklearn.datasets import load_sample_images

    temple, flower = load_sample_images().images
    return (_digits(), _regions("temple-regions", temple, 1), _regions("flower-regions", flower, 2))


def _digits() -> ArrayTask:
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.stack([_square(Image.fromarray((scan * (255 / 16)).astype(np.uint8))) for scan in data.images])
    test = np.arange(len(images)) % 3 == 0  # neighbours in the file are by the same writer: a fixed, even third
    return ArrayTask("digits", images[~test], data.target[~test], images[test], data.target[test])


def _regions(name: str, photo: np.ndarray, seed: int) -> ArrayTask:
    """Patches of 24 to 40 pixels from every tile of every region: which region do they show?"""
    random = np.random.default_rng(seed)
    rows, columns = photo.shape[0] // TILE, photo.shape[1] // TILE
    parts: dict[bool, tuple[list[np.ndarray], list[int]]] = {False: ([], []), True: ([], [])}
    for row, column in np.ndindex(rows, columns):
        images, labels = parts[(row + column) % 2 == 1]
        region = (row * REGIONS[0] // rows) * REGIONS[1] + column * REGIONS[1] // columns
        for _ in range(PATCHES if (row + column) % 2 == 0 else PATCHES // 4):
            side = int(random.integers(24, TILE + 1))
            top = row * TILE + int(random.integers(0, TILE - side + 1))
            left = column * TILE + int(random.integers(0, TILE - side + 1))
            images.append(_square(Image.fromarray(photo[top : top + side, left : left + side])))
            labels.append(region)
    (train, train_labels), (test, test_labels) = parts[False], parts[True]
    return ArrayTask(name, np.stack(train), np.array(train_labels), np.stack(test), np.array(test_labels))


def _square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
