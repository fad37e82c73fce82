"""Objectives by name: each preset is a row of terms. A config may also spell its own list of terms.

objective: dlkd
objective:
  - {term: alignment, projector: simreg, weight: 1}
  - {term: correlation, relation: queue, size: 8192, tau_student: 0.07, tau_teacher: 0.07, weight: 1}
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ssl_kd.encoder import Features
from ssl_kd.errors import UserError, nearest
from ssl_kd.objectives.alignment import Alignment
from ssl_kd.objectives.correlation import Correlation
from ssl_kd.views import Views

TERMS: dict[str, type[nn.Module]] = {"alignment": Alignment, "correlation": Correlation}

Spec = Mapping[str, Any]

_DLKD_ALIGNMENT: Spec = {"term": "alignment", "projector": "dlkd", "distance": "cosine", "weight": 20.0}
_DLKD_CORRELATION: Spec = {
    "term": "correlation",
    "relation": "views",
    "projector": "square",
    "tau_student": 0.5,
    "tau_teacher": 0.5,
    "weight": 50.0,
}
_SIMREG: Spec = {"term": "alignment", "projector": "simreg", "distance": "cosine", "weight": 1.0}
_QUEUE: Spec = {
    "term": "correlation",
    "relation": "queue",
    "projector": "simreg",
    "size": 8192,
    "tau_student": 0.07,
    "tau_teacher": 0.07,
    "weight": 1.0,
}

PRESETS: dict[str, tuple[Spec, ...]] = {
    # DLKD without its two label terms (CE, SupCon): our reconstruction for unlabelled images; every constant is published.
    "dlkd": (_DLKD_ALIGNMENT, _DLKD_CORRELATION),
    # The same with SimReg's head: 16 Dt hidden units are 84 M parameters for a ResNet-50 teacher.
    "dlkd_light": ({**_DLKD_ALIGNMENT, "projector": "simreg"}, _DLKD_CORRELATION),
    "simreg": (_SIMREG,),
    "queue": (_QUEUE,),
    "default": (_SIMREG, _QUEUE),
}

# The views a preset was published with; a config may ask for others.
PRESET_VIEWS: dict[str, str] = {"dlkd": "multi", "dlkd_light": "multi"}


class WeightedSum(nn.Module):
    """The whole objective: terms with weights. `forward` returns the total and each term's unweighted value."""

    def __init__(self, terms: Sequence[nn.Module], weights: Sequence[float], names: Sequence[str]):
        super().__init__()
        self.terms = nn.ModuleDict(dict(zip(names, terms, strict=True)))
        self.weights = dict(zip(names, weights, strict=True))
        self.min_views: int = max(int(term.min_views) for term in terms)  # type: ignore[arg-type]

    def forward(self, student: Features, teacher: Features, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        """Embeddings (N, Ds), (N, Dt), rows view-major -> scalar total, {term: detached scalar}."""
        values = {name: term(student, teacher, views) for name, term in self.terms.items()}
        total = sum(self.weights[name] * value for name, value in values.items())
        return total, {name: value.detach() for name, value in values.items()}


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


def build_objective(objective: str | Sequence[Spec], student_dim: int, teacher_dim: int) -> WeightedSum:
    """Build a preset or a list of terms for these widths. UserError names a wrong key and what is allowed."""
    terms: list[nn.Module] = []
    weights: list[float] = []
    names: list[str] = []
    for spec in terms_of(objective):
        options = dict(spec)
        kind = options.pop("term", None)
        if kind not in TERMS:
            raise UserError(f"objective: each term needs `term`, one of {', '.join(TERMS)}; got {kind!r}")
        weights.append(_weight(options.pop("weight", 1.0)))
        if "projector" in options:
            options["projector_name"] = options.pop("projector")
        _check_keys(kind, options)
        terms.append(TERMS[kind](student_dim, teacher_dim, **options))
        names.append(_name(kind, options, names))
    return WeightedSum(terms, weights, names)


def _weight(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise UserError(f"objective: weight must be a number above 0; got {value!r}")
    return float(value)


def _check_keys(kind: str, options: Mapping[str, Any]) -> None:
    allowed = list(inspect.signature(TERMS[kind].__init__).parameters)[3:]
    for key in options:
        if key not in allowed:
            shown = ["projector" if a == "projector_name" else a for a in allowed]
            raise UserError(
                f"objective: term {kind} has no {key!r}; it knows weight, {', '.join(shown)}.{nearest(key, shown)}"
            )


def _name(kind: str, options: Mapping[str, Any], taken: Sequence[str]) -> str:
    name = f"{kind}_{options['relation']}" if "relation" in options else kind
    count = sum(t == name or t.startswith(f"{name}_") for t in taken)
    return f"{name}_{count + 1}" if count else name
