"""One cell of the table, and what it keeps of another encoder's."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..metrics import (
    NO_SHARES,
    Scores,
    Share,
    share_kept,
    share_kept_per_class,
    share_of_auroc,
    share_of_map11,
    share_of_means,
)


@dataclass(frozen=True)
class Cell:
    """One encoder on one task under one evaluator."""

    task: str
    encoder: str
    metric: str  # the one that tables show: the evaluator's, or else the task's own
    scores: Scores
    parameters: int | None  # None for features of one's own, whose network nobody showed
    width: int
    images_per_second: float | None
    programs: str = ""  # the versions that made it

    @property
    def evaluator(self) -> str:
        """Kind and protocol, as the configuration names them."""
        return f"{self.scores.evaluator}/{self.scores.protocol}"


def has_share(evaluator: str, metric: str) -> bool:
    """Whether a share of another's figure says something: of accuracies, mAP and agreement.

    Not of errors, nor of figures whose chance level is not near 0 (AUROC) or that may be below 0 (CKA, rank correlation),
    nor of stability, which is about an encoder's own neighbours: a random network keeps more of them than a good one.
    """
    return metric.split()[0] not in NO_SHARES and evaluator != "stability"


def share_of(cell: Cell, peer: Cell, metric: str, k: int | None) -> dict[str, float | None] | None:
    """Return the share kept of the reference's figure; the interval is paired where the guesses can be compared.

    Where a share says nothing (`has_share`) it is None, and only p is told; None for all where there is nothing to compare.
    """
    mine, theirs = cell.scores, peer.scores
    if not any((row.metric, row.k) == (metric, k) for row in theirs.rows):
        return None
    share = paired(mine, theirs, metric, k)
    if not has_share(mine.evaluator, metric):
        return {"share_kept": None, "share_low": None, "share_high": None, "p": None if share is None else share.p}
    if share is None:
        base = theirs.value(metric, k)
        share = Share(mine.value(metric, k) / base if base else math.nan, math.nan, math.nan, math.nan)
    return {"share_kept": share.value, "share_low": share.low, "share_high": share.high, "p": share.p}


def paired(mine: Scores, theirs: Scores, metric: str, k: int | None) -> Share | None:
    """Compare two encoders' figures on the same rows; None where what each row contributed was not kept."""
    each, base = mine.each.get((metric, k)), theirs.each.get((metric, k))
    if each is not None and base is not None and each.shape == base.shape:
        if metric == "auroc":
            return share_of_auroc(each, base, mine.labels == 0)
        return share_of_map11(mine.labels, each, base) if metric == "map11" else share_of_means(each, base)
    if k not in mine.predicted or not np.array_equal(mine.labels, theirs.labels):
        return None
    right, reference = mine.predicted[k] == mine.labels, theirs.predicted[k] == theirs.labels
    if metric == "mean_per_class":
        return share_kept_per_class(mine.labels, right, reference)
    return share_kept(right, reference) if metric == "top1" else None
