"""A teacher that stops where the target of the step is."""

import pytest
import torch
from small_runs import SMALL, same, signal_in_step, small_images

import ssl_kd
from ssl_kd.runtime.signals import Interrupted

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
SETTINGS = SMALL | {"student": "vit_tiny_patch16_224", "student_args": VIT | {"embed_dim": 8}}


@pytest.fixture
def teacher():
    torch.manual_seed(1)
    return ssl_kd.build("vit_tiny_patch16_224", **VIT).eval()


def test_an_encoder_stops_behind_a_layer_with_the_same_numbers_in_it(teacher):
    pixels = torch.rand(2, 3, 32, 32)
    names = ("stage.1", "stage.2", "stage.4")
    whole, part = teacher(pixels, layers=names), teacher(pixels, layers=names, until="stage.2")
    assert set(part.layers) == {"stage.1", "stage.2"}
    assert all(torch.equal(part.layers[name], whole.layers[name]) for name in part.layers)
    assert part.embedding.shape == (2, 1)
    assert torch.equal(teacher(pixels).embedding, whole.embedding)  # nothing stays behind


def blocks_run(teacher, out, **settings):
    """How often each block of the teacher ran in training steps, and what came of it."""
    counts = [0] * len(teacher.backbone.blocks)
    handles = [
        block.register_forward_hook(lambda *_, at=at: counts.__setitem__(at, counts[at] + 1))
        for at, block in enumerate(teacher.backbone.blocks)
    ]
    done = ssl_kd.distill(teacher, images=small_images(), out=out, **(SETTINGS | settings))
    for handle in handles:
        handle.remove()
    return counts, done


def test_the_teacher_of_leap_runs_its_deep_blocks_only_when_they_are_the_target(teacher, tmp_path):
    slow = [{"term": "progression", "threshold": 1.0, "most_epochs": 100}]
    counts, done = blocks_run(teacher, tmp_path / "run", objective=slow, epochs=3)
    assert counts[0] == 1 + 3 * 3  # the dry look, and every step
    place = int(torch.load(done.out / "last.ckpt", weights_only=True)["pair"]["objective.terms.progression.place"])
    assert counts[place] == counts[0]
    assert all(count == 2 for count in counts[place + 1 :])  # the dry look and the first step, which looks at all
    assert blocks_run(teacher, tmp_path / "stored", objective=slow, replay=1)[1].last["loss"] > 0


def test_leap_goes_on_to_the_same_bits(teacher, tmp_path):
    _, whole = blocks_run(teacher, tmp_path / "whole", objective="leap")
    with signal_in_step(2), pytest.raises(Interrupted):
        blocks_run(teacher, tmp_path / "run", objective="leap")
    assert same(blocks_run(teacher, tmp_path / "run", objective="leap")[1].student, whole.student)


def test_a_teacher_that_is_asked_for_more_does_not_stop(teacher, tmp_path):
    both = [{"term": "progression", "threshold": 1.0}, {"term": "alignment"}]
    counts, _ = blocks_run(teacher, tmp_path / "run", objective=both)
    assert len(set(counts)) == 1
