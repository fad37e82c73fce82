"""The report: one HTML file that needs no network and no other file.

What can be folded is a `<details>` element and tables are sorted by buttons, so that a keyboard does it all; colours
follow the reader's light or dark setting, or a button; wide tables scroll by themselves on a phone. Looks and manners
are `report.css` and `report.js`, which go into the file; `eval/report/charts.py` draws.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from ..evaluators.calibration import BINS
from ..results import Cell, Results
from .charts import (
    NAMED,
    figure,
    intervals_chart,
    legend,
    lines_chart,
    map_chart,
    matrix_chart,
    matrix_picture,
    points_chart,
    reliability_chart,
    row_of,
    text,
)
from .projections import Look, Picture
from .training_curves import HEALTH

DRAWN = 20  # classes that a confusion matrix names


def page(results: Results, settings: str = "", title: str = "Evaluation") -> str:
    """Return the whole report; `settings` is the configuration to print."""
    sections = [
        ("Results", _headline(results)),
        ("Share kept", _shares(results)),
        ("Accuracy, size and speed", _sizes(results)),
        ("Paired tests", _comparisons(results)),
        ("Training", _curves(results, health=False)),
        ("Health without labels", _curves(results, health=True)),
        ("Neighbours", _galleries(results.looks)),
        ("Maps", _maps(results.looks)),
        ("Confusions", _confusions(results)),
        ("Calibration", _calibrations(results)),
        ("Strengths", _sweeps(results)),
        ("All figures", _everything(results)),
        ("Notes", "".join(f"<p>{text(note)}</p>" for note in results.notes)),
        ("How to reproduce", _reproduce(results, settings)),
    ]
    shown = [(f"s{i}", name, content) for i, (name, content) in enumerate(sections) if content]
    links = "".join(f'<li><a href="#{key}">{name}</a></li>' for key, name, _ in shown)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}h"><h2 id="{key}h">{name}</h2>{content}</section>'
        for key, name, content in shown
    )
    style, script = ((files(__package__) / f"report.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        # nothing is fetched, whatever a name in the results may hold
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
        f"<title>{text(title)}</title><style>{style}</style></head>"
        f'<body><a class="skip" href="#s0">Skip to the results</a><header><div><h1>{text(title)}</h1>'
        f"<p>{text(_summary(results))}</p></div></header>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav><main>{body}</main><script>{script}</script></body></html>\n'
    )


def _numbers(results: Results) -> dict[str, int]:
    """Return each encoder's colour, the same in every drawing."""
    return {name: i for i, name in enumerate(dict.fromkeys(cell.encoder for cell in results.cells))}


def _summary(results: Results) -> str:
    encoders = list(_numbers(results))
    tasks = list(dict.fromkeys(cell.task for cell in results.cells))
    against = f" Shares are of {results.reference}." if results.reference else ""
    return f"{', '.join(encoders)} on {', '.join(tasks)}.{against} Intervals are at 95 %, over the test images."


def _headline(results: Results) -> str:
    header, lines = results.grid()
    marks = [before is not None and before[0] != line[0] for before, line in zip([None, *lines], lines, strict=False)]
    return _table(header, lines, 2, results.caption(), marks)


def _evaluator(row: Any) -> str:
    return f"{row['evaluator']}/{row['protocol']}"


def _shares(results: Results) -> str:
    """Dots with intervals: the share of the reference that each encoder keeps, a drawing per task."""
    rows = [r for r in results.rows if r["headline"] and r["encoder"] != results.reference]
    rows = [r for r in rows if r["share_kept"] is not None and math.isfinite(r["share_kept"])]
    numbers, charts = _numbers(results), []
    for task in dict.fromkeys(row["task"] for row in rows):
        own = [row for row in rows if row["task"] == task]
        groups = [
            (
                name,
                [
                    (r["encoder"], r["share_kept"], r["share_low"], r["share_high"])
                    for r in own
                    if _evaluator(r) == name
                ],
            )
            for name in dict.fromkeys(map(_evaluator, own))
        ]
        charts.append(figure(intervals_chart(groups, f"Shares kept on {task}", numbers), text(task)))
    if not charts:
        return ""
    told = f"<p>Share of {text(results.reference)}'s figure, with intervals paired over the test images.</p>"
    return told + legend({row["encoder"]: numbers[row["encoder"]] for row in rows}) + row_of(charts)


def _sizes(results: Results) -> str:
    """Points: mean headline figure over tasks against parameters and against the time for one image."""
    numbers, charts = _numbers(results), []
    for evaluator in dict.fromkeys(cell.evaluator for cell in results.cells):
        cells = [cell for cell in results.cells if cell.evaluator == evaluator]
        encoders = list(dict.fromkeys(cell.encoder for cell in cells))
        if evaluator.split("/")[0] not in ("knn", "linear") or len(encoders) < 2:
            continue
        for what, unit in (("parameters", "parameters"), ("latency", "ms per image")):
            points = []
            for name in encoders:
                own = [cell for cell in cells if cell.encoder == name]
                at = own[0].parameters if what == "parameters" else results.latencies.get(name)
                if at:
                    points.append((name, float(at), *_mean([results.headline(name, c.task, evaluator) for c in own])))
            if points:
                words = f"{evaluator}: mean over tasks against {unit}"
                charts.append(figure(points_chart(points, unit, words, numbers), text(words)))
    if not charts:
        return ""
    told = "<p>Bars are 95 % intervals of the mean over tasks."
    if results.latencies:
        slow = ", ".join(f"{name} {ms:.1f} ms" for name, ms in results.latencies.items())
        told += f" One image at a time, in fp32, without reading it from disk: {text(slow)}."
    return told + "</p>" + legend(numbers) + row_of(charts)


def _mean(rows: Sequence[Any]) -> tuple[float, float, float]:
    """Return the mean of several tasks' figures with its interval: independent test sets, so their arms join as squares."""
    value = float(np.mean([row["value"] for row in rows]))
    down, up = (math.sqrt(sum((row[side] - row["value"]) ** 2 for row in rows)) / len(rows) for side in ("low", "high"))
    return value, value - down, value + up


def _comparisons(results: Results) -> str:
    lines = [
        (
            row["task"],
            row["evaluator"],
            f"{row['second']} against {row['first']}",
            _percent(row["share"]),
            f"{_percent(row['low'])} to {_percent(row['high'])}" if math.isfinite(row["low"]) else "",
            f"{row['p']:.2g}" if math.isfinite(row["p"]) else "",
        )
        for row in results.comparisons()
    ]
    if not lines:
        return ""
    told = (
        "<p>Every pair of encoders on the same test images: the share that one keeps of the other's figure, and the p-value of "
        "“no difference” (McNemar's exact test, a paired t-test for means, DeLong's for AUROC). No correction for many tests.</p>"
    )
    header = ("task", "evaluator", "encoders", "share", "95 % interval", "p")
    return told + f"<details><summary>{len(lines)} pairs</summary>{_table(header, lines, 3)}</details>"


def _curves(results: Results, health: bool) -> str:
    """One small chart per logged key, all encoders that logged it in one."""
    numbers, charts = _numbers(results), []
    known = dict.fromkeys(key for found in results.curves.values() for key in found)
    for key in known:
        if key.startswith(HEALTH) == health:
            own = {name: found[key] for name, found in results.curves.items() if key in found}
            title = key.removeprefix(HEALTH).replace("_", " ")
            last = ", ".join(f"{name} ends at {values[-1]:.3g}" for name, (_, values) in own.items())
            words = f"{title}; {last}"
            charts.append(figure(lines_chart(own, words, numbers), text(words)))
    if not charts:
        return ""
    told = (
        "<p>Watched while training, on images without labels.</p>"
        if health
        else "<p>From metrics.jsonl beside the weights. Long runs are drawn as means of 300 stretches.</p>"
    )
    return told + legend({name: numbers[name] for name in results.curves if name in numbers}) + row_of(charts)


def _galleries(looks: Sequence[Look]) -> str:
    """A query to open, and under it each encoder's nearest train images."""
    parts: list[str] = []
    for task in dict.fromkeys(one.task for one in looks):
        here = [one for one in looks if one.task == task]
        parts.append(f"<h3>{text(task)}</h3>")
        for i, rows in enumerate(zip(*(one.rows for one in here), strict=True)):
            query = rows[0][0]
            hits = [
                f"{one.encoder} {sum(bool(p.hit) for p in row[1:])} of {len(row) - 1}"
                for one, row in zip(here, rows, strict=True)
            ]
            said = f'<span class="said">{text(", ".join(hits))}</span>'
            head = f'<span class="query"><img src="{query.url}" alt=""><span>{text(_plain(query.label))}<br>{said}</span></span>'
            body = "".join(
                f"<h4>{text(one.encoder)}</h4>{_neighbours(row[1:])}" for one, row in zip(here, rows, strict=True)
            )
            parts.append(f"<details{' open' if i == 0 else ''}><summary>{head}</summary>{body}</details>")
    if not parts:
        return ""
    told = (
        "<p>A test image, and how many of its nearest train images show its class. Open it to see them: a full green edge is the "
        "same class, a dashed orange one another.</p>"
    )
    return told + "".join(parts)


def _neighbours(pictures: Sequence[Picture]) -> str:
    parts = []
    for picture in pictures:
        kind, said = ("hit", "same class") if picture.hit else ("miss", "other class")
        parts.append(
            f'<figure class="{kind}"><img src="{picture.url}" alt="{text(picture.label)} ({said})">'
            f'<figcaption title="{text(picture.label)}">{text(_plain(picture.label))}</figcaption></figure>'
        )
    return f'<div class="row">{"".join(parts)}</div>'


def _plain(label: str) -> str:
    """Return a class's name without the number that data sets put before it: n02480495_orangutan, 083_hibiscus."""
    return re.sub(r"^n?\d{2,8}[_.](?=\D)", "", label)


def _maps(looks: Sequence[Look]) -> str:
    parts: list[str] = []
    for task in dict.fromkeys(one.task for one in looks):
        here = [one for one in looks if one.task == task]
        names = sorted({name for one in here for name in one.labels})
        # more classes than colours would only mislead: the first ones are coloured, the rest grey
        numbers = {name: min(i, NAMED) for i, name in enumerate(names)}
        shown = {name: numbers[name] for name in names[:NAMED]}
        shown |= {"others": NAMED} if len(names) > NAMED else {}
        charts = [
            figure(
                map_chart(one.points, look.labels, numbers, f"{look.encoder}, {task}: {one.told}"),
                text(f"{look.encoder}: {one.told}"),
            )
            for one_kind in dict.fromkeys(m.name for look in here for m in look.maps)
            for look in here
            for one in look.maps
            if one.name == one_kind
        ]
        parts.append(
            f"<details{' open' if not parts else ''}><summary>{text(task)}</summary>{legend(shown)}{row_of(charts)}</details>"
        )
    return "".join(parts)


def _confusions(results: Results) -> str:
    """A matrix per encoder and the most frequent wrong guesses, by task."""
    parts = []
    for task in dict.fromkeys(cell.task for cell in results.cells):
        charts, rows = [], []
        for cell in (cell for cell in results.cells if cell.task == task and cell.scores.predicted):
            if cell.scores.evaluator in ("knn", "linear"):
                charts.append(_matrix(cell))
                rows += [
                    (cell.encoder, cell.evaluator, true, guess, f"{n} of {of}")
                    for true, guess, n, of in worst_confusions(cell)
                ]
        if rows:
            table = _table(("encoder", "evaluator", "true class", "taken for", "test images"), rows, 4)
            parts.append(f"<details><summary>{text(task)}</summary>{row_of(charts)}{table}</details>")
    return f"<p>Rows are true classes, columns guesses.</p>{''.join(parts)}" if parts else ""


def _matrix(cell: Cell) -> str:
    classes = [str(name) for name in cell.scores.classes]
    guess = cell.scores.predicted[cell.scores.headline_k]
    counts = np.zeros((len(classes), len(classes)), int)
    np.add.at(counts, (cell.scores.labels, guess), 1)
    words = f"{cell.encoder}, {cell.evaluator}: {len(classes)} classes"
    words += "" if len(classes) <= 10 else ", darker is more often"
    draw = matrix_chart(counts, classes, words) if len(classes) <= DRAWN else matrix_picture(counts, words)
    return figure(draw, text(words if len(classes) > 10 else f"{words}, percent of the true class"))


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


def _calibrations(results: Results) -> str:
    charts = []
    for cell in results.cells:
        if cell.scores.evaluator == "calibration":
            ece, scaled = (100 * cell.scores.value(name) for name in ("ece", "ece scaled"))
            words = f"{cell.task}, {cell.encoder}: ECE {ece:.1f} %, {scaled:.1f} % after temperature scaling"
            charts.append(figure(reliability_chart(cell.scores.details["bins"], 1 / BINS, words), text(words)))
    if not charts:
        return ""
    told = "<p>How often the probe is right (bars) against how sure it is; on the dashed line both agree.</p>"
    return told + row_of(charts)


def _sweeps(results: Results) -> str:
    rows = []
    for cell in results.cells:
        sweep = cell.scores.details.get("sweep") or []
        if cell.scores.evaluator == "linear" and sweep:
            knob = "strength" if "strength" in sweep[0] else "lr"
            best = max(row[cell.metric] for row in sweep if cell.metric in row)
            late = sum(not row["converged"] for row in sweep)
            chosen = f"{cell.scores.details[knob]:.2g}"
            rows.append(
                (cell.task, cell.encoder, cell.scores.protocol, chosen, _percent(best), str(len(sweep)), str(late))
            )
    header = ("task", "encoder", "protocol", "chosen", "on the held-out part of train", "tried", "not converged")
    return f"<details><summary>{len(rows)} probes</summary>{_table(header, rows, 3)}</details>" if rows else ""


def _everything(results: Results) -> str:
    def own(row: Any) -> bool:
        return row["encoder"] == results.reference  # all of itself, which says nothing

    parts = []
    for task in dict.fromkeys(row["task"] for row in results.rows):
        lines = [
            (
                row["encoder"],
                _evaluator(row),
                row["metric"] + (f", k = {row['k']}" if row["k"] else ""),
                _number(row["metric"], row["value"]),
                f"{_number(row['metric'], row['low'])} to {_number(row['metric'], row['high'])}",
                ""
                if row["share_kept"] is None or not math.isfinite(row["share_kept"]) or own(row)
                else f"{100 * row['share_kept']:.1f}",
                "" if row["p"] is None or not math.isfinite(row["p"]) or own(row) else f"{row['p']:.2g}",
                f"{row['n']:,}",
            )
            for row in results.rows
            if row["task"] == task
        ]
        header = ("encoder", "evaluator", "metric", "value", "95 % interval", "kept %", "p", "n")
        parts.append(f"<details><summary>{text(task)}</summary>{_table(header, lines, 3)}</details>")
    return "".join(parts)


def _reproduce(results: Results, settings: str) -> str:
    facts = "".join(f"{key}: {value}\n" for key, value in results.facts.items())
    told = "<p>Save these settings as a file and run <code>python -m eval FILE</code>.</p>" if settings else ""
    return told + "".join(f'<pre tabindex="0">{text(block)}</pre>' for block in (settings, facts) if block)


def _table(
    header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1, caption: str = "", new: Sequence[bool] = ()
) -> str:
    """Return a table that scrolls by itself; the first `left` columns are words, rows marked `new` begin a group."""
    lines = list(rows)

    def cells(values: Sequence[str], tag: str) -> str:
        kinds = [(tag if i else 'th scope="row"', ' class="left"' if i < left else "") for i in range(len(values))]
        return "".join(f"<{kind}{mark}>{text(v)}</{kind[:2]}>" for (kind, mark), v in zip(kinds, values, strict=True))

    head = "".join(
        f'<th scope="col"{" class=left" if i < left else ""}>{text(name)}</th>' for i, name in enumerate(header)
    )
    body = "".join(
        f"<tr{' class=new' if new and new[i] else ''}>{cells(line, 'td')}</tr>" for i, line in enumerate(lines)
    )
    told = f"<p>{text(caption)}</p>" if caption else ""
    label = text(caption or ", ".join(header))
    return (
        f'{told}<div class="scroll" tabindex="0" role="region" aria-label="{label}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _number(metric: str, value: float) -> str:
    """Percent, but for what has no ceiling of 1."""
    return f"{value:.3f}" if metric.split()[0] in ("nll", "brier") else f"{100 * value:.2f} %"
