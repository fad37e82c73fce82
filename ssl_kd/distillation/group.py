"""The students of a run, one or several: who steps with whom, when they have had enough, and what is saved of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from lightning_fabric import Fabric

from ssl_kd.distillation.cohort import Cohort
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.learner import Learner
from ssl_kd.distillation.members import Member, Tie
from ssl_kd.distillation.module import DistillationModule
from ssl_kd.distillation.monitor import HeldOut, Monitor
from ssl_kd.distillation.setup import Parts
from ssl_kd.distillation.step import BETWEEN, Bad, CohortStepper, Stepper
from ssl_kd.runtime import distributed
from ssl_kd.runtime.run_dir import RunDir
from ssl_kd.types import ViewBatch


class TieState(TypedDict):
    """What is saved of the terms between students."""

    terms: dict[str, torch.Tensor]
    optimizer: dict[str, object] | None
    random: Mapping[str, torch.Tensor | None]


class Group:
    """All students with what they need to step. A single one has the name ""."""

    def __init__(
        self,
        fabric: Fabric,
        precision: str,
        config: DistillConfig,
        run: RunDir,
        parts: Parts,
        steps_per_epoch: int,
        total: int,
        epochs: float,
        done: int,
    ):
        """total, epochs: steps and passes that the run asks for; done: steps in the saved state."""
        self.fabric, self.config, self.run_folder = fabric, config, run
        self.teacher_group = parts.teacher_group
        # Shared: one pass of the teacher over the images that are held out.
        held = HeldOut(parts.held) if parts.held is not None else None
        every = round(config.health_every * steps_per_epoch)
        self.learners: dict[str, Learner] = {}
        for name, member in parts.members.items():
            monitor = None
            if held is not None:
                monitor = Monitor(held, parts.contract, every, total, config.patience, config.threads)
            learner = self.learners[name] = self._learner(member, monitor)
            learner.epochs = epochs
            learner.forget_after(done)
        if config.compile:
            self.are_compiled(True)
        self.tie = parts.tie
        half = precision == "bf16-mixed"
        cohorts = [CohortStepper(fabric, bare, self._configs(bare), config, half) for bare in self._cohorts()]
        for cohort in cohorts:
            for name, optimizer in cohort.optimizers.items():
                if name in self.learners:
                    self.learners[name].optimizer = optimizer
        self.stepper = Stepper(fabric, config, parts.loader, parts.teacher_group, cohorts, parts.mix)

    def _learner(self, member: Member, monitor: Monitor | None) -> Learner:
        reads = {name: (t.tokens, t.layers) for name, t in member.teachers.items()} if member.name else None
        module = DistillationModule(member.student, member.objective, reads, member.spec.weight)
        module.to(memory_format=torch.channels_last)
        member.randomness.to(self.fabric.device)
        return Learner(member, module, self.run_folder.path, monitor, self.run_folder.writes)

    def _cohorts(self) -> list[Cohort]:
        """The students that have to step together: each by itself where no term is between them."""
        modules = {name: learner.module for name, learner in self.learners.items()}
        streams = {name: learner.member.randomness for name, learner in self.learners.items()}
        if self.tie is None:
            return [Cohort({name: module}, {name: streams[name]}) for name, module in modules.items()]
        self.tie.randomness.to(self.fabric.device)
        return [Cohort(modules, streams, self.tie.terms, self.tie.randomness)]

    def _configs(self, cohort: Cohort) -> dict[str, DistillConfig]:
        return {name: self.learners[name].member.config for name in cohort.names}

    @property
    def single(self) -> Learner | None:
        """The only student of a run that has one."""
        return self.learners.get("")

    def train(self) -> None:
        """Training mode."""
        for cohort in self.stepper.cohorts:
            cohort.module.train()

    def take(self, parts: Sequence[ViewBatch], rate: float, measure: bool, step: int) -> dict[str, dict[str, float]]:
        """The step after `step` of them, its figures by student; none of one that skipped it. Those that have ended are not there."""
        records: dict[str, dict[str, float]] = {}
        for name, found in self.stepper.take(parts, rate, measure).items():
            learner = self.learners[name]
            if isinstance(found, Bad):
                line = {"step": step + 1} | learner.bad_step(found, step)
                self.run_folder.note(line if not name else {"step": step + 1, "student": name} | line)
                learner.note(line)
            learner.step = step + 1
            records[name] = {} if isinstance(found, Bad) else found
        return records

    def enough(self) -> bool:
        """Whether no held-out images have come nearer to the teacher's outputs for so long that the run may end.

        Students that step together end together; of several that do not, each ends for good when its patience is out.
        """
        if not self.config.patience or not any(learner.monitor for learner in self.learners.values()):
            return False
        for cohort in self.stepper.cohorts:
            mine = [self.learners[name] for name in cohort.bare.names]
            out = all(learner.monitor.enough for learner in mine if learner.monitor)
            cohort.ended = (not self.single and cohort.ended) or distributed.any_rank(out, self.fabric.device)
            for learner in mine:
                learner.ended = cohort.ended
        return all(cohort.ended for cohort in self.stepper.cohorts)

    def are_compiled(self, compiled: bool) -> None:
        """Compile all networks in place (their parameters keep their names), or undo it."""
        students = (learner.module.student for learner in self.learners.values())
        for encoder in (*students, *(t.encoder for t in self.teacher_group.teachers.values())):
            if compiled:
                encoder.network.compile()
            else:
                encoder.network._compiled_call_impl = None

    def state(self) -> dict[str, object]:
        """What a run saves of its students: of a single one beside the run's own keys, of several under `students`."""
        state: dict[str, object] = {}
        if self.single:
            kept = self.single.state()
            state |= {name: kept[name] for name in ("skipped", "last", "pair", "optimizer", "health")}  # type: ignore[literal-required]
        else:
            state["students"] = {name: learner.state() for name, learner in self.learners.items()}
        if self.tie is not None:
            state["between"] = self._tie_state(self.tie)
        return state

    def restore(self, saved: Mapping[str, Any], step: int) -> None:
        """The inverse of `state`; what does not fit raises where it goes."""
        for name, learner in self.learners.items():
            learner.restore(saved["students"][name] if name else saved, step)
        if self.tie is not None:
            self._restore_tie(self.tie, saved["between"])
        for cohort in self.stepper.cohorts:
            cohort.ended = all(self.learners[name].ended for name in cohort.bare.names)

    def _tie_state(self, tie: Tie) -> TieState:
        optimizer = self.stepper.cohorts[0].optimizers.get(BETWEEN)
        return {
            "terms": tie.terms.state_dict(),
            "optimizer": optimizer.state_dict() if optimizer else None,
            "random": tie.randomness.saved(),
        }

    def _restore_tie(self, tie: Tie, saved: TieState) -> None:
        tie.terms.load_state_dict(saved["terms"])
        if optimizer := self.stepper.cohorts[0].optimizers.get(BETWEEN):
            if (moments := saved["optimizer"]) is None:
                raise ValueError("it holds no optimiser of the terms between students")
            optimizer.load_state_dict(moments)
        tie.randomness.restore(saved["random"])
