"""Features of a folder of JPEGs, decoding included, against the usual script; taken in turn, prints ratios and cosines.

    python -m benchmarks eval_extract                       # ResNet-50 and ViT-S/16 at 224 px, 192 images (full)
    python -m benchmarks eval_extract --quick               # 48 images, one round, no compilation
    python -m benchmarks eval_extract --images 640 --rounds 1 --ways folded openvino

The usual script: eager float32, PIL and torchvision transforms, a DataLoader with two workers. Goal: 4 times as fast at
32-true, with the cosine to it printed. An engine that has to be made (compiled, openvino) takes seconds once per network
and batch size: ratios are of the whole call, and again without that start. Rows marked bf16 are for comparison: no
protocol uses them unless told to. Weights are random: times do not depend on them, bf16's cosine does. Wall seconds
are what counts; CPU seconds (of this process and its workers) say what a busy machine hides.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.images_decode import plant
from ssl_kd.data.open import open_images
from ssl_kd.errors import UserError, one_of
from ssl_kd.eval.extraction.engines import started
from ssl_kd.eval.extraction.extract import extract
from ssl_kd.models.encoder import Encoder, build
from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD

BATCH, WORKERS, SIZE = 32, 2, (500, 375)
USUAL = "usual script, eager fp32"


def usual(encoder: Encoder, folder: Path) -> np.ndarray:
    """What most evaluation scripts do."""
    from torchvision import datasets, transforms

    steps = [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    dataset = datasets.ImageFolder(str(folder), transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(dataset, BATCH, num_workers=WORKERS)
    network, found = encoder.network, []
    with torch.no_grad():
        for images, _ in loader:
            found.append(network(images, (encoder.feature,))[0][encoder.feature])
    return torch.cat(found).numpy()


def ways(encoder: Encoder, folder: Path, quick: bool, only: Sequence[str]) -> dict[str, Callable[[], np.ndarray]]:
    """The ways to get the features: the usual script's, and of ours those that are asked for (none named: all)."""

    def ours(engine: str, precision: str = "32-true") -> Callable[[], np.ndarray]:
        return lambda: (
            extract(encoder, open_images(folder), None, BATCH, "cpu", precision, WORKERS, True, engine=engine).features
        )

    rows = {USUAL: lambda: usual(encoder, folder), "eager": ours("eager"), "folded": ours("folded")}
    rows["openvino"], rows["openvino, bf16-mixed"] = ours("openvino"), ours("openvino", "bf16-mixed")
    if not quick:
        rows["compiled"], rows["folded, bf16-mixed"] = ours("compiled"), ours("folded", "bf16-mixed")
    for name in only:
        one_of("ways", name, rows)
    return {name: run for name, run in rows.items() if not only or name in {USUAL, *only}}


def cpu_seconds() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(used.ru_utime + used.ru_stime for used in both)


def measure(
    arch: str, folder: Path, few: Path, count: int, rounds: int, quick: bool, only: Sequence[str]
) -> list[dict[str, object]]:
    torch.manual_seed(0)
    encoder = build(arch).eval()
    answers, wall, cpu, startup = {}, {}, {}, {}
    runs = ways(encoder, folder, quick, only)
    for name, run in ways(encoder, few, quick, only).items():  # warms up, and says which engines there are
        try:
            run()
        except UserError as error:
            print(f"  {name}: left out ({error})")
            del runs[name]
    for _ in range(rounds):
        for name, run in runs.items():
            began, spent = time.perf_counter(), cpu_seconds()
            answers[name] = run().astype(np.float64)
            wall.setdefault(name, []).append(time.perf_counter() - began)
            cpu.setdefault(name, []).append(cpu_seconds() - spent)
    base, rows = answers[USUAL], []
    print(f"\n{arch}, {count} JPEGs of {SIZE[0]}x{SIZE[1]}, {rounds} rounds, {torch.get_num_threads()} threads")
    for name in runs:
        got = answers[name]
        engine, _, precision = name.partition(", ")
        if name != USUAL:
            began = time.perf_counter()
            with started(encoder, (encoder.feature,), engine, "cpu", precision or "32-true", BATCH) as run:
                run(torch.zeros(1, 3, 224, 224, dtype=torch.uint8))
            startup[name] = time.perf_counter() - began
        lengths = np.linalg.norm(base, axis=1)
        row = {
            "network": arch,
            "way": name,
            "seconds to start": startup.get(name, 0.0),
            "images/s": count / statistics.median(wall[name]),
            "times as fast (goal 4)": statistics.median(a / b for a, b in zip(wall[USUAL], wall[name], strict=True)),
            "times less CPU": statistics.median(a / b for a, b in zip(cpu[USUAL], cpu[name], strict=True)),
            "least cosine": float(((base * got).sum(1) / lengths / np.linalg.norm(got, axis=1)).min()),
            "largest relative error": float((np.linalg.norm(base - got, axis=1) / lengths).max()),
        }
        rest = [max(took - row["seconds to start"], 1e-9) for took in wall[name]]
        row["the same, once started"] = statistics.median(a / b for a, b in zip(wall[USUAL], rest, strict=True))
        print(
            f"  {name:<26}{row['images/s']:7.1f} images/s {row['times as fast (goal 4)']:5.2f}x (started"
            f" {row['seconds to start']:.0f} s: {row['the same, once started']:.2f}x)   CPU"
            f" {row['times less CPU']:5.2f}x   cosine {row['least cosine']:.7f}   error {row['largest relative error']:.1e}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="48 images, one round, nothing compiled")
    parser.add_argument("--images", type=int, default=192, help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds (default: %(default)s)")
    parser.add_argument("--networks", nargs="+", default=["resnet50", "vit_small_patch16_224"])
    parser.add_argument("--ways", nargs="+", default=[], help="beside the usual script, only these (default: all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="(default: %(default)s)")
    parser.add_argument("--out", default="runs/bench/eval_extract.json", help="(default: %(default)s)")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")
    count, rounds = (min(48, chosen.images), 1) if chosen.quick else (chosen.images, chosen.rounds)
    with tempfile.TemporaryDirectory() as folder:
        many, few = Path(folder) / "many", Path(folder) / "few"
        plant(many, count, SIZE)
        plant(few, min(BATCH, count), SIZE)
        found = [
            row
            for arch in chosen.networks
            for row in measure(arch, many, few, count, rounds, chosen.quick, chosen.ways)
        ]
    path = Path(chosen.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))
    print(path)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
