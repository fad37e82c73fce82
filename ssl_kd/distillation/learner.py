"""One student in a run: what is trained, how it goes, and the folder where its files and figures go.

A single student's folder is the run's. Several have a folder each, `students/NAME`, with the files of a run of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

import torch

from ssl_kd.checkpoints.saving import save_module, save_student
from ssl_kd.distillation.auto import known
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.distillation.members import Member
from ssl_kd.distillation.model_card import card, provenance
from ssl_kd.distillation.module import DistillationModule
from ssl_kd.distillation.monitor import Monitor
from ssl_kd.distillation.step import Bad
from ssl_kd.errors import NonFinite
from ssl_kd.metrics import NEIGHBOURS, Overlap, chance_overlap
from ssl_kd.models.space_head import SpaceHead
from ssl_kd.objectives.into_teacher import into_teacher
from ssl_kd.objectives.multi_teacher import MultiTeacher
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.run_dir import BEST, LAST, STUDENT, StudentDir


class LearnerState(TypedDict):
    """What is saved of one student of several."""

    step: int
    skipped: int
    ended: bool
    last: dict[str, float]
    pair: dict[str, torch.Tensor]
    optimizer: dict[str, object]
    random: Mapping[str, torch.Tensor | None]
    health: dict[str, object] | None


class Learner:
    """A student with its objective, optimiser and monitor. folder: None for that of the run.

    The optimiser comes later: it is made with the step.
    """

    optimizer: torch.optim.Optimizer

    def __init__(self, member: Member, module: DistillationModule, run: Path, monitor: Monitor | None, writes: bool):
        self.name, self.member, self.module, self.monitor, self.writes = member.name, member, module, monitor, writes
        log = member.config.log
        self.folder = StudentDir(run, member.name, log, writes) if member.name else None
        self.path = self.folder.path if self.folder else run
        self.run = run
        self.step = 0  # steps done
        self.epochs: float = known(member.config.epochs)  # passes over the images that the run asks for
        self.skipped = 0  # steps not taken because a number was not finite
        self.ended = False  # patience is out
        self.last: dict[str, float] = {}

    def log(self, record: Mapping[str, object]) -> None:
        """A line of the student's own metrics, if it has any."""
        if self.folder:
            self.folder.log(record)

    def note(self, line: Mapping[str, object]) -> None:
        """A line in words."""
        if self.folder:
            self.folder.note(line)

    def forget_after(self, step: int) -> None:
        """Drop lines about steps that are done again."""
        if self.folder:
            self.folder.forget_after(step)

    def bad_step(self, bad: Bad, step: int) -> dict[str, object]:
        """The line about a bad step that was skipped, `step` steps done; NonFinite where there have been too many."""
        self.skipped += 1
        config: DistillConfig = self.member.config
        if self.skipped <= config.skip_nonfinite:
            told: dict[str, object] = {"skipped": bad.what, "value": str(bad.value), "images": bad.images}
            return told | {k: value if math.isfinite(value) else str(value) for k, value in bad.terms.items()}
        parts = ", ".join(f"{name} {value:.4g}" for name, value in bad.terms.items())
        seen = "; ".join(filter(None, [parts, f"images {', '.join(bad.images[:4])}, ..."]))
        kept = self.run / LAST
        good = f"the last good state is in {kept}" if kept.exists() else "no state had been saved yet"
        skipped = f" after {self.skipped - 1} skipped steps" if config.skip_nonfinite else ""
        whose = f" of student {self.name}" if self.name else ""
        raise NonFinite(
            f"the {bad.what}{whose} became {bad.value} at step {step}{skipped} ({seen}); {good}. "
            f"Lower lr (now {config.lr}) or use precision 32-true in a new run folder"
        )

    def state(self) -> LearnerState:
        """What a run with several students saves of this one."""
        return {
            "step": self.step,
            "skipped": self.skipped,
            "ended": self.ended,
            "last": self.last,
            "pair": self.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": self.member.randomness.saved(),
            "health": self.monitor.state() if self.monitor else None,
        }

    def restore(self, saved: Mapping[str, object], step: int) -> None:
        """The inverse of `state`, also of what a run with a single student saved after so many steps."""
        kept = cast(LearnerState, saved)  # what does not fit raises where it goes
        self.module.load_state_dict(kept["pair"])
        self.optimizer.load_state_dict(kept["optimizer"])
        self.step, self.skipped, self.last = kept.get("step", step), kept["skipped"], kept["last"]
        self.ended = kept.get("ended", False)
        if self.monitor is not None:
            if (health := kept["health"]) is None:
                raise ValueError("it holds nothing of the run's health")
            self.monitor.restore(health)
        if "random" in kept:
            self.member.randomness.restore(kept["random"])

    def write_student(self, path: Path, images: int) -> None:
        """The student as it is now, with where it comes from; of a module from Python the state alone."""
        teachers, student = self.member.teachers, self.module.student
        student.origin = f"distilled from {' and '.join(t.encoder.origin for t in teachers.values())}"
        if self.writes:
            notes = provenance(teachers) | {"images": images, "epochs": self.epochs, "steps": self.step}
            if student.is_module:
                save_module(student, path, **notes)
            else:
                save_student(student, path, self.heads(), **notes)

    def heads(self) -> dict[str, SpaceHead]:
        """What leads the student, as it is now, into its teachers' spaces: "teacher", or "teacher/NAME" of several."""
        objective, found = self.module.objective, {}
        if not self.member.spec.weight:  # it was never trained
            return {}
        parts = objective.parts if isinstance(objective, MultiTeacher) else {"": objective}
        for name, part in parts.items():
            (teacher,) = [t for key, t in self.member.teachers.items() if not name or key == name]
            if layers := into_teacher(part):
                title = f"teacher/{name}" if name else "teacher"
                found[title] = SpaceHead(layers, teacher.encoder.space, self.module.student.feature, teacher.heard)
        return found

    def write_best(self, images: int) -> None:
        """Keep the student as the one with the best figures on held-out images."""
        self.write_student(self.path / BEST, images)

    def write_card(self, facts: Mapping[str, object], unreadable: Mapping[str, str]) -> None:
        """The README.md of the student's folder."""
        if self.writes:
            text = card(
                self.member.config, self.path, self.member.teachers, self.module.student, facts, unreadable, self.name
            )
            atomic_text(self.path / "README.md", text)

    @property
    def best(self) -> Path | None:
        """Where the student with the best figures is, if there is one."""
        return self.path / BEST if self.monitor and self.monitor.course.best_step else None

    @property
    def file(self) -> Path:
        """Where the trained student goes."""
        return self.path / STUDENT

    @property
    def overlap(self) -> Overlap | None:
        """Neighbours in common with the teacher at the last measurement; None without one."""
        if self.monitor is None or not self.monitor.course.last_step:
            return None
        course = self.monitor.course
        return Overlap(course.last, course.last_half, chance_overlap(len(self.monitor.held.images)))

    def health_facts(self) -> dict[str, str]:
        """What the card says of the held-out images."""
        if self.monitor is None:
            return {}
        course, count = self.monitor.course, len(self.monitor.held.images)
        chance, said = chance_overlap(count), []
        if last := self.overlap:
            said.append(f"{last} at the end{'' if last.above_chance else ', not above chance'} (`{STUDENT}`)")
        if course.best_step:
            best = Overlap(course.best, course.best_half, chance)
            said.append(f"the most {best}, at step {course.best_step:,} (`{BEST}`)")
        said.append(f"unrelated networks share {100 * chance:.1f} %")
        return {
            "held-out images": f"{count}; of the nearest {NEIGHBOURS} neighbours in common with the teacher {'; '.join(said)}"
        }
