"""How a weight file is to be read, where it does not say so itself: what people give by hand, checked once.

Nothing heavy is imported here: settings and command lines use it as well.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssl_kd.errors import UserError, one_line
from ssl_kd.runtime.command_line import NUMBERS

Colours = tuple[float, float, float]
HELP = {
    "format": "read it as this format, where two would claim it",
    "branch": "read only the tensors below this place or prefix, such as state_dict/module.encoder.",
    "arch": "timm or torchvision/ architecture of a bare state dict, such as tf_efficientnet_lite0",
    "arch_args": "extra arguments of arch, as YAML, such as '{img_size: 32}'",
    "mean": "of its pixels, for red, green and blue in [0, 1]; one number for all three",
    "std": "likewise the standard deviation",
    "size": "side in pixels that the network receives; default: what the file says, or the architecture's",
}


@dataclass(frozen=True)
class Reading:
    """What is given by hand; None, or nothing, where the file is to say it."""

    feature: str | None = None
    format: str | None = None
    branch: str | None = None
    arch: str | None = None
    arch_args: Mapping[str, object] | None = None
    mean: Colours | None = None
    std: Colours | None = None
    size: int | None = None

    @property
    def by_hand(self) -> bool:
        """Whether anything but the feature is given."""
        return any((self.format, self.branch, self.arch, self.arch_args, self.mean, self.std, self.size))


def reading(
    feature: object = None,
    format: object = None,  # noqa: A002
    branch: object = None,
    arch: object = None,
    arch_args: object = None,
    mean: object = None,
    std: object = None,
    size: object = None,
) -> Reading:
    """The checked form of what people give. UserError by name for what cannot be."""
    words = {"feature": feature, "format": format, "branch": branch, "arch": arch}
    for name, value in words.items():
        if not isinstance(value, str | None):
            raise UserError(f"{name}: expected text, got {one_line(repr(value), 60)}")
    if not isinstance(arch_args, Mapping | None):
        raise UserError(f"arch_args: expected a mapping such as {{img_size: 32}}, got {one_line(repr(arch_args), 60)}")
    if arch_args and not arch:
        raise UserError("arch_args: they belong to arch, which is not given")
    if format and arch:
        raise UserError("arch: expected either a format, which knows its architectures, or an architecture; got both")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise UserError(f"size: expected a side in pixels, got {one_line(repr(size), 60)}")
    given = {name: str(value) if value else None for name, value in words.items()}
    return Reading(
        **given,
        arch_args=dict(arch_args) if arch_args else None,
        mean=colours("mean", mean),
        std=colours("std", std),
        size=size or None,
    )


def colours(name: str, given: object) -> Colours | None:
    """Three numbers of a list, of a text such as "0.5 0.5 0.5", or of one number; None for nothing."""
    if given is None or given in ("", [], ()):
        return None
    if isinstance(given, str):
        parts: Sequence[object] = _words(given)
    elif isinstance(given, Sequence):
        parts = [number for part in given for number in (_words(part) if isinstance(part, str) else [part])]
    else:
        parts = [given]
    try:
        numbers = [float(str(part)) for part in parts if not isinstance(part, bool)]
    except ValueError:
        numbers = []
    if len(numbers) != len(parts) or not numbers:
        raise UserError(f"{name}: expected one or three numbers, got {one_line(repr(given), 60)}")
    if len(numbers) not in (1, 3):
        raise UserError(
            f"{name}: expected three numbers, for red, green and blue; got {len(numbers)}: networks of other channels "
            "are not read"
        )
    first, second, third = numbers * 3 if len(numbers) == 1 else numbers
    return first, second, third


def _words(text: str) -> list[str]:
    """What stands between blanks, commas, slashes and brackets."""
    return [part for part in re.split(r"[\s,/\[\]()]+", text) if part]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a command that reads one weight file."""
    for name, text in HELP.items():
        option = f"--{name.replace('_', '-')}"
        if name in ("mean", "std"):
            parser.add_argument(option, help=text, nargs="+", metavar=NUMBERS)
        elif name == "size":
            parser.add_argument(option, help=text, type=int, metavar="N")
        else:
            parser.add_argument(option, help=text)


def from_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the options say, as `load_teacher` and `inspect` take it."""
    given = {name: getattr(options, name) for name in HELP}
    if given["arch_args"] is not None:
        import yaml

        try:
            given["arch_args"] = yaml.safe_load(given["arch_args"])
        except yaml.YAMLError as error:
            raise UserError(f"arch_args: not readable as YAML: {one_line(error, 100)}") from error
    return given


def spelled(given: Mapping[str, object]) -> list[str]:
    """The same as words for `ssl-kd distill`, as a shell takes them."""
    words = []
    for name, value in given.items():
        if value is not None:
            parts = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, Mapping) else value]
            words += [f"--teacher-{name.replace('_', '-')}", " ".join(shlex.quote(str(part)) for part in parts)]
    return words
