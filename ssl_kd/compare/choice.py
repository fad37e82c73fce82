"""Which learning rate an objective gets: the one whose trial did best, by a score that no judged task has a part in."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ssl_kd.compare.shelf import Record


def score_of(trial: Record) -> float:
    """A trial's score; a refused or failed one is behind all others."""
    score = trial.get("score")
    return -math.inf if "refused" in trial or score is None else float(score)


def best_rate(trials: Mapping[float, Record]) -> float:
    """The rate with the best score; of equal ones, and where all failed, the first."""
    return max(trials, key=lambda lr: score_of(trials[lr]))
