"""The total of several terms: weights that are numbers, balanced by gradients, or learned; and when each term counts.

weight: 2.5       a number
weight: auto      `share` times the gradient of the first term, at the student's features, over the first steps
weight: learned   exp(-l) x term + log(1 + exp(l)), l trained with the student
start, until, warmup: epochs; a term counts from `start` up to (not with) `until`, and grows over its first `warmup`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.objectives.term import Term, batch_of
from ssl_kd.types import Features, Index, ViewBatch

CALIBRATION = 100  # steps over which gradients are averaged before automatic weights stay


@dataclass(frozen=True)
class Weight:
    """How much a term counts, and when."""

    value: float | str = 1.0
    share: float = 1.0
    start: int = 0
    until: int | None = None
    warmup: int = 0

    def __post_init__(self) -> None:
        value = self.value
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < float("inf")
        if not number and value not in ("auto", "learned"):
            raise UserError(f"objective: weight must be a number above 0, auto or learned; got {value!r}")
        if not isinstance(self.share, (int, float)) or not 0 < self.share < float("inf"):
            raise UserError(f"objective: share must be a number above 0; got {self.share!r}")
        if self.share != 1 and value != "auto":
            raise UserError(f"objective: share belongs to weight: auto; got weight {value!r}")
        for name in ("start", "until", "warmup"):
            given = getattr(self, name)
            if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 0):
                raise UserError(f"objective: {name} must be a whole number of epochs, 0 or more; got {given!r}")
        if self.until is not None and self.until <= self.start:
            raise UserError(f"objective: until must come after start; got start {self.start} and until {self.until}")

    @classmethod
    def taken_from(cls, options: dict[str, Any]) -> Weight:
        """The keys that belong here are taken out of a term's spec."""
        names = ("share", "start", "until", "warmup")
        return cls(options.pop("weight", 1.0), **{name: options.pop(name) for name in names if name in options})

    def counts(self, epoch: int) -> bool:
        """Whether the term counts in this epoch."""
        return self.start <= epoch and (self.until is None or epoch < self.until)

    def growth(self, epoch: int) -> float:
        """Share of the weight in this epoch: 1/warmup in the first, then linearly up to 1."""
        return min(1.0, (epoch - self.start + 1) / self.warmup) if self.warmup else 1.0


class WeightedSum(nn.Module):
    """The whole objective: terms with weights. `forward` returns the total and each term's unweighted value.

    Set `measure_gradients` to have each term's gradient norm at the student's features among the values. The training
    loop must tap `student_layers` and `teacher_layers`, and keep a moving average of the student where
    `student_momentum` is above 0.
    """

    balance: Tensor

    def __init__(self, terms: Sequence[Term], weights: Sequence[float | Weight], names: Sequence[str]):
        super().__init__()
        self.terms = nn.ModuleDict(dict(zip(names, terms, strict=True)))
        rules = [w if isinstance(w, Weight) else Weight(w) for w in weights]
        self.weights = dict(zip(names, rules, strict=True))
        self.min_views = max(term.min_views for term in terms)
        self.measure_gradients = False
        self.student_layers = _union(term.student_layers for term in terms)
        self.teacher_layers = _union(term.teacher_layers for term in terms)
        self.student_momentum = max(term.student_momentum for term in terms)
        # Terms whose value over a batch is not the mean of its values over parts of the batch.
        self.indivisible = tuple(n for n, term in zip(names, terms, strict=True) if not term.divisible)
        self.reads_tokens = any(term.needs_tokens for term in terms)
        self.masks = any(term.masks for term in terms)
        self.at_boundary = any(term.at_boundary for term in terms)
        self._check_schedule()
        self.balanced = [name for name, rule in self.weights.items() if rule.value == "auto"]
        if self.balanced:
            self.reference = names[0]
            if not isinstance(self.weights[self.reference].value, (int, float)):
                raise UserError(
                    "objective: weight auto balances against the first term, which needs a number as weight"
                )
            # Per balanced term: steps seen, sum of its gradient norms, and of the reference's on the same steps.
            self.register_buffer("balance", torch.zeros(len(self.balanced), 3))
        learned = [name for name, rule in self.weights.items() if rule.value == "learned"]
        if learned:
            self.log_scale = nn.ParameterDict({name: nn.Parameter(torch.zeros(())) for name in learned})

    def forward(
        self,
        student: Features | Tensor,
        teacher: Features | Tensor,
        batch: ViewBatch | None = None,
        *,
        index: Index | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features, or embeddings (N, Ds) and (N, Dt), rows view-major -> scalar total, {term: detached scalar}.

        batch, index: as in `Term`; the batch also says which epoch it is, for terms that have a schedule.
        """
        student, teacher = Features.of(student), Features.of(teacher)
        batch = batch_of(len(student.embedding), batch, index, self.min_views, "this objective")
        if len(batch) < 2:
            raise UserError(
                f"objective: samples are related to each other, so a batch needs at least 2 images, got {len(batch)}; "
                f"raise batch_size"
            )
        epoch = batch.epoch
        values = {
            name: term(student, teacher, batch) for name, term in self.terms.items() if self.weights[name].counts(epoch)
        }
        told = {name: value.detach() for name, value in values.items()}
        wanted = list(values) if self.measure_gradients else self._calibrating(values)
        norms = {name: gradient_norm(values[name], student) for name in wanted}
        if self.training and self.balanced:
            self._calibrate(norms)
        if self.measure_gradients:
            told |= {f"{name}_gradient": norm for name, norm in norms.items()}
        total = sum(self._weigh(name, value, epoch) for name, value in values.items())
        return total, told  # type: ignore[return-value]

    def _weigh(self, name: str, value: Tensor, epoch: int) -> Tensor:
        rule = self.weights[name]
        if rule.value == "learned":
            scale = self.log_scale[name]
            weighed = torch.exp(-scale) * value + F.softplus(scale)
        elif rule.value == "auto":
            weighed = self.automatic_weight(name) * value
        else:
            weighed = float(rule.value) * value
        growth = rule.growth(epoch)
        return weighed if growth == 1 else growth * weighed

    def automatic_weight(self, name: str) -> Tensor:
        """The weight of a balanced term so far: `share`, until both gradients have been seen."""
        rule, (_, own, reference) = self.weights[name], self.balance[self.balanced.index(name)]
        weight = rule.share * float(self.weights[self.reference].value) * reference / own.clamp_min(1e-30)
        return torch.where((own > 0) & (reference > 0), weight, rule.share)

    def _calibrating(self, values: Mapping[str, Tensor]) -> list[str]:
        """Terms whose gradient is needed in this step: unfinished ones, and the reference."""
        if not self.training or not self.balanced or self.reference not in values:
            return []
        open_ones = [
            n for n, row in zip(self.balanced, self.balance, strict=True) if row[0] < CALIBRATION and n in values
        ]
        return [self.reference, *open_ones] if open_ones else []

    @torch.no_grad()
    def _calibrate(self, norms: Mapping[str, Tensor]) -> None:
        for row, name in zip(self.balance, self.balanced, strict=True):
            if name in norms and self.reference in norms and row[0] < CALIBRATION:
                row += torch.stack([torch.ones_like(row[0]), norms[name].to(row), norms[self.reference].to(row)])

    def _check_schedule(self) -> None:
        """UserError where an epoch would have no term: only where a term ends or none begins at 0 can that be."""
        rules = list(self.weights.values())
        for epoch in {0, *(rule.until for rule in rules if rule.until is not None)}:
            if not any(rule.counts(epoch) for rule in rules):
                raise UserError(f"objective: no term counts in epoch {epoch}; mend start and until")


def gradient_norm(value: Tensor, student: Features) -> Tensor:
    """Norm of a term's gradient at the embedding; at tokens or layers for terms that do not look at the embedding."""
    inputs = [z for z in (student.embedding, student.tokens, *student.layers.values()) if z is not None]
    inputs = [z for z in inputs if z.requires_grad]
    if not inputs or not value.requires_grad:
        return value.new_zeros(())
    gradients = torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True)
    seen = [g for g in gradients if g is not None]
    return seen[0].detach().float().norm() if seen else value.new_zeros(())


def _union(names: Iterable[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in names for name in group))
