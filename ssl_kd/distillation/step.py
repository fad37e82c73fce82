"""One step of training: run the teachers, run the student, move the weights; or find a number not finite and do not.

A step's batch may be taken in parts, one after another (`accumulate`): their losses are weighed by their images, so that a
mean over samples has the gradient of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning_fabric import Fabric
from torch import Tensor

from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.mixup import mixed
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.module import Batch, DistillationModule
from ssl_kd.distillation.optim import make_optimizer
from ssl_kd.distillation.teachers import TeacherGroup
from ssl_kd.runtime import distributed
from ssl_kd.types import ViewBatch

LARGE = 2**20  # buffers with more numbers are memories, which never take in what is not finite


@dataclass(frozen=True)
class Bad:
    """A step that was not taken: what was not finite, the terms, and the images."""

    what: str
    value: float
    terms: dict[str, float]
    images: list[str]


class Stepper:
    """Student, heads and optimiser at work on one device."""

    def __init__(
        self,
        fabric: Fabric,
        config: DistillConfig,
        loader: ViewLoader,
        teacher_group: TeacherGroup,
        bare: DistillationModule,
        mix: str,
    ):
        self.fabric, self.config, self.loader, self.teacher_group, self.bare = (
            fabric,
            config,
            loader,
            teacher_group,
            bare,
        )
        self.mix = mix
        self.module, self.optimizer = fabric.setup(bare, make_optimizer(bare, config))

    def take(self, parts: Sequence[ViewBatch], rate: float, measure: bool = False) -> dict[str, float] | Bad:
        """Train on the parts of one batch at that learning rate; its figures, or what was not finite.

        measure: have the gradient norm of each term among the figures. Nothing that was learned so far is lost in a
        bad step: weights, statistics and memories are what they were before.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.bare.objective.measure_gradients = measure
        before = self._statistics() if self.config.skip_nonfinite else {}
        figures: dict[str, float] = {}
        shares = self._shares(parts)
        for number, (raw, share) in enumerate(zip(parts, shares, strict=True), start=1):
            with self.fabric.no_backward_sync(self.module, enabled=number < len(parts)):
                total, terms = self._ask(raw)
                values = {name: float(value) for name, value in terms.items()}
                if not math.isfinite(loss := total.item()):
                    return self._leave("loss", loss, values, parts, before)
                self.fabric.backward(total if share == 1 else share * total)
            for name, value in ({"loss": loss} | values).items():
                figures[name] = figures.get(name, 0.0) + share * value
        norm = float(torch.nn.utils.clip_grad_norm_(self.bare.parameters(), self.config.clip or math.inf))
        if not math.isfinite(norm):
            terms_only = {name: value for name, value in figures.items() if name != "loss"}
            return self._leave("gradient norm", norm, terms_only, parts, before)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.bare.follow()
        return {"loss": figures.pop("loss"), "lr": rate, "gradient_norm": norm} | figures

    def _ask(self, raw: ViewBatch) -> tuple[Tensor, dict[str, Tensor]]:
        views = mixed(
            self.loader.finish_all(raw, self.fabric.device), self.mix, self.config.mix_probability, self.config.seed
        )
        answer: tuple[Tensor, dict[str, Tensor]] = self.module(
            Batch(views, self.teacher_group.outputs(views, self.fabric.autocast))
        )
        return answer

    def _shares(self, parts: Sequence[ViewBatch]) -> list[float]:
        """Which share of the whole batch's images each part has."""
        if len(parts) == 1:
            return [1.0]
        sizes = [sum(distributed.counts(len(part), self.fabric.device)) for part in parts]
        return [size / sum(sizes) for size in sizes]

    def _statistics(self) -> dict[str, Tensor]:
        """Copies of running statistics, which a forward pass changes."""
        return {name: buffer.clone() for name, buffer in self.bare.named_buffers() if buffer.numel() <= LARGE}

    def _leave(
        self, what: str, value: float, terms: dict[str, float], parts: Sequence[ViewBatch], before: dict[str, Tensor]
    ) -> Bad:
        self.optimizer.zero_grad(set_to_none=True)
        buffers = dict(self.bare.named_buffers())
        for name, was in before.items():
            buffers[name].copy_(was)
        return Bad(what, value, terms, [self.loader.images.ids[int(i)] for part in parts for i in part.index])
