"""Which files of a folder or an archive are pictures, in one order, and what to say when there are none.

Names are listed in the order of their whole paths, so a folder and a zip of it number their pictures alike.
"""

from __future__ import annotations

import itertools
import os
import stat
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

from ssl_kd.data.sources.decode import EXTENSIONS
from ssl_kd.errors import ImagesError, nearest

NAMED_IN_ERRORS = 3  # so many pictures or folders are named before "..."


class Names(Sequence[str]):
    """A list of names that are made when they are asked for; a kind says how many there are and what `name` i is."""

    def name(self, i: int) -> str:
        """The name with that number, 0 to len - 1."""
        raise NotImplementedError

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> list[str]: ...
    def __getitem__(self, i: int | slice) -> str | list[str]:
        if isinstance(i, slice):
            return [self.name(j) for j in range(*i.indices(len(self)))]
        return self.name(range(len(self))[i])  # negative numbers and IndexError as for a list


class PackedNames(Names):
    """Strings in one block of bytes: 8 bytes and the text for each, where a list of str takes 60 bytes more."""

    def __init__(self, names: Iterable[str]):
        block, ends = bytearray(), array("q", [0])
        for name in names:
            block += name.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self.block, self.ends = bytes(block), np.array(ends)

    @classmethod
    def of(cls, block: bytes, ends: np.ndarray) -> PackedNames:
        """Names from what was stored of others: their block and ends (int64)."""
        names = cls(())
        names.block, names.ends = block, ends
        return names

    def __len__(self) -> int:
        return len(self.ends) - 1

    def name(self, i: int) -> str:
        """See Names."""
        return self.block[self.ends[i] : self.ends[i + 1]].decode("utf-8", "surrogateescape")


def picture_paths(folder: str, prefix: str = "", above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[str]:
    """Yield the paths of the picture files below `folder`, relative to it, in the order of the whole paths.

    Hidden names are passed over; links to folders are followed unless they lead to one in `above` (device, inode).
    Only one folder's names on each level are in memory. Raises ImagesError for a folder that cannot be listed.
    """
    try:
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in above:
            return
        with os.scandir(folder) as entries:
            names = [name for entry in entries if (name := _picked(entry))]
    except OSError as error:
        raise ImagesError(f"{folder}: cannot be listed: {error.strerror or error}") from None
    for name in sorted(names):  # folders end in "/" here, which makes this the order of the whole paths
        if name.endswith("/"):
            yield from picture_paths(f"{folder}/{name[:-1]}", prefix + name, above | {(here.st_dev, here.st_ino)})
        else:
            yield prefix + name


def _picked(entry: os.DirEntry[str]) -> str:
    """Return the name of a picture file, the name and "/" of a folder, or "" for what is passed over."""
    if entry.name.startswith("."):
        return ""
    try:
        if entry.is_dir():
            return entry.name + "/"
        # A dangling link to a picture is kept: it will be reported as unreadable instead of vanishing.
        kept = _is_picture(entry.name) and (entry.is_file() or not os.path.exists(entry.path))
        return entry.name if kept else ""
    except OSError:  # a link that leads to itself
        return ""


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def is_picture_path(path: str) -> bool:
    """Whether a member of an archive is a picture and nothing on its way is hidden or the Mac's bookkeeping."""
    return _is_picture(path) and not any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def some_files(folder: str) -> list[str]:
    """Return the names of a few files below `folder`, whatever they are."""
    found = (name for _, _, names in os.walk(folder) for name in sorted(names))
    return list(itertools.islice(found, NAMED_IN_ERRORS))


def no_images(name: str, others: list[str]) -> str:
    """Return the message for a place without pictures; others: what it holds instead."""
    seen = f"it holds {', '.join(others[:NAMED_IN_ERRORS])}" if others else "it is empty"
    return f"{name}: expected image files ({' '.join(EXTENSIONS)}), but {seen}; pass the folder that holds them"


def nothing_in_zip(name: str, prefix: str, members: list[str]) -> str:
    """Return the message for an archive, or a folder in it, without pictures."""
    inside = [m for m in members if m.startswith(prefix)]
    if inside or not prefix:
        return no_images(name, inside)
    folders = sorted({m.split("/")[0] for m in members if "/" in m})
    wanted = (
        nearest(prefix.rstrip("/"), folders) or f" It holds {', '.join(folders[:NAMED_IN_ERRORS]) or 'no folders'}."
    )
    return f"{name}: no such folder in the archive.{wanted}"


def size_of(path: str) -> int:
    """Return a file's size in bytes, -1 for what is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return -1
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def files_identity(ids: Sequence[str], sizes: np.ndarray) -> Iterator[bytes]:
    """Yield names, their lengths and file sizes: a folder and a zip of it get one digest."""
    assert isinstance(ids, PackedNames)
    yield ids.block
    yield ids.ends.astype("<i8").tobytes()
    yield sizes.astype("<i8").tobytes()
