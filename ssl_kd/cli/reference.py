"""One reference page per command, made from the very parsers that read the command line.

python -m ssl_kd.cli.reference --write    # docs/reference/*.md anew; `make docs` does so by itself
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ssl_kd.cli import index
from ssl_kd.cli.main import COMMANDS
from ssl_kd.runtime.command_line import OneLineParser

FOLDER = Path(__file__).parents[2] / "docs" / "reference"


GROUPS = {"index": index.COMMANDS}  # commands of commands, each with a parser of its own


class _Found(Exception):
    def __init__(self, parser: argparse.ArgumentParser):
        super().__init__()
        self.parser = parser


def parsers_of(command: str) -> dict[str, argparse.ArgumentParser]:
    """The parsers that a command builds for its `--help`, by the words that lead to each."""
    if command in GROUPS:
        return {f"{command} {verb}": _parser_of(run) for verb, run in GROUPS[command].items()}
    parser = _parser_of(COMMANDS[command])
    return {command: parser} | {f"{command} {name}": verb for name, verb in _verbs(parser)}


def _parser_of(run: Callable[[Sequence[str]], int]) -> argparse.ArgumentParser:
    def found(self: argparse.ArgumentParser, file: object = None) -> None:
        raise _Found(self)

    shown = OneLineParser.print_help
    OneLineParser.print_help = found  # type: ignore[method-assign, assignment]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            run(["--help"])
    except _Found as answer:
        return answer.parser
    finally:
        OneLineParser.print_help = shown  # type: ignore[method-assign]
    raise AssertionError("a command printed no help")


def page(command: str) -> str:
    """Markdown: what the command does, its settings in groups, its examples."""
    lines = [f"# ssl-kd {command}", "", (COMMANDS[command].__doc__ or "").splitlines()[0], ""]
    examples: list[str] = []
    for words, parser in parsers_of(command).items():
        if words != command:
            lines += [f"## ssl-kd {words}", "", *([parser.description, ""] if parser.description else [])]
        lines += _tables(parser)
        examples += [line.strip() for line in (parser.epilog or "").splitlines()[1:]]
    if examples:
        lines += ["## Examples", "", "```", *examples, "```", ""]
    return "\n".join(lines)


def _verbs(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _tables(parser: argparse.ArgumentParser) -> list[str]:
    lines: list[str] = []
    for group in parser._action_groups:
        rows = [row for action in group._group_actions if (row := _row(action))]
        if rows:
            title = {"options": "Options", "positional arguments": "Arguments"}.get(
                group.title or "", group.title or ""
            )
            lines += [f"**{title[:1].upper()}{title[1:]}**", "", "| setting | value | meaning |", "| --- | --- | --- |"]
            lines += [*rows, ""]
    return lines


def _row(action: argparse.Action) -> str:
    if action.help is argparse.SUPPRESS or isinstance(action, argparse._HelpAction | argparse._SubParsersAction):
        return ""
    names = ", ".join(f"`{name}`" for name in action.option_strings or [action.dest])
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else "")
    if not value and action.nargs != 0 and action.option_strings:
        value = action.dest.upper()
    text = (action.help or "").replace("%(default)s", str(action.default)).replace("%%", "%")
    shown = f"`{value}`" if value else ""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in (names, shown, text)) + " |"


def write(folder: Path = FOLDER) -> list[Path]:
    """Every page anew, and their paths; pages of commands that there are no more go."""
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.md"):
        if old.stem not in COMMANDS:
            old.unlink()
    pages = [folder / f"{command}.md" for command in COMMANDS]
    for path in pages:
        path.write_text(page(path.stem), encoding="utf-8")
    return pages


if __name__ == "__main__":
    if "--write" in sys.argv:
        write()
    else:
        print("\n".join(map(page, COMMANDS)))
