"""Atomic files: whole or not at all, also on a full disk; what killed writers leave is swept."""

import errno
import os

import numpy as np
import pytest
import torch
from small_disk import files_end_at

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import append_line, atomically, probe, sealed, sweep, unsealed

WRITERS = {
    "bytes": lambda file: file.write(b"x" * 100_000),
    "numpy": lambda file: np.savez(file, a=np.zeros(30_000)),
    "torch": lambda file: torch.save({"a": torch.zeros(30_000)}, file),  # turns the error into one of its own
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_file_that_does_not_fit_leaves_the_old_one_and_one_line(writer, tmp_path):
    path = tmp_path / "state"
    atomically(path, lambda file: file.write(b"old"))
    with (
        files_end_at(50_000),
        pytest.raises(UserError, match=r"state: could not be written .File too large.; free") as e,
    ):
        atomically(path, WRITERS[writer])
    assert "\n" not in str(e.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        atomically(tmp_path / "state", lambda file: file.write(b"new"))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def read_only(monkeypatch):
    """A file system that refuses every change, removing included."""

    def refuse(*_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("pathlib.Path.unlink", refuse)


@pytest.mark.parametrize("writes", [lambda path: atomically(path, lambda file: file.write(b"new")), probe])
def test_a_read_only_folder_is_named(writes, tmp_path, read_only):
    with pytest.raises(UserError, match=r"state: could not be written .Read-only file system.; free") as e:
        writes(tmp_path / "state")
    assert "\n" not in str(e.value)


def test_a_place_that_can_be_written_is_found_out_beforehand_and_left_as_it_was(tmp_path):
    probe(tmp_path / "new" / "state")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="could not be written"):
        probe(tmp_path / "file" / "state")
    assert (tmp_path / "file").read_text() == "mine"


def test_another_mistake_keeps_its_name(tmp_path):
    def wrong(file):
        file.write(b"half")
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        atomically(tmp_path / "state", wrong)
    assert os.listdir(tmp_path) == []


def test_a_line_that_does_not_fit_is_not_begun(tmp_path):
    path = tmp_path / "log"
    append_line(path, "a" * 60)
    with files_end_at(100), pytest.raises(UserError, match="log: could not be written"):
        append_line(path, "b" * 60)
    append_line(path, "c")
    assert path.read_text() == "a" * 60 + "\nc\n"


# Names in a folder where a file `last.ckpt` is written, and whether they are what a killed writer of it left.
DEAD = 2**22 + 1  # larger than any process's number
BESIDE = {
    "last.ckpt": False,
    "last.ckpt.part": False,  # a browser's
    "last.ckpt.x.part": False,
    f"other.ckpt.{DEAD}.part": False,
    f"my last.ckpt.{DEAD}.part": False,
    f"last.ckpt.{DEAD}.part.zip": False,
    f"last.ckpt.{os.getpid()}.part": False,  # being written
    f"last.ckpt.{os.getppid()}.part": False,  # by another process that lives
    f"last.ckpt.{DEAD}.part": True,
    f".last.ckpt.{DEAD}.part": True,
    f".last.ckpt.{DEAD}.part.{DEAD}.part": True,
    f"last.ckpt.{DEAD}.trial.part": True,
    f"last.ckpt.{10**18}.part": True,
}


def test_sweeping_takes_only_what_killed_writers_of_these_files_left(tmp_path):
    for name in BESIDE:
        (tmp_path / name).write_text("")
    sweep(tmp_path, ["last.ckpt"])
    assert set(os.listdir(tmp_path)) == {name for name, swept in BESIDE.items() if not swept}


def test_the_number_of_a_process_that_began_later_vouches_for_nothing(tmp_path):
    """In a container the same few numbers come round again."""
    old = tmp_path / f"last.ckpt.{os.getpid()}.part"
    old.write_text("")
    os.utime(old, (1e9, 1e9))
    sweep(tmp_path, ["last.ckpt"])
    assert os.listdir(tmp_path) == []


def test_folders_and_links_are_never_swept(tmp_path):
    (tmp_path / f"last.ckpt.{DEAD}.part").mkdir()
    (tmp_path / f".last.ckpt.{DEAD}.part").symlink_to(tmp_path)
    sweep(tmp_path, ["last.ckpt"])
    assert len(os.listdir(tmp_path)) == 2


def test_the_first_look_at_a_place_sweeps_what_a_killed_writer_left_there(tmp_path):
    (tmp_path / f"o.npz.{DEAD}.part").write_text("")
    (tmp_path / f"p.npz.{DEAD}.part").write_text("")
    probe(tmp_path / "o.npz")
    assert os.listdir(tmp_path) == [f"p.npz.{DEAD}.part"]


def test_a_record_comes_back_and_damage_to_it_is_noticed():
    record = {"a": [1, "\udcff"], "b": {"c": None}}
    text = sealed(record)
    assert unsealed(text) == record
    assert unsealed('{"a": 1}', older=["a"]) == {"a": 1}
    for foreign in ('{"a": 1}', "[1]", "text"):
        with pytest.raises(ValueError, match=r"checksum|record|Expecting"):
            unsealed(foreign, older=["b"])
    for at in range(len(text)):
        damaged = text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]
        try:
            assert unsealed(damaged) == record  # a space became something else that JSON passes over
        except ValueError:
            continue
