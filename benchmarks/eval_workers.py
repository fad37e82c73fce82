"""Do several processes share the cells of an evaluation to advantage? One against `--workers`, in turn.

    python -m benchmarks eval_workers                          # small networks and pictures made here; about 3 minutes
    python -m benchmarks eval_workers --config configs/eval/four_sets.yaml --workers 2

Each turn starts with an empty cache, so that features are extracted as well; figures must be equal to the last digit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from ssl_kd.checkpoints.saving import save_student
from ssl_kd.eval.evaluation import evaluate
from ssl_kd.eval.runner.config import EvalConfig, read_config
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing


def made_here(home: Path, tasks: int, images: int, side: int) -> EvalConfig:
    """Folders of noisy colours in ten classes, a ResNet-18 of a quarter's width, and the evaluators of a usual report."""
    rng = np.random.default_rng(0)
    paths = []
    for number in range(tasks):
        for split, share in (("train", 0.8), ("test", 0.2)):
            for label in range(10):
                folder = home / f"task{number}" / split / f"class{label}"
                folder.mkdir(parents=True, exist_ok=True)
                for i in range(round(share * images / 10)):
                    pixels = rng.normal(60 + 15 * label, 60, (side, side, 3)).clip(0, 255).astype(np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i}.jpg", quality=90)
        paths.append(str(home / f"task{number}"))
    pre = Preprocessing(size=side, resize=side, crop=side)
    file = home / "student.safetensors"
    save_student(build("resnet18", preprocessing=pre, channels=(16, 32, 64, 128)), file)
    encoders = [str(file), *({"name": f"random {seed}", "like": "student", "seed": seed} for seed in (0, 1))]
    evaluators = ["knn", "linear", "fewshot", "robustness", "calibration"]
    return EvalConfig(tasks=paths, encoders=encoders, evaluators=evaluators, report=False)


def figures(out: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "images_per_second"} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="an evaluation's YAML file; without it, pictures are made")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--tasks", type=int, default=4)
    parser.add_argument("--images", type=int, default=2000, help="per task")
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--json", help="write the figures there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        plain = read_config([given.config]) if given.config else made_here(home, given.tasks, given.images, given.side)
        seconds: dict[int, list[float]] = {1: [], given.workers: []}
        kept = {}
        for turn in range(given.repeats):
            for workers in seconds:
                out = home / f"out {workers} {turn}"
                began = time.perf_counter()
                evaluate(replace(plain, out=str(out), cache="", workers=workers, report=False), quiet=True)
                seconds[workers].append(time.perf_counter() - began)
                kept[workers] = figures(out)
                print(f"{workers} process(es): {seconds[workers][-1]:.1f} s", flush=True)
    medians = {workers: statistics.median(times) for workers, times in seconds.items()}
    ratio = medians[1] / medians[given.workers]
    same = kept[1] == kept[given.workers]
    print(
        f"{given.workers} processes take {medians[given.workers]:.1f} s, one {medians[1]:.1f} s: {ratio:.2f} times as fast"
    )
    print("figures equal to the last digit" if same else "FIGURES DIFFER")
    if given.json:
        Path(given.json).write_text(json.dumps({"seconds": seconds, "ratio": ratio, "same figures": same}, indent=1))
    sys.exit(not same)


if __name__ == "__main__":
    main()
