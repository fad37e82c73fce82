"""Damage is what it says, nested over its levels, equal for every encoder, and hurts."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.knn import KNN
from ssl_kd.eval.evaluators.linear_probe import LinearProbe
from ssl_kd.eval.evaluators.robustness import Robustness, long_tail, noisy


def banks(n=800, q=400, width=10, classes=5, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    y = np.arange(n + q) % classes
    x = (centres[y] + spread * rng.normal(size=(n + q, width))).astype(np.float32)
    return FeatureBank(x[:n], y[:n]), FeatureBank(x[n:], y[n:])


def test_noise_replaces_its_share_evenly_and_nested():
    y = np.arange(10_000) % 4
    light, heavy = noisy(y, 0.2), noisy(y, 0.6)
    assert (light != y).mean() == pytest.approx(0.2)
    assert (heavy != y).mean() == pytest.approx(0.6)
    hit = light != y
    np.testing.assert_array_equal(light[hit], heavy[hit])
    table = np.histogram2d(y[heavy != y], heavy[heavy != y], bins=4)[0]
    np.testing.assert_allclose(table[~np.eye(4, dtype=bool)], 500, atol=80)
    np.testing.assert_array_equal(noisy(y, 0.0), y)


def test_noise_leaves_every_class_one_row():
    y = np.array([0] * 20 + [1, 2])
    assert set(noisy(y, 0.95)[noisy(y, 0.95) == y]) == {0, 1, 2}


def test_a_long_tail_has_the_sizes_of_its_formula():
    y = np.arange(1000) % 5
    sizes = sorted(np.bincount(y[long_tail(y, 0.01)]), reverse=True)
    assert sizes == [round(200 * 0.01 ** (c / 4)) for c in range(5)]
    assert long_tail(y, 1.0).all()
    mild, hard = long_tail(y, 0.1), long_tail(y, 0.01)
    assert (hard <= mild).all()


def test_no_damage_is_the_plain_evaluation():
    train, test = banks()
    scores = Robustness("label-noise")(train, test)
    assert scores.value("k-NN, 0 % noise") == KNN("dino")(train, test).value("top1", 20)
    assert scores.value("linear, 0 % noise") == LinearProbe("quick-lbfgs")(train, test).value()
    assert Robustness("long-tail")(train, test).value("k-NN, tail 1/1") == scores.value("k-NN, 0 % noise")


@pytest.mark.parametrize(
    ("protocol", "mild", "hard"), [("label-noise", "0 % noise", "60 % noise"), ("long-tail", "tail 1/1", "tail 1/100")]
)
def test_damage_hurts(protocol, mild, hard):
    scores = Robustness(protocol)(*banks())
    for name in ("k-NN", "linear"):
        assert scores.value(f"{name}, {hard}") < scores.value(f"{name}, {mild}")


def test_labels_may_be_strings():
    train, test = banks()
    named = [FeatureBank(b.features, np.array([f"c{y}" for y in b.labels])) for b in (train, test)]
    assert [row.value for row in Robustness()(*named).rows] == [row.value for row in Robustness()(train, test).rows]


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(UserError, match="Did you mean long-tail"):
        Robustness("longtail")(*banks())


def test_a_bank_against_itself_is_the_plain_evaluation_of_a_bank_against_itself():
    rng = np.random.default_rng(0)
    bank = FeatureBank(rng.normal(size=(300, 3)).astype(np.float32), np.arange(300) % 5)
    expected = KNN("dino")(bank, bank).value("top1", 20)
    assert expected < 0.4
    for protocol, none in (("label-noise", "0 % noise"), ("long-tail", "tail 1/1")):
        scores = Robustness(protocol)(bank, bank)
        assert scores.value(f"k-NN, {none}") == expected
        assert all(row.value < 0.4 for row in scores.rows if row.metric.startswith("k-NN"))


@pytest.mark.slow
def test_the_sets_own_validation_split_and_every_note_are_passed_on():
    train, test = banks()
    held = np.arange(len(train)) % 5 == 0
    split = FeatureBank(train.features, train.labels, held=held)
    plain = LinearProbe("quick-lbfgs")(split, test)
    assert plain.details != LinearProbe("quick-lbfgs")(train, test).details
    assert Robustness()(split, test).value("linear, 0 % noise") == plain.value()
    few = train.rows(np.arange(15))
    notes = Robustness()(few, test).notes
    assert "k-NN: k = 20 clamped to the 15 rows of the bank (0 % noise, 20 % noise, 40 % noise, 60 % noise)" in notes
