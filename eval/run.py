"""Evaluate encoders x tasks x evaluators, cell by cell: `python -m eval CONFIG.yaml`, `ssl-kd eval`, or from Python.

A finished cell is kept in `out/cells` under a key of everything that decides it (weights, preprocessing, images,
labels, protocol), so that an interrupted or extended evaluation computes only what is missing and nothing stale.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.cells import load_cell, save_cell
from eval.config import (
    EncoderConfig,
    EvalConfig,
    TaskConfig,
    check,
    encoders_of,
    tasks_of,
)
from eval.evaluators import EVALUATORS, split_evaluator
from eval.report import Cell, Results, write_atomically
from ssl_kd.errors import UserError, nearest

if TYPE_CHECKING:
    from eval.features import FeatureBank
    from eval.metrics import Scores
    from eval.tasks import Task
    from ssl_kd.encoder import Encoder

CELL_VERSION = 2  # raise it when a change of code changes figures


@dataclass(frozen=True)
class Settings:
    """How features are extracted, where finished cells and features are kept (None: nowhere), and whether maps and
    galleries are wanted for a report.
    """

    batch_size: int = 64
    threads: int = 2
    device: str = "cpu"
    precision: str = "32-true"
    seed: int = 0
    quiet: bool = False
    cells: Path | None = None
    features: Path | None = None
    looks: bool = False


def evaluate(config: EvalConfig, quiet: bool = False) -> Results:
    """Run what a configuration describes and write its results into `config.out`. UserError for bad input."""
    check(config)
    task_list, encoder_list = tasks_of(config), encoders_of(config)
    for name in config.evaluators:
        split_evaluator(name)
    _check_device(config.device)
    tasks = [open_task(task, config.max_unreadable) for task in task_list]
    encoders = open_encoders(encoder_list)
    try:
        Path(config.out).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out: {config.out} cannot be made a folder: {error.strerror}") from None
    settings = Settings(
        config.batch_size,
        config.threads,
        config.device,
        config.precision,
        config.seed,
        quiet,
        Path(config.out) / "cells",
        None if config.cache == "none" else Path(config.cache or Path(config.out) / "features"),
        config.report,
    )
    results = _evaluate(encoders, tasks, config.evaluators, config.reference or encoder_list[0].title, settings)
    results.save(config.out)
    if config.report:
        import yaml

        from eval.page import page

        text = page(
            results, results.looks, yaml.safe_dump(asdict(config), sort_keys=False), f"Evaluation: {config.out}"
        )
        write_atomically(Path(config.out) / "report.html", text.encode())
    return results


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f"device: expected cpu or cuda, got {device!r}") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: {device} was asked for, but torch sees no GPU here; use cpu")


def evaluate_encoders(
    encoders: Mapping[str, Encoder],
    tasks: Sequence[Task],
    evaluators: Sequence[str] = ("knn", "linear"),
    reference: str = "",
    quiet: bool = False,
    out: str | Path | None = None,
    **settings: Any,
) -> Results:
    """Do the same from Python: encoders by name, tasks, and names of evaluators such as "knn" or "linear/quick-lbfgs".

    `reference` defaults to the first encoder. With `out`, results are kept there, and cells too, but for modules from
    Python, whose code has no digest. Other settings are the fields of Settings (batch_size, threads, device, ...),
    with `features` the folder of a feature cache.
    """
    if not encoders or not tasks or not evaluators:
        raise UserError("evaluate_encoders: needs at least one encoder, one task and one evaluator")
    reference = reference or next(iter(encoders))
    if reference not in encoders:
        raise UserError(f"reference: {reference!r} is no encoder here.{nearest(reference, list(encoders))}")
    cells = None if out is None else Path(out) / "cells"
    results = _evaluate(encoders, tasks, evaluators, reference, Settings(quiet=quiet, cells=cells, **settings))
    if out is not None:
        results.save(out)
    return results


def open_task(config: TaskConfig, max_unreadable: float = 0.01) -> Task:
    """Open one task of a configuration."""
    from eval.tasks import corrupted, folder_pair, folder_task, torchvision_task

    plain = config.name or Path(config.path).stem
    if config.path:
        task = folder_task(config.path, plain, config.metric, max_unreadable)
    elif config.train:
        task = folder_pair(config.train, config.test, plain, config.metric, max_unreadable)
    else:
        task = torchvision_task(plain, config.root, config.download)
    return corrupted(task, config.corrupt, config.severity, config.title) if config.corrupt else task


def open_encoders(configs: Sequence[EncoderConfig]) -> dict[str, Encoder]:
    """Load every encoder of a configuration by name; random rows are built like the one they name."""
    from ssl_kd.checkpoint import load_teacher

    loaded: dict[str, Encoder] = {}
    for config in configs:
        if config.weights:
            encoder = load_teacher(config.weights, feature=config.feature, format=config.format)
            if config.size is not None:
                encoder.preprocessing = encoder.preprocessing.at(config.size, config.crop_ratio)
            loaded[config.title] = encoder
    for config in configs:
        if config.like:
            loaded[config.title] = random_like(loaded[config.like], config.seed)
    return {config.title: loaded[config.title] for config in configs}


def random_like(encoder: Encoder, seed: int = 0) -> Encoder:
    """Return the same architecture, feature and preprocessing with random weights: what any figure has to beat."""
    import torch

    from ssl_kd.encoder import build

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(encoder.arch, encoder.feature, encoder.preprocessing, **encoder.arch_args)


def _evaluate(
    encoders: Mapping[str, Encoder],
    tasks: Sequence[Task],
    evaluators: Sequence[str],
    reference: str,
    settings: Settings,
) -> Results:
    wanted = [split_evaluator(name) for name in dict.fromkeys(evaluators)]
    cells, looks = [], []
    for task in tasks:
        banks = _Banks(encoders, task, settings, reference)
        for name in encoders:
            cells += [_cell(name, one, banks) for one in wanted]
            # without a cache and with every cell kept from before, the images need not be read for the pictures' sake
            if settings.looks and (settings.features or name in banks.held):
                from eval.looks import look

                train, test, _ = banks(name)
                looks.append(look(task, name, train, test))
    return Results(tuple(cells), reference, _facts(encoders, tasks), tuple(looks))


def _facts(encoders: Mapping[str, Encoder], tasks: Sequence[Task]) -> dict[str, str]:
    """Return what a reader needs to know that these are the same networks, images and programs."""
    import platform
    from importlib.metadata import version

    facts = {f"encoder {name}": f"{e.arch}, {e.origin}, weights {e.digest[:16]}" for name, e in encoders.items()}
    facts |= {
        f"task {task.name}": f"{len(task.train.images):,} train, {len(task.test.images):,} test, digest {task.digest[:16]}"
        for task in tasks
    }
    facts["programs"] = ", ".join(f"{name} {version(name)}" for name in ("ssl-kd", "torch", "faiss-cpu", "numpy"))
    facts["machine"] = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    return facts


class _Banks:
    """The feature banks of one task, made when first asked for; the reference's and the last encoder's stay."""

    def __init__(self, encoders: Mapping[str, Encoder], task: Task, settings: Settings, reference: str):
        self.encoders, self.task, self.settings, self.reference = encoders, task, settings, reference
        self.held: dict[str, tuple[FeatureBank, FeatureBank, float]] = {}

    def settings_for(self, name: str) -> Settings:
        """A module from Python is known by its weights only: were its code changed, whatever is kept would be stale."""
        module = self.encoders[name].arch.startswith("module/")
        return replace(self.settings, cells=None, features=None) if module else self.settings

    def __call__(self, name: str) -> tuple[FeatureBank, FeatureBank, float]:
        """Return train bank, test bank, and the images per second that they took, whenever that was."""
        if name not in self.held:
            self.held = {kept: banks for kept, banks in self.held.items() if kept == self.reference}
            self.held[name] = _banks(name, self.encoders[name], self.task, self.settings_for(name))
        return self.held[name]


def _cell(name: str, one: tuple[str, str], banks: _Banks) -> Cell:
    """Return one cell, computed only if it is not kept from before."""
    encoder, task, settings = banks.encoders[name], banks.task, banks.settings_for(name)
    kind = EVALUATORS[one[0]]
    if kind.paired:
        settings = replace(settings, cells=banks.settings_for(banks.reference).cells and settings.cells)
    key = _key(name, one, banks)
    found = load_cell(settings.cells, key)
    if found is None:
        train, test, rate = banks(name)
        others = banks(banks.reference)[:2] if kind.paired else ()
        began = time.monotonic()
        evaluator = kind.make(kind.find(one[1]), task.metric, settings.seed, settings.device, settings.quiet)
        scores = evaluator(train, test, *others)
        facts: dict[str, Any] = {
            "images_per_second": rate,
            "parameters": sum(p.numel() for p in encoder.backbone.parameters()),
            "width": train.width,
            "seconds": time.monotonic() - began,
        }
        found = (scores, facts)
        save_cell(settings.cells, key, *found)
        _tell(settings, task, name, scores)
    scores, facts = found
    metric = scores.headline_metric or task.metric
    return Cell(task.name, name, metric, scores, facts["parameters"], facts["width"], facts["images_per_second"])


def _banks(name: str, encoder: Encoder, task: Task, settings: Settings) -> tuple[FeatureBank, FeatureBank, float]:
    from eval.features import extract
    from eval.store import FeatureStore

    store = None if settings.features is None else FeatureStore(settings.features)
    how: dict[str, Any] = {
        "batch_size": settings.batch_size,
        "device": settings.device,
        "precision": settings.precision,
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
    if store is not None:
        return banks[0], banks[1], store.rate(encoder, task.train.images, settings.precision)
    return banks[0], banks[1], sum(map(len, banks)) / max(time.monotonic() - began, 1e-9)


def _key(name: str, one: tuple[str, str], banks: _Banks) -> str:
    kind, names = EVALUATORS[one[0]], [name]
    if kind.paired:
        names.append(banks.reference)
    parts = {
        "version": CELL_VERSION,
        "encoders": [
            (encoder.digest, encoder.feature, repr(encoder.preprocessing))
            for encoder in map(banks.encoders.get, names)
            if encoder
        ],
        "task": banks.task.digest,
        "metric": banks.task.metric,
        "evaluator": one[0],
        "protocol": repr(kind.find(one[1])),
        "precision": banks.settings.precision,
        "seed": banks.settings.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _tell(settings: Settings, task: Task, name: str, scores: Scores) -> None:
    if not settings.quiet:
        score = scores.score(scores.headline_metric or task.metric)
        at = f" k={score.k}" if score.k else ""
        print(
            f"{task.name}, {name}: {scores.evaluator}/{scores.protocol}{at} {score.metric} {100 * score.value:.1f} % "
            f"[{100 * score.low:.1f}, {100 * score.high:.1f}]",
            file=sys.stderr,
        )
