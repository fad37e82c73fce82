"""The way into the teacher's coordinates is the inverse of its normalisation behind the head, whatever both are."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssl_kd.objectives import TARGET_NORMS, Alignment, Correlation, build_objective
from ssl_kd.objectives.into_teacher import into_teacher
from ssl_kd.objectives.memory_bank import MemoryBank, TwoMemoryBanks
from ssl_kd.objectives.projectors import KEEPS_WIDTH, PROJECTORS
from ssl_kd.objectives.relations import CrossTable

S, T = 6, 5


def used(term, steps=4):
    """A term whose statistics have moved, in eval mode."""
    generator = torch.Generator().manual_seed(0)
    term.train()
    for step in range(steps):
        s, t = (3 * torch.randn(32, width, generator=generator) + 1 for width in (S, T))
        term(s, t, index=range(32 * step, 32 * (step + 1)))
    return term.eval()


@pytest.mark.parametrize("space", list(TARGET_NORMS.built_in))
@pytest.mark.parametrize("projector", [name for name in PROJECTORS.built_in if name not in KEEPS_WIDTH])
def test_what_is_normalised_again_is_what_the_head_gave(projector, space):
    torch.manual_seed(0)
    term = used(Alignment(S, T, projector, space, "mse"))
    way = nn.Sequential(*into_teacher(term))
    s = torch.randn(7, S)
    with torch.no_grad():
        torch.testing.assert_close(term.space(way(s)), term.projector(s), rtol=1e-3, atol=1e-4)
        # A student that is already there goes where the teacher is.
        assert way(s).shape == (7, T)
    assert all(type(layer) in (nn.Linear, nn.ReLU, nn.GELU, nn.LayerNorm) for layer in way)


def test_no_head_and_no_norm_is_the_student_itself():
    way = nn.Sequential(*into_teacher(Alignment(T, T, "identity", "raw", "mse")))
    rows = torch.randn(3, T)
    torch.testing.assert_close(way(rows), rows)


def test_distances_that_do_not_see_the_place_leave_no_way():
    assert into_teacher(Alignment(S, T, "linear", "raw", "pearson")) is None
    assert into_teacher(Alignment(S, T, nn.Sequential(nn.Linear(S, T), nn.Tanh()), "raw", "mse")) is None
    assert into_teacher(Alignment(S, T, "linear", nn.Softmax(1), "mse")) is None
    assert into_teacher(build_objective([{"term": "correlation", "relation": "batch"}], S, T)) is None


@pytest.mark.parametrize("distance", ["cosine", "unit_mse"])
def test_a_direction_from_the_teachers_mean_has_no_length_to_go(distance):
    """Twice as long a head has the same loss, and would lead elsewhere; from the origin it is the same direction."""
    for space, leads in (("raw", True), ("centred", False), ("standardised", False)):
        assert (into_teacher(used(Alignment(S, T, "linear", space, distance))) is not None) == leads
    raw, again = Alignment(S, T, "linear", "raw", "cosine"), Alignment(S, T, "linear", "centred", "mse")
    assert into_teacher(nn.ModuleList([used(Alignment(S, T, "mlp", "centred", "cosine")), raw, again])) is not None


@pytest.mark.parametrize("projector", ["linear", "bn", "mlp"])
@pytest.mark.parametrize("relation", [CrossTable, MemoryBank])
def test_a_relation_across_both_spaces_has_a_head_into_the_teachers(relation, projector):
    term = used(Correlation(S, T, relation(), projector=projector))
    rows = torch.randn(3, S)
    torch.testing.assert_close(nn.Sequential(*into_teacher(term))(rows), term.projector(rows), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 600])
def test_a_head_to_a_space_around_the_teachers_mean_goes_its_usual_length_and_back(steps):
    """Where all teacher embeddings lie equally far from their mean, a head that has their directions leads to themselves."""
    directions = F.normalize(torch.randn(64, T), dim=1)
    directions -= directions.mean(0)
    directions = F.normalize(directions, dim=1)
    teacher = 5 + 3 * directions
    term = Correlation(T, T, MemoryBank(128, batch="inside"), projector=nn.Linear(T, T), space="centred")
    with torch.no_grad():
        term.projector.weight.copy_(0.25 * torch.eye(T))
        term.projector.bias.zero_()
    for step in range(steps):
        term(directions, teacher, index=range(64 * step, 64 * (step + 1)))
    found = nn.Sequential(*into_teacher(term))(directions)
    assert torch.allclose(found, teacher, atol=0.3)
    assert F.cosine_similarity(found, teacher).min() > 0.995


def test_two_queues_leave_the_students_space_free():
    assert into_teacher(Correlation(S, T, TwoMemoryBanks(), projector="identity")) is None


def test_training_goes_on_untouched():
    torch.manual_seed(0)
    term = Alignment(S, T, "mlp", "standardised", "mse").train()
    before = {name: value.clone() for name, value in term.state_dict().items()}
    into_teacher(term)
    assert term.training
    assert all(torch.equal(before[name], value) for name, value in term.state_dict().items())
