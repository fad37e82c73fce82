"""The student's side: its moving average follows it, is saved with it, and comes back to the same bits."""

import numpy as np
import pytest
import torch
from small_runs import SMALL, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation.module import AVERAGE, Batch, DistillationModule, for_all_views
from ssl_kd.distillation.optim import warmup_cosine
from ssl_kd.errors import UserError
from ssl_kd.objectives import build_objective
from ssl_kd.types import Features, ViewBatch

ARGS = {"channels": [8, 8, 8, 8]}
TWO_QUEUES = [
    {"term": "correlation", "relation": "two_queues", "projector": "identity", "size": 16, "momentum": 0.9},
]
QUICK = SMALL


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def module(objective, width=16):
    torch.manual_seed(0)
    return DistillationModule(ssl_kd.build("resnet18", **ARGS), build_objective(objective, 8, width))


def test_the_average_moves_by_one_minus_momentum_towards_the_student():
    both = module(TWO_QUEUES)
    start = [p.clone() for p in both.average.parameters()]
    with torch.no_grad():
        for p in both.student.parameters():
            p.add_(1)
    both.follow()
    for was, now in zip(start, both.average.parameters(), strict=True):
        assert torch.allclose(now, was + 0.1, atol=1e-6)
        assert not now.requires_grad


def test_objectives_find_the_average_among_the_layers_and_only_if_they_ask(teacher):
    views = ViewBatch(np.arange(4), 0, (torch.rand(4, 3, 32, 32),))
    seen = module(TWO_QUEUES).embed(views)
    assert seen.layers[AVERAGE].shape == (4, 8)
    assert not seen.layers[AVERAGE].requires_grad
    plain = module("simreg")
    assert plain.average is None
    assert not plain.embed(views).layers


def test_tokens_travel_only_where_the_objective_reads_them():
    views = ViewBatch(np.arange(4), 0, (torch.rand(4, 3, 32, 32),))
    assert module("trg").embed(views).tokens is not None
    assert module("simreg").embed(views).tokens is None


def test_a_loss_reaches_the_student_and_its_heads(teacher):
    both = module("simreg")
    views = ViewBatch(np.arange(4), 0, (torch.rand(4, 3, 32, 32),))
    total, terms = both(Batch(views, {"": teacher(views.pixels[0])}))
    total.backward()
    assert set(terms) == {"alignment"}
    assert all(p.grad is not None for p in both.parameters())


def test_a_run_with_an_average_resumes_to_the_same_bits(teacher, tmp_path):
    settings = QUICK | {"objective": TWO_QUEUES, "images": small_images()}
    ssl_kd.distill(teacher, out=tmp_path / "whole", **settings)
    with signal_in_step(3), pytest.raises(KeyboardInterrupt):
        ssl_kd.distill(teacher, out=tmp_path / "cut", **settings)
    ssl_kd.distill(teacher, out=tmp_path / "cut", **settings)
    whole, rest = (torch.load(tmp_path / name / "last.ckpt", weights_only=True)["pair"] for name in ("whole", "cut"))
    assert any(name.startswith("average.") for name in whole)
    assert all(torch.equal(tensor, rest[name]) for name, tensor in whole.items())


def test_the_rate_climbs_then_falls_to_nothing():
    rates = [warmup_cosine(step, 4, 20) for step in range(21)]
    assert rates[:5] == sorted(rates[:5])
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert max(rates) <= 1
    assert rates[20] == pytest.approx(0)


def test_small_crops_are_asked_to_be_at_the_teachers_mean_of_the_large():
    pixels = [torch.zeros(3, 3, side, side) for side in (8, 8, 4, 4)]
    output = Features(torch.randn(6, 5), None)
    for_all = for_all_views(output, ViewBatch(np.arange(3), 0, tuple(pixels))).embedding
    assert for_all.shape == (12, 5)
    assert torch.equal(for_all[:6], output.embedding)
    mean = (output.embedding[:3] + output.embedding[3:]) / 2
    assert torch.allclose(for_all[6:9], mean)
    assert torch.allclose(for_all[9:], mean)
    assert for_all_views(output, ViewBatch(np.arange(3), 0, tuple(pixels[:2]))) is output


@pytest.mark.parametrize("objective", ["simreg_queue", "seed", "dist", "compress_2q"])
def test_small_crops_are_for_the_student_only(teacher, tmp_path, objective):
    seen = {}
    student = ssl_kd.build("resnet18", **ARGS)
    hooks = [
        network.register_forward_pre_hook(lambda _, given, name=name: seen.setdefault(name, set()).add(given[0].shape))
        for name, network in (("teacher", teacher), ("student", student))
    ]
    settings = {k: v for k, v in QUICK.items() if "student" not in k} | {"epochs": 1, "batch_size": 10}
    done = ssl_kd.distill(
        teacher,
        student,
        small_images(),
        out=tmp_path / "run",
        views="multicrop",
        objective=objective,
        replay=1,
        **settings,
    )
    for hook in hooks:
        hook.remove()
    assert np.isfinite(done.last["loss"])
    assert seen["teacher"] == {(2, 3, 32, 32), (10, 3, 32, 32)}  # the trial's and the run's
    assert seen["student"] == {(2, 3, 32, 32), (10, 3, 32, 32), (40, 3, 16, 16)}
    module = torch.load(tmp_path / "run/last.ckpt", weights_only=True)["pair"]
    (filled,) = (v for k, v in module.items() if k.endswith("relation.filled"))
    assert filled == 20  # each image once: what the teacher did not say is not remembered
    store = next((tmp_path / "run/targets").glob("*.f16"))
    assert store.stat().st_size == 20 * 16 * 2


def test_patches_of_small_crops_are_not_compared(teacher, tmp_path):
    with pytest.raises(UserError, match="views: small crops have patches"):
        ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "run", views="multicrop", objective="at", **QUICK)
    assert not (tmp_path / "run").exists()
