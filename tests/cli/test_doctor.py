"""The small commands around the main job: what this machine can do, the example configs, shell completion."""

import json
import shutil
import subprocess
import sys

import pytest

from ssl_kd.cli import configs, doctor
from ssl_kd.cli.main import COMMANDS, main
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError
from ssl_kd.pretraining.config import PretrainConfig
from ssl_kd.runtime.command_line import parse


def test_the_doctor_names_every_requirement_with_its_version_and_each_extra(capsys):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"torch", "torchvision", "lightly", "faiss-cpu", "scikit-learn", "timm"} <= set(found["versions"])
    assert not any("MISSING" in value for value in found["versions"].values())
    assert {"export", "openvino", "parquet"} <= set(found["extras"])


def test_the_doctor_says_how_to_install_what_an_extra_lacks(monkeypatch, capsys):
    real = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda package: "" if package == "openvino" else real(package))
    assert main(["doctor"]) == 0
    assert "missing openvino: pip install 'ssl-kd[openvino]'" in capsys.readouterr().out


def test_the_doctor_measures_the_cache_and_makes_none(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "cache"))
    assert doctor._cache()["holds"] == "nothing yet"
    assert not (tmp_path / "cache").exists()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/a").write_bytes(b"x" * 2_000_000)
    assert doctor._cache()["holds"] == "1 files, 2.0 MB"


def test_every_config_is_read_by_the_command_whose_folder_it_lies_in():
    kinds = {"distill": DistillConfig, "pretrain": PretrainConfig}
    for name in configs.names():
        command = name.split("/")[0]
        assert command in COMMANDS, f"configs/{name}.yaml lies in a folder that is no command"
        if command in kinds:
            parse(kinds[command], [str(configs.path_of(name))], command)
        assert configs.about(name), f"configs/{name}.yaml opens with no line that says what it is"


def test_a_config_is_shown_and_copied_but_never_over_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["configs", "list"]) == 0
    assert "distill/four_teachers" in capsys.readouterr().out
    assert main(["configs", "show", "distill/four_teachers"]) == 0
    shown = capsys.readouterr().out
    assert main(["configs", "copy", "distill/four_teachers", "mine.yaml"]) == 0
    assert (tmp_path / "mine.yaml").read_text() == shown
    (tmp_path / "mine.yaml").write_text("mine")
    assert main(["configs", "copy", "distill/four_teachers", "mine.yaml"]) == 2
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert main(["configs", "copy", "distill/four_teachers", "no/such/folder.yaml"]) == 2


def test_a_config_that_there_is_not_is_answered_with_a_near_one():
    with pytest.raises(UserError, match="Did you mean distill/four_teachers"):
        configs.path_of("distill/four_teacher")


@pytest.mark.skipif(not shutil.which("bash"), reason="this machine has no bash")
def test_bash_completes_commands_and_the_options_of_one(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "complete.sh"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "ssl-kd").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m ssl_kd "$@"\n')
    (tmp_path / "ssl-kd").chmod(0o755)

    def completed(*words):
        line = f'PATH="{tmp_path}:$PATH"; source "{script}"; COMP_WORDS=({" ".join(words)}); '
        line += f'COMP_CWORD={len(words) - 1}; _ssl_kd; echo "${{COMPREPLY[@]}}"'
        return subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True).stdout.split()

    assert completed("ssl-kd", "dist") == ["distill"]
    assert completed("ssl-kd", "distill", "--batch") == ["--batch_size"]
