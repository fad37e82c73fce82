"""Asymmetric retrieval through a student's own head, and the advice to keep an index or to embed again."""

import copy

import numpy as np
import pytest
import torch
from markupsafe import escape
from small_runs import small_teacher

from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.eval.datasets.tasks import Split, Task
from ssl_kd.eval.evaluation import evaluate_encoders
from ssl_kd.eval.metrics import Scores, mean_score
from ssl_kd.eval.report.html import page
from ssl_kd.eval.results import Cell, Results
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space_head import SpaceHead


def task():
    rng = np.random.default_rng(0)
    low = rng.integers(0, 256, (4, 4, 4, 3))

    def split(count):
        labels = np.arange(count) % 4
        noisy = (low[labels] + rng.normal(0, 40, (count, 4, 4, 3))).clip(0, 255).astype(np.uint8)
        return Split(ArrayImages(noisy.repeat(8, 1).repeat(8, 2)), labels)

    return Task("patches", split(40), split(24))


@pytest.fixture(scope="module")
def networks():
    teacher = small_teacher()
    teacher.preprocessing = Preprocessing(size=32, resize=32, crop=32)
    same, other = copy.deepcopy(teacher), copy.deepcopy(teacher)
    torch.manual_seed(2)
    straight, wrong = torch.nn.Linear(16, 16, bias=False), torch.nn.Linear(16, 16)
    with torch.no_grad():
        straight.weight.copy_(torch.eye(16))
        for network in (same, other):  # of another digest, or they would be taken for the teacher itself
            next(network.parameters()).mul_(1.0001)
    for network, layer in ((same, straight), (other, wrong)):
        layer.bias = torch.nn.Parameter(torch.zeros(16)) if layer.bias is None else layer.bias
        network.heads["teacher"] = SpaceHead([layer], teacher.space, "pool")
    return {"teacher": teacher, "same": same, "other": other}


def test_queries_go_through_the_head_and_the_bridge_stands_beside(networks):
    results = evaluate_encoders(networks, [task()], ["retrieval", "asymmetric"], reference="teacher", quiet=True)
    own = results.value("teacher", "patches", "retrieval", "map")
    assert results.value("same", "patches", "asymmetric", "map") == pytest.approx(own, abs=0.01)
    kept, again = results.index_verdicts()
    assert (kept.encoder, kept.keep) == ("same", True)
    assert abs(kept.lost) < 0.01
    assert kept.bridge is not None
    said = kept.sentence("teacher")
    assert said.startswith("patches: queries by same against teacher's index: mAP ")
    assert "keep it, you " in said
    # A head that was never trained leads nowhere: its own index is better, and the figures say so.
    assert again.asked < results.value("other", "patches", "retrieval", "map")
    assert not again.keep
    assert "re-embed" in again.sentence("teacher")
    assert said in results.answers()
    shown = page(results)
    for one in (kept, again):
        assert f"<li>{escape(one.sentence('teacher'))}.</li>" in shown


def test_without_a_head_the_bridge_alone_is_asked(networks):
    plain = copy.deepcopy(networks["other"])
    plain.heads.clear()
    results = evaluate_encoders(
        {"teacher": networks["teacher"], "plain": plain},
        [task()],
        ["retrieval", "asymmetric"],
        reference="teacher",
        quiet=True,
    )
    (verdict,) = results.index_verdicts()
    assert verdict.bridge is None
    assert "bridge" not in verdict.sentence("teacher")


def scores(kind, precision, seed, count):
    """Retrieval with that mAP, query by query."""
    each = np.random.default_rng(seed).binomial(1, precision, count).astype(float)
    score = mean_score("map", each)
    return Scores(
        kind,
        "full",
        (score,),
        np.array([]),
        np.zeros(count, int),
        {},
        headline_metric="map",
        each={("map", None): each},
    )


def verdict(teacher, asked, own, count=400, random=None):
    made = {("teacher", "retrieval"): teacher, ("student", "retrieval"): own, ("student", "asymmetric"): asked}
    if random is not None:
        made |= {("random", "retrieval"): random, ("random", "asymmetric"): random}
    cells = [
        Cell("mine", name, "map", scores(kind, value, seed, count), 1000, 8, None)
        for seed, ((name, kind), value) in enumerate(made.items())
    ]
    facts = {"encoder random": "resnet18, random weights, seed 0"}
    (found,) = Results(tuple(cells), "teacher", facts).index_verdicts()
    return found.sentence("teacher")


def test_a_student_too_poor_for_either_way_leaves_the_teacher_where_it_is():
    said = verdict(0.468, 0.085, 0.2)
    assert ": keep teacher for queries too: student is not good enough, at best " in said
    assert "re-embed" not in said


def test_a_student_that_reaches_half_or_cannot_be_told_from_the_teacher_is_advised_as_before_and_told_what_it_loses():
    assert "; beside teacher's own search you lose " in verdict(0.468, 0.085, 0.35)
    assert "re-embed" in verdict(0.468, 0.085, 0.35)
    assert "re-embed" in verdict(0.2, 0.01, 0.09, count=40)  # below half, but nobody can tell it from the teacher's
    assert ": keep it, you lose" in verdict(0.468, 0.40, 0.35)


def test_a_student_no_better_than_random_weights_is_advised_for_nothing():
    """It was "re-embed": its own index was above half of the teacher's mAP, and so was that of random weights."""
    said = verdict(0.267, 0.125, 0.146, random=0.14)
    assert "random weights in their own index " in said
    assert ": keep teacher for queries too: student cannot be told from a random network" in said
    assert "re-embed" in verdict(0.468, 0.085, 0.35, random=0.14)
    assert ": keep it, you lose" in verdict(0.468, 0.40, 0.35, random=0.14)
