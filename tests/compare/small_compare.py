"""What tests of the comparison share: a teacher, coloured squares as images and tasks, settings for seconds."""

import numpy as np
from PIL import Image

from ssl_kd.compare.config import CompareConfig

CHANNELS = {"student": {"args": {"channels": [4, 4, 4, 4]}}}


def paint(folder, count, seed=0, classes=2):
    """count pictures of 32 px in each of the folders 0, 1, ...: a class is a brightness, with noise."""
    random = np.random.default_rng(seed)
    for c in range(classes):
        (folder / str(c)).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = random.integers(0, 100, (32, 32, 3)) + c * 120
            Image.fromarray(pixels.astype(np.uint8)).save(folder / str(c) / f"{i}.png")
    return folder


def places(tmp_path):
    """Unlabelled images and a task on disk."""
    paint(tmp_path / "images", 36, seed=1)
    for part, seed in (("train", 2), ("test", 3)):
        paint(tmp_path / "task" / part, 8, seed)
    return {"images": str(tmp_path / "images"), "tasks": [str(tmp_path / "task")]}


def small(tmp_path, teacher, **more):
    """A comparison of two objectives in a second or two."""
    settings = {
        "teachers": {"t": teacher},
        "students": CHANNELS,
        "objectives": ["default_light", "sp"],
        "seeds": [0],
        "budgets": {"short": 80},
        "size": 32,
        "batch_size": 8,
        "points": 2,
        "threads": 1,
        "evaluators": ["knn/dino", "agreement/neighbours"],
        "random": False,
        "out": str(tmp_path / "out"),
        "quiet": True,
        "accelerator": "cpu",
    }
    return CompareConfig(**settings | places(tmp_path) | more)
