"""Stored patches in four bits a number."""

import numpy as np
import pytest
import torch
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation.four_bits import LEVELS, FourBits, fit_levels, packed_width
from ssl_kd.distillation.target_cache import TargetCache, TargetStore, layout_of
from ssl_kd.runtime.signals import Interrupted
from ssl_kd.types import Features

QUICK = SMALL | {"epochs": 4}


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def lloyd(values: np.ndarray) -> float:
    """The mean squared error of the best 16 levels, by the slow obvious version from many starts."""
    best = np.inf
    for seed in range(4):
        levels = np.sort(np.random.default_rng(seed).choice(values, LEVELS, replace=False))
        for _ in range(80):
            near = np.abs(values[:, None] - levels).argmin(1)
            levels = np.array([values[near == k].mean() if (near == k).any() else levels[k] for k in range(LEVELS)])
        best = min(best, float(np.square(values[:, None] - levels).min(1).mean()))
    return best


@pytest.mark.parametrize("kind", ["bell", "sparse", "heavy"])
def test_levels_are_as_good_as_a_slow_search_finds(kind):
    torch.manual_seed(0)
    bell = torch.randn(600, 3) * torch.tensor([1.0, 0.01, 9.0]) + torch.tensor([0.0, 1.0, -7.0])
    rows = {"bell": bell, "sparse": bell.clamp_min(0), "heavy": bell**3}[kind]
    levels = fit_levels(rows)
    codec = FourBits(levels)
    back = codec.decode(codec.encode(rows), 3)
    for d in range(3):
        error = float((rows[:, d] - levels[d][(rows[:, d, None] - levels[d]).abs().argmin(1)]).square().mean())
        assert error <= 1.15 * lloyd(rows[:, d].numpy()) + 1e-12
        assert np.corrcoef(rows[:, d], back[:, d])[0, 1] > 0.99


def test_each_number_becomes_its_nearest_level():
    levels = np.sort(np.random.default_rng(0).normal(size=(5, LEVELS)).astype(np.float32), 1)
    rows = torch.randn(7, 15)  # three vectors a row: an odd count of numbers
    codec = FourBits(torch.from_numpy(levels))
    packed = codec.encode(rows)
    assert packed.shape == (7, packed_width(15))
    assert packed.dtype == np.uint8
    known = torch.from_numpy(levels)
    slow = torch.stack([
        torch.stack([known[i % 5][(known[i % 5] - row[i]).abs().argmin()] for i in range(15)]) for row in rows
    ])  # fmt: skip
    assert torch.equal(codec.decode(packed, 15), slow)


def test_a_dimension_with_few_values_keeps_them_exactly():
    rows = torch.tensor([0.0, 1.0, 4.0]).repeat(50)[:, None].repeat(1, 2)
    codec = FourBits(fit_levels(rows))
    assert torch.equal(codec.decode(codec.encode(rows), 2), rows)


def given(rows: int) -> Features:
    """Tokens, a map and a flat layer, of odd widths."""
    return Features(
        torch.randn(rows, 4), torch.randn(rows, 3, 5), {"map": torch.randn(rows, 3, 2, 2), "flat": torch.randn(rows, 7)}
    )


def test_parts_of_every_shape_come_back_near_and_take_a_quarter_of_the_room(tmp_path):
    torch.manual_seed(0)
    sample, some = given(400), given(6)
    store = TargetStore(tmp_path, "q", 4, 9, layout_of(some), bits=4)
    assert store.must_fit
    store.fit(sample)
    assert not store.must_fit
    index = np.array([7, 1, 4])
    kept = store.put((2, 3), index, some)
    back = store.get((2, 3), index)
    assert torch.equal(back.embedding, some.embedding.half().float())  # embeddings stay as they are
    for name, part in {"tokens": some.tokens, **some.layers}.items():
        found = back.tokens if name == "tokens" else back.layers[name]
        assert found.shape == part.shape
        assert torch.equal(found, kept.tokens if name == "tokens" else kept.layers[name])
        assert np.corrcoef(found.flatten(), part.flatten())[0, 1] > 0.98
    plain = TargetStore(tmp_path / "plain", "q", 4, 9, layout_of(some))
    for name, part in store.parts.items():
        numbers = part.shape[2]
        assert part.columns == (packed_width(numbers) if name else numbers)
        assert plain.parts[name].columns == numbers


def test_what_was_kept_outlives_a_kill_and_is_only_read_by_its_own_levels(tmp_path):
    torch.manual_seed(0)
    some = given(6)
    store = TargetStore(tmp_path, "q", 1, 6, layout_of(some), bits=4)
    store.fit(given(300))
    index = np.arange(6)
    store.put((0,), index, some)
    store.flush()
    again = TargetStore(tmp_path, "q", 1, 6, layout_of(some), bits=4)
    assert not again.must_fit
    assert torch.equal(again.get((0,), index).tokens, store.get((0,), index).tokens)
    again.parts["tokens of "].fit(torch.randn(300, 5) * 2)
    assert again.get((0,), index) is None  # rows of other levels count as empty


@pytest.mark.parametrize("harm", ["gone", "cut", "flipped"])
def test_levels_that_were_damaged_are_fitted_again(tmp_path, harm):
    cache = TargetCache(tmp_path, "q", 1, 4, 6, vector=3)
    sample = torch.randn(100, 3)
    cache.fit(sample)
    rows = cache.put(0, np.arange(4), torch.randn(4, 6))
    path = cache.path.with_suffix(".levels")
    record = bytearray(path.read_bytes())
    path.unlink()
    if harm == "cut":
        path.write_bytes(record[:-5])
    elif harm == "flipped":
        record[10] ^= 1
        path.write_bytes(record)
    again = TargetCache(tmp_path, "q", 1, 4, 6, vector=3)
    assert again.must_fit
    assert again.get(0, np.arange(4)) is None
    again.fit(sample)
    assert torch.equal(again.get(0, np.arange(4)), rows)  # the same sample has the same levels


def test_runs_of_other_seeds_and_batches_share_targets_of_four_bits(tmp_path, teacher):
    shared = QUICK | {"images": small_images(), "targets": str(tmp_path / "said"), "replay": 1, "epochs": 1}
    shared |= {"target_bits": 4, "view_seed": 3, "objective": "centred"}  # with patches
    ssl_kd.distill(teacher, out=tmp_path / "one", seed=1, **shared)
    assert len(list((tmp_path / "said").glob("*.u4"))) == len(list((tmp_path / "said").glob("*.levels"))) == 1
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    ssl_kd.distill(teacher, out=tmp_path / "two", seed=2, **shared | {"batch_size": 4})
    hook.remove()
    assert len(calls) == 1  # the trial before the run


def test_a_run_from_four_bits_resumes_to_the_same_bits(tmp_path, teacher):
    shared = QUICK | {"images": small_images(), "replay": 1, "target_bits": 4}
    whole = ssl_kd.distill(teacher, out=tmp_path / "whole", **shared)
    with signal_in_step(3), pytest.raises(Interrupted):
        ssl_kd.distill(teacher, out=tmp_path / "again", **shared)
    again = ssl_kd.distill(teacher, out=tmp_path / "again", **shared)
    assert same(whole.student, again.student)
