"""Tar shards of small pictures, picture i with the pixels of seed i."""

import io
import tarfile

import numpy as np
from PIL import Image


def pixels(seed):
    return np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)


def encoded(seed):
    file = io.BytesIO()
    Image.fromarray(pixels(seed)).save(file, "PNG")
    return file.getvalue()


def add(out, name, data=b"", **how):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in how.items():
        setattr(info, key, value)
    out.addfile(info, io.BytesIO(data))


def shard(path, seeds):
    """A shard as webdataset writes it: class, picture and note of each sample."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for seed in seeds:
            add(out, f"{seed:06d}.cls", b"7")
            add(out, f"{seed:06d}.png", encoded(seed))
            add(out, f"{seed:06d}.json", b"{}")
    return path
