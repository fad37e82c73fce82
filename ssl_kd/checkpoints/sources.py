"""What a path leads to: one file, an index of shards, or a folder of transformers or timm. Opened, nothing read yet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ssl_kd.checkpoints.folders import WEIGHTS, Folder, open_folder
from ssl_kd.checkpoints.formats import Contents
from ssl_kd.checkpoints.formats.student import STUDENT, card
from ssl_kd.checkpoints.licences import stated
from ssl_kd.checkpoints.shards import INDEX, open_index, refuse_a_part
from ssl_kd.checkpoints.torch_file import open_contents
from ssl_kd.errors import CheckpointError, UserError

LONGEST_CONFIG = 1 << 20  # bytes of a config.json; published ones have a thousandth


@dataclass(frozen=True)
class Source:
    """What a path leads to: the tensors, how many bytes they have, and the folder that was named or that they belong to."""

    path: Path
    file: Contents
    bytes: int
    folder: Folder | None = None

    def licence(self) -> str:
        """As the folder says it, or for a student what its card says of its teacher."""
        return (self.folder.licence if self.folder else "") or stated_in(self.file)


def contents(path: Path) -> Contents:
    """The file as plain data. CheckpointError, starting with the path, for anything that is not a checkpoint."""
    return source(path).file


def source(path: Path, name: str = "") -> Source:
    """A file, an index of shards, or a folder with either. CheckpointError, starting with the path, for anything else.

    A file with the name that transformers or timm give, beside their config.json, is read with its folder.
    name: ORG/NAME of a folder of the hub.
    """
    try:
        if path.is_dir():
            folder = open_folder(path, name)
            opened = _one(folder.weights)
            return replace(opened, path=path, folder=folder, file=replace(opened.file, config=folder.config))
        if path.exists() and not path.is_file():
            raise CheckpointError("is a device or a pipe, not a file")
        opened = _one(path)
        if path.name in WEIGHTS and known_to(opened.file.config) and not STUDENT.matches(opened.file):
            folder = open_folder(path.parent, name, weights=path.name)
            return replace(opened, folder=folder)
        return opened
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def _one(path: Path) -> Source:
    """A file or an index."""
    if path.name.endswith(INDEX):
        file, size = open_index(path)
    else:
        refuse_a_part(path)
        file, size = open_contents(path), path.stat().st_size
    return Source(path, replace(file, config=config_beside(path)), size)


def known_to(config: Mapping[str, object]) -> bool:
    """Whether a config.json is transformers' or timm's: the weights beside it belong to its folder, whichever was named."""
    return isinstance(config.get("model_type"), str) or isinstance(config.get("architecture"), str)


def config_beside(path: Path) -> Mapping[str, object]:
    """What a config.json beside the file says, as transformers writes it; nothing where there is none that can be read."""
    beside = path.with_name("config.json")
    try:
        if not beside.is_file() or beside.stat().st_size > LONGEST_CONFIG:
            return {}
        found = json.loads(beside.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def stated_in(file: Contents) -> str:
    """What a student's card says of its teachers' licences; nothing for any other file."""
    try:
        found = card(file).get("teacher_licence", "") if STUDENT.matches(file) else ""
    except (ValueError, KeyError, AttributeError, TypeError):
        return ""
    return stated(list(found.values())) if isinstance(found, dict) else stated(found)
