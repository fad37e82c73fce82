"""Several classes per image: one-vs-rest equals scikit-learn's, and unjudged rows take no part."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.knn import KNN
from ssl_kd.eval.evaluators.linear_probe import LinearProtocol
from ssl_kd.eval.evaluators.multilabel import MultiLabelProbe
from ssl_kd.eval.metrics import mean_area


def banks(seed=0, classes=3, width=6):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(width, classes))

    def bank(n):
        x = rng.normal(size=(n, width)).astype(np.float32)
        y = np.where(x @ weights + rng.normal(size=(n, classes)) > 0.7, 1, -1).astype(np.int8)
        y[rng.random(y.shape) < 0.05] = 0
        return FeatureBank(x, y)

    return bank(240), bank(160)


def test_one_vs_rest_agrees_with_sklearn():
    from sklearn.linear_model import LogisticRegression

    train, test = banks()
    for strength in (0.1, 30.0):
        protocol = LinearProtocol("one", (strength,), 0.2, 1e-7, 1e-7)
        scores = MultiLabelProbe(protocol)(train, test)
        expected = np.zeros(test.labels.shape)
        for c in range(3):
            rows = train.labels[:, c] != 0
            model = LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-9)
            model.fit(train.features[rows].astype(float), train.labels[rows, c] > 0)
            expected[:, c] = model.decision_function(test.features)
        np.testing.assert_allclose(scores.each["map11", None], expected, atol=5e-3, rtol=5e-3)
        assert scores.value("map11") == pytest.approx(mean_area(test.labels, expected), abs=0.01)


def test_the_strength_is_chosen_on_the_sets_own_validation_split():
    train, test = banks()
    held = np.arange(len(train)) >= 200
    scores = MultiLabelProbe("quick-lbfgs")(FeatureBank(train.features, train.labels, held=held), test)
    sweep = {row["strength"]: row["map11"] for row in scores.details["sweep"]}
    assert sweep[scores.details["strength"]] == max(sweep.values())
    # labels of the validation split decide the choice, labels elsewhere do not enter it
    upside_down = train.labels.copy()
    upside_down[held] *= -1
    other = MultiLabelProbe("quick-lbfgs")(FeatureBank(train.features, upside_down, held=held), test)
    assert max(row["map11"] for row in other.details["sweep"]) < max(sweep.values())


def test_unjudged_rows_of_test_change_nothing():
    train, test = banks()
    scores = MultiLabelProbe("quick-lbfgs")(train, test)
    noise = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)
    longer = FeatureBank(
        np.concatenate([test.features, noise]), np.concatenate([test.labels, np.zeros((40, 3), np.int8)])
    )
    assert MultiLabelProbe("quick-lbfgs")(train, longer).value("map11") == pytest.approx(scores.value("map11"))
    row = scores.score("map11")
    assert row.low < row.value < row.high
    assert np.mean(scores.details["average precision"]) == pytest.approx(row.value)


def test_bad_input_gives_one_line():
    train, test = banks()
    with pytest.raises(UserError, match="expected one of simclr-lbfgs"):
        MultiLabelProbe("dino-linear")(train, test)
    labels = train.labels.copy()
    labels[:, 1] = -1
    with pytest.raises(UserError, match="class number 1 needs images"):
        MultiLabelProbe("quick-lbfgs")(FeatureBank(train.features, labels), test)
    with pytest.raises(UserError, match="labels"):
        MultiLabelProbe("quick-lbfgs")(FeatureBank(train.features, train.labels[:, 0]), test)
    with pytest.raises(UserError, match=r"several classes per row; use ssl_kd\.eval\.evaluators\.multilabel"):
        KNN("dino")(train, test)


def test_a_class_that_no_test_row_shows_is_left_out_of_the_mean():
    train, test = banks()
    labels = test.labels.copy()
    labels[:, 1] = 0
    scores = MultiLabelProbe("quick-lbfgs")(train, FeatureBank(test.features, labels))
    areas = scores.details["average precision"]
    assert areas[1] is None
    assert scores.value("map11") == pytest.approx((areas[0] + areas[2]) / 2)
    assert "1 classes have no judged test row that shows them" in scores.notes[-1]
