"""Views: pure functions of (image, index, view, seed), and a loader that covers every image once."""

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_kd.data.augment import CENTRE, SCHEMES, STRONG, WEAK, Recipe, crop_box, cut, finish, scheme
from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.errors import ImagesError, UserError
from ssl_kd.rng import uniform


def picture(width=40, height=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def some_images(n=10, side=20):
    return ArrayImages(np.random.default_rng(0).integers(0, 256, (n, side, side, 3), dtype=np.uint8))


def batch(n=4, side=16):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def test_uniform_numbers_are_uniform_and_unrelated():
    a, b = uniform(0, np.arange(20000), 0, 0), uniform(0, np.arange(20000), 0, 1)
    assert 0 <= a.min()
    assert a.max() < 1
    assert abs(a.mean() - 0.5) < 0.01
    assert abs(a.var() - 1 / 12) < 0.002
    for other in (b, uniform(1, np.arange(20000), 0, 0), uniform(0, np.arange(20000), 1, 0)):
        assert abs(np.corrcoef(a, other)[0, 1]) < 0.03


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_replayable_and_independent_of_its_batch(name):
    index = np.array([5, 9, 2, 7])
    for v, recipe in enumerate(scheme(name)):
        whole = finish(batch(), recipe, 3, index, 10 + v, 5)
        again = finish(batch(), recipe, 3, index, 10 + v, 5)
        assert torch.equal(whole, again)
        alone = finish(batch()[2:3], recipe, 3, index[2:3], 10 + v, 5)
        assert torch.allclose(whole[2:3], alone, atol=1e-5)
        assert whole.dtype == torch.float32
        assert 0 <= whole.min()
        assert whole.max() <= 1
        assert np.array_equal(cut(picture(), recipe, 16, 3, 5, v), cut(picture(), recipe, 16, 3, 5, v))


def test_another_seed_view_or_index_gives_another_crop():
    base = crop_box(100, 80, WEAK, 0, 0, 0)
    assert all(crop_box(100, 80, WEAK, *other) != base for other in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def test_crops_stay_inside_and_keep_to_their_area_and_ratio():
    recipe = Recipe(scale=(0.2, 0.5))
    areas, ratios = [], []
    for i in range(500):
        left, top, right, bottom = crop_box(300, 200, recipe, 0, i, 0)
        assert left >= 0
        assert top >= 0
        assert right <= 300 + 1e-9
        assert bottom <= 200 + 1e-9
        areas.append((right - left) * (bottom - top) / 60000)
        ratios.append((right - left) / (bottom - top))
    assert 0.2 - 1e-9 <= min(areas)
    assert max(areas) <= 0.5 + 1e-9
    assert np.mean(areas) == pytest.approx(0.35, abs=0.02)
    assert 0.74 < min(ratios)
    assert max(ratios) < 1.35


def test_centre_view_is_the_resized_centre_square():
    image = picture(40, 30)
    want = np.asarray(image.crop((5, 0, 35, 30)).resize((30, 30), Image.Resampling.BILINEAR))
    assert np.array_equal(cut(image, CENTRE, 30, 0, 0, 0), want)
    pixels = batch()
    assert torch.equal(finish(pixels, CENTRE, 0, np.arange(4), 0, 0), pixels.float() / 255)


def test_half_of_the_views_are_flipped_and_nothing_else_happens_to_a_weak_view():
    index = np.arange(400)
    pixels = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8)
    out = finish(pixels, WEAK, 0, index, 0, 0)
    plain = pixels.float() / 255
    same = (out == plain).flatten(1).all(1)
    mirrored = (out == plain.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 150 < int(mirrored.sum()) < 250


def test_four_rotations_turn_one_flipped_image():
    recipes = tuple(Recipe(scale=None, quarter_turns=q, shared_flip=True) for q in range(4))
    image = picture(24, 24)
    views = [
        finish(torch.from_numpy(cut(image, r, 24, 0, 0, v).copy()).permute(2, 0, 1)[None], r, 0, np.array([0]), v, 0)
        for v, r in enumerate(recipes)
    ]
    upright = views[0]
    flips = {
        bool(torch.equal(upright, torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None].float() / 255))
    }
    assert len(flips) == 1
    # A flip after the turn equals the opposite turn after the flip, so each view is a rotation of the first, up or down.
    for q in (1, 2, 3):
        turned = [torch.rot90(upright, k, (2, 3)) for k in (q, -q)]
        assert any(torch.allclose(views[q], t, atol=1 / 255) for t in turned)


def test_greyscale_is_grey_and_jitter_moves_colours():
    pixels, index = batch(64), np.arange(64)
    grey = finish(pixels, Recipe(flip=0, grey=1.0), 0, index, 0, 0)
    assert (grey - grey[:, :1]).abs().max() < 1e-5
    luma = (pixels.float() / 255 * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    assert (grey[:, 0] - luma).abs().max() < 1e-5
    jittered = finish(pixels, Recipe(flip=0, jitter=1.0), 0, index, 0, 0)
    assert (jittered - pixels.float() / 255).abs().mean() > 0.02


def test_contrast_and_brightness_follow_their_definition():
    pixels, index = batch(8), np.arange(8)
    x = pixels.float() / 255
    recipe = Recipe(flip=0, jitter=1.0, brightness=0.3, contrast=0.3, saturation=0, hue=0)
    got = finish(pixels, recipe, 4, index, 2, 0)
    bright = torch.from_numpy(1 + (2 * uniform(4, index, 2, 6) - 1) * 0.3).float()[:, None, None, None]
    contrast = torch.from_numpy(1 + (2 * uniform(4, index, 2, 7) - 1) * 0.3).float()[:, None, None, None]
    brightened = x * bright
    mean = (brightened * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1).mean((1, 2))[:, None, None, None]
    assert torch.allclose(got, (mean + contrast * (brightened - mean)).clamp(0, 1), atol=1e-5)


def test_hue_keeps_grey_grey():
    grey = torch.full((4, 3, 8, 8), 120, dtype=torch.uint8)
    out = finish(
        grey, Recipe(flip=0, jitter=1.0, brightness=0, contrast=0, saturation=0, hue=0.5), 0, np.arange(4), 0, 0
    )
    assert torch.allclose(out, grey.float() / 255, atol=1e-5)


def test_blur_keeps_the_mean_and_smooths():
    pixels = batch(4, 48)
    out = finish(pixels, Recipe(flip=0, blur=1.0), 0, np.arange(4), 0, 0)
    x = pixels.float() / 255
    assert (out.mean((2, 3)) - x.mean((2, 3))).abs().max() < 0.02
    assert (out.diff(dim=-1).abs().mean((1, 2, 3)) <= x.diff(dim=-1).abs().mean((1, 2, 3)) + 1e-6).all()
    assert out.diff(dim=-1).abs().mean() < x.diff(dim=-1).abs().mean()


def test_one_image_is_refused():
    with pytest.raises(ImagesError, match="at least 2 images"):
        ViewLoader(some_images(1), (WEAK,), size=8, batch_size=8).batches_per_epoch()


def test_loader_starts_in_the_middle_of_an_epoch_where_it_stopped():
    loader = ViewLoader(some_images(), SCHEMES["multi"], size=8, batch_size=3, seed=5)
    whole, rest = list(loader.epoch(2)), list(loader.epoch(2, start=2))
    assert len(whole) == loader.batches_per_epoch() == 4
    assert [v.index.tolist() for v in rest] == [v.index.tolist() for v in whole[2:]]
    for a, b in zip(whole[2:], rest, strict=True):
        assert all(torch.equal(p, q) for p, q in zip(a.pixels, b.pixels, strict=True))
        done = loader.finish_all(a)
        assert [tuple(p.shape) for p in done.pixels] == [(len(a), 3, 8, 8)] * 2


def test_epochs_show_other_views_of_the_same_image():
    loader = ViewLoader(some_images(4), (STRONG,), size=8, batch_size=4)
    first, second = (next(loader.epoch(e)) for e in (0, 1))
    row = {int(i): k for k, i in enumerate(second.index)}
    moved = second.pixels[0][[row[int(i)] for i in first.index]]
    assert not torch.equal(first.pixels[0], moved)


def test_a_misspelt_scheme_names_the_near_one():
    with pytest.raises(UserError, match="Did you mean multi"):
        scheme("mutli")
