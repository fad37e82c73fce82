"""Without labels the answer is a sentence too: neighbours in common with the teacher, beside chance and a random network."""

import numpy as np
import pytest

from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.label_free import Stability
from ssl_kd.eval.evaluators.retrieval import Agreement
from ssl_kd.eval.results import Cell, Results

RANDOM = {"encoder random": "resnet18, random weights, seed 0, weights 00ff"}


def rows(seed, n=300):
    return np.random.default_rng(seed).normal(size=(n, 8))


def banks(features):
    half = len(features) // 2
    return [FeatureBank(part.astype(np.float32), None) for part in (features[:half], features[half:])]


def results(facts, **noises):
    """An encoder is the teacher with so much noise; a very large one leaves nothing of it."""
    teacher, cells = rows(0), []
    for seed, (name, noise) in enumerate({"teacher": 0, **noises}.items(), 1):
        scores = Agreement()(*banks(teacher + noise * rows(seed)), *banks(teacher))
        cells.append(Cell("mine", name, "overlap", scores, 1000, 8, None))
    return Results(tuple(cells), "teacher", facts)


def test_a_student_no_better_than_a_random_network_is_told_so():
    (said,) = results(RANDOM, student=1e9, random=1e9).answers()
    assert said.startswith("mine: student shares ")
    assert "of teacher's 10 nearest neighbours, chance 6.7: cannot be told from chance" in said
    assert "cannot be told from a random network" in said


def test_a_good_student_is_told_how_far_it_is_above_a_random_one():
    (one,) = results(RANDOM, student=0.2, random=1e9).neighbour_verdicts()
    assert not one.is_chance
    assert one.beside.low < one.share - one.beside.random < one.beside.high
    assert "points" in one.sentence("teacher")
    assert "above a random network" in one.sentence("teacher")


def test_a_student_that_loses_to_a_random_network_is_told_so():
    (one,) = results(RANDOM, student=5, random=0.5).neighbour_verdicts()
    assert one.is_chance
    assert "loses to a random network" in one.sentence("teacher")


def test_without_a_random_row_chance_is_the_measure_and_the_sentence_asks_for_one():
    (one,) = results({}, student=0.2).neighbour_verdicts()
    assert one.beside is None
    assert "times chance; " in one.sentence("teacher")
    assert "{name: random, like: student}" in one.sentence("teacher")
    (none,) = results({}, student=1e9).neighbour_verdicts()
    assert none.sentence("teacher").endswith("cannot be told from chance")


def test_stability_keeps_no_share_of_the_teachers_in_table_pairs_and_report():
    from ssl_kd.eval.report.html import page

    index, queries = banks(rows(0))
    cells = []
    for seed, name in enumerate(("teacher", "random"), 1):
        scores = Stability()(
            index, queries, FeatureBank((queries.features + seed * rows(seed, 150)).astype(np.float32), None)
        )
        cells.append(Cell("mine vs mine + noise 3", name, "overlap", scores, 1000, 8, None))
    found = Results(tuple(cells), "teacher")
    assert [row["share_kept"] for row in found.rows] == [None, None]
    assert found.rows[1]["p"] == pytest.approx(found.comparisons()[0]["p"])
    assert np.isnan(found.comparisons()[0]["share"])
    assert "nan" not in page(found)
    assert "accuracies, mAP and agreement" in found.caption()
