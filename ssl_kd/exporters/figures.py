"""What was measured of a student, for the card that goes with it: an evaluation's figures, and what its run watched.

Figures are taken only for the very weights: an evaluation names each encoder's digest.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ssl_kd.errors import UserError, one_line, shown_name

WATCHED = "| held-out images |"  # the line of a run's README.md
NOT_SHARES = ("nll", "brier")


def watched(student: object) -> str:
    """What the run beside a student's file noted of its held-out images; empty where there is no run."""
    path = Path(student) if isinstance(student, str | os.PathLike) else None
    card = path.parent / "README.md" if path is not None and path.is_file() else None
    if card is None or not card.is_file():
        return ""
    lines = card.read_text(encoding="utf-8", errors="replace").splitlines()
    found = next((line for line in lines if line.startswith(WATCHED)), "")
    return found.removeprefix(WATCHED).strip(" |")


def evaluated(folder: str | os.PathLike[str], digest: str) -> str:
    """A table of the headline figures that `ssl-kd eval` kept in `folder` of the encoder with that digest, as markdown.

    UserError where no evaluation lies there, or none of these weights.
    """
    place = Path(folder)
    try:
        record = json.loads((place / "facts.json").read_text(encoding="utf-8"))
        rows = [json.loads(line) for line in (place / "results.jsonl").read_text(encoding="utf-8").splitlines()]
        facts = cast(Mapping[str, object], record["facts"])
        names = [
            key.removeprefix("encoder ")
            for key, value in facts.items()
            if key.startswith("encoder ") and str(value).endswith(f"weights {digest[:16]}")
        ]
        lines = [_line(row) for row in rows if row["encoder"] in names and row["headline"]]
        reference = one_line(record["reference"], 60)
    except OSError as error:
        raise UserError(
            f"figures: {shown_name(str(place))}: expected the out folder of ssl-kd eval ({error.strerror or error})"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"figures: {shown_name(str(place))}: its results cannot be read ({one_line(error, 100)}); evaluate again"
        ) from None
    if not lines:
        raise UserError(
            f"figures: {shown_name(str(place))}: holds no figure of these weights (digest {digest[:16]}); evaluate this very file"
        )
    head = f"| task | evaluator | metric | value | kept of {reference or 'the reference'} |\n| --- | --- | --- | ---: | ---: |"
    return "\n".join([head, *lines])


def _line(row: Mapping[str, object]) -> str:
    value, low, high = (_number(row[key]) for key in ("value", "low", "high"))
    metric, share = str(row["metric"]), _number(row["share_kept"])
    scale, unit = (1.0, "") if metric.split()[0] in NOT_SHARES else (100.0, " %")
    half = f" ± {scale * (high - low) / 2:.2g}" if math.isfinite(high - low) else ""
    cells = (row["task"], f"{row['evaluator']}/{row['protocol']}", metric)
    words = [one_line(cell, 100).replace("|", "\\|") for cell in cells]
    kept = f"{100 * share:.1f} %" if math.isfinite(share) else "-"
    return f"| {' | '.join(words)} | {scale * value:.4g}{half}{unit} | {kept} |"


def _number(value: object) -> float:
    return math.nan if value is None else float(str(value))
