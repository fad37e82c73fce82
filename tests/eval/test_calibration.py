"""Calibration figures equal torchmetrics' and scikit-learn's; a temperature mends what a temperature broke."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.calibration import Calibration, confidence, ece, log_softmax, scale, temperature
from ssl_kd.eval.evaluators.linear_probe import LinearProbe


def logits(n=3000, classes=4, seed=0, sharpen=1.0):
    """Logits of a classifier that is right as often as it says, then sharpened."""
    rng = np.random.default_rng(seed)
    z = 2 * rng.normal(size=(n, classes))
    p = np.exp(log_softmax(z))
    labels = (p.cumsum(1) > rng.random((n, 1))).argmax(1)
    return (z * sharpen).astype(np.float32), labels


def banks(n=500, q=300, width=8, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    y = rng.integers(0, classes, n + q)
    x = (centres[y] + 1.5 * rng.normal(size=(n + q, width))).astype(np.float32)
    return FeatureBank(x[:n], y[:n]), FeatureBank(x[n:], y[n:])


def test_ece_agrees_with_torchmetrics():
    from torchmetrics.functional.classification import multiclass_calibration_error

    z, labels = logits(sharpen=3)
    expected = multiclass_calibration_error(torch.from_numpy(z).softmax(1), torch.from_numpy(labels), 4, n_bins=15)
    assert ece(*confidence(log_softmax(z), labels)) == pytest.approx(float(expected), abs=1e-4)


def test_a_calibrated_classifier_has_no_error_and_a_sharpened_one_has():
    z, labels = logits(n=20_000)
    assert ece(*confidence(log_softmax(z), labels)) < 0.02
    z, labels = logits(n=20_000, sharpen=4)
    assert ece(*confidence(log_softmax(z), labels)) > 0.1


def test_the_temperature_undoes_the_sharpening():
    z, labels = logits(n=20_000, sharpen=4)
    assert temperature(z, labels) == pytest.approx(4, rel=0.05)
    scaled, found = scale(z, labels)
    assert len(found) == 5
    assert ece(*confidence(log_softmax(scaled), labels)) < 0.02
    np.testing.assert_array_equal(scaled.argmax(1), z.argmax(1))


def test_figures_agree_with_sklearn():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    train, test = banks()
    scores = Calibration("quick-lbfgs")(train, test)
    strength = LinearProbe("quick-lbfgs")(train, test).details["strength"]
    model = LogisticRegression(C=1 / strength, max_iter=2000, tol=1e-8).fit(train.features.astype(float), train.labels)
    p = model.predict_proba(test.features)
    assert scores.value("nll") == pytest.approx(log_loss(test.labels, p), rel=1e-2)
    assert scores.value("brier") == pytest.approx(((p - np.eye(4)[test.labels]) ** 2).sum(1).mean(), rel=1e-2)
    assert scores.value("top1") == pytest.approx(model.score(test.features, test.labels), abs=0.01)
    for row in scores.rows:
        assert row.low <= row.value <= row.high
    assert sum(part["rows"] for part in scores.details["bins"]) == 300
