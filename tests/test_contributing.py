"""CONTRIBUTING.md answers twelve questions of the kind "where do I add ...?", and every file that it names exists."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "CONTRIBUTING.md").read_text()
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| to add", "| ---"))]


def test_the_table_answers_twelve_changes():
    assert len(ROWS) == 12
    for topic in ("format", "term", "view", "source of images", "evaluator", "protocol", "export", "student", "signal"):
        assert any(topic in row.split("|")[1] for row in ROWS), topic
    for topic in ("logger", "chart", "optimiser"):
        assert any(topic in row.split("|")[1] for row in ROWS), topic


def test_every_path_that_the_page_names_exists():
    named = set(re.findall(r"`((?:ssl_kd|eval|tests|docs)/[\w./]*)`|(docs/\w+\.md)", PAGE))
    paths = {a or b for a, b in named}
    assert len(paths) > 12
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_table_that_the_page_names_is_in_its_file():
    for table, path in re.findall(r"`([A-Z]{4,})` in `([\w/.]+)`", PAGE):
        assert re.search(rf"^{table}\b.*=", (ROOT / path).read_text(), re.MULTILINE), (table, path)
