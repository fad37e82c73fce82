"""Stored targets: the same student as asking the teacher each time, whole rows or none, never another question's answer."""

import os
import shutil

import numpy as np
import pytest
import torch
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation import target_cache
from ssl_kd.distillation.target_cache import MADE_BY, TargetCache, TargetStore, layout_of
from ssl_kd.distillation.trainer import fill_targets
from ssl_kd.errors import UserError
from ssl_kd.types import Features

QUICK = SMALL | {"epochs": 4}


@pytest.fixture(scope="module")
def teacher():
    return small_teacher()


def test_rows_come_back_as_they_were_put(tmp_path):
    store = TargetCache(tmp_path, "q", views=2, images=5, width=3)
    given = torch.randn(2, 3)
    assert store.get(1, np.array([4, 2])) is None
    assert torch.equal(store.put(1, np.array([4, 2]), given), given.half().float())
    assert torch.equal(store.get(1, np.array([2, 4])), given.half().float()[[1, 0]])
    assert store.get(0, np.array([4, 2])) is None
    assert store.get(1, np.array([4, 1])) is None
    store.flush()
    again = TargetCache(tmp_path, "q", views=2, images=5, width=3)
    assert torch.equal(again.get(1, np.array([4, 2])), given.half().float())
    assert again.filled() == 2 / 10


def test_another_question_is_another_file(tmp_path):
    store = TargetCache(tmp_path, "q", 1, 5, 3)
    store.put(0, np.arange(5), torch.ones(5, 3))
    for question, shape in (("r", (1, 5, 3)), ("q", (2, 5, 3)), ("q", (1, 6, 3)), ("q", (1, 5, 4))):
        assert TargetCache(tmp_path, question, *shape).filled() == 0


def stored(folder, question, rows):
    """A store of one view with these rows (N, width)."""
    store = TargetCache(folder, question, 1, len(rows), rows.shape[1])
    store.put(0, np.arange(len(rows)), rows)
    store.flush()
    return store.path, store.path.with_suffix(".crc")


def turn(path, by):
    """Move the first bytes of a file to its end."""
    path.write_bytes(path.read_bytes()[by:] + path.read_bytes()[:by])


# What may happen to a store's two files, given another store's of the same shape.
DAMAGE = {
    "rows cut": lambda rows, sums, other: os.truncate(rows, 7),
    "rows emptied": lambda rows, sums, other: os.truncate(rows, 0),
    "rows deleted": lambda rows, sums, other: rows.unlink(),
    "rows longer": lambda rows, sums, other: rows.write_bytes(rows.read_bytes() + b"more"),
    "sums cut": lambda rows, sums, other: os.truncate(sums, 7),
    "sums deleted": lambda rows, sums, other: sums.unlink(),
    "sums zero": lambda rows, sums, other: sums.write_bytes(bytes(20)),
    "rows of another store": lambda rows, sums, other: shutil.copy(other[0], rows),
    "both files of another store": lambda rows, sums, other: [shutil.copy(o, f) for o, f in zip(other, (rows, sums), strict=True)],
    "rows moved by one place": lambda rows, sums, other: (turn(rows, 6), turn(sums, 4)),
    "the marker deleted": lambda rows, sums, other: (rows.parent / ".ssl_kd.json").unlink(),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_no_damage_gives_another_row(damage, tmp_path):
    given = torch.arange(15.0).view(5, 3) / 7 + 1
    other = stored(tmp_path, "r", -given)
    DAMAGE[damage](*stored(tmp_path, "q", given), other)
    again = TargetCache(tmp_path, "q", 1, 5, 3)
    for i in range(5):
        row = again.get(0, np.array([i]))
        assert row is None or torch.equal(row[0], given[i].half().float())
    again.recheck()
    assert again.filled() in ((1,) if damage == "the marker deleted" else (0,))
    again.put(0, np.arange(5), given)
    assert torch.equal(TargetCache(tmp_path, "q", 1, 5, 3).get(0, np.arange(5)), given.half().float())


def test_no_flipped_bit_gives_another_row(tmp_path):
    given = torch.arange(15.0).view(5, 3) / 7 + 1
    for path in stored(tmp_path, "q", given):
        sound = path.read_bytes()
        for bit in range(0, 8 * len(sound), 5):
            damaged = bytearray(sound)
            damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            again = TargetCache(tmp_path, "q", 1, 5, 3)
            rows = [again.get(0, np.array([i])) for i in range(5)]
            assert sum(row is None for row in rows) == 1
            assert all(row is None or torch.equal(row[0], given[i].half().float()) for i, row in enumerate(rows))
            again.recheck()
            assert again.filled() == 4 / 5
            path.write_bytes(sound)
            del again
            stored(tmp_path, "q", given)


@pytest.mark.parametrize("package", MADE_BY)
def test_another_version_of_what_made_them_is_another_store(package, tmp_path, monkeypatch):
    known = TargetCache(tmp_path, "q", 1, 5, 3).key
    real = target_cache.installed
    monkeypatch.setattr(target_cache, "installed", lambda name: "0.0" if name == package else real(name))
    assert TargetCache(tmp_path, "q", 1, 5, 3).key != known


@pytest.mark.parametrize("held", [0, 32])
def test_pictures_replaced_by_others_of_equal_size_get_targets_of_their_own(teacher, tmp_path, held):
    def paint(seed):
        for i in range(64):
            image = small_images(64, seed).read(i)
            image.save(tmp_path / f"photos/{i}.bmp")
            os.utime(tmp_path / f"photos/{i}.bmp", (1e9 + seed, 1e9 + seed))

    (tmp_path / "photos").mkdir()
    settings = QUICK | {"epochs": 1, "replay": 1, "health_images": held, "images": str(tmp_path / "photos")}
    asked = []
    hook = teacher.register_forward_hook(lambda *_: asked.append(1))
    counts = []
    for seed in (0, 0, 1):
        paint(seed)
        asked.clear()
        fill_targets(teacher, out=tmp_path / f"run{len(counts)}", targets=str(tmp_path / "shared"), **settings)
        counts.append(len(asked))
    hook.remove()
    assert counts[0] == counts[2] > counts[1] == 1  # the trial before a run


def test_a_folder_of_somebody_else_is_not_written_into(teacher, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/thesis.txt").write_text("years of work")
    settings = QUICK | {"replay": 1, "images": small_images(), "targets": str(tmp_path / "shared")}
    with pytest.raises(UserError, match=r"targets: .*not a folder of stored targets .it holds thesis\.txt"):
        fill_targets(teacher, out=tmp_path / "run", **settings)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["shared", "thesis.txt"]


def test_embeddings_that_do_not_fit_are_refused(tmp_path):
    store = TargetCache(tmp_path, "q", 1, 5, 3)
    with pytest.raises(UserError, match="overflow float16"):
        store.put(0, np.array([0]), torch.tensor([[1.0, 1e6, 0.0]]))
    assert store.filled() == 0


def test_too_little_room_is_said_at_once(tmp_path):
    with pytest.raises(UserError, match="lower replay"):
        TargetCache(tmp_path, "q", 1000, 10**9, 4096)
    assert not list(tmp_path.iterdir())


def test_the_teacher_is_asked_once_per_view_and_the_student_is_the_same(teacher, tmp_path):
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    filled = fill_targets(teacher, images=small_images(), out=tmp_path / "ahead", replay=2, **QUICK)
    assert filled[""].filled() == 1.0
    assert len(calls) == 1 + 6  # the trial before a run, and two views of three batches
    ahead = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "ahead", replay=2, **QUICK)
    assert len(calls) == 8
    during = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "during", replay=2, **QUICK)
    assert len(calls) == 15  # two epochs of three batches; the other two were read
    hook.remove()
    assert same(ahead.student, during.student)


def test_filling_what_is_full_cuts_no_view_again(teacher, tmp_path, monkeypatch):
    settings = {"images": small_images(), "out": tmp_path / "ahead", "replay": 2, **QUICK}
    fill_targets(teacher, **settings)
    monkeypatch.setattr("ssl_kd.data.loader.ViewLoader.epoch", None)
    assert fill_targets(teacher, **settings)[""].filled() == 1.0


def test_replayed_views_come_round_again_in_another_order(teacher):
    from ssl_kd.data.augment import SCHEMES
    from ssl_kd.data.loader import ViewLoader

    loader = ViewLoader(small_images(), SCHEMES["strong"], 32, 20, replay=2)
    first, second, third = (loader.finish_all(next(loader.epoch(e))) for e in (0, 1, 2))
    back = {int(i): k for k, i in enumerate(third.index)}
    rows = [back[int(i)] for i in first.index]
    assert rows != list(range(20))
    assert torch.equal(first.pixels[0], third.pixels[0][rows])
    back = {int(i): k for k, i in enumerate(second.index)}
    assert not torch.equal(first.pixels[0], second.pixels[0][[back[int(i)] for i in first.index]])


def test_a_run_with_stored_targets_resumes_to_the_same_bits(teacher, tmp_path):
    whole = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "whole", replay=2, **QUICK)
    with signal_in_step(4), pytest.raises(KeyboardInterrupt):
        ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "cut", replay=2, **QUICK)
    rest = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "cut", replay=2, **QUICK)
    assert same(whole.student, rest.student)


def test_filling_nothing_is_refused(teacher, tmp_path):
    with pytest.raises(UserError, match="replay: expected at least 1"):
        fill_targets(teacher, images=small_images(), out=tmp_path / "run", **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("objective", ["at", "fsp", "default"])
def test_patches_and_tapped_layers_are_stored_as_well(teacher, tmp_path, objective):
    settings = QUICK | {"epochs": 2, "objective": objective}
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    fill_targets(teacher, images=small_images(), out=tmp_path / "ahead", replay=1, **settings)
    asked = len(calls)
    ahead = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "ahead", replay=1, **settings)
    hook.remove()
    assert len(calls) == asked + 1  # the trial before the run
    online = ssl_kd.distill(
        teacher, images=small_images(), out=tmp_path / "online", replay=0, **settings | {"epochs": 1}
    )
    assert ahead.last.keys() == online.last.keys()


def test_features_of_two_views_come_back_as_they_were_put(tmp_path):
    given = Features(torch.randn(6, 4), torch.randn(6, 2, 5), {"b": torch.randn(6, 2, 2, 2), "a": torch.randn(6, 6)})
    store, index = TargetStore(tmp_path, "q", 4, 9, layout_of(given)), np.array([7, 1, 4])
    assert store.get((2, 3), index) is None
    store.put((2, 3), index, given)
    back = store.get((2, 3), index)
    assert torch.equal(back.embedding, given.embedding.half().float())
    assert torch.equal(back.tokens, given.tokens.half().float())
    assert all(torch.equal(back.layers[name], tap.half().float()) for name, tap in given.layers.items())
    assert store.get((1, 3), index) is None
    assert store.filled() == 6 / 36


def test_objectives_that_read_different_parts_share_those_they_have_in_common(teacher, tmp_path):
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    shared = QUICK | {"images": small_images(), "targets": str(tmp_path / "said"), "replay": 1, "epochs": 1}
    ssl_kd.distill(teacher, out=tmp_path / "wide", objective="default", **shared)
    asked = len(calls)
    ssl_kd.distill(teacher, out=tmp_path / "narrow", objective="simreg", **shared)
    hook.remove()
    assert len(calls) == asked + 1  # the trial before the run


def test_runs_of_other_seeds_share_targets_where_the_views_have_a_seed_of_their_own(teacher, tmp_path):
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    shared = QUICK | {"images": small_images(), "targets": str(tmp_path / "said"), "replay": 1, "epochs": 1}
    first = ssl_kd.distill(teacher, out=tmp_path / "a", seed=1, view_seed=5, **shared)
    asked = len(calls)
    second = ssl_kd.distill(teacher, out=tmp_path / "b", seed=2, view_seed=5, **shared)
    hook.remove()
    assert len(calls) == asked + 1  # the trial before the run
    assert not same(first.student, second.student)


def test_room_is_taken_at_once(tmp_path):
    """A mapped file with holes kills its writer when the disk fills up; this one has its blocks."""
    store = TargetCache(tmp_path, "q", 2, 300, 64)
    found = store.path.stat()
    assert found.st_blocks * 512 >= found.st_size == 2 * 300 * 64 * 2


def test_a_disk_without_room_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(UserError, match=r"targets: cannot keep them in .* .No space left on device.; use replay 0"):
        TargetCache(tmp_path, "q", 2, 300, 64)
    assert not list(tmp_path.iterdir())


def test_runs_share_a_folder_of_targets(tmp_path, teacher):
    shared = QUICK | {"targets": str(tmp_path / "said"), "replay": 1, "epochs": 1}
    first = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "first", **shared)
    asked = []
    hook = teacher.register_forward_pre_hook(lambda _, given: asked.append(len(given[0])))
    second = ssl_kd.distill(teacher, images=small_images(), out=tmp_path / "second", **shared)
    hook.remove()
    assert same(first.student, second.student)
    assert not (tmp_path / "second" / "targets").exists()
    assert max(asked) == 2  # the dry pass on made-up images alone


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 4])
def test_targets_in_a_store_are_asked_for_once_by_all_machines(bits, teacher, bucket, tmp_path, monkeypatch):
    settings = QUICK | {
        "objective": "default",
        "target_bits": bits,
        "replay": 1,
        "images": small_images(),
        "targets": f"{bucket.url}/targets",
    }
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    first = fill_targets(teacher, out=tmp_path / "a", **settings)[""]
    assert first.path.startswith(f"{bucket.url}/targets/")
    count = len(calls)
    endings = {16: {"crc", "f16"}, 4: {"crc", "f16", "levels", "u4"}}
    assert {key.rpartition(".")[2] for key in bucket.names()} == endings[bits]
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "another machine"))
    bucket.server.plan = ["truncate", "fail", None, "truncate"]
    ssl_kd.distill(teacher, out=tmp_path / "b", **settings)
    hook.remove()
    assert count > 2
    assert len(calls) == count + 1  # the trial before a run
    bucket.put(next(key for key in bucket.names() if key.endswith("f16")), b"cut")
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "a third one"))
    with pytest.raises(UserError, match=r"s3://.*\.f16: expected [\d,]+ bytes, but the server has 3") as caught:
        fill_targets(teacher, out=tmp_path / "c", **settings)
    assert "\n" not in str(caught.value)


def test_targets_that_cannot_be_put_into_a_store_wait_and_go_there_the_next_time(teacher, bucket, tmp_path):
    settings = QUICK | {
        "replay": 1,
        "images": small_images(),
        "targets": f"{bucket.url}/targets",
        "out": tmp_path / "a",
    }
    bucket.server.plan = ["refuse to write"] * 100
    with pytest.raises(UserError, match="could not be written"):
        fill_targets(teacher, **settings)
    assert bucket.names() == []
    bucket.server.plan = []
    calls = []
    hook = teacher.register_forward_hook(lambda *_: calls.append(1))
    fill_targets(teacher, **settings)
    hook.remove()
    assert len(calls) == 1
    assert bucket.names()
