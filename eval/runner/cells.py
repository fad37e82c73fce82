"""One cell at a time: an encoder on a task under an evaluator, computed once and kept under a key of all that decides it.

A `Bench` knows encoders and tasks and hands out cells, whoever asks: the evaluation itself, one after the other, or the
processes of `eval/runner/workers.py`, which leave finished cells on disk for it to find.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..evaluators.registry import KINDS, OOD, Given, unfit
from ..results import Cell
from .cell_cache import has_cell, load_cell, save_cell

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

    from ..banks import FeatureBank
    from ..datasets.tasks import Split, Task
    from ..metrics import Scores

PUBLISHED = "32-true"  # the precision of published protocols
CELL_VERSION = 5  # raise it when a change of code changes figures


@dataclass(frozen=True)
class Settings:
    """How features are extracted, where finished cells and features are kept (None: nowhere), and whether maps and
    galleries are wanted for a report, by which projections.
    """

    batch_size: int = 64
    threads: int = 2
    device: str = "cpu"
    precision: str = "32-true"
    engine: str = "folded"
    seed: int = 0
    quiet: bool = False
    cells: Path | None = None
    features: Path | None = None
    looks: bool = False
    maps: tuple[str, ...] = ("pca",)

    @property
    def how(self) -> str:
        """Precision and engine as a cell's key knows them; the default engine goes without saying."""
        return self.precision if self.engine == "folded" else f"{self.precision} {self.engine}"


@dataclass(frozen=True)
class Job:
    """What one cell is about; `outside` names the task whose test images are strangers, for ood alone."""

    task: str
    encoder: str
    kind: str
    protocol: str
    outside: str = ""

    @property
    def title(self) -> str:
        """The task as tables show it."""
        return f"{self.task} vs {self.outside}" if self.outside else self.task


def plan(
    tasks: Sequence[Task],
    encoders: Sequence[str],
    evaluators: Sequence[tuple[str, str]],
    pairs: Sequence[tuple[str, str]] = (),
) -> tuple[list[Job], list[str]]:
    """Return all jobs in the order of the table, and in words those that cannot be done."""
    left_out, jobs = [], []
    for task in tasks:
        able = []
        for kind, protocol in evaluators:
            if why := unfit(kind, protocol, task.several):
                left_out.append(f"{task.name}, {kind}/{protocol}: {why}")
            else:
                able.append((kind, protocol))
        jobs += [Job(task.name, encoder, *one) for encoder in encoders for one in able]
    ood = KINDS[OOD].default
    jobs += [Job(inside, encoder, OOD, ood, outside) for inside, outside in pairs for encoder in encoders]
    return jobs, left_out


class Bench:
    """Encoders and tasks by name, and their feature banks, made when first asked for.

    Of the banks held in memory only the reference's and the last encoder's on the last task stay; with a feature cache
    they are memory-mapped files in any case.
    """

    def __init__(self, encoders: Mapping[str, Encoder], tasks: Mapping[str, Task], reference: str, settings: Settings):
        self.encoders, self.tasks, self.reference, self.settings = encoders, tasks, reference, settings
        self.held: dict[tuple[str, str], tuple[FeatureBank, FeatureBank, float]] = {}
        self.names = {name: (e.digest, e.feature, repr(e.preprocessing)) for name, e in encoders.items()}

    def settings_for(self, *names: str) -> Settings:
        """A module from Python is known by its weights only: were its code changed, whatever is kept would be stale."""
        module = any(self.encoders[name].arch.startswith("module/") for name in names)
        return replace(self.settings, cells=None, features=None) if module else self.settings

    def banks(self, task: str, encoder: str) -> tuple[FeatureBank, FeatureBank, float]:
        """Return train bank, test bank, and the images per second that they took, whenever that was."""
        if (task, encoder) not in self.held:
            self.held = {key: banks for key, banks in self.held.items() if key == (task, self.reference)}
            self.held[task, encoder] = make_banks(
                encoder, self.encoders[encoder], self.tasks[task], self.settings_for(encoder)
            )
        return self.held[task, encoder]

    def is_kept(self, job: Job) -> bool:
        """Return whether the cell is on disk, from before or from another process."""
        return has_cell(self._folder(job), self.key(job))

    def cell(self, job: Job) -> Cell:
        """Return one cell, computed only if it is not kept from before."""
        encoder, task, folder, key = self.encoders[job.encoder], self.tasks[job.task], self._folder(job), self.key(job)
        found = load_cell(folder, key)
        if found is None:
            kind = KINDS[job.kind]
            others = self._others(job)
            train, test, rate = self.banks(job.task, job.encoder)
            began = time.monotonic()
            protocol = kind.find(job.protocol)
            if task.several and kind.several:
                protocol = kind.several(job.protocol)
            how = self.settings
            features = self.settings_for(*self._names(job)).features
            judge = kind.make(protocol, Given(task.metric, how.seed, how.device, how.quiet, features))
            scores = judge(train, test, *others)
            if task.classes and not job.outside:
                scores = replace(scores, classes=np.array(task.classes))
            if self.settings.precision != PUBLISHED:
                note = (
                    f"features at {self.settings.precision}, which the protocol's {PUBLISHED} figures are not made at"
                )
                scores = replace(scores, notes=(*scores.notes, note))
            facts: dict[str, Any] = {
                "images_per_second": rate,
                "parameters": encoder.parameter_count,
                "width": train.width,
                "seconds": time.monotonic() - began,
            }
            found = (scores, facts)
            save_cell(folder, key, *found)
            if not self.settings.quiet:
                tell(job, scores, task.metric)
        scores, facts = found
        metric = scores.headline_metric or task.metric
        return Cell(
            job.title, job.encoder, metric, scores, facts["parameters"], facts["width"], facts["images_per_second"]
        )

    def key(self, job: Job) -> str:
        """Return the name of a cell on disk: a digest of everything that decides its figures."""
        parts = {
            "version": CELL_VERSION,
            "encoders": [self.names[name] for name in self._names(job)],
            "task": self.tasks[job.task].digest,
            "outside": self.tasks[job.outside].digest if job.outside else "",
            "metric": self.tasks[job.task].metric,
            "evaluator": job.kind,
            "protocol": repr(KINDS[job.kind].find(job.protocol)),
            "precision": self.settings.how,
            "seed": self.settings.seed,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def _names(self, job: Job) -> list[str]:
        return [job.encoder, self.reference] if KINDS[job.kind].paired else [job.encoder]

    def _folder(self, job: Job) -> Path | None:
        return self.settings_for(*self._names(job)).cells

    def _others(self, job: Job) -> tuple[FeatureBank, ...]:
        """Return the banks that an evaluator wants besides train and test."""
        if job.outside:
            return (self.banks(job.outside, job.encoder)[1],)
        return self.banks(job.task, self.reference)[:2] if KINDS[job.kind].paired else ()


def make_banks(name: str, encoder: Encoder, task: Task, settings: Settings) -> tuple[FeatureBank, FeatureBank, float]:
    """Return train and test bank of an encoder on a task, from the feature cache where there is one, and images/s."""
    from ..extraction.extract import extract
    from ..extraction.feature_cache import FeatureStore

    store = None if settings.features is None else FeatureStore(settings.features)
    how: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "device": settings.device,
        "precision": settings.precision,
        "engine": settings.engine,
        "threads": settings.threads,
        "quiet": settings.quiet,
    }
    began, banks = time.monotonic(), []
    for part, split in (("train", task.train), ("test", task.test)):
        title = f"{task.name} {part}, {name}"
        if store is None:
            banks.append(extract(encoder, split.images, split.labels, **how, title=title))
        else:
            banks.append(store.bank(encoder, split.images, split.labels, **how, title=title))
    if task.held is not None:
        banks[0] = replace(banks[0], held=_held(task.train, task.held, banks[0]))
    if store is not None:
        return banks[0], banks[1], store.rate(encoder, task.train.images, settings.precision, settings.engine)
    return banks[0], banks[1], sum(map(len, banks)) / max(time.monotonic() - began, 1e-9)


def _held(split: Split, held: np.ndarray, bank: FeatureBank) -> np.ndarray:
    """Return the mark of each row of a bank that may lack unreadable images."""
    if len(bank) == len(held):
        return held
    marks = dict(zip(split.images.ids, held.tolist(), strict=True))
    return np.array([marks[name] for name in bank.ids])


def tell(job: Job, scores: Scores, metric: str) -> None:
    """Print a finished cell's headline figure on standard error."""
    score = scores.score(scores.headline_metric or metric)
    at = f" k={score.k}" if score.k else ""
    print(
        f"{job.title}, {job.encoder}: {scores.evaluator}/{scores.protocol}{at} {score.metric} {100 * score.value:.1f} % "
        f"[{100 * score.low:.1f}, {100 * score.high:.1f}]",
        file=sys.stderr,
    )


def by_task(jobs: Sequence[Job]) -> Iterator[tuple[str, str]]:
    """Yield each (task, encoder) of some jobs once: what features have to be there for them."""
    return iter(dict.fromkeys((name, job.encoder) for job in jobs for name in (job.task, job.outside) if name))
