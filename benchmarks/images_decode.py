"""How fast do JPEG files become normalised batches? Ours against PIL + torchvision transforms + DataLoader.

    python -m benchmarks.images_decode [--images 600] [--rounds 5] [--out decode.json]

Photographs are synthetic (smooth noise, 500 x 375 and 1000 x 750, quality 85); every way ends in float32 batches of 64,
3 x 224 x 224, ImageNet statistics, on the CPU. Rounds run every way once, in turn; figures are medians, ratios are
medians of the rounds' ratios. Workers and threads: 2. Time includes starting the workers, as each epoch does.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ssl_kd.data.open import open_images
from ssl_kd.data.prefetch import prefetch
from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

SIZES = {"500 x 375": (500, 375), "1000 x 750": (1000, 750)}
BATCH, WORKERS = 64, 2


def plant(folder: Path, count: int, size: tuple[int, int]) -> None:
    (folder / "all").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8))
        grain = rng.integers(-14, 14, (size[1], size[0], 3))
        pixels = np.clip(np.asarray(coarse.resize(size, Image.Resampling.BICUBIC)) + grain, 0, 255)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "all" / f"{i:05d}.jpg", quality=85)


def usual(folder: Path, workers: int) -> int:
    """What most training scripts do."""
    from torchvision import datasets, transforms

    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    steps.append(transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD))
    dataset = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=workers)
    return sum(len(batch) for batch, _ in loader)


def ours(folder: Path, threads: int, shorter: int | None = None) -> int:
    """Bytes to uint8 in threads, one conversion and normalisation a batch."""
    images, contract = open_images(folder), Preprocessing()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))

    def read(job: range) -> torch.Tensor:
        pictures = [images.read(i, shorter) for i in job]
        return torch.stack([contract(picture) for picture in pictures if picture is not None])

    jobs = [range(i, min(i + BATCH, len(images))) for i in range(0, len(images), BATCH)]
    done = 0
    for pixels in prefetch(read, jobs, threads=threads):
        done += len(pixels.float().div_(255).sub_(mean).div_(std))
    return done


WAYS: dict[str, Callable[[Path], int]] = {
    "PIL + torchvision, DataLoader, 0 workers": lambda folder: usual(folder, 0),
    "PIL + torchvision, DataLoader, 2 workers": lambda folder: usual(folder, WORKERS),
    "ours, no threads": lambda folder: ours(folder, 0),
    "ours, 2 threads": lambda folder: ours(folder, WORKERS),
    "ours, 2 threads, shorter=256": lambda folder: ours(folder, WORKERS, 256),
}
BASE = "PIL + torchvision, DataLoader, 2 workers"


def measure(folder: Path, rounds: int) -> dict[str, list[float]]:
    """Images per second of every way, round by round, after one round that only warms up."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(rounds + 1):
        for way, run in WAYS.items():
            began = time.perf_counter()
            count = run(folder)
            if turn:
                rates[way].append(count / (time.perf_counter() - began))
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="JSON file for the figures")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, size in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            plant(Path(folder), chosen.images, size)
            rates = measure(Path(folder), chosen.rounds)
        print(f"\n{name} JPEG -> 224, {chosen.images} images, {chosen.rounds} rounds")
        for way, figures in rates.items():
            ratio = statistics.median(a / b for a, b in zip(figures, rates[BASE], strict=True))
            print(f"  {way:<42} {statistics.median(figures):7.0f} images/s  {ratio:5.2f}x")
        results[name] = rates
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
