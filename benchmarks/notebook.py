"""A notebook of a script with `# %%` marks, with what its cells print: python -m benchmarks.notebook docs/tutorial.py

Nothing of Jupyter is needed: cells run one after the other in one namespace, as a notebook's do.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
from pathlib import Path

MARK = re.compile(r"^# %%(.*)\n", re.MULTILINE)


def cells_of(script: str) -> list[tuple[str, str]]:
    """Return (markdown or code, text) of each cell."""
    _, *parts = MARK.split(script)
    found = []
    for mark, text in zip(parts[::2], parts[1::2], strict=True):
        if "[markdown]" in mark:
            found.append(("markdown", re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            found.append(("code", text.strip()))
    return found


def run(cells: list[tuple[str, str]]) -> list[str]:
    """Run the cells of code in one namespace; return what each printed."""
    space: dict[str, object] = {"__name__": "__main__"}
    said = []
    for number, (kind, text) in enumerate(cells):
        out = io.StringIO()
        if kind == "code":
            with contextlib.redirect_stdout(out):
                exec(compile(text, f"cell {number}", "exec"), space)
        said.append(out.getvalue())
    return said


def notebook(cells: list[tuple[str, str]], said: list[str]) -> str:
    """Return the notebook as JSON, format 4.5."""
    found = []
    for number, ((kind, text), printed) in enumerate(zip(cells, said, strict=True)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": text.splitlines(keepends=True)}
        if kind == "code":
            output = {"name": "stdout", "output_type": "stream", "text": printed.splitlines(keepends=True)}
            cell |= {"execution_count": None, "outputs": [output] if printed else []}
        found.append(cell)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    whole = {"cells": found, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.notebook", description=__doc__.splitlines()[0])
    parser.add_argument("script", type=Path)
    script = parser.parse_args().script
    cells = cells_of(script.read_text(encoding="utf-8"))
    script.with_suffix(".ipynb").write_text(notebook(cells, run(cells)), encoding="utf-8")


if __name__ == "__main__":
    main()
