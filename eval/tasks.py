"""Tasks: where labelled images come from, how they are split, and which metric the literature uses for them.

    task = folder_task("data/cifar10.zip")          # train/<class>/<file> and test/<class>/<file>
    task = torchvision_task("DTD", root="~/data")   # reads what lies there; downloads only when asked
    task = ArrayTask("mine", x_train, y_train, x_test, y_test)

Labels exist from here on only: the readers of `ssl_kd.images` know none, so they are taken from the class folders'
names, or from the data set's own list.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from eval.features import content_key
from ssl_kd.errors import ImagesError, UserError, nearest
from ssl_kd.images import ArrayImages, DatasetImages, Images, open_images

TEST_FOLDERS = ("test", "val", "validation", "valid")


@dataclass(frozen=True, eq=False)
class Split:
    """Images and one label per image, of any kind that numpy can sort."""

    images: Images
    labels: np.ndarray

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise UserError(f"{self.images.name}: {len(self.images)} images but {len(self.labels)} labels")


@dataclass(frozen=True, eq=False)
class Task:
    """A named train and test split; `metric` (top1 or mean_per_class) is the one that tables show first."""

    name: str
    train: Split
    test: Split
    metric: str = "top1"

    @cached_property
    def digest(self) -> str:
        """Hexadecimal name of all images and labels."""
        total = hashlib.sha256()
        for split in (self.train, self.test):
            total.update(content_key(split.images).encode())
            total.update("\n".join(map(str, split.labels.tolist())).encode())
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
        super().__init__(name, Split(train, np.asarray(train_labels)), Split(test, np.asarray(test_labels)), metric)


def folder_task(path: str | Path, name: str = "", metric: str = "", max_unreadable: float = 0.01) -> Task:
    """Make a task of a folder or zip that holds train/<class>/<file> and test/ (or val/) of the same shape."""
    path = str(path).rstrip("/")
    name = name or Path(path).stem
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


def corrupted(task: Task, kind: str, severity: int = 3, name: str = "") -> Task:
    """Return the task with corrupted test images; train stays clean. See `eval.corruptions`."""
    from eval.corruptions import Corrupted

    test = Split(Corrupted(task.test.images, kind, severity), task.test.labels)
    return Task(name or f"{task.name} + {kind} {severity}", task.train, test, task.metric)


def by_class_folder(images: Images) -> Split:
    """Label each image with the first folder of its id."""
    names = [str(i).split("/", 1) for i in images.ids]
    if loose := next((parts[0] for parts in names if len(parts) == 1), None):
        raise UserError(f"{images.name}: {loose} lies in no class folder; expected <class>/<file> for every image")
    return Split(images, np.array([parts[0] for parts in names]))


@dataclass(frozen=True)
class TaskRow:
    """One data set of the literature: its metric, its classes, and how torchvision calls its splits, if it has it.

    `train` and `test` are keyword arguments of torchvision's class; several train entries are put one after another.
    """

    name: str
    classes: int
    metric: str = "top1"
    kind: str = ""
    train: tuple[dict[str, Any], ...] = ({"split": "train"},)
    test: dict[str, Any] = field(default_factory=lambda: {"split": "test"})


_FLAGS: dict[str, Any] = {"train": ({"train": True},), "test": {"train": False}}
_BOTH: dict[str, Any] = {"train": ({"split": "train"}, {"split": "val"}), "test": {"split": "test"}}

TASKS: dict[str, TaskRow] = {
    row.name: row
    for row in (
        TaskRow("cifar10", 10, kind="CIFAR10", **_FLAGS),
        TaskRow("cifar100", 100, kind="CIFAR100", **_FLAGS),
        TaskRow("food101", 101, kind="Food101"),
        TaskRow("dtd", 47, kind="DTD", **_BOTH),
        TaskRow("flowers102", 102, "mean_per_class", kind="Flowers102", **_BOTH),
        TaskRow("pets", 37, "mean_per_class", kind="OxfordIIITPet", train=({"split": "trainval"},)),
        TaskRow("aircraft", 100, "mean_per_class", kind="FGVCAircraft", train=({"split": "trainval"},)),
        TaskRow("cars", 196, kind="StanfordCars"),
        TaskRow("stl10", 10, kind="STL10"),
        TaskRow("svhn", 10, kind="SVHN"),
        TaskRow("gtsrb", 43, kind="GTSRB"),
        TaskRow("imagenette", 10, kind="Imagenette", test={"split": "val"}),
        # no split of theirs in torchvision: folders of train/<class> and test/<class> (or val/<class>)
        TaskRow("caltech101", 102, "mean_per_class"),
        TaskRow("sun397", 397),
        TaskRow("birdsnap", 500),
        TaskRow("imagenet1k", 1000),
        TaskRow("tinyimagenet", 200),
        TaskRow("tinyimagenet100", 100),
        TaskRow("eurosat", 10),
        TaskRow("flowers40", 40, "mean_per_class"),
    )
}


def usual_metric(name: str) -> str:
    """Return the metric of the literature for a task of this name, top1 for unknown ones."""
    row = TASKS.get(name.lower())
    return row.metric if row else "top1"


def torchvision_task(name: str, root: str | Path, download: bool = False) -> Task:
    """Make a task of a torchvision data set that lies under `root`, by our name (cifar10) or theirs (CIFAR10)."""
    from torchvision import datasets

    known = {row.kind: row for row in TASKS.values() if row.kind}
    row = TASKS.get(name.lower()) or known.get(name)
    if row is None or not row.kind:
        names = [*(row.name for row in known.values()), *known]
        raise UserError(f"no task {name!r} from torchvision; known: {', '.join(names)}.{nearest(name, names)}")
    kind, root = getattr(datasets, row.kind), Path(root).expanduser()
    extra = {"download": True} if download else {}

    def load(settings: dict[str, Any]) -> Any:
        try:
            return kind(str(root), **settings, **extra)
        except (RuntimeError, OSError, ValueError, ImportError) as error:
            hint = "" if download else " (nothing is downloaded unless download: true)"
            raise UserError(f"{row.name}: {' '.join(str(error).split())} under {root}{hint}") from None

    train, test = _Joined([load(settings) for settings in row.train]), _Joined([load(row.test)])
    return Task(row.name, train.split(f"{row.name} train"), test.split(f"{row.name} test"), row.metric)


class _Joined:
    """Data sets one after another, with the labels that they list."""

    def __init__(self, parts: Sequence[Any]):
        self.parts, self.ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> Any:
        which = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[which][i - (int(self.ends[which - 1]) if which else 0)]

    def split(self, name: str) -> Split:
        return Split(DatasetImages(self, name=name), np.concatenate([labels_of(part) for part in self.parts]))


def labels_of(dataset: Any) -> np.ndarray:
    """Return a torchvision data set's labels (N,) without decoding an image, by the lists that its classes keep."""
    for name in ("targets", "labels", "_labels", "y"):
        if (found := getattr(dataset, name, None)) is not None and len(found) == len(dataset):
            return np.asarray(found)
    for name in ("_samples", "samples"):
        if (found := getattr(dataset, name, None)) is not None and len(found) == len(dataset):
            return np.asarray([sample[1] for sample in found])
    return np.asarray([dataset[i][1] for i in range(len(dataset))])


def _open_first(path: str, names: Sequence[str], max_unreadable: float) -> Images:
    reasons = []
    for name in names:
        try:
            return open_images(f"{path}/{name}", max_unreadable)
        except ImagesError as error:
            reasons.append(str(error))
    raise UserError(f"{path}: expected a folder {' or '.join(names)} with <class>/<file> in it; {reasons[0]}")
