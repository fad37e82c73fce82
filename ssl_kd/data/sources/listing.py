"""Which files of a folder or an archive are pictures, in one order, and what to say when there are none.

Names are listed in the order of their whole paths, so a folder and a zip of it number their pictures alike.
"""

from __future__ import annotations

import contextlib
import os
import stat
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import overload

import numpy as np

from ssl_kd.data.sources.decode import EXTENSIONS
from ssl_kd.errors import ImagesError, nearest, shown_name

NAMED_IN_ERRORS = 3  # so many pictures or folders are named before "..."
MOST_LINKS = 16  # links through which one folder is entered: links to links would multiply without end
MOST_ENDINGS = 100  # endings that are counted apart
LINKED = "(linked again)"  # counted like an ending: folders that were reached once too often
OTHER = "(other)"
# Pictures that are not read, as far as KNOWN of `decode` does not read them here; what else lies about is no loss.
PICTURE_LIKE = (
    *(
        ".heic",
        ".heif",
        ".hif",
        ".avif",
        ".jp2",
        ".j2k",
        ".jpx",
        ".jpf",
        ".j2c",
        ".jxl",
        ".jxr",
        ".svg",
        ".psd",
        ".tga",
    ),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".exr", ".hdr", ".dcm", ".img", ".ico"),
    *(".jps", ".mpo", ".apng", ".dib", ".icns", ".dds", ".pcx", ".xbm", ".xpm", ".eps", ".fits", ".nii"),
)


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


def picture_paths(folder: str, passed_over: Counter[str] | None = None) -> Iterator[str]:
    """Yield the paths of the picture files below `folder`, relative to it, in the order of the whole paths.

    Hidden names are passed over. Links to folders are followed unless they lead to a folder above, and into one folder
    at most MOST_LINKS times. passed_over: counts the endings of files that are no pictures. Only one folder's names on
    each level are in memory. Raises ImagesError for a folder that cannot be listed.
    """
    counted: Counter[str] = Counter() if passed_over is None else passed_over
    entered: Counter[tuple[int, int]] = Counter()  # folders, by the links that were followed into them
    here, names = _listed(folder, counted)
    levels, above = [("", iter(names), here)], {here}
    while levels:
        prefix, left, here = levels[-1]
        name = next(left, "")
        if not name:
            above.discard(here)
            levels.pop()
        elif not name.endswith("/"):  # folders end in "/" here, which makes this the order of the whole paths
            yield prefix + name
        elif _may_enter(f"{folder}/{prefix}{name[:-1]}", above, entered, counted):
            here, names = _listed(f"{folder}/{prefix}{name[:-1]}", counted)
            if here not in above:
                above.add(here)
                levels.append((prefix + name, iter(names), here))


def _listed(folder: str, counted: Counter[str]) -> tuple[tuple[int, int], list[str]]:
    """A folder's device and inode, and what is wanted of it, sorted."""
    try:
        found = os.stat(folder)
        with os.scandir(folder) as entries:
            names = sorted(name for entry in entries if (name := _picked(entry, counted)))
    except OSError as error:
        raise ImagesError(f"{shown_name(folder)}: cannot be listed: {error.strerror or error}") from None
    return (found.st_dev, found.st_ino), names


def _may_enter(
    folder: str, above: set[tuple[int, int]], entered: Counter[tuple[int, int]], counted: Counter[str]
) -> bool:
    """Whether a folder is listed: always, unless a link leads to one above it or to one that many links led to."""
    if not os.path.islink(folder):
        return True
    try:
        found = os.stat(folder)
    except OSError:
        return True  # `_listed` says why
    there = (found.st_dev, found.st_ino)
    if there in above:
        return False
    entered[there] += 1
    if entered[there] > MOST_LINKS:
        counted[LINKED] += 1
        return False
    return True


def _picked(entry: os.DirEntry[str], counted: Counter[str]) -> str:
    """Return the name of a picture file, the name and "/" of a folder, or "" for what is passed over."""
    if entry.name.startswith("."):
        return ""
    try:
        if entry.is_dir():
            return entry.name + "/"
        if not _is_picture(entry.name):
            count_ending(entry.name, counted)
            return ""
        # A dangling link to a picture is kept: it will be reported as unreadable instead of vanishing.
        return entry.name if entry.is_file() or not os.path.exists(entry.path) else ""
    except OSError:  # a link that leads to itself
        return ""


def count_ending(path: str, counted: Counter[str]) -> None:
    """Count a file that is passed over under its ending, lower case; endings beyond MOST_ENDINGS together."""
    ending = os.path.splitext(path.rpartition("/")[2])[1].lower() or OTHER
    counted[ending if ending in counted or len(counted) < MOST_ENDINGS else OTHER] += 1


def passed_over_line(counted: Mapping[str, int]) -> str:
    """Say in one line what looks like pictures but is not read, by ending; empty where there is nothing of the kind."""
    lost = {ending: count for ending, count in counted.items() if _looks_like_pictures(ending)}
    parts = [f"{lost[ending]:,} {shown_name(ending)}" for ending in sorted(lost, key=lambda e: (-lost[e], e))]
    said = []
    if parts:
        shown = ", ".join(parts[:8]) + (", ..." if len(parts) > 8 else "")
        many = "1 file was" if sum(lost.values()) == 1 else f"{sum(lost.values()):,} files were"
        said.append(f"{many} passed over because of the ending ({shown})")
    if again := counted.get(LINKED, 0):
        said.append(f"links to folders were passed over {again:,} times where {MOST_LINKS} others lead to the same one")
    return "; ".join(said)


def _looks_like_pictures(ending: str) -> bool:
    """Endings of pictures in other formats, and mangled ones of those that are read: .jpg_large, .png~, .jpeg!d."""
    return ending in PICTURE_LIKE or ending.startswith(EXTENSIONS)


def _is_picture(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def is_picture_path(path: str) -> bool:
    """Whether a member of an archive is a picture and nothing on its way is hidden or the Mac's bookkeeping."""
    return _is_picture(path) and not is_hidden_path(path)


def is_hidden_path(path: str) -> bool:
    """Whether anything on the way to a member is hidden or the Mac's bookkeeping."""
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def some_files(folder: str) -> list[str]:
    """Return the names of a few files below `folder`, whatever they are; links to folders are not followed."""
    found: list[str] = []
    waiting = [folder]
    while waiting and len(found) < NAMED_IN_ERRORS:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
                else:
                    found.append(entry.name)
    return found[:NAMED_IN_ERRORS]


def no_images(name: str, others: Sequence[str]) -> str:
    """Return the message for a place without pictures; others: what it holds instead."""
    seen = f"it holds {', '.join(map(shown_name, others[:NAMED_IN_ERRORS]))}" if others else "it is empty"
    advice = "pass the folder that holds them"
    if others and all(other.lower().endswith(".tar") for other in others):
        seen, advice = f"{seen}: a tar of tars", "unpack it once and name the tars in it"
    return f"{shown_name(name)}: expected image files ({' '.join(EXTENSIONS)}), but {seen}; {advice}"


def nothing_in_zip(name: str, prefix: str, members: list[str]) -> str:
    """Return the message for an archive, or a folder in it, without pictures."""
    inside = [m for m in members if m.startswith(prefix)]
    if inside or not prefix:
        return no_images(name, inside)
    folders = sorted({m.split("/")[0] for m in members if "/" in m})
    shown = ", ".join(map(shown_name, folders[:NAMED_IN_ERRORS])) or "no folders"
    wanted = nearest(prefix.rstrip("/"), list(map(shown_name, folders))) or f" It holds {shown}."
    return f"{shown_name(name)}: no such folder in the archive.{wanted}"


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
