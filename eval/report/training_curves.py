"""What a run logged while an encoder was trained: metrics.jsonl beside its weights, as curves for the report."""

from __future__ import annotations

import json
from pathlib import Path

Curve = tuple[list[float], list[float]]  # steps, values
Curves = dict[str, Curve]
CLOCKS = ("step", "epoch")  # the axis, not curves of their own
LARGEST = 1e100  # of a value or step that a chart can place: the difference of two such is a number too
MOST = 200  # curves that are drawn, the first ones logged
HEALTH = "health/"  # begins the keys of what training watched without labels
# What a key is called in a chart; all others are terms of the objective, by their own names.
OF_RUN = {
    "loss": "loss: all terms together",
    "lr": "learning rate",
    "gradient_norm": "norm of the gradient",
    "images_per_s": "images per second",
    "wait_share": "share of the time spent waiting for images",
}
# The same behind `health/`: a term may have a figure's name, and be another thing (alignment falls, its cosine rises).
OF_HEALTH = {
    "neighbour_overlap": "neighbours in common with the teacher",
    "cka": "CKA with the teacher",
    "alignment": "cosine of the projected student to the teacher",
}


def titled(key: str) -> str:
    """Return what a logged key is called; a term of the objective keeps its own name."""
    if (bare := key.removeprefix(HEALTH)) != key:
        return OF_HEALTH.get(bare, bare.replace("_", " "))
    if key in OF_RUN:
        return OF_RUN[key]
    of = key.removesuffix("_gradient")
    return f"loss term {of}, smaller is better" if of == key else f"loss term {of}: norm of its gradient"


def read_curves(weights: str, least: int = 2) -> Curves:
    """Return the numbers that metrics.jsonl beside a weight file holds, by key, of the first 200 keys; empty without it.

    least: points below which there is no curve to draw.

    The file may be anybody's: lines that are no JSON objects (a killed run's last one) and values that are no finite
    numbers up to 1e100 are passed over.
    """
    path = Path(weights).expanduser().parent / "metrics.jsonl"
    curves: Curves = {}
    try:
        if not weights or not path.is_file():
            return {}
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file):
                _add(curves, _record(line), number)
    except OSError:
        return {}
    return {key: curve for key, curve in curves.items() if len(curve[0]) >= least}


def _add(curves: Curves, record: dict[str, object], number: int) -> None:
    step = _number(record.get("step", number))
    for key, found in record.items():
        known, value = key in curves or len(curves) < MOST, _number(found)
        if known and key not in CLOCKS and value is not None and step is not None:
            steps, values = curves.setdefault(key, ([], []))
            steps.append(step)
            values.append(value)


def _record(line: str) -> dict[str, object]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
        return None
    return float(value)
