"""What a row of the catalogue says: the terms, and where they come from. docs/objectives_catalogue.md is printed from these rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Spec = Mapping[str, Any]

# How well a source is known to us. Only the first kind may be called faithful to the published formula.
EVIDENCE = {
    "code": "read in its public code",
    "third-party": "read in somebody else's public code",
    "abstract": "from its abstract; the formula is our reading",
    "ours": "ours",
}


@dataclass(frozen=True)
class Preset:
    """An objective by name. `published` is the formula of the source, `differs` what is not the same here."""

    terms: tuple[Spec, ...]
    source: str
    evidence: str  # a key of EVIDENCE
    published: str
    here: str = ""  # the form without labels; empty: the published one
    differs: str = ""
    views: str = "weak"  # the scheme to take where a config names none
    mix: str = "none"  # likewise, of the inputs of both networks


def alignment(projector: str, distance: str = "cosine", weight: float | str = 1.0, **more: object) -> Spec:
    """A row's alignment term."""
    return {"term": "alignment", "projector": projector, "distance": distance, "weight": weight, **more}


def correlation(
    relation: str, projector: str, weight: float | str = 1.0, tau: float | tuple[float, float] = 0.07, **more: object
) -> Spec:
    """A row's correlation term; tau: student's and teacher's, or one for both."""
    tau_student, tau_teacher = tau if isinstance(tau, tuple) else (tau, tau)
    temperatures = {"tau_student": tau_student, "tau_teacher": tau_teacher}
    return {
        "term": "correlation",
        "relation": relation,
        "projector": projector,
        **more,
        **temperatures,
        "weight": weight,
    }


def stage(*numbers: int) -> Spec:
    """Where these of the four stages end, in both networks: what a term on cells or layers reads."""
    names = tuple(f"stage.{k}" for k in numbers)
    return {"student_layers": names, "teacher_layers": names}
