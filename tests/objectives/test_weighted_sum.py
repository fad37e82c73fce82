"""Weights and schedules: balanced by gradients, learned, and counted only in their epochs."""

import copy

import pytest
import torch
from small_features import features, rand, views

from ssl_kd.errors import UserError
from ssl_kd.objectives import build_objective
from ssl_kd.objectives.weighted_sum import CALIBRATION, gradient_norm

LINEAR = {"term": "alignment", "projector": "linear", "distance": "mse"}
BATCH = {"term": "correlation", "relation": "batch", "projector": "linear"}


def built(*specs, ds=6, dt=10):
    torch.manual_seed(0)
    return build_objective(list(specs), ds, dt)


def step(objective, seed, epoch=0, images=8):
    s = rand(images, 6, seed=seed).requires_grad_()
    total, terms = objective(features(s), features(rand(images, 10, seed=seed + 100)), views(images, epoch=epoch))
    return total, terms, s


def test_an_automatic_weight_gives_its_term_its_share_of_the_first_ones_gradient():
    objective = built({**LINEAR, "weight": 3.0}, {**BATCH, "weight": "auto", "share": 0.5})
    own = reference = 0.0
    for seed in range(4):
        _, _, s = step(copy.deepcopy(objective), seed)
        student, teacher = features(s), features(rand(8, 10, seed=seed + 100))
        norms = [
            torch.autograd.grad(term(student, teacher, views(8)), s)[0].norm().item()
            for term in objective.terms.values()
        ]
        reference, own = reference + norms[0], own + norms[1]
        total, terms, _ = step(objective, seed)
        weight = objective.automatic_weight("correlation_batch").item()
        assert weight == pytest.approx(0.5 * 3.0 * reference / own, rel=1e-4)
        by_hand = 3.0 * terms["alignment"] + weight * terms["correlation_batch"]
        assert total.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_an_automatic_weight_stays_after_the_first_steps_and_is_restored():
    objective = built(LINEAR, {**BATCH, "weight": "auto"})
    for seed in range(CALIBRATION):
        step(objective, seed)
    weight = objective.automatic_weight("correlation_batch").clone()
    step(objective, CALIBRATION)
    assert torch.equal(objective.automatic_weight("correlation_batch"), weight)
    fresh = built(LINEAR, {**BATCH, "weight": "auto"})
    fresh.load_state_dict(objective.state_dict())
    assert torch.equal(fresh.automatic_weight("correlation_batch"), weight)
    assert torch.equal(step(fresh, 500)[0], step(objective, 500)[0])


def test_an_automatic_weight_learns_nothing_in_eval_mode():
    objective = built(LINEAR, {**BATCH, "weight": "auto"}).eval()
    step(objective, 0)
    assert not objective.balance.any()
    assert objective.automatic_weight("correlation_batch").item() == 1


def test_gradient_norms_are_told_on_request_and_change_nothing():
    objective = built(LINEAR, BATCH)
    quiet, loud = copy.deepcopy(objective), copy.deepcopy(objective)
    loud.measure_gradients = True
    (a, told_a, s_a), (b, told_b, s_b) = step(quiet, 0), step(loud, 0)
    assert torch.equal(a, b)
    assert set(told_b) - set(told_a) == {"alignment_gradient", "correlation_batch_gradient"}
    a.backward()
    b.backward()
    assert torch.equal(s_a.grad, s_b.grad)
    s = rand(8, 6).requires_grad_()
    value = objective.terms["alignment"](features(s), features(rand(8, 10, seed=100)), views(8))
    assert told_b["alignment_gradient"].item() == pytest.approx(
        torch.autograd.grad(value, s)[0].norm().item(), rel=1e-5
    )


def test_a_term_that_ignores_the_student_has_no_gradient():
    assert gradient_norm(torch.zeros(()), features(rand(4, 3))) == 0


def test_learned_weights_start_at_one_and_follow_the_size_of_their_terms():
    objective = built({**LINEAR, "weight": "learned"}, {**BATCH, "weight": "learned"})
    total, terms, _ = step(objective, 0)
    assert total.item() == pytest.approx(sum(v.item() for v in terms.values()) + 2 * 0.6931472, rel=1e-5)
    optimizer = torch.optim.SGD(objective.log_scale.parameters(), 0.5)
    for _ in range(300):
        optimizer.zero_grad()
        step(objective, 0)[0].backward()
        optimizer.step()
    for name, value in terms.items():
        # exp(-l) v + log(1 + exp l) is smallest where exp(2 l) = v (1 + exp l).
        grown = objective.log_scale[name].exp().item()
        assert grown**2 == pytest.approx(value.item() * (1 + grown), rel=1e-3)


def test_a_term_counts_from_start_up_to_until_and_grows_over_its_warmup():
    objective = built(LINEAR, {**BATCH, "start": 2, "until": 6, "warmup": 2, "weight": 10.0})
    shares = {}
    for epoch in range(8):
        total, terms, _ = step(copy.deepcopy(objective), 0, epoch=epoch)
        rest = total - terms["alignment"]
        shares[epoch] = (rest / terms["correlation_batch"]).item() if "correlation_batch" in terms else None
    assert [shares[e] for e in (0, 1, 6, 7)] == [None] * 4
    assert [shares[e] for e in (2, 3, 4, 5)] == pytest.approx([5.0, 10.0, 10.0, 10.0], rel=1e-4)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ([{**LINEAR, "weight": "automatic"}], "auto or learned"),
        ([{**LINEAR, "weight": True}], "above 0"),
        ([{**LINEAR, "weight": "auto"}], "first term, which needs a number"),
        ([{**LINEAR, "share": 0.5}], "share belongs to weight: auto"),
        ([LINEAR, {**BATCH, "weight": "auto", "share": 0}], "share must be a number above 0"),
        ([{**LINEAR, "until": 2.5}], "whole number of epochs"),
        ([{**LINEAR, "until": 0}], "until must come after start"),
        ([{**LINEAR, "start": 1}], "no term counts in epoch 0"),
        ([{**LINEAR, "until": 3}, {**BATCH, "start": 4}], "no term counts in epoch 3"),
        ([{**LINEAR, "wieght": 3}], "Did you mean weight"),
    ],
)
def test_a_wrong_weight_or_schedule_is_one_clear_line(spec, words):
    with pytest.raises(UserError, match=words) as caught:
        build_objective(spec, 6, 10)
    assert "\n" not in str(caught.value)
