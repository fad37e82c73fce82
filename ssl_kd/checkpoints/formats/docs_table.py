"""The table of supported files in docs/formats.md, and that of published teachers in docs/zoo.md.

python -m ssl_kd.checkpoints.formats.docs_table          # print them
python -m ssl_kd.checkpoints.formats.docs_table --write  # put them into their pages
"""

from __future__ import annotations

import sys
from pathlib import Path

from ssl_kd.checkpoints.formats import ROWS

DOCS = Path(__file__).parents[3] / "docs"
BEGIN, END = (
    "<!-- table: begin (python -m ssl_kd.checkpoints.formats.docs_table --write) -->\n",
    "<!-- table: end -->\n",
)


def table() -> str:
    """Every format as a row of markdown."""
    lines = ["| format | files | what is read | pixels |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | {row.wrote} | {row.reads} | {row.pixels} |" for row in ROWS]
    return "\n".join(lines) + "\n"


def zoo_table() -> str:
    """Every published teacher as a row of markdown; its page, its digest and what to know are `ssl-kd zoo show`'s."""
    from ssl_kd.checkpoints.zoo_entries import ZOO
    from ssl_kd.checkpoints.zoo_protocols import published

    lines = ["| name | method | network, width | k-NN % | linear % | checked here by | licence |"]
    lines += ["|---|---|---|---:|---:|---|---|"]
    for one in ZOO.values():
        scores = ("" if score is None else str(float(score)) for score in (one.knn, one.linear))
        checks = ", ".join(found.evaluator for found in published(one))
        lines.append(
            f"| `{one.name}` | {one.method} | {one.network}, {one.width} | {' | '.join(scores)} | {checks} | {one.licence} |"
        )
    return "\n".join(lines) + "\n"


PAGES = {"formats.md": table, "zoo.md": zoo_table}


def updated(page: str, rows: str) -> str:
    """The page with today's table between its two marks."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + rows + END + after


if __name__ == "__main__":
    for name, make in PAGES.items():
        if "--write" in sys.argv:
            page = DOCS / name
            page.write_text(updated(page.read_text(encoding="utf-8"), make()), encoding="utf-8")
        else:
            print(make(), end="")
