"""What an eye wants to see of an encoder on a task: a map of its features, and who it takes for whose neighbour."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.features import FeatureBank
from eval.knn import neighbours, unit_rows

if TYPE_CHECKING:
    from eval.tasks import Split, Task

POINTS = 600  # test rows on a map
QUERIES, NEAREST = 6, 5
SIDE = 72  # pixels of a thumbnail's longer side


@dataclass(frozen=True)
class Picture:
    """A thumbnail as a data URL, its class, and for a neighbour whether that is the query's class."""

    url: str
    label: str
    hit: bool | None = None


@dataclass(frozen=True)
class Look:
    """One encoder on one task: a map of test rows with its axes' shares of the variance, and rows of neighbours."""

    task: str
    encoder: str
    points: np.ndarray  # (n, 2) in [-1, 1]
    labels: tuple[str, ...]
    explained: tuple[float, float]
    rows: tuple[tuple[Picture, ...], ...]  # each: the query, then its nearest train images


def look(task: Task, encoder: str, train: FeatureBank, test: FeatureBank, seed: int = 0) -> Look:
    """Return the look of banks made of the task's own images; the same test rows for every encoder."""
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.permutation(len(test))[:POINTS])
    points, explained = principal_map(test.features[shown])
    names = np.asarray(test.labels).astype(str)
    queries = _one_per_class(names, rng)
    _, index = neighbours(test.features[queries], train.features, min(NEAREST, len(train)))
    others = np.asarray(train.labels).astype(str)
    finder = {"train": _numbers(task.train), "test": _numbers(task.test)}
    rows = []
    for row, near in zip(queries.tolist(), index.tolist(), strict=True):
        pictures = [Picture(_thumbnail(task.test, finder["test"][test.ids[row]]), names[row])]
        for other in near:
            url = _thumbnail(task.train, finder["train"][train.ids[other]])
            pictures.append(Picture(url, others[other], bool(others[other] == names[row])))
        rows.append(tuple(pictures))
    return Look(task.name, encoder, points, tuple(names[shown].tolist()), explained, tuple(rows))


def principal_map(features: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """Return the first two principal components of unit rows, scaled into [-1, 1], and their shares of the variance."""
    rows = unit_rows(np.asarray(features))
    rows = rows - rows.mean(0)
    _, scales, turn = np.linalg.svd(rows, full_matrices=False)
    axes = turn[:2] * np.sign(turn[:2, np.abs(turn[:2]).argmax(1)].diagonal())[:, None]  # a sign that does not flip
    points = np.zeros((len(rows), 2))
    points[:, : len(axes)] = rows @ axes.T
    total = max(float((scales**2).sum()), 1e-12)
    shares = [float(s**2) / total for s in scales[:2]] + [0.0, 0.0]
    return points / max(float(np.abs(points).max()), 1e-12), (shares[0], shares[1])


def _one_per_class(names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    classes = rng.permutation(np.unique(names))[:QUERIES]
    return np.array([rng.choice(np.flatnonzero(names == name)) for name in classes])


def _numbers(split: Split) -> dict[str, int]:
    return {str(name): i for i, name in enumerate(split.images.ids)}


def _thumbnail(split: Split, number: int) -> str:
    picture: Any = split.images.read(number)
    if picture is None:
        return ""
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
