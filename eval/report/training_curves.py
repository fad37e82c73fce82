"""What a run logged while an encoder was trained: metrics.jsonl beside its weights, as curves for the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

Curve = tuple[list[float], list[float]]  # steps, values
Curves = dict[str, Curve]
CLOCKS = ("step", "epoch")  # the axis, not curves of their own
HEALTH = "health/"  # begins the keys of what training watched without labels


def read_curves(weights: str) -> Curves:
    """Return every number that metrics.jsonl beside a weight file holds, by key; empty where there is none.

    Lines that are no JSON objects (a killed run's last one) and values that are no finite numbers are passed over.
    """
    path = Path(weights).expanduser().parent / "metrics.jsonl"
    if not weights or not path.is_file():
        return {}
    curves: Curves = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        record = _record(line)
        step = record.get("step", number)
        for key, value in record.items():
            if key not in CLOCKS and _is_number(value) and _is_number(step):
                steps, values = curves.setdefault(key, ([], []))
                steps.append(float(step))
                values.append(float(value))
    return {key: curve for key, curve in curves.items() if len(curve[0]) > 1}


def _record(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
