"""Stored targets: the same student as asking the teacher each time, whole rows or none, never another question's answer."""

import numpy as np
import pytest
import torch
from small_runs import SMALL, same, signal_in_step, small_images, small_teacher

import ssl_kd
from ssl_kd.distillation.target_cache import TargetCache, flattened, layout_of, unflattened
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


def test_a_torn_or_flipped_row_is_found(tmp_path):
    store = TargetCache(tmp_path, "q", 1, 5, 3)
    store.put(0, np.arange(5), torch.ones(5, 3))
    store.flush()
    data = bytearray(store.path.read_bytes())
    data[2 * 3 * 2] ^= 1
    store.path.write_bytes(data)
    again = TargetCache(tmp_path, "q", 1, 5, 3)
    assert again.get(0, np.array([2])) is None
    assert again.get(0, np.array([0, 1, 3, 4])) is not None


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


def test_features_come_back_from_rows():
    given = Features(torch.randn(3, 4), torch.randn(3, 2, 5), {"b": torch.randn(3, 2, 2, 2), "a": torch.randn(3, 6)})
    layout = layout_of(given)
    rows = flattened(given)
    assert rows.shape == (3, sum(width for _, _, width in layout)) == (3, 4 + 10 + 8 + 6)
    back = unflattened(rows, layout)
    assert torch.equal(back.embedding, given.embedding)
    assert torch.equal(back.tokens, given.tokens)
    assert all(torch.equal(back.layers[name], tap) for name, tap in given.layers.items())


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
