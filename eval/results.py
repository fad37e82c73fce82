"""Results of an evaluation: rows with intervals and shares kept, as a table, markdown, CSV and JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ssl_kd.runtime.files import atomically

from .metrics import (
    ERRORS,
    METRICS,
    Scores,
    Share,
    share_kept,
    share_kept_per_class,
    share_of_auroc,
    share_of_map11,
    share_of_means,
)

WIDE = 3  # evaluators side by side that a terminal can show
COLUMNS = (
    "task",
    "encoder",
    "evaluator",
    "protocol",
    "metric",
    "k",
    "value",
    "low",
    "high",
    "share_kept",
    "share_low",
    "share_high",
    "p",
    "n",
    "headline",
    "parameters",
    "width",
    "images_per_second",
    "notes",
)

if TYPE_CHECKING:
    from .report.projections import Look
    from .report.training_curves import Curves


@dataclass(frozen=True)
class Cell:
    """One encoder on one task under one evaluator."""

    task: str
    encoder: str
    metric: str  # the one that tables show: the evaluator's, or else the task's own
    scores: Scores
    parameters: int
    width: int
    images_per_second: float

    @property
    def evaluator(self) -> str:
        """Kind and protocol, as the configuration names them."""
        return f"{self.scores.evaluator}/{self.scores.protocol}"


@dataclass(frozen=True)
class Results:
    """All cells of an evaluation; shares are kept of `reference`'s figures.

    `facts` say what made them (versions, digests of encoders and tasks), `left_out` which cells there cannot be. For
    the report: `looks` are pictures, `curves` what was logged while an encoder was trained (key -> steps and values),
    `latencies` milliseconds per single image.
    """

    cells: tuple[Cell, ...]
    reference: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    left_out: tuple[str, ...] = ()
    curves: Mapping[str, Curves] = field(default_factory=dict)
    latencies: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """One dict per figure, with the keys of COLUMNS; `headline` marks the one that tables show."""
        return [row for cell in self.cells for row in self._rows_of(cell)]

    def value(self, encoder: str, task: str, evaluator: str = "knn", metric: str = "", k: int | None = None) -> float:
        """Return one figure; without a metric the task's own, without k the protocol's headline."""
        cell = self._find(encoder, task, evaluator)
        return cell.scores.value(metric or cell.metric, k)

    def headline(self, encoder: str, task: str, evaluator: str = "knn") -> dict[str, Any]:
        """Return the row of the figure that tables show for a cell."""
        cell = self._find(encoder, task, evaluator)
        wanted = (cell.task, cell.encoder, cell.scores.evaluator, cell.scores.protocol, True)
        keys = ("task", "encoder", "evaluator", "protocol", "headline")
        return next(row for row in self.rows if tuple(row[key] for key in keys) == wanted)

    def table(self) -> Any:
        """Return a rich table of the headline figures: percent, half-width of the interval, share kept."""
        from rich.table import Table
        from rich.text import Text

        header, lines = self.grid()
        # texts and not strings, in which a name like t[v2] would be read as markup
        table = Table(title=Text(self.caption(), "table.title"))
        for i, name in enumerate(header):
            table.add_column(Text(name), justify="left" if i < 2 else "right")
        for before, line in zip([None, *lines], lines, strict=False):
            table.add_row(*map(Text, line), end_section=False)
            if before is not None and before[0] != line[0]:
                table.rows[-2].end_section = True
        return table

    def markdown(self) -> str:
        """Return the same table as markdown, followed by what a reader must know."""
        header, lines = self.grid()
        rule = ["---", "---", *["---:"] * (len(header) - 2)]
        cells = [[_one_line(text).replace("|", "\\|") for text in line] for line in [header, rule, *lines]]
        text = "\n".join("| " + " | ".join(line) + " |" for line in cells)
        return "\n\n".join([text, _one_line(self.caption()), *[f"- {_one_line(note)}" for note in self.notes]]) + "\n"

    def latex(self) -> str:
        """Return the same table as a LaTeX tabular with booktabs rules."""
        header, lines = self.grid()
        rows = [" & ".join(map(_escaped, line)) + r" \\" for line in lines]
        for i in range(len(lines) - 1, 0, -1):
            if lines[i][0] != lines[i - 1][0]:
                rows.insert(i, r"\midrule")
        top = [rf"% {_escaped(self.caption())}", rf"\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}", r"\toprule"]
        head = [" & ".join(map(_escaped, header)) + r" \\", r"\midrule"]
        return "\n".join([*top, *head, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def comparisons(self) -> list[dict[str, Any]]:
        """Return every pair of encoders on the headline figures: the share that the second keeps of the first, and p."""
        found = []
        for i, first in enumerate(self.cells):
            for other in self.cells[i + 1 :]:
                if (first.task, first.evaluator) != (other.task, other.evaluator):
                    continue
                metric, k = first.metric, first.scores.headline_k
                share = paired(other.scores, first.scores, metric, k)
                if share is not None:
                    names = {"task": first.task, "evaluator": first.evaluator, "metric": metric, "k": k}
                    figures = {"share": share.value, "low": share.low, "high": share.high, "p": share.p}
                    found.append({**names, "first": first.encoder, "second": other.encoder, **figures})
        return found

    @property
    def notes(self) -> list[str]:
        """What was left out, and what evaluators had to say: clamped k, strengths that did not converge, and the like."""
        return [f"left out: {what}" for what in self.left_out] + [
            f"{cell.task}, {cell.encoder}, {cell.evaluator}: {note}"
            for cell in self.cells
            for note in cell.scores.notes
        ]

    def csv(self) -> str:
        """Return all rows as CSV with a header."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "notes": "; ".join(row["notes"])} for row in self.rows)
        return text.getvalue()

    def jsonl(self) -> str:
        """Return all rows as JSON lines; what is not a number becomes null."""
        return "".join(json.dumps(_plain(row), ensure_ascii=False) + "\n" for row in self.rows)

    def save(self, folder: str | Path) -> Path:
        """Write results.jsonl, results.csv, results.md and results.tex into a folder, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        forms = {"jsonl": self.jsonl(), "csv": self.csv(), "md": self.markdown(), "tex": self.latex()}
        for name, text in forms.items():
            atomically(folder / f"results.{name}", methodcaller("write", text.encode(errors="backslashreplace")))
        return folder

    def _find(self, encoder: str, task: str, evaluator: str) -> Cell:
        for cell in self.cells:
            if (cell.encoder, cell.task) == (encoder, task) and evaluator in (cell.evaluator, cell.scores.evaluator):
                return cell
        raise KeyError(f"no cell {encoder} x {task} x {evaluator}")

    def _rows_of(self, cell: Cell) -> Iterable[dict[str, Any]]:
        peers = [
            c for c in self.cells if (c.task, c.evaluator, c.encoder) == (cell.task, cell.evaluator, self.reference)
        ]
        for score in cell.scores.rows:
            share = _share(cell, peers[0], score.metric, score.k) if peers else None
            yield {
                "task": cell.task,
                "encoder": cell.encoder,
                "evaluator": cell.scores.evaluator,
                "protocol": cell.scores.protocol,
                "metric": score.metric,
                "k": score.k,
                "value": score.value,
                "low": score.low,
                "high": score.high,
                **(share or dict.fromkeys(("share_kept", "share_low", "share_high", "p"))),
                "n": score.n,
                "headline": score.metric == cell.metric and score.k == cell.scores.headline_k,
                "parameters": cell.parameters,
                "width": cell.width,
                "images_per_second": cell.images_per_second,
                "notes": list(cell.scores.notes),
            }

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Return header and lines of the table of headline figures, as text.

        A line per task and encoder with a pair of columns per evaluator. A metric other than accuracy stands beside the
        task whose figures all show it, or else beside the evaluator that shows it on all tasks. Where neither holds, or
        where more than three evaluators would make that too wide: a line per task and evaluator.
        """
        return self._by_evaluator() if self._is_long else self._by_encoder()

    @property
    def _evaluators(self) -> list[str]:
        return list(dict.fromkeys(cell.evaluator for cell in self.cells))

    @property
    def _is_long(self) -> bool:
        """Whether a line is about one evaluator, and not about one encoder."""
        return len(self._evaluators) > WIDE or not (self._alike("task") or self._alike("evaluator"))

    def _alike(self, what: str) -> bool:
        """Whether all cells of each task (or evaluator) show one metric."""
        shown = {(getattr(cell, what), cell.metric) for cell in self.cells}
        return len(shown) == len({one for one, _ in shown})

    def _by_encoder(self) -> tuple[list[str], list[list[str]]]:
        by_task = self._alike("task")
        header = ["task", "encoder"]
        for name in self._evaluators:
            one = next(cell for cell in self.cells if cell.evaluator == name)
            header += [f"{name if by_task else _named(name, one)} %", "kept %"]
        lines = []
        for task, encoder in dict.fromkeys((cell.task, cell.encoder) for cell in self.cells):
            found = {cell.evaluator: cell for cell in self.cells if (cell.task, cell.encoder) == (task, encoder)}
            any_cell = next(iter(found.values()))
            line = [_named(task, any_cell) if by_task else task, encoder]
            for name in self._evaluators:
                line += _shown(self.headline(encoder, task, name)) if name in found else ["", ""]
            lines.append([*line, _count(any_cell.parameters), f"{any_cell.images_per_second:.0f}"])
        return [*header, "parameters", "images/s"], lines

    def _by_evaluator(self) -> tuple[list[str], list[list[str]]]:
        encoders = list(dict.fromkeys(cell.encoder for cell in self.cells))
        header = ["task", "evaluator"]
        for name in encoders:
            header += [f"{name} %"] if name == self.reference else [f"{name} %", "kept %"]
        lines = []
        for task in dict.fromkeys(cell.task for cell in self.cells):
            for evaluator in self._evaluators:
                cells = {c.encoder: c for c in self.cells if (c.task, c.evaluator) == (task, evaluator)}
                if not cells:
                    continue  # an evaluator that cannot judge this task
                line = [task, _named(evaluator, next(iter(cells.values())))]
                for name in encoders:
                    shown = _shown(self.headline(name, task, evaluator)) if name in cells else ["", ""]
                    line += shown[:1] if name == self.reference else shown
                lines.append(line)
        return header, lines

    def caption(self) -> str:
        """Say how to read the table."""
        shown = "".join(f"; {name} at k = {said}" for name in self._evaluators if (said := self._neighbours(name)))
        kept = f"; kept: of {self.reference}'s figure" if self.reference else ""
        sizes = ""
        if self._is_long:
            rates = {
                c.encoder: f"{_count(c.parameters)} parameters, {c.images_per_second:.0f} images/s" for c in self.cells
            }
            sizes = ". " + "; ".join(f"{name}: {rate}" for name, rate in rates.items())
        return f"Percent ± half a 95 % interval over test images{shown}{kept}{sizes}."

    def _neighbours(self, evaluator: str) -> str:
        """Say an evaluator's k in words: the largest, and the tasks with fewer train rows, where it was clamped."""
        clamped: dict[int, dict[str, None]] = {}
        for cell in self.cells:
            if cell.evaluator == evaluator and cell.scores.headline_k:
                clamped.setdefault(cell.scores.headline_k, {})[cell.task] = None
        if not clamped:
            return ""
        most, *fewer = sorted(clamped, reverse=True)
        exceptions = "; ".join(f"{k} on {', '.join(clamped[k])}" for k in fewer)
        return f"{most} ({exceptions})" if fewer else str(most)


def _share(cell: Cell, peer: Cell, metric: str, k: int | None) -> dict[str, float] | None:
    """Return the share kept of the reference's figure; the interval is paired where the guesses can be compared."""
    mine, theirs = cell.scores, peer.scores
    if metric.split()[0] in ERRORS or not any((row.metric, row.k) == (metric, k) for row in theirs.rows):
        return None
    share = paired(mine, theirs, metric, k)
    if share is None:
        base = theirs.value(metric, k)
        share = Share(mine.value(metric, k) / base if base else math.nan, math.nan, math.nan, math.nan)
    return {"share_kept": share.value, "share_low": share.low, "share_high": share.high, "p": share.p}


def paired(mine: Scores, theirs: Scores, metric: str, k: int | None) -> Share | None:
    """Compare two encoders' figures on the same rows; None where what each row contributed was not kept."""
    each, base = mine.each.get((metric, k)), theirs.each.get((metric, k))
    if each is not None and base is not None and each.shape == base.shape:
        if metric == "auroc":
            return share_of_auroc(each, base, mine.labels == 0)
        return share_of_map11(mine.labels, each, base) if metric == "map11" else share_of_means(each, base)
    if k not in mine.predicted or not np.array_equal(mine.labels, theirs.labels):
        return None
    right, reference = mine.predicted[k] == mine.labels, theirs.predicted[k] == theirs.labels
    if metric == "mean_per_class":
        return share_kept_per_class(mine.labels, right, reference)
    return share_kept(right, reference) if metric == "top1" else None


def _shown(row: Mapping[str, Any]) -> list[str]:
    return [
        _percent(row["value"], row["low"], row["high"]),
        _percent(row["share_kept"], row["share_low"], row["share_high"]),
    ]


def _named(what: str, cell: Cell) -> str:
    """Add the metric's name where it is not accuracy."""
    return what if cell.metric == "top1" else f"{what} ({METRICS.get(cell.metric, cell.metric)})"


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "[": "{[}",  # after a line's end it would be read as that line's spacing
}


def _escaped(text: str) -> str:
    return "".join(LATEX.get(sign, sign) for sign in _one_line(text))


def _one_line(text: str) -> str:
    """A line break in a name would end the row of a table."""
    return " ".join(text.splitlines())


def _percent(value: float | None, low: float | None, high: float | None) -> str:
    if value is None or math.isnan(value):
        return ""
    if low is None or high is None or math.isnan(low) or low == high:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ±{50 * (high - low):.1f}"


def _count(n: int) -> str:
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return str(n)


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
