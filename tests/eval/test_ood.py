"""Strangers are told apart as scikit-learn's AUROC of the k-th neighbour says."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.ood import OutOfDistribution


def bank(n, shift, seed, width=8):
    return FeatureBank((np.random.default_rng(seed).normal(size=(n, width)) + shift).astype(np.float32))


def test_auroc_agrees_with_sklearn_and_knows_its_ends():
    from sklearn.metrics import roc_auc_score

    train, inside, outside = bank(200, 1.0, 0), bank(150, 1.0, 1), bank(90, 0.3, 2)
    scores = OutOfDistribution("knn10")(train, inside, outside)
    unit = [b.features / np.linalg.norm(b.features, axis=1, keepdims=True) for b in (train, inside, outside)]
    tenth = [np.sort(u @ unit[0].T, 1)[:, -10] for u in unit[1:]]
    row = scores.score("auroc")
    assert row.value == pytest.approx(roc_auc_score([1] * 150 + [0] * 90, np.concatenate(tenth)), abs=1e-6)
    assert (row.n, row.k) == (240, 10)
    assert row.low < row.value < row.high
    far = OutOfDistribution("knn1")(train, train, FeatureBank(-train.features)).score("auroc")
    assert far.value == 1
    assert far.low < far.high == 1


def test_k_is_clamped_and_bad_banks_are_refused():
    train = bank(20, 1.0, 0)
    assert "clamped to the 20 rows" in OutOfDistribution()(train, train, train).notes[0]
    assert OutOfDistribution()(train, train, train).value("auroc") == 0.5
    with pytest.raises(UserError, match="outside: 3 rows, 5 wide"):
        OutOfDistribution()(train, train, bank(3, 0, 0, 5))
    with pytest.raises(UserError, match="Did you mean knn50"):
        OutOfDistribution("knn500")(train, train, train)
