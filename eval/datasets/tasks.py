"""Tasks: where labelled images come from, how they are split, and which metric the literature uses for them.

    task = folder_task("data/cifar10.zip")          # train/<class>/<file> and test/<class>/<file>
    task = ArrayTask("mine", x_train, y_train, x_test, y_test)

Labels exist from here on only: the readers of `ssl_kd.data.open` know none, so they are taken from the class folders'
names, or from the data set's own list. Sets of the literature in the layout of their archives: `eval/datasets/published.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from ssl_kd.data.open import open_images
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.sources.base import ImageSource, content_key
from ssl_kd.data.subset import Subset
from ssl_kd.errors import ImagesError, UserError, one_line, shown_name

from ..banks import as_labels
from .literature import TASKS, usual_metric

FEWEST_PHOTOS = 60  # fewer say nothing about ten neighbours
TEST_FOLDERS = ("test", "val", "validation", "valid")


@dataclass(frozen=True, eq=False)
class Split:
    """Images and one label per image (N,), all numbers or all names.

    `images` is whatever `open_images` takes: an ImageSource, uint8 pixels (N, H, W, 3), a path, a map-style data set. Labels
    may be a list; they become an array. Where an image may show several classes, labels are (N, C): 1 shown, -1 not shown,
    0 not to be judged. Raises UserError where the two do not belong together.

        Split(pixels, [0, 1, 1])        Split(open_images("photos/"), names)
    """

    images: ImageSource
    labels: np.ndarray

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", open_images(self.images))
        object.__setattr__(self, "labels", as_labels(self.labels))
        if len(self.images) != len(self.labels):
            raise UserError(f"{self.images.name}: {len(self.images)} images but {len(self.labels)} labels")


@dataclass(frozen=True, eq=False)
class Task:
    """A named train and test split; `metric` (top1, mean_per_class, map11) is the one that tables show first.

        Task("mine", Split(x_train, y_train), Split(x_test, y_test))

    It is an entry of a configuration's `tasks` or of `evaluate_encoders`. Its cells are kept under `digest`, which is made
    of the images' content, labels and validation split, so that the same task may be built anew each time. `held` (N,)
    marks the train images of the set's own validation split, where it has one: it chooses what a probe's protocol leaves
    open. `classes` names the columns of labels (N, C). Not `labelled`: photos alone, which all bear one name instead of a
    label; test rows query train rows, and only evaluators that need no labels judge them.
    """

    name: str
    train: Split
    test: Split
    metric: str = "top1"
    held: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    labelled: bool = True

    @property
    def several(self) -> bool:
        """Whether an image may show several classes."""
        return self.train.labels.ndim == 2

    def verify(self) -> None:
        """Have every byte of the images read for `digest` and for the keys of features: one pass over all of them."""
        self.train.images.verify = self.test.images.verify = True
        self.__dict__.pop("digest", None)  # one that was made with less

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader of its figures must know: test images that train holds as well, classes without a test image."""
        found: list[str] = []
        if self.labelled and content_key(self.train.images) == content_key(self.test.images):
            found.append(f"{self.name}: train and test are the same images, so its figures say what is remembered")
        if self.labelled and not self.several:
            untested = sorted(set(map(str, self.train.labels.tolist())) - set(map(str, self.test.labels.tolist())))
            if untested:
                some = one_line(", ".join(untested[:3])) + (", ..." if len(untested) > 3 else "")
                has = "has" if len(untested) == 1 else "have"
                found.append(
                    f"{self.name}: {len(untested)} of its classes {has} no test image ({some}); figures are of the others"
                )
        return tuple(found)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal name of all images and labels, and of the validation split."""
        total = hashlib.sha256()
        for split in (self.train, self.test):
            total.update(content_key(split.images).encode())
            # a folder's name that is not UTF-8 comes with surrogates in it
            total.update("\n".join(map(str, split.labels.tolist())).encode(errors="surrogatepass"))
        if self.held is not None:
            total.update(np.packbits(self.held).tobytes())
        return total.hexdigest()


class ArrayTask(Task):
    """A task of uint8 arrays (N, H, W, 3) with their labels (N,)."""

    def __init__(
        self,
        name: str,
        train_images: np.ndarray,
        train_labels: np.ndarray,
        test_images: np.ndarray,
        test_labels: np.ndarray,
        metric: str = "top1",
    ):
        train, test = ArrayImages(train_images, name=f"{name} train"), ArrayImages(test_images, name=f"{name} test")
        super().__init__(name, Split(train, train_labels), Split(test, test_labels), metric)


def folder_task(path: str | Path, name: str = "", metric: str = "", max_unreadable: float = 0.01) -> Task:
    """Make a task of a folder or zip that holds train/<class>/<file> and test/ (or val/) of the same shape.

    A set of the literature that comes unsplit (caltech101, eurosat) may also be a single folder of classes.
    """
    path = str(path).rstrip("/")
    name = name or Path(path).stem
    row = TASKS.get(name.lower())
    if row and row.drawn and not _holds(path, "train", max_unreadable):
        return drawn_task(open_images(path, max_unreadable), name, row.drawn, metric or row.metric)
    train = _open_first(path, ("train",), max_unreadable)
    test = _open_first(path, TEST_FOLDERS, max_unreadable)
    return Task(name, by_class_folder(train), by_class_folder(test), metric or usual_metric(name))


def folder_pair(train: str | Path, test: str | Path, name: str, metric: str = "", max_unreadable: float = 0.01) -> Task:
    """Make a task of two folders (or folders in a zip), each <class>/<file>."""
    parts = (
        by_class_folder(open_images(str(train), max_unreadable)),
        by_class_folder(open_images(str(test), max_unreadable)),
    )
    return Task(name, parts[0], parts[1], metric or usual_metric(name))


def photos_task(path: str | Path, name: str = "", max_unreadable: float = 0.01) -> Task:
    """Make a task of a folder or zip of photos without labels: every other one is a query, the others are looked up in."""
    images = open_images(str(path), max_unreadable)
    name = name or Path(path).stem
    if len(images) < FEWEST_PHOTOS:
        raise UserError(f"{path}: expected at least {FEWEST_PHOTOS} photos to judge by, got {len(images)}")
    whole = Split(images, np.full(len(images), "photo"))
    asked = np.arange(len(images)) % 2 == 1
    train, test = part_of(whole, ~asked, f"{name} index"), part_of(whole, asked, f"{name} queries")
    return Task(name, train, test, labelled=False)


def drawn_task(images: ImageSource, name: str, size: float, metric: str = "top1", seed: int = 0) -> Task:
    """Split a folder of classes: `size` train images per class, or that share of each when below 1; the rest is test."""
    whole, rng = by_class_folder(images), np.random.default_rng(seed)
    train = np.zeros(len(images), bool)
    for label in np.unique(whole.labels):
        rows = rng.permutation(np.flatnonzero(whole.labels == label))
        wanted = int(size) if size >= 1 else round(size * len(rows))
        if not 0 < wanted < len(rows):
            raise UserError(f"{name}: class {label} has {len(rows)} images; the split needs more than {max(wanted, 1)}")
        train[rows[:wanted]] = True
    return Task(name, part_of(whole, train, f"{name} train"), part_of(whole, ~train, f"{name} test"), metric)


def part_of(split: Split, rows: np.ndarray, name: str = "") -> Split:
    """Return the chosen rows (indices or booleans) of a split."""
    numbers = np.arange(len(split.labels))[rows]
    return Split(Subset(split.images, numbers, name=name, mark=""), split.labels[numbers])


def corrupted(task: Task, kind: str, severity: int = 3, name: str = "") -> Task:
    """Return the task with corrupted test images; train stays clean. See `ssl_kd.eval.datasets.corruptions`."""
    from .corruptions import Corrupted

    test = Split(Corrupted(task.test.images, kind, severity), task.test.labels)
    title = name or f"{task.name} + {kind} {severity}"
    return Task(title, task.train, test, task.metric, task.held, task.classes, task.labelled)


def by_class_folder(images: ImageSource) -> Split:
    """Label each image with the first folder of its id."""
    names = [str(i).split("/", 1) for i in images.ids]
    if loose := next((parts[0] for parts in names if len(parts) == 1), None):
        raise UserError(f"{images.name}: {loose} lies in no class folder; expected <class>/<file> for every image")
    return Split(images, as_labels([parts[0] for parts in names]))


def _holds(path: str, name: str, max_unreadable: float) -> bool:
    try:
        open_images(f"{path}/{name}", max_unreadable)
    except ImagesError:
        return False
    return True


def _open_first(path: str, names: Sequence[str], max_unreadable: float) -> ImageSource:
    reasons = []
    for name in names:
        try:
            return open_images(f"{path}/{name}", max_unreadable)
        except ImagesError as error:
            reasons.append(str(error))
    why = (_photos_instead(path, max_unreadable) if names == ("train",) else "") or reasons[0]
    raise UserError(f"{path}: expected a folder {' or '.join(names)} with <class>/<file> in it; {why}")


def _photos_instead(path: str, max_unreadable: float) -> str:
    """What to write for pictures that lie in no train/; ImagesError for a path at which there is nothing at all."""
    try:
        images = open_images(path, max_unreadable)
    except ImagesError as error:
        if str(error).startswith(f"{shown_name(path)}: no such"):
            raise
        return ""
    return f"its {len(images):,} pictures without labels are {{name: {Path(path).stem}, photos: {path}}}"
