"""What a call gives: any images, paths and numpy's numbers become a config that YAML keeps; other types are one line."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_archives import shard
from small_runs import SMALL, small_teacher

import ssl_kd
from ssl_kd.data.open import open_images
from ssl_kd.distillation.arguments import merge
from ssl_kd.distillation.setup import prepare
from ssl_kd.errors import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


class Pictures(torch.utils.data.Dataset):
    def __len__(self):
        return len(PIXELS)

    def __getitem__(self, i):
        return Image.fromarray(PIXELS[i]), 3


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path_factory.mktemp("cache")))


def two_shards(folder):
    return [shard(folder / f"{i}.tar", range(i * 6, i * 6 + 6)) for i in range(2)]


def merged(**given):
    named = {name: given.pop(name, None) for name in ("teacher", "student", "images")}
    return merge(None, **named, settings=given)[0]


@pytest.mark.parametrize("kind", ["data set", "array", "list of shards", "path"])
def test_images_are_whatever_open_images_takes(kind, tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    given = {
        "data set": Pictures(),
        "array": PIXELS,
        "list of shards": two_shards(tmp_path),
        "path": tmp_path / "a.npy",
    }[kind]
    settings = SMALL | {"out": tmp_path / "run"}
    config = merged(teacher=small_teacher(), images=given, **settings)
    parts = prepare(config, small_teacher(), None, given)
    assert parts.settings["images_digest"] == open_images(given).digest
    assert len(parts.loader.images) == len(PIXELS)
    assert yaml.safe_load(yaml.safe_dump(parts.settings)) == parts.settings
    assert not (tmp_path / "run").exists()


def test_a_list_of_shards_is_recorded_as_the_command_line_spells_it(tmp_path):
    shards = two_shards(tmp_path)
    spelled = merged(images=shards).images
    assert open_images(spelled).digest == open_images(shards).digest


def test_paths_and_numbers_of_numpy_become_what_yaml_keeps():
    config = merged(
        student_weights=Path("s.safetensors"),
        targets=Path("t"),
        lr=np.float32(0.5),
        weight_decay=np.float64(0.25),
        epochs=np.int64(3),
        compile=np.bool_(True),
        clip=torch.tensor(2.0),
        student_args={"channels": (8, np.int64(16)), "name": np.str_("x")},
        objective=({"term": "alignment"},),
        teachers={"a": Path("a.pth"), "b": {"file": Path("b.pth"), "weight": np.float32(2)}},
    )
    assert yaml.safe_load(yaml.safe_dump(asdict(config))) == asdict(config)
    assert (config.student_weights, config.targets, config.lr) == ("s.safetensors", "t", 0.5)
    assert config.student_args == {"channels": [8, 16], "name": "x"}
    assert config.teachers == {"a": "a.pth", "b": {"file": "b.pth", "weight": 2.0}}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"epochs": "2"}, r"^epochs: expected a whole number or auto, got '2'$"),
        ({"epochs": 1.5}, "epochs: expected a whole number"),
        ({"epochs": True}, "epochs: expected a whole number"),
        ({"batch_size": None}, "batch_size: expected a whole number"),
        ({"lr": "fast"}, "lr: expected a number"),
        ({"out": None}, "out: expected text, got None"),
        ({"quiet": 1}, "quiet: expected true or false"),
        ({"student_args": [1]}, "student_args: expected a mapping"),
        ({"student_args": {"act": torch.nn.ReLU}}, "student_args: expected text, numbers.* got type"),
        ({"objective": [1]}, "objective: expected a preset's name or a list of terms"),
        ({"lr": np.ones(2)}, "lr: expected a number"),
        ({"teacher": 3}, "teacher: expected a file, a name, a mapping, an Encoder or a module, got int"),
        ({"student": 3}, "student: expected an architecture's name, an Encoder or a module, got int"),
    ],
)
def test_a_value_of_a_wrong_type_is_one_line(given, words):
    with pytest.raises(UserError, match=words) as caught:
        merged(**given)
    assert "\n" not in str(caught.value)


def test_images_that_cannot_be_opened_are_one_line_and_leave_no_folder(tmp_path):
    for wrong in (iter([]), 3, np.zeros((4, 3, 8, 8), np.uint8), [object()]):
        with pytest.raises(UserError) as caught:
            ssl_kd.distill(small_teacher(), images=wrong, **SMALL, out=tmp_path / "run")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
