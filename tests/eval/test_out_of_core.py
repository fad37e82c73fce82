"""A bank on disk gives a probe what the same bank gives in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.linear_probe import LinearProbe
from ssl_kd.eval.solvers import out_of_core
from ssl_kd.eval.solvers.out_of_core import Rows, scratch, stays_on_disk


def bank(n, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(9).standard_normal((4, 12))
    y = rng.integers(0, 4, n)
    x = centres[y] + rng.standard_normal((n, 12))
    x[:, 5] = x[:, 4]  # a direction that carries nothing is dropped, on disk as well
    return x.astype(dtype), y


def mapped(path, x):
    np.save(path, x)
    return np.load(path, mmap_mode="r")


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("protocol", ["quick-lbfgs", "dinov2-sweep", "compress-linear"])
def test_a_probe_on_disk_equals_one_in_memory(tmp_path, monkeypatch, protocol, dtype):
    (x, y), (x_test, y_test) = bank(300, 0, dtype), bank(150, 1, dtype)
    expected = LinearProbe(protocol)(FeatureBank(x, y), FeatureBank(x_test, y_test))
    monkeypatch.setattr(out_of_core, "IN_MEMORY", 1000)
    train, test = (
        FeatureBank(mapped(tmp_path / f"{i}.npy", a), b) for i, (a, b) in enumerate([(x, y), (x_test, y_test)])
    )
    assert stays_on_disk(train.features)
    assert not stays_on_disk(x)
    got = LinearProbe(protocol)(train, test)
    assert got.details.get("strength") == expected.details.get("strength")
    assert got.details["objective"] == pytest.approx(expected.details["objective"], rel=1e-4)
    assert got.value() == pytest.approx(expected.value(), abs=0.007)  # one row of 150 may fall on the line


def test_rows_read_what_indexing_reads(tmp_path):
    x, _ = bank(50, 2)
    which = np.random.default_rng(0).random(50) < 0.5
    some = Rows(mapped(tmp_path / "x.npy", x), np.arange(50))[torch.from_numpy(which)]
    whole = torch.from_numpy(x[which])
    assert some.shape == tuple(whole.shape)
    assert torch.equal(some[3:9], whole[3:9])
    assert torch.equal(some[torch.tensor([4, 0, 4])], whole[[4, 0, 4]])
    assert torch.equal(torch.cat(list(some.split(7))), whole)
    torch.testing.assert_close(some.mean(0), whole.mean(0))


def test_a_scratch_file_is_written_and_read_like_memory():
    room = scratch(5, 3)
    room[1:3] = 7.0
    assert room.sum() == 42


def test_a_temporary_folder_without_room_is_one_line(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"needs 0.0 GB in .* .No space left on device.; free some space or set TMPDIR"):
        scratch(5, 3)


def test_a_scratch_file_has_its_room(monkeypatch):
    """A mapped file with holes kills its writer when the disk fills up."""
    asked = []
    monkeypatch.setattr("os.posix_fallocate", lambda handle, start, size: asked.append((start, size)))
    assert scratch(5, 3).sum() == 0
    assert asked == [(0, 60)]
