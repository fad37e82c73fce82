"""Stored shards: what was damaged since it came is fetched anew, never taken for pictures."""

import os
import shutil

import pytest
from test_webdataset import cache, same, server, shard, three  # noqa: F401 - fixtures

from ssl_kd.data.open import open_images


def flip(path, at=None):
    data = bytearray(path.read_bytes())
    data[len(data) // 3 if at is None else at] ^= 1
    path.write_bytes(data)


# What may happen to a stored shard between two processes, given another stored shard of the same size.
DAMAGE = {
    "a flipped bit": lambda path, other: flip(path),
    "a flipped bit at equal date": lambda path, other: (
        stamp := os.stat(path),
        flip(path),
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns)),
    ),
    "cut": lambda path, other: os.truncate(path, 700),
    "emptied": lambda path, other: os.truncate(path, 0),
    "deleted": lambda path, other: path.unlink(),
    "swapped": lambda path, other: shutil.copy(other, path),
    "its digest file damaged": lambda path, other: flip(path.with_suffix(".sha256.json"), 20),
}


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_to_a_stored_shard_is_noticed(damage, indexed, server, three, cache):  # noqa: F811
    address = f"{server.url}/train-{{00..02}}.tar"
    open_images(address)
    stored = sorted(cache.rglob("??????.tar"))
    assert len(stored) == 3
    DAMAGE[damage](stored[1], stored[2])
    if not indexed:
        for index in cache.rglob("*.npz"):
            index.unlink()
    images = open_images(address)
    for i in range(12):
        assert same(images, i, i)


def test_a_stored_shard_is_not_fetched_again(server, three, cache):  # noqa: F811
    address = f"{server.url}/train-{{00..02}}.tar"
    for _ in range(2):
        images = open_images(address)
        assert all(same(images, i, i) for i in range(12))
    assert len(server.asked) == 3
