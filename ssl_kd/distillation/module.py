"""The student's side of a step: what is trained, which outputs are compared, and the student's moving average.

Any module of the `Criterion` protocol can be the objective: `as_criterion` gives it what the loop asks for.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor, nn

from ssl_kd.distillation.second_looks import hidden_look, moved, terms_at_boundary
from ssl_kd.errors import UserError
from ssl_kd.models.encoder import Encoder
from ssl_kd.objectives import WeightedSum
from ssl_kd.objectives.boundary import BOUNDARY
from ssl_kd.objectives.multi_teacher import MultiTeacher
from ssl_kd.objectives.weighted_sum import gradient_norm
from ssl_kd.runtime import distributed
from ssl_kd.types import Features, ViewBatch

AVERAGE = "ema"  # the layer in which objectives find the outputs of the student's moving average
FIGURES = ("step", "epoch", "loss", "lr", "gradient_norm")  # of a step; no term can have such a name


class AnyCriterion(nn.Module):
    """Anybody's criterion as an objective of the loop; its parameters are trained and saved with the run.

    criterion: a module that maps (student: Features, teacher: Features) and, if it takes a third argument, the batch to
    a scalar, or to a scalar and a dictionary of scalars that are logged. Rows are view-major: those of the first view of
    all images, then those of the second. Read with defaults from it: needs_tokens (False), student_layers and
    teacher_layers (none), student_momentum (0: no moving average), min_views (1), divisible (False: its value over a
    batch is not the mean of its values over parts of the batch).
    """

    def __init__(self, criterion: nn.Module):
        super().__init__()
        self.criterion = criterion
        self.name = type(criterion).__name__
        self.min_views = int(getattr(criterion, "min_views", 1))
        self.student_layers, self.teacher_layers = layers_of(criterion)
        self.student_momentum = float(getattr(criterion, "student_momentum", 0.0))
        self.reads_tokens = bool(getattr(criterion, "needs_tokens", False))
        self.masks = bool(getattr(criterion, "masks", False))
        self.at_boundary = False  # it takes prototypes of ours
        self.indivisible = () if getattr(criterion, "divisible", False) else (self.name,)
        self.measure_gradients = False
        self._takes_batch = _takes(criterion.forward, 3)

    def forward(self, student: Features, teacher: Features, views: ViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        """Features of both networks on the same rows -> scalar total, {term: detached scalar}."""
        found = self.criterion(student, teacher, views) if self._takes_batch else self.criterion(student, teacher)
        total, terms = found if isinstance(found, tuple) and len(found) == 2 else (found, {})
        if not isinstance(total, Tensor) or total.numel() != 1 or not isinstance(terms, Mapping):
            shown = tuple(total.shape) if isinstance(total, Tensor) else type(total).__name__
            raise UserError(
                f"objective: {self.name} gives {shown}; expected one number as a tensor, or it and a dictionary of terms"
            )
        total = total.reshape(())
        figures = {self._term(name): torch.as_tensor(value).detach() for name, value in terms.items()}
        figures = figures or {self.name: total.detach()}
        if self.measure_gradients:
            figures[f"{self.name}_gradient"] = gradient_norm(total, student)
        return total, figures

    def _term(self, name: str) -> str:
        return f"{self.name}.{name}" if name in FIGURES else str(name)


Objective = WeightedSum | MultiTeacher | AnyCriterion


def as_criterion(objective: nn.Module) -> Objective:
    """An objective of our own as it is, any other module behind the attributes that the loop reads."""
    return objective if isinstance(objective, WeightedSum | MultiTeacher | AnyCriterion) else AnyCriterion(objective)


def layers_of(criterion: object) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which layers of student and teacher a criterion (or a class of criteria) reads."""
    ours, theirs = (getattr(criterion, f"{whose}_layers", ()) for whose in ("student", "teacher"))
    return _names(ours), _names(theirs)


def _names(layers: object) -> tuple[str, ...]:
    return tuple(map(str, layers)) if isinstance(layers, Sequence) and not isinstance(layers, str) else ()


def _takes(function: object, count: int) -> bool:
    try:
        inspect.signature(function).bind(*range(count))  # type: ignore[arg-type]  # of any callable
    except TypeError:
        return False
    return True


class Whole:
    """A step's views and teacher outputs as one process would have them; `sizes` are the rows of each process."""

    def __init__(self, views: ViewBatch, teacher_outputs: Mapping[str, Features]):
        device = views.pixels[0].device
        self.sizes = distributed.counts(len(views), device)
        found = {
            name: distributed.whole_batch(output, views.teacher_views, self.sizes)
            for name, output in teacher_outputs.items()
        }
        self.finite = all(map(finite, found.values()))
        self.teacher_outputs = {name: for_all_views(output, views) for name, output in found.items()}
        index = distributed.whole_index(views.index, self.sizes, device)
        self.views = ViewBatch(index, views.epoch, views.pixels, views.view_numbers)


class Batch:
    """The input of one step. A plain class: Fabric would take a dataclass apart to cast its tensors.

    look: each teacher's outputs on any views (N, 3, S, S), for terms that make images of their own.
    """

    def __init__(
        self,
        views: ViewBatch,
        teacher_outputs: Mapping[str, Features],
        look: Callable[[Tensor], Mapping[str, Features]] | None = None,
    ):
        self.views, self.teacher_outputs = views, teacher_outputs  # of each teacher, on the same rows
        self.look = look

    @cached_property
    def whole(self) -> Whole:
        """What all processes have together; gathered once, whoever asks."""
        return Whole(self.views, self.teacher_outputs)


class DistillationModule(nn.Module):
    """Student and objective: all that is trained; and the student's moving average where the objective asks for one.

    The average is a second network on the same views, in train mode as MoCo's key encoder: its weights follow the
    student's, its batch norms count for themselves.

    reads: of each teacher whether tokens and which layers are compared, where there may be more; None: all there is.
    weight: of the objective; with 0 it is not computed.
    """

    def __init__(
        self,
        student: Encoder,
        objective: Objective,
        reads: Mapping[str, tuple[bool, Sequence[str]]] | None = None,
        weight: float = 1.0,
    ):
        super().__init__()
        self.student, self.objective, self.reads, self.weight = student, objective, reads, weight
        self.average = copy.deepcopy(student).requires_grad_(False) if objective.student_momentum else None
        for network in (self.student, self.average):
            if network is not None:
                distributed.synchronise_norms(network)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its terms on one batch of views."""
        student = self.features(batch)
        if not (finite(student) and batch.whole.finite):
            # Memories and running statistics must not take in what is no number.
            return student.embedding.sum() * float("nan"), {}
        return self.judged(student, batch)

    def features(self, batch: Batch) -> Features:
        """The student's features of the whole batch's views."""
        return distributed.whole_batch(self.embed(batch.views), len(batch.views.pixels), batch.whole.sizes)

    def judged(self, student: Features, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The objective's total, times its weight, and its terms."""
        if not self.weight:
            return student.embedding.sum() * 0, {}
        outputs = batch.whole.teacher_outputs
        if self.reads is not None:
            outputs = {name: only(output, *self.reads[name]) for name, output in outputs.items()}
        if self.objective.at_boundary:
            student, outputs = self._at_boundary(student, outputs, batch)
        total, terms = ask(self.objective, student, outputs, batch.whole.views)
        return (total if self.weight == 1 else self.weight * total), terms

    def _at_boundary(
        self, student: Features, outputs: Mapping[str, Features], batch: Batch
    ) -> tuple[Features, dict[str, Features]]:
        """The same, with what both networks say of the first views moved to the student's boundaries."""
        (term,) = terms_at_boundary(self.objective)
        pixels = moved(self.student, batch.views.pixels[0], term)
        if batch.look is None:
            raise UserError("objective: it moves images to a boundary, and this loop cannot show them to the teacher")
        sizes = batch.whole.sizes
        ours = distributed.whole_batch(Features(self.student(pixels).embedding), 1, sizes).embedding
        theirs = {
            name: distributed.whole_batch(Features(output.embedding), 1, sizes).embedding
            for name, output in batch.look(pixels).items()
        }
        return with_layer(student, BOUNDARY, ours), {
            name: with_layer(output, BOUNDARY, theirs[name]) for name, output in outputs.items()
        }

    def embed(self, views: ViewBatch) -> Features:
        """The student's outputs on all views, view-major; its tokens only where the objective reads them."""
        large, small = views.pixels[: views.teacher_views], views.pixels[views.teacher_views :]
        seen = self._forward(torch.cat(large))
        if self.objective.masks and seen.tokens is not None:
            hidden = hidden_look(self.student, views, seen.tokens.shape[1])
            seen = replace(seen, layers={**seen.layers, **hidden})
        if small:  # another size: a pass of their own, of which only the embedding is compared
            beside = self._forward(torch.cat(small))
            average = {
                name: torch.cat([tap, beside.layers[name]]) for name, tap in seen.layers.items() if name == AVERAGE
            }
            seen = Features(torch.cat([seen.embedding, beside.embedding]), None, average)
        return seen

    def _forward(self, pixels: Tensor) -> Features:
        seen: Features = self.student(pixels, layers=self.objective.student_layers)
        if self.average is not None:
            with torch.no_grad():
                average = self.average(pixels).embedding
            seen = replace(seen, layers={**seen.layers, AVERAGE: average})
        return seen if self.objective.reads_tokens else replace(seen, tokens=None)

    @torch.no_grad()
    def follow(self) -> None:
        """After an optimiser step: the average moves towards the student."""
        if self.average is not None:
            rate = 1 - self.objective.student_momentum
            for own, new in zip(self.average.parameters(), self.student.parameters(), strict=True):
                own.lerp_(new, rate)


def with_layer(features: Features, name: str, values: Tensor) -> Features:
    """The same features and one more layer."""
    return replace(features, layers={**features.layers, name: values})


def finite(features: Features) -> bool:
    """Whether all that is compared are numbers."""
    parts = (features.embedding, features.tokens, *features.layers.values())
    return all(bool(part.isfinite().all()) for part in parts if part is not None)


def only(features: Features, tokens: bool, layers: Sequence[str]) -> Features:
    """Of the features what one objective reads: others may have asked for more."""
    return Features(
        features.embedding, features.tokens if tokens else None, {name: features.layers[name] for name in layers}
    )


def for_all_views(output: Features, views: ViewBatch) -> Features:
    """Small crops are compared with where the teacher puts the image: the mean of its outputs on the large views."""
    small = len(views.pixels) - views.teacher_views
    if not small:
        return output
    mean = output.embedding.reshape(views.teacher_views, -1, output.embedding.shape[1]).mean(0)
    return Features(torch.cat([output.embedding, mean.repeat(small, 1)]))


def ask(
    objective: Objective, student: Features, teacher_outputs: Mapping[str, Features], views: ViewBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective's total and terms; a single teacher has no name."""
    if isinstance(objective, MultiTeacher):
        answer: tuple[Tensor, dict[str, Tensor]] = objective(student, teacher_outputs, views)
    else:
        (output,) = teacher_outputs.values()
        answer = objective(student, output, views)
    return answer
