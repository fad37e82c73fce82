"""Corruptions damage more with severity, equally for everyone, and make another set of images."""

from __future__ import annotations

import numpy as np
import pytest

from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.sources.base import content_key
from ssl_kd.errors import UserError
from ssl_kd.eval.datasets.corruptions import CORRUPTIONS, Corrupted
from ssl_kd.eval.datasets.tasks import ArrayTask, corrupted


def images(n=3, side=48):
    from scipy.ndimage import gaussian_filter

    rough = np.random.default_rng(0).normal(size=(n, side, side, 3))
    smooth = sum(gaussian_filter(rough, (0, sigma, sigma, 0)) * sigma for sigma in (1, 2, 4))
    return ArrayImages((128 + 90 * smooth).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_damage_grows_with_severity_and_keeps_the_size(kind):
    plain = images()
    damage = []
    for severity in range(1, 6):
        hurt = Corrupted(plain, kind, severity)
        assert hurt.read(0).size == plain.read(0).size
        assert hurt.read(0).mode == "RGB"
        apart = [np.abs(np.asarray(hurt.read(i), float) - np.asarray(plain.read(i), float)).mean() for i in range(3)]
        damage.append(np.mean(apart))
    if kind != "scramble":  # whose pieces get smaller: fewer edges are whole, though no pixel is further off
        assert damage == sorted(damage)
    assert damage[0] > 0


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_damage_is_the_same_every_time_and_differs_between_pictures(kind):
    one, again = Corrupted(images(), kind), Corrupted(images(), kind)
    np.testing.assert_array_equal(np.asarray(one.read(2)), np.asarray(again.read(2)))
    grey = Corrupted(ArrayImages(np.full((2, 32, 32, 3), 90, np.uint8)), kind, 5)
    same = np.array_equal(np.asarray(grey.read(0)), np.asarray(grey.read(1)))
    assert same == (kind not in ("noise", "occlude"))


def test_every_kind_and_severity_has_a_name_of_its_own():
    keys = {content_key(images())}
    keys |= {content_key(Corrupted(images(), kind, severity)) for kind in CORRUPTIONS for severity in (1, 5)}
    assert len(keys) == 1 + 2 * len(CORRUPTIONS)


def test_only_test_images_are_corrupted():
    x, y = images().array, np.array([0, 1, 1])
    task = corrupted(ArrayTask("mine", x, y, x, y), "blur", 2)
    assert task.name == "mine + blur 2"
    np.testing.assert_array_equal(np.asarray(task.train.images.read(1)), x[1])
    assert not np.array_equal(np.asarray(task.test.images.read(1)), x[1])


@pytest.mark.parametrize(
    ("kind", "severity", "says"), [("blurr", 3, "Did you mean blur"), ("blur", 0, "1 to 5, got 0")]
)
def test_what_does_not_exist_gives_one_line(kind, severity, says):
    with pytest.raises(UserError, match=says):
        Corrupted(images(), kind, severity)
