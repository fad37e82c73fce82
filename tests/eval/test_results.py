"""A table says what was measured: names as they are, each figure's metric, and the k of each task."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from ssl_kd.eval.metrics import Score, Scores
from ssl_kd.eval.results import Cell, Results

METRIC = {"knn": "top1", "calibration": "ece", "retrieval": "map", "agreement": "overlap"}


def cell(evaluator="knn", task="pets", encoder="teacher", metric="", k=None):
    shown = metric or METRIC[evaluator]
    row = Score(shown, 0.5, 0.4, 0.6, 10, k)
    labels = np.zeros(10, int)
    scores = Scores(evaluator, "usual", (row,), np.array(["a", "b"]), labels, {}, k, headline_metric=shown)
    return Cell(task, encoder, shown, scores, 1000, 8, 100.0)


def printed(results):
    text = io.StringIO()
    Console(width=160, file=text).print(results.table())
    return text.getvalue()


@pytest.mark.parametrize("name", ["t[/x]", "rand[v2]", "[red]x", ":cat:", "a\\[b]"])
def test_a_terminal_shows_names_as_they_are(name):
    long = [cell(kind, task=name, encoder=name) for kind in METRIC]
    for cells in ([cell(task=name, encoder=name)], long):
        found = Results(tuple(cells), name)
        assert printed(found).count(name) >= 3  # task, encoder, and the title's "of whose figure"


def test_the_metric_of_a_task_stands_beside_the_task():
    found = Results((cell(metric="mean_per_class"), cell(task="hues"), cell("retrieval", "others")))
    header, lines = found.grid()
    assert header[:4] == ["task", "encoder", "knn/usual %", "kept %"]
    assert [line[0] for line in lines] == ["pets (mean per class)", "hues", "others (mean average precision)"]


def test_the_metrics_of_several_evaluators_stand_beside_them():
    found = Results(tuple(cell(kind, encoder=name) for name in "ab" for kind in ("calibration", "knn", "retrieval")))
    header, lines = found.grid()
    heads = ["calibration/usual (calibration error) %", "knn/usual %", "retrieval/usual (mean average precision) %"]
    assert header[2:8:2] == heads
    assert [line[:2] for line in lines] == [["pets", "a"], ["pets", "b"]]


def test_where_metrics_differ_by_task_and_evaluator_each_line_says_its_own():
    shown = {("knn", "pets"): "mean_per_class", ("knn", "hues"): "top1"}
    cells = [cell(k, t, e, shown.get((k, t), "")) for t in ("pets", "hues") for e in "ab" for k in ("knn", "retrieval")]
    found = Results(tuple(cells), "a")
    header, lines = found.grid()
    assert header == ["task", "evaluator", "a %", "b %", "kept %"]
    assert [line[:2] for line in lines] == [
        ["pets", "knn/usual (mean per class)"],
        ["pets", "retrieval/usual (mean average precision)"],
        ["hues", "knn/usual"],
        ["hues", "retrieval/usual (mean average precision)"],
    ]
    assert "parameters" in found.caption()


def test_the_caption_says_on_which_tasks_k_was_clamped():
    tasks = {"small": 12, "pets": 20, "hues": 20, "tiny": 4}
    found = Results(tuple(cell(task=task, k=k) for task, k in tasks.items()))
    assert "; knn/usual at k = 20 (12 on small; 4 on tiny). images/s: with reading" in found.caption()
    assert "knn/usual at k = 12." in Results((cell(task="small", k=12),)).caption()


def test_a_student_that_sees_another_size_than_its_teacher_is_noted():
    """A teacher at 224 px stood beside a student at 96 without a word."""
    import ssl_kd
    from ssl_kd.eval.evaluation import other_sizes
    from ssl_kd.models.preprocessing import Preprocessing

    rows = {}
    for name, size in (("teacher", 224), ("student", 96), ("stranger", 96)):
        rows[name] = ssl_kd.build("test_resnet", preprocessing=Preprocessing().at(size))
        rows[name].origin = "SwAV" if name == "teacher" else f"distilled from {'SwAV' if name == 'student' else 'DINO'}"
    (note,) = other_sizes(rows, "teacher")
    assert note.startswith("teacher is judged at 224 px and student, its student, at 96; `size: 96` in teacher's row")
    rows["teacher"].preprocessing = rows["student"].preprocessing
    assert other_sizes(rows, "teacher") == []


@pytest.mark.parametrize("gap", ["\n", "\r\n", "\u2028"])
def test_a_line_break_in_a_name_breaks_no_table(gap):
    plain, broken = (Results((cell(task=f"a{space}b", encoder=f"c{space}d"),), f"c{space}d") for space in (" ", gap))
    assert broken.markdown() == plain.markdown()
    assert broken.latex() == plain.latex()


@pytest.mark.parametrize("name", ["=1+2", "+cmd|' /C calc'!A0", "-2+3", "@SUM(1)", "\t=1", "\r=1"])
def test_no_cell_of_the_csv_is_a_formula(name):
    from dataclasses import replace

    from small_results import results

    found = results()
    cells = tuple(replace(cell, encoder=name, task=name) for cell in found.cells[:1])
    text = replace(found, cells=cells, reference=name).csv()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert rows
    for row in rows:
        assert row["encoder"] == row["task"] == "'" + name.replace("\r", " ")
        assert float(row["value"]) >= 0


def test_what_made_the_figures_is_kept_beside_them(tmp_path):
    from small_results import results

    results().save(tmp_path)
    record = json.loads((tmp_path / "facts.json").read_text())
    assert record["facts"] == {"programs": "torch 2"}
    assert record["left_out"] == ["voc x knn"]
