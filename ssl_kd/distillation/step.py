"""One step of training: run the teachers once, run the students, move their weights; or find a number not finite and do not.

A step's batch may be taken in parts, one after another (`accumulate`): their losses are weighed by their images, so that a
mean over samples has the gradient of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from ssl_kd.data.loader import ViewLoader
from ssl_kd.data.mixup import mixed
from ssl_kd.distillation.auto import known
from ssl_kd.distillation.cohort import Answer, Cohort
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.module import Batch
from ssl_kd.distillation.optim import make_optimizer
from ssl_kd.distillation.teachers import TeacherGroup
from ssl_kd.runtime import distributed
from ssl_kd.runtime.devices import sound_gradients
from ssl_kd.types import ViewBatch

BETWEEN = "of terms between students"  # stands for their heads where students have their names
LARGE = 2**20  # buffers with more numbers are memories, which never take in what is not finite


@dataclass(frozen=True)
class Bad:
    """A step that was not taken: what was not finite, the terms, and the images."""

    what: str
    value: float
    terms: dict[str, float]
    images: list[str]


class Stepper:
    """Teachers and students at work on one device."""

    def __init__(
        self,
        fabric: Fabric,
        config: DistillConfig,
        loader: ViewLoader,
        teacher_group: TeacherGroup,
        cohorts: Sequence[CohortStepper],
        mix: str,
    ):
        self.fabric, self.config, self.loader, self.teacher_group = fabric, config, loader, teacher_group
        self.cohorts, self.mix = cohorts, mix

    def take(self, parts: Sequence[ViewBatch], rate: float, measure: bool = False) -> dict[str, dict[str, float] | Bad]:
        """Train on the parts of one batch at that share of each learning rate; by student, figures or what was not finite.

        measure: have the gradient norm of each term among the figures. Nothing that was learned so far is lost in a
        bad step: weights, statistics and memories are what they were before. Students that have ended take no part.
        """
        going = [cohort for cohort in self.cohorts if not cohort.ended]
        for cohort in going:
            cohort.begin(rate, measure)
        for number, (raw, share) in enumerate(zip(parts, self._shares(parts), strict=True), start=1):
            batch = self._batch(raw)
            for cohort in going:
                cohort.learn(batch, share, last=number == len(parts))
            if all(cohort.bad for cohort in going):
                break
        images = [self.loader.images.ids[int(i)] for part in parts for i in part.index]
        return {name: figures for cohort in going for name, figures in cohort.finish(images).items()}

    def _batch(self, raw: ViewBatch) -> Batch:
        """The views on the device, and what the teachers say of them."""
        views = mixed(
            self.loader.finish_all(raw, self.fabric.device), self.mix, self.config.mix_probability, self.config.seed
        )
        autocast = self.fabric.autocast
        look = partial(self.teacher_group.look, autocast=autocast)
        return Batch(views, self.teacher_group.outputs(views, autocast), look)

    def _shares(self, parts: Sequence[ViewBatch]) -> list[float]:
        """Which share of the whole batch's images each part has."""
        if len(parts) == 1:
            return [1.0]
        sizes = [sum(distributed.counts(len(part), self.fabric.device)) for part in parts]
        return [size / sum(sizes) for size in sizes]


class CohortStepper:
    """Students that step together, each with its own optimiser and clipping. configs: theirs, by name.

    The heads of terms between them have an optimiser as well, by the settings of `config`. half: Muon's products in bfloat16.
    """

    def __init__(
        self,
        fabric: Fabric,
        bare: Cohort,
        configs: Mapping[str, DistillConfig],
        config: DistillConfig,
        half: bool = False,
    ):
        self.fabric, self.bare, self.configs = fabric, bare, {**configs, BETWEEN: config}
        self.trained: dict[str, nn.Module] = dict(bare.students)
        if bare.between is not None and any(p.requires_grad for p in bare.between.parameters()):
            self.trained[BETWEEN] = bare.between
        own = [make_optimizer(module, self.configs[name], half) for name, module in self.trained.items()]
        self.module, *optimizers = fabric.setup(bare, *own)
        self.optimizers: dict[str, torch.optim.Optimizer] = dict(zip(self.trained, optimizers, strict=True))
        self.ended = False  # no more steps: patience is out
        self.bad: tuple[str, float, dict[str, float]] | None = None
        self.skips = max(config.skip_nonfinite for config in self.configs.values())

    def begin(self, rate: float, measure: bool) -> None:
        """Make ready for a step."""
        self.rates = {name: known(config.lr) * rate for name, config in self.configs.items()}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = self.rates[name]
        self.bare.measure_gradients(measure)
        self.bad = None
        self.before = self._statistics() if self.skips else {}
        self.figures: dict[str, dict[str, float]] = {name: {} for name in self.bare.names}

    def learn(self, batch: Batch, share: float, last: bool) -> None:
        """Add the gradients of one part; nothing once a part was bad."""
        if self.bad:
            return
        with self.fabric.no_backward_sync(self.module, enabled=not last):
            answers: dict[str, Answer] = self.module(batch)
            values = {name: {term: float(v) for term, v in terms.items()} for name, (_, terms) in answers.items()}
            for name, (total, _) in answers.items():
                if not math.isfinite(loss := total.item()):
                    self.bad = ("loss", loss, values[name])
                    return
                for figure, value in ({"loss": loss} | values[name]).items():
                    self.figures[name][figure] = self.figures[name].get(figure, 0.0) + share * value
            first, *others = [total for total, _ in answers.values()]
            total = sum(others, first)
            with sound_gradients(self.module):
                self.fabric.backward(total if share == 1 else share * total)

    def finish(self, images: list[str]) -> dict[str, dict[str, float] | Bad]:
        """Move the weights; or say what was not finite, and leave everything as it was before the step."""
        norms = {} if self.bad else {name: self._clipped(name) for name in self.trained}
        for name, norm in norms.items():
            if not self.bad and not math.isfinite(norm):
                terms = {figure: value for figure, value in self.figures.get(name, {}).items() if figure != "loss"}
                self.bad = ("gradient norm", norm, terms)
        if self.bad:
            self._leave()
            return dict.fromkeys(self.bare.names, Bad(*self.bad, images))
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.bare.follow()
        return {
            name: {"loss": found.pop("loss"), "lr": self.rates[name], "gradient_norm": norms[name]} | found
            for name, found in self.figures.items()
        }

    def _clipped(self, name: str) -> float:
        clip = self.configs[name].clip or math.inf
        return float(torch.nn.utils.clip_grad_norm_(self.trained[name].parameters(), clip))

    def _statistics(self) -> dict[str, Tensor]:
        """Copies of running statistics, which a forward pass changes."""
        return {name: buffer.clone() for name, buffer in self.bare.named_buffers() if buffer.numel() <= LARGE}

    def _leave(self) -> None:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        buffers = dict(self.bare.named_buffers())
        for name, was in self.before.items():
            buffers[name].copy_(was)
