"""`ssl-kd compare` end to end: the table, what the teacher is asked, resuming, several processes, and who may choose."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from small_compare import paint, small
from small_runs import signal_in_step, small_teacher

from ssl_kd.checkpoints.saving import save_student
from ssl_kd.cli.main import main
from ssl_kd.compare import training, work
from ssl_kd.compare.plan import Job
from ssl_kd.compare.report import page
from ssl_kd.compare.results import Comparison, Group, Interval, Line, Pair
from ssl_kd.compare.run import collect, compare
from ssl_kd.compare.shelf import COMPARISON
from ssl_kd.compare.table import markdown
from ssl_kd.errors import UserError
from ssl_kd.runtime.ownership import mark


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    return save_student(small_teacher(), tmp_path_factory.mktemp("teacher") / "teacher.safetensors")


def asked(encoder):
    """The sizes of the batches that a network is asked, from here on."""
    found = []
    encoder.network.register_forward_hook(lambda module, given, out: found.append(len(given[0])))
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One comparison with every kind of row, and what its teacher was asked."""
    folder, encoder = tmp_path_factory.mktemp("finished"), small_teacher()
    calls = asked(encoder)
    config = small(folder, encoder, seeds=[0, 1], lr=[1e-3, 4e-3], random=True, scratch=True)
    return config, compare(config), calls


def test_a_comparison_ends_in_a_line_for_each_objective_and_each_row_beside(finished):
    _, found, _ = finished
    (group,) = found.groups
    assert set(found.names(group)) == {"default_light", "sp"}
    assert {(line.kind, line.seed) for line in found.lines} == {
        (kind, seed) for kind in ("student", "random", "scratch") for seed in (0, 1)
    }
    assert found.unfinished == 0
    assert not found.refused
    assert found.pair(group, found.shown[0], "sp", "default_light").seeds == 2


@pytest.mark.parametrize(
    ("mean", "half", "verdict"),
    [(-0.012, 1.112, "cannot tell: 2 seeds"), (0.01, 0.2, "ties within"), (0.5, 0.3, "beats"), (-0.5, 0.3, "loses")],
)
def test_a_difference_whose_interval_has_room_for_anything_is_no_tie(mean, half, verdict):
    pair = Pair(Group("t", "s", "all", "short"), "knn/dino", "a", "b", 2, Interval(mean, half))
    assert pair.verdict == verdict


def against_random(student, random):
    """A comparison of one objective with random weights: k-NN of each seed."""
    group = Group("t", "half", "all", "short")
    rows = [("student", "bank", student), ("random", "random", random)]
    lines = [
        Line(group, kind, name, seed, {"task": {"knn/dino k=20 *": value}})
        for kind, name, values in rows
        for seed, value in enumerate(values)
    ]
    return Comparison(tuple(lines), {"t": {"task": {"knn/dino k=20 *": 0.9}}}, "bank")


@pytest.mark.parametrize(
    ("student", "random", "alike"),
    [
        ([0.5], [0.5], True),
        ([0.6], [0.5], False),
        ([0.6, 0.4, 0.5], [0.5, 0.5, 0.5], True),
        ([0.7, 0.71, 0.72], [0.5, 0.5, 0.51], False),
        ([0.5], [], False),
    ],
)
def test_an_objective_like_random_weights_is_said_to_be_in_table_and_report(student, random, alike):
    found = against_random(student, random)
    line = "half from t, all, short: bank cannot be told from random weights by knn k=20"
    assert (line in markdown(found)) == (line in page(found, "", "")) == alike


@pytest.mark.slow
def test_few_held_out_images_are_said_once_before_the_first_cell(tmp_path, teacher, capsys):
    config = small(tmp_path, teacher, objectives=["sp"], quiet=False)
    for _ in range(2):  # the second time nothing is left to do
        compare(config)
    said = capsys.readouterr().err
    line = "compare: all: 32 images are held out, of which unrelated networks share 32.3 % of 10 neighbours: "
    assert said.startswith(line)
    assert said.count(line) == 1
    assert "--held_out 36 holds out more" in said


def test_the_report_says_at_what_size_images_are_judged(finished):
    config, _, _ = finished
    text = (Path(config.out) / "report.html").read_text()
    assert "images are judged at 32 px: whole, without a crop" in text
    assert "{..., size: 32, crop_ratio: 1.0}" in text


def test_curves_stand_above_a_line_of_chance(finished):
    config, found, _ = finished
    text = (Path(config.out) / "report.html").read_text()
    held = 32  # of 72 images
    assert found.chances == {"all": 10 / (held - 1)}
    drawn = text[text.index("While training") :]
    assert f">chance {1000 / (held - 1):.1f} %</text>" in drawn


@pytest.mark.slow
def test_a_cells_score_is_named_as_it_is_told(tmp_path, teacher, capsys):
    compare(small(tmp_path, teacher, objectives=["sp"], lr=[1e-3, 4e-3], quiet=False))
    told = [line for line in capsys.readouterr().err.splitlines() if "sp" in line and "seed" in line]
    assert told
    assert all(re.search(r" s, neighbours in common \d+\.\d %, chance 32\.3 %$", line) for line in told)
    assert not any("score" in line for line in told)


def test_the_files_of_a_comparison_hold_its_figures(finished):
    config, found, _ = finished
    out = Path(config.out)
    text = (out / "compare.md").read_text()
    assert all(
        name in text for name in ("default_light", "sp", "teacher t", "random weights", "supervised from scratch")
    )
    assert (out / "compare.csv").read_text().count("\n") > len(found.lines)
    page = (out / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "While training" in page
    assert "Learning rates" in page
    assert yaml.safe_load((out / "config.yaml").read_text())["objectives"] == ["default_light", "sp"]


def test_the_same_command_again_trains_and_asks_nothing(finished, monkeypatch):
    config, found, calls = finished
    calls.clear()
    monkeypatch.setattr(training, "distill", None)
    again = compare(config)
    assert again.lines == found.lines
    assert calls == []


def test_a_look_at_what_is_finished_writes_the_report_and_starts_nothing(tmp_path, monkeypatch):
    from dataclasses import replace

    from ssl_kd.compare import run as compare_run

    config = small(tmp_path, small_teacher(), seeds=[0], random=True)
    monkeypatch.setattr(compare_run, "work", None)
    mark(Path(config.out), COMPARISON)  # begun, and nothing finished
    (Path(config.out) / "cells").mkdir()
    found = compare(replace(config, show=True))
    assert found.unfinished > 0
    assert found.lines == ()
    assert (Path(config.out) / "report.html").read_text().startswith("<!doctype html>")
    assert yaml.safe_load((Path(config.out) / "config.yaml").read_text())["seeds"] == [0]


def test_another_seed_or_task_computes_what_is_new_alone(finished, tmp_path, monkeypatch):
    from dataclasses import replace

    config, _, _ = finished
    for part, seed in (("train", 5), ("test", 6)):
        paint(tmp_path / "more" / part, 8, seed)
    monkeypatch.setattr(training, "distill", None)  # a task more needs no student more
    found = compare(replace(config, tasks=[*config.tasks, str(tmp_path / "more")], scratch=False))
    assert found.tasks == ["task", "more"]


def test_learning_rates_are_chosen_on_a_seed_that_enters_no_table(finished):
    config, found, _ = finished
    assert config.tune_seed not in {line.seed for line in found.lines}
    for line in found.lines:
        if line.kind == "student":
            tried = found.trials["t", "student", "all", line.name]
            assert set(tried) == {1e-3, 4e-3}
            assert tried[line.lr] == max(tried.values())


def test_a_folder_of_others_is_left_alone_and_what_was_not_begun_cannot_be_shown(tmp_path, teacher):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="there is none in"):
        compare(small(tmp_path, teacher, show=True))
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "out" / "holiday.jpg").write_bytes(b"mine")
    for show in (False, True):
        with pytest.raises(UserError, match="is not empty and not a comparison's folder"):
            compare(small(tmp_path, teacher, show=show))
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["holiday.jpg"]


@pytest.mark.slow
def test_a_student_without_a_named_rate_has_the_one_of_a_run(tmp_path, teacher):
    students = {"plain": {"args": {"channels": [4, 4, 4, 4]}}, "mobile": "mobilenetv3_small_050"}
    found = compare(small(tmp_path, teacher, students=students, objectives=["sp"]))
    assert {line.group.student: line.lr for line in found.lines if line.kind == "student"} == {
        "plain": 4e-2,
        "mobile": 2e-2,
    }


@pytest.mark.slow
def test_eight_objectives_ask_the_teacher_once_for_each_view(tmp_path):
    encoder = small_teacher()
    names = ["default", "default_light", "sp", "simreg", "unic", "theia", "ckd", "rkd"]
    config = small(tmp_path, encoder, objectives=names, evaluators=["knn/dino"], points=1)
    calls = asked(encoder)
    found = compare(config)
    assert set(found.names(found.groups[0])) == set(names)
    images, held, epochs = 72, 32, 2
    dry = 2 * (2 * len(names) + 1)  # two made-up images before each run, each look at an objective, and the filling
    watched = held * len(names)  # the held-out images, once in each run
    judged = 2 * (16 + 4 + 1)  # both parts of the task, and how extraction compares its engine with the network
    assert sum(calls) == (images - held) * epochs + dry + watched + judged


def test_labels_of_the_judged_tasks_choose_nothing(tmp_path, teacher):
    """With the judged tasks' classes shuffled every student, rate and trial is what it was."""
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    right = compare(small(tmp_path / "a", teacher, lr=[1e-3, 4e-3], objectives=["sp"]))
    config = small(tmp_path / "b", teacher, lr=[1e-3, 4e-3], objectives=["sp"])
    task = tmp_path / "b/task"
    for part in ("train", "test"):  # half of each class change places
        for i in range(0, 8, 2):
            a, b = task / part / f"0/{i}.png", task / part / f"1/{i}.png"
            a.rename(tmp_path / "spare.png"), b.rename(a), (tmp_path / "spare.png").rename(b)
    wrong = compare(config)
    facts = [[(o.name, o.lr, o.looks, [c[2] for c in o.curve]) for o in found.lines] for found in (right, wrong)]
    assert facts[0] == facts[1]
    assert right.trials == wrong.trials
    assert [o.figures for o in right.lines] != [o.figures for o in wrong.lines]


@pytest.mark.slow
def test_a_task_that_is_set_aside_may_choose_and_is_judged_nowhere(tmp_path, teacher):
    for part, seed in (("train", 7), ("test", 8)):
        paint(tmp_path / "aside" / part, 8, seed)
    config = small(tmp_path, teacher, lr=[1e-3, 4e-3], objectives=["sp"], tune_task={"path": str(tmp_path / "aside")})
    found = compare(config)
    assert found.tasks == ["task"]
    assert "aside, which is judged nowhere" in found.scored_by
    with pytest.raises(UserError, match="what is judged chooses nothing"):
        compare(small(tmp_path, teacher, tune_task={"path": str(tmp_path / "task")}))


def test_a_killed_comparison_resumes_its_running_cell(tmp_path, teacher):
    config = small(tmp_path, teacher, objectives=["sp"], budgets={"short": 160}, save_minutes=60.0)
    with signal_in_step(7), pytest.raises(KeyboardInterrupt, match="the same command resumes the comparison"):
        compare(config)
    state = next((tmp_path / "out/cells").glob("*/run/last.ckpt"))
    assert torch.load(state, weights_only=True)["step"] == 7 + 1
    cut = compare(config)
    (tmp_path / "whole").mkdir()
    whole = compare(small(tmp_path / "whole", teacher, objectives=["sp"], budgets={"short": 160}))
    assert [line.figures for line in cut.lines] == [line.figures for line in whole.lines]
    assert not list((tmp_path / "out/cells").glob("*/run/last.ckpt"))


def test_what_an_objective_cannot_be_used_for_is_said_and_the_others_go_on(tmp_path, teacher):
    found = compare(small(tmp_path, teacher, objectives=["sp", "attn_distill"]))
    assert found.names(found.groups[0]) == ["sp"]
    assert "attn_drop" in found.refused["attn_distill, student from t"]


@pytest.mark.slow
def test_equal_time_gives_a_slower_objective_fewer_looks(tmp_path, teacher, monkeypatch):
    paces = {"default_light": 1.0, "sp": 4.0}
    monkeypatch.setattr(training.Study, "_pace", lambda self, job: paces[job.objective])
    found = compare(small(tmp_path, teacher, equal_time="default_light"))
    assert {line.name: line.looks for line in found.lines} == {
        "default_light": 80,
        "sp": 16,
    }  # 20 looks: 2.5 steps of 8
    with pytest.raises(UserError, match="replay: how many views"):
        compare(small(tmp_path, teacher, budgets={"clock": {"minutes": 1.0}}))


@pytest.mark.slow
def test_a_budget_in_minutes_is_looks_by_the_pace(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(training.Study, "_pace", lambda self, job: 0.5)
    found = compare(small(tmp_path, teacher, budgets={"clock": {"minutes": 1.0}}, replay=1, objectives=["sp"]))
    assert [line.looks for line in found.lines] == [120]


@pytest.mark.slow
def test_several_processes_find_what_one_does(tmp_path, teacher_file, finished):
    config = small(tmp_path, str(teacher_file), workers=2)
    found = compare(config)
    (tmp_path / "alone").mkdir()
    alone = compare(small(tmp_path / "alone", str(teacher_file)))
    assert [(o.name, o.figures) for o in found.lines] == [(o.name, o.figures) for o in alone.lines]


def test_a_claimed_cell_is_left_to_its_process(tmp_path, teacher):
    config = small(tmp_path, teacher, objectives=["sp"])
    worker = work.Worker(config)
    key = worker.study.key(Job("targets", "t", pool="all"))
    with worker.study.shelf.claim(key) as mine:
        assert mine
        assert worker._work_on(Job("targets", "t", pool="all")) == "waits"
    assert worker._work_on(Job("targets", "t", pool="all")) == "worked"


@pytest.mark.slow
def test_weights_from_elsewhere_are_a_row(tmp_path, teacher, teacher_file):
    found = compare(small(tmp_path, teacher, objectives=["sp"], encoders={"theirs": str(teacher_file)}))
    (line,) = [line for line in found.lines if line.kind == "external"]
    assert line.figures["task"]["agreement/neighbours k=1 *"] == 1.0  # they are the teacher's own


OWN = """
import torch

class Distance(torch.nn.Module):
    def __init__(self, student, teacher):
        super().__init__()
        self.head = torch.nn.Linear(student, teacher)

    def forward(self, student, teacher):
        return (self.head(student.embedding) - teacher.embedding).square().mean()
"""


def test_an_objective_of_ones_own_is_a_line_and_a_file_cannot_name_it(tmp_path, teacher_file, monkeypatch, capsys):
    (tmp_path / "own_compared.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    config = small(tmp_path, str(teacher_file), objectives=["sp"])
    asked = {name: value for name, value in vars(config).items() if name != "own"}
    Path("compare.yaml").write_text(yaml.safe_dump(asked))
    assert main(["compare", "compare.yaml", "--own", "own_compared:Distance"]) == 0
    assert "own_compared:Distance" in capsys.readouterr().out
    for spelt in ({"own": "own_compared:Distance"}, {"objectives": [{"mine": "own_compared:Distance"}]}):
        Path("compare.yaml").write_text(yaml.safe_dump(asked | spelt))
        assert main(["compare", "compare.yaml"]) == 2
        assert "names code" in capsys.readouterr().err


def test_a_changed_source_of_ones_own_objective_is_trained_anew(tmp_path, teacher, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    keys = []
    for text in (OWN, OWN.replace("mean()", "sum()")):
        (tmp_path / f"own_source{len(keys)}.py").write_text(text)
        found = training._code(f"own_source{len(keys)}:Distance")
        keys.append(found[1])
    assert keys[0] != keys[1]


WRONG = {
    "out": ({"out": ""}, "out: expected a folder"),
    "objective": ({"objectives": ["defualt"]}, "Did you mean default"),
    "two objectives of one name": ({"objectives": ["sp", "sp"]}, "two are called 'sp'"),
    "seeds": ({"seeds": [1, 1]}, "seeds: expected different"),
    "tune seed": ({"seeds": [100]}, "tune_seed: 100 is among seeds"),
    "budget": ({"budgets": {"none": {}}}, "none needs looks or minutes"),
    "teacher": ({"teachers": {}}, "teachers: expected a mapping"),
    "teacher's key": ({"teachers": {"t": {"pat": "x"}}}, "no setting 'pat'"),
    "student's key": ({"students": {"s": {"archs": "x"}}}, "no setting 'archs'"),
    "against": ({"against": "spp"}, "against: expected one of"),
    "views": ({"views": "week"}, "views: expected one of"),
    "tail": ({"pools": {"a": {"tail": 0.0}}}, "tail of a: expected above 0"),
    "evaluator": ({"evaluators": ["knnn"]}, "no 'knnn'"),
    "tasks": ({"tasks": []}, "tasks: expected at least one"),
    "own": ({"own": "nothing"}, "own: expected package.module:name"),
    "weights": ({"encoders": {"x": ["a", "b"]}}, "one for each of the 1 seeds"),
    "rates": ({"lr": [0.0]}, "lr: expected rates above 0"),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_input_is_one_line_before_anything_is_loaded(what, tmp_path, teacher, monkeypatch):
    settings, message = WRONG[what]
    monkeypatch.setattr(training, "load_teacher", None)
    monkeypatch.setattr(training, "open_images", None)
    with pytest.raises(UserError, match=message) as error:
        compare(small(tmp_path, teacher, **settings))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_elses_is_left_alone(tmp_path, teacher):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/report.html").write_text("mine")
    with pytest.raises(UserError, match="not a comparison's folder"):
        compare(small(tmp_path, teacher))
    assert (tmp_path / "out/report.html").read_text() == "mine"


def test_a_long_tail_of_images_is_drawn_by_folders(tmp_path):
    ids = [f"{folder}/{i}" for folder in range(5) for i in range(100)]
    kept = training.pool_numbers(ids, 0, 0.01)
    sizes = sorted(sum(ids[i].startswith(f"{folder}/") for i in kept) for folder in range(5))
    assert sizes == [1, 3, 10, 32, 100]
    assert len(training.pool_numbers(ids, 146, 1.0)) == 146
    with pytest.raises(UserError, match="there are 146"):
        training.pool_numbers(ids, 147, 0.01)


def test_a_table_of_what_is_finished_can_be_asked_for_at_any_time(tmp_path, teacher):
    config = small(tmp_path, teacher)
    worker = work.Worker(config)
    worker._work_on(worker.jobs[0])
    found = collect(config)
    assert found.unfinished == len(worker.jobs) - 1
    assert found.lines == ()


@pytest.mark.slow
def test_a_fill_that_was_stopped_goes_on_under_other_steps_and_rates(tmp_path, teacher, monkeypatch):
    """What decides no target does not stand in the way of those that are there."""
    config, fill = small(tmp_path, teacher, objectives=["sp"]), training.fill_targets

    def stopped(*given, **settings):
        fill(*given, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fill_targets", stopped)
    with pytest.raises(KeyboardInterrupt):
        compare(config)
    monkeypatch.setattr(training, "fill_targets", fill)
    other = replace(
        config,
        tune_share=0.5,
        lr=[3e-3, 5e-3],
        optimizer="sgd",
        tune_seed=9,
        batch_size=4,
        weight_decay=0.5,
        warmup=0.1,
    )
    calls = asked(teacher)
    assert compare(other).unfinished == 0
    views = [size for size in calls if size == 8]
    assert not views  # of stored ones, in the batches of the first fill
