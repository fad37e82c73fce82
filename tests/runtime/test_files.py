"""Atomic files: whole or not at all, also on a full disk; what killed writers leave is swept."""

import errno
import os

import numpy as np
import pytest
import torch
from small_disk import files_end_at

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import append_line, atomically, probe, sweep

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


def test_sweeping_takes_only_unfinished_files(tmp_path):
    for name in ("last.ckpt", "last.ckpt.123.part", "participants.txt"):
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["last.ckpt", "participants.txt"]
