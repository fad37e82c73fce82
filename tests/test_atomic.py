"""Atomic files: whole or not at all, also on a full disk; what killed writers leave is swept."""

import os
import resource
from contextlib import contextmanager

import pytest
import torch

from ssl_kd.atomic import append_line, atomically, sweep
from ssl_kd.errors import UserError


@contextmanager
def files_end_at(size):
    """No file of this process can grow beyond `size` bytes: the write that would is cut short, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "bytes": lambda file: file.write(b"x" * 100_000),
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
