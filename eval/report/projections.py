"""What an eye wants to see of an encoder on a task: a map of its features, and who it takes for whose neighbour."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.errors import UserError
from ssl_kd.search.vectors import unit_rows

from ..banks import FeatureBank
from ..evaluators.knn import neighbours

if TYPE_CHECKING:
    from ..datasets.tasks import Split, Task

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
class Map:
    """A projection of test rows onto a plane, (n, 2) in [-1, 1], and what a reader must know of it."""

    name: str
    points: np.ndarray
    told: str = ""


@dataclass(frozen=True)
class Look:
    """One encoder on one task: maps of the same test rows with their classes, and rows of neighbours."""

    task: str
    encoder: str
    maps: tuple[Map, ...]
    labels: tuple[str, ...]
    rows: tuple[tuple[Picture, ...], ...]  # each: the query, then its nearest train images


def look(
    task: Task, encoder: str, train: FeatureBank, test: FeatureBank, maps: Sequence[str] = ("pca",), seed: int = 0
) -> Look:
    """Return the look of banks made of the task's own images; the same test rows for every encoder."""
    rng = np.random.default_rng(seed)
    shown = np.sort(rng.permutation(len(test))[:POINTS])
    names = _class_names(test, task.classes)
    queries = _one_per_class(names, rng) if task.labelled else rng.permutation(len(test))[:QUERIES]
    _, index = neighbours(test.features[queries], train.features, min(NEAREST, len(train)))
    others = _class_names(train, task.classes)
    finder = {"train": _numbers(task.train), "test": _numbers(task.test)}
    rows = []
    for row, near in zip(queries.tolist(), index.tolist(), strict=True):
        pictures = [Picture(_thumbnail(task.test, finder["test"][test.ids[row]]), names[row])]
        for other in near:
            url = _thumbnail(task.train, finder["train"][train.ids[other]])
            pictures.append(Picture(url, others[other], _alike(test, row, train, other) if task.labelled else None))
        rows.append(tuple(pictures))
    drawn = tuple(PROJECTIONS[name](np.asarray(test.features[shown]), seed) for name in maps)
    return Look(task.name, encoder, drawn, tuple(names[shown].tolist()), tuple(rows))


def _class_names(bank: FeatureBank, classes: Sequence[str]) -> np.ndarray:
    """Return each row's class in words; of several, all that are shown."""
    labels = np.asarray(bank.labels)
    if labels.ndim == 1:
        return labels.astype(str)
    known = np.array(classes or range(labels.shape[1])).astype(str)
    return np.array([", ".join(known[row > 0]) or "none" for row in labels])


def _alike(test: FeatureBank, row: int, train: FeatureBank, other: int) -> bool:
    """Return whether two images show a class in common."""
    mine, theirs = np.asarray(test.labels)[row], np.asarray(train.labels)[other]
    return bool(((mine > 0) & (theirs > 0)).any()) if np.ndim(mine) else bool(str(mine) == str(theirs))


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


def _pca(features: np.ndarray, seed: int) -> Map:
    points, explained = principal_map(features)
    return Map("PCA", points, f"two principal components, {100 * sum(explained):.0f} % of the variance")


def _tsne(features: np.ndarray, seed: int) -> Map:
    from sklearn.manifold import TSNE

    rows = unit_rows(features)
    perplexity = min(30.0, max(1.0, (len(rows) - 1) / 3))
    points = (
        TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(rows) if len(rows) > 3 else None
    )
    told = f"t-SNE, perplexity {perplexity:g}; distances between groups mean little"
    return Map("t-SNE", _scaled(np.zeros((len(rows), 2)) if points is None else points), told)


def _umap(features: np.ndarray, seed: int) -> Map:
    try:
        from umap import UMAP
    except ImportError:
        raise UserError("maps: umap is not installed; pip install 'ssl-kd[umap]', or take pca or tsne") from None

    rows = unit_rows(features)
    near = min(15, len(rows) - 1)
    points = UMAP(n_neighbors=near, random_state=seed, n_jobs=1).fit_transform(rows)
    return Map("UMAP", _scaled(points), f"UMAP, {near} neighbours; distances between groups mean little")


PROJECTIONS: dict[str, Callable[[np.ndarray, int], Map]] = {"pca": _pca, "tsne": _tsne, "umap": _umap}


def _scaled(points: np.ndarray) -> np.ndarray:
    centred = points - (points.max(0) + points.min(0)) / 2
    return np.asarray(centred / max(float(np.abs(centred).max()), 1e-12))


def _one_per_class(names: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    classes = rng.permutation(np.unique(names))[:QUERIES]
    return np.array([rng.choice(np.flatnonzero(names == name)) for name in classes])


def _numbers(split: Split) -> dict[str, int]:
    return {str(name): i for i, name in enumerate(split.images.ids)}


def _thumbnail(split: Split, number: int) -> str:
    picture = split.images.read(number)
    if picture is None:
        return ""
    picture.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
