"""An order is a permutation that is computed where it is asked for, and depends on (seed, epoch) alone."""

import tracemalloc

import numpy as np
import pytest

from ssl_kd.data import samplers
from ssl_kd.data.samplers import Batches, ByShard, Shuffled

SIZES = [3, 0, 5, 1, 4, 2, 7]


@pytest.fixture(params=["drawn", "computed"])
def either(request, monkeypatch):
    if request.param == "computed":
        monkeypatch.setattr(samplers, "DRAWN", 0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 1000])
def test_a_shuffle_has_every_number_once(count, either):
    shuffled = Shuffled(count, 3, 1)
    assert sorted(shuffled[:]) == list(range(count))
    assert np.array_equal(shuffled[:], np.concatenate([shuffled[i : i + 1] for i in range(count)]))
    assert np.array_equal(shuffled.at(np.arange(count)), shuffled[:])


def test_seeds_and_epochs_shuffle_differently_and_the_same_again(either):
    orders = {tuple(Shuffled(50, s, e)[:]) for s in (0, 1) for e in (0, 1) for _ in range(2)}
    assert len(orders) == 4


def test_a_computed_shuffle_sends_every_number_everywhere(monkeypatch):
    monkeypatch.setattr(samplers, "DRAWN", 0)
    rows = np.stack([Shuffled(20, 7, e)[:] for e in range(1000)])
    for column in (rows[:, 0], rows[:, 19], (rows[:, 1] - rows[:, 0]) % 20):
        counts = np.bincount(column, minlength=20)
        counts = counts[counts > 0]  # neighbours are never equal
        assert abs(counts - 1000 / len(counts)).max() < 6 * (1000 / len(counts)) ** 0.5


def test_a_computed_shuffle_keeps_nothing_that_grows():
    tracemalloc.start()
    batch = Shuffled(10**12, 0, 0)[10**11 : 10**11 + 256]
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert len(set(batch.tolist())) == 256
    assert 0 <= batch.min() <= batch.max() < 10**12


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_an_order_by_shard_has_every_picture_once(window, either):
    whole = ByShard(SIZES, window, 0, 2)
    assert len(whole) == sum(SIZES)
    assert sorted(whole[:]) == list(range(sum(SIZES)))
    assert np.array_equal(np.concatenate([whole[i : i + 4] for i in range(0, sum(SIZES), 4)]), whole[:])


def test_an_order_by_shard_leaves_a_window_for_good_before_it_opens_the_next():
    of = np.repeat(np.arange(len(SIZES)), SIZES)
    for epoch in range(5):
        whole = ByShard(SIZES, 2, 1, epoch)
        seen = of[whole[:]]
        at = 0
        for start in range(0, len(SIZES), 2):
            shards = whole.shards[start : start + 2]
            size = sum(SIZES[s] for s in shards)
            assert set(seen[at : at + size]) <= set(shards.tolist())
            at += size
    assert len({tuple(ByShard(SIZES, 2, 1, e)[:]) for e in range(5)}) == 5


def test_an_order_by_shard_mixes_the_shards_of_a_window():
    whole = ByShard([100, 100], 2, 0, 0)[:] // 100
    assert (np.diff(whole) != 0).sum() > 50


@pytest.mark.parametrize(("count", "size"), [(10, 4), (10, 10), (10, 64), (7, 3), (2, 2), (1, 5)])
def test_batches_cover_an_order_once_in_near_equal_parts(count, size):
    shuffled = Shuffled(count, 1, 3)
    batches = list(Batches(shuffled, size).since(0))
    for ours, numpys in zip(batches, np.array_split(shuffled[:], -(-count // size)), strict=True):
        assert np.array_equal(ours, numpys)
    lengths = [len(b) for b in batches]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_batches_go_on_from_any_of_them():
    batches = Batches(Shuffled(23, 0, 0), 5)
    assert [b.tolist() for b in batches.since(3)] == [batches[3].tolist(), batches[4].tolist()]
    assert batches[-1].tolist() == batches[4].tolist()
    with pytest.raises(IndexError):
        batches[5]
