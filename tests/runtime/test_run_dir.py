"""The run folder: what a killed process leaves is mended, what cannot be written is one line, the old state stays."""

import fcntl
import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from small_disk import files_end_at

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.errors import UserError
from ssl_kd.runtime.files import sealed
from ssl_kd.runtime.ownership import MARKER
from ssl_kd.runtime.run_dir import ALWAYS_SET, BEST, LAST, RUN, RunDir, environment

NOBODY = 65534


@contextmanager
def unprivileged():
    """A person for whom permissions count: root is let in everywhere."""
    if os.geteuid():
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def shelf():
    """A folder below which anybody may look."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def opened(path, **settings):
    return RunDir(path, {"log": "csv"} | settings)


# What a SIGKILL can leave behind, by moment; each must be gone on with. DEAD is larger than any process's number.
DEAD = 2**22 + 1
OURS = {".lock": b"", ".ssl_kd.json": sealed({"run": sorted(RUN.names)}).encode()}
LEFT = {
    "before anything": {},
    "after the lock": {".lock": b""},
    "while the marker was written": {".lock": b"", f".ssl_kd.json.{DEAD}.part": b"{"},
    "after the marker": OURS,
    "while config.yaml was written": OURS | {f"config.yaml.{DEAD}.part": b"lo"},
    "while config.yaml was written by an older version": {".lock": b"", f"config.yaml.{DEAD}.part": b"lo"},
    "while environment.json was written": OURS | {"config.yaml": b"log: csv\n", f"environment.json.{DEAD}.part": b""},
    "before the first state": OURS
    | {
        "config.yaml": b"log: csv\n",
        "metrics.jsonl": b'{"step": 1, "loss": 1}\n{"step"',
        "metrics.csv": b"step,loss\n",
    },
    "while the first state was written": OURS | {"config.yaml": b"log: csv\n", f"last.ckpt.{DEAD}.part": b"PK"},
    "in the middle of overwriting": OURS | {"README.md": b"the old run"},
}


@pytest.mark.parametrize("moment", LEFT)
def test_what_a_killed_process_leaves_is_mended(moment, tmp_path):
    folder = tmp_path / "run"
    if LEFT[moment]:
        folder.mkdir()
    for name, content in LEFT[moment].items():
        (folder / name).write_bytes(content)
    run = opened(folder)
    assert run.restore() is None
    run.log({"step": 1, "loss": 2})
    run.save({"step": 1})
    run.close()
    assert (folder / "metrics.jsonl").read_text() == '{"step": 1, "loss": 2}\n'
    assert (folder / "metrics.csv").read_text() == "step,loss\n1,2\n"
    assert not list(folder.glob("*.part"))
    again = opened(folder)
    assert again.restore() == {"step": 1}
    again.close()


def test_a_kill_while_a_later_state_is_written_leaves_the_earlier_one(tmp_path):
    run = opened(tmp_path / "run")
    run.save({"step": 4})
    run.close()
    (tmp_path / f"run/last.ckpt.{DEAD}.part").write_bytes(b"PK half a state")
    run = opened(tmp_path / "run")
    assert run.restore() == {"step": 4}
    run.close()
    assert not list((tmp_path / "run").glob("*.part"))


def test_the_lock_dies_with_its_process(tmp_path):
    (tmp_path / "run").mkdir()
    code = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'wb'); fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB);"
        "os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path / "run/.lock")]).returncode == -9
    opened(tmp_path / "run").close()


def test_a_damaged_state_is_one_line_and_is_not_begun_over(tmp_path):
    run = opened(tmp_path / "run")
    run.save({"step": 4, "x": torch.zeros(1000)})
    run.close()
    whole = (tmp_path / "run" / LAST).read_bytes()
    for damage in (whole[: len(whole) // 2], b"", b"nonsense"):
        (tmp_path / "run" / LAST).write_bytes(damage)
        run = opened(tmp_path / "run")
        with pytest.raises(
            UserError, match=r"last.ckpt: the saved state is damaged .*remove it to begin anew"
        ) as caught:
            run.restore()
        assert "\n" not in str(caught.value)
        run.close()


def test_a_read_only_place_is_one_line(shelf):
    os.chmod(shelf, 0o555)
    with unprivileged(), pytest.raises(UserError, match=r"out: cannot make the folder .*run .Permission denied"):
        opened(shelf / "run")
    os.chmod(shelf, 0o755)


def test_a_folder_that_became_read_only_is_one_line_and_keeps_its_state(shelf):
    run = opened(shelf)
    run.save({"step": 4})
    run.log({"step": 4})
    run.close()
    before = {p.name: p.read_bytes() for p in shelf.iterdir()}
    os.chmod(shelf, 0o555)
    with unprivileged(), pytest.raises(UserError, match=r"out: cannot write in .*Permission denied") as caught:
        opened(shelf)
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in shelf.iterdir()} == before
    os.chmod(shelf, 0o755)


def test_a_disk_that_fills_up_leaves_the_last_state(tmp_path, monkeypatch):
    run = opened(tmp_path / "run")
    run.log({"step": 4})
    run.save({"step": 4})

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"last.ckpt: could not be written .No space left on device.; free some space"):
        run.save({"step": 5})
    run.close()
    monkeypatch.undo()
    run = opened(tmp_path / "run")
    assert run.restore() == {"step": 4}
    run.close()


def test_a_run_whose_disk_fills_up_is_one_line_and_goes_on_later(tmp_path, capsys):
    """From the command line: files cannot grow any more in the middle of the run, and then they can again."""
    torch.manual_seed(0)
    ssl_kd.save_student(ssl_kd.build("resnet18", channels=[8, 8, 8, 16]), tmp_path / "teacher.safetensors")
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8))
    given = {"teacher": tmp_path / "teacher.safetensors", "images": tmp_path / "images.npy", "out": tmp_path / "run"}
    given |= {"student_args": "{channels: [8, 8, 8, 8]}", "size": 32, "epochs": 2, "batch_size": 10, "save_minutes": 0}
    given |= {"precision": "32-true", "accelerator": "cpu", "log_every": 1}
    words = ["distill", "--quiet", *(word for key, value in given.items() for word in (f"--{key}", str(value)))]
    with files_end_at(10_000):
        assert main(words) == 2
    said = capsys.readouterr().err
    assert "last.ckpt: could not be written (File too large); free some space" in said
    assert said.count("\n") == 1
    assert {p.name for p in (tmp_path / "run").iterdir()} <= {
        ".lock",
        ".ssl_kd.json",
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "metrics.csv",
    }
    assert main(words) == 0
    assert (tmp_path / "run/metrics.jsonl").read_text().count("\n") == 4


def test_overwrite_begins_anew(tmp_path):
    run = opened(tmp_path / "run")
    run.save({"step": 4})
    run.log({"step": 4})
    run.close()
    (tmp_path / "run" / BEST).write_bytes(b"")
    (tmp_path / "run/README.md").write_text("the old run")
    (tmp_path / "run/tensorboard").mkdir()
    run = RunDir(tmp_path / "run", {"log": "jsonl", "lr": 1}, overwrite=True)
    assert run.restore() is None
    run.close()
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        ".lock",
        ".ssl_kd.json",
        "config.yaml",
        "environment.json",
    }


def test_overwriting_a_run_leaves_what_somebody_else_put_there(tmp_path):
    opened(tmp_path / "run").close()
    theirs = {"notes.md": b"mine", "targets/mine.txt": b"mine", "tensorboard/other": b"mine", "film.part": b"mine"}
    for name in theirs:
        (tmp_path / "run" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "run" / name).write_bytes(b"mine")
    for name in ("targets/0123456789abcdef.f16", "targets/0123456789abcdef.crc", "metrics.jsonl"):
        (tmp_path / "run" / name).write_bytes(b"ours")
    RunDir(tmp_path / "run", {"log": "jsonl"}, overwrite=True).close()
    left = {str(p.relative_to(tmp_path / "run")): p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert left.keys() == theirs.keys() | {".lock", ".ssl_kd.json", "config.yaml", "environment.json"}
    assert all(left[name] == content for name, content in theirs.items())


@pytest.mark.parametrize("listed", ["../thesis.txt", "/etc/hostname", "thesis.txt", "targets/*"])
def test_a_marker_cannot_name_what_is_none_of_ours(tmp_path, listed):
    RunDir(tmp_path / "run", {}).close()
    (tmp_path / "run/targets").mkdir()
    for folder in (tmp_path, tmp_path / "run", tmp_path / "run/targets"):
        (folder / "thesis.txt").write_text("years of work")
    (tmp_path / "run/.ssl_kd.json").write_text(sealed({"run": [*RUN.names, listed]}))
    RunDir(tmp_path / "run", {}, overwrite=True).close()
    assert len(list(tmp_path.rglob("thesis.txt"))) == 3


def test_a_link_to_a_shared_folder_of_targets_is_not_followed_by_overwrite(tmp_path):
    RunDir(tmp_path / "run", {}).close()
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/0123456789abcdef.f16").write_bytes(b"stored")
    (tmp_path / "run/targets").symlink_to(tmp_path / "shared")
    RunDir(tmp_path / "run", {}, overwrite=True).close()
    assert (tmp_path / "shared/0123456789abcdef.f16").read_bytes() == b"stored"


def test_a_run_of_an_older_version_is_known_by_its_settings(tmp_path):
    settings = dict.fromkeys(ALWAYS_SET, "x") | {"lr": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "last.ckpt").write_bytes(b"")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="lr was 1, now 2"):
        RunDir(tmp_path, settings | {"lr": 2})
    assert {p.name for p in tmp_path.iterdir()} == {"config.yaml", "last.ckpt", "thesis.txt"}
    RunDir(tmp_path, settings | {"lr": 2}, overwrite=True).close()
    assert not (tmp_path / "last.ckpt").exists()
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_the_state_of_another_run_is_one_line(tmp_path):
    for lr in (1, 2):
        run = RunDir(tmp_path / str(lr), {"lr": lr, "out": str(lr)})
        run.save({"step": lr})
        run.close()
    (tmp_path / "1" / LAST).write_bytes((tmp_path / "2" / LAST).read_bytes())
    run = RunDir(tmp_path / "1", {"lr": 1, "out": "1"})
    with pytest.raises(UserError, match=r"last\.ckpt: is the state of a run with other settings \(lr was 2, now 1\)"):
        run.restore()
    run.close()


def test_unreadable_images_outlive_the_run_and_damage_to_them_is_one_line(tmp_path):
    run = opened(tmp_path / "run")
    assert run.kept_unreadable() == {}
    run.keep_unreadable({"bad\udcff.jpg": "empty"})
    assert run.kept_unreadable() == {"bad\udcff.jpg": "empty"}
    path = tmp_path / "run/unreadable.json"
    path.write_text(path.read_text().replace("empty", "fully"))
    with pytest.raises(UserError, match=r"unreadable\.json: is damaged"):
        run.kept_unreadable()
    run.forget_unreadable()
    assert run.kept_unreadable() == {}
    run.close()


@pytest.mark.parametrize("foreign", ["text", {"a": 1}, [1], {"step": "x"}, {1: torch.zeros(2)}], ids=str)
def test_a_state_that_is_not_ours_is_one_line_and_stays(tmp_path, foreign):
    run = opened(tmp_path / "run")
    path = tmp_path / "run" / LAST
    if foreign == "text":
        path.write_text("hello")
    else:
        torch.save(foreign, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match=r"last\.ckpt: .*remove it to begin anew") as caught:
        run.restore()
    run.close()
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before


def test_a_line_of_metrics_without_a_step_is_dropped(tmp_path):
    run = opened(tmp_path / "run")
    run.log({"step": 1, "loss": 2})
    run.save({"step": 1})
    run.close()
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"step": "x"}\n{"step": null}\n[]\n')
    run = opened(tmp_path / "run")
    assert run.restore() == {"step": 1}
    run.close()
    assert (tmp_path / "run/metrics.jsonl").read_text() == '{"step": 1, "loss": 2}\n'


def test_a_setting_that_is_younger_than_the_run_does_not_keep_it_from_going_on(tmp_path):
    RunDir(tmp_path / "run", {"lr": 1}).close()
    RunDir(tmp_path / "run", {"lr": 1, "student_digest": ""}, defaults={"student_digest": ""}).close()
    with pytest.raises(UserError, match="student_digest was '', now 'f00'"):
        RunDir(tmp_path / "run", {"lr": 1, "student_digest": "f00"}, defaults={"student_digest": ""})


def test_settings_that_follow_from_others_are_named_only_where_nothing_else_changed(tmp_path):
    RunDir(tmp_path / "run", {"epochs": 2, "warmup": 0.1}).close()
    derived = frozenset({"warmup"})
    with pytest.raises(UserError, match=r"\(epochs was 2, now 1\); choose another out, or pass --overwrite"):
        RunDir(tmp_path / "run", {"epochs": 1, "warmup": 0.05}, derived=derived)
    with pytest.raises(UserError, match=r"\(warmup was 0\.1, now 0\.2\)"):
        RunDir(tmp_path / "run", {"epochs": 2, "warmup": 0.2}, derived=derived)


@pytest.mark.parametrize("given", [["--overwrite"], ["--overwrite", "true"], ["--overwrite=true"]])
def test_the_recorded_command_would_not_wipe_the_run_when_pasted(given, monkeypatch):
    for place in (0, 1):
        words = ["distill", "--out", "runs/m3", "--quiet"]
        argv = ["ssl-kd", "distill", *given, *words[1:]] if place else ["ssl-kd", *words, *given]
        monkeypatch.setattr(sys, "argv", argv)
        assert environment()["command"] == "ssl-kd distill --out runs/m3 --quiet"


def test_a_second_process_is_kept_out(tmp_path):
    run = opened(tmp_path / "run")
    with open(tmp_path / "run/.lock", "wb") as file, pytest.raises(OSError, match="unavailable"):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run.close()


@pytest.mark.parametrize("text", [b"objective: [default\n", b"- a list\n", b"only words", b"\xff\xfe"])
def test_a_config_that_a_hand_has_damaged_is_one_line(tmp_path, text):
    RunDir(tmp_path / "run", {"a": 1}).close()
    (tmp_path / "run/config.yaml").write_bytes(text)
    with pytest.raises(UserError, match=r"config\.yaml.*pass --overwrite") as caught:
        RunDir(tmp_path / "run", {"a": 1})
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run/config.yaml").read_bytes() == text


def test_the_docs_name_every_file_of_a_new_run_folder():
    """The list of docs/recipes.md, under `The run folder`, against the names that are a run's own."""
    page = (Path(__file__).parents[2] / "docs/recipes.md").read_text()
    listed = set(page.split("## The run folder")[1].split("```")[1].split())
    named = {name.strip("()") for name in listed} - {"runs/x/README.md"} | {"README.md"}
    on_demand = {name for name in RUN.names if "/" in name}  # targets and events, only where they are asked for
    assert named == (set(RUN.names) - on_demand) | {MARKER}
