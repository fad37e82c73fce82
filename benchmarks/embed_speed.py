"""Embedding a folder of JPEGs, beside the bare engine on pixels that lie ready in memory; in turns, prints ratios.

    python -m benchmarks embed_speed                                # three networks, the engines that are installed
    python -m benchmarks embed_speed --images 64 --rounds 1         # a quick look

Goal: 0.95 of the bare engine's rate, decoding and resizing hidden behind the network. Both rates are marginal: the engine's start
and the first images are taken off by embedding a quarter of the folder as well. The decoding threads need processor
time of their own, so a line says what decoding takes for each image: where the network uses all cores, the best
ratio that can be had is network / (network + decoding), and it is printed as "possible". Weights are random.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.images_decode import plant
from ssl_kd.data.open import open_images
from ssl_kd.data.prefetch import batch_reader
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.subset import Subset
from ssl_kd.errors import UserError
from ssl_kd.eval.extraction.engines import started
from ssl_kd.eval.extraction.extract import extract
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.runtime.timing import machine

NETWORKS = (("resnet50", 224), ("vit_small_patch16_224", 224), ("mobilenetv3_small_100", 128))
BATCH, SIZE, GOAL = 32, (500, 375), 0.95
THREADS = 2  # that decode, as `ssl-kd embed` has them


def seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def measure(arch: str, size: int, engine: str, folder: Path, count: int, rounds: int) -> str:
    """One line for a network in an engine."""
    torch.manual_seed(0)
    encoder = build(arch, preprocessing=Preprocessing().at(size)).eval()
    images, few = open_images(folder), Subset(open_images(folder), np.arange(count // 4))
    pixels = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
    more = count - count // 4
    turns = max(1, more // BATCH)

    def ours(source: ImageSource) -> float:
        return seconds(
            lambda: extract(encoder, source, None, BATCH, "cpu", "32-true", THREADS, quiet=True, engine=engine)
        )

    def bare() -> float:
        with started(encoder, (encoder.feature,), engine, "cpu", "32-true", BATCH) as run, torch.inference_mode():
            run(pixels)
            return seconds(lambda: [run(pixels) for _ in range(turns)]) / (turns * BATCH)

    alone, whole = [], []
    for _ in range(rounds):
        alone.append(bare())
        whole.append((ours(images) - ours(few)) / more)
    read = batch_reader(images, encoder.preprocessing)
    decoding = seconds(lambda: read(range(BATCH))) / BATCH
    ratio = statistics.median(b / w for b, w in zip(alone, whole, strict=True))
    network = statistics.median(alone)
    possible = network / (network + decoding / torch.get_num_threads())
    return (
        f"{arch} at {size} px, {engine}: {1 / statistics.median(whole):.1f} images/s of {1 / network:.1f} bare: {ratio:.2f} "
        f"({'goal met' if ratio >= GOAL else f'goal {GOAL} missed'}; decoding {1e3 * decoding:.1f} ms an image, "
        f"possible {possible:.2f})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=256, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--engines", nargs="+", default=["folded", "openvino"])
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(default: %(default)s)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")
    print(
        f"{machine()}; {chosen.threads} threads; {chosen.images} JPEGs of {SIZE[0]}x{SIZE[1]}, {chosen.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as folder:
        plant(Path(folder) / "photos", chosen.images, SIZE)
        for arch, size in NETWORKS:
            for engine in chosen.engines:
                try:
                    print(
                        measure(arch, size, engine, Path(folder) / "photos", chosen.images, chosen.rounds), flush=True
                    )
                except UserError as error:
                    print(f"{arch}, {engine}: left out ({error})")


if __name__ == "__main__":
    main()
