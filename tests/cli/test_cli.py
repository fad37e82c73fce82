"""The command line: help at once, one line and exit code 2 for a person's mistake, nothing half-written."""

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from PIL import Image

from ssl_kd.cli.main import COMMANDS, main
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError
from ssl_kd.runtime.command_line import parse


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("images")
    for i in range(6):
        Image.new("RGB", (20, 20), (i * 40, 90, 200 - i * 30)).save(path / f"{i}.png")
    return path


@pytest.mark.parametrize("name", ["distill", "pretrain", "eval"])
def test_help_lists_every_field_with_its_default(name, capsys):
    with pytest.raises(SystemExit) as done:
        main([name, "--help"])
    assert done.value.code == 0
    shown = capsys.readouterr().out
    assert "default:" in shown
    for field in {"distill": ("--teacher", "--objective", "--warmup"), "pretrain": ("--queue",), "eval": ("--tasks",)}[
        name
    ]:
        assert field in shown


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in COMMANDS)


def test_help_wakes_no_heavy_library():
    code = (
        "import sys; from ssl_kd.cli.main import main\n"
        "try: main(['distill', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'numpy', 'sklearn', 'faiss') if m in sys.modules])"
    )
    began = time.perf_counter()
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip().endswith("[]")
    assert time.perf_counter() - began < 30  # a hang, not a speed: speed is measured in benchmarks/


def mistakes(tmp_path, folder):
    text = tmp_path / "notes.pth"
    text.write_text("not a checkpoint")
    empty = tmp_path / "empty"
    empty.mkdir()
    words = tmp_path / "words"
    words.mkdir()
    (words / "a.txt").write_text("a")
    bad = tmp_path / "bad.yaml"
    bad.write_text("epochz: 3\n")
    out = str(tmp_path / "run")
    good = ["distill", "--teacher", str(text), "--images", str(folder), "--out", out]
    return {
        "no command": (["distil"], "Did you mean distill"),
        "nothing given": (["distill"], "teacher: expected"),
        "missing file": ([*good[:2], str(tmp_path / "none.pth"), *good[3:]], "none.pth"),
        "not a checkpoint": (good, "notes.pth"),
        "a folder as checkpoint": ([*good[:2], str(empty), *good[3:]], "folder"),
        "empty folder": ([*good[:4], str(empty), *good[5:]], "it is empty"),
        "folder of text files": ([*good[:4], str(words), *good[5:]], "it holds a.txt"),
        "unknown key": ([*good, "--epochz", "3"], "Did you mean epochs"),
        "unknown key in a file": (["distill", "--config", str(bad)], "Did you mean epochs"),
        "missing config": (["distill", "--config", str(tmp_path / "none.yaml")], "none.yaml"),
        "wrong type": ([*good, "--epochs", "many"], "epochs"),
        "inspect a missing file": (["inspect", str(tmp_path / "none.pth")], "none.pth"),
        "inspect text": (["inspect", str(text)], "notes.pth"),
        "eval without anything": (["eval"], "eval"),
        "an option the demo lacks": (["demo", "--bogus"], "--bogus"),
        "pretrain nothing": (["pretrain"], "images: expected"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no command",
        "nothing given",
        "missing file",
        "not a checkpoint",
        "a folder as checkpoint",
        "empty folder",
        "folder of text files",
        "unknown key",
        "unknown key in a file",
        "missing config",
        "wrong type",
        "inspect a missing file",
        "inspect text",
        "eval without anything",
        "an option the demo lacks",
        "pretrain nothing",
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(case, tmp_path, folder, capsys):
    argv, words = mistakes(tmp_path, folder)[case]
    before = sorted(tmp_path.rglob("*"))
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_of_several_processes_the_first_alone_says_what_came_out(monkeypatch, capsys):
    done = SimpleNamespace(path="x", student=SimpleNamespace(arch="resnet18", dim=512), seconds=60.0, last={})
    monkeypatch.setattr("ssl_kd.distillation.trainer.distill", lambda config: done)
    store = SimpleNamespace(path="y", filled=lambda: 1.0, shape=(1, 2, 3))
    monkeypatch.setattr("ssl_kd.distillation.trainer.fill_targets", lambda config: {"": store})
    words = ["--teacher", "t", "--images", "i", "--out", "o", "--replay", "1"]
    for rank, speaks in ((0, True), (1, False)):
        monkeypatch.setattr("ssl_kd.runtime.distributed.rank", lambda: rank)  # noqa: B023 - asked inside this turn
        for command in ("distill", "targets"):
            assert main([command, *words]) == 0
            assert bool(capsys.readouterr().out) is speaks


@pytest.mark.parametrize("spelled", [["--config", "FILE"], ["--config=FILE"]])
@pytest.mark.parametrize("place", [0, 2, 5])
def test_the_command_line_wins_over_a_file_wherever_the_file_stands(spelled, place, tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("epochs: 1\nout: runs/old\nsize: 48\n")
    words = ["--epochs", "7", "--quiet", "--out", "new"]
    words[place:place] = [output.replace("FILE", str(file)) for output in spelled]
    config = parse(DistillConfig, words, "ssl-kd distill")
    assert (config.epochs, config.out, config.size, config.quiet) == (7, "new", 48, True)


def test_of_several_files_the_later_wins(tmp_path):
    for name, epochs, lr in (("a", 1, 0.1), ("b", 2, 0.2)):
        (tmp_path / f"{name}.yaml").write_text(f"epochs: {epochs}\nlr: {lr}\n")
    a, b = (str(tmp_path / f"{name}.yaml") for name in "ab")
    config = parse(DistillConfig, [f"--config={a}", "--lr", "0.3", "--config", b], "ssl-kd distill")
    assert (config.epochs, config.lr) == (2, 0.3)
    with pytest.raises(UserError, match="config"):
        parse(DistillConfig, ["--epochs", "3", "--config"], "ssl-kd distill")


@pytest.mark.parametrize("line", ["epochs: null", "student_args: null", "teacher: null", "quiet: ~"])
def test_null_in_a_file_is_refused_by_its_name(line, tmp_path, capsys):
    (tmp_path / "null.yaml").write_text(f"{line}\n")
    assert main(["distill", "--config", str(tmp_path / "null.yaml")]) == 2
    assert f"{line.partition(':')[0]}: expected a value, got null" in capsys.readouterr().err
