"""The demo's labelled side: tasks cut from images that ship inside scikit-learn, its verdict and its picture.

Digits are the 1,797 scans of `load_digits` (8 x 8 pixels, enlarged). Patches are cut from the two photographs of
`load_sample_images`; the label is the region they came from, and test patches are other crops, taken under other light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from eval.tasks import ArrayTask

if TYPE_CHECKING:
    pass

SIZE = 32  # pixels, of every image of the demo
REGIONS = (4, 6)  # rows and columns of regions in a photograph
TRAIN, TEST = 80, 25  # patches per region
SIDES = (32, 64)  # pixels that a patch covers in the photograph
LIGHT = 0.35  # how far the test patches' exposure, contrast and colour balance move


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
    """Patches of every region, and other patches of it under other light: which region do they show?"""
    random = np.random.default_rng(seed)
    height, width = photo.shape[0] // REGIONS[0], photo.shape[1] // REGIONS[1]
    parts: dict[bool, tuple[list[np.ndarray], list[int]]] = {False: ([], []), True: ([], [])}
    for label, (row, column) in enumerate(np.ndindex(*REGIONS)):
        for number in range(TRAIN + TEST):
            side = int(random.integers(SIDES[0], SIDES[1] + 1))
            top = row * height + int(random.integers(0, height - side + 1))
            left = column * width + int(random.integers(0, width - side + 1))
            patch = _square(Image.fromarray(photo[top : top + side, left : left + side]))
            images, labels = parts[number >= TRAIN]
            images.append(_relit(patch, random) if number >= TRAIN else patch)
            labels.append(label)
    (train, train_labels), (test, test_labels) = parts[False], parts[True]
    return ArrayTask(name, np.stack(train), np.array(train_labels), np.stack(test), np.array(test_labels))


def _relit(patch: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The same pixels under another exposure, contrast and colour balance."""
    exposure, contrast = random.uniform(1 - LIGHT, 1 + LIGHT, 2)
    balance = random.uniform(1 - LIGHT / 2, 1 + LIGHT / 2, 3)
    middle = patch.mean()
    return np.clip(((patch - middle) * contrast + middle) * exposure * balance, 0, 255).astype(np.uint8)


def _square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))
