"""Which objective gives the better student? Every preset on the same teacher, student, images, views, steps and seeds.

    python -m benchmarks.quality run --teacher moco_r18.pth.tar --student-args '{"channels": [16, 32, 64, 128]}' \\
        --images ../shared/data/cifar10.zip/train --tasks ../shared/data/*.zip --out quality.jsonl
    python -m benchmarks.quality table quality.jsonl

`run` adds one line per preset and seed to --out and skips those that are there, so several can share a file. What the
teacher says about a view is stored once for all presets; a preset that compares two views of an image gets half as
many epochs, so that every student looks at equally many views. Students are judged as `eval` does it: k-NN (DINO's
votes), linear probe (L-BFGS, strength chosen on train), on equal parts of every task. `--spec NAME=FILE.yaml` adds an
objective that is no preset, `--lightly-python` lightly-train by its own recipe (see benchmarks.lightly_train).
A comparison with `--equal-time NAME` gives each as much time instead, by the paces seen in comparison NAME of the file.
With several `--lr` each objective runs at the best of them for it, found on seed 100 (mean of k-NN 20 and linear probe).
`table` prints means over tasks, 95 % t-intervals over seeds, and differences to `default` paired by seed.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import ssl_kd
from benchmarks.health import every
from benchmarks.lightly_train import distil as distil_with_lightly
from ssl_kd.data.open import open_images
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.distillation.trainer import fill_targets
from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.datasets.tasks import Split, folder_task
from ssl_kd.eval.evaluators.knn import KNN
from ssl_kd.eval.evaluators.linear_probe import LinearProbe
from ssl_kd.metrics import neighbour_overlap
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.objectives.factory import PRESET_MIXES, PRESET_VIEWS, PRESETS, taps

LIGHTLY = {"lightly-train v1": "distillationv1", "lightly-train v3": "distillation"}
SAME = {"mlkd"}  # another name of dlkd
FIGURES = ("knn20", "knn1", "linear")
TRIAL = 100  # the seed on which learning rates are chosen; no figure of a table comes from it


@dataclass(frozen=True)
class Bench:
    """What all students of one comparison share."""

    name: str
    teacher: Path
    student: str
    student_args: Mapping[str, Any]
    size: int
    images: ArrayImages
    epochs: int
    replay: int
    batch: int
    lr: tuple[float, ...]  # several: each objective at the best of them for it
    precision: str
    targets: Path
    banks: Mapping[str, tuple[tuple[torch.Tensor, np.ndarray], tuple[torch.Tensor, np.ndarray]]]

    def load(self) -> Encoder:
        """The teacher, as the students see its images."""
        encoder = ssl_kd.load_teacher(self.teacher)
        encoder.preprocessing = encoder.preprocessing.at(self.size, 1.0)
        return encoder


def arrays(images: ImageSource, rows: Sequence[int], contract: Preprocessing) -> torch.Tensor:
    """(N, 3, S, S) uint8: each picture prepared once for all networks, which share one contract."""
    found = [images.read(int(i)) for i in rows]
    if any(image is None for image in found):
        raise UserError(f"{images.name}: unreadable images; the comparison wants whole ones")
    return torch.stack([contract(image) for image in found if image is not None])


def part(split: Split, count: int, contract: Preprocessing) -> tuple[torch.Tensor, np.ndarray]:
    """Pixels and labels of evenly spaced pictures."""
    chosen = every(split, count)
    return arrays(chosen.images, range(len(chosen.images)), contract), chosen.labels


@torch.no_grad()
def embed(encoder: Encoder, pixels: torch.Tensor) -> np.ndarray:
    """(N, D) float32."""
    return torch.cat([encoder(chunk.float() / 255).embedding.float() for chunk in pixels.split(256)]).numpy()


def judge(encoder: Encoder, bench: Bench, teacher: Mapping[str, np.ndarray] | None = None) -> dict[str, Any]:
    """Per task: k-NN for k = 1 and 20, linear probe, and with the teacher's test features the neighbours in common."""
    encoder.eval()
    found = {}
    for task, parts in bench.banks.items():
        train, test = (FeatureBank(embed(encoder, pixels), labels) for pixels, labels in parts)
        votes = KNN("dino")(train, test)
        row = {"knn1": votes.value("top1", 1), "knn20": votes.value("top1", 20)}
        row["linear"] = LinearProbe("quick-lbfgs")(train, test).value("top1")
        if teacher is not None:
            row["overlap"] = neighbour_overlap(torch.from_numpy(test.features), torch.from_numpy(teacher[task]))
        found[task] = row
    return found


def settings_of(objective: Any, bench: Bench, lr: float, factor: float = 1.0) -> dict[str, Any]:
    """Settings of `distill` for one objective, so that all of them look at equally many views."""
    name = objective if isinstance(objective, str) else ""
    pairs = name in PRESET_VIEWS
    mixed, tapped = name in PRESET_MIXES, any(taps(objective))
    epochs = max(1, round(bench.epochs * factor / (2 if pairs else 1)))
    return {
        "objective": objective,
        "student": bench.student,
        "student_args": dict(bench.student_args),
        "views": {"weak": "strong_small", "multi": "multi_small"}.get(
            PRESET_VIEWS.get(name, "weak"), "two_strong_small"
        ),
        # Mixed images are never the same twice, and tapped layers are too large to keep.
        "replay": 0 if mixed or tapped else min(bench.replay or epochs, epochs),
        "targets": str(bench.targets),
        "size": bench.size,
        "crop_ratio": 1.0,
        "epochs": epochs,
        "batch_size": bench.batch,
        "lr": lr,
        "warmup": 0.5,
        "precision": bench.precision,
        "threads": 1,
        "health_every": 0,
        "quiet": True,
    }


def train(objective: Any, seed: int, bench: Bench, lr: float, factor: float) -> tuple[Encoder, float]:
    """A student and the seconds it took, stored targets not counted in."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = settings_of(objective, bench, lr, factor) | {"seed": seed, "out": f"{folder}/run"}
        teacher = bench.load()
        if chosen["replay"]:
            fill_targets(teacher, images=bench.images, **chosen)
        done = ssl_kd.distill(teacher, images=bench.images, **chosen)
        return done.student, done.seconds


def train_lightly(method: str, seed: int, bench: Bench, python: str, factor: float) -> tuple[Encoder, float]:
    """The same by lightly-train: as many steps of as large batches, everything else by its own recipe."""
    from PIL import Image

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "images").mkdir()
        for i, pixels in enumerate(bench.images.array):
            Image.fromarray(pixels).save(folder / "images" / f"{i:06d}.png")
        steps = max(1, round(-(-len(bench.images) // bench.batch) * bench.epochs * factor))
        began = time.monotonic()
        distil_with_lightly(
            python, bench.teacher, folder / "images", steps, folder / "student.safetensors", bench.student,
            dict(bench.student_args), bench.batch, bench.size, 1.0, method, "32-true", "cpu", 0, 1, seed,
        )  # fmt: skip
        return ssl_kd.load_teacher(folder / "student.safetensors"), time.monotonic() - began


# --------------------------------------------------------------------------------------------------- the runs


def run(chosen: argparse.Namespace) -> None:
    """All that is asked for and not yet in the file, in an order that differs between processes."""
    torch.set_num_threads(chosen.threads)
    bench = open_bench(chosen)
    objectives: dict[str, Any] = {name: name for name in PRESETS if name not in SAME}
    for spec in chosen.spec:
        name, _, path = spec.partition("=")
        objectives[name] = yaml.safe_load(Path(path).read_text())
    if chosen.presets:
        objectives = {name: objectives[name] for name in chosen.presets if name not in LIGHTLY}
    lightly = [n for n in LIGHTLY if chosen.lightly_python and (not chosen.presets or n in chosen.presets)]
    out = Path(chosen.out)
    teacher = bench.load()
    teacher_outputs = {task: embed(teacher, test[0]) for task, (_, test) in bench.banks.items()}

    def student(name: str, seed: int, lr: float, factor: float) -> dict[str, Any]:
        """A line of the file: a student's figures, or why there is none."""
        row: dict[str, Any] = {"objective": name, "seed": seed, "views": factor}
        try:
            if name in LIGHTLY:
                made, seconds = train_lightly(LIGHTLY[name], seed, bench, chosen.lightly_python, factor)
            else:
                row["lr"] = lr
                made, seconds = train(objectives[name], seed, bench, lr, factor)
            row |= {
                "seconds": seconds,
                "parameters": made.parameter_count,
                "tasks": judge(made, bench, teacher_outputs),
            }
        except UserError as error:
            row["refused"] = str(error)
        print(f"{name:<28} seed {seed}  lr {row.get('lr', 'its own')}  {told(row)}", flush=True)
        return row

    if not any(row["objective"] == "teacher" for row in rows_of(out, bench.name)):
        row = {"bench": bench.name, "objective": "teacher", "parameters": teacher.parameter_count}
        keep(out, row | {"tasks": judge(teacher, bench)})
    wanted = [(name, seed) for seed in chosen.seeds for name in [*objectives, *lightly]]
    if chosen.shuffle:
        random.Random(chosen.shuffle).shuffle(wanted)
    for name, seed in wanted:
        if any((row["objective"], row.get("seed")) == (name, seed) for row in rows_of(out, bench.name)):
            continue
        timed = rows_of(out, chosen.equal_time) if chosen.equal_time else []
        factor = pace("default", timed) / pace(name, timed) if chosen.equal_time else 1.0
        if name not in LIGHTLY and len(bench.lr) > 1:
            for lr in bench.lr:
                if lr not in trials(out, bench.name, name):
                    keep(out, {"bench": f"{bench.name}, trials"} | student(name, TRIAL, lr, factor))
        lr = best_rate(trials(out, bench.name, name), bench.lr)
        keep(out, {"bench": bench.name} | student(name, seed, lr, factor))


def trials(out: Path, bench: str, name: str) -> dict[float, float]:
    """What an objective reached at each learning rate that was tried: mean of k-NN 20 and linear probe; refused: 0."""
    rows = [row for row in rows_of(out, f"{bench}, trials") if row["objective"] == name]
    return {row["lr"]: 0.0 if "refused" in row else (mean(row, "knn20") + mean(row, "linear")) / 2 for row in rows}


def best_rate(tried: Mapping[float, float], rates: Sequence[float]) -> float:
    """The rate that did best on the trial seed; where nothing was tried, the first."""
    return max((lr for lr in rates if lr in tried), key=lambda lr: tried[lr], default=rates[0])


def open_bench(chosen: argparse.Namespace) -> Bench:
    """Read images and tasks once."""
    contract = ssl_kd.load_teacher(chosen.teacher).preprocessing.at(chosen.size, 1.0)
    source = open_images(chosen.images)
    rows = np.random.default_rng(0).permutation(len(source))[: chosen.count]
    pictures = [source.read(int(i)) for i in np.sort(rows)]
    images = ArrayImages(np.stack([np.asarray(p) for p in pictures if p is not None]))
    banks = {}
    for path in chosen.tasks:
        task = folder_task(path)
        banks[task.name] = (part(task.train, chosen.train, contract), part(task.test, chosen.test, contract))
    return Bench(
        chosen.name, Path(chosen.teacher), chosen.student, chosen.student_args, chosen.size, images, chosen.epochs,
        chosen.replay, chosen.batch, tuple(chosen.lr), chosen.precision, Path(chosen.targets), banks,
    )  # fmt: skip


def pace(name: str, known: Sequence[Mapping[str, Any]]) -> float:
    """Seconds that a preset took for the common number of views."""
    seconds = [row["seconds"] for row in known if row["objective"] == name and "seconds" in row]
    if not seconds:
        raise UserError(f"--equal-time: {name} has no line in that comparison yet; run it without --equal-time first")
    return float(np.median(seconds))


def keep(out: Path, row: Mapping[str, Any]) -> None:
    """One whole line at the end of the file."""
    with open(out, "a") as file:
        file.write(json.dumps(row) + "\n")


def rows_of(out: Path, bench: str) -> list[dict[str, Any]]:
    """The lines of one comparison."""
    lines = out.read_text().splitlines() if out.exists() else []
    return [row for row in map(json.loads, lines) if row["bench"] == bench]


def told(row: Mapping[str, Any]) -> str:
    """One line for the eye."""
    if "refused" in row:
        return f"refused: {row['refused']}"
    return "  ".join(f"{f} {100 * mean(row, f):.1f}" for f in (*FIGURES, "overlap")) + f"  {row['seconds']:.0f} s"


def mean(row: Mapping[str, Any], figure: str) -> float:
    """A figure's mean over tasks."""
    return float(np.mean([task[figure] for task in row["tasks"].values()]))


# -------------------------------------------------------------------------------------------------- the table


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half a 95 % t-interval; not a number for fewer than two values."""
    from scipy.stats import t

    if len(values) < 2:
        return float(np.mean(values)), float("nan")
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return float(np.mean(values)), float(half)


def table(path: Path, bench: str, against: str = "default") -> str:
    """Markdown: one row per objective, best k-NN first; figures are per cent, means over the tasks."""
    rows = rows_of(path, bench)
    teacher = next(row for row in rows if row["objective"] == "teacher")
    by_name: dict[str, dict[int, dict[str, Any]]] = {}
    refused: dict[str, str] = {}
    for row in rows:
        if "refused" in row:
            refused[row["objective"]] = row["refused"]
        elif row["objective"] != "teacher":  # two processes that began together wrote a line each
            by_name.setdefault(row["objective"], {})[row["seed"]] = row
    own = " ".join(f"{100 * mean(teacher, f):.1f} |" for f in FIGURES)
    timed = any(row.get("views", 1.0) != 1.0 for row in rows)  # a comparison at equal time
    tuned = len({row["lr"] for row in rows if "lr" in row}) > 1  # each at a learning rate of its own
    more = ["views"] * timed + ["lr"] * tuned
    lines = [
        "| objective | seeds | k-NN 20 | k-NN 1 | linear | k-NN kept | neighbours in common "
        "| k-NN 20 to default | linear to default | minutes |" + "".join(f" {name} |" for name in more),
        "| --- " + "| ---: " * (9 + len(more)) + "|",
        f"| *teacher* | | {own} 100 | 100 | | | |" + " |" * len(more),
    ]

    def cell(values: Sequence[float], sign: str = "") -> str:
        middle, half = interval(values)
        return f"{100 * middle:{sign}.1f}" + ("" if np.isnan(half) else f" ± {100 * half:.1f}")

    order = sorted(by_name, key=lambda n: -np.mean([mean(row, "knn20") for row in by_name[n].values()]))
    for name in order:
        seeds = by_name[name]
        cells = [cell([mean(row, f) for row in seeds.values()]) for f in FIGURES]
        cells.append(cell([mean(row, "knn20") / mean(teacher, "knn20") for row in seeds.values()]))
        cells.append(cell([mean(row, "overlap") for row in seeds.values()]))
        for figure in ("knn20", "linear"):
            both = sorted(set(seeds) & set(by_name.get(against, {})))
            gaps = [mean(seeds[s], figure) - mean(by_name[against][s], figure) for s in both]
            cells.append("" if name == against or not gaps else cell(gaps, "+"))
        minutes = np.median([row["seconds"] for row in seeds.values()]) / 60
        cells.append(f"{minutes:.1f}")
        if timed:
            cells.append(f"{np.median([row.get('views', 1.0) for row in seeds.values()]):.2f}")
        if tuned:
            cells.append(", ".join(sorted({f"{row['lr']:g}" if "lr" in row else "its own" for row in seeds.values()})))
        lines.append(f"| `{name}` | {len(seeds)} | " + " | ".join(cells) + " |")
    lines += [f"| `{name}` | refused: {why} |" for name, why in sorted(refused.items()) if name not in by_name]
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    go = verbs.add_parser("run", help="distil and judge")
    go.add_argument("--teacher", required=True, help="checkpoint file")
    go.add_argument("--images", required=True, help="unlabelled images")
    go.add_argument("--tasks", required=True, nargs="+", help="zips or folders with train/<class>/ and test/<class>/")
    go.add_argument("--out", required=True, help="file of lines to add to")
    go.add_argument("--name", default="bench", help="of this comparison, in the file (default: %(default)s)")
    go.add_argument("--student", default="resnet18")
    go.add_argument("--student-args", type=json.loads, default={}, help="JSON")
    go.add_argument("--presets", nargs="+", help="only these (default: all)")
    go.add_argument("--spec", nargs="+", default=[], help="NAME=FILE.yaml, a list of terms that is no preset")
    go.add_argument("--lightly-python", default="", help="a python with lightly-train and timm")
    go.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    go.add_argument("--count", type=int, default=8000, help="unlabelled images (default: %(default)s)")
    go.add_argument("--epochs", type=int, default=4, help="(default: %(default)s)")
    go.add_argument(
        "--replay", type=int, default=0, help="views of each image that come round again (default: all new)"
    )
    go.add_argument("--batch", type=int, default=128)
    go.add_argument(
        "--lr", type=float, nargs="+", default=[2e-3], help="several: each objective at the best of them for it"
    )
    go.add_argument("--size", type=int, default=40, help="pixels (default: %(default)s)")
    go.add_argument("--train", type=int, default=2000, help="labelled images per task (default: %(default)s)")
    go.add_argument("--test", type=int, default=1000, help="likewise (default: %(default)s)")
    go.add_argument("--precision", default="bf16-mixed")
    go.add_argument("--threads", type=int, default=1)
    go.add_argument("--targets", default="quality_targets", help="folder for what the teacher said")
    go.add_argument(
        "--equal-time",
        default="",
        metavar="NAME",
        help="as many views as `default`'s seconds allow, by the paces in the comparison of that name",
    )
    go.add_argument("--shuffle", type=int, default=0, help="a number above 0: another order per process")
    show = verbs.add_parser("table", help="markdown of a file")
    show.add_argument("file", type=Path)
    show.add_argument("--name", default="bench")
    chosen = parser.parse_args(argv)
    if chosen.verb == "run":
        run(chosen)
    else:
        print(table(chosen.file, chosen.name))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
