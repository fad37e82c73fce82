"""What every command line shares: settings from arguments and YAML files, mistakes in one line, exit codes.

A command's settings are a dataclass (see `ssl_kd.validation.setting`); options, help, groups, types and error lines all
come from its fields. Only the standard library is imported here, and PyYAML where there is something to read.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import os
import re
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import IO, TYPE_CHECKING, Any, Literal, NoReturn, TextIO

from ssl_kd.errors import UserError, nearest, one_line
from ssl_kd.registry import admit
from ssl_kd.runtime.objects import code_in
from ssl_kd.validation import Settings, about, fits, must_fit, types_of

if TYPE_CHECKING:
    from yaml import MappingNode


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

    def __init__(self, stream: TextIO, drops: bool):
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

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _streams() -> Iterator[None]:
    """Standard output and error that say in one line, or in silence, what they cannot write."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:

        def there(stream: TextIO | None) -> TextIO:  # None if the descriptor was closed when Python began
            return opened.enter_context(open(os.devnull, "w")) if stream is None else stream

        sys.stdout, sys.stderr = _Output(there(before[0]), drops=False), _Output(there(before[1]), drops=True)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = before


def _joined(error: BaseException) -> str:
    return " ".join(str(error).split())


NUMBERS = "X"  # how an option of several numbers is shown
NUMBER = re.compile(r"[-+.,/\[\]()\deE]*\d[-+.,/\[\]()\deE]*")  # or a part of a list of them, as in [0.5, 0.4, 0.3]


class OneLineParser(argparse.ArgumentParser):
    """Complains in one line, through UserError, instead of printing its usage.

    An option of several numbers ends before the first word behind it that is none: `--std 0.5 query.jpg` has a query.
    """

    def parse_known_args(  # type: ignore[override]  # of its spellings one is enough
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """See argparse."""
        options = {
            name for one in self._actions if one.metavar == NUMBERS and one.nargs == "+" for name in one.option_strings
        }
        return super().parse_known_args(_numbers_last(sys.argv[1:] if args is None else args, options), namespace)

    def error(self, message: str) -> NoReturn:
        """Raise UserError."""
        told = re.fullmatch(r"argument (?:-\w/)?--([\w-]+): expected one argument", message)
        message = f"{told[1]}: expected a value behind --{told[1]}" if told else message
        raise UserError(f"{message} (see {self.prog} --help)")


def _numbers_last(argv: Sequence[str], options: set[str]) -> list[str]:
    """The arguments with these options, and the numbers behind each, at the end, where nothing else can be taken for one."""
    end = argv.index("--") if "--" in argv else len(argv)
    others: list[str] = []
    numbers: list[str] = []
    at = 0
    while at < end:
        stop = at + 1
        if argv[at] in options and stop < end and not argv[stop].startswith("--"):
            stop += 1  # the first word behind it is meant for a number, whatever it is
            while stop < end and NUMBER.fullmatch(argv[stop]):
                stop += 1
        (numbers if argv[at] in options else others).extend(argv[at:stop])
        at = stop
    return [*others, *numbers, *argv[end:]]


def parse(
    settings: type[Settings], argv: Sequence[str], prog: str, examples: Sequence[str] = (), words: str = ""
) -> Settings:
    """Read a settings dataclass from `--config FILE.yaml` and `--field value`; the command line wins, wherever it stands.

    A first argument that ends in .yaml or .yml is a file, too; of several files the later wins. Unknown keys, unreadable
    files and values of a wrong type raise UserError with one line. `--help` lists every field with its unit and default.
    words: the field, a list of texts, that takes what stands alone.
    """
    argv = _spelled(argv)
    if words:  # `--index photos.index` is `photos.index`: elsewhere it is an option
        argv = [arg.removeprefix(f"--{words}=") for arg in _flagged(argv, settings) if arg != f"--{words}"]
    if argv and argv[0].endswith((".yaml", ".yml")) and not argv[0].startswith("-"):
        argv = ["--config", *argv]
    parser = parser_for(settings, prog, examples, words)
    given, unknown = parser.parse_known_args(argv)
    # argparse takes words into the field only where they stand in one place
    alone = [*vars(given).pop(words, []), *(word for word in unknown if not word.startswith("--"))] if words else []
    if wrong := [word for word in unknown if not words or word.startswith("--")]:
        raise UserError(_unknown(wrong[0], settings, prog))
    known = {f.name: f for f in fields(settings)}
    kinds = types_of(settings)
    values: dict[str, object] = {}
    for file in given.config:
        values |= _from_file(file, known, kinds, prog)
    for name, text in vars(given).items():
        if name != "config":
            text = " ".join(text) if isinstance(text, list) else text
            values[name] = must_fit(name, _from_text(name, text, kinds[name]), kinds[name], about(known[name]).expects)
            admit(name, values[name], about(known[name]).tables, about(known[name]).paths)
    if alone:
        values[words] = alone
    for name, value in values.items():
        if value is None and known[name].default is not None:
            raise UserError(f"{name}: expected a value, got null; leave it out for its default (see {prog} --help)")
    return settings(**values)


# ----------------------------------------------------------------------------------------------- the options


def parser_for(settings: type, prog: str, examples: Sequence[str] = (), words: str = "") -> OneLineParser:
    """The parser of a settings dataclass: every field is an option, and `words` takes what stands alone."""
    parser = OneLineParser(
        prog=prog,
        usage=f"{prog} [CONFIG.yaml] [--setting value ...]" + (f" [{words.upper()} ...]" if words else ""),
        description=(settings.__doc__ or "").split("\n")[0],
        epilog="\n".join(["examples:", *(f"  {line}" for line in examples)]) if examples else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--config", action="append", default=[], metavar="FILE", help="YAML file with any of the settings below"
    )
    kinds, described = types_of(settings), _docstring(settings)
    for title, group in _groups(settings).items():
        place = parser.add_argument_group(title)
        for one in group:
            text = about(one).help or described.get(one.name, "")
            text = f"{text}{_default(one)}".replace("%", "%%")
            names = [f"--{one.name}", *([f"--{about(one).also}"] if about(one).also else [])]
            if one.name == words:
                place.add_argument(one.name, metavar=words.upper(), nargs="*", help=text)
            elif about(one).several:
                place.add_argument(*names, dest=one.name, metavar=NUMBERS, nargs="+", help=text)
            elif kinds[one.name] is bool:
                place.add_argument(f"--{one.name}", metavar="true|false", nargs="?", const="true", help=text)
            else:
                place.add_argument(*names, dest=one.name, metavar=_metavar(kinds[one.name]), help=text)
    return parser


def _groups(settings: type) -> dict[str, list[Field[object]]]:
    """The fields under the titles of their groups: what people set first, then by the class that has the field."""
    groups: dict[str, list[Field[object]]] = {}
    for one in fields(settings):
        home = next(kind for kind in settings.__mro__ if one.name in vars(kind).get("__annotations__", {}))
        title = "settings" if home is settings else (home.__doc__ or home.__name__).split("\n")[0].rstrip(".")
        groups.setdefault("set these first" if about(one).first else title, []).append(one)
    first = groups.pop("set these first", [])
    return ({"set these first": first} if first else {}) | groups


def _docstring(settings: type) -> dict[str, str]:
    """What a docstring's `Args:` say, one line per field: for settings that are no `setting`."""
    text = inspect.cleandoc(settings.__doc__ or "")  # Python 3.13 takes the indentation away by itself
    return dict(re.findall(r"^ {4}(\w+): (.+)$", text, re.MULTILINE))


def _metavar(kind: object) -> str:
    if typing.get_origin(kind) is Literal:
        return "{" + ",".join(str(choice) for choice in typing.get_args(kind) if choice != "") + "}"
    names: dict[object, str] = {
        str: "TEXT",
        int: "N",
        float: "X",
        int | Literal["auto"]: "N",
        float | Literal["auto"]: "X",
    }
    return names.get(kind, "YAML")


def _default(one: Field[object]) -> str:
    value = one.default_factory() if one.default_factory is not MISSING else one.default
    shown = str(value).lower() if isinstance(value, bool) else value
    return "" if value in ("", None, {}) else f" (default: {shown})"


def _spelled(argv: Sequence[str]) -> list[str]:
    """Accept `--batch-size` for `--batch_size`."""
    out = []
    for arg in argv:
        if arg.startswith("--"):
            name, equals, value = arg[2:].partition("=")
            arg = f"--{name.replace('-', '_')}{equals}{value}"
        out.append(arg)
    return out


def _flagged(argv: Sequence[str], settings: type) -> list[str]:
    """Give a flag that stands before a word its value, so that it does not take the word for one."""
    flags = {f"--{name}" for name, kind in types_of(settings).items() if kind is bool}
    return [
        f"{arg}=true" if arg in flags and [*argv[i + 1 :], ""][0] not in ("true", "false") else arg
        for i, arg in enumerate(argv)
    ]


def _unknown(arg: str, settings: type, prog: str) -> str:
    if not arg.startswith("--"):
        return f"expected --setting value, got {arg!r} (see {prog} --help)"
    key, known = arg[2:].partition("=")[0], [f.name for f in fields(settings)]
    return f"no setting {key!r}.{nearest(key, known)} See {prog} --help"


# ------------------------------------------------------------------------------------------------ the values


def _from_text(name: str, text: str, kind: object) -> object:
    """An argument as a value: text where text is asked for, else what YAML reads in it. UserError for broken brackets."""
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    if kind is str or any(isinstance(choice, str) for choice in choices):
        return text
    brackets = text.lstrip().startswith(("[", "{")) and not fits(kind, text)
    value = _yaml(text, f"{name}: broken YAML in {one_line(text, 60)!r}" if brackets else "", text)
    meant = fits(kind, value) or isinstance(
        value, list | dict
    )  # whoever writes [weak] means a list, though a wrong one
    return text if fits(kind, text) and not meant else value


def _from_file(
    path: str, known: Mapping[str, Field[object]], kinds: Mapping[str, object], prog: str
) -> dict[str, object]:
    """The settings of a YAML file. UserError for one that is none, and for a value that names code to be run."""
    try:
        with open(path, encoding="utf-8") as file:
            found = _yaml(file, f"{path}: not readable as YAML") or {}
    except FileNotFoundError:
        raise UserError(f"config: {path}: no such file; `ssl-kd configs list` shows those of the package") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config: cannot read {path}: {one_line(error, 160)} (see {prog} --help)") from error
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: expected settings as in `epochs: 10`, got {one_line(repr(found))}")
    for key, value in found.items():
        if key not in known:
            raise UserError(f"no setting {key!r}.{nearest(key, list(known))} See {prog} --help")
        code = code_in(value, about(known[key]))
        if code and not about(known[key]).paths:
            hint = f" {value}" if isinstance(value, str) else " on the command line"
            raise UserError(
                f"{key}: {path} names code ({code[0]}), and a file's settings run none; give it as --{key}{hint}"
            )
    return {
        key: value if value is None else must_fit(key, value, kinds[key], about(known[key]).expects)
        for key, value in found.items()
    }


def _names_must_differ(node: MappingNode) -> None:
    """UserError for two equal names in one mapping, of which YAML would take the last in silence."""
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:str" and key.value in seen:
            where = key.start_mark
            raise UserError(f"two settings are called {key.value!r} (line {where.line + 1}); leave one, or rename it")
        seen.add(key.value)


def _yaml(source: str | IO[str], complaint: str, otherwise: object = None) -> object:
    """YAML as data, where 1e-3 is a number (to PyYAML it is text). What is no YAML is `otherwise`, or a UserError."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
            _names_must_differ(node)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.[\d_]+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))
    try:
        return yaml.load(source, Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-99
        if not complaint:
            if isinstance(error, UserError):
                raise
            return otherwise
        if isinstance(error, UserError):
            raise
        said = (
            str(error)
            if hasattr(source, "read")
            else f"{getattr(error, 'problem', None) or error}; close every bracket and quote"
        )
        raise UserError(f"{complaint}: {one_line(' '.join(said.split()), 200)}") from error
