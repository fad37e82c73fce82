"""What the report says, section by section, as plain data: tables, charts with their words, galleries.

`SECTIONS` is the report's order. A section is a row there, a function here that gives its data (None: left out), and a
block of `report.html.j2` that shows them. A new chart is drawn in `charts.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..evaluators.calibration import BINS
from ..results import Cell, Results, Row
from ..results.results import together
from ..results.runs import Run, differing
from ..results.text import count
from .charts import (
    NAMED,
    Point,
    intervals_chart,
    lines_chart,
    map_chart,
    matrix_chart,
    matrix_picture,
    points_chart,
    reliability_chart,
)
from .projections import Look, Picture
from .training_curves import HEALTH, Curves, titled

DRAWN = 20  # classes that a confusion matrix names
LEVELS = (
    "teacher_",
    "chance_",
)  # begin what a run logged of its teacher and of chance, beside the student's own figure
HALF = "half_"  # begins the half interval of a figure, which the run's sentence has
SOLVED = ("knn", "linear")  # the evaluators whose guesses are shown class by class
Data = dict[str, object]  # what a block of the template is given


@dataclass(frozen=True)
class Table:
    """Lines under a header; the first `left` columns are words, lines marked `new` begin a group."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    caption: str = ""
    new: Sequence[bool] = ()


@dataclass(frozen=True)
class Chart:
    """A drawing, which is SVG of our own, and its caption, which is text."""

    picture: str
    caption: str


def numbers_of(results: Results) -> dict[str, int]:
    """Return the number of each encoder's and run's colour and mark, the same in every drawing."""
    names = [*(cell.encoder for cell in results.cells), *results.curves, *(run.name for run in results.runs)]
    return {name: i for i, name in enumerate(dict.fromkeys(names))}


def summary(results: Results) -> str:
    """Say what was compared, in a line or two."""
    tasks = list(dict.fromkeys(cell.task for cell in results.cells))
    if not tasks:
        return (
            f"{len(results.runs)} run{'s' * (len(results.runs) != 1)}: {', '.join(run.name for run in results.runs)}."
        )
    against = f" Shares are of {results.reference}." if results.reference else ""
    return (
        f"{', '.join(numbers_of(results))} on {', '.join(tasks)}.{against} Intervals are at 95 %, over the test images."
    )


def _answer(results: Results) -> Data | None:
    """A sentence per encoder and evaluator, its neighbours in common, whether to keep an index, and a sentence per run.

    In a lighter voice what nothing can tell.
    """
    lines = [(one.sentence(results.reference), one.certain) for one in results.verdicts()]
    lines += [(one.sentence(results.reference), True) for one in results.neighbour_verdicts()]
    lines += [(one.sentence(results.reference), math.isfinite(one.lost_half)) for one in results.index_verdicts()]
    lines += [(run.sentence(), run.above_chance and not run.collapsed) for run in results.runs]
    return {"lines": lines} if lines else None


def _headline(results: Results) -> Data | None:
    """The table. Where columns are encoders the reference's is last: on a phone the students are seen first."""
    if not results.cells:
        return None
    header, lines = results.grid()
    if (own := f"{results.reference} %") in header:
        at = header.index(own)
        header, *lines = [[*line[:at], *line[at + 1 :], line[at]] for line in [header, *lines]]
    marks = [before is not None and before[0] != line[0] for before, line in zip([None, *lines], lines, strict=False)]
    return {"table": Table(header, lines, 2, results.caption(), marks)}


def _runs(results: Results) -> Data | None:
    """The runs side by side: the settings in which they differ, and what training itself measured."""
    if not results.runs:
        return None
    names = differing(results.runs)
    header = ("run", "student", "parameters", "neighbours in common", "best, at step", "steps", "images/s", *names)
    rows = [(*_told(run), *(str(run.settings.get(name, "")) for name in names)) for run in results.runs]
    alike = {k: v for k, v in results.runs[0].settings.items() if k not in names and k not in ("out", "student")}
    shown = "".join(f"{key}: {value}\n" for key, value in alike.items())
    return {"table": Table(header, rows, 2), "alike": shown if len(results.runs) > 1 else "", "differ": bool(names)}


def _told(run: Run) -> tuple[str, ...]:
    overlap = "" if run.overlap is None else _percent(run.overlap)
    best = "" if run.best is None else f"{_percent(run.best[0])}, {run.best[1]:,.0f}"
    rate = "" if run.images_per_second is None else f"{run.images_per_second:.0f}"
    return run.name, str(run.settings.get("student", "")), count(run.parameters), overlap, best, f"{run.steps:,}", rate


def _evaluator(row: Row) -> str:
    return f"{row['evaluator']}/{row['protocol']}"


def _shares(results: Results) -> Data | None:
    """Dots with intervals: the share of the reference that each encoder keeps, a drawing per task."""
    rows = [r for r in results.rows if r["headline"] and r["encoder"] != results.reference]
    rows = [r for r in rows if r["share_kept"] is not None and math.isfinite(r["share_kept"])]
    numbers = numbers_of(results)
    ends = [row[key] for row in rows for key in ("share_kept", "share_low", "share_high")]
    charts = [
        Chart(
            intervals_chart(_dots([r for r in rows if r["task"] == task]), f"Shares kept on {task}", numbers, ends),
            task,
        )
        for task in dict.fromkeys(row["task"] for row in rows)
    ]
    legend = {row["encoder"]: numbers[row["encoder"]] for row in rows}
    return {"reference": results.reference, "legend": legend, "charts": charts} if charts else None


def _dots(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, float, float, float]]]]:
    """Return (encoder, share, low, high) by evaluator."""
    found: dict[str, list[tuple[str, float, float, float]]] = {}
    for row in rows:
        dot = (row["encoder"], row["share_kept"], row["share_low"], row["share_high"])
        found.setdefault(_evaluator(row), []).append(dot)
    return list(found.items())


def _sizes(results: Results) -> Data | None:
    """Points: mean headline figure over tasks against parameters and against the time for one image."""
    numbers, charts = numbers_of(results), []
    counts = list(dict.fromkeys(n for latency in results.latencies.values() for n in latency.by_threads))
    for evaluator in dict.fromkeys(cell.evaluator for cell in results.cells):
        cells = [cell for cell in results.cells if cell.evaluator == evaluator]
        if evaluator.split("/")[0] not in SOLVED or len({cell.encoder for cell in cells}) < 2:
            continue
        chance = _chance(cells)
        for threads in (None, *counts):
            if points := _points(results, cells, threads):
                where = "" if threads is None else f", {next(iter(results.latencies.values())).where(threads)}"
                unit = "parameters" if threads is None else "ms per image"
                words = f"{evaluator}: mean over tasks against {unit}{where}"
                charts.append(Chart(points_chart(points, unit, words, numbers, chance), words))
    slow = [f"{name}: {one}" for name, one in results.latencies.items()]
    return {"slow": slow, "legend": {p: numbers[p] for p in _encoders(results)}, "charts": charts} if charts else None


def _encoders(results: Results) -> list[str]:
    return list(dict.fromkeys(cell.encoder for cell in results.cells))


def _chance(cells: Sequence[Cell]) -> float:
    """Return the mean over tasks of one in so many classes; nan where a task's figure is not accuracy."""
    if any(cell.metric not in ("top1", "mean_per_class") for cell in cells):
        return math.nan
    return float(np.mean([1 / len(classes) for classes in {c.task: c.scores.classes for c in cells}.values()]))


def _points(results: Results, cells: Sequence[Cell], threads: int | None) -> list[Point]:
    """Return each encoder's place: its parameters, or with so many threads its time for one image, and its mean figure."""
    points = []
    for name in dict.fromkeys(cell.encoder for cell in cells):
        own = [cell for cell in cells if cell.encoder == name]
        latency = results.latencies.get(name)
        if threads is None:
            at = (float(own[0].parameters or 0), math.nan, math.nan)
        else:
            one = None if latency is None else latency.by_threads.get(threads)
            at = (0.0, math.nan, math.nan) if one is None else (1e3 * one.median, 1e3 * one.low, 1e3 * one.high)
        if at[0]:
            points.append(Point(name, at, _mean([results.headline(name, c.task, c.evaluator) for c in own])))
    return points


def _mean(rows: Sequence[Row]) -> tuple[float, float, float]:
    """Return the mean of several tasks' figures with its interval: independent test sets, so their arms join as squares."""
    value = float(np.mean([row["value"] for row in rows]))
    down, up = (math.sqrt(sum((row[side] - row["value"]) ** 2 for row in rows)) / len(rows) for side in ("low", "high"))
    return value, value - down, value + up


def _comparisons(results: Results) -> Data | None:
    lines = [
        (
            row["task"],
            row["evaluator"],
            f"{row['second']} against {row['first']}",
            _percent(row["share"]) if math.isfinite(row["share"]) else "",
            f"{_percent(row['low'])} to {_percent(row['high'])}" if math.isfinite(row["low"]) else "",
            f"{row['p']:.2g}" if math.isfinite(row["p"]) else "",
        )
        for row in results.comparisons()
    ]
    header = ("task", "evaluator", "encoders", "share", "95 % interval", "p")
    return {"table": Table(header, lines, 3)} if lines else None


def _training(results: Results) -> Data | None:
    return _curves(results, health=False)


def _health(results: Results) -> Data | None:
    return _curves(results, health=True)


def _curves(results: Results, health: bool) -> Data | None:
    """One small chart per logged key, all encoders that logged it in one; collapses as events, the teacher and chance as levels."""
    numbers, charts = numbers_of(results), []
    events = [event for name, found in results.curves.items() for event in _collapses(name, found)] if health else []
    for key in dict.fromkeys(key for found in results.curves.values() for key in found):
        bare = key.removeprefix(HEALTH)
        if key.startswith(HEALTH) != health or bare == "collapsed" or bare.startswith((*LEVELS, HALF)):
            continue
        own = {name: found[key] for name, found in results.curves.items() if key in found}
        words = f"{titled(key)}; {', '.join(f'{name} ends at {values[-1]:.3g}' for name, (_, values) in own.items())}"
        here = [event for event in events if event[0] in own]
        charts.append(Chart(lines_chart(own, words, numbers, here, _levels(own, results.curves, bare)), words))
    legend = {name: numbers[name] for name in results.curves}
    said = [said for _, _, said in events]
    return {"health": health, "legend": legend, "charts": charts, "events": said} if charts else None


def _collapses(name: str, curves: Curves) -> list[tuple[str, float, str]]:
    steps, values = curves.get(f"{HEALTH}collapsed", ([], []))
    return [(name, s, f"{name} had collapsed at step {s:,.0f}") for s, v in zip(steps, values, strict=True) if v > 0]


def _levels(names: Iterable[str], curves: Mapping[str, Curves], bare: str) -> dict[str, float]:
    """Return what the teacher and chance reach of a figure, each as logged last; one entry where all runs agree."""
    found: dict[str, float] = {}
    for level in LEVELS:
        of = {name: curves[name][key][1][-1] for name in names if (key := f"{HEALTH}{level}{bare}") in curves[name]}
        what = level.rstrip("_")
        found |= (
            {what: next(iter(of.values()))}
            if len(set(of.values())) == 1
            else {f"{what}, {n}": v for n, v in of.items()}
        )
    return found


def _neighbours(results: Results) -> Data | None:
    """A query to open, and under it each encoder's nearest train images."""
    found = []
    for task in dict.fromkeys(one.task for one in results.looks):
        here = [one for one in results.looks if one.task == task]
        queries = [_query(here, rows) for rows in zip(*(one.rows for one in here), strict=True)]
        labelled = any(p.hit is not None for one in here for row in one.rows for p in row)
        found.append({"task": task, "queries": queries, "labelled": labelled})
    return {"tasks": found} if found else None


def _query(looks: Sequence[Look], rows: Sequence[Sequence[Picture]]) -> Data:
    hits = [
        f"{one.encoder} {sum(bool(p.hit) for p in row[1:])} of {len(row) - 1}"
        for one, row in zip(looks, rows, strict=True)
        if all(p.hit is not None for p in row[1:])  # photos without labels are neither
    ]
    near = [(one.encoder, row[1:]) for one, row in zip(looks, rows, strict=True)]
    return {"picture": rows[0][0], "hits": ", ".join(hits), "near": near}


def plain_class(label: str) -> str:
    """Return a class's name without the number that data sets put before it: n02480495_orangutan, 083_hibiscus."""
    return re.sub(r"^n?\d{2,8}[_.](?=\D)", "", label)


def _maps(results: Results) -> Data | None:
    found = []
    for task in dict.fromkeys(one.task for one in results.looks):
        here = [one for one in results.looks if one.task == task]
        names = sorted({name for one in here for name in one.labels})
        # more classes than colours would only mislead: the first ones are coloured, the rest grey
        numbers = {name: min(i, NAMED) for i, name in enumerate(names)}
        shown = {name: numbers[name] for name in names[:NAMED]}
        shown |= {"others": NAMED} if len(names) > NAMED else {}
        charts = [
            Chart(
                map_chart(one.points, look.labels, numbers, f"{look.encoder}, {task}: {one.told}"),
                f"{look.encoder}: {one.told}",
            )
            for kind in dict.fromkeys(m.name for look in here for m in look.maps)
            for look in here
            for one in look.maps
            if one.name == kind
        ]
        found.append({"task": task, "legend": shown, "charts": charts})
    return {"tasks": found} if found else None


def _confusions(results: Results) -> Data | None:
    """A matrix per encoder and the most frequent wrong guesses, by task."""
    found = []
    for task in dict.fromkeys(cell.task for cell in results.cells):
        cells = [cell for cell in results.cells if cell.task == task and cell.scores.predicted]
        cells = [cell for cell in cells if cell.scores.evaluator in SOLVED]
        rows = [
            (cell.encoder, cell.evaluator, true, guess, f"{n} of {of}")
            for cell in cells
            for true, guess, n, of in worst_confusions(cell)
        ]
        header = ("encoder", "evaluator", "true class", "taken for", "test images")
        if rows:
            found.append({"task": task, "charts": list(map(_matrix, cells)), "table": Table(header, rows, 4)})
    return {"tasks": found} if found else None


def _matrix(cell: Cell) -> Chart:
    classes = [str(name) for name in cell.scores.classes]
    guess = cell.scores.predicted[cell.scores.headline_k]
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (cell.scores.labels, guess), 1)
    words = f"{cell.encoder}, {cell.evaluator}: {len(classes)} classes"
    words += "" if len(classes) <= 10 else ", darker is more often"
    draw = matrix_chart(counts, classes, words) if len(classes) <= DRAWN else matrix_picture(counts, words)
    return Chart(draw, words if len(classes) > 10 else f"{words}, percent of the true class")


def worst_confusions(cell: Cell, most: int = 5) -> list[tuple[str, str, int, int]]:
    """Return (true class, guess, times, rows of the class) for a cell's most frequent wrong guesses."""
    scores = cell.scores
    guess = scores.predicted.get(scores.headline_k)
    if guess is None or len(scores.classes) < 2:
        return []
    wrong = guess != scores.labels
    pairs, counts = np.unique(scores.labels[wrong] * len(scores.classes) + guess[wrong], return_counts=True)
    sizes = np.bincount(scores.labels, minlength=len(scores.classes))
    found = []
    for i in np.lexsort((pairs, -counts))[:most]:
        true, other = divmod(int(pairs[i]), len(scores.classes))
        found.append((str(scores.classes[true]), str(scores.classes[other]), int(counts[i]), int(sizes[true])))
    return found


def _calibrations(results: Results) -> Data | None:
    charts = []
    for cell in results.cells:
        if cell.scores.evaluator == "calibration":
            ece, scaled = (100 * cell.scores.value(name) for name in ("ece", "ece scaled"))
            words = (
                f"{cell.task}, {cell.encoder}: calibration error {ece:.1f} %, {scaled:.1f} % after temperature scaling"
            )
            words += f"; {sum(part['rows'] for part in cell.scores.details['bins']):,.0f} images"
            charts.append(Chart(reliability_chart(cell.scores.details["bins"], 1 / BINS, words), words))
    return {"charts": charts} if charts else None


def _sweeps(results: Results) -> Data | None:
    rows = [
        _sweep(cell, sweep)
        for cell in results.cells
        if cell.scores.evaluator == "linear" and (sweep := cell.scores.details.get("sweep"))
    ]
    header = ("task", "encoder", "protocol", "chosen", "on the held-out part of train", "tried", "not converged")
    return {"table": Table(header, rows, 3)} if rows else None


def _sweep(cell: Cell, sweep: Sequence[Row]) -> tuple[str, ...]:
    knob = "strength" if "strength" in sweep[0] else "lr"
    best = max(row[cell.metric] for row in sweep if cell.metric in row)
    late = sum(not row["converged"] for row in sweep)
    chosen = f"{cell.scores.details[knob]:.2g}"
    return cell.task, cell.encoder, cell.scores.protocol, chosen, _percent(best), str(len(sweep)), str(late)


def _everything(results: Results) -> Data | None:
    if not results.cells:
        return None
    header = ("encoder", "evaluator", "metric", "value", "95 % interval", "kept %", "p", "n")
    found: dict[str, list[tuple[str, ...]]] = {}
    for row in results.rows:
        found.setdefault(row["task"], []).append(_figure(row, row["encoder"] == results.reference))
    return {"tasks": [{"task": task, "table": Table(header, lines, 3)} for task, lines in found.items()]}


def _figure(row: Row, itself: bool) -> tuple[str, ...]:
    """Return one figure's line; the reference keeps all of itself, which says nothing."""
    share, p = (None if itself else row[name] for name in ("share_kept", "p"))
    return (
        row["encoder"],
        _evaluator(row),
        row["metric"] + (f", k = {row['k']}" if row["k"] else ""),
        _number(row["metric"], row["value"]),
        f"{_number(row['metric'], row['low'])} to {_number(row['metric'], row['high'])}",
        "" if share is None or not math.isfinite(share) else f"{100 * share:.1f}",
        "" if p is None or not math.isfinite(p) else f"{p:.2g}",
        f"{row['n']:,}",
    )


def _notes(results: Results) -> Data | None:
    return {"notes": together(results.notes)} if results.notes else None


def _made_by(results: Results) -> Data | None:
    """The versions that made the cells, and, where they are not all of one, which made which."""
    found: dict[str, list[str]] = {}
    for cell in results.cells:
        found.setdefault(cell.programs, []).append(f"{cell.task}, {cell.encoder}, {cell.evaluator}")
    mixed = list(found.items()) if len(found) > 1 else []
    commands = [f"{run.name}: {run.command}" for run in results.runs if run.command]
    facts = "".join(f"{key}: {value}\n" for key, value in results.facts.items())
    return {"facts": facts, "mixed": mixed, "commands": commands}


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(metric: str, value: float) -> str:
    """Percent, but for what has no ceiling of 1."""
    return f"{value:.3f}" if metric.split()[0] in ("nll", "brier") else f"{100 * value:.2f} %"


SECTIONS: tuple[tuple[str, str, Callable[[Results], Data | None]], ...] = (  # heading, block of the template, its data
    ("Answer", "answer", _answer),
    ("Results", "headline", _headline),
    ("Runs", "runs", _runs),
    ("Share kept", "shares", _shares),
    ("Accuracy, size and speed", "sizes", _sizes),
    ("Paired tests", "comparisons", _comparisons),
    ("Training", "curves", _training),
    ("Health without labels", "curves", _health),
    ("Neighbours", "neighbours", _neighbours),
    ("Maps", "maps", _maps),
    ("Confusions", "confusions", _confusions),
    ("Calibration", "calibrations", _calibrations),
    ("Strengths", "sweeps", _sweeps),
    ("All figures", "everything", _everything),
    ("Notes", "notes", _notes),
    ("How to reproduce", "reproduce", _made_by),
)


def sections(results: Results) -> Iterable[tuple[str, str, Data]]:
    """Yield heading, block and data of every section that has something to show."""
    for heading, block, of in SECTIONS:
        if (data := of(results)) is not None:
            yield heading, block, data
