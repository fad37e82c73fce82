"""The solver reaches scikit-learn's minimum or a lower one, at every strength, on features of any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_kd.errors import UserError
from ssl_kd.eval.solvers.lbfgs import fit, rotate


def data(n=600, width=20, classes=4, seed=0, shift=0.0, scale=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, width))[y] + 1.5 * rng.normal(size=(n, width)) / np.sqrt(1 + np.arange(width))
    return (x * scale + shift).astype(np.float32), y


def objective(x, y, weights, bias, penalty):
    logits = torch.as_tensor(x).double() @ torch.as_tensor(weights).double().T + torch.as_tensor(bias).double()
    loss = F.cross_entropy(logits, torch.as_tensor(y))
    return float(loss + penalty / 2 * torch.as_tensor(weights).double().square().sum())


def solve(x, y, strengths, classes=4, **settings):
    return fit(torch.from_numpy(x), torch.from_numpy(y), classes, torch.tensor(strengths) / len(x), **settings)


CASES = {
    "plain": data(),
    "far from zero": data(shift=50.0, scale=100.0),
    "tiny": data(scale=0.01),
    "more columns than rows": data(n=60, width=100),
    "dead columns": (np.maximum(data()[0], 0) * (np.arange(20) % 3 > 0), data()[1]),
    "rare class": (data()[0], np.where(data()[1] == 3, np.where(np.arange(600) % 40, 0, 3), data()[1])),
}


@pytest.mark.parametrize("case", CASES)
def test_objective_is_at_most_sklearns(case):
    from sklearn.linear_model import LogisticRegression

    x, y = CASES[case]
    strengths = [1e-3, 1e-1, 1.0, 10.0, 1000.0]
    fits = solve(x.astype(np.float32), y, strengths)
    for i, strength in enumerate(strengths):
        peer = LogisticRegression(C=1 / strength, max_iter=2000).fit(x.astype(np.float64), y)
        ours = objective(x, y, fits.weights[i], fits.bias[i], strength / len(x))
        assert ours <= objective(x, y, peer.coef_, peer.intercept_, strength / len(x)) * (1 + 1e-3)
        assert float(fits.objective[i]) == pytest.approx(ours, rel=1e-3, abs=1e-7)


def test_weights_are_the_minimum_that_a_double_precision_newton_finds():
    from sklearn.linear_model import LogisticRegression

    x, y = data()
    fits = solve(x, y, [1.0], tolerance=1e-6, precision=1e-8)
    peer = LogisticRegression(C=1.0, solver="newton-cg", tol=1e-10, max_iter=1000).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(fits.weights[0], peer.coef_, atol=2e-3)


def test_two_classes_equal_sklearns_with_half_the_penalty():
    """Two columns share the work of one: |w/2|^2 twice is half of |w|^2."""
    from sklearn.linear_model import LogisticRegression

    x, y = data(classes=2)
    fits = solve(x, y, [2.0], classes=2, tolerance=1e-6, precision=1e-8)
    peer = LogisticRegression(C=1.0, tol=1e-8, max_iter=1000).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(fits.weights[0, 1] - fits.weights[0, 0], peer.coef_[0], atol=2e-3)


def test_strengths_do_not_disturb_each_other(monkeypatch):
    x, y = data()
    strengths = [1e-2, 1.0, 100.0]
    together = solve(x, y, strengths)
    for i, strength in enumerate(strengths):
        alone = solve(x, y, [strength])
        assert float(together.objective[i]) == pytest.approx(float(alone.objective[0]), rel=1e-4)
    monkeypatch.setattr("ssl_kd.eval.solvers.lbfgs.STATE", 1)  # one strength at a time, each from the last one's end
    in_turn = solve(x, y, strengths)
    torch.testing.assert_close(in_turn.objective, together.objective, rtol=2e-4, atol=0)


def test_chunks_do_not_change_the_answer(monkeypatch):
    x, y = data(n=3000)
    whole = solve(x, y, [1.0, 10.0])
    monkeypatch.setattr("ssl_kd.eval.solvers.lbfgs.CELLS", 1)
    torch.testing.assert_close(solve(x, y, [1.0, 10.0]).objective, whole.objective, rtol=1e-4, atol=0)


@pytest.mark.parametrize("exact", [0, 1 << 21], ids=["float32", "float64"])
def test_threads_do_not_change_one_bit(exact, monkeypatch, threads):
    """In products that threads share, weak penalties moved weights by 8 % in float32 from one number to another."""
    monkeypatch.setattr("ssl_kd.eval.solvers.lbfgs.EXACT", exact)
    monkeypatch.setattr("ssl_kd.eval.solvers.lbfgs.CELLS", 1 << 15)
    rng = np.random.default_rng(10)
    y = np.arange(960) % 10
    x = (0.25 * rng.normal(size=(10, 128))[y] + rng.normal(size=(960, 128))).astype(np.float32)
    found = []
    for count in (1, 2, 3):
        with threads(count):
            found.append(solve(x, y, np.logspace(-5, 6, 45), classes=10))
    for other in found[1:]:
        assert torch.equal(other.weights, found[0].weights)
        assert torch.equal(other.passes, found[0].passes)


def steep(n, width, classes, decay, seed):
    """Few rows of many columns, whose variances fall steeply: separable, with room for any wrong model beside the right."""
    g = torch.Generator().manual_seed(seed)
    mix = torch.linalg.qr(torch.randn(width, width, generator=g))[0]
    centres, y = torch.randn(classes, width, generator=g) / 2, torch.arange(n) % classes
    scales = 30 * torch.arange(1, width + 1) ** -decay
    train, test = (((torch.randn(n, width, generator=g) + centres[y]) * scales) @ mix for _ in range(2))
    return train, test, y


@pytest.mark.parametrize(("n", "width", "classes"), [(480, 640, 40), (150, 900, 20)])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_weak_strength_is_the_same_model_alone_and_in_a_sweep(n, width, classes, seed, monkeypatch):
    """The teacher's flowers had 49 % for 87: the chosen weakest strength, fitted again alone, had stopped far out."""
    monkeypatch.setattr("ssl_kd.eval.solvers.lbfgs.EXACT", 0)  # float32, as larger sets are
    train, test, y = steep(n, width, classes, 0.6, seed)
    alone = fit(train, y, classes, torch.tensor([1e-4]) / n)
    sweep = fit(train, y, classes, torch.tensor([1e2, 1e1, 1e0, 1e-1, 1e-2, 1e-3, 1e-4]) / n)
    slow = fit(train, y, classes, torch.tensor([1e-4]) / n, 1e-7, 1e-7)
    for fits in (alone, sweep):
        assert float(fits.objective[-1]) < float(slow.objective[-1]) + 1e-5
        assert (fits.logits(test)[-1].argmax(1) == y).float().mean() > 0.98
    assert sweep.converged.all()
    assert alone.converged.all()


def test_a_strength_without_time_says_so():
    x, y = data()
    fits = solve(x, y, [1e-6, 1e6], max_passes=4)
    assert fits.converged.tolist() == [False, True]
    assert fits.passes[0] >= 4


def test_separable_classes_end():
    x, y = data(n=80, width=60)
    fits = solve(x * 10, y, [1e-6, 1.0])
    assert torch.isfinite(fits.weights).all()
    assert (fits.logits(torch.from_numpy(x * 10)).argmax(2).numpy() == y).all()


def test_constant_features_leave_the_prior():
    y = np.array([0, 0, 0, 1])
    fits = solve(np.full((4, 3), 7.0, np.float32), y, [1.0], classes=2)
    shares = fits.logits(torch.full((1, 3), 7.0)).softmax(2)[0, 0]
    torch.testing.assert_close(shares, torch.tensor([0.75, 0.25]), atol=1e-3, rtol=0)


def test_rotating_keeps_lengths_and_centres():
    x = torch.from_numpy(data()[0])
    turned = rotate(x)
    torch.testing.assert_close(turned.z @ turned.turn.T + turned.centre, x, atol=1e-4, rtol=0)
    torch.testing.assert_close(turned.z.mean(0), torch.zeros(20), atol=1e-5, rtol=0)


def test_dead_columns_and_few_rows_do_not_stop_the_eigen_solver():
    rng = np.random.default_rng(0)
    x = np.maximum(rng.normal(size=(400, 2048)) - 0.5, 0).astype(np.float32)
    x[:, ::2] = 0
    turned = rotate(torch.from_numpy(x))
    assert turned.z.shape[1] <= 1024
    torch.testing.assert_close(turned.z @ turned.turn.T + turned.centre, torch.from_numpy(x), atol=1e-4, rtol=0)
    assert not turned.turn[::2].any()


def fails(*_, **__):
    raise torch.linalg.LinAlgError("linalg.eigh: The algorithm failed to converge")


def test_another_solver_takes_over_from_one_that_fails(monkeypatch):
    x, y = data()
    expected = solve(x, y, [1e-2, 1.0])
    monkeypatch.setattr("torch.linalg.eigh", fails)
    got = solve(x, y, [1e-2, 1.0])
    torch.testing.assert_close(got.objective, expected.objective, rtol=2e-4, atol=0)
    torch.testing.assert_close(got.weights, expected.weights, rtol=0, atol=2e-2)


def test_no_solver_at_all_is_one_line(monkeypatch):
    def gives_up(*_, **__):
        raise np.linalg.LinAlgError("no convergence")

    monkeypatch.setattr("torch.linalg.eigh", fails)
    monkeypatch.setattr("scipy.linalg.eigh", gives_up)
    with pytest.raises(UserError, match="no eigenbasis of 20 feature columns"):
        solve(*data(), [1.0])
