"""Whose folder is this? A command that writes asks first, without touching anything.

`.ssl_kd.json` in a folder names what in it is ours, by kind of folder: {"run": ["config.yaml", ...], "check": ...}.
A folder without it is ours to take when nothing is in the way: for a run it must be empty, for an evaluation nothing may
bear a name that will be written. Folders of older versions are recognised by their content. A refusal changes no byte.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssl_kd.errors import UserError, one_line, shown_name
from ssl_kd.runtime.files import abandoned, atomic_text, sealed, sweep, unsealed

MARKER = ".ssl_kd.json"
LARGEST = 1 << 20  # bytes of a marker


@dataclass(frozen=True)
class Kind:
    """A kind of folder that we write.

    key: its name in the marker. setting, what: for messages, such as "out" and "a run's folder".
    names: what we write in it, in the order of removal; below it as patterns such as `targets/*.crc`.
    is_older: whether a folder without a marker was written by an older version.
    alone: whether nothing else may lie there when we begin.
    """

    key: str
    setting: str
    what: str
    names: tuple[str, ...]
    is_older: Callable[[Path], bool]
    alone: bool = True


def require_ours(folder: Path, kind: Kind) -> None:
    """UserError, and nothing touched, unless the folder is missing, ours, or free for us to take."""
    try:
        if not folder.exists() or ((listed := _marked(folder)) is not None and kind.key in listed):
            return
        in_the_way = _in_the_way(folder, kind, listed is None)
        if not in_the_way or (listed is not None and kind.is_older(folder)):
            return
    except OSError as error:
        raise UserError(
            f"{kind.setting}: {folder} cannot be looked into ({error.strerror}); choose another folder"
        ) from error
    named = ", ".join(shown_name(name) for name in in_the_way[:3]) + (", ..." if len(in_the_way) > 3 else "")
    raise UserError(
        f"{kind.setting}: {folder} is not empty and not {kind.what} (it holds {named}); choose another folder"
    )


def mark(folder: Path, kind: Kind) -> None:
    """Make the folder, sweep what killed writers of ours left there, and write down what in it is ours.

    Call it after `require_ours`, before the first file of ours.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, (MARKER, *kind.names))
    except OSError as error:
        raise UserError(
            f"{kind.setting}: cannot make the folder {folder} ({error.strerror}); choose another"
        ) from error
    listed = _marked(folder) or {}
    wanted = listed | {kind.key: sorted(kind.names)}
    if wanted != listed:
        atomic_text(folder / MARKER, sealed(wanted))


def remove_ours(folder: Path, kind: Kind) -> None:
    """Remove the files that the marker names and that we know by name; folders that are empty then, as well."""
    listed = (_marked(folder) or {}).get(kind.key, [])
    above: set[Path] = set()
    for name in kind.names:  # in their order; what only the marker says is nothing to go by
        if name not in listed:
            continue
        for path in list(folder.glob(name)):
            if any(parent.is_symlink() for parent in _between(folder, path)):
                continue  # what is behind a link is not ours
            if path.is_symlink() or path.is_file():
                path.unlink(missing_ok=True)
        if "/" in name:
            above |= {one for path in folder.glob(str(Path(name).parent)) for one in (path, *_between(folder, path))}
    for parent in sorted(above, key=lambda path: len(path.parts), reverse=True):
        with contextlib.suppress(OSError):  # not there, or something else lies in it
            parent.rmdir()


def _between(folder: Path, path: Path) -> list[Path]:
    """The folders that lead from one to a path below it."""
    return [parent for parent in path.parents if folder in parent.parents]


def _marked(folder: Path) -> dict[str, list[str]] | None:
    """What the marker says; {} where there is none, None where it is not one of ours."""
    path = folder / MARKER
    if not os.path.lexists(path):
        return {}
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    try:
        listed = unsealed(path.read_text())
    except ValueError:
        return None
    lists = {kind: names for kind, names in listed.items() if isinstance(names, list)}
    found = {kind: [name for name in names if isinstance(name, str)] for kind, names in lists.items()}
    return found if found and found == listed else None


def _in_the_way(folder: Path, kind: Kind, foreign_marker: bool) -> list[str]:
    """Names that keep the folder from being taken: other people's files, or those that bear our names."""
    if foreign_marker:
        return [f"{MARKER}, which is damaged or another's"]
    if not kind.alone:
        tops = dict.fromkeys(name.partition("/")[0] for name in kind.names)
        return [name for name in tops if os.path.lexists(folder / name) and not _is_empty_folder(folder / name)]
    killed = {part.name for part in abandoned(folder, kind.names)}
    return sorted(name for name in os.listdir(folder) if not name.startswith(".") and name not in killed)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink() and not any(path.iterdir())


def refuse_replacing(setting: str, path: Path, is_ours: Callable[[Path], bool]) -> None:
    """UserError, and nothing touched, where a file to write is there already and is not one that we wrote."""
    try:
        ours = not os.path.lexists(path) or (path.is_file() and is_ours(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{setting}: {path} cannot be read ({one_line(error)}); choose another name") from error
    if not ours:
        raise UserError(
            f"{setting}: {path} is there already and is not ours to replace; choose another name or remove it"
        )
