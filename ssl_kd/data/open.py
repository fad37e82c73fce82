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
from collections.abc import Callable
from typing import cast

import numpy as np

from ssl_kd.data.sources.array import ArrayImages, open_npy
from ssl_kd.data.sources.base import LOG, ImageSource
from ssl_kd.data.sources.dataset import DatasetImages, MapStyle
from ssl_kd.data.sources.decode import EXTENSIONS
from ssl_kd.data.sources.files import FileImages, lines_of
from ssl_kd.data.sources.folder import FolderImages
from ssl_kd.data.sources.listing import picture_paths
from ssl_kd.data.sources.tar_index import PACKERS
from ssl_kd.errors import ImagesError, nearest, shown_name
from ssl_kd.registry import Registry, is_object

LISTS = (".txt", ".lst")  # endings of files that hold one path on each line
_SAID: set[str] = set()  # what this process has said about files that were passed over


def open_images(source: object, max_unreadable: float = 0.01, verify: bool = False) -> ImageSource:
    """Return the pictures of `source`, which must hold at least one.

    source: a folder; one picture, a list of pictures, or a .txt file with one path on each line; tar shards by
    pattern, URL, folder or list (ssl_kd.data.sources.webdataset); Parquet files by pattern, folder or list, with
    `:column` behind them or not (ssl_kd.data.sources.parquet); a zip archive, with `/folder/in/it` or
    `:folder/in/it` behind it to take a part; a .npy file or an array, uint8 (N, H, W, 3);
    `torchvision/NAME:root[:split][:download]`, or what another row of SOURCES is called; a map-style data set, of
    pictures, tuples or rows; or Images already.
    max_unreadable: share of pictures that may turn out unreadable before reading raises.
    verify: have the content digest read every byte, one pass over all pictures (see docs/images.md).
    What looks like pictures but is passed over is said in one line (logger `ssl_kd.data`), once.
    Raises ImagesError, in one line, for everything else.
    """
    images = _opened(source, max_unreadable)
    if verify:
        images.verify = True
    line = images.passed_over_line()
    if line and line not in _SAID:
        _SAID.add(line)
        LOG.warning(line)
    return images


def open_without_limit_setting(source: object, max_unreadable: float = 0.01) -> ImageSource:
    """As `open_images`, for what has no setting max_unreadable: its errors do not advise to raise it."""
    images = open_images(source, max_unreadable)
    if images is not source:
        images.limit_is_setting = False
    return images


def _opened(source: object, max_unreadable: float) -> ImageSource:
    if isinstance(source, ImageSource):
        return source
    if isinstance(source, np.ndarray):
        return ArrayImages(source, max_unreadable)
    if isinstance(source, str | os.PathLike):
        return _open_path(normal_path(os.fspath(source)), max_unreadable)
    if isinstance(source, list | tuple) and source and all(isinstance(s, str | os.PathLike) for s in source):
        return _open_list([os.fspath(s) for s in source], max_unreadable)
    if hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        return DatasetImages(cast(MapStyle, source), max_unreadable)
    hint = "; an iterable data set has no numbers, load it as a map-style one" if hasattr(source, "__iter__") else ""
    raise ImagesError(f"expected a folder, a zip, an array or a map-style data set, got {type(source).__name__}{hint}")


def normal_path(source: str) -> str:
    """The one spelling of a source that is a path: home expanded, no `./`, `//` or final `/`. Others as they are.

    `photos`, `photos/` and `./photos` are one data set, also to a run that compares its settings with recorded ones.
    """
    path = os.path.expanduser(source)
    if not path or ".." in path.split("/") or not os.path.exists(path):  # behind a link, a/.. is not here
        return path
    return os.path.normpath(path)


def _open_path(path: str, max_unreadable: float) -> ImageSource:
    from ssl_kd.data.sources import parquet, webdataset
    from ssl_kd.data.sources.zip import ZipImages

    named = path.partition("/")[0]
    if ("/" in path or is_object(path)) and not os.path.exists(path) and named in SOURCES:
        return _open_named(path, max_unreadable)
    if os.path.isdir(path):
        return _open_folder(path, max_unreadable)
    if parquet.names_parquet(path):
        return parquet.open_parquet(path, max_unreadable)
    if webdataset.names_shards(path):
        return webdataset.open_shards(path, max_unreadable)
    if path.endswith(".npy") and os.path.isfile(path):
        return open_npy(path, max_unreadable)
    if path.lower().endswith(EXTENSIONS) and os.path.isfile(path):
        return FileImages([path], max_unreadable)
    if path.lower().endswith(LISTS) and os.path.isfile(path):
        return FileImages(lines_of(path), max_unreadable, path)
    for cut in (m.start() for m in re.finditer(r"[:/\\]|$", path)):
        if os.path.isfile(path[:cut]):
            _must_be_archive(path[:cut])
            return ZipImages(path[:cut], path[cut + 1 :].replace("\\", "/"), max_unreadable)
    parent = os.path.dirname(path.rstrip("/")) or "."
    known = list(map(shown_name, os.listdir(parent))) if os.path.isdir(parent) else []
    if is_object(named):
        raise ImagesError(f"{shown_name(path)}: no such archive, and {SOURCES.unknown(named)}")
    what = "picture" if path.lower().endswith(EXTENSIONS) else "folder or archive"
    raise ImagesError(f"{shown_name(path)}: no such {what}.{nearest(os.path.basename(path.rstrip('/')), known)}")


def _must_be_archive(path: str) -> None:
    """ImagesError for files that are no archive of pictures, and what they are."""
    what = ""
    try:
        with open(path, "rb") as file:
            start = file.read(1 << 12)
    except OSError as error:
        raise ImagesError(f"{shown_name(path)}: cannot be read: {error.strerror or error}") from None
    packer = next((name for magic, name in PACKERS.items() if name != "zip" and start.startswith(magic)), "")
    if packer:
        what = f"this is packed by {packer}; unpack it, or make it a plain .tar or a .zip"
    elif start[257:262] == b"ustar":
        what = "this is a tar; give its name the ending .tar"
    elif start and b"\0" not in start and _is_text(start):
        what = "this is a text; a list of picture files is read if its name ends in .txt"
    if what:
        raise ImagesError(f"{shown_name(path)}: expected a folder or a zip archive, but {what}")


def _is_text(start: bytes) -> bool:
    try:
        start.decode()
    except UnicodeDecodeError as error:
        return error.start > len(start) - 4  # cut within a letter
    return True


def _open_folder(folder: str, max_unreadable: float) -> ImageSource:
    from ssl_kd.data.sources import parquet, webdataset

    try:
        tars, tables = webdataset.tars_in(folder), parquet.parquet_in(folder)
    except OSError as error:
        raise ImagesError(f"{shown_name(folder)}: cannot be listed: {error.strerror or error}") from None
    if not tars and not tables:
        return FolderImages(folder, max_unreadable)
    others = next(picture_paths(folder), "") or (tars[0] if tars and tables else "")
    if others:
        raise ImagesError(
            f"{shown_name(folder)}: holds pictures ({shown_name(others)}) and shards ({shown_name((tables or tars)[0])}); "
            "keep them apart, or name the shards"
        )
    if tables:
        return parquet.ParquetImages(tables, "", max_unreadable, folder)
    return webdataset.ShardImages(tars, max_unreadable, folder)


def _open_list(paths: list[str], max_unreadable: float) -> ImageSource:
    from ssl_kd.data.sources import parquet, webdataset

    if all(map(parquet.names_parquet, paths)):
        return parquet.open_parquet(paths, max_unreadable)
    if all(path.lower().endswith(EXTENSIONS) for path in paths):
        return FileImages(paths, max_unreadable)
    if not all(map(webdataset.names_shards, paths)):
        wrong = next(p for p in paths if not webdataset.names_shards(p))
        raise ImagesError(
            f"a list of paths must name pictures, tar shards or Parquet files, all of one kind, but it holds "
            f"{shown_name(wrong)}"
        )
    return webdataset.open_shards(paths, max_unreadable)


def _open_named(spec: str, max_unreadable: float) -> ImageSource:
    """Open NAME/..., where NAME is a row of SOURCES."""
    name = spec.partition("/")[0]
    source = SOURCES[name]
    found = source(spec, max_unreadable) if callable(source) else source  # module:name may be a data set itself
    if isinstance(found, ImageSource):
        return found
    if not (hasattr(found, "__getitem__") and hasattr(found, "__len__")):
        raise ImagesError(
            f"{shown_name(spec)}: source {name} gave {type(found).__name__}, expected an ImageSource or a map-style data set"
        )
    return DatasetImages(found, max_unreadable, name=spec)


def _open_torchvision(spec: str, max_unreadable: float) -> ImageSource:
    """Open torchvision/NAME:root[:split][:download]; the split is the data set's own `split`, or train or test."""
    import inspect

    from torchvision import datasets

    from ssl_kd.runtime.network import offline

    name, _, rest = spec.removeprefix("torchvision/").partition(":")
    fields = re.split(r":(?![/\\])", rest)  # not at the colon of C:\data
    kind = getattr(datasets, name, None) if name in datasets.__all__ else None
    if kind is None:
        raise ImagesError(
            f"{shown_name(spec)}: torchvision has no data set {name!r}.{nearest(name, list(datasets.__all__))}"
        )
    download = fields[-1:] == ["download"]
    fields = fields[:-1] if download else fields
    download = download and not offline()
    if not 1 <= len(fields) <= 2 or not fields[0]:
        raise ImagesError(f"{shown_name(spec)}: expected torchvision/{name}:root[:split][:download]")
    accepted = inspect.signature(kind).parameters
    settings: dict[str, object] = {"download": True} if download and "download" in accepted else {}
    split = fields[1] if len(fields) == 2 else None
    if split is not None and "split" in accepted:
        settings["split"] = split
    elif split in ("train", "test") and "train" in accepted:
        settings["train"] = split == "train"
    elif split is not None:
        raise ImagesError(f"{shown_name(spec)}: torchvision's {name} has no split {split!r}")
    try:
        dataset = kind(os.path.expanduser(fields[0]), **settings)
        len(dataset)  # some take any first argument, FakeData a number, and stumble here
    except (RuntimeError, OSError, ValueError, TypeError, ImportError) as error:
        hint = (
            ""
            if download
            else " (nothing is downloaded unless the name ends in :download and SSL_KD_OFFLINE is not set)"
        )
        reason = shown_name(" ".join(str(error).split()))
        raise ImagesError(f"{shown_name(spec)}: {reason}{hint}") from None
    return DatasetImages(dataset, max_unreadable, name=spec)


# By what a spec starts with, `NAME/`: (spec, max_unreadable) -> an ImageSource or a map-style data set.
SOURCES: Registry[Callable[[str, float], object]] = Registry(
    "image sources",
    {
        "torchvision": _open_torchvision,
    },
    group="ssl_kd.sources",
)
