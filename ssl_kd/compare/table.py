"""The tables of a comparison as plain cells, and as markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from ssl_kd.compare.results import (
    BEATS,
    LOSES,
    TIES,
    WIDE,
    Comparison,
    Group,
    Interval,
    Line,
    interval,
    percent,
    plain_name,
)

BESIDE = ("teacher", "external", "scratch", "random")
NAMES = {"scratch": "supervised from scratch", "random": "random weights"}
Table = tuple[list[str], list[list[str]]]


def short(figure: str) -> str:
    """A figure's name as a column: "knn k=20", "linear"."""
    evaluator, _, rest = plain_name(figure).partition("/")
    _, _, detail = rest.partition(" ")
    return f"{evaluator} {detail}".strip()


def main_table(found: Comparison, group: Group) -> Table:
    """One line per objective, best first, then the rows beside it."""
    against = found.against if found.against in found.names(group) else ""
    header = ["objective", "seeds", *(f"{short(f)} %" for f in found.shown), "kept %"]
    if against:
        header += [f"{short(f)} to {against}" for f in found.judged_by] + [f"against {against}"]
    header += ["looks", "minutes", "lr"]
    lines = [_teacher(found, group, len(header))]
    lines += [_line(found, group, name, against) for name in found.names(group)]
    for kind in ("external", "scratch", "random"):
        lines += [_beside(found, group, kind, name, len(header)) for name in found.names(group, kind)]
    return header, lines


def _teacher(found: Comparison, group: Group, width: int) -> list[str]:
    own = [percent(Interval(found.of_teacher(group.teacher, figure), float("nan"))) for figure in found.shown]
    return _padded([f"teacher {group.teacher}", "", *own, "100.0"], width)


def _figures(found: Comparison, group: Group, name: str, kind: str) -> list[str]:
    cells = []
    for figure in found.shown:
        values = list(found.by_seed(group, name, figure, kind).values())
        cells.append(percent(interval(values)) if values else "")
    return [*cells, percent(found.kept(group, name, found.shown[0], kind)) if found.shown else ""]


def _line(found: Comparison, group: Group, name: str, against: str) -> list[str]:
    lines = found.of(group, name)
    cells = [name, str(len(lines)), *_figures(found, group, name, "student")]
    if against and name == against:
        cells += [""] * (len(found.judged_by) + 1)
    elif against:
        pairs = [found.pair(group, figure, name, against) for figure in found.judged_by]
        cells += [percent(one.difference, "+") for one in pairs]
        cells.append(verdicts([(short(one.figure), one.verdict) for one in pairs]))
    return [*cells, f"{statistics.median(line.looks for line in lines):,.0f}", *_cost(lines)]


def _cost(lines: Sequence[Line]) -> list[str]:
    rates = ", ".join(sorted({f"{line.lr:g}" for line in lines if line.lr}))
    return [f"{statistics.median(line.seconds for line in lines) / 60:.1f}", rates]


def _beside(found: Comparison, group: Group, kind: str, name: str, width: int) -> list[str]:
    lines = found.of(group, name, kind)
    cells = _padded([NAMES.get(name, name), str(len(lines)), *_figures(found, group, name, kind)], width)
    if kind == "scratch":
        cells[-3:] = [f"{lines[0].looks:,}", *_cost(lines)]
    return cells


def _padded(cells: list[str], width: int) -> list[str]:
    return cells + [""] * (width - len(cells))


def verdicts(found: Sequence[tuple[str, str]]) -> str:
    """Several figures' verdicts in words: "beats: knn k=20; ties within: linear"; one word where all agree."""
    words = {verdict: [name for name, own in found if own == verdict] for _, verdict in found}
    if len(words) == 1:
        return next(iter(words))
    order = [BEATS, TIES, LOSES]
    return "; ".join(
        f"{w}: {', '.join(words[w])}" for w in sorted(words, key=lambda w: order.index(w) if w in order else 3)
    )


def task_table(found: Comparison, group: Group, figure: str) -> Table:
    """Share kept of the teacher on each task, one line per objective."""
    header = ["objective", *(f"{task} %" for task in found.tasks)]
    names = [(name, "student") for name in found.names(group)]
    names += [(name, kind) for kind in ("external", "scratch", "random") for name in found.names(group, kind)]
    return header, [
        [NAMES.get(name, name), *(percent(found.kept(group, name, figure, kind, task)) for task in found.tasks)]
        for name, kind in names
    ]


def pair_table(found: Comparison, group: Group, figure: str) -> Table:
    """Each line's objective against each column's: the difference in points and the verdict."""
    names = found.names(group)
    lines = []
    for first in names:
        cells = []
        for second in names:
            one = found.pair(group, figure, first, second)
            cells.append("" if first == second else f"{percent(one.difference, '+')} {one.verdict}".strip())
        lines.append([first, *cells])
    return ["objective", *names], lines


def damage_table(found: Comparison, group: Group) -> Table | None:
    """Figures at every level of damage to the probe's labels, one line per objective; None where nothing was damaged."""
    figures = [name for name in found.figures if name.startswith("robustness/")]
    if not figures:
        return None
    names = [(name, "student") for name in found.names(group)]
    names += [(name, kind) for kind in ("external", "scratch", "random") for name in found.names(group, kind)]
    head = ["objective", *(plain_name(figure).partition(": ")[2] + " %" for figure in figures)]
    lines = [
        [
            f"teacher {group.teacher}",
            *(percent(Interval(found.of_teacher(group.teacher, f), float("nan"))) for f in figures),
        ]
    ]
    for name, kind in names:
        by = [list(found.by_seed(group, name, figure, kind).values()) for figure in figures]
        lines.append([NAMES.get(name, name), *(percent(interval(values)) if values else "" for values in by)])
    return head, lines


def trials_table(found: Comparison) -> Table | None:
    """The learning rates that were tried."""
    if not found.trials:
        return None
    rates = sorted({lr for tried in found.trials.values() for lr in tried})
    lines = []
    for (teacher, student, pool, name), tried in found.trials.items():
        best = max(tried, key=lambda lr: tried[lr])
        cells = [("" if lr not in tried else f"{100 * tried[lr]:.1f}" if tried[lr] > 0 else "failed") for lr in rates]
        lines.append([f"{student} from {teacher}, {pool}", name, *cells, f"{best:g}"])
    return ["students", "objective", *(f"{lr:g}" for lr in rates), "chosen"], lines


def caption(found: Comparison) -> str:
    """How to read the tables."""
    first = short(found.shown[0]) if found.shown else "the first figure"
    return (
        f"Percent, means over {', '.join(found.tasks)}; ± half a 95 % t-interval over seeds. kept: of the teacher's {first}. "
        f"Differences in points, paired by seed: an objective beats another where the whole interval is above 0, and "
        f"an interval wider than ±{100 * WIDE:.0f} points cannot tell: add seeds. No "
        f"correction is made for the number of pairs."
    )


def random_lines(found: Comparison) -> list[str]:
    """A line for each group on those objectives that cannot be told from random weights."""
    return [
        f"{group.title}: {', '.join(names)} cannot be told from random weights by {short(found.by_knn)}: train longer, on more "
        "images, or take more seeds"
        for group in found.groups
        if (names := found.like_random(group))
    ]


def markdown(found: Comparison) -> str:
    """All main tables, and what a reader must know."""
    parts = [caption(found)]
    for group in found.groups:
        parts += [f"**{group.title}**", _markdown(main_table(found, group))]
        if damaged := damage_table(found, group):
            parts.append(_markdown(damaged))
    if tried := trials_table(found):
        parts += [f"Learning rates, chosen by {found.scored_by}:", _markdown(tried)]
    parts += [f"- {line}" for line in random_lines(found)]
    parts += [f"- left out: {title}: {' '.join(why.split())}" for title, why in found.refused.items()]
    if found.unfinished:
        parts.append(f"- {found.unfinished} cells are not finished yet")
    return "\n\n".join(parts) + "\n"


def _markdown(table: Table) -> str:
    header, lines = table
    rule = ["---", *["---:"] * (len(header) - 1)]
    rows = [[" ".join(cell.split()).replace("|", "\\|") for cell in line] for line in [header, rule, *lines]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
