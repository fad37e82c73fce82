"""How much a representation suffers from bad training labels: noise, and classes of very different sizes.

    Robustness("label-noise")(train, test)     # 0, 20, 40, 60 % of the labels replaced
    Robustness("long-tail")(train, test)       # class sizes falling to 1, 1/10, 1/50, 1/100 of the largest

Only the labels of the classifier are touched: the encoder never saw any. Test stays as it is. The same rows are hit
for every encoder, so that teacher and student are compared under the same damage. Corrupted *images* are tasks of
their own: see `corrupt` in eval/datasets/tasks.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ssl_kd.registry import Registry

from ..banks import FeatureBank, match
from ..metrics import Scores, mean_score
from .knn import KNN, knn_protocol
from .linear_probe import LinearProbe


@dataclass(frozen=True)
class Damage:
    """A kind of damage ("noise" or "tail"), its levels from none to worst, and the one that a table shows."""

    name: str
    kind: str
    levels: tuple[float, ...]
    headline: float
    source: str = ""


PROTOCOLS: Registry[Damage] = Registry(
    "robustness protocols",
    {
        row.name: row
        for row in (
            Damage("label-noise", "noise", (0.0, 0.2, 0.4, 0.6), 0.4, "in the spirit of arXiv:2007.01922"),
            Damage("long-tail", "tail", (1.0, 0.1, 0.02, 0.01), 0.01, "in the spirit of arXiv:2007.01922"),
        )
    },
    group="ssl_kd.robustness_protocols",
    kind=Damage,
    named=True,
)


@dataclass(frozen=True)
class Robustness:
    """Evaluator: accuracy on clean test rows of k-NN (dino, k = 20) and a linear probe after damage to train labels.

    After a long tail the classes of test are as they were, so accuracy there asks for the rare classes too. Given the
    very same bank twice, no row is its own neighbour.
    """

    protocol: str | Damage = "label-noise"
    probe: str = "quick-lbfgs"
    seed: int = 0

    name = "robustness"

    def __call__(self, train: FeatureBank, test: FeatureBank) -> Scores:
        """Return one accuracy per level and classifier, "linear, 40 % noise" and so on."""
        damage, banks = damage_protocol(self.protocol), match(train, test)
        near = KNN(replace(knn_protocol("dino"), ks=(20,)))
        clean = FeatureBank(test.features, banks.y_test, test.ids)
        notes: dict[str, list[str]] = {}
        each: dict[tuple[str, int | None], np.ndarray] = {}
        shown = ""
        for level in damage.levels:
            if damage.kind == "noise":
                kept, labels = np.ones(len(banks.y), bool), noisy(banks.y, level, self.seed)
                what = f"{100 * level:g} % noise"
            else:
                kept, labels = long_tail(banks.y, level, self.seed), banks.y
                what = f"tail 1/{round(1 / level)}"
            part = train if kept.all() else train.rows(kept)
            hurt = FeatureBank(part.features, labels[kept], part.ids, held=part.held)
            own = np.where(kept, np.cumsum(kept) - 1, -1) if banks.same else None
            found = {"k-NN": near(hurt, clean, own), "linear": LinearProbe(self.probe, seed=self.seed)(hurt, clean)}
            for name, scores in found.items():
                guess = scores.classes[scores.predicted[scores.headline_k]]
                each[f"{name}, {what}", None] = (guess == banks.y_test).astype(np.float64)
                for note in scores.notes:
                    notes.setdefault(f"{name}: {note}", []).append(what)
            if level == damage.headline:
                shown = f"linear, {what}"
        return Scores(
            "robustness",
            damage.name,
            tuple(mean_score(metric, values) for (metric, _), values in each.items()),
            banks.classes,
            banks.y_test,
            {},
            notes=tuple(f"{note} ({', '.join(levels)})" for note, levels in notes.items()),
            headline_metric=shown or list(each)[-1][0],
            each=each,
        )


def damage_protocol(protocol: str | Damage) -> Damage:
    """Return a kind of damage by name, or the given one as it is."""
    if not isinstance(protocol, str):
        return protocol
    return PROTOCOLS[protocol]


def noisy(y: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Return class numbers (N,) with a share of them replaced by another class, all others equally likely.

    One row of each class stays right, so that no class vanishes. Levels are nested: a row that is wrong at 20 % has the
    same wrong label at 40 %.
    """
    rng, classes = np.random.default_rng(seed), int(y.max()) + 1
    order, shift = rng.permutation(len(y)), rng.integers(1, classes, len(y))
    first = np.unique(y[order], return_index=True)[1]
    wrong = np.delete(order, first)[: round(share * len(y))]
    out = y.copy()
    out[wrong] = (y[wrong] + shift[wrong]) % classes
    return out


def long_tail(y: np.ndarray, ratio: float, seed: int = 0) -> np.ndarray:
    """Return the rows (booleans) of a long tail: class c of C keeps n_max * ratio^(c / (C - 1)), at least two.

    Classes are ranked by a seeded shuffle, not by name; a class smaller than that keeps all. Levels are nested.
    """
    rng, sizes = np.random.default_rng(seed), np.bincount(y)
    place = rng.permutation(len(sizes))
    kept = np.zeros(len(y), bool)
    for c in range(len(sizes)):
        wanted = sizes.max() * ratio ** (place[c] / max(1, len(sizes) - 1))
        kept[rng.permutation(np.flatnonzero(y == c))[: max(2, round(wanted))]] = True
    return kept
