"""The comparison of objectives: equal views for all, paired differences, intervals over seeds, equal time by known paces."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.quality import Bench, best_rate, interval, pace, rows_of, settings_of, table, trials
from ssl_kd.errors import UserError

BENCH = Bench("b", Path("t"), "resnet18", {}, 32, None, 8, 3, 64, (1e-3,), "32-true", Path("targets"), {})


def row(objective, seed, knn, linear=0.5, **more):
    figures = {"knn20": knn, "knn1": knn - 0.1, "linear": linear}
    tasks = {"a": figures | {"overlap": 0.25}, "b": {k: v + 0.1 for k, v in figures.items()} | {"overlap": 0.35}}
    return {"bench": "b", "objective": objective, "seed": seed, "seconds": 60.0, "tasks": tasks} | more


def kept(path, *rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_an_interval_is_students_t():
    values = [0.3, 0.34, 0.31]
    middle, half = interval(values)
    low, high = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (middle - half, middle + half) == pytest.approx((low, high))
    assert np.isnan(interval([0.3])[1])


def test_the_table_is_sorted_and_its_differences_are_paired_by_seed(tmp_path):
    teacher = row("teacher", None, 0.6)
    rows = [row("default", s, 0.4 + 0.05 * s) for s in (0, 1)] + [row("worse", s, 0.3 + 0.05 * s) for s in (0, 1)]
    other = row("best", 0, 0.9) | {"bench": "another"}
    refused = {"bench": "b", "objective": "vits_only", "seed": 0, "refused": "no attention"}
    lines = table(kept(tmp_path / "q.jsonl", teacher, *rows, other, refused), "b").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["*teacher*", "`default`", "`worse`", "`vits_only`"]
    worse = [cell.strip() for cell in lines[4].split("|")]
    assert worse[3].startswith("37.5 ±")  # mean of two seeds and two tasks
    assert worse[8] == "-10.0 ± 0.0"  # the seeds differ, their differences do not
    assert "no attention" in lines[-1]
    assert len({line.count("|") for line in lines[:-1]}) == 1


def test_a_comparison_at_equal_time_shows_how_many_views_each_had(tmp_path):
    rows = [row("teacher", None, 0.6), row("default", 0, 0.4, views=1.0), row("slow", 0, 0.3, views=0.5)]
    lines = table(kept(tmp_path / "q.jsonl", *rows), "b").splitlines()
    assert lines[0].endswith("| views |")
    assert lines[4].endswith("| 0.50 |")
    assert len({line.count("|") for line in lines}) == 1


def test_paces_are_medians_and_unknown_ones_are_refused(tmp_path):
    rows = [row("default", s, 0.4, seconds=took) for s, took in enumerate((10.0, 90.0, 20.0))]
    known = rows_of(kept(tmp_path / "q.jsonl", *rows), "b")
    assert pace("default", known) == 20.0
    with pytest.raises(UserError, match="seed has no line"):
        pace("seed", known)


def test_every_objective_looks_at_equally_many_views():
    one, two = settings_of("default", BENCH, 1e-3), settings_of("lightly_v1", BENCH, 2e-3)
    assert (one["epochs"], one["replay"]) == (8, 3)
    assert (one["lr"], two["lr"]) == (1e-3, 2e-3)
    assert two["replay"] == 0  # mixed images are never the same twice
    pairs = settings_of("dlkd", BENCH, 1e-3)
    assert pairs["epochs"] == 4
    assert settings_of("default", BENCH, 1e-3, factor=0.5)["epochs"] == 4


def test_each_objective_gets_the_learning_rate_that_did_best_for_it_on_a_seed_of_its_own(tmp_path):
    rows = [row("seed", 100, knn, lr=lr) | {"bench": "b, trials"} for lr, knn in ((1e-3, 0.3), (4e-3, 0.4))]
    rows += [row("unic", 100, 0.9, lr=1e-3) | {"bench": "b, trials"}]
    rows += [{"bench": "b, trials", "objective": "seed", "seed": 100, "lr": 8e-3, "refused": "the loss became nan"}]
    path = kept(tmp_path / "q.jsonl", *rows)
    assert best_rate(trials(path, "b", "seed"), (1e-3, 4e-3, 8e-3)) == 4e-3
    assert best_rate(trials(path, "b", "simreg"), (1e-3, 4e-3)) == 1e-3  # nothing tried
    assert not rows_of(path, "b")  # no trial enters a table


def test_the_table_tells_learning_rates_where_they_differ(tmp_path):
    rows = [row("teacher", None, 0.6), row("default", 0, 0.4, lr=4e-3), row("seed", 0, 0.3, lr=2e-3)]
    rows.append(row("lightly-train v1", 0, 0.2))
    lines = table(kept(tmp_path / "q.jsonl", *rows), "b").splitlines()
    assert lines[0].endswith("| lr |")
    assert [line.split("|")[-2].strip() for line in lines[3:]] == ["0.004", "0.002", "its own"]
    assert len({line.count("|") for line in lines}) == 1
