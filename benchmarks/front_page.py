"""The two pictures of the front page, from images that ship with scikit-learn: python -m benchmarks.front_page

docs/neighbours.png   test images with their nearest training images, to the demo's teacher and to its student
docs/share_kept.png   how much students of four sizes keep of the teacher

Teacher, student, images and settings are the demo's; only the student's widths differ. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from ssl_kd.cli.demo import STUDENT, teacher
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.distillation.trainer import distill
from ssl_kd.eval import demo as labelled
from ssl_kd.eval import evaluate_encoders
from ssl_kd.runtime.files import atomically

DOCS = Path(__file__).parents[1] / "docs"
WIDTHS = ([6, 12, 24, 32], [12, 22, 44, 64], list(STUDENT.student_args["channels"]), [28, 56, 112, 200])
MARKS = (("knn/dino", "o", "#0067b1", "k-NN"), ("linear/quick-lbfgs", "s", "#c25e00", "linear probe"))


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.front_page", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures (default: docs)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tasks = labelled.demo_tasks()
    images = ArrayImages(labelled.unlabelled(tasks), name="digits and temple patches")
    taught = teacher(images)
    students = {}
    with tempfile.TemporaryDirectory() as folder:
        for width in WIDTHS:
            name = f"width {width[-1]}"
            settings = replace(
                STUDENT, student_args={"channels": width}, out=f"{folder}/{width[-1]}", seed=options.seed
            )
            students[name] = distill(taught, images=images, config=settings).student
    chosen = students[f"width {STUDENT.student_args['channels'][-1]}"]
    labelled.picture(taught, chosen, tasks, options.out / "neighbours.png", options.seed, rows=2)
    results = evaluate_encoders({"teacher": taught, **students}, tasks, [kind for kind, *_ in MARKS])
    for answer in results.answers():
        print(answer)
    draw(results, taught.parameter_count, options.out / "share_kept.png")


def draw(results, size: int, path: Path) -> Path:
    """Draw each student's share kept with its interval against how many times smaller it is."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
    axes.axhline(100, color="#565656", linewidth=1)
    axes.text(0.99, 100.4, "the teacher", ha="right", fontsize=9, color="#565656", transform=axes.get_yaxis_transform())
    for shift, (evaluator, mark, colour, name) in zip((0.985, 1.015), MARKS, strict=True):
        own = [one for one in results.verdicts() if one.evaluator == evaluator]
        at, share = [size / one.size * shift for one in own], [100 * one.share for one in own]
        arms = [[100 * (one.share - one.low) for one in own], [100 * (one.high - one.share) for one in own]]
        axes.errorbar(at, share, arms, marker=mark, color=colour, label=name, capsize=3, linewidth=1.5)
    sizes = sorted({size / one.size for one in results.verdicts()})
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{n / 1e3:.0f} k\n1/{size / n:.0f}" for n in sizes])
    axes.minorticks_off()
    axes.set_xlabel(f"student's parameters, and its share of the teacher's {size / 1e6:.1f} M")
    axes.set_ylabel("% of the teacher's figure")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
