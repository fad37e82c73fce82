"""SGD heads follow torch's own optimiser step by step, alone or side by side."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_kd.errors import NonFinite
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.linear_probe import LinearProbe
from ssl_kd.eval.solvers.out_of_core import Rows
from ssl_kd.eval.solvers.sgd import SGD_PROTOCOLS, SGDProtocol, fit_sgd, rate, standardised


def data(n=120, width=6, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    x = rng.normal(size=(classes, width))[y] + rng.normal(size=(n, width))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(y)


def torch_sgd(x, y, classes, lr, protocol, seed):
    """The usual script: nn.Linear, torch.optim.SGD, a scheduler, shuffled batches."""
    draw = torch.Generator().manual_seed(seed)
    head = torch.nn.Linear(x.shape[1], classes)
    with torch.no_grad():
        head.weight.copy_(0.01 * torch.randn(classes, x.shape[1], generator=draw))
        head.bias.zero_()
    optimiser = torch.optim.SGD(head.parameters(), lr, momentum=0.9, weight_decay=protocol.weight_decay)
    steps = protocol.epochs * math.ceil(len(x) / protocol.batch)
    scheduler = (
        torch.optim.lr_scheduler.MultiStepLR(optimiser, [d * steps // protocol.epochs for d in protocol.drops], 0.1)
        if protocol.drops
        else torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    )
    for _ in range(protocol.epochs):
        for rows in torch.randperm(len(x), generator=draw).split(protocol.batch):
            optimiser.zero_grad()
            F.cross_entropy(head(x[rows]), y[rows]).backward()
            optimiser.step()
            scheduler.step()
    return head


@pytest.mark.parametrize(
    "protocol",
    [
        SGDProtocol("cosine", (0.1,), 5, batch=32),
        SGDProtocol("drops", (0.1,), 6, batch=50, drops=(2, 4), weight_decay=1e-2),
    ],
    ids=lambda p: p.name,
)
def test_heads_side_by_side_equal_torchs_optimiser_one_by_one(protocol):
    x, y = data()
    rates = [0.01, 0.1, 1.0]
    fits = fit_sgd(x, y, 4, torch.tensor(rates), protocol, seed=3)
    for i, lr in enumerate(rates):
        head = torch_sgd(x, y, 4, lr, protocol, seed=3)
        torch.testing.assert_close(fits.weights[i], head.weight.detach(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(fits.bias[i], head.bias.detach(), rtol=1e-3, atol=1e-4)


def test_rates_follow_their_schedules():
    drops = SGD_PROTOCOLS["moco-linear"]
    assert [rate(drops, step, 100) for step in (0, 59, 60, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    smooth, stepped = SGD_PROTOCOLS["dinov2-sweep"], SGD_PROTOCOLS["dino-linear"]
    assert [rate(smooth, step, 100) for step in (0, 50)] == pytest.approx([1, 0.5])
    assert rate(smooth, 99, 100) < 1e-3
    assert rate(stepped, 0, 1000) == rate(stepped, 9, 1000) > rate(stepped, 10, 1000)


def test_standardising_is_measured_on_train_alone():
    train, other = data()[0], data(seed=1)[0] + 5
    turned, moved = standardised(train, other)
    torch.testing.assert_close(turned.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    assert moved.mean().abs() > 0.1


@pytest.mark.parametrize("on_disk", [False, True])
def test_standardising_divides_as_the_published_script_does(on_disk):
    """Oracle: CompRess' FullBatchNorm on unit vectors; of wide ones many dimensions have a variance below its 1e-5."""
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.normal(size=(120, 2048)), 0) * np.exp(1.5 * rng.normal(size=2048))
    x = torch.from_numpy(rows.astype(np.float32))
    unit = torch.nn.functional.normalize(x)
    expected = (unit - unit.mean(0)) / (unit.var(0) + 1e-5).sqrt()
    if on_disk:
        (given,) = standardised(Rows(x.numpy(), np.arange(len(x))))
        found = torch.cat(list(given.split(50)))
    else:
        (found,) = standardised(x)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("protocol", SGD_PROTOCOLS)
def test_every_protocol_tells_blobs_apart(protocol):
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = (np.eye(3, 5)[y] + 0.02 * rng.normal(size=(600, 5))).astype(np.float32)
    scores = LinearProbe(protocol)(FeatureBank(x[:400], y[:400]), FeatureBank(x[400:], y[400:]))
    assert scores.value() > 0.97
    assert scores.protocol == protocol
    assert scores.details["lr"] in SGD_PROTOCOLS[protocol].lrs


def test_a_learning_rate_that_diverges_is_passed_over_or_said():
    x, y = data(n=400)
    x = x.numpy() * 1e4
    bank = FeatureBank(x, y.numpy())
    wild = SGDProtocol("wild", (1e-9, 1e36), 2, weight_decay=1.0)
    scores = LinearProbe(wild)(bank, bank)
    assert scores.details["lr"] == 1e-9
    assert "did not converge: 1.0e+36" in scores.notes[0]
    with pytest.raises(NonFinite, match="diverged at lr"):
        LinearProbe(SGDProtocol("wilder", (1e36,), 2, weight_decay=1.0))(bank, bank)


def test_threads_do_not_change_one_bit(threads):
    rng = np.random.default_rng(4)
    y = torch.arange(1600) % 5
    x = torch.from_numpy((rng.normal(size=(5, 32))[y] + rng.normal(size=(1600, 32))).astype(np.float32))
    alone = fit_sgd(x, y, 5, torch.tensor([30.0]), replace(SGD_PROTOCOLS["moco-linear"], epochs=10))
    with threads(2):
        together = fit_sgd(x, y, 5, torch.tensor([30.0]), replace(SGD_PROTOCOLS["moco-linear"], epochs=10))
    assert torch.equal(together.weights, alone.weights)
