"""Every part of an objective in a loop of one's own: plain (B, D) tensors, no batch of views, no trainer."""

import re
from pathlib import Path

import pytest
import torch
from small_features import build_objective, lay_all, rand
from torch import nn

from ssl_kd.errors import UserError
from ssl_kd.objectives import (
    DISTANCES,
    DIVERGENCES,
    PRESETS,
    PROJECTORS,
    RELATIONS,
    TERMS,
    Alignment,
    Correlation,
    Criterion,
    Features,
    MemoryBank,
    SoftmaxKL,
    ViewBatch,
    Widths,
)
from ssl_kd.objectives.projectors import KEEPS_WIDTH

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"


def pair(n=8, ds=6, dt=10):
    return rand(n, ds).requires_grad_(), rand(n, dt, seed=1)


def on_embeddings(name):
    """Whether a preset reads embeddings of one view alone: neither patches, layers, an average nor several views."""
    objective = build_objective(name, Widths(6, 6, Everything()), Widths(10, 10, Everything()))
    reads = objective.reads_tokens or objective.student_layers or objective.teacher_layers or objective.student_momentum
    return not reads and not objective.at_boundary and objective.min_views == 1


class Everything(dict):
    """Any layer, 6 wide."""

    def __contains__(self, name):
        return True

    def __getitem__(self, name):
        return 6


PLAIN = [name for name in PRESETS if on_embeddings(name)]


def test_most_presets_work_on_embeddings_alone():
    assert len(PLAIN) > 20
    assert {"simreg", "seed", "queue", "default_light", "rkd", "dist"} <= set(PLAIN)


@pytest.mark.parametrize("name", PLAIN)
def test_a_preset_gives_the_same_on_tensors_as_on_features_and_a_batch(name):
    torch.manual_seed(0)
    one = build_objective(name, 6, 10)
    other = build_objective(name, 6, 10)
    other.load_state_dict(one.state_dict())
    for step in range(2):
        index = torch.arange(8) + 8 * step
        s, t = rand(8, 6, seed=step).requires_grad_(), rand(8, 10, seed=9 + step)
        plain, terms = one(s, t, index=index)
        whole, _ = other(Features(s), Features(t), ViewBatch.of_rows(8, index=index))
        assert torch.equal(plain, whole)
        assert set(terms) == set(one.terms)
    if plain.requires_grad:
        assert torch.autograd.grad(plain, s)[0].isfinite().all()


@pytest.mark.parametrize("relation", [n for n, kind in RELATIONS.items() if kind.of == "embedding"])
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_relations_and_divergences_are_objects_that_take_tensors(relation, divergence):
    torch.manual_seed(0)
    batch = ViewBatch.of_rows(8, views=2)
    part = RELATIONS[relation]()
    part.fit(Widths(10), Widths(10))
    lay_all(part)
    part(rand(8, 10, seed=5), rand(8, 10, seed=6), batch)  # a memory then has something to show
    tables = part(rand(8, 10), rand(8, 10, seed=1), ViewBatch.of_rows(8, views=2))
    assert tables[0].shape == tables[1].shape
    if divergence == "pkt" and relation in ("products", "distances", "dims", "teacher_head"):
        return  # it takes cosines
    if (relation, divergence) in (("angles", "pearson"), ("angles", "rank")):
        return  # angles at i towards i itself are rows of zeros, which correlate with nothing
    assert DIVERGENCES[divergence]()(*tables).isfinite()


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_functions_of_tensors(distance):
    z = rand(8, 5)
    assert DISTANCES[distance](z, z).abs() < 1e-5
    assert DISTANCES[distance](z, rand(8, 5, seed=1)) > 0


@pytest.mark.parametrize("name", PROJECTORS)
def test_projectors_are_modules_of_any_term(name):
    width = 6 if name in KEEPS_WIDTH else 10
    loss = Alignment(6, width, projector=name)(rand(8, 6), rand(8, width, seed=1))
    assert loss.isfinite()


def test_parts_of_ones_own_take_the_places_of_names():
    s, t = pair()
    own = nn.Linear(6, 10)
    loss = Alignment(6, 10, projector=own, space=nn.Identity(), distance=lambda a, b: (a - b).abs().mean())(s, t)
    assert loss.item() == pytest.approx((own(s) - t).abs().mean().item())
    relation = MemoryBank(32)
    term = Correlation(6, 10, relation=relation, divergence=SoftmaxKL(0.1), projector=own)
    assert term(s, t).isfinite()
    assert term.relation is relation
    assert term.projector is own
    assert relation.filled == 8


def test_images_without_numbers_are_all_different_and_numbered_ones_hide_from_themselves():
    s, t = pair()
    nameless, named = (Correlation(6, 10, relation=MemoryBank(32, batch="none")) for _ in range(2))
    named.load_state_dict(nameless.state_dict())
    index = torch.arange(8)
    for term, numbers in ((nameless, None), (named, index)):
        term(s, t, index=numbers)
        term(s, rand(8, 10, seed=7), index=None if numbers is None else numbers + 100)
    free, hidden = nameless(s, t), named(s, t, index=index)
    assert free.item() != hidden.item()


def test_what_needs_several_views_asks_for_them():
    s, t = pair()
    with pytest.raises(UserError, match=r"2 views of each image.*ViewBatch.of_rows\(8, views=2\)"):
        build_objective("dlkd", 6, 10)(s, t)
    assert build_objective("dlkd", 6, 10)(s, t, ViewBatch.of_rows(8, views=2))[0].isfinite()
    with pytest.raises(UserError, match="give one of the two"):
        Alignment(6, 10)(s, t, ViewBatch.of_rows(8), index=range(8))


@pytest.mark.parametrize("given", [{"rows": 7, "views": 2}, {"rows": 8, "views": 0}, {"rows": 8, "index": [1, 2]}])
def test_a_batch_that_cannot_be_is_refused(given):
    with pytest.raises(ValueError, match="expected"):
        ViewBatch.of_rows(**given)


def test_terms_and_presets_are_criteria():
    assert all(isinstance(part, Criterion) for part in (Alignment(6, 10), build_objective("seed", 6, 10)))
    assert set(TERMS) == {
        "alignment",
        "correlation",
        "residual",
        "uncertainty",
        "hard_pairs",
        "compressed",
        "progression",
        "ladder",
        "masked_tokens",
        "masked_head",
        "boundary",
        "variational",
        "renyi_correlation",
        "renyi_mutual",
        "selectivity",
        "factors",
    }


def test_the_loop_of_the_page_learns():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text().split("## In a loop of your own")[1], re.DOTALL)[:1]
    torch.manual_seed(0)
    teacher, student = nn.Linear(12, 512).requires_grad_(False), nn.Linear(12, 384)
    images = torch.randn(96, 12)
    scope = {"teacher": teacher, "student": student, "batches": [images[i : i + 32] for i in range(0, 96, 32)] * 20}
    exec(code, scope)
    losses = scope["losses"]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
