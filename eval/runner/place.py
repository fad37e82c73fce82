"""The folder of an evaluation: what we write there, and how one without a marker is recognised as ours."""

from __future__ import annotations

import json
from pathlib import Path

from ssl_kd.runtime.ownership import Kind

HEX = "[0-9a-f]" * 24
OF_A_ROW = {"task", "encoder", "evaluator", "protocol", "metric", "value"}
WHOLE = "results.npz"  # everything of the results, for `ssl-kd report`
RESULTS = tuple(f"results.{form}" for form in ("jsonl", "csv", "md", "tex"))


def _is_older(folder: Path) -> bool:
    """Whether it holds rows of results as we write them, or what an evaluation leaves that was killed before them."""
    if (folder / "results.jsonl").is_file():
        return OF_A_ROW <= _first_line(folder / "results.jsonl").keys()
    banks = any({"rows", "done"} <= _first_line(path).keys() for path in folder.glob("features/*/state.json"))
    return banks or any(folder.glob(f"cells/{HEX}.npz"))


def _first_line(path: Path) -> dict[str, object]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


EVALUATION = Kind(
    "evaluation",
    "out",
    "an evaluation's folder",
    (*RESULTS, WHOLE, "facts.json", "report.html", "cells", "features"),
    _is_older,
    alone=False,
)
