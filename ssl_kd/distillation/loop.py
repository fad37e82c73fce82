"""The loop of a run, from its first (or next) step to the saved students: batches, figures, saved states, the end.

`group` knows the students, `teachers` and `step` make a step, `trainer` opens and closes what the loop works on.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import TypedDict, cast

import torch
from lightning_fabric import Fabric

from ssl_kd.distillation.anchors import due, lay_anchors
from ssl_kd.distillation.auto import known
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.distilled import Distilled, DistilledGroup
from ssl_kd.distillation.figures import shown, side_by_side
from ssl_kd.distillation.group import Group
from ssl_kd.distillation.learner import Learner
from ssl_kd.distillation.model_card import group_card
from ssl_kd.distillation.monitor import few_held_out
from ssl_kd.distillation.optim import warmup_cosine
from ssl_kd.distillation.setup import Parts
from ssl_kd.distillation.target_cache import TargetStore
from ssl_kd.errors import UserError, one_line
from ssl_kd.runtime import distributed
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.loggers import Lightning, step_of
from ssl_kd.runtime.progress import Progress
from ssl_kd.runtime.run_dir import BEGIN_ANEW, LAST, RunDir, environment
from ssl_kd.runtime.signals import Interrupted, stop_signals
from ssl_kd.types import ViewBatch


class RunState(TypedDict, total=False):
    """What is saved of a run beside its students."""

    step: int
    seconds: float
    waited: float
    torch_rng: torch.Tensor
    cuda_rng: torch.Tensor
    unreadable: dict[str, str]


class Loop:
    """One run. saved: the state that it goes on from."""

    def __init__(
        self,
        fabric: Fabric,
        precision: str,
        config: DistillConfig,
        run: RunDir,
        parts: Parts,
        saved: dict[str, object] | None,
    ):
        self._saved = saved
        self.loggers: list[Lightning] = []  # those from Python; the run folder has those that are named
        self.fabric, self.precision = fabric, precision
        self.config, self.run_folder = config, run
        self.loader, self.teacher_group = parts.loader, parts.teacher_group
        self.share = (distributed.rank(), distributed.world_size())
        self.teacher_group.to(fabric.device)
        if config.replay:
            folder = config.targets or run.path / "targets"
            with fabric.rank_zero_first():
                self.teacher_group.open_stores(folder, precision, config.target_bits, fabric.autocast)
        self.objectives = [member.objective for member in parts.members.values()]
        self.teacher_group.stop_early(*self.objectives)
        if saved is None:  # a saved state holds them
            self._lay_anchors()
        self.steps_per_epoch = self.loader.batches_per_epoch()
        self.total = config.steps or self.steps_per_epoch * known(config.epochs)
        self.auto_length = "epochs" in parts.derived and not config.steps
        self.group = Group(
            fabric,
            precision,
            config,
            run,
            parts,
            self.steps_per_epoch,
            self.total,
            self._epochs,
            step_of(saved) if saved else 0,
        )
        self.quiet = config.quiet or not fabric.is_global_zero
        self.step = 0  # steps done
        self.seconds = 0.0  # of earlier sessions of this run and of this one
        self.waited = 0.0

    def _lay_anchors(self, epoch: int = 0) -> None:
        """Lay the prototypes that objectives wait for, or those that are due for new ones in a later epoch."""
        if epoch and not any(any(due(objective, epoch)) for objective in self.objectives):
            return
        with self.fabric.rank_zero_first():
            lay_anchors(
                self.objectives,
                self.teacher_group,
                self.loader,
                self.run_folder.path,
                self.fabric.autocast,
                self.precision,
                epoch,
            )

    @property
    def _but(self) -> str:
        """How the command that resumes differs from the one that was given: overwriting again would lose the work."""
        return " without --overwrite" if self.config.overwrite else ""

    def run(self) -> Distilled | DistilledGroup:
        """Train to the end and save the students."""
        self.fabric.barrier()  # nobody writes a state before all have read theirs
        self._resume()
        began = self.seconds
        self.group.train()
        with (
            Progress("distill", self.loader.looks(self.total), quiet=self.quiet, start=self._images_done()) as bar,
            stop_signals() as stop,
        ):
            if self.step < self.total:
                self._say_first(bar)
            saved_at = time.monotonic()
            for parts in self._batches():
                started = time.monotonic()
                records = self._train_step(parts)
                self.step += 1
                self.seconds += time.monotonic() - started
                bar.advance(
                    self._images_done() - bar.done,
                    **shown(records),
                    epoch=1 + (self.step - 1) // self.steps_per_epoch,
                )
                if any(records.values()) and self._is_logged(self.step):
                    self._log(records, bar.rate)
                self._measure(bar)
                if distributed.any_rank(bool(stop), self.fabric.device):
                    self._save()
                    why = stop[0] if stop else "a signal to another process"
                    raise Interrupted(
                        f"stopped by {why} after step {self.step} of {self.total}",
                        f"give the same command{self._but} to resume",
                    )
                if time.monotonic() - saved_at > self.config.save_minutes * 60 and self.step < self.total:
                    self._save()
                    saved_at = time.monotonic()
            rate = (self._images_done() - bar.start) / max(self.seconds - began, 1e-9)
        self.teacher_group.flush()
        return self._finish(rate)

    @property
    def _epochs(self) -> float:
        """Passes over the images, a whole number unless steps were asked for."""
        return round(self.total / self.steps_per_epoch, 3) if self.config.steps else known(self.config.epochs)

    def _images_done(self) -> int:
        return self.loader.looks(self.step)

    def _say_first(self, bar: Progress) -> None:
        """What a user should know before the first step: a length that nobody named, and a figure that will tell nothing."""
        if self.auto_length:
            bar.say(
                f"auto chose {known(self.config.epochs)} epochs: {bar.total:,} looks at {len(self.loader.images):,} images; "
                f"--epochs N makes the run shorter"
            )
        monitor = next(iter(self.group.learners.values())).monitor
        held = 0 if monitor is None else len(monitor.held.images)
        line = few_held_out(held, len(self.loader.images), "--health-images")
        if line and self.config.health_every:
            bar.say(line)

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.total

    def _batches(self) -> Iterator[list[ViewBatch]]:
        """The rest of this epoch and all later ones, each batch in its parts; counts the time spent waiting for images."""
        while self.step < self.total and not self.group.enough():
            epoch, start = divmod(self.step, self.steps_per_epoch)
            if epoch and not start:
                began = time.monotonic()
                self._lay_anchors(epoch)
                self.seconds += time.monotonic() - began
            source = self.loader.epoch(epoch, start, self.share)
            while True:
                began = time.monotonic()
                raw = list(itertools.islice(source, self.loader.parts))
                waited = time.monotonic() - began
                self.waited += waited
                self.seconds += waited
                if not raw:
                    break
                yield raw
                if self.step == self.total or self.group.enough():
                    return

    def _train_step(self, parts: list[ViewBatch]) -> dict[str, dict[str, float]]:
        """One step's figures by student; none of one that skipped it. Students that have ended are not there."""
        measure = self.config.measure_gradients and self._is_logged(self.step + 1)
        return self.group.take(parts, self._rate(), measure, self.step)

    def fill(self) -> dict[str, TargetStore]:
        """Run the teachers on every view that will be replayed, without training."""
        self._saved = None
        for store in self.teacher_group.stores.values():
            store.recheck()
        if self.teacher_group.is_complete():
            self.teacher_group.flush()
            return self.teacher_group.stores
        count = len(self.loader.images) * self.config.replay
        with Progress("targets", count, quiet=self.quiet) as bar, stop_signals() as stop:
            for epoch in range(self.config.replay):
                for raw in self.loader.epoch(epoch, share=self.share):
                    self.teacher_group.outputs(self.loader.finish_all(raw, self.fabric.device), self.fabric.autocast)
                    bar.advance(len(raw))
                    if stop:
                        self.teacher_group.flush()
                        raise Interrupted(f"stopped by {stop[0]}", f"the same command{self._but} resumes the targets")
        self.fabric.barrier()  # what goes to a store is what all processes have filled
        self.teacher_group.flush()
        return self.teacher_group.stores

    def _rate(self) -> float:
        """The share of each peak learning rate."""
        warmup = min(known(self.config.warmup) * self.steps_per_epoch, self.total / 2)
        return warmup_cosine(self.step, warmup, self.total)

    def _log(self, records: Mapping[str, dict[str, float]], rate: float) -> None:
        when = {"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 3)}
        timing = {"images_per_s": round(rate, 1), "wait_share": round(self.waited / max(self.seconds, 1e-9), 4)}
        for name, record in records.items():
            if record:
                self.group.learners[name].last = record
                self.group.learners[name].log(when | record | timing)
        self._send(when | side_by_side(records) | timing)

    def _send(self, record: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to every other log."""
        self.run_folder.log(record)
        for logger in self.loggers:
            logger.add(record)

    def _measure(self, bar: Progress) -> None:
        """Measure the students for which it is time on the held-out images."""
        when = {"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 3)}
        chance: float | None = None
        for name, learner in self.group.learners.items():
            if learner.monitor is None or learner.step != self.step or not learner.monitor.due(self.step):
                continue
            began = time.monotonic()
            whose = f"student {name}" if name else "the student"
            # A head leads to one teacher, and of a student that does not follow it nowhere.
            one = len(self.teacher_group.teachers) == 1 and learner.member.spec.weight
            found = learner.monitor.measure(
                self.step,
                learner.module.student,
                self.teacher_group.embed,
                learner.module.objective if one else None,
                whose,
            )
            learner.log(when | found.figures)
            self._send(when | side_by_side({name: found.figures}))
            bar.keep(
                **{f"{name}/neighbours" if name else "neighbours": f"{found.figures['health/neighbour_overlap']:.3f}"}
            )
            chance = found.figures["health/chance_neighbour_overlap"]
            if found.alarm and self.run_folder.writes:
                bar.warn(f"at step {self.step} {whose} seems collapsed: {found.alarm}")
            if found.better:
                learner.write_best(self._readable)
            if learner.monitor.enough and self.run_folder.writes:
                best = learner.monitor.course.best_step
                of = f" of {whose}" if name else ""
                bar.warn(f"at step {self.step} of {self.total}: patience{of} is out, step {best} was the best")
            self.seconds += time.monotonic() - began
        if chance is not None:
            bar.keep(chance=f"{chance:.3f}")  # last: a narrow terminal cuts it first

    @property
    def _readable(self) -> int:
        return len(self.loader.images) - len(self.loader.images.unreadable)

    def _save(self) -> None:
        state: dict[str, object] = {
            "step": self.step,
            "precision": self.precision,
            "seconds": self.seconds,
            "waited": self.waited,
        }
        state |= self.group.state()
        state |= {"torch_rng": torch.get_rng_state(), "unreadable": self.loader.images.unreadable.copy()}
        if self.fabric.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        self.run_folder.save(state)
        self.run_folder.forget_unreadable()  # the state knows them now

    def _resume(self) -> None:
        """Restore the saved state, if there is one; nothing of it stays in memory beside what it went into."""
        saved, self._saved = self._saved, None
        if saved is not None:
            self._load(saved)

    def _load(self, saved: dict[str, object]) -> None:
        try:
            self._restore(saved)
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.run_folder.path / LAST}: the saved state does not fit this run ({one_line(error, 120)}); "
                f"{BEGIN_ANEW}"
            ) from error

    def _restore(self, saved: dict[str, object]) -> None:
        kept = cast(RunState, saved)  # what does not fit raises where it goes
        self.loader.images.recall(kept.get("unreadable", {}))
        self.step, self.seconds, self.waited = kept["step"], kept["seconds"], kept["waited"]
        self.group.restore(saved, self.step)
        torch.set_rng_state(kept["torch_rng"])
        if "cuda_rng" in kept and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(kept["cuda_rng"])

    def _finish(self, rate: float) -> Distilled | DistilledGroup:
        self._save()
        if self.config.compile:
            self.group.are_compiled(False)
        done = {name: self._finished(learner, rate) for name, learner in self.group.learners.items()}
        folder = self.run_folder.path
        if "" in done:
            return done[""]
        if self.run_folder.writes:
            facts = {name: learner.health_facts() for name, learner in self.group.learners.items()}
            members = {name: learner.member for name, learner in self.group.learners.items()}
            atomic_text(folder / "README.md", group_card(self.config, members, self._facts(), facts))
        return DistilledGroup(done, folder, self.seconds, rate)

    def _finished(self, learner: Learner, rate: float) -> Distilled:
        student = learner.module.student.eval().to(memory_format=torch.contiguous_format)
        learner.write_student(learner.file, self._readable)
        learner.write_card(self._facts() | self._facts_of(learner), self.loader.images.unreadable)
        for name, head in learner.heads().items():  # no state is saved any more, which would have to hold them
            student.heads[name] = head.to(student.mean.device)
        return Distilled(
            student, learner.file, learner.path, self.seconds, rate, learner.last, learner.best, learner.overlap
        )

    def _facts(self) -> dict[str, str]:
        config = self.config
        return {
            "images": f"{len(self.loader.images):,} from {config.images}, no labels",
            "steps": (
                f"{self.step:,} of batch {config.batch_size * config.accumulate}, {self._epochs} epochs, "
                f"{self.seconds / 60:.1f} minutes"
            ),
            "precision": f"{self.precision} on {self.fabric.device} ({environment()['machine']})",
            "last step": "",
            "time spent waiting for images": f"{100 * self.waited / max(self.seconds, 1e-9):.1f} %",
        }

    def _facts_of(self, learner: Learner) -> dict[str, str]:
        steps = self._facts()["steps"].replace(f"{self.step:,}", f"{learner.step:,}", 1)
        return {
            "steps": steps + (f", {learner.skipped} skipped" if learner.skipped else ""),
            "last step": ", ".join(f"{k} {v:.4g}" for k, v in learner.last.items()),
        } | learner.health_facts()
