"""Objectives by name: each preset is a row of terms (see `catalogue`). A config may also spell its own list of terms.

objective: dlkd
objective:
  - {term: alignment, projector: simreg, weight: 1}
  - {term: correlation, relation: queue, size: 8192, tau_student: 0.07, tau_teacher: 0.07, weight: 1}
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ssl_kd.errors import UserError, nearest
from ssl_kd.objectives.alignment import Alignment
from ssl_kd.objectives.catalogue import CATALOGUE
from ssl_kd.objectives.correlation import Correlation
from ssl_kd.objectives.hints import HardPairs, Residual, Uncertainty
from ssl_kd.objectives.reading import Widths
from ssl_kd.objectives.rows import Spec
from ssl_kd.objectives.total import Weight, WeightedSum

__all__ = ["PRESETS", "PRESET_MIXES", "PRESET_VIEWS", "TERMS", "WeightedSum", "build_objective", "taps", "terms_of"]

TERMS: dict[str, type[nn.Module]] = {
    "alignment": Alignment,
    "correlation": Correlation,
    "residual": Residual,
    "uncertainty": Uncertainty,
    "hard_pairs": HardPairs,
}

PRESETS: dict[str, tuple[Spec, ...]] = {name: preset.terms for name, preset in CATALOGUE.items()}

# The views a preset was published with; a config may ask for others.
PRESET_VIEWS: dict[str, str] = {name: preset.views for name, preset in CATALOGUE.items() if preset.views != "weak"}

# What is done to the inputs of both networks before: see ssl_kd.mixing.
PRESET_MIXES: dict[str, str] = {name: preset.mix for name, preset in CATALOGUE.items() if preset.mix != "none"}


def terms_of(objective: str | Sequence[Spec]) -> tuple[Spec, ...]:
    """The term specs of a preset name, or the given list itself, checked to be a list of mappings."""
    if isinstance(objective, str):
        if objective not in PRESETS:
            raise UserError(
                f"objective: expected one of {', '.join(PRESETS)} or a list of terms; got {objective!r}."
                f"{nearest(objective, list(PRESETS))}"
            )
        return PRESETS[objective]
    if not objective or not all(isinstance(spec, Mapping) for spec in objective):
        raise UserError(
            f"objective: expected a preset's name or a list of terms like {{term: alignment}}; got {objective!r}"
        )
    return tuple(objective)


def build_objective(
    objective: str | Sequence[Spec], student_dim: int | Widths, teacher_dim: int | Widths
) -> WeightedSum:
    """Build a preset or a list of terms for these widths. UserError names a wrong key and what is allowed.

    A bare number is the embedding's width, and that of the tokens where a term reads them; `Widths.of(features)` tells
    all widths, which terms on tapped layers need.
    """
    terms: list[nn.Module] = []
    weights: list[Weight] = []
    names: list[str] = []
    heads: dict[str, nn.Module] = {}
    for spec in terms_of(objective):
        options = dict(spec)
        kind = options.pop("term", None)
        if kind not in TERMS:
            raise UserError(f"objective: each term needs `term`, one of {', '.join(TERMS)}; got {kind!r}")
        head = options.pop("head", None)
        weights.append(Weight.taken_from(options))
        if "projector" in options:
            options["projector_name"] = options.pop("projector")
        _check_keys(kind, options)
        term = TERMS[kind](student_dim, teacher_dim, **options)
        if head is not None:
            _share_head(term, str(head), heads)
        terms.append(term)
        names.append(_name(kind, options, names))
    return WeightedSum(terms, weights, names)


def taps(objective: str | Sequence[Spec]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which layers of student and teacher an objective reads: what to ask the encoders for before it is built.

    UserError for one layer that is not in a list: its letters would be taken for layers.
    """
    found: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for spec in terms_of(objective):
        for whose, seen in zip(("student", "teacher"), found, strict=True):
            layers = spec.get(f"{whose}_layers", ())
            if isinstance(layers, str):
                raise UserError(f"objective: {whose}_layers: expected a list of layers, [{layers}]; got {layers!r}")
            seen |= dict.fromkeys(layers)
    return tuple(found[0]), tuple(found[1])


def _share_head(term: nn.Module, name: str, heads: dict[str, nn.Module]) -> None:
    """Terms that name the same head use one and the same projector."""
    own = getattr(term, "projector", None)
    if own is None:
        raise UserError(f"objective: a term without a projector cannot share head {name!r}")
    shared = heads.setdefault(name, own)
    if str(own) != str(shared):
        raise UserError(f"objective: terms that share head {name!r} must name the same projector and widths")
    term.projector = shared


def _check_keys(kind: str, options: Mapping[str, Any]) -> None:
    allowed = list(inspect.signature(TERMS[kind].__init__).parameters)[3:]
    for key in options:
        if key not in allowed:
            shown = ["projector" if a == "projector_name" else a for a in allowed]
            shown += ["weight", "share", "start", "until", "warmup", "head"]
            raise UserError(f"objective: term {kind} has no {key!r}; it knows {', '.join(shown)}.{nearest(key, shown)}")


def _name(kind: str, options: Mapping[str, Any], taken: Sequence[str]) -> str:
    name = f"{kind}_{options['relation']}" if "relation" in options else kind
    count = sum(t == name or t.startswith(f"{name}_") for t in taken)
    return f"{name}_{count + 1}" if count else name
