"""The report of a comparison: one HTML file with the tables, the curves, the sizes and the pairs, in the looks of an evaluation's.

`SECTIONS` is its order; `compare.html.j2` says how each kind of section is shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ssl_kd.compare.results import BEATS, LOSES, Comparison, Group, Interval, interval
from ssl_kd.compare.table import (
    Table,
    caption,
    damage_table,
    main_table,
    pair_table,
    random_lines,
    short,
    task_table,
    trials_table,
)
from ssl_kd.eval.report.charts import NAMED, series_chart
from ssl_kd.eval.report.html import rendered
from ssl_kd.eval.report.sections import Chart
from ssl_kd.eval.report.sections import Table as Shown

Data = dict[str, Any]
Point = tuple[float, float, float, float]


def page(found: Comparison, settings: str, title: str) -> str:
    """The whole report; `settings` is the configuration to print."""
    sections = [(heading, block, data) for heading, block, of in SECTIONS if (data := of(found)) is not None]
    template = (files(__package__) / "compare.html.j2").read_text(encoding="utf-8")
    text: str = rendered(template, title=title, summary=_summary(found), sections=sections, settings=settings)
    return text


def _summary(found: Comparison) -> str:
    names = dict.fromkeys(name for group in found.groups for name in found.names(group))
    seeds = {line.seed for line in found.lines if line.kind == "student"}
    more = f" {found.unfinished} cells are not finished yet." if found.unfinished else ""
    return (
        f"{_count(len(names), 'objective')}, {_count(len(found.groups), 'setting')} of teacher, student, images and budget, "
        f"{_count(len(seeds), 'seed')}, {_count(len(found.tasks), 'task')}.{more}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number != 1)


def _shown(table: Table, left: int = 1) -> Shown:
    header, lines = table
    return Shown(tuple(header), [tuple(line) for line in lines], left)


def _numbers(found: Comparison) -> dict[str, int]:
    """A colour for each objective, by its place over all groups; grey from the eleventh on."""
    names: dict[str, list[int]] = {}
    for group in found.groups:
        for place, name in enumerate(found.names(group)):
            names.setdefault(name, []).append(place)
    order = sorted(names, key=lambda name: float(np.mean(names[name])))
    return {name: min(number, NAMED) for number, name in enumerate(order)}


def _results(found: Comparison) -> Data:
    return {
        "words": caption(found),
        "tables": [(group.title, _shown(main_table(found, group))) for group in found.groups],
    }


def _curves(found: Comparison) -> Data | None:
    """Neighbours in common on held-out images against looks and against minutes, mean over seeds."""
    numbers, groups = _numbers(found), []
    for group in found.groups:
        charts = []
        for place, what in ((0, "looks"), (1, "minutes")):
            series = {name: points for name in found.names(group) if (points := _curve(found, group, name, place))}
            if series:
                words = f"neighbours in common with the teacher, by {what}"
                chance = found.chances.get(group.pool, math.nan)
                charts.append(
                    Chart(series_chart(series, what, f"{words}: {group.title}", numbers, chance=chance), words)
                )
        if charts:
            groups.append((group.title, charts))
    words = (
        "Measured while training on held-out images, without labels: the share of each image's ten nearest that student "
        "and teacher have in common; means over seeds. The dotted line is chance: what unrelated networks share. A run's "
        "minutes are spread evenly over its steps."
    )
    return {"words": words, "legend": numbers, "groups": groups} if groups else None


def _curve(found: Comparison, group: Group, name: str, place: int) -> list[Point]:
    curves = [line.curve for line in found.of(group, name) if line.curve]
    if not curves:
        return []
    shortest = min(map(len, curves))
    means = np.mean([curve[:shortest] for curve in curves], axis=0)
    return [(float(row[place]), float(row[2]), math.nan, math.nan) for row in means]


def _budgets(found: Comparison) -> Data | None:
    """Judged quality against looks and minutes, where there are several budgets."""
    numbers, groups = _numbers(found), []
    for like in dict.fromkeys((g.teacher, g.student, g.pool) for g in found.groups):
        own = [g for g in found.groups if (g.teacher, g.student, g.pool) == like]
        if len(own) < 2:
            continue
        charts = []
        for figure in found.judged_by[:2]:
            for what in ("looks", "minutes"):
                series = {name: _over(found, own, name, figure, what) for name in numbers}
                series = {name: points for name, points in series.items() if points}
                words = f"{short(figure)}, share kept of the teacher's, by {what}"
                charts.append(Chart(series_chart(series, what, words, numbers), words))
        groups.append((f"{like[1]} from {like[0]}, {like[2]}", charts))
    return {"words": "Bars are 95 % intervals over seeds.", "legend": numbers, "groups": groups} if groups else None


def _over(found: Comparison, groups: Sequence[Group], name: str, figure: str, what: str) -> list[Point]:
    points = []
    for group in groups:
        lines = found.of(group, name)
        if lines and not math.isnan((kept := found.kept(group, name, figure)).mean):
            at = float(np.median([line.looks if what == "looks" else line.seconds / 60 for line in lines]))
            points.append(_point(at, kept))
    return sorted(points)


def _point(at: float, value: Interval) -> Point:
    return at, value.mean, value.mean - value.half, value.mean + value.half


def _sizes(found: Comparison) -> Data | None:
    """The capacity gap: share kept against the student's parameters, where there are several students."""
    numbers, groups = _numbers(found), []
    for like in dict.fromkeys((g.teacher, g.pool, g.budget) for g in found.groups):
        own = [g for g in found.groups if (g.teacher, g.pool, g.budget) == like]
        if len(own) < 2:
            continue
        charts = []
        for figure in found.judged_by:
            series = {name: _by_size(found, own, name, figure) for name in numbers}
            series = {name: points for name, points in series.items() if points}
            if series:
                words = f"{short(figure)}: share kept of the teacher's"
                charts.append(Chart(series_chart(series, "parameters", words, numbers, log=True), words))
        groups.append((f"{like[0]}, {like[1]}, {like[2]}", charts))
    words = "Each point is a student; bars are 95 % intervals over seeds. Students may differ in more than their size."
    return {"words": words, "legend": numbers, "groups": groups} if groups else None


def _by_size(found: Comparison, groups: Sequence[Group], name: str, figure: str) -> list[Point]:
    points = []
    for group in groups:
        lines = found.of(group, name)
        if lines and not math.isnan((kept := found.kept(group, name, figure)).mean):
            points.append(_point(float(lines[0].parameters), kept))
    return sorted(points)


def _pairs(found: Comparison) -> Data | None:
    tables = [
        (f"{short(figure)}: {group.title}", _shown(pair_table(found, group, figure)))
        for group in found.groups
        if len(found.names(group)) > 1
        for figure in found.judged_by
    ]
    counts = [sum(one.verdict == verdict for one in found.pairs) for verdict in (BEATS, LOSES)]
    words = (
        f"Each line's objective minus each column's, in points, paired by seed. {counts[0]} of {len(found.pairs) // 2} pairs "
        f"are told apart. No correction is made for their number."
    )
    return {"words": words, "tables": tables} if tables else None


def _tasks(found: Comparison) -> Data | None:
    if len(found.tasks) < 2:
        return None
    tables = [
        (f"{short(figure)}: {group.title}", _shown(task_table(found, group, figure)))
        for group in found.groups
        for figure in found.judged_by
    ]
    return {"words": "Share kept of the teacher's figure on each task, with intervals over seeds.", "tables": tables}


def _damage(found: Comparison) -> Data | None:
    tables = [(group.title, _shown(shown)) for group in found.groups if (shown := damage_table(found, group))]
    words = (
        "Wrong labels, and classes of very different sizes, in the train set of the classifier on top: k-NN and linear probe "
        "on clean test images. The students saw no label."
    )
    return {"words": words, "tables": tables} if tables else None


def _trials(found: Comparison) -> Data | None:
    shown = trials_table(found)
    if shown is None:
        return None
    words = (
        f"Scores of the trials, in percent: {found.scored_by}. The seed of the trials enters no table, and no judged task has a "
        f"part in the choice."
    )
    return {"words": words, "tables": [("Rates tried", _shown(shown, 2))]}


def _notes(found: Comparison) -> Data | None:
    notes = [f"left out: {title}: {why}" for title, why in found.refused.items()]
    notes += [f"{line}." for line in random_lines(found)]
    online = sorted({line.name for line in found.lines if line.kind == "student" and not line.replay})
    if online:
        notes.append(
            f"The teacher was asked anew at every step for {', '.join(online)}: mixed images, or outputs too large to keep."
        )
    if any(not interval_known(found, group) for group in found.groups):
        notes.append("Fewer than two seeds: no interval and no verdict.")
    return {"notes": notes} if notes else None


def interval_known(found: Comparison, group: Group) -> bool:
    """Whether any objective of a group has an interval."""
    return any(
        not math.isnan(interval([float(line.seed) for line in found.of(group, name)]).half)
        for name in found.names(group)
    )


def _reproduce(found: Comparison) -> Data:
    return {"facts": "".join(f"{key}: {value}\n" for key, value in found.facts.items())}


SECTIONS: tuple[
    tuple[str, str, Callable[[Comparison], Data | None]], ...
] = (  # heading, block of the template, its data
    ("Results", "tables", _results),
    ("While training", "charts", _curves),
    ("Budgets", "charts", _budgets),
    ("Size of the student", "charts", _sizes),
    ("Pairs", "lists", _pairs),
    ("Tasks", "lists", _tasks),
    ("Damaged labels", "tables", _damage),
    ("Learning rates", "tables", _trials),
    ("Notes", "notes", _notes),
    ("How to reproduce", "reproduce", _reproduce),
)
