"""Unreadable images are counted over all processes of a run: giving the command again neither forgets nor forgives them."""

import numpy as np
import pytest
import torch
from PIL import Image
from small_runs import SMALL, same

import ssl_kd
from ssl_kd.data.sources.decode import UnreadableError
from ssl_kd.data.sources.folder import FolderImages
from ssl_kd.distillation.trainer import fill_targets
from ssl_kd.errors import ImagesError

COUNT, BAD = 70, 9
MOMENTS = {  # settings, and which command stops at the images
    "before the first state": ({"save_minutes": 100}, ssl_kd.distill),
    "after a state": ({"save_minutes": 0}, ssl_kd.distill),
    "while targets are stored": ({"replay": 1}, fill_targets),
    "with held-out images": ({"health_images": 32, "batch_size": 4}, ssl_kd.distill),
}


@pytest.fixture
def photos(tmp_path):
    """Many pictures, of which more are bad than will be borne."""
    folder = tmp_path / "photos"
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{i:02d}.png")
    for i in range(0, COUNT, COUNT // BAD):
        (folder / f"{i:02d}.png").write_bytes(b"junk")
    return folder


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(1)
    return ssl_kd.build("resnet18", channels=[8, 8, 8, 16]).eval()


def asked(moment, teacher, photos, out):
    settings, command = MOMENTS[moment]
    return command(teacher, images=str(photos), out=out, max_unreadable=0.07, **SMALL | settings)


@pytest.mark.parametrize("moment", MOMENTS)
def test_the_same_command_never_gets_past_images_that_are_too_many(moment, teacher, photos, tmp_path):
    for _ in range(BAD):
        with pytest.raises(ImagesError, match=rf"of {COUNT} images are unreadable, 4 would be borne"):
            asked(moment, teacher, photos, tmp_path / "run")
    assert (tmp_path / "run/unreadable.json").exists()


@pytest.mark.parametrize("moment", ["before the first state", "with held-out images"])
def test_images_that_could_not_be_read_once_are_tried_again(moment, teacher, photos, tmp_path, monkeypatch):
    """Locked by another program, or on a network that was down."""
    load = FolderImages._load

    def locked(self, i, shorter):
        if i % 6 == 0:
            raise UnreadableError("Permission denied")
        return load(self, i, shorter)

    random = np.random.default_rng(0)
    for i in range(COUNT):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(photos / f"{i:02d}.png")
    whole = asked(moment, teacher, photos, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(FolderImages, "_load", locked)
        with pytest.raises(ImagesError):
            asked(moment, teacher, photos, tmp_path / "run")
    again = asked(moment, teacher, photos, tmp_path / "run")
    assert same(whole.student, again.student)
    assert not (tmp_path / "run/unreadable.json").exists()
