"""The student's side of a step: what is trained, what is asked of it, and how the optimiser moves it."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_kd.data.augment import Views
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.models.encoder import Encoder, Features
from ssl_kd.objectives import WeightedSum
from ssl_kd.objectives.multi_teacher import SeveralTeachers
from ssl_kd.runtime import distributed

AVERAGE = "ema"  # the layer in which objectives find what the student's moving average said


class Batch:
    """What one step looks at. A plain class: Fabric would take a dataclass apart to cast its tensors."""

    def __init__(self, views: Views, said: Mapping[str, Features]):
        self.views, self.said = views, said  # said: by each teacher, on the same rows


class Pair(nn.Module):
    """Student and objective: all that is trained; and the student's moving average where the objective asks for one.

    The average is a second network that sees the same views, in train mode as MoCo's key encoder: its weights follow
    the student's, its batch norms count for themselves.
    """

    def __init__(self, student: Encoder, objective: WeightedSum | SeveralTeachers):
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
        said = {name: distributed.whole_batch(word, views.heard, sizes) for name, word in batch.said.items()}
        if not all(finite(features) for features in (student, *said.values())):
            # Memories and running statistics must not take in what is no number.
            return student.embedding.sum() * float("nan"), {}
        said = {name: for_all_views(word, views) for name, word in said.items()}
        whole = Views(distributed.whole_index(views.index, sizes, device), views.epoch, views.pixels)
        return ask(self.objective, student, said, whole)

    def look(self, views: Views) -> Features:
        """What the student says about all views, view-major; its tokens only where the objective reads them."""
        large, small = views.pixels[: views.heard], views.pixels[views.heard :]
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


def for_all_views(word: Features, views: Views) -> Features:
    """Small crops are asked to be where the teacher puts the image: at the mean of its words on the large views."""
    small = len(views.pixels) - views.heard
    if not small:
        return word
    mean = word.embedding.unflatten(0, (views.heard, -1)).mean(0)
    return Features(torch.cat([word.embedding, mean.repeat(small, 1)]))


def ask(
    objective: WeightedSum | SeveralTeachers, student: Features, said: Mapping[str, Features], views: Views
) -> tuple[Tensor, dict[str, Tensor]]:
    """The objective's total and terms; a single teacher has no name."""
    if isinstance(objective, SeveralTeachers):
        return objective(student, said, views)
    (word,) = said.values()
    return objective(student, word, views)


def make_optimizer(pair: Pair, config: DistillConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over student and heads; no weight decay on vectors (norms, biases). That exception is our choice."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in pair.parameters():
        if parameter.requires_grad:
            groups[parameter.ndim > 1].append(parameter)
    lists = [
        {"params": group, "weight_decay": config.weight_decay if decays else 0.0}
        for decays, group in groups.items()
        if group
    ]
    if config.optimizer == "sgd":
        # Not fused: that one fails where a head's first gradient comes later than others' (a term with `start`).
        return torch.optim.SGD(lists, lr=config.lr, momentum=0.9)
    return torch.optim.AdamW(lists, lr=config.lr, fused=True)


def warmup_cosine(step: int, warmup: float, total: int) -> float:
    """Factor in (0, 1]: linear up over `warmup` steps, then half a cosine down to 0 at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))
