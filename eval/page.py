"""The report: one HTML file that needs no network, no script and no other file.

What can be folded is a `<details>` element, so that a keyboard opens it; colours follow the reader's light or dark
setting; wide tables scroll by themselves on a phone. Charts are SVG with their figures in words beside them.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from eval.looks import Look
from eval.report import Cell, Results

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8c6d1f", "#999999")  # Okabe and Ito's
STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --soft: #5a5a5a; --line: #d5d5d5; --panel: #f5f5f3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #ececec; --paper: #161616; --soft: #a8a8a8; --line: #3c3c3c; --panel: #212121; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 70rem; color: var(--ink); background: var(--paper);
  font: 1rem/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; } h2 { font-size: 1.25rem; margin: 2.2rem 0 .5rem; }
h3 { font-size: 1.05rem; margin: 1.2rem 0 .4rem; }
p, figcaption, caption { color: var(--soft); max-width: 46rem; } caption, figcaption { text-align: left; font-size: .9rem; }
.scroll { overflow-x: auto; } figure { margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child, th.left, td.left { text-align: left; white-space: normal; } th { font-weight: 600; }
tr.new td, tr.new th { border-top: 2px solid var(--line); }
details { background: var(--panel); border-radius: .5rem; padding: .5rem .9rem; margin: .6rem 0; }
summary { cursor: pointer; font-weight: 600; } summary:focus-visible { outline: 3px solid #0072b2; outline-offset: 3px; }
svg { max-width: 100%; height: auto; } svg text { fill: var(--ink); font: 12px system-ui, sans-serif; }
svg .soft { fill: var(--soft); } svg .axis { stroke: var(--line); stroke-width: 1; }
.row { display: flex; gap: .35rem; align-items: flex-end; flex-wrap: wrap; margin: .3rem 0; }
.row figure { margin: 0; width: 76px; } .row img { display: block; width: 72px; height: 72px; object-fit: contain;
  border: 3px solid transparent; border-radius: .3rem; background: var(--panel); }
.row figcaption { font-size: .7rem; line-height: 1.15; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.hit img { border-color: #009e73; } .miss img { border-color: #d55e00; border-style: dashed; }
.query { margin-right: .8rem !important; } .maps { display: flex; flex-wrap: wrap; gap: 1rem; }
pre { overflow-x: auto; background: var(--panel); padding: .8rem; border-radius: .5rem; font-size: .85rem; }
"""


def page(results: Results, looks: Sequence[Look] = (), settings: str = "", title: str = "Evaluation") -> str:
    """Return the whole report. `looks` add maps and galleries, `settings` is the configuration to print."""
    sections = [
        ("Results", _headline(results)),
        ("Share kept", _shares(results)),
        ("Accuracy and size", _sizes(results)),
        ("Neighbours", _galleries(looks)),
        ("Maps", _maps(looks)),
        ("Confusions", _confusions(results)),
        ("Calibration", _calibrations(results)),
        ("Strengths", _sweeps(results)),
        ("All figures", _everything(results)),
        ("Notes", "".join(f"<p>{_text(note)}</p>" for note in results.notes)),
        ("How to reproduce", _reproduce(results, settings)),
    ]
    body = "".join(f"<section><h2>{name}</h2>{content}</section>" for name, content in sections if content)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{_text(title)}</title>'
        f"<style>{STYLE}</style></head><body><h1>{_text(title)}</h1><p>{_text(_summary(results))}</p>{body}</body></html>\n"
    )


def _summary(results: Results) -> str:
    encoders = list(dict.fromkeys(cell.encoder for cell in results.cells))
    tasks = list(dict.fromkeys(cell.task for cell in results.cells))
    against = f" Shares are of {results.reference}." if results.reference else ""
    return f"{', '.join(encoders)} on {', '.join(tasks)}.{against} Intervals are at 95 %, over the test images."


def _headline(results: Results) -> str:
    header, lines = results.grid()
    head = "".join(
        f'<th scope="col"{" class=left" if i == 1 else ""}>{_text(name)}</th>' for i, name in enumerate(header)
    )
    body = []
    for before, line in zip([None, *lines], lines, strict=False):
        mark = ' class="new"' if before and before[0] != line[0] else ""
        cells = "".join(f"<td>{_text(value)}</td>" for value in line[2:])
        body.append(
            f'<tr{mark}><th scope="row">{_text(line[0])}</th><td class="left">{_text(line[1])}</td>{cells}</tr>'
        )
    caption = f"<caption>{_text(results.caption())}</caption>"
    return _scroll(f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>")


def _shares(results: Results) -> str:
    """Dots with intervals: the share of the reference that each encoder keeps, by task and evaluator."""
    rows = [
        r for r in results.rows if r["headline"] and r["share_kept"] is not None and r["encoder"] != results.reference
    ]
    rows = [r for r in rows if math.isfinite(r["share_kept"])]
    if not rows:
        return ""
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    ends = [row[key] for row in rows for key in ("share_kept", "share_low", "share_high") if math.isfinite(row[key])]
    low, high = max(0.0, min([*ends, 1.0]) - 0.03), max([*ends, 1.0]) + 0.03
    groups = list(dict.fromkeys((row["task"], f"{row['evaluator']}/{row['protocol']}") for row in rows))
    left, width, step = 300, 460, 14 + 10 * len(encoders)

    def x(share: float) -> float:
        return left + width * (share - low) / (high - low)

    marks = [f'<line class="axis" x1="{x(1):.1f}" x2="{x(1):.1f}" y1="24" y2="{30 + step * len(groups)}"/>']
    marks += [f'<text x="{x(1):.1f}" y="16" text-anchor="middle">100 %</text>']
    if x(1) - left > 60:  # room for a second label
        marks.append(f'<text class="soft" x="{left}" y="16">{100 * low:.0f} %</text>')
    for g, (task, evaluator) in enumerate(groups):
        top = 34 + step * g
        marks.append(f'<text x="0" y="{top + step / 2:.0f}">{_text(task)} · {_text(evaluator)}</text>')
        for e, encoder in enumerate(encoders):
            for row in rows:
                if (row["task"], f"{row['evaluator']}/{row['protocol']}", row["encoder"]) == (task, evaluator, encoder):
                    y, colour = top + 8 + 10 * e, COLOURS[e % len(COLOURS)]
                    if math.isfinite(row["share_low"]):
                        marks.append(
                            f'<line x1="{x(row["share_low"]):.1f}" x2="{x(row["share_high"]):.1f}" y1="{y}" y2="{y}" '
                            f'stroke="{colour}" stroke-width="3" stroke-opacity=".7"/>'
                        )
                    words = f"{encoder}, {task}, {evaluator}: keeps {100 * row['share_kept']:.1f} %"
                    marks.append(
                        f'<circle cx="{x(row["share_kept"]):.1f}" cy="{y}" r="4.5" fill="{colour}"><title>{_text(words)}</title></circle>'
                    )
    height = 44 + step * len(groups)
    what = f"Share of {results.reference} kept by {', '.join(encoders)}, with 95 % intervals (paired over test images)."
    return _figure(_svg(left + width + 20, height, marks, what), _legend(encoders) + _text(what))


def _sizes(results: Results) -> str:
    """Points: mean headline figure over tasks against parameters, one mark per encoder."""
    charts = []
    for evaluator in dict.fromkeys(f"{c.scores.evaluator}/{c.scores.protocol}" for c in results.cells):
        rows = [r for r in results.rows if r["headline"] and f"{r['evaluator']}/{r['protocol']}" == evaluator]
        encoders = list(dict.fromkeys(row["encoder"] for row in rows))
        if evaluator.split("/")[0] not in ("knn", "linear") or len(encoders) < 2:
            continue
        points = []
        for encoder in encoders:
            own = [row for row in rows if row["encoder"] == encoder]
            points.append((max(1, own[0]["parameters"]), float(np.mean([row["value"] for row in own])), encoder))
        sizes, values = [math.log10(p[0]) for p in points], [p[1] for p in points]
        span, rise = max(max(sizes) - min(sizes), 0.3), max(max(values) - min(values), 0.02)
        marks = [
            '<line class="axis" x1="50" x2="400" y1="210" y2="210"/><line class="axis" x1="50" x2="50" y1="10" y2="210"/>'
        ]
        for i, (parameters, value, encoder) in enumerate(points):
            x = 80 + 260 * (math.log10(parameters) - min(sizes)) / span
            y = 190 - 160 * (value - min(values)) / rise
            words = f"{encoder}: {parameters:,} parameters, {100 * value:.1f} %"
            marks.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="{COLOURS[i % len(COLOURS)]}"><title>{_text(words)}</title></circle>'
            )
            marks.append(f'<text x="{x + 9:.1f}" y="{y + 4:.1f}">{_text(encoder)} {100 * value:.1f} %</text>')
        marks.append('<text class="soft" x="400" y="228" text-anchor="end">parameters (log)</text>')
        what = f"{evaluator}: mean over tasks against parameters."
        charts.append(_figure(_svg(460, 240, marks, what), _text(what)))
    return f'<div class="maps">{"".join(charts)}</div>' if charts else ""


def _galleries(looks: Sequence[Look]) -> str:
    parts: list[str] = []
    for task in dict.fromkeys(one.task for one in looks):
        rows = []
        for one in (one for one in looks if one.task == task):
            rows.append(f"<h3>{_text(one.encoder)}</h3>" + "".join(_neighbours(row) for row in one.rows))
        parts.append(
            f"<details{' open' if not parts else ''}><summary>{_text(task)}</summary>{''.join(rows)}</details>"
        )
    if not parts:
        return ""
    told = "<p>Left: a test image. Right: its nearest train images. Full green edge: same class; dashed orange edge: another.</p>"
    return told + "".join(parts)


def _neighbours(row: Sequence[Any]) -> str:
    parts = []
    for i, picture in enumerate(row):
        kind = "query" if i == 0 else "hit" if picture.hit else "miss"
        said = "query" if i == 0 else "same class" if picture.hit else "other class"
        parts.append(
            f'<figure class="{kind}"><img src="{picture.url}" alt="{_text(picture.label)} ({said})">'
            f"<figcaption>{_text(picture.label)}</figcaption></figure>"
        )
    return f'<div class="row">{"".join(parts)}</div>'


def _maps(looks: Sequence[Look]) -> str:
    parts: list[str] = []
    for task in dict.fromkeys(one.task for one in looks):
        charts = []
        here = [one for one in looks if one.task == task]
        names = sorted({name for one in here for name in one.labels})
        for one in here:
            # more classes than colours would only mislead: the first ones are coloured, the rest grey
            colours = {name: COLOURS[i] if i < 7 else COLOURS[7] for i, name in enumerate(names)}
            marks = [
                f'<circle cx="{150 + 140 * x:.1f}" cy="{150 - 140 * y:.1f}" r="2.6" fill="{colours[name]}" fill-opacity=".75">'
                f"<title>{_text(name)}</title></circle>"
                for (x, y), name in zip(one.points, one.labels, strict=True)
            ]
            what = f"{one.encoder}: two principal components, {100 * sum(one.explained):.0f} % of the variance"
            charts.append(_figure(_svg(300, 300, marks, what), _text(what)))
        shown = names[:7] + (["others"] if len(names) > 7 else [])
        parts.append(
            f"<details{' open' if not parts else ''}><summary>{_text(task)}</summary>{_legend(shown)}"
            f'<div class="maps">{"".join(charts)}</div></details>'
        )
    return "".join(parts)


def _confusions(results: Results) -> str:
    """The most frequent wrong guesses of each encoder, by task and evaluator."""
    parts = []
    for task in dict.fromkeys(cell.task for cell in results.cells):
        rows = []
        for cell in (cell for cell in results.cells if cell.task == task and cell.scores.predicted):
            for true, guess, count, of in worst_confusions(cell):
                rows.append((cell.encoder, cell.evaluator, true, guess, f"{count} of {of}"))
        if rows:
            table = _table(("encoder", "evaluator", "true class", "taken for", "test images"), rows, left=4)
            parts.append(f"<details><summary>{_text(task)}</summary>{table}</details>")
    return "".join(parts)


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
        if cell.scores.evaluator != "calibration":
            continue
        marks = [
            '<line class="axis" x1="30" y1="230" x2="230" y2="30"/><rect class="axis" x="30" y="30" width="200" height="200" fill="none"/>'
        ]
        total = sum(part["rows"] for part in cell.scores.details["bins"])
        for part in cell.scores.details["bins"]:
            x, y = 30 + 200 * part["confidence"], 230 - 200 * part["accuracy"]
            words = (
                f"sure {100 * part['confidence']:.0f} %, right {100 * part['accuracy']:.0f} %, {part['rows']} images"
            )
            size = 2 + 8 * math.sqrt(part["rows"] / total)
            marks.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="#0072b2" fill-opacity=".8"><title>{words}</title></circle>'
            )
        marks.append('<text class="soft" x="130" y="250" text-anchor="middle">how sure (0 to 1)</text>')
        what = (
            f"{cell.task}, {cell.encoder}: how often right against how sure; ECE {100 * cell.scores.value('ece'):.1f} %"
        )
        charts.append(_figure(_svg(250, 260, marks, what), _text(what)))
    return f'<div class="maps">{"".join(charts)}</div>' if charts else ""


def _sweeps(results: Results) -> str:
    rows = []
    for cell in results.cells:
        sweep = cell.scores.details.get("sweep") or []
        if cell.scores.evaluator == "linear" and sweep:
            knob = "strength" if "strength" in sweep[0] else "lr"
            best = max(row[cell.metric] for row in sweep if cell.metric in row)
            late = sum(not row["converged"] for row in sweep)
            rows.append(
                (
                    cell.task,
                    cell.encoder,
                    cell.scores.protocol,
                    f"{cell.scores.details[knob]:.2g}",
                    f"{100 * best:.1f} %",
                    str(len(sweep)),
                    str(late),
                )
            )
    if not rows:
        return ""
    header = ("task", "encoder", "protocol", "chosen", "on the held-out part of train", "tried", "not converged")
    return _table(header, rows, left=3)


def _everything(results: Results) -> str:
    parts = []
    for task in dict.fromkeys(row["task"] for row in results.rows):
        lines = [
            (
                row["encoder"],
                f"{row['evaluator']}/{row['protocol']}",
                row["metric"] + (f", k = {row['k']}" if row["k"] else ""),
                _number(row["metric"], row["value"]),
                f"{_number(row['metric'], row['low'])} to {_number(row['metric'], row['high'])}",
                ""
                if row["share_kept"] is None or not math.isfinite(row["share_kept"])
                else f"{100 * row['share_kept']:.1f}",
                "" if row["p"] is None or not math.isfinite(row["p"]) else f"{row['p']:.2g}",
                f"{row['n']:,}",
            )
            for row in results.rows
            if row["task"] == task
        ]
        header = ("encoder", "evaluator", "metric", "value", "95 % interval", "kept %", "p", "n")
        parts.append(f"<details><summary>{_text(task)}</summary>{_table(header, lines, left=3)}</details>")
    return "".join(parts)


def _reproduce(results: Results, settings: str) -> str:
    facts = "".join(f"{key}: {value}\n" for key, value in results.facts.items())
    told = "<p>Save these settings as a file and run <code>python -m eval FILE</code>.</p>" if settings else ""
    return told + "".join(f"<pre>{_text(block)}</pre>" for block in (settings, facts) if block)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    def mark(i: int) -> str:
        return ' class="left"' if i < left else ""

    head = "".join(f'<th scope="col"{mark(i)}>{_text(name)}</th>' for i, name in enumerate(header))
    body = "".join(
        "<tr>" + "".join(f"<td{mark(i)}>{_text(v)}</td>" for i, v in enumerate(row)) + "</tr>" for row in rows
    )
    return _scroll(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def _scroll(table: str) -> str:
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{table}</div>'


def _legend(names: Sequence[str]) -> str:
    marks = "".join(
        f'<span style="white-space:nowrap"><svg width="12" height="12" aria-hidden="true"><circle cx="6" cy="6" r="5" '
        f'fill="{COLOURS[i % len(COLOURS)]}"/></svg> {_text(name)}&ensp;</span> '
        for i, name in enumerate(names)
    )
    return f"<div>{marks}</div>"


def _svg(width: float, height: float, marks: Sequence[str], words: str) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{_text(words)}">{"".join(marks)}</svg>'
    )


def _figure(picture: str, caption: str) -> str:
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _number(metric: str, value: float) -> str:
    """Percent, but for what has no ceiling of 1."""
    return f"{value:.3f}" if metric.split()[0] in ("nll", "brier") else f"{100 * value:.2f} %"


def _text(value: object) -> str:
    return html.escape(str(value), quote=True)
