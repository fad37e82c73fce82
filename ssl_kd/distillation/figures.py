"""A step's figures by student, as the progress bar and the logs show them."""

from __future__ import annotations

from collections.abc import Mapping


def shown(records: Mapping[str, dict[str, float]]) -> dict[str, str]:
    """What the progress bar shows of a step: a single student's loss and terms, of several their losses."""
    if "" not in records:
        return {f"{name}/loss": f"{one['loss']:.4f}" if one else "skipped" for name, one in records.items()}
    record = records[""]
    terms = {name: f"{record[name]:.3f}" for name in record if _is_term(name)}
    return {"loss": f"{record['loss']:.4f}" if record else "skipped", **terms}


def side_by_side(records: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of all students in one line, behind their names: small/loss."""
    return {
        f"{name}/{key}" if name else key: value for name, record in records.items() for key, value in record.items()
    }


def _is_term(name: str) -> bool:
    """Whether this figure of a step is the value of one of the objective's terms."""
    return name not in ("loss", "lr", "gradient_norm") and not name.endswith("_gradient")
