"""Evaluate encoders x tasks x evaluators, cell by cell: `python -m eval CONFIG.yaml`, `ssl-kd eval`, or from Python.

A finished cell is kept in `out/cells` under a key of everything that decides it (weights, preprocessing, images,
labels, protocol), so that an interrupted or extended evaluation computes only what is missing and nothing stale.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eval.config import (
    DEFAULT_PROTOCOLS,
    EncoderConfig,
    EvalConfig,
    TaskConfig,
    check,
    encoders_of,
    read_config,
    tasks_of,
)
from eval.metrics import Score, Scores
from eval.report import Cell, Results, write_atomically
from ssl_kd.errors import UserError, nearest

if TYPE_CHECKING:
    from eval.tasks import Task
    from ssl_kd.encoder import Encoder

CELL_VERSION = 1  # raise it when a change of code changes figures


@dataclass(frozen=True)
class Settings:
    """How features are extracted, and where finished cells and features are kept (None: nowhere)."""

    batch_size: int = 64
    threads: int = 2
    device: str = "cpu"
    precision: str = "32-true"
    seed: int = 0
    quiet: bool = False
    cells: Path | None = None
    features: Path | None = None


def main(argv: Sequence[str] | None = None, prog: str = "python -m eval") -> int:
    """Run an evaluation from a command line and print its table; returns the exit code (2 for bad input)."""
    try:
        config = read_config(sys.argv[1:] if argv is None else argv, prog)
        results = evaluate(config, quiet=config.quiet)
    except UserError as error:
        print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(results.table())
    for note in results.notes:
        print(f"note: {note}")
    print(f"{Path(config.out) / 'results.md'}, .csv and .jsonl hold all {len(results.rows)} figures")
    return 0


def evaluate(config: EvalConfig, quiet: bool = False) -> Results:
    """Run what a configuration describes and write its results into `config.out`. UserError for bad input."""
    check(config)
    task_list, encoder_list = tasks_of(config), encoders_of(config)
    for name in config.evaluators:
        split_evaluator(name)
    tasks = [open_task(task, config.max_unreadable) for task in task_list]
    encoders = open_encoders(encoder_list)
    settings = Settings(
        config.batch_size,
        config.threads,
        config.device,
        config.precision,
        config.seed,
        quiet,
        Path(config.out) / "cells",
        None if config.cache == "none" else Path(config.cache or Path(config.out) / "features"),
    )
    results = _evaluate(encoders, tasks, config.evaluators, config.reference or encoder_list[0].title, settings)
    results.save(config.out)
    return results


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


def split_evaluator(name: str) -> tuple[str, str]:
    """Return kind and protocol of an evaluator's name: "knn" is "knn/dino". UserError for unknown ones."""
    kind, _, protocol = name.partition("/")
    if kind not in DEFAULT_PROTOCOLS:
        known = list(DEFAULT_PROTOCOLS)
        raise UserError(f"no evaluator {kind!r}; known: {', '.join(known)}.{nearest(kind, known)}")
    protocol = protocol or DEFAULT_PROTOCOLS[kind]
    _protocol(kind, protocol)
    return kind, protocol


def open_task(config: TaskConfig, max_unreadable: float = 0.01) -> Task:
    """Open one task of a configuration."""
    from eval.tasks import folder_pair, folder_task, torchvision_task

    if config.path:
        return folder_task(config.path, config.title, config.metric, max_unreadable)
    if config.train:
        return folder_pair(config.train, config.test, config.title, config.metric, max_unreadable)
    return torchvision_task(config.title, config.root, config.download)


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
    cells = [
        cell
        for task in tasks
        for name, encoder in encoders.items()
        for cell in _cells(name, encoder, task, wanted, settings)
    ]
    return Results(tuple(cells), reference, {"settings": {key: str(value) for key, value in asdict(settings).items()}})


def _cells(
    name: str, encoder: Encoder, task: Task, wanted: Sequence[tuple[str, str]], settings: Settings
) -> list[Cell]:
    """Return one encoder's cells on one task; images are read only if a cell is missing."""
    keys = {one: _key(encoder, task, one, settings) for one in wanted}
    if encoder.arch.startswith("module/"):
        # a module from Python is known by its weights only: were its code changed, whatever is kept would be stale
        settings = replace(settings, cells=None, features=None)
    found = {one: _load_cell(settings.cells, key) for one, key in keys.items()}
    missing = [one for one in wanted if found[one] is None]
    if missing:
        train, test, rate = _banks(name, encoder, task, settings)
        for one in missing:
            began = time.monotonic()
            scores = _evaluator(one, task, settings)(train, test)
            facts = {
                "images_per_second": rate,
                "parameters": sum(p.numel() for p in encoder.backbone.parameters()),
                "width": train.width,
                "seconds": time.monotonic() - began,
            }
            found[one] = (scores, facts)
            _save_cell(settings.cells, keys[one], scores, facts)
            _tell(settings, task, name, scores)
    return [
        Cell(task.name, name, task.metric, scores, facts["parameters"], facts["width"], facts["images_per_second"])
        for scores, facts in (kept for kept in found.values() if kept is not None)
    ]


def _banks(name: str, encoder: Encoder, task: Task, settings: Settings) -> tuple[Any, Any, float]:
    """Return train and test bank and the images per second that they took, whenever that was."""
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


def _protocol(kind: str, name: str) -> Any:
    if kind == "knn":
        from eval.knn import knn_protocol

        return knn_protocol(name)
    from eval.linear_probe import linear_protocol

    return linear_protocol(name)


def _evaluator(one: tuple[str, str], task: Task, settings: Settings) -> Any:
    kind, protocol = one
    if kind == "knn":
        from eval.knn import KNN

        return KNN(protocol)
    from eval.linear_probe import LinearProbe

    return LinearProbe(protocol, metric=task.metric, seed=settings.seed, device=settings.device)


def _key(encoder: Encoder, task: Task, one: tuple[str, str], settings: Settings) -> str:
    parts = {
        "version": CELL_VERSION,
        "weights": encoder.digest,
        "feature": encoder.feature,
        "preprocessing": repr(encoder.preprocessing),
        "task": task.digest,
        "metric": task.metric,
        "evaluator": one[0],
        "protocol": repr(_protocol(*one)),
        "precision": settings.precision,
        "seed": settings.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _save_cell(folder: Path | None, key: str, scores: Scores, facts: Mapping[str, Any]) -> None:
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    head = {
        "evaluator": scores.evaluator,
        "protocol": scores.protocol,
        "rows": [asdict(row) for row in scores.rows],
        "headline_k": scores.headline_k,
        "notes": scores.notes,
        "details": scores.details,
        "facts": facts,
        "ks": list(scores.predicted),
    }
    content = io.BytesIO()
    np.savez_compressed(
        content,
        head=np.array(json.dumps(head)),
        classes=scores.classes,
        labels=scores.labels,
        predicted=np.stack(list(scores.predicted.values())),
    )
    write_atomically(folder / f"{key}.npz", content.getvalue())


def _load_cell(folder: Path | None, key: str) -> tuple[Scores, dict[str, Any]] | None:
    if folder is None or not (path := folder / f"{key}.npz").is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            head = json.loads(str(stored["head"]))
            predicted = dict(zip(head["ks"], stored["predicted"], strict=True))
            arrays = stored["classes"], stored["labels"]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None  # damaged: computed again and written anew
    scores = Scores(
        head["evaluator"],
        head["protocol"],
        tuple(Score(**row) for row in head["rows"]),
        *arrays,
        predicted,
        head["headline_k"],
        tuple(head["notes"]),
        head["details"],
    )
    return scores, head["facts"]


def _tell(settings: Settings, task: Task, name: str, scores: Scores) -> None:
    if not settings.quiet:
        score = scores.score(task.metric)
        at = f" k={score.k}" if score.k else ""
        print(
            f"{task.name}, {name}: {scores.evaluator}/{scores.protocol}{at} {score.metric} {100 * score.value:.1f} % "
            f"[{100 * score.low:.1f}, {100 * score.high:.1f}]",
            file=sys.stderr,
        )
