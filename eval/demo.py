"""The demo's labelled side: tasks cut from images that ship inside scikit-learn, its verdict and its picture.

Digits are the 1,797 scans of `load_digits` (8 x 8 pixels, enlarged). Patches are cut from the two photographs of
`load_sample_images`; the label is the region they came from, and test patches are other crops, taken under other light.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Literal

import numpy as np
from PIL import Image

from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.runtime.files import atomically

from .datasets.tasks import ArrayTask, Split
from .evaluation import evaluate_encoders
from .evaluators.knn import neighbours
from .extraction.extract import extract
from .extraction.feature_cache import FeatureStore
from .results import Results

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from matplotlib.axes import Axes

    from ssl_kd.models.encoder import Encoder

SIZE = 32  # pixels, of every image of the demo
REGIONS = (4, 6)  # rows and columns of regions in a photograph
TRAIN, TEST = 80, 40  # patches per region
SIDES = (32, 64)  # pixels that a patch covers in the photograph
LIGHT = 0.25  # how far the test patches' exposure, contrast and colour balance move


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
    lit = np.clip(((patch - middle) * contrast + middle) * exposure * balance, 0, 255)
    return np.asarray(lit.astype(np.uint8))


def _square(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC))


TEACHER, STUDENT, RANDOM = "teacher", "student", "random student"
EVALUATORS = ("knn/dino", "linear/quick-lbfgs")
UNSEEN = "flower-regions"
KEPT = 0.95  # share of the teacher's k-NN accuracy that the student must keep on the images it was distilled on
NEIGHBOURS = 6


def unlabelled(tasks: Sequence[ArrayTask]) -> np.ndarray:
    """The training images, without a label, of every task but the unseen one: uint8 (N, 32, 32, 3)."""
    return np.concatenate([_pixels(task.train) for task in tasks if task.name != UNSEEN])


def _pixels(split: Split) -> np.ndarray:
    assert isinstance(split.images, ArrayImages)
    return split.images.array


def handed_out(tasks: Sequence[ArrayTask], out: Path) -> tuple[Path, Path]:
    """Write the demo's images as files to go on with: photos.zip without labels, and digits.zip as train/<class>/<file>.

    The same bytes each time: stored PNGs, fixed dates.
    """
    photos = ((f"{number:04d}.png", pixels) for number, pixels in enumerate(unlabelled(tasks)))
    task = tasks[0]
    digits = (
        (f"{part}/{label}/{number:04d}.png", pixels)
        for part, split in (("train", task.train), ("test", task.test))
        for number, (pixels, label) in enumerate(zip(_pixels(split), split.labels, strict=True))
    )
    return _zipped(out / "photos.zip", photos), _zipped(out / f"{task.name}.zip", digits)


def _zipped(path: Path, images: Iterable[tuple[str, np.ndarray]]) -> Path:
    def fill(file: IO[bytes]) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name, pixels in images:
                encoded = io.BytesIO()
                Image.fromarray(pixels).save(encoded, format="png", compress_level=1)
                archive.writestr(zipfile.ZipInfo(name), encoded.getvalue())

    atomically(path, fill)
    return path


def measure(
    teacher: Encoder, student: Encoder, tasks: Sequence[ArrayTask], seed: int, quiet: bool, out: Path, features: Path
) -> Results:
    """Teacher, student and the student's architecture with random weights, on every task, by k-NN and linear probe.

    features: a folder where embeddings are kept for `picture`.
    """
    import torch

    from ssl_kd.models.encoder import build

    torch.manual_seed(seed + 1000)
    rebuild: Callable[..., Encoder] = build
    random = rebuild(student.arch, preprocessing=student.preprocessing, **student.arch_args)
    encoders = {TEACHER: teacher, STUDENT: student, RANDOM: random}
    return evaluate_encoders(encoders, tasks, EVALUATORS, reference=TEACHER, quiet=quiet, out=out, features=features)


def claims(results: Results, tasks: Sequence[ArrayTask]) -> list[tuple[bool, str]]:
    """What the demo promises, each with whether it holds: better than random beyond both intervals, enough kept."""
    verdict = []
    for task in tasks:
        for evaluator in EVALUATORS:
            ours, chance = (results.headline(name, task.name, evaluator) for name in (STUDENT, RANDOM))
            verdict.append(
                (
                    ours["low"] > chance["high"],
                    f"{task.name}, {evaluator}: student {ours['value']:.1%} (at least {ours['low']:.1%}) beats "
                    f"random weights {chance['value']:.1%} (at most {chance['high']:.1%})",
                )
            )
    known = [task for task in tasks if task.name != UNSEEN]
    student, teacher = (_right(results, name, known) for name in (STUDENT, TEACHER))
    verdict.append(
        (
            student >= KEPT * teacher,
            f"{' and '.join(task.name for task in known)}, what it was distilled on: the student keeps "
            f"{student / teacher:.1%} of the teacher's k-NN accuracy (asked for: {KEPT:.0%})",
        )
    )
    return verdict


def _right(results: Results, name: str, tasks: Sequence[ArrayTask]) -> float:
    """Test images of all these tasks together that k-NN gets right."""
    return float(sum(results.headline(name, t.name, EVALUATORS[0])["value"] * len(t.test.labels) for t in tasks))


def picture(
    teacher: Encoder,
    student: Encoder,
    tasks: Sequence[ArrayTask],
    path: Path,
    seed: int = 0,
    rows: int = 3,
    features: Path | None = None,
) -> Path:
    """Draw test images of every task, `rows` of each, with their nearest training images under teacher and student.

    features: the folder into which `measure` put their embeddings; without it they are embedded here.

    An edge says whether a neighbour is of the query's class, by its colour and by its line: full and green, or dashed and
    orange, as in the report. What is what stands below as a caption.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    asked = [
        (task, query)
        for task in tasks
        for query in np.random.default_rng(seed).choice(len(task.test.labels), rows, False)
    ]
    wide, high = 1 + NEIGHBOURS * 1.7, 0.82 * len(asked) + 1.0
    figure, axes = plt.subplots(len(asked), 2 + 2 * NEIGHBOURS, figsize=(wide, high), squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    nearest = {
        (task.name, name): _nearest(e, task, features)
        for task in tasks
        for name, e in ((TEACHER, teacher), (STUDENT, student))
    }
    for line, (task, query) in zip(axes, asked, strict=True):
        _show(line[0], _pixels(task.test)[query], "black", "-")
        for start, name in ((1, TEACHER), (2 + NEIGHBOURS, STUDENT)):
            for axis, i in zip(line[start:], nearest[task.name, name][query], strict=False):
                hit = task.train.labels[i] == task.test.labels[query]
                _show(axis, _pixels(task.train)[i], *EDGES[bool(hit)])
    heads = {0: "query", 1: "nearest to the teacher", 2 + NEIGHBOURS: "nearest to the student"}
    for column, text in heads.items():
        axes[0][column].set_title(text, fontsize=9, loc="left")
    for line, (task, _) in zip(axes, asked, strict=True):
        line[0].set_ylabel(task.name.replace("-", "\n"), fontsize=8, rotation=0, ha="right", va="center")
    figure.text(0.5, 0.25 / high, CAPTION, ha="center", va="center", fontsize=9)
    figure.subplots_adjust(left=0.1, right=0.995, top=1 - 0.3 / high, bottom=0.5 / high, wspace=0.08, hspace=0.08)
    atomically(path, lambda file: figure.savefig(file, format="png", dpi=110, metadata={"Description": CAPTION}))
    plt.close(figure)
    return path


Line = Literal["-"] | tuple[float, Sequence[float]]  # as matplotlib has it
EDGES: dict[bool, tuple[str, Line]] = {
    True: ("#00805f", "-"),
    False: ("#c25e00", (0, (2, 1.5))),
}  # of the query's class, of another
CAPTION = (
    f"Test images and the {NEIGHBOURS} training images nearest to each. Full green edge: of the query's class; "
    "dashed orange edge: of another class."
)


def _nearest(encoder: Encoder, task: ArrayTask, features: Path | None) -> np.ndarray:
    bank = extract if features is None else FeatureStore(features).bank
    train, test = (bank(encoder, split.images, quiet=True) for split in (task.train, task.test))
    return neighbours(test.features, train.features, NEIGHBOURS)[1]


def _show(axis: Axes, image: np.ndarray, colour: str, line: Line) -> None:
    axis.set_axis_on()
    axis.imshow(image)
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(2.5)
        spine.set_linestyle(line)
