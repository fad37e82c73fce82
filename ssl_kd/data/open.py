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

import hashlib
import os
import re
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from ssl_kd.data.samplers import WINDOW, ByShard, Order, Shuffled
from ssl_kd.data.sources.decode import MAX_BYTES, UnreadableError, check_pixels, decode, to_rgb
from ssl_kd.data.sources.listing import (
    NAMED_IN_ERRORS,
    Names,
    PackedNames,
    files_identity,
    no_images,
    picture_paths,
    size_of,
    some_files,
)
from ssl_kd.errors import ImagesError, nearest, shown_name

SAMPLED = 64  # pictures of a data set that its digest looks at
HASHED_ROWS = 1 << 16  # pictures of an array that its digest looks at
Job = TypeVar("Job")
Result = TypeVar("Result")


class Images(ABC):
    """Numbered RGB pictures: `len`, `ids`, `read(i)`, `digest`, and `unreadable` (id -> reason) as it is found out.

    Reading is safe from several threads. Subclasses say how picture i is loaded and what identifies the whole.
    """

    def __init__(self, name: str, ids: Sequence[str], max_unreadable: float = 0.01):
        if not 0 <= max_unreadable <= 1:
            raise ImagesError(f"max_unreadable: expected a share from 0 to 1, got {max_unreadable}")
        self.name, self.ids, self.max_unreadable = name, ids, max_unreadable
        self.unreadable: dict[str, str] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, {len(self):,} images)"

    def read(self, i: int, shorter: int | None = None) -> Image.Image | None:
        """Return picture i as RGB, or None when it is unreadable; its id and the reason are then in `unreadable`.

        shorter: see decode. Raises ImagesError when more pictures are unreadable than `allowed`.
        """
        if self.unreadable and self.ids[i] in self.unreadable:
            return None
        try:
            return self._load(i, shorter)
        except UnreadableError as reason:
            self._remember(self.ids[i], str(reason))
            return None

    def order(self, seed: int, epoch: int) -> Order:
        """The shuffle of an epoch, a function of (seed, epoch): of all pictures, or run by run where there are runs."""
        runs = self.runs()
        if runs is None:
            return Shuffled(len(self), seed, epoch)
        order = ByShard(runs, WINDOW, seed, epoch)
        self.coming(order.shards)
        return order

    def runs(self) -> np.ndarray | None:
        """Sizes of the runs of pictures that should be read together (shards), or None where any may follow any."""
        return None

    def coming(self, runs: np.ndarray) -> None:  # noqa: B027 - only what is fetched has a use for it
        """Hear in which order the runs will be read, so that they can be fetched ahead."""

    @property
    def allowed(self) -> int:
        """How many unreadable pictures are borne: the share, but at least one (unless the share is 0) and never all."""
        share = int(self.max_unreadable * len(self))
        return min(max(share, 1 if self.max_unreadable else 0), len(self) - 1)

    @cached_property
    def digest(self) -> str:
        """Hexadecimal name of what is in here, equal for equal content wherever it lies."""
        digest = hashlib.sha256()
        for part in self._identity():
            digest.update(part)
        return digest.hexdigest()

    def recall(self, unreadable: Mapping[str, str]) -> None:
        """Take up what an earlier process found out, so that a run that goes on skips and names the same pictures."""
        with self._lock:
            self.unreadable.update(unreadable)

    @abstractmethod
    def _load(self, i: int, shorter: int | None) -> Image.Image:
        """Return picture i as RGB or raise UnreadableError."""

    @abstractmethod
    def _identity(self) -> Iterator[bytes]:
        """Yield the bytes that the digest is made of."""

    def _remember(self, name: str, reason: str) -> None:
        with self._lock:
            self.unreadable[name] = reason
            bad = list(self.unreadable.items())
        if len(bad) > self.allowed:
            shown = "; ".join(f"{shown_name(name)} ({why})" for name, why in bad[:NAMED_IN_ERRORS])
            raise ImagesError(
                f"{self.name}: {len(bad)} of {len(self)} images are unreadable, {self.allowed} would be borne: {shown}"
                f"{'; ...' if len(bad) > NAMED_IN_ERRORS else ''}. Mend or remove them, or raise max_unreadable"
            )


class Numbers(Names):
    """The ids "0", "1", ... of pictures that have no names."""

    def __init__(self, count: int):
        self._count = count

    def __len__(self) -> int:
        return self._count

    def name(self, i: int) -> str:
        """See Names."""
        return str(i)


class FolderImages(Images):
    """The picture files of a folder and of the folders below it, in the order of their paths.

    Hidden files and folders, and files without a picture's extension, are passed over. Links to folders are followed
    unless they lead back to a folder above.
    """

    def __init__(self, folder: str | Path, max_unreadable: float = 0.01):
        self.folder = os.fspath(folder)
        ids = PackedNames(picture_paths(self.folder))
        if not len(ids):
            raise ImagesError(no_images(self.folder, some_files(self.folder)))
        super().__init__(self.folder, ids, max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        try:
            with open(f"{self.folder}/{self.ids[i]}", "rb", buffering=0) as file:
                if os.fstat(file.fileno()).st_size > MAX_BYTES:
                    raise UnreadableError(f"larger than {MAX_BYTES >> 20} MiB")
                data = file.read()
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from None
        return decode(data, shorter)

    def _identity(self) -> Iterator[bytes]:
        sizes = np.fromiter((size_of(f"{self.folder}/{name}") for name in self.ids), np.int64, len(self))
        yield from files_identity(self.ids, sizes)


class ArrayImages(Images):
    """Pictures in a uint8 array (N, H, W, 3), also memory-mapped. The digest is of the pixels."""

    def __init__(self, array: np.ndarray, max_unreadable: float = 0.01, name: str = "array"):
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[3] != 3:
            raise ImagesError(f"{name}: expected uint8 of shape (N, H, W, 3), got {array.dtype} of shape {array.shape}")
        if not array.size:
            raise ImagesError(f"{name}: no images in an array of shape {array.shape}")
        self.array = array
        super().__init__(name, Numbers(len(array)), max_unreadable)

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        return Image.fromarray(np.ascontiguousarray(self.array[i]))

    def _identity(self) -> Iterator[bytes]:
        yield repr(self.array.shape).encode()
        for row in self.array[:: -(-len(self.array) // HASHED_ROWS)]:
            yield np.ascontiguousarray(row).tobytes()


class DatasetImages(Images):
    """Pictures of a map-style data set: items are PIL pictures or tuples with one first; the rest is dropped.

    Its `__getitem__` is called from several threads. The digest is of the pixels of some evenly spaced items.
    """

    def __init__(self, dataset: Any, max_unreadable: float = 0.01, name: str = ""):
        self.dataset = dataset
        super().__init__(name or type(dataset).__name__, Numbers(len(dataset)), max_unreadable)
        if not len(self):
            raise ImagesError(f"{self.name}: the data set is empty")
        self.read(0)  # a wrong kind of item is said now, not after an hour

    def _load(self, i: int, shorter: int | None) -> Image.Image:
        try:
            item = self.dataset[i]
        except (OSError, SyntaxError) as error:  # what Pillow raises for bad files; other errors are the data set's own
            raise UnreadableError(" ".join(str(error).split())) from None
        picture = item[0] if isinstance(item, tuple | list) and item else item
        if not isinstance(picture, Image.Image):
            raise ImagesError(
                f"{self.name}: expected items that are PIL images or tuples with one first, but item {i} holds "
                f"{type(picture).__name__}; leave out the data set's own transform, or wrap it"
            )
        check_pixels(picture)
        try:
            return to_rgb(picture)
        except (OSError, SyntaxError) as error:  # Pillow decodes late
            raise UnreadableError(" ".join(str(error).split())) from None

    def _identity(self) -> Iterator[bytes]:
        yield str(len(self)).encode()
        for i in np.linspace(0, len(self) - 1, min(SAMPLED, len(self)), dtype=int):
            picture = self.read(int(i))
            yield b"unreadable" if picture is None else repr(picture.size).encode() + picture.tobytes()


def open_images(source: Any, max_unreadable: float = 0.01) -> Images:
    """Return the pictures of `source`, which must hold at least one.

    source: a folder; tar shards by pattern, URL, folder or list (ssl_kd.data.sources.webdataset); a zip archive, with `/folder/in/it` or
    `:folder/in/it` behind it to take a part; a .npy file or an array, uint8 (N, H, W, 3);
    `torchvision/NAME:root[:split][:download]`; a map-style data set; or Images already.
    max_unreadable: share of pictures that may turn out unreadable before reading raises.
    Raises ImagesError, in one line, for everything else.
    """
    if isinstance(source, Images):
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


def prefetch(read: Callable[[Job], Result], jobs: Iterable[Job], threads: int = 2, depth: int = 4) -> Iterator[Result]:
    """Yield `read(job)` for every job, in order, while `threads` threads work on the next ones.

    At most `depth` results (or `threads`, if more) are finished or under way ahead of the consumer. An exception of
    `read` is raised where its result would have come. When the consumer stops early, waiting jobs are dropped and the
    threads have ended by the time the iterator is closed. threads=0 reads in the caller's own thread.
    """
    if threads <= 0:
        yield from map(read, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        for job in jobs:
            waiting.append(pool.submit(read, job))
            if len(waiting) > max(depth, threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _open_path(path: str, max_unreadable: float) -> Images:
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


def _open_folder(folder: str, max_unreadable: float) -> Images:
    from ssl_kd.data.sources import webdataset

    tars = webdataset.tars_in(folder)
    if not tars:
        return FolderImages(folder, max_unreadable)
    if picture := next(picture_paths(folder), ""):
        raise ImagesError(
            f"{folder}: holds pictures ({picture}) and shards ({tars[0]}); keep them apart, or name the shards"
        )
    return webdataset.ShardImages(tars, max_unreadable, folder)


def _open_list(paths: list[str], max_unreadable: float) -> Images:
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


def _open_torchvision(spec: str, max_unreadable: float) -> Images:
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
