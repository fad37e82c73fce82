"""Terms between the students of one run: each gives some of them something more to follow than the teacher.

    between: mutual
    between:
      - {term: assistant, assistant: middle, students: [small], objective: default_light, weight: 1}
      - {term: online_neighbours, neighbours: 5, weight: 0.5, start: 2}

Every term works on embeddings, has heads of its own (trained with the students, saved with the run, thrown away after it),
and gives a value for each student that it leads. What is followed counts as constant, unless the term says otherwise.
Weight, start, until and warmup are those of `ssl_kd.objectives.weighted_sum`; a weight is a number here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.distillation.between_terms import BETWEEN, BetweenTerm, Values, group_of
from ssl_kd.errors import UserError, nearest, one_of
from ssl_kd.objectives.factory import terms_of
from ssl_kd.objectives.weighted_sum import Weight
from ssl_kd.types import Features, ViewBatch

OF_EVERY_TERM = ("term", "weight", "start", "until", "warmup")


class Between(nn.Module):
    """All terms between the students of a run, with their weights."""

    def __init__(self, terms: Sequence[BetweenTerm], weights: Sequence[Weight], names: Sequence[str]):
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.kinds = tuple(terms)  # the same, by their own type
        self.weights, self.names = tuple(weights), tuple(names)
        self.min_views = max(term.min_views for term in terms)
        self.indivisible = tuple(name for name, term in zip(names, terms, strict=True) if not term.divisible)

    def leads(self, epoch: int) -> set[str]:
        """The students that have something to follow in an epoch."""
        found: set[str] = set()
        for term, weight in zip(self.kinds, self.weights, strict=True):
            found |= set(term.leads) if weight.counts(epoch) else set()
        return found

    def forward(
        self, students: Mapping[str, Features], teacher: Features, batch: ViewBatch
    ) -> dict[str, tuple[Tensor, Values]]:
        """For each student that is led the weighted sum of its values, and the values by themselves, without a gradient."""
        if len(batch) < 2:
            raise UserError(
                f"between: samples are related to each other, so a batch needs at least 2 images, got {len(batch)}; raise "
                f"batch_size"
            )
        totals: dict[str, Tensor] = {}
        told: dict[str, Values] = {}
        for title, term, weight in zip(self.names, self.kinds, self.weights, strict=True):
            if not weight.counts(batch.epoch):
                continue
            factor = float(weight.value) * weight.growth(batch.epoch)
            for name, value in term(students, teacher, batch).items():
                totals[name] = totals[name] + factor * value if name in totals else factor * value
                told.setdefault(name, {})[f"between.{title}"] = value.detach()
        return {name: (total, told[name]) for name, total in totals.items()}


def specs_of(between: str | Sequence[Mapping[str, Any]], students: Iterable[str]) -> list[dict[str, Any]]:
    """The terms of the setting `between`, each option checked by itself; before anything is loaded. UserError."""
    specs = [{"term": between}] if isinstance(between, str) else [dict(spec) for spec in between]
    if not specs:
        raise UserError("between: expected a term's name or a list of terms, got an empty list")
    names = list(students)
    for spec in specs:
        kind = spec.get("term")
        if not isinstance(kind, str) or kind not in BETWEEN:
            known = list(BETWEEN)
            raise UserError(f"between: expected one of {', '.join(known)}, got {kind!r}.{nearest(str(kind), known)}")
        options = {**defaults_of(kind), **dict.fromkeys(OF_EVERY_TERM)}
        for key, value in spec.items():
            if key not in options:
                raise UserError(
                    f"between: term {kind} has no {key!r}; it knows {', '.join(options)}.{nearest(str(key), list(options))}"
                )
            _must_fit(kind, key, value, options[key], names)
        _weight_of(dict(spec))
    return specs


def defaults_of(kind: str) -> dict[str, Any]:
    """The options that a term takes behind the two widths, with their defaults."""
    return {p.name: p.default for p in list(inspect.signature(BETWEEN[kind].make).parameters.values())[2:]}


def _must_fit(kind: str, key: str, value: object, default: object, names: Sequence[str]) -> None:
    if key == "objective":
        try:
            terms_of(value)  # type: ignore[arg-type]  # it says what is wrong with anything else
        except UserError as error:
            raise UserError(f"between: {kind}: {error}") from error
    elif key in ("assistant", "student"):
        one_of(f"between: {key}", str(value), names)
    elif key == "students":
        group_of(dict.fromkeys(names, 0), value, 1, kind)  # type: ignore[arg-type]  # likewise
    elif isinstance(default, bool | str):
        if type(value) is not type(default):
            raise UserError(f"between: {key} of {kind}: expected {_words(default)}, got {value!r}")
    elif isinstance(default, int | float):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or (isinstance(default, int) and not isinstance(value, int)):
            raise UserError(f"between: {key} of {kind}: expected a number, got {value!r}")


def _words(default: object) -> str:
    return "true or false" if isinstance(default, bool) else "text"


def _weight_of(spec: dict[str, Any]) -> Weight:
    """What a term's spec says of weight and schedule, which is taken out of it."""
    try:
        weight = Weight.taken_from(spec)
    except UserError as error:
        raise UserError(str(error).replace("objective:", "between:", 1)) from error
    if isinstance(weight.value, str):
        raise UserError(f"between: weight must be a number above 0; got {weight.value!r}")
    return weight


def build_between(between: str | Sequence[Mapping[str, Any]], widths: Mapping[str, int], teacher_width: int) -> Between:
    """The terms of a setting for students of these embedding widths. UserError names what is wrong."""
    terms, weights, kinds, titles = [], [], [], []
    for spec in specs_of(between, widths):
        kind = spec.pop("term")
        weights.append(_weight_of(spec))
        terms.append(BETWEEN[kind].make(widths, teacher_width, **spec))
        kinds.append(kind)
        titles.append(kind if kinds.count(kind) == 1 else f"{kind}_{kinds.count(kind)}")
    return Between(terms, weights, titles)


class AnyBetween(BetweenTerm):
    """Anybody's module between students: (students, teacher, batch) -> {student: scalar}, checked."""

    def __init__(self, module: nn.Module, students: Iterable[str]):
        super().__init__()
        self.module, self.leads = module, tuple(students)
        self.min_views = int(getattr(module, "min_views", 1))
        self.divisible = bool(getattr(module, "divisible", False))

    def forward(self, students: Mapping[str, Features], teacher: Features, batch: ViewBatch) -> Values:
        """What the module gives; UserError where that is not a number for each of some students."""
        found = self.module(students, teacher, batch)
        good = isinstance(found, Mapping) and all(
            name in students and isinstance(value, Tensor) and value.numel() == 1 for name, value in found.items()
        )
        if not good:
            raise UserError(
                f"between: {type(self.module).__name__} gives {type(found).__name__}; expected one number, as a tensor, for "
                f"each student by name"
            )
        return {name: value.reshape(()) for name, value in found.items()}


def one_teacher(outputs: Mapping[str, Features]) -> Features:
    """What terms between students see of the teachers: one's features; of several the unit embeddings side by side."""
    if len(outputs) == 1:
        return next(iter(outputs.values()))
    return Features(torch.cat([F.normalize(one.embedding.float(), dim=1) for one in outputs.values()], dim=1))
