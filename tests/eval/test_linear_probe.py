"""The probe scores as scikit-learn's would, chooses on train alone, and takes any bank a person may bring."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.linear_probe import LBFGS_PROTOCOLS, LinearProbe, LinearProtocol, holdout


def banks(n=400, q=200, width=16, classes=5, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    y = rng.integers(0, classes, n + q)
    x = (centres[y] + spread * rng.normal(size=(n + q, width))).astype(np.float32)
    return FeatureBank(x[:n], y[:n]), FeatureBank(x[n:], y[n:])


@pytest.mark.parametrize("protocol", LBFGS_PROTOCOLS)
def test_accuracy_agrees_with_sklearn_at_the_chosen_strength(protocol):
    from sklearn.linear_model import LogisticRegression

    train, test = banks()
    scores = LinearProbe(protocol)(train, test)
    peer = LogisticRegression(C=1 / scores.details["strength"], max_iter=2000, tol=1e-8)
    peer.fit(train.features.astype(np.float64), train.labels)
    assert scores.value() == pytest.approx(peer.score(test.features, test.labels), abs=0.0051)


def test_the_sweep_chooses_what_sklearn_would_choose():
    from sklearn.linear_model import LogisticRegression

    train, test = banks()
    scores = LinearProbe("quick-lbfgs")(train, test)
    held = holdout(np.asarray(train.labels), 0.2)
    for row in scores.details["sweep"]:
        peer = LogisticRegression(C=1 / row["strength"], max_iter=2000, tol=1e-8)
        peer.fit(train.features[~held].astype(np.float64), train.labels[~held])
        assert row["top1"] == pytest.approx(peer.score(train.features[held], train.labels[held]), abs=0.026)
    best = max(row["top1"] for row in scores.details["sweep"])
    assert next(r["top1"] for r in scores.details["sweep"] if r["strength"] == scores.details["strength"]) == best


@pytest.mark.slow
def test_real_digits_agree_with_sklearn():
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    x, y = load_digits(return_X_y=True)
    x = x.astype(np.float32)
    scores = LinearProbe("quick-lbfgs")(FeatureBank(x[:1200], y[:1200]), FeatureBank(x[1200:], y[1200:]))
    # at so weak a penalty scikit-learn needs 3,000 steps to its minimum, and is off by 1 % of the test rows on the way
    peer = LogisticRegression(C=1 / scores.details["strength"], max_iter=50_000, tol=1e-9)
    peer.fit(x[:1200].astype(float), y[:1200])
    assert scores.value() == pytest.approx(peer.score(x[1200:], y[1200:]), abs=0.005)


def test_test_rows_have_no_say_in_the_choice():
    train, test = banks()
    upside_down = FeatureBank(-test.features, test.labels)
    assert LinearProbe("quick-lbfgs")(train, test).details == LinearProbe("quick-lbfgs")(train, upside_down).details


def test_row_order_of_test_and_seed_do_what_they_should():
    train, test = banks()
    order = np.random.default_rng(0).permutation(len(test))
    plain, turned = LinearProbe("quick-lbfgs")(train, test), LinearProbe("quick-lbfgs")(train, test.rows(order))
    np.testing.assert_array_equal(plain.predicted[None][order], turned.predicted[None])
    other = LinearProbe("quick-lbfgs", seed=1)(train, test)
    assert [r["loss"] for r in other.details["sweep"]] != [r["loss"] for r in plain.details["sweep"]]


def test_blobs_give_one_and_shuffled_labels_give_chance():
    train, test = banks(n=1000, q=1000, spread=0.05)
    assert LinearProbe("quick-lbfgs")(train, test).value() == 1.0
    train, test = banks(n=1000, q=1000, spread=50.0)
    shuffled = FeatureBank(train.features, np.random.default_rng(0).permutation(train.labels))
    score = LinearProbe("quick-lbfgs")(shuffled, test).score()
    assert score.low < 0.2 < score.high


def test_a_mean_per_class_task_chooses_by_mean_per_class():
    rng = np.random.default_rng(0)
    y = (rng.random(600) < 0.07).astype(int)
    x = (rng.normal(size=(600, 8)) + y[:, None] * 0.9).astype(np.float32)
    scores = LinearProbe("quick-lbfgs", metric="mean_per_class")(FeatureBank(x[:400], y[:400]), FeatureBank(x, y))
    sweep = scores.details["sweep"]
    chosen = next(row for row in sweep if row["strength"] == scores.details["strength"])
    assert chosen["mean_per_class"] == max(row["mean_per_class"] for row in sweep)


def test_a_strength_that_does_not_converge_is_reported():
    train, test = banks()
    hurried = LinearProtocol("hurried", (1e-6, 1.0, 1e4), 0.2, max_passes=5)
    notes = " ".join(LinearProbe(hurried)(train, test).notes)
    assert "did not converge: 1.0e-06" in notes


def test_a_fixed_strength_skips_the_choice():
    train, test = banks(n=5, q=20, classes=5)
    train = FeatureBank(train.features, np.arange(5))
    with pytest.raises(UserError, match="one row per class"):
        LinearProbe()(train, test)
    scores = LinearProbe(strength=1.0)(train, test)
    assert scores.details["strength"] == 1.0
    assert scores.details["sweep"] == []


def test_a_bank_of_five_rows_works():
    x = np.array([[0.0, 1], [0, 2], [5, 1], [5, 2], [5, 3]], np.float32)
    y = np.array(["no", "no", "yes", "yes", "yes"])
    assert LinearProbe()(FeatureBank(x, y), FeatureBank(x, y)).value() == 1.0


def test_holdout_takes_its_share_of_every_class():
    y = np.array([0] * 100 + [1] * 10 + [2] * 2 + [3])
    held = holdout(y, 0.2)
    assert [int(held[y == c].sum()) for c in range(4)] == [20, 2, 1, 0]
    np.testing.assert_array_equal(held, holdout(y, 0.2))


def test_many_classes_and_small_chunks_give_the_same(monkeypatch):
    train, test = banks()
    whole, logits = LinearProbe("quick-lbfgs").with_logits(train, test)
    monkeypatch.setattr("ssl_kd.eval.evaluators.linear_probe.CELLS", 50)
    assert LinearProbe("quick-lbfgs")(train, test).rows == whole.rows
    np.testing.assert_array_equal(logits.argmax(1), whole.predicted[None])
    rng = np.random.default_rng(0)
    crowd = FeatureBank(rng.normal(size=(6000, 3)).astype(np.float32), np.arange(6000) % 3000)
    assert 0 <= LinearProbe(strength=1.0)(crowd, crowd.rows(np.arange(40))).value("top5") <= 1


def test_read_only_and_half_precision_banks_are_taken():
    train, test = banks()
    expected = LinearProbe("quick-lbfgs")(train, test).value()
    for bank in (train, test):
        bank.features.setflags(write=False)
    assert LinearProbe("quick-lbfgs")(train, test).value() == expected
    half = [FeatureBank(bank.features.astype(np.float16), bank.labels) for bank in (train, test)]
    assert LinearProbe("quick-lbfgs")(*half).value() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("settings", "says"), [({"protocol": "simclr"}, "simclr-lbfgs"), ({"metric": "f1"}, "top1")])
def test_bad_settings_give_one_clear_line(settings, says):
    with pytest.raises(UserError, match=says) as caught:
        LinearProbe(**settings)(*banks())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("harm", ["constant", "duplicates", "zeros", "a class of one", "from seven"])
def test_odd_banks_still_give_a_right_answer(harm):
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = (np.eye(3)[y] * 8 + rng.standard_normal((60, 3))).astype(np.float32)
    sound = FeatureBank(x.copy(), y)
    if harm == "constant":
        x = np.hstack([x, np.full((60, 2), 5, np.float32)])
        sound = FeatureBank(x, y)
    elif harm == "duplicates":
        x[:30] = x[np.arange(30) % 3]
    elif harm == "zeros":
        x[:6] = 0
    elif harm == "a class of one":
        y = y.copy()
        y[0] = 3
    else:
        y, sound = y + 7, FeatureBank(x, y + 7)
    scores = LinearProbe("quick-lbfgs")(FeatureBank(x, y), sound)
    assert scores.value() > 0.95


@pytest.mark.parametrize("protocol", ["quick-lbfgs", "compress-linear"])
def test_features_too_large_for_float32_are_one_line(protocol):
    train, test = banks(n=40, q=20)
    huge = FeatureBank(train.features * np.float32(1e20), train.labels)
    with pytest.raises(UserError, match=r"longer than 1e.15"):
        LinearProbe(protocol)(huge, test)


def test_a_validation_split_of_zeros_and_ones_is_that_of_booleans():
    train, test = banks()
    held = np.arange(len(train)) % 4 == 0
    one, other = (
        LinearProbe("quick-lbfgs")(FeatureBank(train.features, train.labels, held=kind), test)
        for kind in (held, held.astype(int))
    )
    assert one.details == other.details


@pytest.mark.parametrize(("protocol", "fits"), [("simclr-lbfgs", 46), ("dinov2-sweep", 14), ("dino-linear", 1)])
def test_progress_counts_every_fit(protocol, fits, capsys):
    LinearProbe(protocol, quiet=False)(*banks())
    assert f"linear probe: {fits} of {fits} fits" in capsys.readouterr().err
    LinearProbe(protocol)(*banks())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("protocol", ["quick-lbfgs", "dino-linear", "compress-linear"])
def test_the_fitted_probe_is_the_one_that_is_judged_bit_for_bit(protocol):
    rng = np.random.default_rng(0)
    y = np.array(["ant", "bee", "cow"])[np.arange(150) % 3]
    x = (np.eye(3, 6)[np.arange(150) % 3] + 0.6 * rng.normal(size=(150, 6))).astype(np.float32)
    train, test = FeatureBank(x[:100], y[:100]), FeatureBank(x[100:], y[100:])
    probe = LinearProbe(protocol)
    scores, logits = probe.with_logits(train, test)
    fitted = probe.fit(train)
    np.testing.assert_array_equal(fitted.decision_function(test), logits)
    np.testing.assert_array_equal(fitted.decision_function(test.features), logits)
    np.testing.assert_array_equal(fitted.predict(test), scores.classes[scores.predicted[None]])
    assert fitted.chosen in (scores.details.get("strength"), scores.details.get("lr"))
    ready = fitted.ready(torch.from_numpy(test.features)).numpy()
    np.testing.assert_allclose(ready @ fitted.weights.T + fitted.bias, logits, atol=1e-4, rtol=1e-4)
    assert (fitted.weights.shape, fitted.bias.shape, fitted.classes.tolist()) == ((3, 6), (3,), ["ant", "bee", "cow"])
    assert fitted.decision_function(np.empty((0, 6), np.float32)).shape == (0, 3)
    with pytest.raises(UserError, match="5 wide, but the probe was fitted to 6"):
        fitted.predict(test.features[:, :5])
    with pytest.raises(UserError, match="the bank has no labels"):
        probe.fit(FeatureBank(x))
