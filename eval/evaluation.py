"""Evaluate encoders x tasks x evaluators, cell by cell: `ssl-kd eval CONFIG.yaml`, or from Python.

A finished cell is kept in `out/cells` under a key of everything that decides it (weights, preprocessing, images,
labels, protocol, the programs' versions), so that an interrupted or extended evaluation computes only what is missing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ssl_kd.checkpoints.licences import warning
from ssl_kd.errors import UserError, nearest, one_of
from ssl_kd.registry import is_object
from ssl_kd.runtime.files import probe
from ssl_kd.runtime.ownership import mark, require_ours

from .datasets.tasks import Task, folder_task
from .evaluators.choices import Choice, choices, described
from .kept import save_results
from .results import Results
from .runner.build import open_encoders, open_task
from .runner.cells import Bench, Job, Settings, plan
from .runner.config import (
    EncoderConfig,
    EvalConfig,
    TaskConfig,
    check,
    check_settings,
    damaged_photos,
    encoders_of,
    ood_of,
    pairs_of,
    tasks_of,
    title_of,
)
from .runner.own_features import OwnFeatures, own_features
from .runner.place import EVALUATION, WHOLE

if TYPE_CHECKING:
    from ssl_kd.models.encoder import Encoder

    from .runner.cells import Row

BESIDE_THE_REFERENCE = ("agreement", "cka", "asymmetric")  # evaluators whose figure is of two networks


def evaluate(config: EvalConfig, quiet: bool = False) -> Results:
    """Run what a configuration describes and write its results into `config.out`. UserError for bad input.

    From Python, `tasks` may hold Task objects and `evaluators` whatever `evaluate_encoders` takes, beside the names.
    """
    check(config)
    require_ours(Path(config.out), EVALUATION)
    task_list, encoder_list, pairs = tasks_of(config), encoders_of(config), ood_of(config)
    wanted = choices(config.evaluators, config.index)
    if config.workers > 1:
        _check_names(wanted, task_list, encoder_list)
    _check_machine(config.device, config.engine)
    _architectures_must_be_known(encoder_list)
    further, alike, strange = damaged_photos(task_list)
    task_list = [*task_list, *further]
    tasks = {title_of(task): open_task(task, config.max_unreadable) for task in task_list}
    encoders = open_encoders(encoder_list)
    settings = Settings(
        config.batch_size,
        config.threads,
        config.device,
        config.precision,
        config.engine,
        config.seed,
        quiet,
        Path(config.out) / "cells",
        None if config.cache == "none" else Path(config.cache or Path(config.out) / "features"),
        config.report,
        config.verify,
        tuple(config.maps),
    )
    _make_folders(settings)
    mark(Path(config.out), EVALUATION)
    bench = Bench(encoders, tasks, config.reference or encoder_list[0].title, settings, wanted)
    shown = [task for name, task in tasks.items() if name not in {title_of(one) for one in further}]
    jobs, left_out = plan(shown, list(encoders), wanted, list(dict.fromkeys([*pairs, *strange])), alike)
    if config.workers > 1:
        from .runner.workers import work

        described_tasks = [task for task in task_list if isinstance(task, TaskConfig)]
        work(bench, jobs, described_tasks, encoder_list, config.workers, config.max_unreadable)
    results = _results(bench, jobs, left_out)
    sources = {one.title: one.source for one in encoder_list}
    return _written(results, bench, Path(config.out), settings_text(config), sources)


def _check_names(
    wanted: Sequence[Choice], tasks: Sequence[TaskConfig | Task], encoders: Sequence[EncoderConfig]
) -> None:
    """UserError for objects where other processes would have to make them from their names."""
    objects = [choice.title for choice in wanted if choice.is_object]
    objects += [task.name for task in tasks if not hasattr(task, "title") or is_object(task.name)]
    objects += [str(one.format) for one in encoders if is_object(one.format)]
    if objects:
        raise UserError(
            f"workers: {objects[0]} is code of your own, which other processes do not have; take workers: 1"
        )


def _written(results: Results, bench: Bench, out: Path, settings: str, sources: Mapping[str, str]) -> Results:
    """Write the results and, where it is wanted, report.html; return them with what only the report shows."""
    from .report.html import write_page
    from .report.training_curves import read_curves

    results.save(out)
    if bench.settings.looks:
        from .extraction.latency import latencies

        networks = {name: row for name, row in bench.encoders.items() if not isinstance(row, OwnFeatures)}
        curves = {name: found for name, source in sources.items() if (found := read_curves(source))}
        results = replace(results, curves=curves, latencies=latencies(networks, bench.settings.device))
        write_page(out / "report.html", results, settings, f"Evaluation: {out.name}")
    save_results(out / WHOLE, results, settings)
    return results


def settings_text(config: EvalConfig) -> str:
    """Return a configuration as YAML; an object from Python stands there as what it is, in words."""
    import yaml

    settings = {f.name: _plain(getattr(config, f.name)) for f in fields(config)}
    return str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if isinstance(value, str | int | float | None) else described(value)[0]


def _architectures_must_be_known(encoders: Sequence[EncoderConfig]) -> None:
    from ssl_kd.models.factory import must_be_an_architecture

    for one in encoders:
        must_be_an_architecture(f"encoders: arch of {one.title}", one.arch)


def _check_machine(device: str, engine: str) -> None:
    from ssl_kd.runtime.devices import usable

    from .extraction.engines import ENGINES

    usable(device)
    one_of("engine", engine, list(ENGINES))


def evaluate_encoders(
    encoders: Mapping[str, Encoder | Mapping[str, object]],
    tasks: Sequence[Task | str | Path],
    evaluators: Sequence[object] | str = ("knn", "linear"),
    reference: str = "",
    quiet: bool = False,
    out: str | Path | None = None,
    ood: Sequence[tuple[str, str]] = (),
    **settings: object,
) -> Results:
    """Do the same from Python, with objects where a configuration has names.

    `encoders`: by name an Encoder, or own features by task (see eval/runner/own_features.py). `tasks`: Tasks, or folders and zips
    of train/<class>/<file> and test/. `evaluators`: names such as
    "knn" or "linear/quick-lbfgs", protocols of your own, pairs (kind, protocol), or objects called as
    (train, test) -> Scores (see eval/evaluators/choices.py). `reference` defaults to the first encoder. With `out`,
    results and report.html are kept there, and cells too, but for what has no digest of its code: modules and evaluators
    of your own.
    `ood` are pairs of tasks' names, inside and outside. Other settings are the fields of Settings (batch_size,
    threads, device, ...), with `features` the folder of a feature cache.
    """
    if not isinstance(encoders, Mapping):
        raise UserError(f"encoders: expected a mapping, as in {{'student': encoder}}; got {type(encoders).__name__}")
    given = [tasks] if isinstance(tasks, Task | str | Path) else list(tasks)
    judged = [folder_task(one) if isinstance(one, str | Path) else one for one in given]
    evaluators = [evaluators] if isinstance(evaluators, str) else evaluators
    if wrong := next((one for one in judged if not isinstance(one, Task)), None):
        raise UserError(f"tasks: expected Tasks, or paths of folders and zips; got {type(wrong).__name__}")
    named = {task.name: task for task in judged}
    if not encoders or not named or not (evaluators or ood):
        raise UserError("evaluate_encoders: needs at least one encoder, one task and one evaluator")
    if len(named) < len(judged):
        raise UserError("evaluate_encoders: two tasks have one name; give each its own")
    reference = reference or next(iter(encoders))
    if reference not in encoders:
        raise UserError(f"reference: {reference!r} is no encoder here.{nearest(reference, list(encoders))}")
    if settings.get("features") is not None:
        settings["features"] = Path(cast(str, settings["features"]))
    settings.setdefault("looks", out is not None)
    make: Callable[..., Settings] = Settings
    how = make(quiet=quiet, cells=None if out is None else Path(out) / "cells", **settings)
    check_settings(how)
    if out is not None:
        require_ours(Path(out), EVALUATION)
    pairs, wanted = pairs_of(ood, list(named)), choices(evaluators)
    _check_machine(how.device, how.engine)
    rows = {name: _row(name, given) for name, given in encoders.items()}
    _make_folders(how)
    if out is not None:
        mark(Path(out), EVALUATION)
    bench = Bench(rows, named, reference, how, wanted)
    results = _results(bench, *plan(judged, list(rows), wanted, pairs))
    if out is not None:
        results = _written(results, bench, Path(out), "", {})
        if not quiet:
            print(f"{Path(out) / 'report.html'} shows the results", file=sys.stderr)
    return results


def _row(name: str, given: Encoder | Mapping[str, object]) -> Row:
    from ssl_kd.models.encoder import Encoder

    if isinstance(given, Encoder | OwnFeatures):
        return given
    if isinstance(given, Mapping):
        return own_features(name, given)
    raise UserError(
        f"encoder {name}: expected an Encoder (Encoder.from_module wraps a network) or features by task, got "
        f"{type(given).__name__}"
    )


def _make_folders(settings: Settings) -> None:
    """Make the folders of cells and features: UserError now, not after the work, where they cannot be."""
    for what, folder in (("features", settings.features), ("cells", settings.cells)):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{what}: {folder} cannot be made a folder: {error.strerror}") from None
        probe(folder / "any")


def _results(bench: Bench, jobs: Sequence[Job], left_out: Sequence[str]) -> Results:
    """Go through all jobs in order, and take a look at every encoder on every task where that is wanted."""
    cells, looks, settings = [], [], bench.settings
    for i, job in enumerate(jobs):
        cells.append(bench.cell(job))
        last = i + 1 == len(jobs) or (jobs[i + 1].task, jobs[i + 1].encoder) != (job.task, job.encoder)
        # without a cache and with every cell kept from before, the images need not be read for the pictures' sake
        if settings.looks and last and not job.outside and (settings.features or (job.task, job.encoder) in bench.held):
            from .report.projections import look

            train, test, _ = bench.banks(job.task, job.encoder)
            looks.append(look(bench.tasks[job.task], job.encoder, train, test, maps=settings.maps))
    if not cells:
        raise UserError(f"nothing to do: {'; '.join(left_out)}")
    known = facts(bench.encoders, bench.tasks.values())
    known |= {f"evaluator {one.title}": one.record for one in bench.own.values()}
    notes = other_sizes(bench.encoders, bench.reference)
    if len(bench.encoders) == 1 and any(cell.scores.evaluator in BESIDE_THE_REFERENCE for cell in cells):
        notes.append(
            f"{bench.reference} is compared with itself, because no other encoder is here; add its teacher, and random weights "
            f"({{name: random, like: {bench.reference}}})"
        )
    known |= {"notes on encoders": "\n".join(notes)} if notes else {}
    known["features"] = f"{settings.precision}, engine {settings.engine}"
    known["programs"] = "; ".join(dict.fromkeys(cell.programs for cell in cells))
    return Results(tuple(cells), bench.reference, known, tuple(looks), tuple(left_out))


def other_sizes(encoders: Mapping[str, Row], reference: str) -> list[str]:
    """A note on each student of the reference that sees images at another size than the reference does here."""
    from ssl_kd.models.encoder import Encoder, learned_at

    teacher, notes = encoders.get(reference), []
    for name, row in encoders.items():
        if isinstance(teacher, Encoder) and isinstance(row, Encoder) and (alike := learned_at(row, teacher)):
            notes.append(
                f"{reference} is judged at {teacher.preprocessing.size} px and {name}, its student, at {alike.size}; "
                f"`size: {alike.size}` in {reference}'s row judges both alike"
            )
    return notes


def facts(encoders: Mapping[str, Row], tasks: Iterable[Task]) -> dict[str, str]:
    """Return what a reader needs to know that these are the same networks, images and machine."""
    import platform

    found = {f"encoder {name}": _told(row) for name, row in encoders.items()}
    stated = {name: licence for name, row in encoders.items() if (licence := getattr(row, "licence", ""))}
    found |= {f"licence of {name}": licence for name, licence in stated.items()}
    found |= {"licences": sentence} if (sentence := warning(stated)) else {}
    tasks = list(tasks)
    notes = [note for task in tasks for note in task.notes]
    found |= {"notes on tasks": "\n".join(notes)} if notes else {}
    found |= {
        f"task {task.name}": f"{len(task.train.images):,} train, {len(task.test.images):,} test, digest {task.digest[:16]}"
        for task in tasks
    }
    found["machine"] = f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}"
    return found


def _told(row: Row) -> str:
    if isinstance(row, OwnFeatures):
        return "own features, " + ", ".join(f"{task} digest {digest[:16]}" for task, digest in row.digests.items())
    return f"{row.arch}, {row.origin}, weights {row.digest[:16]}"
