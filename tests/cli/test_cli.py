"""The command line: help at once, one line and exit code 2 for a person's mistake, nothing half-written."""

import re
import subprocess
import sys
import time
from dataclasses import fields
from types import SimpleNamespace

import pytest
from PIL import Image

from ssl_kd.cli.main import COMMANDS, main
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError
from ssl_kd.models.preprocessing import Preprocessing
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


@pytest.mark.parametrize("command", ["distill", "pretrain", "targets", "eval", "compare"])
def test_a_config_that_is_not_there_is_said_in_plain_words(command, capsys):
    assert main([command, "nosuch.yaml"]) == 2
    said = capsys.readouterr().err
    assert said == (
        f"ssl-kd {command}: config: nosuch.yaml: no such file; `ssl-kd configs list` shows those of the package\n"
    )


def test_the_overview_names_every_command(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name}" in shown for name in COMMANDS)


def test_help_has_the_settings_that_people_set_first_on_top_and_groups_below(capsys):
    with pytest.raises(SystemExit):
        main(["distill", "--help"])
    shown = capsys.readouterr().out
    first, below = shown.partition("set these first:")[2].split("\nTeacher:", 1)
    named = [line.split()[0][2:] for line in first.splitlines() if line.startswith("  --")]
    assert {"teacher", "student", "images", "out", "objective", "epochs", "batch_size", "lr"} <= set(named)
    assert 8 <= len(named) <= 14
    titles = ["Student:", "Images and views:", "Objective, optimiser and schedule:", "Monitoring on held-out images:"]
    titles += ["Run folder:", "Logging:", "Machine and reproducibility:", "examples:"]
    places = [below.index(f"\n{title}") for title in titles]
    assert places == sorted(places)
    assert all(len(re.findall(rf"  --{one.name}[ ,]", shown)) == 1 for one in fields(DistillConfig))


def test_the_version_is_that_of_the_installed_package(capsys):
    from importlib.metadata import version

    import ssl_kd

    assert ssl_kd.__version__ == version("ssl-kd")
    assert ssl_kd.load_encoder is ssl_kd.load_teacher
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ssl-kd {ssl_kd.__version__}\n"


def test_help_wakes_no_heavy_library():
    code = (
        "import sys; from ssl_kd.cli.main import main\n"
        "try: main(['distill', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'timm', 'numpy', 'yaml', 'rich', 'jsonargparse') if m in sys.modules])"
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
    torn, listed = tmp_path / "torn.yaml", tmp_path / "listed.yaml"
    torn.write_text("epochs: [\n")
    listed.write_text("- epochs\n")
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
        "wrong type": ([*good, "--epochs", "ten"], "epochs: expected a whole number or auto, got 'ten'\n"),
        "a device of another name": ([*good, "--accelerator", "gpu"], "cpu or cuda, got 'gpu'. Did you mean cuda?\n"),
        "no value": ([*good[:-1]], "out: expected a value behind --out (see"),
        "a stray argument": ([*good, "photos"], "expected --setting value, got 'photos'"),
        "no YAML": (["distill", str(torn)], "torn.yaml: not readable as YAML"),
        "YAML that is no mapping": (["distill", "--config", str(listed)], "expected settings as in `epochs: 10`"),
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
        "a device of another name",
        "no value",
        "a stray argument",
        "no YAML",
        "YAML that is no mapping",
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
    student = SimpleNamespace(arch="resnet18", dim=512, preprocessing=Preprocessing())
    done = SimpleNamespace(path="x", student=student, seconds=60.0, last={}, overlap=None)
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


WRONG = {
    "epochs": ("ten", "a whole number or auto"),
    "lr": ("fast", "a number or auto"),
    "quiet": ("maybe", "true or false"),
    "student_args": ("[1]", "a mapping"),
    "teachers": ("3", "a mapping"),
    "objective": ("[1]", "a preset's name or a list of terms"),
    "views": ("[weak]", "a scheme's name or a list of recipes"),
    "precision": ("half", "auto, 32-true or bf16-mixed"),
    "mix": ("cutmixup", "none, mixup or cutmix, or nothing"),
    "batch_size": ("1", "at least 2 (samples are related to each other)"),
    "teacher_drop": ("1.0", "from 0 to below 1"),
    "lr ": ("0", "above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value_gets_the_same_line_from_the_command_line_a_file_and_python(case, tmp_path, capsys):
    import yaml

    from ssl_kd.distillation.trainer import distill

    name, (text, expected) = case.strip(), WRONG[case]
    file = tmp_path / "c.yaml"
    file.write_text(f"{name}: {text}\n")
    given = ["--images", "i", "--out", str(tmp_path / "run"), *(["--teacher", "t"] if name != "teachers" else [])]
    lines = []
    for argv in (["--config", str(file)], [f"--{name}", text]):
        assert main(["distill", *given, *argv]) == 2
        lines.append(capsys.readouterr().err.removeprefix("ssl-kd distill: "))
    with pytest.raises(UserError) as caught:
        distill("t", images="i", out=tmp_path / "run", **{name: yaml.safe_load(text)})
    lines.append(f"{caught.value}\n")
    assert len(set(lines)) == 1
    assert lines[0].startswith(f"{name}: expected {expected}, got ")


@pytest.mark.parametrize(
    ("words", "setting", "value"),
    [
        (["--lr", "1e-3"], "lr", 1e-3),
        (["--lr", "1"], "lr", 1.0),
        (["--out", "10"], "out", "10"),
        (["--student", "none"], "student", "none"),
        (["--objective", "seed"], "objective", "seed"),
        (["--objective", "[{term: alignment, weight: 1e-1}]"], "objective", [{"term": "alignment", "weight": 0.1}]),
        (["--student-args", "{channels: [8, 16]}"], "student_args", {"channels": [8, 16]}),
        (["--quiet", "--out", "a"], "quiet", True),
        (["--quiet=false"], "quiet", False),
        (["--mix", ""], "mix", ""),
        (["--seed=3"], "seed", 3),
    ],
)
def test_arguments_are_read_as_the_setting_has_it(words, setting, value):
    found = getattr(parse(DistillConfig, words, "x"), setting)
    assert found == value
    assert type(found) is type(value)


def test_a_first_argument_may_be_the_file(tmp_path):
    (tmp_path / "a.yml").write_text("epochs: 3\nlr: 1e-2\n")
    config = parse(DistillConfig, [str(tmp_path / "a.yml"), "--seed", "1"], "x")
    assert (config.epochs, config.lr, config.seed) == (3, 0.01, 1)


def test_a_command_ends_with_the_next_one(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("ssl_kd.pretraining.trainer.pretrain", lambda config: "t.pth")
    assert main(["pretrain", "--images", "photos", "--out", "t.pth"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "Next: ssl-kd distill --teacher t.pth --images photos --out runs/student"
    )


@pytest.mark.parametrize("line", ["epochs: null", "student_args: null", "teacher: null", "quiet: ~"])
def test_null_in_a_file_is_refused_by_its_name(line, tmp_path, capsys):
    (tmp_path / "null.yaml").write_text(f"{line}\n")
    assert main(["distill", "--config", str(tmp_path / "null.yaml")]) == 2
    assert f"{line.partition(':')[0]}: expected a value, got null" in capsys.readouterr().err


def test_what_a_teacher_is_may_be_given_by_hand_under_short_names():
    from ssl_kd.distillation.config import DistillConfig, teacher_specs
    from ssl_kd.runtime.command_line import parse

    words = [
        "--teacher",
        "x.pth",
        "--arch",
        "resnet18",
        "--mean",
        "0.1",
        "0.2",
        "0.3",
        "--std",
        "0.5",
        "--branch",
        "a.",
    ]
    short = parse(DistillConfig, [*words, "--arch-args", "{small_stem: true}"], "ssl-kd distill")
    long = [w.replace("--", "--teacher-") if w.startswith("--") and w != "--teacher" else w for w in words]
    assert parse(DistillConfig, [*long, "--teacher-arch-args", "{small_stem: true}"], "ssl-kd distill") == short
    assert teacher_specs(short)[""].by_hand() == {
        "branch": "a.", "arch": "resnet18", "arch_args": {"small_stem": True}, "mean": "0.1 0.2 0.3", "std": 0.5,
    }  # fmt: skip
    with pytest.raises(UserError, match="mean: expected three numbers"):
        teacher_specs(parse(DistillConfig, ["--teacher", "x", "--mean", "1", "2"], "ssl-kd distill"))


def test_inspect_reads_a_bare_state_dict_by_hand(tmp_path, capsys):
    import timm
    import torch

    torch.save(timm.create_model("regnetx_002").state_dict(), tmp_path / "x.pth")
    assert main(["inspect", str(tmp_path / "x.pth")]) == 2
    words = ["--arch", "regnetx_002", "--mean", "0.5", "--std", "0.5", "0.4", "0.3", "--size", "64"]
    assert main(["inspect", str(tmp_path / "x.pth"), *words]) == 0
    said = capsys.readouterr().out
    assert "mean 0.5/0.5/0.5, std 0.5/0.4/0.3" in said
    assert "--teacher-arch regnetx_002 --teacher-mean 0.5 --teacher-std 0.5 0.4 0.3 --teacher-size 64" in said
    assert main(["inspect", *words[:-2], str(tmp_path / "x.pth"), "--size", "64"]) == 0  # the path is no part of std
    assert said.endswith(capsys.readouterr().out)
