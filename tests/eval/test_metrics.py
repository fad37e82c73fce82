"""Figures equal scikit-learn's, and their intervals cover as often as they promise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from ssl_kd.errors import UserError
from ssl_kd.eval.metrics import (
    accuracy,
    auroc,
    eleven_point,
    figures,
    map11,
    mean_area,
    mean_per_class,
    mean_score,
    share_kept,
    share_kept_per_class,
    share_of_auroc,
    share_of_map11,
    share_of_means,
    top_five,
    wilson,
)


def guesses(n=400, classes=6, seed=0, right=0.7):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    return labels, np.where(rng.random(n) < right, labels, rng.integers(0, classes, n))


def test_figures_agree_with_sklearn():
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score

    labels, predicted = guesses()
    assert accuracy(labels, predicted).value == pytest.approx(accuracy_score(labels, predicted))
    assert mean_per_class(labels, predicted).value == pytest.approx(balanced_accuracy_score(labels, predicted))
    votes = np.random.default_rng(1).random((400, 6))
    ranked = np.argsort(-votes, axis=1)
    assert top_five(labels, ranked).value == pytest.approx(top_k_accuracy_score(labels, votes, k=5))


def test_wilson_agrees_with_scipy_and_stays_within_zero_and_one():
    from scipy.stats import binomtest

    for correct, n in [(0, 10), (10, 10), (3, 10), (700, 1000), (1, 1)]:
        expected = binomtest(correct, n).proportion_ci(method="wilson")
        assert wilson(correct, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= wilson(correct, n)[0] <= correct / n <= wilson(correct, n)[1] <= 1


def test_mean_per_class_interval_is_wilsons_for_one_class():
    score = mean_per_class(np.zeros(50, int), np.array([0] * 40 + [1] * 10))
    assert (score.low, score.high) == pytest.approx(wilson(40, 50))


def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    truth, sizes = np.array([0.9, 0.5, 0.7]), np.array([20, 60, 30])
    labels = np.repeat(np.arange(3), sizes)
    covered = {"top1": 0, "mean_per_class": 0}
    for _ in range(600):
        predicted = np.where(rng.random(len(labels)) < truth[labels], labels, 3)
        for score, centre in (
            (accuracy(labels, predicted), (truth * sizes).sum() / sizes.sum()),
            (mean_per_class(labels, predicted), truth.mean()),
        ):
            covered[score.metric] += score.low <= centre <= score.high
    for hits in covered.values():
        assert 0.93 <= hits / 600 <= 0.99


def test_top_five_only_where_it_says_something():
    labels, predicted = guesses(classes=4)
    assert [row.metric for row in figures(labels, predicted[:, None], 4)] == ["top1", "mean_per_class"]


def test_share_kept_is_paired():
    rng = np.random.default_rng(0)
    teacher = rng.random(2000) < 0.8
    student = teacher & (rng.random(2000) < 0.95)  # wrong wherever the teacher is, and a little more often
    share = share_kept(student, teacher)
    assert share.value == pytest.approx(student.mean() / teacher.mean())
    assert share.low < share.value < share.high
    # an unpaired interval would be about three times as wide
    assert share.high - share.low < 0.03
    assert share.p < 1e-6


def test_share_kept_agrees_with_a_bootstrap_of_rows():
    rng = np.random.default_rng(0)
    teacher, student = rng.random(300) < 0.8, rng.random(300) < 0.7
    picks = rng.integers(0, 300, size=(4000, 300))
    expected = np.quantile(student[picks].sum(1) / teacher[picks].sum(1), [0.025, 0.975])
    share = share_kept(student, teacher)
    assert (share.low, share.high) == pytest.approx(tuple(expected), abs=0.02)


def test_an_encoder_keeps_all_of_itself():
    right = np.random.default_rng(0).random(100) < 0.6
    labels = np.arange(100) % 4
    for share in (share_kept(right, right), share_kept_per_class(labels, right, right)):
        assert (share.value, share.low, share.high, share.p) == (1.0, 1.0, 1.0, 1.0)


def test_share_of_nothing_is_not_a_number():
    nothing, something = np.zeros(10, bool), np.ones(10, bool)
    assert math.isnan(share_kept(something, nothing).value)
    assert math.isnan(share_kept_per_class(np.arange(10) % 2, something, nothing).value)


def test_share_kept_per_class_weighs_classes_alike():
    labels = np.array([0] * 90 + [1] * 10)
    teacher, student = np.ones(100, bool), np.array([True] * 90 + [False] * 10)
    assert share_kept(student, teacher).value == pytest.approx(0.9)
    assert share_kept_per_class(labels, student, teacher).value == pytest.approx(0.5)


def test_means_of_anything_have_intervals_and_paired_tests():
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    theirs = rng.beta(4, 2, 500)
    ours = (theirs - 0.05 + 0.02 * rng.normal(size=500)).clip(0, 1)
    score = mean_score("map", theirs)
    error = theirs.std() / np.sqrt(500)
    assert (score.low, score.high) == pytest.approx((score.value - 1.96 * error, score.value + 1.96 * error), abs=0.004)
    share = share_of_means(ours, theirs)
    assert share.low < share.value < share.high < 1
    assert share.p == pytest.approx(ttest_rel(ours, theirs).pvalue)
    same = share_of_means(theirs, theirs)
    assert (same.value, same.low, same.high, same.p) == (1.0, 1.0, 1.0, 1.0)
    ones = mean_score("recall", np.array([0.0, 1.0, 1.0]), 1)
    assert (ones.low, ones.high) == wilson(2, 3)


def voc_ap(relevant, scores):
    """VOC 2007's VOCevalcls, transcribed from its description: recall and precision down the list, best of 11 recalls."""
    ranked = [r for _, r in sorted(zip(scores, relevant, strict=True), key=lambda pair: -pair[0]) if r != 0]
    precision, recall, hits = [], [], 0
    for place, r in enumerate(ranked, 1):
        hits += r > 0
        precision.append(hits / place)
        recall.append(hits / sum(r > 0 for r in ranked))
    return (
        sum(
            max((p for p, r in zip(precision, recall, strict=True) if r >= t / 10 - 1e-12), default=0)
            for t in range(11)
        )
        / 11
    )


def test_eleven_point_precision_agrees_with_the_official_arithmetic():
    rng = np.random.default_rng(0)
    for n, positives in ((1, 1), (7, 1), (10, 10), (40, 20), (333, 30)):
        relevant = np.where(rng.permutation(n) < positives, 1, -1)
        relevant[1:][rng.random(n - 1) < 0.1] = 0
        if not (relevant > 0).any():
            relevant[0] = 1
        scores = rng.normal(size=n)
        assert eleven_point(relevant, scores)[0] == pytest.approx(voc_ap(relevant, scores))


def test_eleven_point_precision_knows_weights_ties_and_nothing():
    relevant, scores = np.array([1, -1, 1, -1, -1]), np.array([0.9, 0.8, 0.8, 0.1, 0.0])
    assert eleven_point(relevant, scores) == eleven_point(relevant[::-1], scores[::-1])
    assert eleven_point(relevant, np.ones(5)) == pytest.approx(0.4)  # one long tie: precision is the share of positives
    assert np.isnan(eleven_point(np.array([-1, -1]), np.array([1.0, 2.0]))[0])
    counts = np.array([[2, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    repeated = np.repeat(np.arange(5), counts[0])
    drawn = eleven_point(relevant, scores, counts)
    assert drawn == pytest.approx(
        [eleven_point(relevant[repeated], scores[repeated])[0], eleven_point(relevant, scores)[0]]
    )


def test_map_intervals_and_shares_are_paired():
    rng = np.random.default_rng(0)
    labels = np.where(rng.random((400, 4)) < 0.3, 1, -1)
    good = labels + rng.normal(size=labels.shape)
    worse = good + 0.7 * rng.normal(size=labels.shape)
    score = map11(labels, good)
    assert score.low < score.value < score.high
    share = share_of_map11(labels, worse, good)
    assert share.value == pytest.approx(mean_area(labels, worse) / mean_area(labels, good))
    assert share.low < share.value < share.high < 1
    assert share.p < 0.02
    same = share_of_map11(labels, good, good)
    assert (same.value, same.low, same.high, same.p) == (1, 1, 1, 1)


def test_auroc_agrees_with_sklearn_and_its_interval_covers():
    from scipy.stats import norm
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    inside, outside = rng.integers(0, 9, 60), rng.integers(-4, 6, 40)  # with ties
    score, each = auroc(inside, outside)
    assert score.value == pytest.approx(roc_auc_score([1] * 60 + [0] * 40, np.concatenate([inside, outside])))
    assert each[:60].mean() == pytest.approx(each[60:].mean())
    truth, hits = norm.cdf(1 / math.sqrt(2)), 0
    for _ in range(400):
        score, _ = auroc(rng.normal(1, 1, 50), rng.normal(0, 1, 70))
        hits += score.low <= truth <= score.high
    assert 0.92 <= hits / 400 <= 0.98
    apart, _ = auroc(np.arange(5) + 9.0, np.arange(4.0))
    assert (apart.value, apart.high) == (1, 1)
    assert 0.3 < apart.low < 1


def test_two_auroc_are_compared_on_the_same_rows():
    rng = np.random.default_rng(0)
    base = np.concatenate([rng.normal(1, 1, 300), rng.normal(0, 1, 200)])
    inside = np.arange(500) < 300

    def placed(scores):
        return auroc(scores[inside], scores[~inside])[1]

    worse = base + 2 * rng.normal(size=500)
    theirs, mine = placed(base), placed(worse)
    share = share_of_auroc(mine, theirs, inside)
    assert share.low < share.value < share.high < 1
    # rows drawn anew, both encoders at once, say the same
    drawn = []
    for _ in range(300):
        a, b = rng.choice(300, 300), 300 + rng.choice(200, 200)
        drawn.append([auroc(scores[a], scores[b])[0].value for scores in (worse, base)])
    spread = np.log(np.divide(*np.array(drawn).T)).std()
    assert np.log(share.high / share.low) / (2 * 1.96) == pytest.approx(spread, rel=0.15)
    same = share_of_auroc(theirs, theirs, inside)
    assert (same.value, same.low, same.high, same.p) == (1, 1, 1, 1)
    rejected = 0
    for _ in range(300):  # no difference but chance: DeLong's test errs as often as it says
        truth = np.concatenate([rng.normal(1, 1, 60), rng.normal(0, 1, 60)])
        half = np.arange(120) < 60
        a, b = (truth + rng.normal(size=120) for _ in range(2))
        a, b = (auroc(x[half], x[~half])[1] for x in (a, b))
        rejected += share_of_auroc(a, b, half).p < 0.05
    assert 0.02 <= rejected / 300 <= 0.09


def test_eleven_point_precision_without_a_relevant_row_is_not_a_number():
    assert np.isnan(eleven_point(np.zeros(3), np.arange(3.0))).all()
    assert np.isnan(eleven_point(np.zeros(3), np.arange(3.0), np.ones((4, 3), int))).tolist() == [True] * 4
    labels = np.array([[1, 0], [-1, 0], [1, 0], [-1, 0]])
    scores = np.column_stack([[3.0, 2.0, 1.0, 0.0]] * 2)
    score = map11(labels, scores)
    assert score.value == eleven_point(labels[:, 0], scores[:, 0])[0]
    assert 0 <= score.low <= score.value <= score.high <= 1
    with pytest.raises(UserError, match="none of 2 classes is shown"):
        map11(np.minimum(labels, 0), scores)


@pytest.mark.parametrize("sizes", [[1] * 40, [2] * 20, [1] + [3] * 12])
def test_the_mean_per_class_and_its_share_cover_the_truth_with_few_rows_per_class(sizes):
    rng = np.random.default_rng(0)
    labels = np.arange(len(sizes)).repeat(sizes)
    mine, theirs = 0.6, 0.8
    covered = covered_mean = 0
    for i in range(150):
        draw = rng.random(len(labels))
        share = share_kept_per_class(labels, draw < mine, draw + 0.1 * rng.random(len(labels)) < theirs, 400, seed=i)
        covered += share.low <= mine / (theirs - 0.05) <= share.high
        score = mean_per_class(labels, np.where(draw < mine, labels, -1))
        covered_mean += score.low <= mine <= score.high
    assert covered / 150 > 0.89
    assert covered_mean / 150 > 0.89
