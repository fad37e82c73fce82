"""The pictures of the front page: python -m benchmarks.front_page [--compare FOLDER ...]

docs/neighbours.png   test images with their nearest training images, to the demo's teacher and to its student
docs/share_kept.png   how much students of several sizes keep of the teacher

Without --compare both are drawn, from images that ship with scikit-learn: teacher, student, images and settings are the
demo's, and only the student's widths differ. Some minutes on two cores. With --compare only the second is drawn, from the
compare.csv that `ssl-kd compare` left in each folder: means over tasks, with 95 % intervals over seeds where there are several.
"""

from __future__ import annotations

import argparse
import csv
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from ssl_kd.compare.results import Comparison, Group, Line
from ssl_kd.errors import UserError

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = ([6, 12, 24, 32], [12, 22, 44, 64], [24, 40, 80, 104], [28, 56, 112, 200])  # the third is the demo's
FIGURES = {
    "knn/dino k=20": "k-NN",
    "linear/quick-lbfgs": "linear probe",
}  # as compare.csv has them, as the chart says it
MARKS = (("o", "#0067b1"), ("s", "#c25e00"), ("^", "#00805f"), ("D", "#8a3ffc"), ("P", "#b0004e"), ("v", "#806600"))
RANDOM = "random weights"  # drawn in grey
GREY = (("x", "#767676"), ("+", "#767676"))


class Point(NamedTuple):
    """A student: its name, its parameters, and the share kept of the teacher's figure with its interval (nan: none)."""

    student: str
    parameters: int
    share: float
    low: float
    high: float


Series = Mapping[str, Sequence[Point]]  # by what the legend says
Panels = Mapping[str, Series]  # by teacher


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.front_page", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures (default: docs)")
    parser.add_argument("--seed", type=int, default=0, help="of the demo's students")
    parser.add_argument("--compare", type=Path, nargs="+", metavar="FOLDER", help="draw what comparisons found")
    parser.add_argument("--objective", default="bank", help="whose students (default: %(default)s)")
    options = parser.parse_args()
    if options.compare:
        found = {folder.name: comparison(folder) for folder in options.compare}
        panels = compared(found, options.objective)
        for teacher, series in panels.items():
            for name, points in series.items():
                print(f"{teacher}, {name}: " + "; ".join(f"{p.student} {100 * p.share:.1f} %" for p in points))
    else:
        panels = demonstrated(options.out, options.seed)
    print(draw(panels, options.out / "share_kept.png"))


def comparison(folder: Path) -> Comparison:
    """What `ssl-kd compare` wrote into compare.csv, with which means and intervals are those of its report."""
    path = folder / "compare.csv"
    if not path.is_file():
        raise UserError(f"{path} is not there: give the folder of a comparison that has finished cells")
    figures: dict[tuple[Group, str, str, int, int], dict[str, dict[str, float]]] = {}
    teachers: dict[str, dict[str, dict[str, float]]] = {}
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            group = Group(*(row[name] for name in Group.__dataclass_fields__))
            line = (group, row["kind"], row["name"], int(row["seed"]), int(row["parameters"]))
            figures.setdefault(line, {}).setdefault(row["task"], {})[row["figure"]] = float(row["value"])
            if row["teacher_value"] not in ("", "nan"):
                own = teachers.setdefault(group.teacher, {}).setdefault(row["task"], {})
                own[row["figure"]] = float(row["teacher_value"])
    lines = [Line(*line, figures=found, parameters=size) for (*line, size), found in figures.items()]
    return Comparison(tuple(lines), teachers, against="")


def compared(found: Mapping[str, Comparison], objective: str) -> Panels:
    """One panel a teacher, one series a figure and budget; a student with random weights is a series as well."""
    panels: dict[str, dict[str, list[Point]]] = {}
    budgets = {(name, group.budget) for name, one in found.items() for group in one.groups}
    names = {line.name for one in found.values() for line in one.lines if line.kind == "student"}
    if objective not in names:
        raise UserError(
            f"objective: {objective!r} has no student there; there are {', '.join(sorted(names)) or 'none'}"
        )
    for one in found.values():
        for group in one.groups:
            for kind, name in (("student", objective), ("random", "random")):
                for figure, short in FIGURES.items():
                    lines = one.of(group, name, kind)
                    if not lines or math.isnan((kept := one.kept(group, name, figure, kind)).mean):
                        continue
                    said = f"{short}, {group.budget}" if len(budgets) > 1 else short
                    said = f"{short}, {RANDOM}" if kind == "random" else said
                    point = Point(
                        group.student, lines[0].parameters, kept.mean, kept.mean - kept.half, kept.mean + kept.half
                    )
                    own = panels.setdefault(group.teacher, {}).setdefault(said, [])
                    if kind == "student" or point not in own:
                        own.append(point)
    return {
        teacher: {name: sorted(series[name], key=lambda p: p.parameters) for name in sorted(series, key=_is_random)}
        for teacher, series in panels.items()
    }


def _is_random(name: str) -> bool:
    return name.endswith(RANDOM)


def demonstrated(out: Path, seed: int) -> Panels:
    """Distil students of four widths from the demo's teacher; also draw neighbours.png."""
    from ssl_kd.cli.demo import STUDENT, teacher
    from ssl_kd.data.sources.array import ArrayImages
    from ssl_kd.distillation.trainer import distill
    from ssl_kd.eval import demo as labelled
    from ssl_kd.eval import evaluate_encoders

    tasks = labelled.demo_tasks()
    images = ArrayImages(labelled.unlabelled(tasks), name="digits and temple patches")
    taught = teacher(images)
    students = {}
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            settings = replace(STUDENT, student_args={"channels": width}, out=f"{folder}/{width[-1]}", seed=seed)
            students[f"width {width[-1]}"] = distill(taught, images=images, config=settings).student
    chosen = students[f"width {STUDENT.student_args['channels'][-1]}"]
    labelled.picture(taught, chosen, tasks, out / "neighbours.png", seed, rows=2)
    names = {figure.partition(" ")[0]: short for figure, short in FIGURES.items()}
    results = evaluate_encoders({"teacher": taught, **students}, tasks, list(names))
    series: dict[str, list[Point]] = {short: [] for short in names.values()}
    for one in results.verdicts():
        print(one.sentence("teacher"))
        series[names[one.evaluator]].append(Point(one.encoder, one.size, one.share, one.low, one.high))
    return {f"the demo's teacher, {count(taught.parameter_count)}": series}


def count(parameters: float) -> str:
    """A number of parameters in words: 683 k, 2.8 M."""
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else f"{parameters / 1e3:.0f} k"


def draw(panels: Panels, path: Path) -> Path:
    """Draw each student's share kept, with its interval where it has one, against its parameters, and the teacher's 100 %."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from ssl_kd.runtime.files import atomically

    names = list(dict.fromkeys(name for series in panels.values() for name in series))
    real = [name for name in names if not _is_random(name)]
    if len(real) > len(MARKS):
        raise UserError(f"{len(real)} series, of which a chart can tell {len(MARKS)} apart: give fewer folders")
    looks = dict(zip(real, MARKS, strict=False)) | dict(zip(filter(_is_random, names), GREY, strict=False))
    figure, row = plt.subplots(
        1, len(panels), figsize=(2.4 + 4 * len(panels), 3.8), layout="constrained", sharey=True, squeeze=False
    )
    for axes, (teacher, series) in zip(row[0], panels.items(), strict=True):
        axes.axhline(100, color="#565656", linewidth=1)
        axes.text(0.01, 100.6, "the teacher", fontsize=9, color="#565656", transform=axes.get_yaxis_transform())
        for place, (name, points) in enumerate(series.items()):
            # a little to the side, so that intervals do not hide each other
            at = [p.parameters * 1.02 ** (place - (len(series) - 1) / 2) for p in points]
            share = [100 * p.share for p in points]
            arms = [[100 * (p.share - p.low) for p in points], [100 * (p.high - p.share) for p in points]]
            mark, colour = looks[name]
            axes.errorbar(at, share, arms, marker=mark, color=colour, label=name, capsize=3, linestyle="none")
        students = dict(sorted({p.parameters: p.student for points in series.values() for p in points}.items()))
        axes.set_xscale("log")
        axes.set_xticks(list(students), [f"{count(size)}\n{name}" for size, name in students.items()], fontsize=8)
        axes.minorticks_off()
        axes.margins(x=0.2)
        axes.set_title(teacher, fontsize=10, loc="left")
        axes.set_xlabel("student's parameters")
        axes.spines[["top", "right"]].set_visible(False)
    row[0][0].set_ylabel("% kept of the teacher's figure")
    row[0][0].set_ylim(bottom=0)
    shown = {name: handle for axes in row[0] for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)
    return path


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"python -m benchmarks.front_page: {error}") from None
