"""Tables of the docs as a screen reader meets them: every column has a name."""

import itertools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_column_of_a_table_has_a_name(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    for head, rule in itertools.pairwise(lines):
        if head.startswith("|") and re.fullmatch(r"\|[\s:|-]+\|", rule):
            assert all(cell.strip() for cell in re.split(r"(?<!\\)\|", head)[1:-1]), head


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_blank_line_splits_a_table(page):
    """What follows one would be shown as text, unless a head and a rule begin a table of its own."""
    lines = [*page.read_text(encoding="utf-8").splitlines(), ""]
    for above, blank, below, rule in zip(lines, lines[1:], lines[2:], lines[3:], strict=False):
        if above.startswith("|") and not blank.strip() and below.startswith("|"):
            assert re.fullmatch(r"\|[\s:|-]+\|", rule), below
