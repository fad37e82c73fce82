"""Extraction gives what the network gives, whatever the batch; banks survive the disk and refuse what is not theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from ssl_kd.data.open import open_images
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.errors import NonFinite, UserError
from ssl_kd.eval.banks import FeatureBank, load_bank, match
from ssl_kd.eval.extraction.extract import bank_key, extract
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.preprocessing import Preprocessing


class Small(nn.Module):
    """A network with batch norm and dropout, so that training mode would show."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(6, 6, 2)
        )

    def forward(self, x):
        return self.body(x).mean((2, 3)) - 0.1


def encoder(seed=0, size=16):
    torch.manual_seed(seed)
    pre = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), size, size, size)
    return Encoder.from_module(Small(), 6, pre)


def pixels(n=11, side=20, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), np.uint8)


def test_features_are_the_networks_own_in_order():
    network, images = encoder(), ArrayImages(pixels())
    bank = extract(network, images, np.arange(11) + 7, batch_size=4, quiet=True)
    stack = torch.stack([network.preprocessing(images.read(i)) for i in range(11)])
    with torch.no_grad():
        expected = network.eval()(stack.float() / 255).embedding
    torch.testing.assert_close(torch.from_numpy(bank.features), expected, rtol=1e-5, atol=1e-6)
    assert bank.features.dtype == np.float32
    np.testing.assert_array_equal(bank.labels, np.arange(11) + 7)
    assert list(bank.ids) == [str(i) for i in range(11)]


@pytest.mark.parametrize(
    "settings", [{"batch_size": 1}, {"batch_size": 100}, {"threads": 0}, {"threads": 3, "batch_size": 2}]
)
def test_batch_size_and_threads_do_not_matter(settings):
    network, images = encoder(), ArrayImages(pixels())
    expected = extract(network, images, batch_size=5, quiet=True)
    got = extract(network, images, **{"batch_size": 5, "quiet": True, **settings})
    np.testing.assert_allclose(got.features, expected.features, rtol=1e-5, atol=1e-6)
    assert got.key == expected.key


def test_the_encoder_is_as_before_afterwards():
    network = encoder()
    network.train()
    network.backbone.body[1].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    digest = network.digest
    extract(network, ArrayImages(pixels()), quiet=True)
    assert network.digest == digest
    assert all(p.is_contiguous() for p in network.parameters())
    assert network.training
    assert network.backbone.body[0].training
    assert not network.backbone.body[1].training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_bf16_is_close_and_named_in_the_key():
    network, images = encoder(), ArrayImages(pixels())
    exact, mixed = extract(network, images, quiet=True), extract(network, images, precision="bf16-mixed", quiet=True)
    cosine = (exact.features * mixed.features).sum(1)
    cosine /= np.linalg.norm(exact.features, axis=1) * np.linalg.norm(mixed.features, axis=1)
    assert cosine.min() > 0.999
    assert exact.key != mixed.key
    with pytest.raises(UserError, match="32-true"):
        extract(network, images, precision="fp16", quiet=True)


def test_the_key_changes_with_weights_preprocessing_and_images():
    images = ArrayImages(pixels())
    keys = {
        bank_key(encoder(), images, "32-true"),
        bank_key(encoder(seed=1), images, "32-true"),
        bank_key(encoder(size=12), images, "32-true"),
        bank_key(encoder(), ArrayImages(pixels(seed=1)), "32-true"),
    }
    assert len(keys) == 4
    assert bank_key(encoder(), ArrayImages(pixels()), "32-true") in keys


def test_unreadable_images_are_left_out_with_their_labels(tmp_path):
    from PIL import Image

    for i, picture in enumerate(pixels(5)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"not a picture")
    bank = extract(encoder(), open_images(tmp_path, max_unreadable=0.5), np.arange(5), batch_size=2, quiet=True)
    assert bank.labels.tolist() == [0, 2, 3, 4]
    assert list(bank.ids) == ["0.png", "2.png", "3.png", "4.png"]


def test_a_network_that_answers_nan_is_named_at_once():
    network = encoder()
    with torch.no_grad():
        network.backbone.body[0].weight[0] = torch.nan
    with pytest.raises(NonFinite, match="not finite for 0;"):
        extract(network, ArrayImages(pixels()), quiet=True)


def test_labels_must_fit_the_images():
    with pytest.raises(UserError, match="3 for 11 images"):
        extract(encoder(), ArrayImages(pixels()), np.arange(3), quiet=True)


@pytest.mark.parametrize("labels", [np.array([3, 1, 2]), np.array(["c", "a", "b"]), None])
def test_a_bank_survives_the_disk(tmp_path, labels):
    bank = FeatureBank(np.eye(3, dtype=np.float32), labels, ["x/1", "y/2", "ü"], "key")
    again = load_bank(bank.save(tmp_path / "deep" / "bank"))
    np.testing.assert_array_equal(again.features, bank.features)
    np.testing.assert_array_equal(again.labels, labels)
    assert (list(again.ids), again.key) == (list(bank.ids), "key")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["bank.npz"]


def test_banks_of_several_epochs_are_several_files(tmp_path):
    bank = FeatureBank(np.eye(2, dtype=np.float32))
    paths = [bank.save(tmp_path / name) for name in ("resnet.epoch1", "resnet.epoch2", "resnet.npz")]
    assert [path.name for path in paths] == ["resnet.epoch1.npz", "resnet.epoch2.npz", "resnet.npz"]


def test_a_validation_split_survives_the_disk(tmp_path):
    held = np.array([False, True, True])
    again = load_bank(FeatureBank(np.eye(3, dtype=np.float32), np.arange(3), held=held).save(tmp_path / "b"))
    np.testing.assert_array_equal(again.held, held)


def test_words_that_came_as_objects_are_written_as_words(tmp_path):
    bank = FeatureBank(np.eye(2, dtype=np.float32), np.array(["cat", "dormouse"], object))
    assert load_bank(bank.save(tmp_path / "words")).labels.tolist() == ["cat", "dormouse"]


def test_a_bad_file_of_labels_is_blamed_itself(tmp_path):
    np.save(tmp_path / "x.npy", np.eye(4))
    np.savez(tmp_path / "y.npz", labels=np.arange(4), ids=np.arange(4))
    for name, says in (("nowhere.npy", "not a file of labels"), ("y.npz", "expected labels alone")):
        with pytest.raises(UserError, match=rf"{name}: .*{says}"):
            load_bank(tmp_path / "x.npy", tmp_path / name)


def test_foreign_files_are_read(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(4, 3)), np.array([7, 8, 7, 8])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "both.npz", features=x, labels=y)
    apart, both = load_bank(tmp_path / "x.npy", tmp_path / "y.npy"), load_bank(tmp_path / "both.npz")
    np.testing.assert_array_equal(apart.features, both.features)
    np.testing.assert_array_equal(apart.labels, both.labels)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: p / "missing.npz", "no such feature file"),
        (lambda p: (p / "text.npz", (p / "text.npz").write_text("hello"))[0], "not a feature file"),
        (lambda p: (p / "o.npy", np.save(p / "o.npy", np.array([{}]), allow_pickle=True))[0], "not a feature file"),
        (lambda p: (p / "other.npz", np.savez(p / "other.npz", x=np.eye(2)))[0], "no array named 'features', only x"),
        (lambda p: (p / "int.npy", np.save(p / "int.npy", np.eye(2, dtype=int)))[0], "expected floats"),
        (lambda p: (p / "flat.npy", np.save(p / "flat.npy", np.ones(3)))[0], "shape"),
        (lambda p: (p / "n.npz", np.savez(p / "n.npz", features=np.eye(2), labels=np.arange(3)))[0], "3 for 2 rows"),
    ],
)
def test_bad_files_give_one_clear_line(tmp_path, make, says):
    with pytest.raises(UserError, match=says) as caught:
        load_bank(make(tmp_path))
    assert "\n" not in str(caught.value)


def test_rows_are_chosen_with_everything_that_belongs_to_them():
    bank = FeatureBank(np.eye(4, dtype=np.float32), np.arange(4), list("abcd"), "k")
    part = bank.rows(np.array([2, 0]))
    assert (part.labels.tolist(), list(part.ids)) == ([2, 0], ["c", "a"])
    assert part.key not in (bank.key, bank.rows(np.array([0, 2])).key)


def test_lists_and_tensors_become_arrays_and_memory_maps_stay(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    y = np.array([1, 0, 1, 0])
    for bank in (
        FeatureBank(torch.from_numpy(x), torch.from_numpy(y)),
        FeatureBank(torch.from_numpy(x).requires_grad_(), y.tolist()),
        FeatureBank(x.astype(np.float64).tolist(), y.astype(object)),
    ):
        np.testing.assert_array_equal(bank.features, x)
        np.testing.assert_array_equal(bank.labels, y)
    assert FeatureBank(torch.ones(2, 2, dtype=torch.bfloat16)).features.dtype == np.float32
    np.save(tmp_path / "x.npy", x)
    assert isinstance(load_bank(tmp_path / "x.npy").features, np.memmap)


def test_held_may_be_zeros_and_ones():
    held = FeatureBank(np.eye(4), held=[0, 1, 1, 0]).held
    assert held.dtype == bool
    assert held.tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"features": [[1, "a"]]}, "features: expected floats"),
        ({"features": [[1.0], [1.0, 2.0]]}, "features: expected an array"),
        ({"features": np.zeros((3, 0))}, "shape"),
        ({"labels": np.array(3)}, "labels: expected one"),
        ({"labels": [1, "a", 2]}, "some are strings"),
        ({"labels": np.array([1, "a", 2], object)}, "all of one kind"),
        ({"labels": [1, None, 2]}, "all of one kind"),
        ({"labels": [0.0, np.nan, 1.0]}, "not finite"),
        ({"held": [1, 2, 0]}, "one boolean per row"),
        ({"held": np.array(True)}, "one boolean per row"),
        ({"held": [True, False]}, "2 for 3 rows"),
        ({"held": [False] * 3}, "no row is held out"),
        ({"held": [True] * 3}, "every row is held out"),
    ],
)
def test_what_cannot_be_a_bank_is_one_line(parts, says):
    with pytest.raises(UserError, match=says) as caught:
        FeatureBank(**{"features": np.eye(3), **parts})
    assert "\n" not in str(caught.value)


def test_chosen_rows_keep_their_validation_split_unless_a_side_is_empty():
    bank = FeatureBank(np.eye(4), np.arange(4), held=np.array([True, False, True, False]))
    assert bank.rows(np.array([3, 2])).held.tolist() == [False, True]
    assert bank.rows(np.array([0, 2])).held is None


def test_names_of_classes_are_compared_as_text():
    """One class in two Unicode forms, as macOS and Linux write it, or as bytes and text, is one class."""
    x = np.eye(4, dtype=np.float32)
    composed, apart = "caf\u00e9", "cafe\u0301"
    for mine, theirs in (
        ([composed, "tea"] * 2, [apart, "tea"] * 2),
        (np.array(["a", "b"] * 2), np.array([b"a", b"b"] * 2)),
        (np.array([composed, "tea"] * 2), np.array([apart.encode(), b"tea"] * 2)),
    ):
        found = match(FeatureBank(x, mine), FeatureBank(x, theirs))
        assert found.y.tolist() == found.y_test.tolist()
        assert len(found.classes) == 2
    with pytest.raises(UserError, match="bytes that are no UTF-8; give names as text"):
        FeatureBank(x, np.array([b"\xff", b"a"] * 2))


def test_one_very_long_class_name_costs_no_room_for_all():
    long = "x" * 300_000
    for labels in ([long, "a"] * 2000, np.array([long, "a"] * 2000, object)):
        bank = FeatureBank(np.zeros((4000, 1), np.float32), labels)
        assert bank.labels.nbytes < 1e7
        assert len(set(bank.labels.tolist())) == 2
    other = FeatureBank(np.zeros((2, 1), np.float32), [long + "y", long])
    assert other.labels[0] != other.labels[1]
    assert other.labels[1] == bank.labels[0]


def test_a_bank_is_shown_in_one_line():
    text = repr(FeatureBank(np.zeros((1000, 384), np.float32), np.arange(1000) % 7, (), "k"))
    assert text == "FeatureBank(1,000 x 384 float32, labels int64 (1000,), no ids, key='k')"
