"""Few labels: draws are balanced, repeatable and the same for every encoder; more labels help."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.few_shot import FewShot, FewShotProtocol, centroids, draw
from ssl_kd.eval.metrics import wilson


def banks(n=600, q=300, width=10, classes=5, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    y = rng.integers(0, classes, n + q)
    x = (centres[y] + spread * rng.normal(size=(n + q, width))).astype(np.float32)
    return FeatureBank(x[:n], y[:n]), FeatureBank(x[n:], y[n:])


def test_draws_are_balanced_repeatable_and_different():
    y = np.array([0] * 50 + [1] * 20 + [2])
    rows = draw(y, 5, seed=1)
    np.testing.assert_array_equal(np.bincount(y[rows]), [5, 5, 1])
    np.testing.assert_array_equal(rows, draw(y, 5, seed=1))
    assert not np.array_equal(rows, draw(y, 5, seed=2))
    np.testing.assert_array_equal(np.bincount(y[draw(y, 0.1, 0, least=2)]), [5, 2, 1])


def test_centroids_agree_with_sklearn():
    from sklearn.neighbors import KNeighborsClassifier

    train, test = banks()
    unit = [b.features / np.linalg.norm(b.features, axis=1, keepdims=True) for b in (train, test)]
    means = np.stack([unit[0][train.labels == c].mean(0) for c in range(5)])
    peer = KNeighborsClassifier(1, metric="cosine").fit(means, np.arange(5))
    np.testing.assert_array_equal(centroids(train, test), peer.predict(unit[1]))


def test_more_labels_help_and_all_of_them_equal_the_whole():
    train, test = banks()
    scores = FewShot("shots")(train, test)
    assert scores.value("1-shot") < scores.value("5-shot") < scores.value("10-shot")
    everything = FewShot(FewShotProtocol("all", (10_000,), 2, "centroid", 0))(train, test)
    assert everything.value("10000-shot") == (centroids(train, test) == test.labels).mean()
    assert "give all they have" in everything.notes[0]


def test_two_encoders_see_the_same_draws():
    train, test = banks()
    turned = [FeatureBank(b.features[:, ::-1] * 3, b.labels) for b in (train, test)]
    np.testing.assert_array_equal(FewShot()(train, test).each["5-shot", None], FewShot()(*turned).each["5-shot", None])


def test_shares_of_labels_use_the_probe():
    train, test = banks()
    scores = FewShot(FewShotProtocol("shares", (0.02, 0.3), 3, "quick-lbfgs", 1))(train, test)
    assert scores.value("2 % of labels") < scores.value("30 % of labels")
    assert scores.headline_metric == "30 % of labels"
    row = scores.score("30 % of labels")
    assert row.low < row.value < row.high


def test_intervals_grow_with_the_spread_of_draws():
    train, test = banks()
    one, ten = (FewShot()(train, test).score(metric) for metric in ("1-shot", "10-shot"))
    assert one.high - one.low > ten.high - ten.low


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean shots"):
        FewShot("shot")(*banks())


def test_a_share_that_is_raised_to_two_per_class_says_what_was_used():
    train, test = banks()
    sizes = np.bincount(train.labels)
    scores = FewShot(FewShotProtocol("shares", (1e-3, 0.3), 1, "quick-lbfgs", 1))(train, test)
    assert len(scores.notes) == 1
    assert scores.notes[0].startswith("0.1 % of labels: that is fewer than 2 rows in 5 of 5 classes")
    assert f"10 of {sizes.sum()} labels" in scores.notes[0]


def test_every_row_right_leaves_wilsons_doubt():
    x = np.eye(3, dtype=np.float32).repeat(4, 0)
    bank = FeatureBank(x, np.arange(3).repeat(4))
    row = FewShot("shots")(bank, bank).score("2-shot")
    assert (row.value, row.low, row.high) == (1.0, *wilson(12, 12))
