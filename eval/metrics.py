"""Figures and how sure they are: accuracy, mean per class, top-5, share kept, each with an interval.

Every interval here is at 95 % and speaks about the test images: how far the figure would move had other images of
the same kind been drawn. It does not cover the randomness of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ssl_kd.errors import UserError

Z95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
DRAWS = 2000  # of a bootstrap
METRICS = {
    "top1": "accuracy",
    "mean_per_class": "mean per class",
    "top5": "top-5 accuracy",
    "map": "mean average precision",
    "overlap": "neighbours in common",
    "cka": "CKA",
    "ece": "calibration error",
    "map11": "11-point mAP",
    "auroc": "AUROC",
}
ERRORS = ("ece", "nll", "brier")  # smaller is better: a share kept of them would read the wrong way
NO_SHARES = (*ERRORS, "auroc", "cka", "rank")  # no share of another encoder's is kept of these


@dataclass(frozen=True)
class Score:
    """One figure in [0, 1] with its 95 % interval; `k` is the number of neighbours, or None where there is none."""

    metric: str
    value: float
    low: float
    high: float
    n: int
    k: int | None = None


@dataclass(frozen=True)
class Scores:
    """What an evaluator answers: figures, what each test row contributed, and what a reader must know (`notes`).

    `labels` (Q,) and each of `predicted[k]` (Q,) hold class numbers that index `classes`. Figures that are means of
    something else than right guesses keep it in `each`, (Q,) under their metric and k. Tables show `headline_metric`
    (None: the task's own) at `headline_k`.
    """

    evaluator: str
    protocol: str
    rows: tuple[Score, ...]
    classes: np.ndarray
    labels: np.ndarray
    predicted: Mapping[int | None, np.ndarray]
    headline_k: int | None = None
    notes: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)
    headline_metric: str | None = None
    each: Mapping[tuple[str, int | None], np.ndarray] = field(default_factory=dict)

    def score(self, metric: str = "top1", k: int | None = None) -> Score:
        """Return the figure for a metric; without k, the one the protocol puts first."""
        wanted = self.headline_k if k is None else k
        for row in self.rows:
            if row.metric == metric and row.k == wanted:
                return row
        known = ", ".join(f"{row.metric}" + (f" k={row.k}" if row.k else "") for row in self.rows)
        raise KeyError(f"no {metric} with k={wanted} among: {known}")

    def value(self, metric: str = "top1", k: int | None = None) -> float:
        """Return the plain number of `score`."""
        return self.score(metric, k).value


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson's score interval for a share: right for small n and for shares of 0 and 1, where the usual one is not.

    Source: Wilson, JASA 1927.
    """
    share = correct / n
    centre = share + Z95**2 / (2 * n)
    spread = Z95 * math.sqrt(share * (1 - share) / n + Z95**2 / (4 * n * n))
    scale = 1 + Z95**2 / n
    # rounding may leave 1e-17 outside: the interval always holds the share itself
    return min(share, max(0.0, (centre - spread) / scale)), max(share, min(1.0, (centre + spread) / scale))


def accuracy(labels: np.ndarray, predicted: np.ndarray, k: int | None = None) -> Score:
    """Share of rows guessed right, with Wilson's interval."""
    correct = int((labels == predicted).sum())
    low, high = wilson(correct, len(labels))
    return Score("top1", correct / len(labels), low, high, len(labels), k)


def mean_per_class(labels: np.ndarray, predicted: np.ndarray, k: int | None = None) -> Score:
    """Mean over the classes present in `labels` of each one's accuracy, so that rare classes count as much.

    The interval joins Wilson's intervals of the classes by their squared arms, and is Wilson's own for one class. These
    are too short together for classes of a few rows, so that the whole is widened to what the rows' own variance asks for.
    Source: Zou & Donner, Statistics in Medicine 2008 (variance estimates recovery).
    """
    _, codes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(codes)
    shares = np.bincount(codes, weights=labels == predicted) / sizes
    arms = np.array([wilson(share * n, int(n)) for share, n in zip(shares, sizes, strict=True)])
    value = float(shares.mean())
    down = math.sqrt(((shares - arms[:, 0]) ** 2).sum()) / len(sizes)
    up = math.sqrt(((arms[:, 1] - shares) ** 2).sum()) / len(sizes)
    if len(sizes) > 1:
        wanted = 2 * Z95 * math.sqrt(_variances(sizes, shares).sum()) / len(sizes)
        down, up = (arm * max(1.0, wanted / (down + up)) for arm in (down, up))
    return Score("mean_per_class", value, max(0.0, value - down), min(1.0, value + up), len(labels), k)


def _variances(sizes: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Return an unbiased variance of each class's share; classes of one row have that of all of them together."""
    spread = shares * (1 - shares) / np.maximum(sizes - 1, 1)
    alone = sizes == 1
    pool, weights = (shares[alone], None) if alone.sum() > 1 else (shares, sizes)
    mean, n = np.average(pool, weights=weights), len(pool) if weights is None else sizes.sum()
    return np.asarray(np.where(alone, mean * (1 - mean) * n / (n - 1), spread))


def top_five(labels: np.ndarray, ranked: np.ndarray, k: int | None = None) -> Score:
    """Share of rows whose label is among the first five guesses; `ranked` is (Q, >= 5), -1 where no guess is left."""
    correct = int(_among_five(labels, ranked).sum())
    low, high = wilson(correct, len(labels))
    return Score("top5", correct / len(labels), low, high, len(labels), k)


def _among_five(labels: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    return np.asarray((ranked[:, :5] == labels[:, None]).any(1))


def mean_score(metric: str, values: np.ndarray, k: int | None = None, seed: int = 0) -> Score:
    """Return the mean of per-row values in [0, 1], with Wilson's interval for zeros and ones, else a bootstrap's."""
    n, value = len(values), float(values.mean())
    if np.isin(values, (0, 1)).all():
        return Score(metric, value, *wilson(float(values.sum()), n), n, k)
    low, high = np.quantile(_resampled(values[:, None], seed)[:, 0], [0.025, 0.975])
    return Score(metric, value, float(low), float(high), n, k)


def _resampled(values: np.ndarray, seed: int) -> np.ndarray:
    """Return the column means (DRAWS, V) of rows (Q, V) drawn again with replacement."""
    rng, n = np.random.default_rng(seed), len(values)
    some = max(1, 10**6 // n)  # draws at a time
    parts = [values[rng.integers(0, n, (min(some, DRAWS - start), n))].mean(1) for start in range(0, DRAWS, some)]
    return np.concatenate(parts)


def hits_of_figures(
    labels: np.ndarray, ranked: Mapping[int, np.ndarray] | Mapping[None, np.ndarray], classes: int
) -> dict[tuple[str, int | None], np.ndarray]:
    """Return what each row contributed to those of `figures` that the first guess alone does not tell: top-5's hits."""
    return {("top5", k): _among_five(labels, r) for k, r in ranked.items() if classes > 5 and r.shape[1] >= 5}


def figures(labels: np.ndarray, ranked: np.ndarray, classes: int, k: int | None = None) -> list[Score]:
    """Return every figure of one list of ranked guesses (Q, R); top-5 only where there are more than five classes."""
    rows = [accuracy(labels, ranked[:, 0], k), mean_per_class(labels, ranked[:, 0], k)]
    if classes > 5 and ranked.shape[1] >= 5:
        rows.append(top_five(labels, ranked, k))
    return rows


@dataclass(frozen=True)
class Share:
    """How much of a reference's figure is kept, with its interval, and whether the two differ at all (`p`)."""

    value: float
    low: float
    high: float
    p: float


def share_kept(right: np.ndarray, reference: np.ndarray, draws: int = 4000, seed: int = 0) -> Share:
    """Compare two encoders on the same test rows: ratio of accuracies, paired bootstrap interval, exact sign test.

    `right` and `reference` are booleans (Q,): was the row guessed right. Only four kinds of row exist (both right,
    one, the other, none), so a bootstrap draw is one multinomial draw, not Q draws. `p` is McNemar's exact p-value.
    """
    from scipy.stats import binomtest

    n = len(right)
    both, only, missed = (right & reference).sum(), (right & ~reference).sum(), (~right & reference).sum()
    counts = np.array([both, only, missed, n - both - only - missed])
    if both + missed == 0:
        return Share(math.nan, math.nan, math.nan, 1.0)
    drawn = np.random.default_rng(seed).multinomial(n, counts / n, size=draws)
    ratios = (drawn[:, 0] + drawn[:, 1]) / np.maximum(drawn[:, 0] + drawn[:, 2], 1)
    low, high = np.quantile(ratios, [0.025, 0.975])
    p = binomtest(int(only), int(only + missed)).pvalue if only + missed else 1.0
    return Share(float((both + only) / (both + missed)), float(low), float(high), float(p))


def share_of_means(values: np.ndarray, reference: np.ndarray, seed: int = 0) -> Share:
    """Do as `share_kept` for means of any per-row values (Q,); `p` is a paired t-test's."""
    from scipy.stats import t

    if not reference.any():
        return Share(math.nan, math.nan, math.nan, 1.0)
    if np.isin(values, (0, 1)).all() and np.isin(reference, (0, 1)).all():
        return share_kept(values.astype(bool), reference.astype(bool), seed=seed)
    drawn = _resampled(np.column_stack([values, reference]).astype(np.float64), seed)
    low, high = np.quantile(drawn[:, 0] / np.maximum(drawn[:, 1], 1e-12), [0.025, 0.975])
    apart, n = values.astype(np.float64) - reference, len(values)
    error = apart.std(ddof=1) / math.sqrt(n) if n > 1 else 0.0
    p = 2 * float(t.sf(abs(apart.mean()) / error, n - 1)) if error > 0 else float(not apart.any())
    return Share(float(values.mean() / reference.mean()), float(low), float(high), p)


def share_kept_per_class(
    labels: np.ndarray, right: np.ndarray, reference: np.ndarray, draws: int = 4000, seed: int = 0
) -> Share:
    """Do as `share_kept` for the mean per class: rows are drawn anew within each class.

    Draws of n rows spread too little by (n - 1) / n, and are widened by that. A class of one row tells nothing of its own
    spread: such rows are drawn from all of them together, or, where there is only one, from all rows.
    """
    from scipy.stats import binomtest

    rng = np.random.default_rng(seed)
    kinds = np.column_stack([right & reference, right & ~reference, ~right & reference, ~right & ~reference])
    _, codes = np.unique(labels, return_inverse=True)
    sizes = np.bincount(codes)
    shares = np.column_stack([np.bincount(codes, weights=kind) for kind in kinds.T]) / sizes[:, None]
    drawn = np.tile(shares.sum(0), (draws, 1))  # sums over the classes
    for n, share in zip(sizes[sizes > 1], shares[sizes > 1], strict=True):
        drawn += math.sqrt(n / (n - 1)) * (rng.multinomial(n, share, draws) / n - share)
    if (alone := int((sizes == 1).sum())) and len(labels) > 1:
        pool = kinds[sizes[codes] == 1] if alone > 1 else kinds
        share, n = pool.mean(0), len(pool)
        drawn += math.sqrt(n / (n - 1)) * (rng.multinomial(alone, share, draws) - alone * share)
    top, bottom = drawn[:, 0] + drawn[:, 1], drawn[:, 0] + drawn[:, 2]
    value, base = (float((shares[:, 0] + shares[:, only]).sum()) for only in (1, 2))
    if base == 0:
        return Share(math.nan, math.nan, math.nan, 1.0)
    low, high = np.quantile(np.maximum(top, 1e-12) / np.maximum(bottom, 1e-12), [0.025, 0.975])
    only, missed = int((right & ~reference).sum()), int((~right & reference).sum())
    p = binomtest(only, only + missed).pvalue if only + missed else 1.0
    return Share(value / base, float(low), float(high), float(p))


def eleven_point(relevant: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Return VOC 2007's average precision of one class: the mean over recalls 0, 0.1, ..., 1 of the best precision there on.

    `relevant` (Q,) is 1, -1 or 0 for rows that are not judged, `scores` (Q,) rank them; `weights` (R, Q) count each row
    that often, for R resamplings at once. The answer is (R,), or (1,) without weights; NaN where nothing is relevant.
    Rows of equal score are taken together, so that their order does not matter. Source: Everingham et al. 2010, and the
    devkit's VOCevalcls, which ranks equal scores by chance.
    """
    judged = relevant != 0
    if not (relevant > 0).any():
        return np.full(1 if weights is None else len(weights), np.nan)
    order = np.argsort(-scores[judged], kind="stable")
    hits, ranked = relevant[judged][order] > 0, scores[judged][order]
    counts = np.ones((1, len(hits))) if weights is None else weights[:, judged][:, order].astype(np.float64)
    ends = np.append(ranked[1:] != ranked[:-1], True) if len(ranked) else np.zeros(0, bool)
    found, seen = np.cumsum(counts * hits, 1)[:, ends], np.cumsum(counts, 1)[:, ends]
    total = (counts * hits).sum(1)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    onward = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]  # the best precision at this recall or a higher one
    areas = np.zeros(len(counts))
    for tenth in range(11):
        reached = found * 10 >= total[:, None] * tenth - 1e-9  # whole numbers: no threshold is missed by rounding
        areas += np.where(reached.any(1), np.take_along_axis(onward, reached.argmax(1)[:, None], 1)[:, 0], 0) / 11
    return np.where(total > 0, areas, np.nan)


def _map11_draws(labels: np.ndarray, scores: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Return the mean over classes (up to `draws`) of resampled rows' 11-point precision; equal for equal seeds."""
    weights = np.random.default_rng(seed).multinomial(len(labels), np.full(len(labels), 1 / len(labels)), draws)
    columns = np.array([eleven_point(labels[:, c], scores[:, c], weights) for c in range(labels.shape[1])])
    return np.asarray(np.nanmean(columns[:, np.isfinite(columns).any(0)], 0))  # a draw may miss all that is relevant


def mean_area(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean of `eleven_point` over the classes that have something relevant; labels and scores are (Q, C).

    Raises UserError where no class has.
    """
    areas = [eleven_point(labels[:, c], scores[:, c])[0] for c in range(labels.shape[1])]
    if not np.isfinite(areas).any():
        raise UserError(
            f"mAP: none of {labels.shape[1]} classes is shown by a judged row among {len(labels)}; "
            "expected labels of 1, -1 and 0 with at least one 1"
        )
    return float(np.nanmean(areas))


def map11(labels: np.ndarray, scores: np.ndarray, draws: int = DRAWS // 10, seed: int = 0) -> Score:
    """Return the mean over classes of VOC 2007's 11-point average precision, with a bootstrap's interval over rows.

    `labels` (Q, C) are 1, -1 or 0 (not judged), `scores` (Q, C) rank rows for each class.
    """
    value = mean_area(labels, scores)
    drawn = _map11_draws(labels, scores, draws, seed)
    low, high = np.quantile(drawn, [0.025, 0.975]) - (float(drawn.mean()) - value)  # the bootstrap's own bias taken out
    return Score("map11", value, max(0.0, min(value, float(low))), min(1.0, max(value, float(high))), len(labels))


def share_of_map11(labels: np.ndarray, scores: np.ndarray, reference: np.ndarray, seed: int = 0) -> Share:
    """Do as `share_kept` for the 11-point mAP of two encoders' scores (Q, C); `p` is the paired bootstrap's, two-sided."""
    draws = DRAWS // 10
    mine, theirs = mean_area(labels, scores), mean_area(labels, reference)
    if not theirs:
        return Share(math.nan, math.nan, math.nan, 1.0)
    drawn, base = (_map11_draws(labels, one, draws, seed) for one in (scores, reference))
    low, high = np.quantile(drawn / np.maximum(base, 1e-12), [0.025, 0.975])
    below, above = ((drawn <= base).sum(), (drawn >= base).sum())
    return Share(
        mine / theirs, float(low), float(high), float(min(1.0, 2 * (1 + min(below, above)) / (1 + len(drawn))))
    )


def placements(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Return for each of `high` (N,) the share of `low` below it, ties counting half: their mean is the AUROC."""
    ordered = np.sort(low)
    below, up_to = np.searchsorted(ordered, high, "left"), np.searchsorted(ordered, high, "right")
    return (below + up_to) / (2 * len(low))


def auroc(inside: np.ndarray, outside: np.ndarray, k: int | None = None) -> tuple[Score, np.ndarray]:
    """Return how well scores rank `inside` (N,) above `outside` (M,) rows, and each row's placement (N + M,).

    0.5 is chance. The interval is DeLong's on the logit scale, so that it stays within 0 and 1.
    Source: DeLong, DeLong & Clarke-Pearson, Biometrics 1988.
    """
    each = np.concatenate([placements(inside, outside), 1 - placements(outside, inside)])
    n, m = len(inside), len(outside)
    value = float(each[:n].mean())
    error = math.sqrt(_covariance(each[:n], each[:n]) / n + _covariance(each[n:], each[n:]) / m)
    if not 0 < value < 1 or not error:
        low, high = wilson(value * min(n, m), min(n, m))  # DeLong's variance is nothing at 0 and 1
    else:
        centre, arm = math.log(value / (1 - value)), Z95 * error / (value * (1 - value))
        low, high = (1 / (1 + math.exp(-edge)) for edge in (centre - arm, centre + arm))
    return Score("auroc", value, low, high, n + m, k), each


def share_of_auroc(mine: np.ndarray, theirs: np.ndarray, inside: np.ndarray) -> Share:
    """Compare two AUROCs on the same rows by their placements (N + M,); `inside` says which rows are of which kind.

    The share's interval is the delta method's on its logarithm, `p` DeLong's test of equal areas.
    """
    a, b = float(mine[inside].mean()), float(theirs[inside].mean())
    if not a or not b:
        return Share(math.nan, math.nan, math.nan, 1.0)

    def error(x: float, y: float) -> float:
        """Return the standard error of x times one area minus y times the other."""
        parts = (x * mine - y * theirs)[inside], (x * mine - y * theirs)[~inside]
        return math.sqrt(sum(_covariance(part, part) / len(part) for part in parts))

    arm, apart = Z95 * error(1 / a, 1 / b), error(1, 1)
    p = math.erfc(abs(a - b) / apart / math.sqrt(2)) if apart else float(a == b)
    return Share(a / b, a / b * math.exp(-arm), a / b * math.exp(arm), p)


def _covariance(x: np.ndarray, y: np.ndarray) -> float:
    return float(((x - x.mean()) * (y - y.mean())).sum() / (len(x) - 1)) if len(x) > 1 else 0.0
