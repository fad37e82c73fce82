"""The distilling half: teachers, images, stored targets and runs. It knows no task, no evaluator and no label.

A teacher is asked once for every stored view, for all objectives and seeds that look at views of one scheme: `fill`
stores all parts that any of them reads. What is mixed, or too large for `targets_gb`, is asked of the teacher each time.
"""

from __future__ import annotations

import inspect
import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.compare.choice import best_rate
from ssl_kd.compare.config import (
    CompareConfig,
    budgets_of,
    externals_of,
    objectives_of,
    pools_of,
    students_of,
    teachers_of,
)
from ssl_kd.compare.plan import TRAINED, Job, is_timed, trials_of
from ssl_kd.compare.shelf import Record, Shelf, key_of
from ssl_kd.data.augment import SCHEMES, scheme
from ssl_kd.data.open import open_images
from ssl_kd.data.sources.base import ImageSource, content_key
from ssl_kd.data.subset import FEWEST, MOST, SHARE, Subset
from ssl_kd.distillation.arguments import merge
from ssl_kd.distillation.auto import rate_of
from ssl_kd.distillation.distilled import Distilled
from ssl_kd.distillation.setup import prepare
from ssl_kd.distillation.target_cache import Layout, bytes_of
from ssl_kd.distillation.trainer import distill, fill_targets
from ssl_kd.errors import Collapsed, NonFinite, UserError, one_line
from ssl_kd.models.encoder import Encoder, build, frozen
from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ssl_kd.objectives.factory import terms_of
from ssl_kd.objectives.presets import CATALOGUE
from ssl_kd.registry import load_object
from ssl_kd.runtime.loggers import METRICS
from ssl_kd.runtime.objects import names_code
from ssl_kd.runtime.run_dir import LAST, STUDENT
from ssl_kd.types import Features

VERSION = 1  # raise it when a change of code changes what a cell is
SMALL_VIEWS = {"weak": "strong_small", "multi": "multi_small", "two_strong": "two_strong_small"}
PACE_STEPS = 24  # of a run that only shows how fast an objective is
TARGETS_SEED = 0  # of the views, which all cells share
# How the run that only fills targets is set, whatever the comparison's steps and rates are: they decide no target.
NO_TRAINING: dict[str, Any] = {
    "steps": 0, "lr": 1e-3, "optimizer": "adamw", "weight_decay": 0.0, "warmup": 0.0, "health_every": 1.0, "seed": 0,
    "batch_size": 64,
}  # fmt: skip
# What a run's settings say of place and machine: no part of what a cell is.
PLACES = ("out", "targets", "threads", "quiet", "save_minutes", "accelerator", "log_every")
REFUSED = ("objective:", "student:", "views:", "accumulate:", "batch_size:")  # begin what says that a cell cannot be


class AllParts(nn.Module):
    """A criterion that reads all that other ones read, so that all of it is stored; it is never minimised."""

    def __init__(self, tokens: bool, layers: tuple[str, ...]):
        super().__init__()
        self.needs_tokens, self.teacher_layers, self.divisible = tokens, layers, True

    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Nothing."""
        return student.embedding.sum() * 0


class Study:
    """A comparison's networks, images and cells, opened when they are first asked for."""

    def __init__(self, config: CompareConfig, shelf: Shelf):
        self.config, self.shelf = config, shelf
        self.teacher_rows, self.student_rows = teachers_of(config), students_of(config)
        self.objectives, self.budgets = objectives_of(config), budgets_of(config)
        self._teachers: dict[str, Encoder] = {}
        self._pools: dict[str, ImageSource] = {}
        self._rates: dict[str, float] = {}  # by student

    # ------------------------------------------------------------------------------------------- what is opened

    def teacher(self, name: str) -> Encoder:
        """A teacher that sees whole images at the comparison's size, or at its own."""
        if name not in self._teachers:
            row = self.teacher_rows[name]
            given = row.path
            found = given if isinstance(given, Encoder) else load_teacher(given, **row.by_hand)
            pixels = found.preprocessing.at(row.size or self.config.size or found.preprocessing.size, 1.0)
            self._teachers[name] = frozen(with_pixels(found, pixels))
        return self._teachers[name]

    def external(self, job: Job) -> Encoder:
        """A student from elsewhere, shown what the others are shown, by its own mean and std."""
        row = externals_of(self.config)[job.objective]
        weights = row.weights[self.config.seeds.index(job.seed)]
        found = load_teacher(weights, feature=row.feature or None, format=row.format or None)
        eyes = self.eyes(job.teacher)
        return with_pixels(found, replace(eyes, mean=found.preprocessing.mean, std=found.preprocessing.std))

    def eyes(self, teacher: str) -> Preprocessing:
        """How students of a teacher are shown images."""
        contract = self.teacher(teacher).preprocessing
        return replace(contract.at(self.size(teacher), 1.0), mean=IMAGENET_MEAN, std=IMAGENET_STD)

    def size(self, teacher: str) -> int:
        """Side of the views."""
        return self.config.size or self.teacher(teacher).preprocessing.size

    def fresh(self, job: Job) -> Encoder:
        """The student with random weights, as a run of that seed begins it."""
        row = self.student_rows[job.student]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            return build(row.arch, preprocessing=self.eyes(job.teacher), **row.args).eval()

    @cached_property
    def images(self) -> ImageSource:
        """The whole source."""
        return open_images(self.config.images, self.config.max_unreadable)

    def pool(self, name: str) -> ImageSource:
        """A part of it."""
        if name not in self._pools:
            row, whole = pools_of(self.config)[name], self.images
            numbers = pool_numbers([str(i) for i in whole.ids], row.count, row.tail)
            self._pools[name] = (
                whole if len(numbers) == len(whole) else Subset(whole, numbers, name=f"{whole.name} {name}")
            )
        return self._pools[name]

    def held(self, pool: str) -> int:
        """Images that are kept out of training."""
        count = len(self.pool(pool))
        return self.config.held_out or max(FEWEST, min(MOST, int(SHARE * count)))

    # --------------------------------------------------------------------------------------------- what is needed

    def needs(self, job: Job) -> list[Job]:
        """The cells that have to be finished before this one can begin."""
        if job.kind not in TRAINED:
            return []
        found = [Job("targets", job.teacher, pool=job.pool)]
        if job.kind == "student":
            found += trials_of(self.config, job)
            if is_timed(self.config, self.budgets[job.budget]):
                found += self._paces(job)
        return found

    def _paces(self, job: Job) -> list[Job]:
        names = dict.fromkeys((job.objective, *filter(None, [self.config.equal_time])))
        pace = replace(job, kind="pace", budget="", seed=self.config.tune_seed)
        return [replace(pace, objective=name) for name in names]

    def key(self, job: Job) -> str | None:
        """The cell's name on disk; None while something that decides it is not known yet."""
        if any(self.record(need) is None for need in self.needs(job)):
            return None
        return key_of(self.identity(job))

    def record(self, job: Job) -> Record | None:
        """What is kept of a finished cell."""
        key = self.key(job)
        return None if key is None else self.shelf.record(key)

    def identity(self, job: Job) -> dict[str, Any]:
        """Everything that decides a cell."""
        teacher = self.teacher(job.teacher)
        parts: dict[str, Any] = {"version": VERSION, "kind": job.kind, "made by": _versions()}
        parts |= {"teacher": [teacher.digest, teacher.feature, teacher.preprocessing.key()]}
        if job.pool:
            pool = self.pool(job.pool)
            parts |= {"images": [pool.digest, content_key(self.images)], "held": self.held(job.pool)}
        if job.kind == "targets":
            wanted = {name: _code(spec) for name, spec in self.objectives.items()}
            return parts | {"objectives": wanted, "views": self.config.views, "room": self.config.targets_gb} | {
                "replay": {s: self.replay(job, s) for s in self.schemes()}, "precision": self.config.precision,
                "bits": self.config.target_bits, "students": [[row.arch, row.args] for row in self.student_rows.values()],
            }  # fmt: skip
        if job.kind in TRAINED:
            settings = {name: value for name, value in self.settings(job).items() if name not in PLACES}
            parts |= {"settings": settings, "code": _code(self.objectives[job.objective])}
        elif job.kind == "external":
            parts |= {"weights": externals_of(self.config)[job.objective].weights, "seed": job.seed}
        elif job.student:
            row = self.student_rows[job.student]
            parts |= {"student": [row.arch, row.args], "seed": job.seed, "eyes": self.eyes(job.teacher).key()}
        return parts

    # ------------------------------------------------------------------------------------------- budgets and rates

    def looks(self, job: Job) -> int:
        """How many looks a cell's budget comes to."""
        least = min((row.looks for row in self.budgets.values() if row.looks), default=0)
        if job.kind == "trial":
            return round(self.config.tune_share * (least or self._per_epoch(job) * self.config.replay))
        if job.kind == "pace":
            return PACE_STEPS * self.config.batch_size
        budget = self.budgets[job.budget]
        if not is_timed(self.config, budget):
            return budget.looks
        paces = {pace.objective: self._pace(pace) for pace in self._paces(job)}
        own = paces[job.objective]
        return round(
            budget.minutes * 60 / own if budget.minutes else budget.looks * paces[self.config.equal_time] / own
        )

    def _pace(self, job: Job) -> float:
        """Seconds a look; UserError for an objective that could not be run."""
        record = self.record(job) or {}
        if "refused" in record:
            return 1.0  # of a cell that will be refused as well
        return float(record["seconds"]) / float(record["looks"])

    def rate(self, job: Job) -> float:
        """The learning rate: a trial's own, else the best of the trials, else the only one or what a run takes by itself."""
        if job.kind != "student":
            return job.lr or self.first_rate(job)
        trials = {one.lr: self.record(one) or {} for one in trials_of(self.config, job)}
        return best_rate(trials) if trials else self.first_rate(job)

    def first_rate(self, job: Job) -> float:
        """The first rate that is named, else what `ssl-kd distill` takes for such a student."""
        if self.config.lr:
            return self.config.lr[0]
        if job.student not in self._rates:
            self._rates[job.student] = rate_of(self.fresh(job), self.config.optimizer)
        return self._rates[job.student]

    def views(self, objective: str) -> str:
        """The scheme of an objective's views."""
        spec = self.objectives[objective]
        own = CATALOGUE[spec].views if isinstance(spec, str) and spec in CATALOGUE else "weak"
        return {"small": SMALL_VIEWS.get(own, own), "published": own}.get(self.config.views, self.config.views)

    def schemes(self) -> list[str]:
        """All schemes of views."""
        return list(dict.fromkeys(map(self.views, self.objectives)))

    def _per_epoch(self, job: Job) -> int:
        """Looks of an epoch."""
        views = len(SCHEMES[self.views(job.objective)])
        return (len(self.pool(job.pool)) - self.held(job.pool)) * views

    def replay(self, job: Job, views: str) -> int:
        """So many stored views of each image (times those of a scheme)."""
        if self.config.replay:
            return self.config.replay
        per_epoch = (len(self.pool(job.pool)) - self.held(job.pool)) * len(scheme(views))
        return max(math.ceil(row.looks / per_epoch) for row in self.budgets.values())

    def is_mixed(self, objective: str) -> bool:
        """Whether both networks see mixed images, which no stored target is of."""
        spec = self.objectives[objective]
        return isinstance(spec, str) and spec in CATALOGUE and CATALOGUE[spec].mix != "none"

    def settings(self, job: Job, replay: int | None = None) -> dict[str, Any]:
        """The settings of `distill` for a cell."""
        config, row = self.config, self.student_rows[job.student]
        pool = len(self.pool(job.pool)) - self.held(job.pool)
        epoch = -(-pool // config.batch_size)
        steps = max(1, round(self.looks(job) / self._per_epoch(job) * epoch))
        points = config.points if job.kind == "student" else 1
        if replay is None:
            stored = (self.record(Job("targets", job.teacher, pool=job.pool)) or {}).get("stored", [])
            replay = self.replay(job, self.views(job.objective)) if job.objective in stored else 0
        return {
            "student": row.arch,
            "student_args": dict(row.args),
            "objective": self.objectives[job.objective],
            "views": self.views(job.objective),
            "size": self.size(job.teacher),
            "crop_ratio": 1.0,
            "teacher_size": self.teacher(job.teacher).preprocessing.size,
            "replay": replay,
            "targets": (config.targets or f"{config.out}/targets") if replay else "",
            "view_seed": TARGETS_SEED,
            "target_bits": self.config.target_bits,
            "seed": job.seed,
            "steps": steps,
            "epochs": max(1, math.ceil(steps / epoch)),
            "batch_size": config.batch_size,
            "optimizer": config.optimizer,
            "weight_decay": config.weight_decay,
            "warmup": config.warmup,
            "lr": self.rate(job),
            "precision": config.precision,
            "accelerator": config.accelerator,
            "threads": config.threads,
            "health_every": max(steps / points, 1) / epoch if job.kind != "pace" else 0.0,
            "health_images": self.held(job.pool),
            "save_minutes": config.save_minutes,
            "max_unreadable": config.max_unreadable,
            "log_every": 50,
            "quiet": True,
        }

    # ------------------------------------------------------------------------------------------------- what is done

    def fill(self, job: Job, place: Path) -> Record:
        """Store what any objective reads of a teacher's outputs on a pool's views; which objectives it serves."""
        stored: list[str] = []
        refused: dict[str, str] = {}
        room = self.config.targets_gb * 1e9
        for views in self.schemes():
            layouts: dict[str, Layout] = {}
            for name in self.objectives:
                if self.views(name) == views and not self.is_mixed(name):
                    layouts |= self._layout(job, name, refused)
            parts: dict[str, tuple[str, tuple[int, ...], int]] = {}
            images = len(self.pool(job.pool)) - self.held(job.pool)
            rows = self.replay(job, views) * len(scheme(views)) * images
            for name, layout in sorted(layouts.items(), key=lambda one: sum(width for *_, width in one[1])):
                new = {part: (part, shape, width) for part, shape, width in layout if part not in parts}
                needed = sum(rows * bytes_of(part, width, self.config.target_bits) for part, _, width in new.values())
                if needed <= room:
                    room, parts = room - needed, parts | new
                    stored.append(name)
            if parts:
                self._fill_scheme(job, views, list(parts), place / views)
        return {"stored": stored, "not for": refused}

    def _layout(self, job: Job, objective: str, refused: dict[str, str]) -> dict[str, Layout]:
        """What an objective reads of the teacher; nothing for one that no student can have."""
        for student in self.student_rows:
            trial = Job("trial", job.teacher, student, job.pool, objective, seed=self.config.tune_seed)
            given = self.settings(trial, replay=1) | {"out": "dry", "targets": ""}
            teacher, images = self.teacher(job.teacher), self.pool(job.pool)
            try:
                merged, objects = merge(None, teacher, None, images, given)
                parts = prepare(merged, teacher, None, images, objects)
            except UserError as error:
                if not str(error).startswith(REFUSED):
                    raise
                refused[f"{objective}, {student}"] = str(error)
                continue
            return {objective: parts.teacher_group.layouts[""]}
        return {}

    def _fill_scheme(self, job: Job, views: str, parts: list[str], out: Path) -> None:
        from ssl_kd.distillation.target_cache import EMBEDDING, TOKENS

        layers = tuple(part for part in parts if part not in (EMBEDDING, TOKENS))
        like = next(name for name in self.objectives if self.views(name) == views)
        student = next(iter(self.student_rows))
        trial = Job("trial", job.teacher, student, job.pool, like, seed=self.config.tune_seed)
        settings = self.settings(trial, replay=self.replay(job, views)) | NO_TRAINING | {
            "objective": AllParts(TOKENS in parts, layers), "epochs": self.replay(job, views),
        }  # fmt: skip
        fill_targets(
            self.teacher(job.teacher), images=self.pool(job.pool), **settings | {"out": str(out), "mix": "none"}
        )

    def train(self, job: Job, place: Path) -> tuple[Record, Encoder | None]:
        """A student and its record; a record alone, with the reason, where there can be none."""
        settings = self.settings(job)
        record: Record = {"lr": settings["lr"], "replay": settings["replay"], "steps": settings["steps"]}
        try:
            done = distill(self.teacher(job.teacher), images=self.pool(job.pool), out=str(place / "run"), **settings)
        except UserError as error:
            if not isinstance(error, NonFinite | Collapsed) and not str(error).startswith(REFUSED):
                raise
            return record | {"refused": str(error)}, None
        (done.out / LAST).unlink(missing_ok=True)
        (done.out / "student_best.safetensors").unlink(missing_ok=True)
        return record | self._facts(job, settings, done), done.student

    def _facts(self, job: Job, settings: Mapping[str, Any], done: Distilled) -> Record:
        epoch = -(-(len(self.pool(job.pool)) - self.held(job.pool)) // self.config.batch_size)
        looks = settings["steps"] / epoch * self._per_epoch(job)
        measured = [
            (line["step"] / settings["steps"], line["health/neighbour_overlap"])
            for line in map(json.loads, (done.out / METRICS).read_text().splitlines())
            if "health/neighbour_overlap" in line
        ]
        curve = [[round(part * looks), part * done.seconds / 60, overlap] for part, overlap in measured]
        facts = {"seconds": done.seconds, "looks": round(looks), "images_per_second": done.images_per_second}
        return facts | {"curve": curve, "score": curve[-1][2] if curve else None} | seen(done.student)

    def load(self, job: Job) -> Encoder:
        """A finished student, read back; or the network of a row beside."""
        if job.kind == "teacher":
            return self.teacher(job.teacher)
        if job.kind == "external":
            return self.external(job)
        if job.kind == "random":
            return self.fresh(job)
        key = self.key(job)
        assert key is not None
        return load_teacher(self.shelf.place(key) / "run" / STUDENT)


def with_pixels(encoder: Encoder, pixels: Preprocessing) -> Encoder:
    """The same network with another preprocessing; the given one is left as it is."""
    return Encoder(encoder.network, encoder.arch, encoder.arch_args, encoder.feature, pixels, encoder.origin)


def seen(encoder: Encoder) -> Record:
    """By what a judged network is known."""
    return {
        "digest": encoder.digest,
        "feature": encoder.feature,
        "pixels": encoder.preprocessing.key(),
        "parameters": encoder.parameter_count,
        "width": encoder.dim,
    }


def pool_numbers(ids: list[str], count: int, tail: float) -> np.ndarray:
    """The images of a pool, sorted: so many (0: all), evenly drawn or with a long tail of folders.

    With a tail the folders keep shares that fall from 1 to `tail` by a power law, in an order that is shuffled once; an
    even pool of equally many images is one of equal `count`. Folders are named by the ids; what they mean is not asked.
    """
    random = np.random.default_rng(0)
    kept = np.arange(len(ids))
    if tail < 1:
        names, which = np.unique([i.rpartition("/")[0] for i in ids], return_inverse=True)
        if len(names) < 2:
            raise UserError(f"pools: a long tail needs images in at least 2 folders, got {len(names)}")
        sizes, place = np.bincount(which), random.permutation(len(names))
        kept = np.concatenate([
            random.permutation(np.flatnonzero(which == folder))[
                : max(1, round(sizes.max() * tail ** (place[folder] / (len(names) - 1))))
            ]
            for folder in range(len(names))
        ])  # fmt: skip
    if count > len(kept):
        raise UserError(f"pools: {count:,} images were asked for, but there are {len(kept):,}")
    return np.sort(random.permutation(kept)[: count or len(kept)])


def _code(spec: object) -> object:
    """What decides an objective: its terms, or the source of its module."""
    if isinstance(spec, str) and names_code(spec):
        found = cast(type, load_object(spec, "own"))  # or a function; TypeError where it is neither
        module = sys.modules.get(getattr(found, "__module__", ""))
        try:
            return [spec, inspect.getsource(module or found)]
        except (OSError, TypeError) as error:
            raise UserError(
                f"own: the source of {spec} cannot be read ({one_line(error)}); put it in a file"
            ) from error
    return repr(terms_of(spec))  # type: ignore[arg-type]  # checked by then


def _versions() -> list[str]:
    from ssl_kd.distillation.target_cache import versions

    return list(versions())


def hide_ranks() -> tuple[int, int]:
    """This process's number and how many torchrun began; from here on each works for itself."""
    number, count = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    for name in list(os.environ):
        if name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK") or name.startswith(
            ("MASTER_", "TORCHELASTIC_")
        ):
            del os.environ[name]
    return number, count
