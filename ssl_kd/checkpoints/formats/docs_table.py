"""The table of supported files in docs/formats.md.

python -m ssl_kd.checkpoints.formats.docs_table          # print it
python -m ssl_kd.checkpoints.formats.docs_table --write  # put it into the page
"""

from __future__ import annotations

import sys
from pathlib import Path

from ssl_kd.checkpoints.formats import ROWS

PAGE = Path(__file__).parents[3] / "docs" / "formats.md"
BEGIN, END = (
    "<!-- table: begin (python -m ssl_kd.checkpoints.formats.docs_table --write) -->\n",
    "<!-- table: end -->\n",
)


def table() -> str:
    """Every format as a row of markdown."""
    lines = ["| format | files | what is read | pixels |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.wrote} | {row.reads} | {row.pixels} |" for row in ROWS]
    return "\n".join(lines) + "\n"


def updated(page: str) -> str:
    """The page with today's table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + table() + END + after


if __name__ == "__main__":
    if "--write" in sys.argv:
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(table(), end="")
