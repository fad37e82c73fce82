"""Mixup and CutMix: both networks see one and the same mixture, and an interrupted run mixes on as before."""

import numpy as np
import pytest
import torch
from small_runs import SMALL, small_images, small_teacher

import ssl_kd
from ssl_kd.data.mixup import mixed
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.setup import prepare
from ssl_kd.errors import UserError
from ssl_kd.types import ViewBatch

QUICK = SMALL | {"epochs": 1, "batch_size": 4}


def views(first=0, count=2):
    levels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 16, 16) / 4
    return ViewBatch(np.arange(first, first + 4), 0, tuple(levels + 0.01 * v for v in range(count)))


def test_mixup_takes_one_share_of_each_image_and_the_rest_of_its_neighbour():
    shares = []
    for first in range(40):
        before = views(first)
        after = mixed(before, "mixup", 1.0, seed=3)
        x, y = before.pixels[0], after.pixels[0]
        share = 1 - 4 * y[0].mean() / 3  # the neighbour of 0 is 3/4
        for was, now in zip(before.pixels, after.pixels, strict=True):
            assert torch.allclose(now, share * was + (1 - share) * was.roll(1, 0), atol=1e-5)
        shares.append(float(share))
        assert after.index is before.index
        assert torch.equal(x, views(first).pixels[0])  # what came in is left alone
    assert 0 <= min(shares) < 0.2
    assert 0.8 < max(shares) <= 1
    assert 0.35 < np.mean(shares) < 0.65


def test_cutmix_sets_a_square_of_the_neighbour_into_each_image():
    for first in range(20):
        before, after = views(first), mixed(views(first), "cutmix", 1.0, seed=3)
        from_neighbour = after.pixels[0] != before.pixels[0]
        assert torch.equal(after.pixels[0], torch.where(from_neighbour, before.pixels[0].roll(1, 0), before.pixels[0]))
        inside = from_neighbour[0, 0].nonzero()
        if len(inside):
            high, wide = (inside.max(0).values - inside.min(0).values + 1).tolist()
            assert len(inside) == high * wide
            assert high == wide


def test_mixing_is_a_function_of_the_batch_and_the_seed():
    a, b, c = (mixed(views(7), "mixup", 1.0, seed).pixels[0] for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    whole = views()
    assert mixed(whole, "none", 1.0, 0) is whole
    assert mixed(whole, "mixup", 0.0, 0) is whole
    shares = [mixed(views(first), "mixup", 0.5, 0).pixels[0][0].mean() > 0 for first in range(200)]
    assert 0.35 < np.mean(shares) < 0.65


def test_both_networks_see_the_same_mixture(tmp_path):
    seen = {"teacher": [], "student": []}
    networks = {"teacher": small_teacher(), "student": ssl_kd.build("resnet18", channels=[8, 8, 8, 8])}
    for name, network in networks.items():
        network.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].clone()))
    settings = {k: v for k, v in QUICK.items() if "student" not in k}
    ssl_kd.distill(
        networks["teacher"], networks["student"], small_images(12), out=tmp_path / "mix", mix="mixup", **settings
    )
    mixed_pixels = seen["teacher"][1:]  # the first is the trial's
    assert all(torch.equal(a, b) for a, b in zip(mixed_pixels, seen["student"][1:], strict=True))
    seen["teacher"].clear()
    ssl_kd.distill(networks["teacher"], images=small_images(12), out=tmp_path / "plain", **QUICK)
    assert not any(torch.equal(a, b) for a, b in zip(mixed_pixels, seen["teacher"][1:], strict=True))


def test_stored_targets_cannot_serve_mixtures(tmp_path):
    with pytest.raises(UserError, match="replay: stored targets are of single images, but cutmix"):
        ssl_kd.distill(small_teacher(), images=small_images(12), out=tmp_path / "run", mix="cutmix", replay=2, **QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("objective", "asked", "found"), [("lightly_v1", "", "mixup"), ("lightly_v1", "none", "none")])
def test_a_preset_mixes_as_it_was_published_unless_told_otherwise(objective, asked, found):
    config = DistillConfig(teacher="t", images="i", out="o", objective=objective, mix=asked, size=32)
    assert prepare(config, small_teacher(), None, small_images(12)).mix == found
