"""Errors that a person can mend: one line that says what was expected, what came and what to do.

The command line prints such an error without a traceback and exits with code 2. Anything else that
escapes is our own mistake and keeps its traceback. This file imports nothing of ours, so every room may use it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


MOST_COMPARED = 1000  # names of a folder that a mistyped one is compared with


class UserError(ValueError):
    """Bad input from outside: a file, a folder, a config value. The message is one complete line."""


class CheckpointError(UserError):
    """A weight file that cannot be used: missing, damaged, unsafe, unknown or incomplete."""


class UnknownCheckpoint(CheckpointError):
    """No format, or more than one, claims the file."""


class UnsafeCheckpoint(CheckpointError):
    """The file asks for code to be run while it is read."""


class BrokenCheckpoint(CheckpointError):
    """The file is damaged, or does not hold all of the network that it claims to hold."""


class ImagesError(UserError):
    """A folder, archive or data set that holds no usable images, or too many unreadable ones."""


class NonFinite(UserError):
    """A loss, a gradient or a feature stopped being a number."""


class Collapsed(UserError):
    """The student gives nearly the same answer for every image."""


def one_of(what: str, name: str, known: "Iterable[str]") -> str:
    """Return `name` if it is among the known ones (a table's keys, say); UserError with all of them and the near ones."""
    names = list(known)
    if name not in names:
        raise UserError(f"{what}: expected one of {', '.join(names)}; got {name!r}.{nearest(name, names)}")
    return name


def must_be(what: str, wanted: str, source: object, digest: str) -> None:
    """UserError where a config asks for a digest and the source has another; an empty one asks for nothing."""
    if wanted not in ("", digest):
        raise UserError(f"{what}: the config asks for digest {wanted}, but {source} has {digest}")


def nearest(name: object, known: "list[str] | tuple[str, ...]") -> str:
    """Return ' Did you mean a, b?' for a misspelt name, or an empty string when nothing is close."""
    import difflib

    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=3, cutoff=0.6)  # YAML has keys of any type
    return f" Did you mean {' or '.join(close)}?" if close else ""


def nearest_files(path: str) -> str:
    """' Did you mean a?' for files and folders of nearly that name beside it, whole paths; empty where there are none."""
    import difflib
    import os
    from pathlib import Path

    folder, end = os.path.split(path.rstrip("/"))
    stems: dict[str, list[str]] = {}  # endings are left out: that of .safetensors would make any two names alike
    try:
        for one in sorted(os.listdir(folder or "."))[:MOST_COMPARED] if folder or Path(end).suffix else ():
            stems.setdefault(Path(one).stem, []).append(os.path.join(folder, one))
    except (OSError, ValueError):  # ValueError: a zero byte in it
        return ""
    near = [one for stem in difflib.get_close_matches(Path(end).stem, stems, cutoff=0.7) for one in stems[stem]][:3]
    return f" Did you mean {' or '.join(map(shown_name, near))}?" if near else ""


def shown_name(name: str) -> str:
    """A file's name as it is, or where it would break a line or cannot be written down, what `one_line` makes of it."""
    return name if name.isprintable() else one_line(name, 300)


def one_line(text: object, most: int = 80) -> str:
    """Return text from outside fit for a message: printable ASCII, at most so many characters, whatever it contains."""
    try:
        whole = str(text)
    except (ValueError, RecursionError):  # a number of thousands of digits, a list within a list without end
        whole = f"a {type(text).__name__} too long to be written down"
    plain = ascii(whole[: most + 1])[1:-1]
    return plain if len(plain) <= most else f"{plain[: most - 3]}..."
