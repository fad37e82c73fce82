"""The loop: frozen teachers and a student get the same views, the objective compares their outputs, Fabric steps.

    done = ssl_kd.distill(teacher="swav_800ep_pretrain.pth.tar", student="resnet18", images="photos/", out="runs/x")

The same call resumes an interrupted run: shuffling and views are functions of (seed, epoch, index), and the saved
state holds the student, the heads, the memory banks, the optimiser, the position and the random state.

`setup` makes the parts, `teachers` is the teachers' side of a step, `module` the student's.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict, cast, overload

import torch
from lightning_fabric import Fabric
from torch import nn

from ssl_kd.data.sources.base import ImageSource
from ssl_kd.distillation.anchors import due, lay_anchors
from ssl_kd.distillation.arguments import NOTHING, Objects, merge
from ssl_kd.distillation.auto import known
from ssl_kd.distillation.cohort import Cohort
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.learner import Learner
from ssl_kd.distillation.members import Member, Tie
from ssl_kd.distillation.model_card import group_card
from ssl_kd.distillation.module import DistillationModule
from ssl_kd.distillation.monitor import HeldOut, Monitor
from ssl_kd.distillation.optim import warmup_cosine
from ssl_kd.distillation.setup import Parts, prepare
from ssl_kd.distillation.step import BETWEEN, Bad, CohortStepper, Stepper
from ssl_kd.distillation.target_cache import TARGETS, TargetStore
from ssl_kd.errors import ImagesError, UserError, one_line
from ssl_kd.models.encoder import Encoder
from ssl_kd.runtime import distributed
from ssl_kd.runtime.devices import make_fabric
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.loggers import Lightning, step_of
from ssl_kd.runtime.ownership import require_ours
from ssl_kd.runtime.progress import Progress
from ssl_kd.runtime.run_dir import BEGIN_ANEW, LAST, RUN, RUN_OF_STUDENTS, RunDir, environment
from ssl_kd.runtime.signals import Interrupted, stop_signals
from ssl_kd.runtime.stores import in_store
from ssl_kd.types import ViewBatch


@dataclass(frozen=True)
class Distilled:
    """What a finished run leaves: the student (eval mode), where it lies, and how it went."""

    student: Encoder
    path: Path
    out: Path
    seconds: float
    images_per_second: float
    last: dict[str, float]
    best: Path | None = None  # the student with most neighbours in common with the teacher, if images were held out


@dataclass(frozen=True)
class DistilledGroup:
    """What a finished run with several students leaves: each of them by name, as a run of its own would, and the folder."""

    students: Mapping[str, Distilled]
    out: Path
    seconds: float
    images_per_second: float

    def __getitem__(self, name: str) -> Distilled:
        return self.students[name]


@overload
def distill(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: None = None,
    images: object = None,
    config: DistillConfig | None = None,
    *,
    students: Mapping[str, object],
    **settings: object,
) -> DistilledGroup: ...


@overload
def distill(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: object = None,
    config: DistillConfig | None = None,
    **settings: Any,
) -> Distilled: ...


def distill(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: object = None,
    config: DistillConfig | None = None,
    **settings: object,
) -> Distilled | DistilledGroup:
    """Distil `teacher` into `student` on unlabelled `images`; returns the trained student.

    teacher: file, name, Encoder, or any module from normalised pixels to (B, D), a map or Features (several: the setting
    `teachers`). student: architecture name, Encoder or such a module; the last two are trained in place, and a module's
    file is its plain state dict. images: whatever `open_images` takes. Settings are the fields of DistillConfig, and three
    of them take objects as well: objective (a module of the `Criterion` protocol, see `AnyCriterion`; its parameters are
    trained and saved with the run), views (`Recipe`s, or functions from a picture to a view, which cannot be replayed) and
    log (Lightning loggers, beside names in a list). config.yaml keeps their names; the same call with the same objects
    resumes. Raises UserError for bad input before anything is written.

    students: several instead of one, {name: architecture, Encoder, module or {arch, objective, lr, ...}}; they share each
    pass of the teacher, and a DistilledGroup is returned.
    """
    merged, objects = merge(config, teacher, student, images, settings)
    with _trainer(merged, teacher, student, images, objects) as loop:
        return loop.run()


def fill_targets(
    teacher: str | Path | Mapping[str, object] | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: object = None,
    config: DistillConfig | None = None,
    **settings: object,
) -> dict[str, TargetStore]:
    """Store the teachers' outputs on all replayed views ahead of `distill` with the same settings, in the same run folder.

    Returns the store of each teacher; a single one has the name "".
    """
    merged, objects = merge(config, teacher, student, images, settings)
    if not merged.replay:
        raise UserError("replay: expected at least 1 view of each image to store targets for, got 0")
    with _trainer(merged, teacher, student, images, objects) as loop:
        return loop.fill()


@contextmanager
def _trainer(
    config: DistillConfig, teacher: object, student: object, images: object, objects: Objects = NOTHING
) -> Iterator[_Trainer]:
    """Everything that a run needs, tried out before its folder is touched; the folder is locked while this is open."""
    parts = prepare(config, teacher, student, images, objects)
    config = parts.config
    if config.targets and not in_store(config.targets):
        require_ours(Path(config.targets), TARGETS)
    run = RunDir(
        config.out,
        parts.settings,
        config.overwrite,
        writes=os.environ.get("RANK", "0") == "0",
        defaults=asdict(DistillConfig()),
        kind=RUN if "" in parts.members else RUN_OF_STUDENTS,
    )
    loggers = [Lightning(logger) for logger in objects.loggers if run.writes]
    try:
        saved = None if config.overwrite else run.restore()
        # An interrupted run is resumed in the precision it began with, whatever a new trial would choose.
        fabric, precision = make_fabric(
            config.accelerator, str(saved.get("precision", config.precision)) if saved else config.precision
        )
        loop = _Trainer(fabric, precision, config, run, parts, saved)
        loop.loggers = loggers
        del saved  # the loop lets go of it once it is restored
        try:
            _try_again(run.kept_unreadable(), parts.loader.images, parts.held)
            yield loop
        except ImagesError:
            run.keep_unreadable(run.kept_unreadable() | parts.loader.images.unreadable)
            raise
    finally:
        for logger in loggers:
            logger.close()
        run.close()


def _try_again(unreadable: Mapping[str, str], *sources: ImageSource | None) -> None:
    """Read the images at which an earlier process stopped; ImagesError where there are still too many of them."""
    for source in sources if unreadable else ():
        for i, name in enumerate(source.ids if source else ()):
            if name in unreadable and source:
                source.read(i)


class TieState(TypedDict):
    """What is saved of the terms between students."""

    terms: dict[str, torch.Tensor]
    optimizer: dict[str, object] | None
    random: Mapping[str, torch.Tensor | None]


class RunState(TypedDict, total=False):
    """What is saved of a run beside its single student."""

    step: int
    seconds: float
    waited: float
    students: dict[str, dict[str, object]]
    between: TieState
    torch_rng: torch.Tensor
    cuda_rng: torch.Tensor
    unreadable: dict[str, str]


class _Trainer:
    """One run from its first (or next) step to the saved student."""

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
        self.held = HeldOut(parts.held) if parts.held is not None else None  # shared: one pass of the teacher over them
        self.learners = {name: self._learner(member, parts) for name, member in parts.members.items()}
        if config.compile:
            self._networks_are_compiled(True)
        self.tie = parts.tie
        half = precision == "bf16-mixed"
        cohorts = [CohortStepper(fabric, bare, self._configs(bare), config, half) for bare in self._cohorts()]
        for cohort in cohorts:
            for name, optimizer in cohort.optimizers.items():
                if name in self.learners:
                    self.learners[name].optimizer = optimizer
        self.stepper = Stepper(fabric, config, self.loader, self.teacher_group, cohorts, parts.mix)
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

    def _learner(self, member: Member, parts: Parts) -> Learner:
        config, several = self.config, bool(member.name)
        reads = {name: (t.tokens, t.layers) for name, t in member.teachers.items()} if several else None
        module = DistillationModule(member.student, member.objective, reads, member.spec.weight)
        module.to(memory_format=torch.channels_last)
        member.randomness.to(self.fabric.device)
        monitor = None
        if self.held is not None:
            every = round(config.health_every * self.steps_per_epoch)
            monitor = Monitor(self.held, parts.contract, every, self.total, config.patience, config.threads)
        learner = Learner(member, module, self.run_folder.path, monitor, self.run_folder.writes)
        learner.epochs = self._epochs
        learner.forget_after(step_of(self._saved) if self._saved else 0)
        return learner

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
    def _but(self) -> str:
        """How the command that resumes differs from the one that was given: overwriting again would lose the work."""
        return " without overwrite" if self.config.overwrite else ""

    def run(self) -> Distilled | DistilledGroup:
        """Train to the end and save the students."""
        self.fabric.barrier()  # nobody writes a state before all have read theirs
        self._resume()
        began = self.seconds
        count = round(len(self.loader.images) * self.total / self.steps_per_epoch)
        for cohort in self.stepper.cohorts:
            cohort.module.train()
        with (
            Progress("distill", count, quiet=self.quiet, start=self._images_done()) as bar,
            stop_signals() as stop,
        ):
            saved_at = time.monotonic()
            for parts in self._batches():
                started = time.monotonic()
                records = self._train_step(parts)
                self.step += 1
                self.seconds += time.monotonic() - started
                bar.advance(
                    sum(map(len, parts)) * distributed.world_size(),
                    **_shown(records),
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
        return round(len(self.loader.images) * self.step / self.steps_per_epoch)

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.total

    def _batches(self) -> Iterator[list[ViewBatch]]:
        """The rest of this epoch and all later ones, each batch in its parts; counts the time spent waiting for images."""
        while self.step < self.total and not self._enough():
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
                if self.step == self.total or self._enough():
                    return

    def _enough(self) -> bool:
        """Whether no held-out images have come nearer to the teacher's outputs for so long that the run may end.

        Students that step together end together; of several that do not, each ends for good when its patience is out.
        """
        if not self.config.patience or not any(learner.monitor for learner in self.learners.values()):
            return False
        several = "" not in self.learners
        for cohort in self.stepper.cohorts:
            mine = [self.learners[name] for name in cohort.bare.names]
            out = all(learner.monitor.enough for learner in mine if learner.monitor)
            cohort.ended = (several and cohort.ended) or distributed.any_rank(out, self.fabric.device)
            for learner in mine:
                learner.ended = cohort.ended
        return all(cohort.ended for cohort in self.stepper.cohorts)

    def _train_step(self, parts: list[ViewBatch]) -> dict[str, dict[str, float]]:
        """One step's figures by student; none of one that skipped it. Students that have ended are not there."""
        measure = self.config.measure_gradients and self._is_logged(self.step + 1)
        taken = self.stepper.take(parts, self._rate(), measure)
        records: dict[str, dict[str, float]] = {}
        for name, found in taken.items():
            learner = self.learners[name]
            if isinstance(found, Bad):
                line = {"step": self.step + 1} | learner.bad_step(found, self.step)
                self.run_folder.note(line if not name else {"step": self.step + 1, "student": name} | line)
                learner.note(line)
            learner.step = self.step + 1
            records[name] = {} if isinstance(found, Bad) else found
        return records

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
                self.learners[name].last = record
                self.learners[name].log(when | record | timing)
        self._send(when | _side_by_side(records) | timing)

    def _send(self, record: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to every other log."""
        self.run_folder.log(record)
        for logger in self.loggers:
            logger.add(record)

    def _measure(self, bar: Progress) -> None:
        """Measure the students for which it is time on the held-out images."""
        when = {"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 3)}
        for name, learner in self.learners.items():
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
            self._send(when | _side_by_side({name: found.figures}))
            bar.keep(
                **{f"{name}/neighbours" if name else "neighbours": f"{found.figures['health/neighbour_overlap']:.3f}"}
            )
            if found.alarm and self.run_folder.writes:
                bar.warn(f"at step {self.step} {whose} seems collapsed: {found.alarm}")
            if found.better:
                learner.write_best(self._readable)
            if learner.monitor.enough and self.run_folder.writes:
                best = learner.monitor.course.best_step
                of = f" of {whose}" if name else ""
                bar.warn(f"at step {self.step} of {self.total}: patience{of} is out, step {best} was the best")
            self.seconds += time.monotonic() - began

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

    @property
    def _readable(self) -> int:
        return len(self.loader.images) - len(self.loader.images.unreadable)

    def _save(self) -> None:
        single = self.learners.get("")
        state: dict[str, object] = {
            "step": self.step,
            "precision": self.precision,
            "seconds": self.seconds,
            "waited": self.waited,
        }
        if single:
            kept = single.state()
            state |= {"skipped": kept["skipped"], "last": kept["last"]}
            state |= {"pair": kept["pair"], "optimizer": kept["optimizer"]}
        else:
            state["students"] = {name: learner.state() for name, learner in self.learners.items()}
        if self.tie is not None:
            state["between"] = self._tie_state(self.tie)
        state |= {"torch_rng": torch.get_rng_state(), "unreadable": self.loader.images.unreadable.copy()}
        if single:
            state["health"] = kept["health"]
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
        for name, learner in self.learners.items():
            learner.restore(kept["students"][name] if name else saved, self.step)
        if self.tie is not None:
            self._restore_tie(self.tie, kept["between"])
        for cohort in self.stepper.cohorts:
            cohort.ended = all(self.learners[name].ended for name in cohort.bare.names)
        torch.set_rng_state(kept["torch_rng"])
        if "cuda_rng" in kept and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(kept["cuda_rng"])

    def _networks_are_compiled(self, compiled: bool) -> None:
        """Compile all networks in place (their parameters keep their names), or undo it."""
        students = (learner.module.student for learner in self.learners.values())
        for encoder in (*students, *(t.encoder for t in self.teacher_group.teachers.values())):
            if compiled:
                encoder.network.compile()
            else:
                encoder.network._compiled_call_impl = None

    def _finish(self, rate: float) -> Distilled | DistilledGroup:
        self._save()
        if self.config.compile:
            self._networks_are_compiled(False)
        done = {name: self._finished(learner, rate) for name, learner in self.learners.items()}
        folder = self.run_folder.path
        if "" in done:
            return done[""]
        if self.run_folder.writes:
            facts = {name: learner.health_facts() for name, learner in self.learners.items()}
            members = {name: learner.member for name, learner in self.learners.items()}
            atomic_text(folder / "README.md", group_card(self.config, members, self._facts(), facts))
        return DistilledGroup(done, folder, self.seconds, rate)

    def _finished(self, learner: Learner, rate: float) -> Distilled:
        student = learner.module.student.eval().to(memory_format=torch.contiguous_format)
        learner.write_student(learner.file, self._readable)
        learner.write_card(self._facts() | self._facts_of(learner), self.loader.images.unreadable)
        for name, head in learner.heads().items():  # no state is saved any more, which would have to hold them
            student.heads[name] = head.to(student.mean.device)
        return Distilled(student, learner.file, learner.path, self.seconds, rate, learner.last, learner.best)

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


def _is_term(name: str) -> bool:
    """Whether this figure of a step is the value of one of the objective's terms."""
    return name not in ("loss", "lr", "gradient_norm") and not name.endswith("_gradient")


def _shown(records: Mapping[str, dict[str, float]]) -> dict[str, str]:
    """What the progress bar shows of a step: a single student's loss and terms, of several their losses."""
    if "" not in records:
        return {f"{name}/loss": f"{one['loss']:.4f}" if one else "skipped" for name, one in records.items()}
    record = records[""]
    terms = {name: f"{record[name]:.3f}" for name in record if _is_term(name)}
    return {"loss": f"{record['loss']:.4f}" if record else "skipped", **terms}


def _side_by_side(records: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures of all students in one line, behind their names: small/loss."""
    return {
        f"{name}/{key}" if name else key: value for name, record in records.items() for key, value in record.items()
    }
