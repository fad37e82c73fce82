"""Data sets of the literature as their archives unpack, from disk: torchvision's classes, and readers for the rest.

    task = published_task("dtd", root="~/data")      # reads what lies there; downloads only when asked
    task = published_task("voc07", root="~/data")    # ~/data/VOCdevkit/VOC2007, several classes per image

The readers exist where torchvision has no split (SUN397, EuroSAT, Caltech-101), drops a class (Caltech-101's background),
keeps labels in boxes (VOC 2007) or has no class at all (Birdsnap, Tiny-ImageNet). They read folders and zips alike.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from ssl_kd.data.open import open_images
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.dataset import DatasetImages, MapStyle
from ssl_kd.errors import ImagesError, UserError, nearest
from ssl_kd.registry import Registry, is_object
from ssl_kd.runtime.network import offline

from .literature import TASKS, TaskRow
from .tasks import Split, Task, by_class_folder, drawn_task, part_of

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
    *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def published_task(name: str, root: str | Path, download: bool = False, max_unreadable: float = 0.01) -> Task:
    """Make a task of a set that lies under `root`, by its row of MAKERS (cifar10) or torchvision's name (CIFAR10).

    Raises UserError for an unknown name, and when files are missing or damaged; with `download` torchvision fetches
    what it can.
    """
    alias = {row.kind: row.name for row in ROOTED if row.kind}
    found = name.lower() if name.lower() in MAKERS.built_in else alias.get(name, name)
    if found not in MAKERS:
        if is_object(name):
            raise UserError(MAKERS.unknown(name))
        listed = [*MAKERS, *alias]
        raise UserError(f"no task {name!r} under a root; known: {', '.join(listed)}.{nearest(name, listed)}")
    task = MAKERS[found](Path(root).expanduser(), download and not offline(), max_unreadable)
    if not isinstance(task, Task):
        raise UserError(f"task {found}: expected its maker to give a Task, got {type(task).__name__}")
    return Task(found, task.train, task.test, task.metric, task.held, task.classes)


def _of_the_literature(row: TaskRow, root: Path, download: bool, max_unreadable: float) -> Task:
    if row.reader:
        for settings in row.fetch if download else ():
            _torchvision(row, root, settings, download)
        try:
            return READERS[row.reader](row, root, max_unreadable)
        except ImagesError as error:
            raise ImagesError(f"{row.name}: {error}") from None
    parts = [_torchvision(row, root, settings, download) for settings in row.train]
    train, test = _Joined(parts), _Joined([_torchvision(row, root, row.test, download)])
    held = np.arange(len(train)) >= len(parts[0]) if len(parts) == 2 else None
    names = f"{row.name} train", f"{row.name} test"
    return Task(row.name, train.split(names[0]), test.split(names[1]), row.metric, held)


def _torchvision(row: TaskRow, root: Path, settings: Mapping[str, object], download: bool) -> MapStyle:
    from torchvision import datasets

    extra = {"download": True} if download else {}
    try:
        found: MapStyle = getattr(datasets, row.kind)(str(root), **settings, **extra)
        return found
    except (RuntimeError, OSError, ValueError, ImportError) as error:
        hint = "" if download else " (nothing is downloaded unless download: true, and SSL_KD_OFFLINE is not set)"
        raise UserError(f"{row.name}: {' '.join(str(error).split())} under {root}{hint}") from None


class _Joined:
    """Data sets one after another, with the labels that they list."""

    def __init__(self, parts: Sequence[MapStyle]):
        self.parts, self.ends = parts, np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, i: int) -> object:
        which = int(np.searchsorted(self.ends, i, side="right"))
        return self.parts[which][i - (int(self.ends[which - 1]) if which else 0)]

    def split(self, name: str) -> Split:
        return Split(DatasetImages(self, name=name), np.concatenate([labels_of(part) for part in self.parts]))


def labels_of(dataset: MapStyle) -> np.ndarray:
    """Return a torchvision data set's labels (N,) without decoding an image, by the lists that its classes keep."""
    for name in ("targets", "labels", "_labels", "y"):
        if (found := getattr(dataset, name, None)) is not None and len(found) == len(dataset):
            return np.asarray(found)
    for name in ("_samples", "samples"):
        if (found := getattr(dataset, name, None)) is not None and len(found) == len(dataset):
            return np.asarray([sample[1] for sample in found])
    return np.asarray([cast(Sequence[object], dataset[i])[1] for i in range(len(dataset))])


def _drawn(*places: str) -> Callable[[TaskRow, Path, float], Task]:
    """Return a reader of one folder of classes, split by a fixed seed (see TaskRow.drawn)."""

    def read(row: TaskRow, root: Path, max_unreadable: float) -> Task:
        images = open_images(_place(row, root, *places), max_unreadable)
        return drawn_task(images, row.name, row.drawn, row.metric)

    return read


def _sun397(row: TaskRow, root: Path, max_unreadable: float) -> Task:
    """Read SUN397 with the first of its ten official partitions: 50 train and 50 test images per class."""
    place = _place(row, root, "SUN397")
    images = open_images(place, max_unreadable)
    whole = Split(images, np.array([str(name).rpartition("/")[0] for name in images.ids]))  # classes may be nested

    def read(part: str) -> Split:
        listed = _lines(row, place, (part, f"Partitions/{part}", f"../{part}", f"../Partitions/{part}"))
        return part_of(whole, _rows(row, images, [line.lstrip("/") for line in listed]), f"{row.name} {part}")

    return Task(row.name, read("Training_01.txt"), read("Testing_01.txt"), row.metric)


def _birdsnap(row: TaskRow, root: Path, max_unreadable: float) -> Task:
    """Read Birdsnap: images/<class>/<file>, of which test_images.txt (a header, then a path a line) names the test set."""
    place = _place(row, root, "birdsnap/download", "birdsnap", "download", ".")
    images = open_images(f"{place}/images", max_unreadable)
    listed = {line.split("\t")[0] for line in _lines(row, place, ("test_images.txt", "../test_images.txt"))}
    test = np.array([str(name) in listed for name in images.ids])
    if not test.any() or test.all():
        raise UserError(
            f"{row.name}: test_images.txt names {test.sum()} of the {len(test)} images under {place}/images"
        )
    whole = by_class_folder(images)
    return Task(row.name, part_of(whole, ~test, "birdsnap train"), part_of(whole, test, "birdsnap test"), row.metric)


def _tinyimagenet(row: TaskRow, root: Path, max_unreadable: float) -> Task:
    """Read Tiny-ImageNet: train/<class>/images/<file>, and val with its annotations for test, whose labels are secret."""
    place = _place(row, root, "tiny-imagenet-200", "tiny-imagenet-200.zip/tiny-imagenet-200", ".")
    train = by_class_folder(open_images(f"{place}/train", max_unreadable))
    images = open_images(f"{place}/val/images", max_unreadable)
    labels = dict(line.split("\t")[:2] for line in _lines(row, place, ("val/val_annotations.txt",)))
    if missing := [name for name in images.ids if str(name) not in labels]:
        raise UserError(f"{row.name}: val_annotations.txt says nothing about {missing[0]}")
    return Task(row.name, train, Split(images, np.array([labels[str(name)] for name in images.ids])), row.metric)


def _imagenet(row: TaskRow, root: Path, max_unreadable: float) -> Task:
    """Read ImageNet-1k: train/<class>/<file> and val/<class>/<file>; val is what papers test on."""
    place = _place(row, root, "imagenet", "ILSVRC/Data/CLS-LOC", ".")
    parts = [by_class_folder(open_images(f"{place}/{part}", max_unreadable)) for part in ("train", "val")]
    return Task(row.name, parts[0], parts[1], row.metric)


def _voc07(row: TaskRow, root: Path, max_unreadable: float) -> Task:
    """Read VOC 2007 classification: train + val (val is held out to choose by) and test, 20 classes, several per image.

    The lists say 1 shown, -1 not shown, 0 hard to see: these are judged for no class, as in the official evaluation.
    """
    place = _place(row, root, "VOCdevkit/VOC2007", "VOC2007", ".")
    images = open_images(f"{place}/JPEGImages", max_unreadable)

    def read(part: str) -> Split:
        names, columns = [], []
        for label in VOC_CLASSES:
            lines = [line.split() for line in _lines(row, place, (f"ImageSets/Main/{label}_{part}.txt",))]
            names.append([line[0] for line in lines])
            columns.append([int(line[1]) for line in lines])
        if any(other != names[0] for other in names):
            raise UserError(f"{row.name}: the lists of {part} in {place}/ImageSets/Main name different images")
        rows = _rows(row, images, [f"{name}.jpg" for name in names[0]])
        labels = np.zeros((len(images), len(VOC_CLASSES)), np.int8)
        labels[rows] = np.array(columns, np.int8).T
        return part_of(Split(images, labels), rows, f"{row.name} {part}")

    train, test = read("trainval"), read("test")
    val = {line.split()[0] for line in _lines(row, place, ("ImageSets/Main/val.txt",))}
    held = np.array([str(name).removesuffix(".jpg") in val for name in train.images.ids])
    return Task(row.name, train, test, row.metric, held, VOC_CLASSES)


READERS: dict[str, Callable[[TaskRow, Path, float], Task]] = {
    "caltech101": _drawn("caltech101/101_ObjectCategories", "101_ObjectCategories", "."),
    "eurosat": _drawn("eurosat/2750", "2750", "EuroSAT", "."),
    "sun397": _sun397,
    "birdsnap": _birdsnap,
    "tinyimagenet": _tinyimagenet,
    "imagenet1k": _imagenet,
    "voc07": _voc07,
}

ROOTED = tuple(row for row in TASKS.values() if row.kind or row.reader)
# (root, whether it may download, share of images that may be unreadable) -> the task under that root.
MAKERS: Registry[Callable[[Path, bool, float], Task]] = Registry(
    "tasks",
    {row.name: partial(_of_the_literature, row) for row in ROOTED},
    group="ssl_kd.tasks",
)


def _place(row: TaskRow, root: Path, *places: str) -> str:
    """Return the first of these places under root that is there: a folder, or a folder in a zip."""
    for place in places:
        at = _entry(root / place)
        if at is not None and at.is_dir():
            return str(root / place)
    expected = " or ".join(str(root / place) for place in places if place != ".") or str(root)
    raise UserError(f"{row.name}: nothing lies under {root}; expected {expected} as the archive unpacks")


def _entry(path: Path) -> Path | zipfile.Path | None:
    """Return a path on disk, or one in a zip that the path leads through; None where there is neither."""
    if path.exists():
        return zipfile.Path(path) if path.is_file() and zipfile.is_zipfile(path) else path
    for parent in path.parents:
        if parent.is_file() and zipfile.is_zipfile(parent):
            inside = path.relative_to(parent).as_posix()
            found = [zipfile.Path(parent, inside + end) for end in ("", "/")]
            return next((one for one in found if one.exists()), None)
    return None


def _lines(row: TaskRow, place: str, names: Sequence[str]) -> list[str]:
    """Return the lines, without empty ones, of the first of these files that is there."""
    for name in names:
        at = _entry(Path(place) / name)
        if at is not None and at.is_file():
            return [line.strip() for line in at.read_text(encoding="utf-8").splitlines() if line.strip()]
    raise UserError(f"{row.name}: {names[0]} is missing from {place}; it comes with the set and says how it is split")


def _rows(row: TaskRow, images: ImageSource, listed: Sequence[str]) -> np.ndarray:
    numbers = {str(name): i for i, name in enumerate(images.ids)}
    if missing := [name for name in listed if name not in numbers]:
        raise UserError(f"{row.name}: {len(missing)} of {len(listed)} listed images are missing, first {missing[0]}")
    return np.array([numbers[name] for name in listed])
