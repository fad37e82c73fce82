"""The loop: frozen teachers and a student get the same views, the objective compares their outputs, Fabric steps.

    done = ssl_kd.distill(teacher="swav_800ep_pretrain.pth.tar", student="resnet18", images="photos/", out="runs/x")

The same call resumes an interrupted run: shuffling and views are functions of (seed, epoch, index), and the saved
state holds the student, the heads, the memory banks, the optimiser, the position and the random state.

`setup` makes the parts, `teachers` is the teachers' side of a step, `module` the student's.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn

from ssl_kd.checkpoints.saving import save_module, save_student
from ssl_kd.data.sources.base import ImageSource
from ssl_kd.distillation.arguments import NOTHING, Objects, merge
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.model_card import card, provenance
from ssl_kd.distillation.module import DistillationModule
from ssl_kd.distillation.monitor import Monitor
from ssl_kd.distillation.optim import warmup_cosine
from ssl_kd.distillation.setup import Parts, prepare
from ssl_kd.distillation.step import Bad, Stepper
from ssl_kd.distillation.target_cache import TARGETS, TargetStore
from ssl_kd.errors import ImagesError, NonFinite, UserError, one_line
from ssl_kd.models.encoder import Encoder
from ssl_kd.runtime import distributed
from ssl_kd.runtime.devices import make_fabric
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.loggers import Lightning
from ssl_kd.runtime.ownership import require_ours
from ssl_kd.runtime.progress import Progress
from ssl_kd.runtime.run_dir import BEGIN_ANEW, BEST, LAST, STUDENT, RunDir, environment
from ssl_kd.runtime.signals import Interrupted, stop_signals
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


def distill(
    teacher: str | Path | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: Any = None,
    config: DistillConfig | None = None,
    **settings: Any,
) -> Distilled:
    """Distil `teacher` into `student` on unlabelled `images`; returns the trained student.

    teacher: file, name, Encoder, or any module from normalised pixels to (B, D), a map or Features (several: the setting
    `teachers`). student: architecture name, Encoder or such a module; the last two are trained in place, and a module's
    file is its plain state dict. images: whatever `open_images` takes. Settings are the fields of DistillConfig, and three
    of them take objects as well: objective (a module of the `Criterion` protocol, see `AnyCriterion`; its parameters are
    trained and saved with the run), views (`Recipe`s, or functions from a picture to a view, which cannot be replayed) and
    log (Lightning loggers, beside names in a list). config.yaml keeps their names; the same call with the same objects
    resumes. Raises UserError for bad input before anything is written.
    """
    merged, objects = merge(config, teacher, student, images, settings)
    with _trainer(merged, teacher, student, images, objects) as loop:
        return loop.run()


def fill_targets(
    teacher: str | Path | nn.Module | None = None,
    student: str | nn.Module | None = None,
    images: Any = None,
    config: DistillConfig | None = None,
    **settings: Any,
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
    config: DistillConfig, teacher: Any, student: Any, images: Any, objects: Objects = NOTHING
) -> Iterator[_Trainer]:
    """Everything that a run needs, tried out before its folder is touched; the folder is locked while this is open."""
    parts = prepare(config, teacher, student, images, objects)
    if config.targets:
        require_ours(Path(config.targets), TARGETS)
    run = RunDir(
        config.out,
        parts.settings,
        config.overwrite,
        writes=os.environ.get("RANK", "0") == "0",
        defaults=asdict(DistillConfig()),
    )
    loggers = [Lightning(logger) for logger in objects.loggers if run.writes]
    try:
        saved = None if config.overwrite else run.restore()
        # An interrupted run is resumed in the precision it began with, whatever a new trial would choose.
        fabric, precision = make_fabric(
            config.accelerator, saved.get("precision", config.precision) if saved else config.precision
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


class _Trainer:
    """One run from its first (or next) step to the saved student."""

    def __init__(
        self,
        fabric: Fabric,
        precision: str,
        config: DistillConfig,
        run: RunDir,
        parts: Parts,
        saved: dict[str, Any] | None,
    ):
        self._saved = saved
        self.loggers: list[Lightning] = []  # those from Python; the run folder has those that are named
        self.fabric, self.precision = fabric, precision
        self.config, self.run_folder = config, run
        self.loader, self.teacher_group = parts.loader, parts.teacher_group
        self.share = (distributed.rank(), distributed.world_size())
        if config.replay:
            with fabric.rank_zero_first():
                self.teacher_group.open_stores(Path(config.targets or run.path / "targets"), precision)
        self.teacher_group.to(fabric.device)
        self.bare = DistillationModule(parts.student, parts.objective).to(memory_format=torch.channels_last)
        if config.compile:
            self._networks_are_compiled(True)
        self.stepper = Stepper(fabric, config, self.loader, self.teacher_group, self.bare, parts.mix)
        self.optimizer = self.stepper.optimizer
        self.steps_per_epoch = self.loader.batches_per_epoch()
        self.total = config.steps or self.steps_per_epoch * config.epochs
        self.quiet = config.quiet or not fabric.is_global_zero
        self.step = 0  # steps done
        self.seconds = 0.0  # of earlier sessions of this run and of this one
        self.waited = 0.0
        self.skipped = 0  # steps not taken because a number was not finite
        self.last: dict[str, float] = {}
        self.monitor = None
        if parts.held is not None:
            every = round(config.health_every * self.steps_per_epoch)
            self.monitor = Monitor(parts.held, parts.contract, every, self.total, config.patience, config.threads)

    @property
    def _but(self) -> str:
        """How the command that resumes differs from the one that was given: overwriting again would lose the work."""
        return " without overwrite" if self.config.overwrite else ""

    def run(self) -> Distilled:
        """Train to the end and save the student."""
        self.fabric.barrier()  # nobody writes a state before all have read theirs
        self._resume()
        began = self.seconds
        count = round(len(self.loader.images) * self.total / self.steps_per_epoch)
        self.stepper.module.train()
        with (
            Progress("distill", count, quiet=self.quiet, start=self._images_done()) as bar,
            stop_signals() as stop,
        ):
            saved_at = time.monotonic()
            for parts in self._batches():
                started = time.monotonic()
                record = self._train_step(parts)
                self.step += 1
                self.seconds += time.monotonic() - started
                bar.advance(
                    sum(map(len, parts)) * distributed.world_size(),
                    loss=f"{record['loss']:.4f}" if record else "skipped",
                    **{name: f"{record[name]:.3f}" for name in record if _is_term(name)},
                    epoch=1 + (self.step - 1) // self.steps_per_epoch,
                )
                if record and self._is_logged(self.step):
                    self._log(record, bar.rate)
                if self.monitor is not None and self.monitor.due(self.step):
                    self._measure(self.monitor, bar)
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
        return self._finish(rate)

    @property
    def _epochs(self) -> float:
        """Passes over the images, a whole number unless steps were asked for."""
        return round(self.total / self.steps_per_epoch, 3) if self.config.steps else self.config.epochs

    def _images_done(self) -> int:
        return round(len(self.loader.images) * self.step / self.steps_per_epoch)

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.total

    def _batches(self) -> Iterator[list[ViewBatch]]:
        """The rest of this epoch and all later ones, each batch in its parts; counts the time spent waiting for images."""
        while self.step < self.total and not self._enough():
            epoch, start = divmod(self.step, self.steps_per_epoch)
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
        """Whether the held-out images have not come nearer to the teacher's outputs for so long that the run may end."""
        if self.monitor is None or not self.config.patience:
            return False
        return distributed.any_rank(self.monitor.enough, self.fabric.device)

    def _train_step(self, parts: list[ViewBatch]) -> dict[str, float]:
        """One step's figures; none if it was skipped."""
        measure = self.config.measure_gradients and self._is_logged(self.step + 1)
        taken = self.stepper.take(parts, self._rate(), measure)
        if isinstance(taken, Bad):
            self._skip_or_stop(taken)
            return {}
        return taken

    def fill(self) -> dict[str, TargetStore]:
        """Run the teachers on every view that will be replayed, without training."""
        self._saved = None
        for store in self.teacher_group.stores.values():
            store.recheck()
        if self.teacher_group.is_complete():
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
        self.teacher_group.flush()
        return self.teacher_group.stores

    def _rate(self) -> float:
        warmup = min(self.config.warmup * self.steps_per_epoch, self.total / 2)
        return self.config.lr * warmup_cosine(self.step, warmup, self.total)

    def _skip_or_stop(self, bad: Bad) -> None:
        """Log a bad step and skip it, up to the stated number of times; then NonFinite."""
        self.skipped += 1
        if self.skipped <= self.config.skip_nonfinite:
            terms = {name: value if math.isfinite(value) else str(value) for name, value in bad.terms.items()}
            why = {"skipped": bad.what, "value": str(bad.value), "images": bad.images}
            self.run_folder.note({"step": self.step + 1} | why | terms)
            return
        parts = ", ".join(f"{name} {value:.4g}" for name, value in bad.terms.items())
        kept = self.run_folder.path / LAST
        good = f"the last good state is in {kept}" if kept.exists() else "no state had been saved yet"
        skipped = f" after {self.skipped - 1} skipped steps" if self.config.skip_nonfinite else ""
        raise NonFinite(
            f"the {bad.what} became {bad.value} at step {self.step}{skipped} ({parts}; images "
            f"{', '.join(bad.images[:4])}, ...); {good}. Lower lr (now {self.config.lr}) or use precision 32-true in a "
            f"new run folder"
        )

    def _log(self, record: dict[str, float], rate: float) -> None:
        self.last = record
        epoch = self.step / self.steps_per_epoch
        timing = {"images_per_s": round(rate, 1), "wait_share": round(self.waited / max(self.seconds, 1e-9), 4)}
        self._send({"step": self.step, "epoch": round(epoch, 3)} | record | timing)

    def _send(self, record: dict[str, float]) -> None:
        """One line of metrics.jsonl, and the same to every other log."""
        self.run_folder.log(record)
        for logger in self.loggers:
            logger.add(record)

    def _measure(self, monitor: Monitor, bar: Progress) -> None:
        began = time.monotonic()
        one = len(self.teacher_group.teachers) == 1  # a head leads to one teacher
        found = monitor.measure(
            self.step, self.bare.student, self.teacher_group.embed, self.bare.objective if one else None
        )
        self._send({"step": self.step, "epoch": round(self.step / self.steps_per_epoch, 3)} | found.figures)
        bar.keep(neighbours=f"{found.figures['health/neighbour_overlap']:.3f}")
        if found.alarm and self.run_folder.writes:
            bar.warn(f"at step {self.step} the student seems collapsed: {found.alarm}")
        if found.better:
            self._write_student(self.run_folder.path / BEST)
        if monitor.enough and self.run_folder.writes:
            bar.warn(
                f"at step {self.step} of {self.total}: patience is out, step {monitor.course.best_step} was the best"
            )
        self.seconds += time.monotonic() - began

    def _save(self) -> None:
        state = {
            "step": self.step,
            "precision": self.precision,
            "seconds": self.seconds,
            "waited": self.waited,
            "skipped": self.skipped,
            "last": self.last,
            "pair": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "unreadable": self.loader.images.unreadable.copy(),
            "health": self.monitor.state() if self.monitor else None,
        }
        if self.fabric.device.type == "cuda":
            state["cuda_rng"] = torch.cuda.get_rng_state()
        self.run_folder.save(state)
        self.run_folder.forget_unreadable()  # the state knows them now

    def _resume(self) -> None:
        """Restore the saved state, if there is one; nothing of it stays in memory beside what it went into."""
        saved, self._saved = self._saved, None
        if saved is not None:
            self._load(saved)

    def _load(self, saved: dict[str, Any]) -> None:
        try:
            self._restore(saved)
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{self.run_folder.path / LAST}: the saved state does not fit this run ({one_line(error, 120)}); "
                f"{BEGIN_ANEW}"
            ) from error

    def _restore(self, saved: dict[str, Any]) -> None:
        self.loader.images.recall(saved.get("unreadable", {}))
        self.bare.load_state_dict(saved["pair"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds, self.waited, self.last = (saved[k] for k in ("step", "seconds", "waited", "last"))
        self.skipped = saved["skipped"]
        torch.set_rng_state(saved["torch_rng"])
        if self.monitor is not None:
            self.monitor.restore(saved["health"])
        if "cuda_rng" in saved and self.fabric.device.type == "cuda":
            torch.cuda.set_rng_state(saved["cuda_rng"])

    def _networks_are_compiled(self, compiled: bool) -> None:
        """Compile all networks in place (their parameters keep their names), or undo it."""
        for encoder in (self.bare.student, *(t.encoder for t in self.teacher_group.teachers.values())):
            if compiled:
                encoder.network.compile()
            else:
                encoder.network._compiled_call_impl = None

    def _finish(self, rate: float) -> Distilled:
        self._save()
        if self.config.compile:
            self._networks_are_compiled(False)
        student = self.bare.student.eval().to(memory_format=torch.contiguous_format)
        folder = self.run_folder.path
        self._write_student(folder / STUDENT)
        if self.run_folder.writes:
            unreadable = self.loader.images.unreadable
            atomic_text(
                folder / "README.md",
                card(self.config, folder, self.teacher_group.teachers, student, self._facts(), unreadable),
            )
        best = folder / BEST if self.monitor and self.monitor.course.best_step else None
        return Distilled(student, folder / STUDENT, folder, self.seconds, rate, self.last, best)

    def _write_student(self, path: Path) -> None:
        """The student as it is now, with where it comes from; of a module from Python the state alone."""
        teachers, images = self.teacher_group.teachers, self.loader.images
        student = self.bare.student
        student.origin = f"distilled from {' and '.join(t.encoder.origin for t in teachers.values())}"
        if self.run_folder.writes:
            save = save_module if student.is_module else save_student
            save(
                student,
                path,
                **provenance(teachers),
                images=len(images) - len(images.unreadable),
                epochs=self._epochs,
                steps=self.step,
            )

    def _facts(self) -> dict[str, str]:
        config = self.config
        health = {}
        if self.monitor is not None:
            course = self.monitor.course
            health["held-out images"] = (
                f"{len(self.monitor.images)}; most neighbours in common with the teacher at step {course.best_step:,}: "
                f"{course.best:.1%} of the nearest 10 (`{BEST}`)"
            )
        return {
            "images": f"{len(self.loader.images):,} from {config.images}, no labels",
            "steps": (
                f"{self.step:,} of batch {config.batch_size * config.accumulate}, {self._epochs} epochs, "
                f"{self.seconds / 60:.1f} minutes" + (f", {self.skipped} skipped" if self.skipped else "")
            ),
            "precision": f"{self.precision} on {self.fabric.device} ({environment()['machine']})",
            "last step": ", ".join(f"{k} {v:.4g}" for k, v in self.last.items()),
            "time spent waiting for images": f"{100 * self.waited / max(self.seconds, 1e-9):.1f} %",
        } | health


def _is_term(name: str) -> bool:
    """Whether this figure of a step is the value of one of the objective's terms."""
    return name not in ("loss", "lr", "gradient_norm") and not name.endswith("_gradient")
