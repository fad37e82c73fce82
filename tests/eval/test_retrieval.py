"""Retrieval's figures equal scikit-learn's and hand-counted ones; the bridge and the agreement need no labels."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_kd.errors import NonFinite, UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.knn import KNN
from ssl_kd.eval.evaluators.retrieval import Agreement, Retrieval, RetrievalProtocol, agreement, bridge


def banks(n=120, q=40, width=8, classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    y = rng.integers(0, classes, n + q)
    x = (centres[y] + spread * rng.normal(size=(n + q, width))).astype(np.float32)
    ids = [f"{i}.png" for i in range(n + q)]
    return FeatureBank(x[:n], y[:n], ids[:n]), FeatureBank(x[n:], y[n:], ids[n:])


def test_map_agrees_with_sklearn():
    from sklearn.metrics import average_precision_score

    train, test = banks()
    unit = [bank.features / np.linalg.norm(bank.features, axis=1, keepdims=True) for bank in (train, test)]
    similarity = unit[1] @ unit[0].T
    expected = [average_precision_score(train.labels == y, row) for y, row in zip(test.labels, similarity, strict=True)]
    scores = Retrieval()(train, test)
    np.testing.assert_allclose(scores.each["map", None], expected, atol=1e-6)
    assert scores.value("map") == pytest.approx(np.mean(expected))


def test_figures_of_a_ranking_counted_by_hand():
    """Index at angles 0, 10, .. 50 degrees, query at 0: the ranking is the index's own order."""
    angles = np.deg2rad([0, 10, 20, 30, 40, 50])
    index = FeatureBank(np.column_stack([np.cos(angles), np.sin(angles)]).astype(np.float32), np.array(list("baabba")))
    query = FeatureBank(np.array([[1.0, 0.0]], np.float32), np.array(["a"]))
    scores = Retrieval(RetrievalProtocol("mine", (1, 3, 6)))(index, query)
    expected = {
        ("recall", 1): 0,
        ("recall", 3): 1,
        ("precision", 1): 0,
        ("precision", 3): 2 / 3,
        ("precision", 6): 1 / 2,
        ("mrr", None): 1 / 2,
        ("map", None): (1 / 2 + 2 / 3 + 3 / 6) / 3,
        ("map@r", None): (1 / 2 + 2 / 3) / 3,
    }
    for (metric, k), value in expected.items():
        assert scores.value(metric, k) == pytest.approx(value)


def test_recall_at_one_is_one_nearest_neighbour():
    train, test = banks()
    assert Retrieval()(train, test).value("recall", 1) == KNN("compress")(train, test).value("top1", 1)


def test_a_cut_ranking_agrees_with_the_head_of_the_whole_one():
    train, test = banks()
    whole = Retrieval(RetrievalProtocol("whole", (1, 5, 20)))(train, test)
    cut = Retrieval(RetrievalProtocol("cut", (1, 5, 20), depth=20))(train, test)
    for metric in ("recall", "precision"):
        for k in (1, 5, 20):
            assert cut.value(metric, k) == whole.value(metric, k)
    assert cut.details["depth"] == 20


def test_a_bank_against_itself_never_finds_itself_and_leaves_out_lonely_rows():
    train, _ = banks()
    labels = train.labels.copy()
    labels[5] = 99
    bank = FeatureBank(train.features, labels)
    scores = Retrieval()(bank, bank)
    assert "1 queries have no relevant row" in scores.notes[0]
    assert scores.score("map").n == 119
    double = FeatureBank(np.eye(4, dtype=np.float32).repeat(2, 0), np.arange(4).repeat(2))
    assert Retrieval()(double, double).value("map") == 1.0


def test_row_order_does_not_matter_and_blocks_neither(monkeypatch):
    train, test = banks()
    expected = Retrieval()(train, test)
    order = np.random.default_rng(0).permutation(len(train))
    assert Retrieval()(train.rows(order), test).value("map") == pytest.approx(expected.value("map"))
    monkeypatch.setattr("ssl_kd.eval.evaluators.retrieval.QUERIES", 7)
    assert Retrieval()(train, test).value("map") == expected.value("map")


@pytest.mark.parametrize("itself", [False, True])
def test_an_encoder_that_says_the_same_of_every_image_is_as_good_as_chance(itself):
    """Classes follow each other in a folder, and equal similarities stood in that order: 0.21 where chance is 0.1."""
    labels = np.arange(1000) // 100
    train = FeatureBank(np.ones((1000, 4), np.float32), labels)
    test = train if itself else FeatureBank(np.ones((100, 4), np.float32), np.arange(100) // 10)
    assert Retrieval()(train, test).value("map") == pytest.approx(0.1, abs=0.01)


def test_shuffled_labels_give_the_share_of_the_class():
    train, test = banks(n=600, q=300, classes=4, spread=30)
    labels = np.arange(600) % 4
    scores = Retrieval()(FeatureBank(train.features, labels), FeatureBank(test.features, np.arange(300) % 4))
    assert scores.value("map") == pytest.approx(0.25, abs=0.03)


def test_a_bridge_carries_a_linear_student_into_the_teachers_space():
    rng = np.random.default_rng(0)
    student_train, student_test = banks(n=400, width=8)
    mixing = rng.normal(size=(8, 20)).astype(np.float32)
    teacher_train, teacher_test = (
        FeatureBank(
            (bank.features / np.linalg.norm(bank.features, axis=1, keepdims=True)) @ mixing, bank.labels, bank.ids
        )
        for bank in (student_train, student_test)
    )
    carry = bridge(student_train, teacher_train)
    carried = carry(student_test)
    assert carried.width == 20
    cosine = (carried.features * teacher_test.features).sum(1)
    cosine /= np.linalg.norm(carried.features, axis=1) * np.linalg.norm(teacher_test.features, axis=1)
    assert cosine.min() > 0.95
    symmetric, asymmetric = Retrieval()(teacher_train, teacher_test), Retrieval()(teacher_train, carried)
    assert asymmetric.value("map") == pytest.approx(symmetric.value("map"), abs=0.03)
    with pytest.raises(UserError, match="8 wide, got 20"):
        carry(teacher_test)


def test_a_bridge_looks_at_no_label():
    student, _ = banks()
    teacher = FeatureBank(student.features[:, ::-1].copy(), None, student.ids)
    carried = bridge(FeatureBank(student.features, None, student.ids), teacher)(student)
    np.testing.assert_array_equal(carried.features, bridge(student, teacher)(student).features)


def test_an_encoder_agrees_with_itself_and_less_with_another():
    train, test = banks()
    rng = np.random.default_rng(1)
    other = [
        FeatureBank(bank.features + rng.normal(0, 0.8, bank.features.shape), bank.labels, bank.ids)
        for bank in (train, test)
    ]
    itself, less = agreement(train, test, train, test), agreement(train, test, *other)
    assert set(itself) == {("overlap", 1), ("overlap", 10), ("rank", 10)}  # 100 is more than half of the 120
    assert all(values.min() > 0.999 for values in itself.values())
    assert 0.1 < less["overlap", 10].mean() < 0.9
    assert less["rank", 10].mean() < 0.999


def test_rank_agreement_is_spearmans():
    from scipy.stats import spearmanr

    train, test = banks()
    other = [
        FeatureBank(np.roll(bank.features, 1, 1) * np.arange(1, 9), bank.labels, bank.ids) for bank in (train, test)
    ]
    ranks = agreement(train, test, *other, ks=(30,))["rank", 30]
    unit = [b.features / np.linalg.norm(b.features, axis=1, keepdims=True) for b in (train, test, *other)]
    for i in range(5):
        near = np.argsort(-unit[0] @ unit[1][i], kind="stable")[:30]
        expected = spearmanr(np.arange(30), -(unit[2][near] @ unit[3][i])).statistic
        assert ranks[i] == pytest.approx(expected, abs=1e-6)


def test_scaling_a_student_changes_no_agreement():
    train, test = banks()
    scaled = [FeatureBank(bank.features * 7, bank.labels, bank.ids) for bank in (train, test)]
    scores = Agreement()(*scaled, train, test)
    assert scores.value("overlap", 10) == pytest.approx(1.0)
    assert scores.headline_metric == "overlap"


def test_different_images_cannot_be_compared():
    train, test = banks()
    with pytest.raises(UserError, match="same images"):
        agreement(train, test, train.rows(np.arange(50)), test)
    renamed = FeatureBank(train.features, train.labels, [f"x{i}" for i in range(len(train))])
    with pytest.raises(UserError, match="same images"):
        bridge(renamed, train)


@pytest.mark.parametrize(
    ("protocol", "rows", "labels", "says"),
    [
        ("top100", 5, [0, 0, 1, 1, 1], "Did you mean top1000"),
        ("full", 1, [0], "one class only"),
        ("full", 5, [0, 1, 2, 3, 4], "every class has one row only"),
    ],
)
def test_bad_banks_give_one_clear_line(protocol, rows, labels, says):
    bank = FeatureBank(banks()[0].features[:rows], np.array(labels))
    with pytest.raises(UserError, match=says) as caught:
        Retrieval(protocol)(bank, bank)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "kept", "notes"),
    [
        (250, {1, 10, 100}, ()),
        (100, {1, 10}, ("k = 100 left out: more than half of the 100 rows of the index",)),
        (12, {1}, ("k = 10, 100 left out: more than half of the 12 rows of the index",)),
        (1, {1}, ("k = 10, 100 left out: more than half of the 1 rows of the index",)),
    ],
)
def test_agreement_leaves_out_a_k_that_any_network_would_share_most_of(rows, kept, notes):
    train, test = banks(n=rows)
    scores = Agreement()(train, test, train, test)
    assert {k for _, k in scores.each} == kept
    assert scores.notes[1:] == notes
    assert scores.headline_k in kept


def test_the_smallest_k_of_agreement_is_clamped_where_the_index_is_smaller():
    train, test = banks(n=4)
    scores = Agreement((10, 20))(train, test, train, test)
    said = ("k = 20 left out: more than half of the 4 rows of the index", "k = 10 clamped to the 4 rows of the index")
    assert (set(scores.each), scores.notes[1:]) == ({("overlap", 4), ("rank", 4)}, said)


def test_agreement_refuses_what_is_not_a_number_and_says_which_k_was_left_out():
    train, test = banks()
    hole = train.features.copy()
    hole[3, 2] = np.nan
    broken = FeatureBank(hole, train.labels, train.ids)
    with pytest.raises(NonFinite, match=r"encoder, index: row 3 .3.png."):
        agreement(train, test, broken, test)
    few = train.rows(np.arange(30))
    chance = "unrelated networks would share 33.3 % of 10 neighbours among 30 images"
    assert Agreement()(few, test, few, test).notes == (
        chance,
        "k = 100 left out: more than half of the 30 rows of the index",
    )
    assert Agreement((1, 10))(few, test, few, test).notes == (chance,)
