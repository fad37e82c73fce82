"""Reliability of a frozen representation: is a linear probe as sure as it should be? (Strangers: eval/evaluators/ood.py.)

Calibration()(train, test)                     # ECE, NLL, Brier, and ECE after temperature scaling
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..banks import FeatureBank
from ..metrics import DRAWS, Score, Scores, mean_score
from .linear_probe import LinearProbe, Protocol, linear_protocol

BINS = 15
FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """Evaluator: expected calibration error (15 bins), negative log-likelihood and Brier score of a probe's softmax.

    The scaled ones divide the logits by one temperature, fitted on the other folds of a 5-fold split of the test rows
    (the protocol of ssl-transfer). Lower is better for all but accuracy. `protocol` is a linear one, or its name.
    """

    protocol: str | Protocol = "simclr-lbfgs"
    seed: int = 0
    device: str = "cpu"

    name = "calibration"

    def __call__(self, train: FeatureBank, test: FeatureBank) -> Scores:
        """Return ece, nll, brier, their scaled versions and top1; `details` hold the temperatures and the bins."""
        scores, logits = LinearProbe(self.protocol, seed=self.seed, device=self.device).with_logits(train, test)
        labels = scores.labels
        scaled, temperatures = scale(logits, labels, self.seed)
        rows: list[Score] = []
        each: dict[tuple[str, int | None], np.ndarray] = {}
        for suffix, values in (("", logits), (" scaled", scaled)):
            log_probability = log_softmax(values)
            nll = -log_probability[np.arange(len(labels)), labels]
            brier = ((np.exp(log_probability) - (np.arange(values.shape[1]) == labels[:, None])) ** 2).sum(1)
            rows.append(_ece_score(f"ece{suffix}", log_probability, labels, self.seed))
            for name, parts in ((f"nll{suffix}", nll), (f"brier{suffix}", brier)):
                each[name, None] = parts
                rows.append(mean_score(name, parts))
        return Scores(
            "calibration",
            linear_protocol(self.protocol).name,
            (*rows, scores.score("top1")),
            scores.classes,
            labels,
            {None: scores.predicted[None]},
            notes=scores.notes,
            details={"temperatures": temperatures, "bins": reliability(*confidence(log_softmax(logits), labels))},
            headline_metric="ece",
            each=each,
        )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return log-probabilities (N, C) in double precision."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def confidence(log_probability: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how sure each row's guess is (N,), and whether it is right (N,)."""
    return np.exp(log_probability.max(1)), log_probability.argmax(1) == labels


def reliability(sure: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[dict[str, float]]:
    """Return per bin of equal width in confidence: rows, mean confidence, share guessed right; empty bins left out."""
    which = np.minimum((sure * bins).astype(int), bins - 1)
    return [
        {"rows": int(own.sum()), "confidence": float(sure[own].mean()), "accuracy": float(right[own].mean())}
        for own in (which == b for b in range(bins))
        if own.any()
    ]


def ece(sure: np.ndarray, right: np.ndarray, bins: int = BINS) -> float:
    """Return the expected calibration error: mean gap between confidence and accuracy over the bins, by rows.

    Source: Naeini et al. 2015; Guo et al. 2017.
    """
    parts = reliability(sure, right, bins)
    return sum(part["rows"] * abs(part["confidence"] - part["accuracy"]) for part in parts) / len(sure)


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature from 0.01 to 100 that gives the smallest mean negative log-likelihood."""
    from scipy.optimize import minimize_scalar

    rows = np.arange(len(labels))

    def loss(power: float) -> float:
        return float(-log_softmax(logits / 10**power)[rows, labels].mean())

    return float(10 ** minimize_scalar(loss, bounds=(-2, 2), method="bounded", options={"xatol": 1e-4}).x)


def scale(logits: np.ndarray, labels: np.ndarray, seed: int = 0) -> tuple[np.ndarray, list[float]]:
    """Return logits divided by a temperature that was fitted on the other folds, and those temperatures."""
    if len(labels) < 2:
        return logits, [1.0]
    fold = np.random.default_rng(seed).permutation(len(labels)) % min(FOLDS, len(labels))
    scaled, found = np.empty(logits.shape, np.float64), []
    for number in range(fold.max() + 1):
        own = fold == number
        found.append(temperature(logits[~own], labels[~own]))
        scaled[own] = logits[own] / found[-1]
    return scaled, found


def _ece_score(metric: str, log_probability: np.ndarray, labels: np.ndarray, seed: int) -> Score:
    """Return the calibration error with a bootstrap interval; a bootstrap's own bias is taken out."""
    sure, right = confidence(log_probability, labels)
    value, n, rng = ece(sure, right), len(labels), np.random.default_rng(seed)
    drawn = [ece(sure[rows], right[rows]) for rows in (rng.integers(0, n, n) for _ in range(DRAWS // 10))]
    bias = float(np.mean(drawn)) - value  # fewer distinct rows per bin make a larger error
    low, high = np.quantile(drawn, [0.025, 0.975]) - bias
    return Score(metric, value, min(value, max(0.0, float(low))), max(value, min(1.0, float(high))), n)
