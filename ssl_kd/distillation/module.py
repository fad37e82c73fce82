"""The student's side of a step: what is trained, what is asked of it, and how the optimiser moves it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_kd.models.encoder import Encoder
from ssl_kd.objectives import WeightedSum
from ssl_kd.objectives.multi_teacher import MultiTeacher
from ssl_kd.runtime import distributed
from ssl_kd.types import Features, ViewBatch

AVERAGE = "ema"  # the layer in which objectives find what the student's moving average said


class Batch:
    """What one step looks at. A plain class: Fabric would take a dataclass apart to cast its tensors."""

    def __init__(self, views: ViewBatch, teacher_outputs: Mapping[str, Features]):
        self.views, self.teacher_outputs = views, teacher_outputs  # said: by each teacher, on the same rows


class DistillationModule(nn.Module):
    """Student and objective: all that is trained; and the student's moving average where the objective asks for one.

    The average is a second network that sees the same views, in train mode as MoCo's key encoder: its weights follow
    the student's, its batch norms count for themselves.
    """

    def __init__(self, student: Encoder, objective: WeightedSum | MultiTeacher):
        super().__init__()
        self.student, self.objective = student, objective
        self.average = copy.deepcopy(student).requires_grad_(False) if objective.student_momentum else None
        for network in (self.student, self.average):
            if network is not None:
                distributed.synchronise_norms(network)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Total loss and its terms on one batch of views."""
        views, device = batch.views, batch.views.pixels[0].device
        sizes = distributed.counts(len(views), device)
        student = distributed.whole_batch(self.look(views), len(views.pixels), sizes)
        teacher_outputs = {
            name: distributed.whole_batch(output, views.teacher_views, sizes)
            for name, output in batch.teacher_outputs.items()
        }
        if not all(finite(features) for features in (student, *teacher_outputs.values())):
            # Memories and running statistics must not take in what is no number.
            return student.embedding.sum() * float("nan"), {}
        teacher_outputs = {name: for_all_views(output, views) for name, output in teacher_outputs.items()}
        whole = ViewBatch(
            distributed.whole_index(views.index, sizes, device), views.epoch, views.pixels, views.view_numbers
        )
        return ask(self.objective, student, teacher_outputs, whole)

    def look(self, views: ViewBatch) -> Features:
        """What the student says about all views, view-major; its tokens only where the objective reads them."""
        large, small = views.pixels[: views.teacher_views], views.pixels[views.teacher_views :]
        seen = self._look(torch.cat(large))
        if small:  # another size: a pass of their own, of which only the embedding is compared
            beside = self._look(torch.cat(small))
            average = {
                name: torch.cat([tap, beside.layers[name]]) for name, tap in seen.layers.items() if name == AVERAGE
            }
            seen = Features(torch.cat([seen.embedding, beside.embedding]), None, average)
        return seen

    def _look(self, pixels: Tensor) -> Features:
        seen = self.student(pixels, layers=self.objective.student_layers)
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


def finite(features: Features) -> bool:
    """Whether all that is compared are numbers."""
    parts = (features.embedding, features.tokens, *features.layers.values())
    return all(bool(part.isfinite().all()) for part in parts if part is not None)


def for_all_views(output: Features, views: ViewBatch) -> Features:
    """Small crops are asked to be where the teacher puts the image: at the mean of its words on the large views."""
    small = len(views.pixels) - views.teacher_views
    if not small:
        return output
    mean = output.embedding.unflatten(0, (views.teacher_views, -1)).mean(0)
    return Features(torch.cat([output.embedding, mean.repeat(small, 1)]))


def ask(
    objective: WeightedSum | MultiTeacher, student: Features, teacher_outputs: Mapping[str, Features], views: ViewBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective's total and terms; a single teacher has no name."""
    if isinstance(objective, MultiTeacher):
        return objective(student, teacher_outputs, views)
    (output,) = teacher_outputs.values()
    return objective(student, output, views)
