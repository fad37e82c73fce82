"""What every command line shares: settings from words and YAML by jsonargparse (a dataclass's docstring is its help text),
mistakes in one line, exit codes.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from ssl_kd.errors import UserError, nearest


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str], name: str) -> int:
    """Run a command; a person's mistake becomes one line and exit code 2, a stop signal 130."""
    try:
        return run(argv)
    except UserError as error:
        print(f"{name}: {_joined(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(f"{name}: {_joined(error) or 'stopped'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _joined(error: BaseException) -> str:
    return " ".join(str(error).split())


class OneLineParser(argparse.ArgumentParser):
    """Complains in one line, through UserError, instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        raise UserError(f"{message} (see {self.prog} --help)")


def parse(settings: type, argv: Sequence[str], prog: str, examples: Sequence[str] = ()) -> Any:
    """Read a settings dataclass from `--config FILE.yaml` and `--field value`; the command line wins, wherever it stands.

    Unknown keys, unreadable files and values of a wrong type raise UserError with one line. `--help` lists every field
    with its unit and default.
    """
    from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

    parser = ArgumentParser(
        prog=prog,
        description=(settings.__doc__ or "").split("\n")[0],
        epilog="examples:  " + "   |   ".join(examples) if examples else None,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file with any of the settings below")
    parser.add_class_arguments(settings, fail_untyped=False)
    try:
        values: Namespace = parser.parse_args(_files_first(_spelled(argv, settings)))
    except (ArgumentError, TypeError, ValueError, OSError) as error:
        raise UserError(_plain(str(error), [f.name for f in fields(settings)], prog)) from error
    for f in fields(settings):
        if values[f.name] is None and f.default is not None:  # the parser lets null through for any type
            raise UserError(f"{f.name}: expected a value, got null; leave it out for its default (see {prog} --help)")
    return settings(**{f.name: values[f.name] for f in fields(settings)})


def _spelled(argv: Sequence[str], settings: type) -> list[str]:
    """Accept `--batch-size` for `--batch_size`, and a bare `--quiet` for `--quiet true`."""
    switches = {f.name for f in fields(settings) if f.type in (bool, "bool")}
    out: list[str] = []
    for arg, after in zip(argv, [*argv[1:], "--"], strict=False):
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            arg = f"--{name.replace('-', '_')}{equals}{value}"
            out.append(arg)
            if arg[2:] in switches and after.startswith("--"):
                out.append("true")
        else:
            out.append(arg)
    return out


def _files_first(argv: Sequence[str]) -> list[str]:
    """Every `--config FILE` moved to the front in its order: the parser lets whatever comes later win."""
    files: list[str] = []
    others: list[str] = []
    words = iter(argv)
    for word in words:
        if word == "--config":
            files += [word, *itertools.islice(words, 1)]
        else:
            (files if word.startswith("--config=") else others).append(word)
    return files + others


def _plain(message: str, known: list[str], prog: str) -> str:
    """The parser's complaint in one line, with the nearest setting's name where a key is unknown."""
    text = " ".join(message.split())
    wrong = re.search(
        r"[Kk]ey '([\w.]+)'|[Uu]nrecognized arguments: --([\w.-]+)|Option '([\w.]+)' is not accepted", text
    )
    if wrong:
        key = next(g for g in wrong.groups() if g)
        if key not in known:
            return f"no setting {key!r}.{nearest(key, known)} See {prog} --help"
    return f"{text[:400]} (see {prog} --help)"
