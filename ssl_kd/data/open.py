"""Folders, archives, arrays and data sets -> numbered RGB pictures without labels.

`open_images(source)` is the only door. What comes out has a length, an id per picture, `read(i)` and a digest of what
is in it, and nothing else: labels that a data set carries are dropped here. Nothing is unpacked or downloaded, pictures
are decoded when they are read, and `prefetch` reads ahead in threads (decoding releases the interpreter lock).

    images = open_images("photos/")                     # nested or flat
    images = open_images("cifar10.zip/train")           # straight from the archive; also cifar10.zip:train
    images = open_images("torchvision/STL10:~/data:unlabeled")
    for batch in prefetch(lambda job: [images.read(i) for i in job], jobs): ...
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.data.sources.dataset import DatasetImages
from ssl_kd.data.sources.folder import FolderImages
from ssl_kd.data.sources.listing import (
    picture_paths,
)
from ssl_kd.errors import ImagesError, nearest


def open_images(source: Any, max_unreadable: float = 0.01) -> ImageSource:
    """Return the pictures of `source`, which must hold at least one.

    source: a folder; tar shards by pattern, URL, folder or list (ssl_kd.data.sources.webdataset); a zip archive, with `/folder/in/it` or
    `:folder/in/it` behind it to take a part; a .npy file or an array, uint8 (N, H, W, 3);
    `torchvision/NAME:root[:split][:download]`; a map-style data set; or Images already.
    max_unreadable: share of pictures that may turn out unreadable before reading raises.
    Raises ImagesError, in one line, for everything else.
    """
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, np.ndarray):
        return ArrayImages(source, max_unreadable)
    if isinstance(source, str | os.PathLike):
        return _open_path(os.path.expanduser(os.fspath(source)), max_unreadable)
    if isinstance(source, list | tuple) and source and all(isinstance(s, str | os.PathLike) for s in source):
        return _open_list([os.fspath(s) for s in source], max_unreadable)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return DatasetImages(source, max_unreadable)
    raise ImagesError(f"expected a folder, a zip, an array or a map-style data set, got {type(source).__name__}")


def _open_path(path: str, max_unreadable: float) -> ImageSource:
    from ssl_kd.data.sources import webdataset
    from ssl_kd.data.sources.zip import ZipImages

    if path.startswith("torchvision/") and not os.path.exists(path):
        return _open_torchvision(path, max_unreadable)
    if os.path.isdir(path):
        return _open_folder(path.rstrip("/") or "/", max_unreadable)
    if webdataset.names_shards(path):
        return webdataset.open_shards(path, max_unreadable)
    if path.endswith(".npy") and os.path.isfile(path):
        return ArrayImages(_load_npy(path), max_unreadable, name=path)
    for cut in (m.start() for m in re.finditer(r"[:/\\]|$", path)):
        if os.path.isfile(path[:cut]):
            return ZipImages(path[:cut], path[cut + 1 :].replace("\\", "/"), max_unreadable)
    parent = os.path.dirname(path.rstrip("/")) or "."
    known = os.listdir(parent) if os.path.isdir(parent) else []
    raise ImagesError(f"{path}: no such folder or archive.{nearest(os.path.basename(path.rstrip('/')), known)}")


def _open_folder(folder: str, max_unreadable: float) -> ImageSource:
    from ssl_kd.data.sources import webdataset

    tars = webdataset.tars_in(folder)
    if not tars:
        return FolderImages(folder, max_unreadable)
    if picture := next(picture_paths(folder), ""):
        raise ImagesError(
            f"{folder}: holds pictures ({picture}) and shards ({tars[0]}); keep them apart, or name the shards"
        )
    return webdataset.ShardImages(tars, max_unreadable, folder)


def _open_list(paths: list[str], max_unreadable: float) -> ImageSource:
    from ssl_kd.data.sources import webdataset

    if not all(map(webdataset.names_shards, paths)):
        wrong = next(p for p in paths if not webdataset.names_shards(p))
        raise ImagesError(
            f"a list of paths must name tar shards, but it holds {wrong}; for loose files pass their folder"
        )
    return webdataset.open_shards(paths, max_unreadable)


def _load_npy(path: str) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ImagesError(f"{path}: not a readable .npy array: {error}") from None


def _open_torchvision(spec: str, max_unreadable: float) -> ImageSource:
    """Open torchvision/NAME:root[:split][:download]; the split is the data set's own `split`, or train or test."""
    import inspect

    from torchvision import datasets

    from ssl_kd.runtime.download import offline

    name, _, rest = spec.removeprefix("torchvision/").partition(":")
    fields = re.split(r":(?![/\\])", rest)  # not at the colon of C:\data
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        raise ImagesError(f"{spec}: torchvision has no data set {name!r}.{nearest(name, list(datasets.__all__))}")
    download = fields[-1:] == ["download"]
    fields = fields[:-1] if download else fields
    download = download and not offline()
    if not 1 <= len(fields) <= 2 or not fields[0]:
        raise ImagesError(f"{spec}: expected torchvision/{name}:root[:split][:download]")
    accepted = inspect.signature(kind).parameters
    settings: dict[str, Any] = {"download": True} if download and "download" in accepted else {}
    split = fields[1] if len(fields) == 2 else None
    if split is not None and "split" in accepted:
        settings["split"] = split
    elif split in ("train", "test") and "train" in accepted:
        settings["train"] = split == "train"
    elif split is not None:
        raise ImagesError(f"{spec}: torchvision's {name} has no split {split!r}")
    try:
        dataset = kind(os.path.expanduser(fields[0]), **settings)
        len(dataset)  # some take any first argument, FakeData a number, and stumble here
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        hint = (
            ""
            if download
            else " (nothing is downloaded unless the name ends in :download and SSL_KD_OFFLINE is not set)"
        )
        raise ImagesError(f"{spec}: {' '.join(str(error).split())}{hint}") from None
    return DatasetImages(dataset, max_unreadable, name=spec)
