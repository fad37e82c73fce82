"""Docs that follow the code: reference pages list every option, and every command line in README and docs is one that the parsers take."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

from ssl_kd.cli.main import COMMANDS
from ssl_kd.cli.reference import page, parsers_of, write
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.eval.runner.config import EvalConfig
from ssl_kd.pretraining.config import PretrainConfig
from ssl_kd.runtime.command_line import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/jobs").glob("*.md"))]
SETTINGS = {"distill": DistillConfig, "targets": DistillConfig, "pretrain": PretrainConfig, "eval": EvalConfig}


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_commands_page_lists_every_option_of_its_parser(command):
    text = page(command)
    for parser in parsers_of(command).values():
        for action in parser._actions:
            for name in action.option_strings:
                assert f"`{name}`" in text or name in ("-h", "--help")


def test_pages_of_commands_that_are_gone_go(tmp_path):
    (tmp_path / "forgotten.md").write_text("old")
    assert sorted(path.stem for path in write(tmp_path)) == sorted(COMMANDS)
    assert not (tmp_path / "forgotten.md").exists()


def lines():
    for path in PAGES:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        shell = "\n".join(text for kind, text in blocks if kind in ("", "sh"))
        for line in shell.replace("\\\n", " ").splitlines():
            words = re.sub(r"^torchrun .*?-m ssl_kd ", "ssl-kd ", line.strip())
            if words.startswith("ssl-kd ") and "..." not in words:
                yield pytest.param(words, id=f"{path.stem}: {words[:60]}")


@pytest.mark.parametrize("line", list(lines()))
def test_every_command_line_of_the_docs_is_one_that_its_command_takes(line):
    words = shlex.split(line, comments=True)[1:]
    command, rest = words[0], words[1:]
    assert command in COMMANDS or command == "COMMAND" or command.startswith("-"), f"no command {command}"
    if command not in COMMANDS or "--help" in rest or "--selfcheck" in rest:
        return
    if command in SETTINGS:
        rest = [word for word in rest if not word.endswith((".yaml", ".yml")) and word != "--config"]
        parse(SETTINGS[command], rest, command)
        return
    parsers = parsers_of(command)
    parser = parsers.get(" ".join(words[:2])) or parsers[command]
    _, unknown = parser.parse_known_args(rest)  # words that stand alone are some commands' own
    wrong = [word for word in unknown if word.startswith("-")]
    assert not wrong, f"{line}: {command} has no {wrong}"


def test_the_docs_navigation_names_every_page():
    text = (ROOT / ".ci/mkdocs.yml").read_text(encoding="utf-8")
    nav = yaml.safe_load(text)["nav"]
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert named == {name for name in there if not name.startswith("reference/")}


def test_no_page_links_out_of_the_docs_for_the_site_holds_nothing_else():
    found = {}
    for path in (ROOT / "docs").rglob("*.md"):
        for target in re.findall(r"\]\(([^)#\s]+)", path.read_text(encoding="utf-8")):
            if "://" not in target and not (path.parent / target).resolve().is_relative_to(ROOT / "docs"):
                found[path.name] = target
    assert not found
