"""The answer in a sentence: a mean over the tasks that can tell, and the others by name."""

import math

import pytest
from small_results import cell, results

from ssl_kd.eval.results.verdict import WIDE, verdicts


def row(share, half):
    return {"share_kept": share, "share_low": share - half, "share_high": share + half}


def cells(*tasks):
    from dataclasses import replace

    return [replace(cell(name, 0.9), task=task) for task in tasks for name in ("teacher", "student")]


def test_the_sentence_gives_share_interval_and_size():
    found = verdicts(cells("pets"), "teacher", lambda *_: row(0.98, 0.02))
    assert [one.sentence("teacher") for one in found] == [
        "student keeps 98 % (96 to 100) of teacher's knn/dino on pets, at 1/25000.0 of its size"
    ]


def test_the_mean_of_independent_tasks_has_arms_that_join_as_squares():
    shares = {"a": row(0.9, 0.03), "b": row(0.7, 0.04)}
    (found,) = verdicts(cells("a", "b"), "teacher", lambda encoder, task, evaluator: shares[task])
    assert found.share == pytest.approx(0.8)
    assert found.high - found.share == pytest.approx(math.hypot(0.03, 0.04) / 2)
    assert "on 2 tasks" in found.sentence("teacher")


def test_a_task_whose_interval_is_too_wide_is_named_and_leaves_the_mean():
    shares = {"a": row(0.9, 0.03), "flowers": row(1.1, WIDE + 0.25)}
    (found,) = verdicts(cells("a", "flowers"), "teacher", lambda encoder, task, evaluator: shares[task])
    assert found.share == pytest.approx(0.9)
    assert found.sentence("teacher").endswith("; flowers: cannot tell (110 ± 45 %)")


def test_where_no_task_can_tell_no_share_is_claimed():
    (found,) = verdicts(cells("a"), "teacher", lambda *_: row(0.9, 0.5))
    assert not found.certain
    assert "keeps" not in found.sentence("teacher")


RANDOM = {"encoder random": "resnet18, random weights, seed 0, weights 00ff"}


def test_a_student_that_loses_to_a_random_network_is_told_so():
    many = [cell(name, right) for name, right in (("teacher", 0.9), ("student", 0.4), ("random", 0.8))]
    said = [one.sentence("teacher") for one in verdicts(many, "teacher", lambda *_: row(0.5, 0.1), RANDOM)]
    assert "; loses to a random network (" in said[0]
    assert "a random network" not in said[1]  # the random row itself


def test_a_student_that_cannot_be_told_from_a_random_network_is_told_so_and_a_better_one_is_not():
    many = [
        cell(name, right) for name, right in (("teacher", 0.95), ("student", 0.9), ("like it", 0.4), ("random", 0.4))
    ]
    good, alike, _ = verdicts(many, "teacher", lambda *_: row(0.9, 0.1), RANDOM)
    assert "a random network" not in good.sentence("teacher")
    assert "; cannot be told from a random network (" in alike.sentence("teacher")


def test_the_student_of_another_teacher_is_compared_and_keeps_nothing():
    facts = {
        "encoder teacher": "vit, DINOv2 ViT, patch 14, weights 11",
        "encoder student": "r, distilled from lite0, weights 22",
    }
    (one,) = verdicts(cells("pets"), "teacher", lambda *_: row(0.32, 0.02), facts)
    assert one.sentence("teacher").startswith(
        "student, another teacher's student, is at 32 % (30 to 34) of teacher's knn/dino"
    )
    facts["encoder student"] = "r, distilled from DINOv2 ViT, patch 14, weights 22"
    (one,) = verdicts(cells("pets"), "teacher", lambda *_: row(0.32, 0.02), facts)
    assert "student keeps 32 %" in one.sentence("teacher")


def test_figures_without_a_share_give_no_verdict():
    nothing = dict.fromkeys(("share_kept", "share_low", "share_high"))
    assert verdicts(cells("a"), "teacher", lambda *_: nothing) == []
    assert verdicts(cells("a"), "", lambda *_: row(math.nan, 0.1)) == []


def test_table_and_report_open_with_the_answer():
    from ssl_kd.eval.report.html import page

    said = [one.sentence("teacher") for one in results().verdicts()]
    assert len(said) == 2  # one by k-NN, one by the probe
    assert results().markdown().startswith(f"- **{said[0]}**")
    text = page(results())
    assert text.index('class="answer"') < text.index("<table")
