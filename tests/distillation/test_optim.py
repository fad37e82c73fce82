"""Optimisers: Muon's step is orthogonal, its vectors follow AdamW, and a run with it resumes to the same bits."""

import pytest
import torch
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher
from torch import nn

import ssl_kd
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.optim import Muon, make_optimizer, orthogonal
from ssl_kd.runtime.signals import Interrupted


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(6, 6), (4, 30), (30, 4), (1, 9)])
def test_a_matrix_keeps_its_directions_and_loses_its_lengths(shape):
    matrix = drawn(*shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonal(matrix)
    lengths = torch.linalg.svdvals(made)
    assert lengths.min() > 0.3
    assert lengths.max() < 1.3
    inner = left.T @ made @ right.T  # diagonal where the directions are the same
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(6, 6), (4, 30), (30, 4), (16, 40)])
@pytest.mark.parametrize(("half", "off"), [(False, 1e-3), (True, 0.03)])
@pytest.mark.parametrize("falling", [0.0, 3.0])
def test_the_steps_are_those_of_the_plain_loop(shape, half, off, falling):
    """`falling`: over so many powers of ten the columns shrink, which leaves small singular values."""
    matrix = drawn(*shape) @ torch.logspace(0, -falling, shape[1]).diag()
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    assert (orthogonal(matrix, half=half) - x).norm() < off * x.norm()


def test_the_size_of_a_gradient_plays_no_part():
    matrix = drawn(8, 12)
    assert torch.allclose(orthogonal(matrix), orthogonal(1e-4 * matrix), atol=1e-3)


def test_vectors_follow_torchs_adamw_at_a_share_of_the_rate():
    ours, theirs = nn.Parameter(drawn(7)), nn.Parameter(drawn(7))
    mine = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.05, ratio=0.2)
    peer = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1)
    for step in range(5):
        ours.grad, theirs.grad = drawn(7, seed=step), drawn(7, seed=step)
        mine.step()
        peer.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_head_that_gets_its_gradient_later_counts_its_own_steps():
    early, late, alone = (nn.Parameter(drawn(7, 3)) for _ in range(3))
    together, apart = (Muon([{"params": some, "orthogonal": False}], lr=0.05) for some in ([early, late], [alone]))
    early.grad = drawn(7, 3, seed=4)
    together.step()
    late.grad = alone.grad = drawn(7, 3, seed=5)
    together.step()
    apart.step()
    assert torch.equal(late, alone)


def test_a_convolution_moves_as_the_matrix_of_its_output_channels():
    conv, matrix = nn.Parameter(drawn(8, 3, 3, 3)), nn.Parameter(drawn(8, 27))
    conv.data.copy_(matrix.data.view(8, 3, 3, 3))
    gradient = drawn(8, 27, seed=1)
    conv.grad, matrix.grad = gradient.view(8, 3, 3, 3), gradient
    for parameter in (conv, matrix):
        Muon([parameter], lr=0.1).step()
    assert torch.equal(conv.flatten(1), matrix)


def test_a_run_with_muon_learns_and_resumes_to_the_same_bits(tmp_path):
    settings = SMALL | {"optimizer": "muon", "lr": 2e-2, "objective": "default_light"}
    whole = ssl_kd.distill(small_teacher(), images=small_images(), out=str(tmp_path / "whole"), **settings)
    with signal_in_step(2), pytest.raises(Interrupted):
        ssl_kd.distill(small_teacher(), images=small_images(), out=str(tmp_path / "half"), **settings)
    rest = ssl_kd.distill(small_teacher(), images=small_images(), out=str(tmp_path / "half"), **settings)
    assert same(whole.student, rest.student)


@pytest.mark.parametrize("shape", [(6, 6), (4, 30), (30, 4)])
def test_in_bfloat16_the_step_points_where_it_does_in_float32(shape):
    exact, half = orthogonal(drawn(*shape)), orthogonal(drawn(*shape), half=True)
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(exact.flatten(), half.flatten(), dim=0) > 0.99


def test_muon_turns_the_network_and_adamw_moves_the_heads():
    module = nn.ModuleDict({"student": nn.Linear(5, 4), "objective": nn.Linear(4, 9)})
    peer = torch.optim.AdamW(
        [nn.Parameter(module["objective"].weight.detach().clone())], lr=0.2 * 0.04, weight_decay=0.3
    )
    optimizer = make_optimizer(module, DistillConfig(optimizer="muon", lr=0.04, weight_decay=0.3))
    before = module["student"].weight.detach().clone()
    for parameter in module.parameters():
        parameter.grad = drawn(*parameter.shape)
    theirs = peer.param_groups[0]["params"][0]
    theirs.grad = module["objective"].weight.grad.clone()
    optimizer.step()
    peer.step()
    assert torch.allclose(module["objective"].weight, theirs, atol=1e-6)
    moved = torch.linalg.svdvals(module["student"].weight.detach() - before * (1 - 0.04 * 0.3))
    assert moved.min() > 0.3 * 0.04  # every direction alike
