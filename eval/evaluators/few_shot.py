"""Few labels: k per class, or a share of train, drawn many times; the same draws for every encoder.

FewShot("shots")(train, test)      # 1, 2, 5, 10 per class, 20 draws, nearest class mean
FewShot("shares")(train, test)     # 1 % and 10 % of each class, 5 draws, linear probe
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssl_kd.registry import Registry
from ssl_kd.search.vectors import unit_rows

from ..banks import FeatureBank, match
from ..metrics import Z95, Score, Scores, wilson
from .linear_probe import LinearProbe


@dataclass(frozen=True)
class FewShotProtocol:
    """How many labels (whole numbers: per class; shares below 1: of each class), how often, and which classifier.

    "centroid" guesses the class whose mean unit vector has the highest cosine; otherwise the name of a linear protocol.
    """

    name: str
    sizes: tuple[float, ...]
    draws: int
    classifier: str
    headline: int
    source: str = ""


PROTOCOLS: Registry[FewShotProtocol] = Registry(
    "few-shot protocols",
    {
        row.name: row
        for row in (
            FewShotProtocol("shots", (1, 2, 5, 10), 20, "centroid", 2, "prototypes: Snell et al. 2017"),
            FewShotProtocol("shares", (0.01, 0.1), 5, "quick-lbfgs", 1, "1 % and 10 %: SimCLR, SwAV"),
        )
    },
    group="ssl_kd.fewshot_protocols",
    kind=FewShotProtocol,
    named=True,
)


@dataclass(frozen=True)
class FewShot:
    """Evaluator: mean accuracy over draws of few train rows; draws depend on labels and `seed` only.

    The interval joins the spread over test rows and over draws. A size that a class cannot fill takes what there is.
    """

    protocol: str | FewShotProtocol = "shots"
    seed: int = 0

    name = "fewshot"

    def __call__(self, train: FeatureBank, test: FeatureBank) -> Scores:
        """Return one accuracy per size; `each` holds for every test row the share of draws that guessed it right."""
        protocol, banks = fewshot_protocol(self.protocol), match(train, test)
        rows: list[Score] = []
        notes: list[str] = []
        each: dict[tuple[str, int | None], np.ndarray] = {}
        # a share has to leave two rows per class, so that a strength can be chosen among them
        least = 1 if protocol.classifier == "centroid" else 2
        for size in protocol.sizes:
            metric = f"{size:g}-shot" if size >= 1 else f"{100 * size:g} % of labels"
            right = []
            for number in range(protocol.draws):
                chosen = draw(banks.y, size, self.seed + number, least)
                right.append(_guess(protocol.classifier, train.rows(chosen), test, self.seed) == banks.y_test)
            hits = np.array(right)
            each[metric, None] = hits.mean(0)
            rows.append(_score(metric, hits))
            counts = np.bincount(banks.y)
            raised = int((np.round(size * counts) < np.minimum(least, counts)).sum()) if size < 1 else 0
            if raised:
                notes.append(
                    f"{metric}: that is fewer than {least} rows in {raised} of {len(counts)} classes, which give {least}: "
                    f"{len(chosen)} of {len(banks.y)} labels ({100 * len(chosen) / len(banks.y):.2g} %) were used"
                )
            short = int((counts < size).sum())
            if short:
                notes.append(f"{metric}: {short} classes have fewer rows and give all they have")
        return Scores(
            "fewshot",
            protocol.name,
            tuple(rows),
            banks.classes,
            banks.y_test,
            {},
            notes=tuple(notes),
            details={"draws": protocol.draws, "classifier": protocol.classifier},
            headline_metric=rows[protocol.headline].metric,
            each=each,
        )


def fewshot_protocol(protocol: str | FewShotProtocol) -> FewShotProtocol:
    """Return a protocol by name, or the given one as it is."""
    if not isinstance(protocol, str):
        return protocol
    return PROTOCOLS[protocol]


def draw(y: np.ndarray, size: float, seed: int, least: int = 1) -> np.ndarray:
    """Return row numbers: `size` of each class, or that share of it when below 1, `least` at least, all at most."""
    rng, chosen = np.random.default_rng(seed), []
    for name in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == name))
        chosen.append(rows[: max(least, int(size) if size >= 1 else round(size * len(rows)))])
    return np.sort(np.concatenate(chosen))


def centroids(train: FeatureBank, test: FeatureBank) -> np.ndarray:
    """Return each test row's guess (Q,), as a class number: the highest cosine to a class's mean unit vector."""
    banks = match(train, test)
    sums = np.zeros((len(banks.classes), train.width), np.float32)
    np.add.at(sums, banks.y, unit_rows(banks.x))
    return np.asarray((unit_rows(banks.x_test) @ unit_rows(sums).T).argmax(1))


def _guess(classifier: str, train: FeatureBank, test: FeatureBank, seed: int) -> np.ndarray:
    if classifier == "centroid":
        return centroids(train, test)
    return LinearProbe(classifier, seed=seed)(train, test).predicted[None]


def _score(metric: str, hits: np.ndarray) -> Score:
    """Return the mean of hits (draws, Q); its interval adds the variance of rows and that of draws."""
    draws, n = hits.shape
    value = float(hits.mean())
    if value in (0, 1):  # no spread at all says nothing about how sure this is
        return Score(metric, value, *wilson(value * n, n), n)
    rows = hits.mean(0).var() / n
    repeats = hits.mean(1).var(ddof=1) / draws if draws > 1 else 0.0
    arm = Z95 * math.sqrt(rows + repeats)
    return Score(metric, value, max(0.0, value - arm), min(1.0, value + arm), n)
