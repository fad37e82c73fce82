"""One report from what is finished: folders of distillation runs and of evaluations, side by side.

ssl-kd report runs/a runs/b runs/eval --out report.html

Nothing is measured anew. Evaluations are joined figure by figure; where two call different networks or images by one name,
the later one's name gets its folder beside it, so that nothing is compared that is not the same.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from ssl_kd.checkpoints.loading import inspect
from ssl_kd.errors import CheckpointError, UserError, nearest
from ssl_kd.runtime.files import probe
from ssl_kd.runtime.ownership import refuse_replacing
from ssl_kd.runtime.run_dir import STUDENT

from .kept import load_results
from .report.html import is_page, write_page
from .report.training_curves import HEALTH, Curves, read_curves
from .results import Results
from .results.runs import Run
from .runner.place import WHOLE

OVERLAP = f"{HEALTH}neighbour_overlap"


def report(folders: Sequence[str | Path], out: str | Path, reference: str = "", title: str = "") -> Results:
    """Write one report of finished runs and evaluations into the file `out`, and return what is in it.

    `folders`: of `ssl-kd distill` (with one student or several) and of `ssl-kd eval`. `reference` names the encoder whose
    figures are 100 %; by default the first evaluation's. UserError where a folder is neither, or `out` is somebody's file.
    """
    out = Path(out)
    results, settings = gathered(folders, reference)
    refuse_replacing("out", out, is_page)
    probe(out)
    write_page(out, results, settings, title or f"Report: {', '.join(Path(one).name for one in folders)}")
    return results


def gathered(folders: Sequence[str | Path], reference: str = "") -> tuple[Results, str]:
    """Return all that is in some folders as one, and the settings of its first evaluation. UserError as `report` says."""
    evaluations, runs, curves, settings = [], list[Run](), dict[str, Curves](), ""
    for folder in map(Path, folders):
        if (folder / WHOLE).is_file():
            found = load_results(folder / WHOLE)
            if found is None:
                raise UserError(
                    f"{folder / WHOLE}: is damaged; the evaluation's own command writes it anew, from its cells"
                )
            evaluations.append((folder.name, found[0]))
            settings = settings or found[1]
        elif own := _runs_of(folder):
            for run, curve in own:
                name = _free(run.name, [one.name for one in runs], run.folder)
                runs.append(replace(run, name=name))
                curves[name] = curve
        else:
            raise UserError(f"{folder}: {_what_is_missing(folder)}")
    joined = _joined(evaluations)
    if reference and reference not in {cell.encoder for cell in joined.cells}:
        known = list(dict.fromkeys(cell.encoder for cell in joined.cells))
        raise UserError(f"reference: {reference!r} is no encoder here.{nearest(reference, known)}")
    # a student that was evaluated and its run are one: the evaluation read the same curves
    for name, curve in curves.items():
        if curve and curve not in joined.curves.values():
            joined = replace(joined, curves={**joined.curves, name: curve})
    return replace(joined, reference=reference or joined.reference, runs=tuple(runs)), settings


def _what_is_missing(folder: Path) -> str:
    if not folder.is_dir():
        return "there is no such folder; expected one of ssl-kd distill or of ssl-kd eval"
    if (folder / "results.jsonl").is_file():
        return f"this evaluation has no {WHOLE}, which older versions did not write; its own command adds it, from its cells"
    if (folder / "compare.csv").is_file():
        return "this is a comparison, whose report is its own report.html; expected a run or an evaluation"
    if (folder / "config.yaml").is_file():
        return "this run has logged nothing yet; expected a metrics.jsonl"
    return "is neither a run of ssl-kd distill nor an evaluation of ssl-kd eval"


def _joined(evaluations: Sequence[tuple[str, Results]]) -> Results:
    if not evaluations:
        return Results(())
    (_, joined), *others = evaluations
    for folder, more in others:
        renamed = _renamed(more, joined.facts, folder)
        there = {(cell.task, cell.encoder, cell.evaluator) for cell in joined.cells}
        seen = {(look.task, look.encoder) for look in joined.looks}
        joined = replace(
            joined,
            cells=(*joined.cells, *(c for c in renamed.cells if (c.task, c.encoder, c.evaluator) not in there)),
            facts={**renamed.facts, **joined.facts},
            looks=(*joined.looks, *(one for one in renamed.looks if (one.task, one.encoder) not in seen)),
            left_out=tuple(dict.fromkeys((*joined.left_out, *renamed.left_out))),
            curves={**renamed.curves, **joined.curves},
            latencies={**renamed.latencies, **joined.latencies},
        )
    order = {task: i for i, task in enumerate(dict.fromkeys(cell.task for cell in joined.cells))}
    return replace(joined, cells=tuple(sorted(joined.cells, key=lambda cell: order[cell.task])))


def _renamed(results: Results, facts: Mapping[str, str], folder: str) -> Results:
    """Return results whose encoders and tasks that are others than those known under their names are called otherwise."""
    new = {
        f"{kind} {name}": f"{name} ({folder})"
        for kind in ("encoder", "task")
        for key in results.facts
        if (name := key.removeprefix(f"{kind} ")) != key and facts.get(key, results.facts[key]) != results.facts[key]
    }

    def encoder(name: str) -> str:
        return new.get(f"encoder {name}", name)

    def task(name: str) -> str:  # of strangers a title names two
        return " vs ".join(new.get(f"task {one}", one) for one in name.split(" vs "))

    def fact(key: str) -> str:
        return f"{key.partition(' ')[0]} {new[key]}" if key in new else key

    return replace(
        results,
        cells=tuple(replace(c, encoder=encoder(c.encoder), task=task(c.task)) for c in results.cells),
        looks=tuple(replace(one, encoder=encoder(one.encoder), task=task(one.task)) for one in results.looks),
        facts={fact(key): value for key, value in results.facts.items()},
        curves={encoder(name): found for name, found in results.curves.items()},
        latencies={encoder(name): found for name, found in results.latencies.items()},
    )


def _free(name: str, taken: Sequence[str], folder: Path) -> str:
    """Return a name that no other run has: with the folder above, or a number, where it is taken."""
    if name in taken:
        name = f"{folder.resolve().parent.name}/{name}"
    number = 2
    while name in taken:
        name, number = f"{name.removesuffix(f' {number - 1}')} {number}", number + 1
    return name


def _runs_of(folder: Path) -> list[tuple[Run, Curves]]:
    """Return a run's students with their curves; none where the folder holds no run that logged anything."""
    places = sorted(path.parent for path in folder.glob("students/*/metrics.jsonl")) or [folder]
    settings, command = _settings(folder / "config.yaml"), _command(folder / "environment.json")
    if not settings:
        return []
    found = []
    for place in places:
        logged = read_curves(str(place / STUDENT), least=1)
        if not logged:
            continue
        own = settings
        if place != folder:
            students = settings.get("students")
            mine = students.get(place.name) if isinstance(students, Mapping) else None
            own = {**settings, "student": mine.get("arch") if isinstance(mine, Mapping) else place.name}
        name = folder.resolve().name + ("" if place == folder else f"/{place.name}")
        curves = {key: curve for key, curve in logged.items() if len(curve[0]) > 1}
        found.append((_run(name, place, own, logged, command), curves))
    return found


def _run(name: str, place: Path, settings: Mapping[str, object], curves: Curves, command: str) -> Run:
    steps, overlaps = curves.get(OVERLAP, ([], []))
    best = max(zip(overlaps, steps, strict=True), default=None, key=lambda pair: pair[0])
    rates = curves.get("images_per_s", ([], [math.nan]))[1]
    ill = curves.get(f"{HEALTH}collapsed", ([], [0.0]))[1][-1] > 0
    return Run(
        name,
        place,
        settings,
        _parameters(place / STUDENT),
        int(max(curve[0][-1] for curve in curves.values())),
        overlaps[-1] if overlaps else None,
        best,
        _last(curves, f"{HEALTH}chance_neighbour_overlap"),
        _last(curves, f"{HEALTH}half_neighbour_overlap") or 0.0,
        None if math.isnan(rates[-1]) else rates[-1],
        ill,
        command,
    )


def _last(curves: Curves, key: str) -> float | None:
    return curves[key][1][-1] if key in curves else None


def _settings(path: Path) -> dict[str, object]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError, RecursionError, OverflowError, ValueError):
        return {}
    return {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}


def _command(path: Path) -> str:
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["command"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return ""


def _parameters(path: Path) -> int | None:
    """Return how many numbers a student's backbone holds; None where its file is not there, or damaged."""
    try:
        return inspect(path).parameters
    except CheckpointError:
        return None
