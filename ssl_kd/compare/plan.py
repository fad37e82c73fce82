"""The cells of a comparison, in the order in which they can be worked on: targets, paces, trials, students, rows beside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Literal

from ssl_kd.compare.config import (
    BudgetRow,
    CompareConfig,
    budgets_of,
    externals_of,
    objectives_of,
    pools_of,
    students_of,
    teachers_of,
)

Kind = Literal["targets", "pace", "trial", "student", "teacher", "random", "scratch", "external"]
TRAINED = ("pace", "trial", "student")


@dataclass(frozen=True)
class Job:
    """One cell by names. `lr` is a trial's; a student's is chosen when its trials are finished."""

    kind: Kind
    teacher: str
    student: str = ""
    pool: str = ""
    objective: str = ""
    budget: str = ""
    seed: int = 0
    lr: float = 0.0

    @property
    def title(self) -> str:
        """The cell in words, for progress and messages."""
        parts = [self.objective or self.kind, self.student, self.teacher, self.pool, self.budget]
        what = ", ".join(filter(None, parts))
        if self.kind in ("pace", "trial"):
            what = f"{self.kind} of {what}"
        return f"{what}, lr {self.lr:g}" if self.lr else f"{what}, seed {self.seed}" if self.student else what


def is_timed(config: CompareConfig, budget: BudgetRow) -> bool:
    """Whether a budget's looks depend on how fast an objective is."""
    return bool(budget.minutes or config.equal_time)


def jobs_of(config: CompareConfig) -> list[Job]:
    """All cells."""
    return [*_targets(config), *_paces(config), *_trials(config), *_students(config), *_beside(config)]


def _groups(config: CompareConfig) -> Iterator[tuple[str, str, str]]:
    yield from product(teachers_of(config), students_of(config), pools_of(config))


def _targets(config: CompareConfig) -> Iterator[Job]:
    for teacher, pool in product(teachers_of(config), pools_of(config)):
        yield Job("targets", teacher, pool=pool)


def _paces(config: CompareConfig) -> Iterator[Job]:
    if any(is_timed(config, budget) for budget in budgets_of(config).values()):
        for (teacher, student, pool), objective in product(_groups(config), objectives_of(config)):
            yield Job("pace", teacher, student, pool, objective, seed=config.tune_seed)


def _trials(config: CompareConfig) -> Iterator[Job]:
    for (teacher, student, pool), objective in product(_groups(config), objectives_of(config)):
        yield from trials_of(config, Job("student", teacher, student, pool, objective))


def trials_of(config: CompareConfig, job: Job) -> list[Job]:
    """The trials that choose a student's learning rate: one for each rate, none where there is one rate."""
    if len(config.lr) < 2:
        return []
    trial = replace(job, kind="trial", budget="", seed=config.tune_seed)
    return [replace(trial, lr=lr) for lr in config.lr]


def _students(config: CompareConfig) -> Iterator[Job]:
    """Seed by seed, so that an early table has every objective."""
    for budget, seed in product(budgets_of(config), config.seeds):
        for (teacher, student, pool), objective in product(_groups(config), objectives_of(config)):
            yield Job("student", teacher, student, pool, objective, budget, seed)


def _beside(config: CompareConfig) -> Iterator[Job]:
    for teacher in teachers_of(config):
        yield Job("teacher", teacher)
        for student, seed in product(students_of(config), config.seeds):
            if config.random:
                yield Job("random", teacher, student, seed=seed)
            if config.scratch:
                for budget in budgets_of(config):
                    yield Job("scratch", teacher, student, budget=budget, seed=seed)
        for name, row in externals_of(config).items():
            for seed, _ in zip(config.seeds, row.weights, strict=False):
                yield Job("external", teacher, row.student, objective=name, seed=seed)
