"""The chart of the front page: what it says of a comparison is what the comparison's report says."""

import math
import re

import pytest

from benchmarks.front_page import WIDTHS, compared, comparison, draw
from ssl_kd.cli.demo import STUDENT
from ssl_kd.compare.results import Comparison, Group, Line
from ssl_kd.errors import UserError

KNN, LINEAR = "knn/dino k=20 *", "linear/quick-lbfgs *"
SIZES = {"tiny": 500_000, "half": 2_800_000}


def line(student, seed, value, kind="student", name="centred", budget="short"):
    figures = {task: {KNN: value, LINEAR: value + 0.1, "knn/dino k=1": 0.0} for task in ("a", "b")}
    return Line(Group("lite0", student, "photos", budget), kind, name, seed, figures, SIZES[student])


def write(folder, *lines):
    """A comparison's folder, as `ssl-kd compare` leaves it."""
    teachers = {"lite0": {"a": {KNN: 0.6, LINEAR: 0.8}, "b": {KNN: 0.4, LINEAR: 0.8}}}
    folder.mkdir()
    (folder / "compare.csv").write_text(Comparison(lines, teachers, "").csv(), encoding="utf-8")
    return folder


def test_shares_and_intervals_are_those_of_the_comparison(tmp_path):
    lines = [line(student, seed, 0.3 + 0.02 * seed) for student in SIZES for seed in range(3)]
    lines += [line("half", 0, 0.9, name="sp"), line("half", 0, 0.05, "random", "random")]
    found = comparison(write(tmp_path / "real", *lines))
    (panel,) = compared({"real": found}, "centred").values()
    assert list(panel) == ["k-NN", "linear probe", "k-NN, random weights", "linear probe, random weights"]
    assert [point.student for point in panel["k-NN"]] == ["tiny", "half"]  # by size
    for point in panel["k-NN"]:
        # the mean of 0.30, 0.32, 0.34 over a teacher's 0.5; Student's t of two degrees is 4.303, s.d. 0.02
        assert point.share == pytest.approx(0.64)
        assert point.high - point.share == pytest.approx(4.303 * 0.04 / 3**0.5, rel=1e-3)
        assert point.share - point.low == pytest.approx(point.high - point.share)
    assert panel["linear probe"][0].share == pytest.approx(0.42 / 0.8)
    assert panel["k-NN, random weights"][0].share == pytest.approx(0.1)


def test_one_seed_has_no_interval_and_is_drawn_without(tmp_path):
    panels = compared({"real": comparison(write(tmp_path / "real", line("half", 0, 0.3)))}, "centred")
    assert math.isnan(panels["lite0"]["k-NN"][0].low)
    assert draw(panels, tmp_path / "new/kept.png").read_bytes().startswith(b"\x89PNG")


def test_several_comparisons_are_told_apart_by_their_budgets(tmp_path):
    folders = [write(tmp_path / budget, line("half", 0, 0.3, budget=budget)) for budget in ("short", "long")]
    panels = compared({folder.name: comparison(folder) for folder in folders}, "centred")
    assert {name for name in panels["lite0"] if "k-NN" in name} == {"k-NN, short", "k-NN, long"}


def test_what_is_not_there_is_said(tmp_path):
    folder = write(tmp_path / "real", line("half", 0, 0.3), line("half", 0, 0.3, name="sp"))
    with pytest.raises(UserError, match=r"'unic' has no student there; there are centred, sp"):
        compared({"real": comparison(folder)}, "unic")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/compare.csv is not there")):
        comparison(tmp_path)
    many = {f"{i}": comparison(write(tmp_path / f"{i}", line("half", 0, 0.3, budget=f"{i}"))) for i in range(9)}
    with pytest.raises(UserError, match="18 series, of which a chart can tell 6 apart"):
        draw(compared(many, "centred"), tmp_path / "x.png")


def test_the_demos_student_is_one_of_those_drawn():
    assert list(STUDENT.student_args["channels"]) in [list(width) for width in WIDTHS]
