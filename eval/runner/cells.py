"""One cell at a time: an encoder on a task under an evaluator, computed once and kept under a key of all that decides it.

A `Bench` knows encoders and tasks and hands out cells, whoever asks: the evaluation itself, one after the other, or the
processes of `eval/runner/workers.py`, which leave finished cells on disk for it to find.
"""

from __future__ import annotations

import copy
import hashlib
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.errors import UserError, one_line

from ..banks import FeatureBank
from ..evaluators.choices import Choice, by_name
from ..evaluators.registry import KINDS, LABEL_FREE, OOD, STABILITY, Given
from ..extraction.versions import programs
from ..metrics import Scores
from ..results import Cell
from .cell_cache import Facts, has_cell, load_cell, save_cell
from .own_features import OwnFeatures

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

    from ..datasets.tasks import Split, Task

    Row = Encoder | OwnFeatures
    Banks = tuple[FeatureBank, FeatureBank, float | None]  # train, test, images per second (None: not made here)

PUBLISHED = "32-true"  # the precision of published protocols
CELL_VERSION = 7  # raise it when a change of code changes figures


@dataclass(frozen=True)
class Settings:
    """How features are extracted, where finished cells and features are kept (None: nowhere), and whether maps and
    galleries are wanted for a report, by which projections. verify: every byte of the images is read for their names in
    caches.
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
    verify: bool = False
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
    evaluators: Sequence[Choice],
    pairs: Sequence[tuple[str, str]] = (),
    alike: Sequence[tuple[str, str]] = (),
) -> tuple[list[Job], list[str]]:
    """Return all jobs in the order of the table, and in words those that cannot be done.

    `pairs` are tasks inside and outside, `alike` those whose queries should keep their neighbours.
    """
    left_out, jobs = [], []
    for task in tasks:
        able = []
        for choice in evaluators:
            if why := choice.unfit(task.several, task.labelled):
                left_out.append(f"{task.name}, {choice.title}: {why}")
            else:
                able.append(choice)
        if not able and not task.labelled:
            able = [by_name(kind, KINDS[kind].default) for kind in LABEL_FREE]
        jobs += [Job(task.name, encoder, one.kind, one.protocol) for encoder in encoders for one in able]
    ood = KINDS[OOD].default
    jobs += [Job(inside, encoder, OOD, ood, outside) for inside, outside in pairs for encoder in encoders]
    kept = KINDS[STABILITY].default
    jobs += [Job(inside, encoder, STABILITY, kept, outside) for inside, outside in alike for encoder in encoders]
    return jobs, left_out


class Bench:
    """Rows of the table (encoders, own features) and tasks by name, and their feature banks, made when first asked for.

    `own` are the evaluators that are objects, by kind and protocol. Of the banks held in memory only the reference's and
    the last encoder's on the last task stay; with a feature cache they are memory-mapped files in any case.
    """

    def __init__(
        self,
        encoders: Mapping[str, Row],
        tasks: Mapping[str, Task],
        reference: str,
        settings: Settings,
        own: Sequence[Choice] = (),
    ):
        self.encoders, self.tasks, self.reference, self.settings = encoders, tasks, reference, settings
        if settings.verify:
            for task in tasks.values():
                task.verify()
        self.own = {(choice.kind, choice.protocol): choice for choice in own if choice.is_object}
        self.held: dict[tuple[str, str], Banks] = {}
        self.programs = programs(engine=settings.engine)

    def settings_for(self, *names: str) -> Settings:
        """A module from Python is known by its weights only: were its code changed, whatever is kept would be stale."""
        rows = [self.encoders[name] for name in names]
        module = any(not isinstance(row, OwnFeatures) and row.arch.startswith("module/") for row in rows)
        return replace(self.settings, cells=None, features=None) if module else self.settings

    def banks(self, task: str, encoder: str) -> Banks:
        """Return train bank, test bank, and the images per second that they took, whenever that was."""
        if (task, encoder) not in self.held:
            self.held = {key: banks for key, banks in self.held.items() if key == (task, self.reference)}
            self.held[task, encoder] = make_banks(
                encoder, self.encoders[encoder], self.tasks[task], self.settings_for(encoder)
            )
        return self.held[task, encoder]

    def choice(self, job: Job) -> Choice:
        """Return the evaluator of a job, with all that decides its figures."""
        return self.own.get((job.kind, job.protocol)) or by_name(job.kind, job.protocol)

    def is_kept(self, job: Job) -> bool:
        """Return whether the cell is on disk, from before or from another process."""
        return has_cell(self._folder(job), self.key(job))

    def cell(self, job: Job) -> Cell:
        """Return one cell, computed only if it is not kept from before."""
        folder, key = self._folder(job), self.key(job)
        found = load_cell(folder, key)
        if found is None or self._readable_by_now(found[1]["missing"]):
            found = self._computed(job)
            save_cell(folder, key, *found)
            if not self.settings.quiet:
                tell(job, found[0], self.tasks[job.task].metric)
        scores, facts = found
        return Cell(
            job.title,
            job.encoder,
            scores.headline_metric or self.tasks[job.task].metric,
            scores,
            facts["parameters"],
            facts["width"],
            facts["images_per_second"],
            facts["programs"],
        )

    def _computed(self, job: Job) -> tuple[Scores, Facts]:
        encoder, task, choice, how = self.encoders[job.encoder], self.tasks[job.task], self.choice(job), self.settings
        others = self._others(job)
        train, test, rate = self.banks(job.task, job.encoder)
        began = time.monotonic()
        features = self.settings_for(*self._names(job)).features
        given = Given(task.metric, how.seed, how.device, how.quiet, features)
        judge = choice.row.make(choice.constants(task.several), given)
        scores = _in_table(judge(train, test, *others), choice, task.metric)
        if task.classes and not job.outside:
            scores = replace(scores, classes=np.array(task.classes))
        missing = self._missing(job)
        facts: Facts = {
            "images_per_second": rate,
            "parameters": None if isinstance(encoder, OwnFeatures) else encoder.parameter_count,
            "width": train.width,
            "seconds": time.monotonic() - began,
            "programs": self.programs,
            "missing": missing,
        }
        notes = (*scores.notes, *_notes_on(missing, self.tasks))
        if how.precision != PUBLISHED:
            notes += (f"features at {how.precision}, which the protocol's {PUBLISHED} figures are not made at",)
        return replace(scores, notes=notes), facts

    def key(self, job: Job) -> str:
        """Return the name of a cell on disk: a digest of everything that decides its figures."""
        parts = {
            "version": CELL_VERSION,
            "programs": self.programs,
            "encoders": [self._identity(name, job) for name in self._names(job)],
            "task": self.tasks[job.task].digest,
            "outside": self.tasks[job.outside].digest if job.outside else "",
            "metric": self.tasks[job.task].metric,
            "evaluator": job.kind,
            "protocol": self.choice(job).record,
            "precision": self.settings.how,
            "seed": self.settings.seed,
        }
        if led := self._led(job):
            parts["head"] = led.digest
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def _identity(self, name: str, job: Job) -> tuple[str, str, str]:
        row = self.encoders[name]
        if isinstance(row, OwnFeatures):
            return "own features", row.digest(job.task), row.digest(job.outside) if job.outside else ""
        return row.digest, row.feature, row.preprocessing.key()

    def _names(self, job: Job) -> list[str]:
        return [job.encoder, self.reference] if self.choice(job).row.paired else [job.encoder]

    def _folder(self, job: Job) -> Path | None:
        return self.settings_for(*self._names(job)).cells if self.choice(job).kept else None

    def _others(self, job: Job) -> tuple[FeatureBank, ...]:
        """Return the banks that an evaluator wants besides train and test."""
        if job.outside:
            return (self.banks(job.outside, job.encoder)[1],)
        if not self.choice(job).row.paired:
            return ()
        reference = self.banks(job.task, self.reference)[:2]
        led = self._led(job)
        if led is None:
            return reference
        how = self.settings_for(job.encoder, self.reference)
        return (*reference, make_banks(f"{job.encoder} in {self.reference}'s space", led, self.tasks[job.task], how)[1])

    def _led(self, job: Job) -> Encoder | None:
        """Return the encoder as its own head lets it answer in the reference's space, for asymmetric retrieval."""
        encoder, reference = self.encoders[job.encoder], self.encoders[self.reference]
        if job.kind != "asymmetric" or isinstance(encoder, OwnFeatures) or isinstance(reference, OwnFeatures):
            return None
        for name in encoder.heads:
            head = encoder.head(name)
            if head is not None and reference.space.holds(head.space):
                return copy.copy(encoder).read_as(name)
        return None

    def _missing(self, job: Job) -> list[tuple[str, str, str, list[int]]]:
        """Return row, task, split and numbers of the images that the banks of a cell lack."""
        asked = [(name, job.task, part) for name in self._names(job) for part in ("train", "test")]
        asked += [(job.encoder, job.outside, "test")] if job.outside else []
        found = []
        for name, task, part in asked:
            train, test, _ = self.banks(task, name)
            bank = train if part == "train" else test
            if numbers := _left_out(getattr(self.tasks[task], part), bank):
                found.append((name, task, part, numbers))
        return found

    def _readable_by_now(self, missing: Sequence[tuple[str, str, str, list[int]]]) -> bool:
        """Return whether an image that a kept cell lacks can be read now: the cell is then computed again."""
        from ..extraction.extract import any_readable

        for name, task, part, numbers in missing:
            row = self.encoders[name]
            if not isinstance(row, OwnFeatures) and any_readable(row, getattr(self.tasks[task], part).images, numbers):
                return True
        return False


def _left_out(split: Split, bank: FeatureBank) -> list[int]:
    if len(bank) == len(split.labels):
        return []
    there = set(bank.ids)
    return [i for i, name in enumerate(split.images.ids) if str(name) not in there]


def _notes_on(missing: Sequence[tuple[str, str, str, list[int]]], tasks: Mapping[str, Task]) -> tuple[str, ...]:
    return tuple(
        f"{len(numbers)} of {len(getattr(tasks[task], part).labels):,} {part} images of {task} are left out for {name}: "
        "they could not be read, or have no row"
        for name, task, part, numbers in missing
    )


def _in_table(answer: object, choice: Choice, metric: str) -> Scores:
    """Return an evaluator's answer under the names of its column. UserError for an object's that is none."""
    if not isinstance(answer, Scores) or not answer.rows:
        raise UserError(
            f"evaluator {choice.title}: expected Scores with at least one row (ssl_kd.eval.metrics), got {one_line(repr(answer))}"
        )
    scores = answer
    if choice.kind in KINDS and not choice.is_object:
        return scores
    shown = scores.headline_metric or metric
    if not any((row.metric, row.k) == (shown, scores.headline_k) for row in scores.rows):
        scores = replace(scores, headline_metric=scores.rows[0].metric, headline_k=scores.rows[0].k)
    return replace(scores, evaluator=choice.kind, protocol=choice.protocol)


def make_banks(name: str, encoder: Row, task: Task, settings: Settings) -> Banks:
    """Return train and test bank of a row on a task, from the feature cache where there is one, and images/s."""
    if isinstance(encoder, OwnFeatures):
        train, test = encoder.of(task)
        return _with_held(train, task), test, None
    from ..extraction.extract import extract
    from ..extraction.feature_cache import FeatureStore, OfABank

    store = None if settings.features is None else FeatureStore(settings.features)
    how: OfABank = {
        "batch_size": settings.batch_size,
        "device": settings.device,
        "precision": settings.precision,
        "engine": settings.engine,
        "threads": settings.threads,
        "quiet": settings.quiet,
    }
    began, banks = time.monotonic(), []
    for part, split in (("train", task.train), ("test", task.test)):
        how["title"] = f"{task.name} {part}, {name}"
        if store is None:
            banks.append(extract(encoder, split.images, split.labels, **how))
        else:
            banks.append(store.bank(encoder, split.images, split.labels, **how))
    banks[0] = _with_held(banks[0], task)
    if store is not None:
        return banks[0], banks[1], store.rate(encoder, task.train.images, settings.precision, settings.engine)
    return banks[0], banks[1], sum(map(len, banks)) / max(time.monotonic() - began, 1e-9)


def _with_held(bank: FeatureBank, task: Task) -> FeatureBank:
    """Return the train bank, which may lack unreadable images, with the marks of the set's own validation split."""
    if task.held is None:
        return bank
    marks = dict(zip(map(str, task.train.images.ids), task.held.tolist(), strict=True))
    return replace(bank, held=np.array([marks[name] for name in bank.ids]))


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
