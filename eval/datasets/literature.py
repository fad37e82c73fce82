"""The data sets of the literature: classes, splits and the metric that papers report. Data only; eval/datasets/published.py reads.

Splits and metrics are those of Kornblith, Shlens & Le 2019 ("Do better ImageNet models transfer better?") where they
have the set. A new set that torchvision has is one row here; one that it does not split is a reader in
`eval/datasets/published.py` besides, and one in folders of train/<class> and test/<class> needs no row at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypedDict

Settings = Mapping[str, object]  # keyword arguments of a class of torchvision
METRICS_OF_TASKS = ("top1", "mean_per_class", "map11")


@dataclass(frozen=True)
class TaskRow:
    """One data set: its metric, its classes, and how torchvision's class `kind` calls its splits.

    `train` and `test` are keyword arguments of torchvision's class; several train entries are put one after another,
    and of two the second is the validation split that chooses a probe's strength. `reader` names a function of
    `eval/datasets/published.py` for sets that torchvision has unsplit or not at all; `fetch` are then the calls that download.
    `drawn` says how a single folder of classes is split: so many train images per class (30), or that share of each
    (0.8), by a fixed seed.
    """

    name: str
    classes: int
    metric: str = "top1"
    kind: str = ""
    train: tuple[Settings, ...] = ({"split": "train"},)
    test: Settings = field(default_factory=lambda: {"split": "test"})
    reader: str = ""
    fetch: tuple[Settings, ...] = ()
    drawn: float = 0


class _Splits(TypedDict):
    train: tuple[Settings, ...]
    test: Settings


_FLAGS: _Splits = {"train": ({"train": True},), "test": {"train": False}}
_BOTH: _Splits = {"train": ({"split": "train"}, {"split": "val"}), "test": {"split": "test"}}
_VOC = ({"year": "2007", "image_set": "trainval"}, {"year": "2007", "image_set": "test"})

TASKS: dict[str, TaskRow] = {
    row.name: row
    for row in (
        # Kornblith's twelve
        TaskRow("food101", 101, kind="Food101"),
        TaskRow("cifar10", 10, kind="CIFAR10", **_FLAGS),
        TaskRow("cifar100", 100, kind="CIFAR100", **_FLAGS),
        TaskRow("birdsnap", 500, reader="birdsnap"),
        TaskRow("sun397", 397, kind="SUN397", reader="sun397", fetch=({},)),
        TaskRow("cars", 196, kind="StanfordCars"),
        TaskRow("aircraft", 100, "mean_per_class", kind="FGVCAircraft", **_BOTH),
        TaskRow("voc07", 20, "map11", kind="VOCDetection", reader="voc07", fetch=_VOC),
        TaskRow("dtd", 47, kind="DTD", **_BOTH),  # the first of its ten splits, as everybody does
        TaskRow("pets", 37, "mean_per_class", kind="OxfordIIITPet", train=({"split": "trainval"},)),
        # 102 classes with the background, which torchvision's class leaves out
        TaskRow("caltech101", 102, "mean_per_class", kind="Caltech101", reader="caltech101", fetch=({},), drawn=30),
        TaskRow("flowers102", 102, "mean_per_class", kind="Flowers102", **_BOTH),
        # others that papers report
        TaskRow("stl10", 10, kind="STL10"),
        TaskRow("svhn", 10, kind="SVHN"),
        TaskRow("gtsrb", 43, kind="GTSRB"),
        TaskRow("imagenette", 10, kind="Imagenette", test={"split": "val"}),
        TaskRow("eurosat", 10, kind="EuroSAT", reader="eurosat", fetch=({},), drawn=0.8),
        TaskRow("tinyimagenet", 200, reader="tinyimagenet"),
        TaskRow("imagenet1k", 1000, reader="imagenet1k"),
        TaskRow("tinyimagenet100", 100),
        TaskRow("flowers40", 40, "mean_per_class"),
    )
}


def usual_metric(name: str) -> str:
    """Return the metric of the literature for a task of this name, top1 for unknown ones."""
    row = TASKS.get(name.lower())
    return row.metric if row else "top1"
