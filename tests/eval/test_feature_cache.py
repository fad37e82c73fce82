"""The feature cache gives what extraction gives, resumes where it stopped, and never answers with another's rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_kd.data.open import open_images
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.errors import NonFinite, UserError
from ssl_kd.eval.extraction import feature_cache as store_module
from ssl_kd.eval.extraction.extract import extract
from ssl_kd.eval.extraction.feature_cache import FeatureStore
from ssl_kd.models.encoder import Encoder, build
from ssl_kd.models.preprocessing import Preprocessing

WHOLE = Preprocessing(size=32, resize=32, crop=32)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return build("test_vit", preprocessing=Preprocessing(size=160, resize=160, crop=160))


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 24, 24, 3), np.uint8)


@pytest.fixture
def store(tmp_path):
    return FeatureStore(tmp_path / "features")


def counted(monkeypatch):
    """Record the images that are really looked at."""
    seen = []
    plain = store_module.embed

    def embed(*args, **settings):
        for job, numbers, found in plain(*args, **settings):
            seen.extend(job)
            yield job, numbers, found

    monkeypatch.setattr(store_module, "embed", embed)
    return seen


def test_a_bank_equals_extraction_and_is_read_the_second_time(network, pixels, store, monkeypatch):
    seen = counted(monkeypatch)
    images, labels = ArrayImages(pixels), np.arange(7)
    expected = extract(network, images, labels, quiet=True)
    first = store.bank(network, images, labels, quiet=True, batch_size=3)
    second = store.bank(network, images, labels[::-1], quiet=True)
    assert seen == list(range(7))
    for bank in (first, second):
        np.testing.assert_allclose(bank.features, expected.features, rtol=1e-4, atol=1e-5)
        assert isinstance(bank.features.base, np.memmap) or isinstance(bank.features, np.memmap)
        assert list(bank.ids) == list(expected.ids)
    assert second.labels.tolist() == labels[::-1].tolist()
    assert store.rate(network, images) > 0


def test_several_features_come_from_one_pass(network, pixels, store, monkeypatch):
    seen = counted(monkeypatch)
    images = ArrayImages(pixels)
    banks = store.banks(network, images, features=("cls", "avg"), quiet=True)
    assert seen == list(range(7))
    assert not np.allclose(banks["cls"].features, banks["avg"].features)
    np.testing.assert_array_equal(
        store.banks(network, images, features=("avg",), quiet=True)["avg"].features, banks["avg"].features
    )
    assert len(seen) == 7


def test_an_interrupted_pass_goes_on_where_it_stopped(network, pixels, store, monkeypatch):
    expected = extract(network, ArrayImages(pixels), quiet=True)

    class Stops(ArrayImages):
        def prepared(self, i, preprocessing):
            if i == 5:
                raise KeyboardInterrupt
            return super().prepared(i, preprocessing)

    with pytest.raises(KeyboardInterrupt):
        store.bank(network, Stops(pixels), quiet=True, batch_size=2, threads=0)
    seen = counted(monkeypatch)
    bank = store.bank(network, ArrayImages(pixels), quiet=True, batch_size=2)
    assert seen == [4, 5, 6]
    np.testing.assert_allclose(bank.features, expected.features, rtol=1e-4, atol=1e-5)


def test_whatever_decides_the_features_decides_the_folder(network, pixels, store, monkeypatch):
    seen = counted(monkeypatch)
    torch.manual_seed(1)
    other = build("test_vit", preprocessing=network.preprocessing)
    images = ArrayImages(pixels)
    for asked in (
        lambda: store.bank(network, images, quiet=True),
        lambda: store.bank(other, images, quiet=True),
        lambda: store.bank(network, ArrayImages(pixels[::-1].copy()), quiet=True),
        lambda: store.bank(network, images, quiet=True, precision="bf16-mixed"),
        lambda: FeatureStore(store.folder, "float16").bank(network, images, quiet=True),
    ):
        before = len(seen)
        asked()
        assert len(seen) == before + 7
        asked()
        assert len(seen) == before + 7


def test_a_folder_that_cannot_be_is_said_in_one_line(network, pixels, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(UserError, match="could not be written"):
        FeatureStore(tmp_path / "taken").bank(network, ArrayImages(pixels), quiet=True)


def test_a_picture_painted_over_in_place_is_read_again(network, pixels, store, tmp_path, monkeypatch):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pixels[:3]):
        Image.fromarray(picture).save(folder / f"{i}.bmp")  # all of one size
    before = store.bank(network, open_images(folder), quiet=True)
    Image.fromarray(pixels[5]).save(folder / "1.bmp")
    after = store.bank(network, open_images(folder), quiet=True)
    assert not np.allclose(before.features[1], after.features[1])
    np.testing.assert_allclose(before.features[[0, 2]], after.features[[0, 2]], rtol=1e-4, atol=1e-5)


def test_unreadable_images_are_left_out(network, pixels, store, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, picture in enumerate(pixels[:4]):
        Image.fromarray(picture).save(folder / f"{i}.png")
    (folder / "2.png").write_bytes(b"no picture")
    for _ in range(2):
        bank = store.bank(network, open_images(folder, max_unreadable=0.5), np.arange(4), quiet=True, batch_size=2)
        assert bank.labels.tolist() == [0, 1, 3]
        assert list(bank.ids) == ["0.png", "1.png", "3.png"]


@pytest.mark.parametrize("harm", ["truncate", "forget", "nonsense"])
def test_a_damaged_cache_is_made_anew(network, pixels, store, harm):
    images = ArrayImages(pixels)
    expected = np.array(store.bank(network, images, quiet=True).features)
    (shelf,) = store.folder.iterdir()
    if harm == "truncate":
        (shelf / "features.npy").write_bytes((shelf / "features.npy").read_bytes()[:200])
    elif harm == "forget":
        (shelf / "kept.npy").unlink()
    else:
        (shelf / "state.json").write_text("{")
    np.testing.assert_allclose(store.bank(network, images, quiet=True).features, expected, rtol=1e-4, atol=1e-5)


def test_float16_says_when_it_is_too_small(network, pixels, tmp_path, monkeypatch):
    half = FeatureStore(tmp_path, "float16")
    bank = half.bank(network, ArrayImages(pixels), quiet=True)
    assert bank.features.dtype == np.float16
    plain = store_module.embed

    def loud(*args, **settings):
        for job, numbers, found in plain(*args, **settings):
            yield job, numbers, {name: rows * 1e6 for name, rows in found.items()}

    monkeypatch.setattr(store_module, "embed", loud)
    with pytest.raises(NonFinite, match="store them as float32"):
        half.bank(network, ArrayImages(pixels[:3]), quiet=True)


def test_modules_from_python_are_refused(store, pixels):
    module = Encoder.from_module(torch.nn.Flatten(), 3 * 32 * 32, WHOLE)
    with pytest.raises(UserError, match="no digest of its code"):
        store.bank(module, ArrayImages(pixels), quiet=True)


def test_the_state_is_plain_and_complete(network, pixels, store):
    store.bank(network, ArrayImages(pixels), quiet=True)
    (shelf,) = store.folder.iterdir()
    state = json.loads((shelf / "state.json").read_text())
    assert (state["images"], state["rows"], state["done"]) == (7, 7, True)
    assert store.parity(network, ArrayImages(pixels)) == state["parity"]
    assert state["parity"]["cosine"] > 0.99999


def test_another_engine_is_another_bank(network, pixels, store):
    banks = [store.bank(network, ArrayImages(pixels), quiet=True, engine=name) for name in ("eager", "folded")]
    assert len({bank.key for bank in banks}) == 2
    np.testing.assert_allclose(banks[0].features, banks[1].features, rtol=1e-4, atol=1e-5)


def test_a_disk_without_room_is_one_line_before_an_image_is_read(network, pixels, store, monkeypatch):
    """A mapped file with holes would kill the process when the disk fills up."""

    def full(*_):
        raise OSError(28, "No space left on device")

    seen = counted(monkeypatch)
    with monkeypatch.context() as during:
        during.setattr("os.posix_fallocate", full)
        with pytest.raises(UserError, match=r"features: 7 rows of .* .No space left on device.; free some space"):
            store.bank(network, ArrayImages(pixels), quiet=True)
    assert not seen
    assert len(store.bank(network, ArrayImages(pixels), quiet=True)) == 7
