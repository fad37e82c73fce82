"""What holds for every evaluator and every protocol of it: one walk over the whole table."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators import few_shot, knn, linear_probe, ood, retrieval, robustness
from ssl_kd.eval.evaluators.registry import KINDS, Given

KNOWN = {
    "knn": knn.PROTOCOLS,
    "linear": linear_probe.PROTOCOLS,
    "fewshot": few_shot.PROTOCOLS,
    "robustness": robustness.PROTOCOLS,
    "calibration": linear_probe.PROTOCOLS,
    "retrieval": retrieval.PROTOCOLS,
    "asymmetric": retrieval.PROTOCOLS,
    "agreement": ("neighbours",),
    "cka": ("linear",),
    "stability": ("neighbours",),
    "ood": ood.PROTOCOLS,
}
EVERY = [(kind, protocol) for kind in KINDS for protocol in KNOWN[kind]]
LONG = (
    ("linear", "dinov2-logreg"),
    ("calibration", "dinov2-logreg"),
    ("fewshot", "shares"),
    ("robustness", "long-tail"),
)
walk = pytest.mark.parametrize(
    ("kind", "protocol"),
    [pytest.param(*one, marks=pytest.mark.slow if one in LONG else ()) for one in EVERY],
    ids=lambda part: part,
)


def banks(apart=1.0, n=240, q=160, width=48, classes=4, seed=0):
    """Return train and test of overlapping blobs, as floats a network could give."""
    rng = np.random.default_rng(seed)
    centres = apart * rng.normal(size=(classes, width)) / 4
    y = np.arange(n + q) % classes
    x = (centres[y] + rng.normal(size=(n + q, width))).astype(np.float32)
    return FeatureBank(x[:n], y[:n]), FeatureBank(x[n:], y[n:])


def judged(kind, protocol, train, test):
    """Return what an evaluator says about a student; its teacher, or its strangers, are other features of the same."""
    row = KINDS[kind]
    evaluator = row.make(row.find(protocol), Given("top1", 0, "cpu", True, None))
    if kind == "ood":
        return evaluator(train, test, FeatureBank(test.features[::-1] * 1.5 + 0.2))
    if kind == "stability":
        return evaluator(train, test, FeatureBank(test.features + 0.2))
    if row.paired:
        turn = np.linalg.qr(np.random.default_rng(5).normal(size=(train.width, 32)))[0].astype(np.float32)
        return evaluator(train, test, *(FeatureBank(bank.features @ turn, bank.labels) for bank in (train, test)))
    return evaluator(train, test)


def test_the_walk_misses_no_evaluator():
    assert set(KNOWN) == set(KINDS)


@walk
def test_threads_change_no_figure(kind, protocol, threads):
    given = banks()
    alone = judged(kind, protocol, *given)
    with threads(2):
        together = judged(kind, protocol, *given)
    assert together.rows == alone.rows
    assert together.notes == alone.notes


@walk
def test_the_order_of_test_rows_changes_no_figure(kind, protocol):
    train, test = banks()
    scores = judged(kind, protocol, train, test)
    turned = judged(kind, protocol, train, test.rows(np.random.default_rng(3).permutation(len(test))))
    for one, other in zip(scores.rows, turned.rows, strict=True):
        if not one.metric.endswith(" scaled"):  # a temperature is found on the other folds, which rows fill in turn
            assert other.value == pytest.approx(one.value, abs=1e-6), one.metric


@pytest.mark.parametrize(
    ("kind", "protocol"), [it for it in EVERY if it[0] in ("knn", "retrieval", "agreement", "cka", "stability", "ood")]
)
def test_the_order_of_train_rows_changes_no_figure_where_nothing_is_drawn(kind, protocol):
    train, test = banks()
    scores = judged(kind, protocol, train, test)
    turned = judged(kind, protocol, train.rows(np.random.default_rng(3).permutation(len(train))), test)
    for one, other in zip(scores.rows, turned.rows, strict=True):
        assert other.value == pytest.approx(one.value, abs=1e-9), one.metric


@pytest.mark.parametrize(("kind", "protocol"), [it for it in EVERY if KINDS[it[0]].labels])
def test_blobs_far_apart_give_the_best_figure_and_shuffled_labels_chance(kind, protocol):
    sure = judged(kind, protocol, *banks(apart=40))
    if kind == "calibration":
        assert sure.value(sure.headline_metric) < 0.01
        return
    headline = sure.headline_metric or "top1"
    assert sure.value(headline) == pytest.approx(1)
    rng = np.random.default_rng(3)
    lost = judged(kind, protocol, *(FeatureBank(bank.features, rng.permutation(bank.labels)) for bank in banks()))
    assert lost.value(headline) == pytest.approx(1 / 4, abs=0.1)  # three standard errors of 160 guesses
