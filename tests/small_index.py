"""A small encoder, a folder of small pictures, and an index of them."""

import numpy as np
import torch
from PIL import Image

from ssl_kd.checkpoints.saving import save_student
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing

SIZE = Preprocessing(size=32, resize=32, crop=32)


def picture(seed):
    """Large patches of colour, which a network with random weights can tell apart."""
    low = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), np.uint8)
    return Image.fromarray(low.repeat(12, 0).repeat(12, 1))


def photos(folder, seeds):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(folder / f"{seed}.png")
    return folder


def weights(path, seed=0):
    torch.manual_seed(seed)
    return save_student(build("test_resnet", preprocessing=SIZE), path)


def laboratory(home, count, more):
    """A folder with two encoders, `count` photos, and `more` further ones beside them."""
    weights(home / "s.safetensors")
    weights(home / "other.safetensors", seed=1)
    photos(home / "photos", range(count))
    photos(home / "more", range(count, count + more))
    return home
