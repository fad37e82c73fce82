"""A run folder and a student of before the modules moved are still read.

`old_run` was made by version 0.1.0, on one thread, from inside that folder: `whole` finished, `half` was stopped after
step 3 of 4 of the same run.
"""

import shutil
from pathlib import Path

import pytest
import torch
from small_runs import logged

import ssl_kd
from ssl_kd.cli.main import main

OLD = Path(__file__).parent / "old_run"
LAST_LOSS = 1.196801781654358  # of step 4, as `whole` logged it


def test_an_old_student_is_read_to_the_weights_that_it_had():
    student = ssl_kd.load_encoder(OLD / "whole/student.safetensors")
    assert (student.arch, student.dim, student.preprocessing.size) == ("resnet18", 4, 32)
    assert student.digest == "6b9fceeb3c369126cd36e90df3a9064306d50aaa30de5f43ec382d6a9f7e99e6"
    assert ssl_kd.inspect(OLD / "whole/student.safetensors").card["objective"] == "default_light"


def test_an_old_run_is_resumed_by_its_own_config_and_ends_as_it_would_have(tmp_path, monkeypatch, capsys):
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    assert main(["distill", "half/config.yaml"]) == 0
    assert "half/student.safetensors: resnet18, width 4" in capsys.readouterr().out
    lines = logged(Path("half"))
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] == pytest.approx(LAST_LOSS, rel=1e-3)  # other processors round otherwise
    pixels = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, theirs = (
            ssl_kd.load_encoder(file)(pixels).embedding
            for file in ("half/student.safetensors", OLD / "whole/student.safetensors")
        )
    torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
    assert (ours - theirs).norm() < (ours[0] - ours[1]).norm()


def test_an_old_run_is_not_resumed_with_other_settings(tmp_path, monkeypatch, capsys):
    shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(tmp_path / "old")
    assert main(["distill", "half/config.yaml", "--lr", "0.5"]) == 2
    assert "lr was 0.001, now 0.5" in capsys.readouterr().err
