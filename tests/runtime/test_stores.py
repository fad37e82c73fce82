"""Objects of a store: whole or not there, whatever the server does."""

import sys

import numpy as np
import pytest
from buckets import STALL

from ssl_kd.errors import UserError
from ssl_kd.runtime import stores
from ssl_kd.runtime.download import Check, DownloadError, MissingError, digest_of, download
from ssl_kd.runtime.stores import about, in_store, listed, put, remove

BYTES = np.random.default_rng(0).bytes(50_000)  # thirteen pieces


def fetch(bucket, tmp_path, check=None, timeout=30.0):
    target = tmp_path / "got" / "x.bin"
    download(f"{bucket.url}/x.bin", target, check, quiet=True, timeout=timeout, pause=0.01)
    return target


def test_addresses_of_stores_are_told_from_paths():
    assert all(map(in_store, ("s3://b/x", "gs://b/x.tar", "hf://datasets/a/b/x.tar", "S3://b/x")))
    assert not any(map(in_store, ("s3/b", "https://h/x", "./s3:/b", "C:/x", "ftp://h/x", "")))


# What a server may do to the fourth piece and later, for as long as it does not last.
PASSING = {
    "a stall": ["stall"],
    "a cut answer": ["truncate"],
    "an error": ["fail", "fail"],
    "all": ["truncate", "fail", "stall"],
}


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_costs_a_retry_and_no_byte(fault, bucket, tmp_path):
    bucket.put("x.bin", BYTES)
    bucket.server.plan = [None, None, None, *PASSING[fault]]
    assert fetch(bucket, tmp_path, timeout=STALL / 3).read_bytes() == BYTES


def test_a_store_that_never_answers_is_one_line_and_its_bytes_are_kept(bucket, tmp_path):
    bucket.put("x.bin", BYTES)
    bucket.server.plan = [None, None, *["stall"] * 5]
    with pytest.raises(
        DownloadError, match=r"4 tries brought nothing: the store does not answer; 8,192 bytes are kept"
    ) as error:
        fetch(bucket, tmp_path, timeout=STALL / 6)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "got/x.bin").exists()
    bucket.server.plan, before = [], bucket.reads("x.bin")
    assert fetch(bucket, tmp_path).read_bytes() == BYTES
    assert bucket.reads("x.bin") - before <= 11  # two of thirteen pieces were here


def test_an_object_that_changes_under_us_is_read_again_and_never_mixed(bucket, tmp_path):
    other = BYTES[::-1]
    bucket.put("x.bin", BYTES)
    bucket.server.plan = [None, None, lambda: bucket.put("x.bin", other)]
    assert fetch(bucket, tmp_path).read_bytes() == other


@pytest.mark.slow
def test_an_object_that_changed_between_two_calls_begins_anew(bucket, tmp_path):
    bucket.put("x.bin", BYTES)
    bucket.server.plan = [None, None, *["stall"] * 5]
    with pytest.raises(DownloadError):
        fetch(bucket, tmp_path, timeout=STALL / 6)
    bucket.put("x.bin", BYTES[::-1])
    bucket.server.plan = []
    assert fetch(bucket, tmp_path).read_bytes() == BYTES[::-1]


@pytest.mark.slow
def test_an_object_that_never_stands_still_is_refused_with_nothing_left(bucket, tmp_path):
    bucket.put("x.bin", BYTES)
    bucket.server.plan = [lambda n=n: bucket.put("x.bin", BYTES[n:] + BYTES[:n]) for n in range(1, 60)]
    with pytest.raises(DownloadError, match="changed while it was read"):
        fetch(bucket, tmp_path)
    assert not (tmp_path / "got/x.bin").exists()


def test_what_is_missing_or_not_the_file_is_said_in_one_line(bucket, tmp_path):
    with pytest.raises(MissingError, match="no such object"):
        fetch(bucket, tmp_path)
    bucket.put("x.bin", BYTES)
    with pytest.raises(DownloadError, match=r"sha256 is .*, expected 00: damaged or another file"):
        fetch(bucket, tmp_path, Check(sha256="00"))
    with pytest.raises(DownloadError, match=r"expected 7 bytes, but the server has 50,000"):
        fetch(bucket, tmp_path, Check(size=7))
    bucket.put("x.bin", b"")
    assert fetch(bucket, tmp_path).read_bytes() == b""


def test_an_upload_is_the_whole_object_or_the_old_one(bucket, tmp_path):
    path = tmp_path / "x.bin"
    path.write_bytes(BYTES)
    url = f"{bucket.url}/deep/er/x.bin"
    assert about(url) is None
    assert put(path, url).size == len(BYTES)
    assert bucket.get("deep/er/x.bin") == BYTES
    assert listed(f"{bucket.url}/deep/er") == ["x.bin"]
    path.write_bytes(BYTES[::-1])
    bucket.server.plan = ["refuse to write"] * 400
    with pytest.raises(UserError, match=r"could not be written \(the file is whole in .*x\.bin\)") as error:
        put(path, url)
    assert "\n" not in str(error.value)
    assert bucket.get("deep/er/x.bin") == BYTES
    bucket.server.plan = ["refuse to write"] * 2
    version = put(path, url).version
    assert version == about(url).version
    assert bucket.get("deep/er/x.bin") == BYTES[::-1]
    remove(url)
    assert about(url) is None


def test_without_the_package_or_the_network_the_way_out_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"s3:// needs s3fs, which is not installed .*; pip install 'ssl-kd\[stores\]'"):
        download("s3://b/x", tmp_path / "x", pause=0.01)
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    for ask in (
        lambda: about("gs://b/x"),
        lambda: listed("hf://datasets/a/b"),
        lambda: download("s3://b/x", tmp_path / "x"),
    ):
        with pytest.raises(UserError, match="SSL_KD_OFFLINE is set"):
            ask()


def test_nothing_of_one_store_is_asked_of_the_others(tmp_path, monkeypatch):
    """Any file system of fsspec behind a scheme will do: here one in memory."""
    pytest.importorskip("fsspec")
    from fsspec.implementations.memory import MemoryFileSystem

    class Cloud(MemoryFileSystem):
        protocol = "gs"
        store, pseudo_dirs = {}, [""]

    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", Cloud)
    monkeypatch.setattr(stores, "PIECE", 1 << 12)
    path = tmp_path / "x.bin"
    path.write_bytes(BYTES)
    put(path, "gs://b/x.bin")
    assert listed("gs://b") == ["x.bin"]
    assert download("gs://b/x.bin", tmp_path / "y.bin", quiet=True) == digest_of(path)
