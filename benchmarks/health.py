"""How well does label-free health rank students? Spearman correlation of every figure with (labelled) k-NN afterwards.

    python -m benchmarks.health --teacher moco_r18.pth.tar [--data ../shared/data/cifar10.zip] [--out health.json]

Small students are distilled by good and bad recipes from one teacher on part of CIFAR-10 (a zip of train/<class>/<file>
and test/); after every epoch their health is measured on images held out from training, and their k-NN accuracy (k = 20,
DINO's protocol) on labelled images. Printed: the rank correlation over all students, with a 95 % interval over students
drawn with replacement; its mean inside single runs, which is what `best` and `patience` rely on; and the k-NN accuracy
lost by taking a run's best epoch by that figure instead of by k-NN.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

import ssl_kd
from ssl_kd.data.subset import Subset
from ssl_kd.distillation import monitor
from ssl_kd.eval.datasets.tasks import Split, folder_task
from ssl_kd.eval.evaluators.knn import KNN
from ssl_kd.eval.extraction.extract import extract

SIZE = 32  # pixels
STUDENT = {"channels": [16, 32, 64, 120]}
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "simreg": {"objective": "simreg"},
    "rkd": {"objective": "rkd"},
    "lr too small": {"lr": 3e-6},
    "lr too large": {"lr": 0.3, "clip": 0},
    "linear head, huge decay": {"objective": [{"term": "alignment", "projector": "linear"}], "weight_decay": 50.0},
    "narrow": {"student_args": {"channels": [8, 16, 32, 4]}},
}
SIGNS = {"uniformity": -1}  # lower is better; all others: higher is better
Students = list[dict[str, Any]]


def every(split: Split, count: int) -> Split:
    """Evenly spaced pictures of a set that is sorted by class."""
    rows = np.linspace(0, len(split.labels) - 1, min(count, len(split.labels)), dtype=int)
    return Split(Subset(split.images, rows), split.labels[rows])


def accuracy(student: ssl_kd.Encoder, train: Split, test: Split) -> float:
    banks = [extract(student, part.images, part.labels, batch_size=256, quiet=True) for part in (train, test)]
    return KNN("dino")(*banks).value("top1", 20)


def measure(teacher: ssl_kd.Encoder, recipe: str, train: Split, test: Split, held: int, epochs: int) -> Students:
    """Distil by one recipe; health and k-NN accuracy after every epoch."""
    found: Students = []
    look = monitor.Monitor.look

    def look_and_judge(self, step, student, *rest):  # type: ignore[no-untyped-def]
        seen = look(self, step, student, *rest)
        figures = {name.removeprefix("health/"): value for name, value in seen.figures.items()}
        found.append({"recipe": recipe, "step": step, "knn": accuracy(student, train, test)} | figures)
        print(
            f"{recipe:<24} step {step:4d}  k-NN {found[-1]['knn']:.3f}  overlap {figures['neighbour_overlap']:.3f}",
            flush=True,
        )
        return seen

    monitor.Monitor.look = look_and_judge  # type: ignore[method-assign]
    settings = {
        "student": "resnet18",
        "student_args": STUDENT,
        "views": "strong_small",
        "size": SIZE,
        "crop_ratio": 1.0,
    }
    settings |= {
        "epochs": epochs,
        "replay": 1,
        "batch_size": 64,
        "lr": 2e-3,
        "warmup": 1,
        "health_images": held,
        "quiet": True,
    }
    try:
        with tempfile.TemporaryDirectory() as folder:
            ssl_kd.distill(teacher, images=train.images, out=f"{folder}/run", **settings | RECIPES[recipe])
    except ssl_kd.UserError as error:  # a recipe may be as bad as to be stopped
        print(f"{recipe:<24} stopped: {error}", flush=True)
    finally:
        monitor.Monitor.look = look  # type: ignore[method-assign]
    return found


def judged(students: Students, name: str) -> dict[str, Any]:
    """Rank correlations of a figure with k-NN, and what choosing by it costs."""
    rows = [s for s in students if name in s]
    knn = np.array([s["knn"] for s in rows])
    figure = np.array([SIGNS.get(name, 1) * s[name] for s in rows])
    random = np.random.default_rng(0)
    draws = [random.integers(0, len(rows), len(rows)) for _ in range(1000)]
    low, high = np.nanquantile([correlation(figure[d], knn[d]) for d in draws], (0.025, 0.975))
    inside, lost = [], []
    for recipe in dict.fromkeys(s["recipe"] for s in rows):
        mine = np.array([s["recipe"] == recipe for s in rows])
        inside.append(correlation(figure[mine], knn[mine]))
        lost.append(knn[mine].max() - knn[mine][figure[mine].argmax()])
    return {
        "students": len(rows),
        "rank correlation": correlation(figure, knn),
        "interval": [float(low), float(high)],
        "inside runs": float(np.nanmean(inside)),
        "points lost": 100 * statistics.mean(lost),
    }


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    if len(set(a)) < 2 or len(set(b)) < 2:
        return float("nan")
    return float(spearmanr(a, b).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="checkpoint that load_teacher knows")
    parser.add_argument("--data", default="../shared/data/cifar10.zip", help="(default: %(default)s)")
    parser.add_argument("--train", type=int, default=4000, help="images, held-out ones included (default: %(default)s)")
    parser.add_argument("--test", type=int, default=2000, help="images (default: %(default)s)")
    parser.add_argument("--held", type=int, default=256, help="held-out images (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--out", help="JSON file for the figures of every student")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    teacher = ssl_kd.load_teacher(chosen.teacher)
    teacher.preprocessing = teacher.preprocessing.at(SIZE, 1.0)
    task = folder_task(chosen.data)
    train, test = every(task.train, chosen.train), every(task.test, chosen.test)
    print(f"teacher: k-NN {accuracy(teacher, train, test):.3f}", flush=True)
    students: Students = []
    for recipe in RECIPES:
        students += measure(teacher, recipe, train, test, chosen.held, chosen.epochs)
    print(f"\n{len(students)} students of {len(RECIPES)} recipes, {chosen.held} held-out images")
    print("| figure | students | rank correlation | 95 % interval | inside runs | points of k-NN lost by its choice |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in ("neighbour_overlap", "cka", "alignment", "effective_rank", "uniformity", "spread"):
        row = judged(students, name)
        low, high = row["interval"]
        print(
            f"| {name} | {row['students']} | {row['rank correlation']:.2f} | {low:.2f} to {high:.2f} "
            f"| {row['inside runs']:.2f} | {row['points lost']:.1f} |"
        )
    print(f"{time.monotonic() - began:.0f} s")
    if chosen.out:
        Path(chosen.out).write_text(json.dumps(students, indent=1))


if __name__ == "__main__":
    main()
