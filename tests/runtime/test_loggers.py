"""Logs: the table says what metrics.jsonl says, extras that are missing are named, Lightning's loggers get the numbers."""

import csv
import json
import subprocess
import sys

import pytest

from ssl_kd.errors import UserError
from ssl_kd.runtime import loggers
from ssl_kd.runtime.loggers import EXTRAS, LOGS, Lightning, Table, names, open_logs, records
from ssl_kd.runtime.run_dir import RunDir


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_table_says_what_the_lines_say(tmp_path):
    run = RunDir(tmp_path / "run", {"log": "csv"})
    given = [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 0.25},
        {"step": 2, "health/cka": 0.75},
        {"step": 3, "loss": 0.1},
    ]
    for record in given:
        run.log(record)
    run.close()
    table = rows(tmp_path / "run/metrics.csv")
    assert [{k: json.loads(v) for k, v in row.items() if v} for row in table] == given
    assert list(table[0]) == ["step", "loss", "health/cka"]
    assert list(records(tmp_path / "run/metrics.jsonl")) == given


def test_a_killed_runs_table_and_lines_forget_lost_work(tmp_path):
    settings = {"log": "csv"}
    run = RunDir(tmp_path / "run", settings)
    for step in (1, 2, 3):
        run.log({"step": step, "loss": step / 2})
        if step == 2:
            run.save({"step": 2})
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')  # torn
    run.close()
    run = RunDir(tmp_path / "run", settings)
    assert run.restore() == {"step": 2}
    run.log({"step": 3, "loss": 7})
    run.close()
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "run/metrics.csv")] == [
        ("1", "0.5"),
        ("2", "1.0"),
        ("3", "7"),
    ]


def test_jsonl_alone_makes_no_table(tmp_path):
    run = RunDir(tmp_path / "run", {"log": "jsonl"})
    run.log({"step": 1})
    run.close()
    assert not (tmp_path / "run/metrics.csv").exists()


def test_names_are_checked():
    assert names("csv") == ["csv"]
    assert names("jsonl, csv,csv") == ["jsonl", "csv"]
    with pytest.raises(
        UserError, match=r"log: expected one of jsonl, csv, tensorboard, wandb; got 'cvs'. Did you mean csv"
    ):
        names("cvs")


@pytest.mark.parametrize("name", EXTRAS)
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch):
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(
        UserError, match=rf"log: {name} needs a package that is not installed: pip install 'ssl-kd\[{name}\]'"
    ):
        names(name)


def test_every_extra_is_one_of_the_projects(request):
    import tomllib

    with open(request.config.rootpath / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    for name, packages in EXTRAS.items():
        assert name in LOGS
        assert extras[name][0].split(">")[0] in packages


def test_lightnings_loggers_get_numbers_and_the_step(tmp_path, monkeypatch):
    class Recorder:
        seen: list

        def __init__(self, first):
            self.first, self.seen = first, []

        def log_metrics(self, metrics, step):
            self.seen.append((step, metrics))

        def finalize(self, status):
            self.seen.append(status)

    made = []

    def recorder(home, first):
        made.append(Recorder(first))
        return Lightning(made[-1])

    monkeypatch.setitem(LOGS.built_in, "wandb", recorder)
    monkeypatch.setattr(loggers.importlib.util, "find_spec", lambda package: True)
    run = RunDir(tmp_path / "run", {"log": "csv,wandb"})
    run.log({"step": 5, "loss": 0.5, "note": "text"})
    run.close()
    assert (tmp_path / "run/metrics.csv").exists()
    assert made[0].first == 5
    assert made[0].seen == [(5, {"loss": 0.5}), "success"]


def test_tensorboard_shows_the_figures(tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'ssl-kd[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "metrics.jsonl").touch()
    (log,) = open_logs("tensorboard", tmp_path / "metrics.jsonl", 1)
    for step in (1, 2):
        log.add({"step": step, "loss": 1 / step})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5)]


def test_names_are_checked_without_waking_anything_heavy():
    code = "import sys; from ssl_kd.runtime.loggers import names; names('csv'); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_table_is_mended_from_the_lines(tmp_path):
    """A kill between the line and its row: the next process begins the table anew."""
    home = tmp_path / "metrics.jsonl"
    home.write_text('{"step": 1, "loss": 1}\n{"step": 2, "skipped": "loss"}\n{"step": 2, "loss": 2}\n')
    (tmp_path / "metrics.csv").write_text("step,loss\n1,1\n2")
    Table(home, 2).add({"step": 2, "loss": 2})
    assert (tmp_path / "metrics.csv").read_text() == "step,loss\n1,1\n2,2\n"
