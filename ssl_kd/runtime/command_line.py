"""What every command line shares: settings from words and YAML by jsonargparse (a dataclass's docstring is its help text),
mistakes in one line, exit codes.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from ssl_kd.errors import UserError, nearest


def guarded(run: Callable[[Sequence[str]], int], argv: Sequence[str], name: str) -> int:
    """Run a command; a person's mistake becomes one line and exit code 2, a stop signal 130.

    A standard output that is full is a mistake of that kind. One whose reader has left ends the command in silence, with
    exit code 1. One that was closed from the beginning, and what standard error does not take, ends nothing.
    """
    with _streams():
        try:
            try:
                return run(argv)
            finally:
                sys.stdout.flush()  # now: at the interpreter's end it would be a traceback
        except UserError as error:
            print(f"{name}: {_joined(error)}", file=sys.stderr)
            return 2
        except KeyboardInterrupt as error:
            print(f"{name}: {_joined(error) or 'stopped'}", file=sys.stderr)
            return 130
        except BrokenPipeError:
            return 1


class _Output:
    """A stream of text: what its encoding lacks is spelt out, and what cannot be written is one line, or is dropped."""

    def __init__(self, stream: Any, drops: bool):
        self._stream, self._drops = stream, drops

    def write(self, text: str) -> int:
        """Write text; UserError, or nothing, where it cannot be."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError as error:
            return self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
        except OSError as error:
            self._failed(error)
        return len(text)

    def flush(self) -> None:
        """Write out what is held back, likewise."""
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        with contextlib.suppress(OSError, ValueError):  # whatever is held back would be tried again at the end
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
        if self._drops:
            return
        if isinstance(error, BrokenPipeError):
            raise error
        raise UserError(f"standard output could not be written ({error.strerror}); the command was ended") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard output and error that say in one line, or in silence, what they cannot write."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:

        def there(stream: Any) -> Any:  # None if the descriptor was closed when Python began
            return opened.enter_context(open(os.devnull, "w")) if stream is None else stream

        sys.stdout, sys.stderr = _Output(there(before[0]), drops=False), _Output(there(before[1]), drops=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


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
