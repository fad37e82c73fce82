"""What a run says before its first step and behind its last: how long, whether its figure can tell anything, and what comes next."""

import shlex

import numpy as np
import pytest
import torch
from small_runs import SMALL, small_images, small_teacher

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.data.augment import SCHEMES
from ssl_kd.data.loader import ViewLoader
from ssl_kd.distillation import monitor
from ssl_kd.eval.runner.config import EvalConfig
from ssl_kd.runtime import progress
from ssl_kd.runtime.command_line import parse

WORDS = ["--teacher", "t.safetensors", "--student", "resnet18", "--student_args", "{channels: [8, 8, 8, 8]}"]
WORDS += ["--images", "photos", "--size", "32", "--batch_size", "16", "--precision", "32-true", "--health_images", "32"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a teacher's file and 70 photos; the command line works in it."""
    monkeypatch.chdir(tmp_path)
    ssl_kd.save_student(small_teacher(), "t.safetensors")
    (tmp_path / "photos").mkdir()
    for i in range(70):
        small_images(70).read(i).save(f"photos/{i}.png")
    return tmp_path


def shares(monkeypatch, share):
    """Every student has this share of neighbours in common with its teacher, on each image."""
    monkeypatch.setattr(monitor, "shared_neighbours", lambda ours, theirs: torch.full((len(ours),), share))
    monkeypatch.setattr(monitor, "neighbour_overlap", lambda ours, theirs: share)


def test_a_student_at_chance_is_called_so_and_what_comes_next_is_a_longer_run(place, monkeypatch, capsys):
    shares(monkeypatch, 0.3)
    assert main(["distill", *WORDS, "--epochs", "1", "--out", "run"]) == 0
    said = capsys.readouterr().out.splitlines()
    told = "run/student.safetensors: 30.0 ±0.0 % of the teacher's neighbours on held-out images, chance 32.3 %"
    assert said[-2] == f"{told}; not above chance: train longer"
    assert "30.0 ±0.0 % at the end, not above chance (`student.safetensors`)" in (place / "run/README.md").read_text()
    command = shlex.split(said[-1].removeprefix("Next: ssl-kd "))
    assert main([*command, "--quiet"]) == 0
    assert "epochs: 4\n" in (place / "run_longer/config.yaml").read_text()


def test_a_student_above_chance_is_exported_next(place, monkeypatch, capsys):
    shares(monkeypatch, 0.5)
    assert main(["distill", *WORDS, "--epochs", "1", "--out", "run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2].endswith("50.0 ±0.0 % of the teacher's neighbours on held-out images, chance 32.3 %")
    first, second = said[-1].removeprefix("Next: ").split("; ")
    assert first.startswith("ssl-kd export run/student.safetensors ")
    command, *words = shlex.split(second)[1:]
    found = parse(EvalConfig, words, "ssl-kd eval")
    assert command == "eval"
    assert [(row["name"], row.get("weights") or row["like"]) for row in found.encoders] == [
        ("teacher", "t.safetensors"), ("student", "run/student.safetensors"), ("random", "student"),
    ]  # fmt: skip


def test_a_run_whose_length_nobody_named_says_it_first_and_one_of_few_held_out_images_that(place, monkeypatch, capsys):
    monkeypatch.setattr("ssl_kd.distillation.auto.LOOKS", 60)
    monkeypatch.setattr("ssl_kd.distillation.auto.FEWEST", 1)
    assert main(["distill", *WORDS, "--out", "run"]) == 0
    first, second = capsys.readouterr().err.splitlines()[:2]
    assert first == "distill: auto chose 2 epochs: 76 looks at 38 images; --epochs N makes the run shorter"
    assert second == (
        "distill: 32 images are held out, of which unrelated networks share 32.3 % of 10 neighbours: neighbours will hardly "
        "tell anything; --health-images 35 holds out more"
    )
    assert main(["distill", *WORDS, "--out", "run"]) == 0  # nothing is left to do, and nothing to say first
    assert "auto chose" not in capsys.readouterr().err
    assert main(["distill", *WORDS, "--epochs", "1", "--out", "named", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_that_holds_nothing_out_says_so_first_unless_that_was_asked_for(tmp_path, capsys):
    settings = SMALL | {"quiet": False, "epochs": 1, "health_every": 1.0}
    ssl_kd.distill(small_teacher(), images=small_images(16), out=tmp_path / "a", **settings)
    assert "distill: none of 16 images is held out, as of any set so small: " in capsys.readouterr().err
    ssl_kd.distill(small_teacher(), images=small_images(16), out=tmp_path / "b", **settings | {"health_every": 0.0})
    assert "held out" not in capsys.readouterr().err


def test_chance_stands_behind_neighbours_in_the_progress(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    settings = SMALL | {"quiet": False, "health_images": 32, "health_every": 0.5}
    ssl_kd.distill(small_teacher(), images=small_images(64), out=tmp_path / "run", **settings)
    lines = [line for line in capsys.readouterr().err.splitlines() if "neighbours 0" in line]
    assert lines
    assert all(line.endswith("  chance 0.323") for line in lines)


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
def test_the_progress_of_some_steps_ends_at_their_own_images(steps, tmp_path, capsys):
    """Batches differ by one, the larger ones first, so that a share of an epoch's images is not what some steps see."""
    settings = SMALL | {"quiet": False, "steps": steps, "batch_size": 8, "health_every": 0}
    ssl_kd.distill(small_teacher(), images=small_images(20), out=tmp_path / "run", **settings)
    loader = ViewLoader(small_images(20), SCHEMES["weak"], 32, 8)
    batches = [len(batch) for epoch in range(2) for batch in loader.epoch(epoch)]
    seen = int(np.sum(batches[:steps]))
    assert f"distill: {seen} of {seen} images" in capsys.readouterr().err
    assert loader.looks(steps) == seen
