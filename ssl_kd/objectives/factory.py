"""Objectives by name: each preset is a row of terms (see `catalogue`). A config may also spell its own list of terms.

objective: dlkd
objective:
  - {term: alignment, projector: simreg, weight: 1}
  - {term: correlation, relation: queue, size: 8192, tau_student: 0.07, tau_teacher: 0.07, weight: 1}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ssl_kd.errors import UserError, nearest, one_line
from ssl_kd.objectives.alignment import Alignment
from ssl_kd.objectives.auxiliary import HardPairs, Residual, Uncertainty
from ssl_kd.objectives.boundary import Boundary
from ssl_kd.objectives.compression import Compressed
from ssl_kd.objectives.correlation import Correlation
from ssl_kd.objectives.information import RenyiCorrelation, RenyiMutual, Variational
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.ladder import Ladder
from ssl_kd.objectives.maps import Factors, Selectivity
from ssl_kd.objectives.masked import MaskedHead, MaskedTokens
from ssl_kd.objectives.options import must_fit
from ssl_kd.objectives.presets import CATALOGUE
from ssl_kd.objectives.presets.preset import Spec
from ssl_kd.objectives.progression import Progression
from ssl_kd.objectives.term import Term
from ssl_kd.objectives.weighted_sum import Weight, WeightedSum
from ssl_kd.registry import Registry

__all__ = ["PRESETS", "PRESET_MIXES", "PRESET_VIEWS", "TERMS", "WeightedSum", "build_objective", "taps", "terms_of"]

TERMS: Registry[type[Term]] = Registry(
    "terms",
    {
        "alignment": Alignment,
        "correlation": Correlation,
        "residual": Residual,
        "uncertainty": Uncertainty,
        "hard_pairs": HardPairs,
        "compressed": Compressed,
        "progression": Progression,
        "ladder": Ladder,
        "masked_tokens": MaskedTokens,
        "masked_head": MaskedHead,
        "boundary": Boundary,
        "variational": Variational,
        "renyi_correlation": RenyiCorrelation,
        "renyi_mutual": RenyiMutual,
        "selectivity": Selectivity,
        "factors": Factors,
    },
    group="ssl_kd.terms",
)

OF_EVERY_TERM = ("term", "weight", "share", "start", "until", "warmup", "head")  # checked where they are used

PRESETS: dict[str, tuple[Spec, ...]] = {name: preset.terms for name, preset in CATALOGUE.built_in.items()}

# The views a preset was published with; a config may ask for others.
PRESET_VIEWS: dict[str, str] = {
    name: preset.views for name, preset in CATALOGUE.built_in.items() if preset.views != "weak"
}

# What is done to the inputs of both networks before: see ssl_kd.data.mixup.
PRESET_MIXES: dict[str, str] = {name: preset.mix for name, preset in CATALOGUE.built_in.items() if preset.mix != "none"}


def terms_of(objective: str | Sequence[Spec]) -> tuple[Spec, ...]:
    """The term specs of a preset name, or the given list itself with every option checked by itself."""
    if isinstance(objective, str):
        if objective not in CATALOGUE:
            known = list(CATALOGUE)
            raise UserError(
                f"objective: expected one of {', '.join(known)} or a list of terms; got {objective!r}."
                f"{nearest(objective, known)}"
            )
        return CATALOGUE[objective].terms
    listed = isinstance(objective, (list, tuple))
    if not listed or not objective or not all(isinstance(spec, Mapping) for spec in objective):
        raise UserError(
            f"objective: expected a preset's name or a list of terms like {{term: alignment}}; got {objective!r}"
        )
    for spec in objective:
        _check(spec)
    return tuple(objective)


def build_objective(
    objective: str | Sequence[Spec], student_dim: int | Widths, teacher_dim: int | Widths
) -> WeightedSum:
    """Build a preset or a list of terms for these widths. UserError names a wrong key and what is allowed.

    A bare number is the embedding's width, and that of the tokens where a term reads them; `Widths.of(features)` tells
    all widths, which terms on tapped layers need.
    """
    terms: list[Term] = []
    weights: list[Weight] = []
    names: list[str] = []
    heads: dict[str, nn.Module] = {}
    for spec in terms_of(objective):
        options = dict(spec)
        kind, head = options.pop("term"), options.pop("head", None)
        weights.append(Weight.taken_from(options))
        try:
            term = TERMS[kind].from_options(student_dim, teacher_dim, **options)
        except (RuntimeError, MemoryError) as error:  # a memory or a head for which there is no room
            raise UserError(f"objective: {kind} cannot be built with {options}: {one_line(error, 160)}") from error
        if head is not None:
            _share_head(term, str(head), heads)
        terms.append(term)
        names.append(_name(kind, options, names))
    return WeightedSum(terms, weights, names)


def taps(objective: str | Sequence[Spec]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which layers of student and teacher an objective reads: what to ask the encoders for before it is built."""
    found: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for spec in terms_of(objective):
        for whose, seen in zip(("student", "teacher"), found, strict=True):
            key = f"{whose}_layers"
            named = spec.get(key) or defaults_of(spec["term"]).get(key)
            seen |= dict.fromkeys(named if isinstance(named, (list, tuple)) else ())
    return tuple(found[0]), tuple(found[1])


def _share_head(term: Term, name: str, heads: dict[str, nn.Module]) -> None:
    """Terms that name the same head use one and the same projector."""
    own = getattr(term, "projector", None)
    if own is None:
        raise UserError(f"objective: a term without a projector cannot share head {name!r}")
    shared = heads.setdefault(name, own)
    if str(own) != str(shared):
        raise UserError(f"objective: terms that share head {name!r} must name the same projector and widths")
    term.projector = shared


def _check(spec: Spec) -> None:
    """UserError for a term or an option that there is not, or a value that the option cannot take."""
    kind = spec.get("term")
    if not isinstance(kind, str) or kind not in TERMS:
        raise UserError(
            f"objective: each term needs `term`, one of {', '.join(TERMS)}; got {kind!r}.{nearest(kind, list(TERMS))}"
        )
    defaults = defaults_of(kind)
    for key, value in spec.items():
        if key in defaults:
            if value is not None or defaults[key] is not None:  # null is "not given" where that is the default
                must_fit(key, value)
        elif key not in OF_EVERY_TERM:
            shown = [*defaults, *OF_EVERY_TERM[1:]]
            raise UserError(f"objective: term {kind} has no {key!r}; it knows {', '.join(shown)}.{nearest(key, shown)}")


def defaults_of(kind: str) -> dict[str, object]:
    """The options that a term's constructor takes, as a config spells them, with their defaults."""
    return TERMS[kind].options()


def _name(kind: str, options: Mapping[str, object], taken: Sequence[str]) -> str:
    name = f"{kind}_{options['relation']}" if "relation" in options else kind
    count = sum(t == name or t.startswith(f"{name}_") for t in taken)
    return f"{name}_{count + 1}" if count else name
