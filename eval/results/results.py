"""Results of an evaluation: rows with intervals and shares kept, as a table, markdown, CSV and JSON lines."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import methodcaller
from pathlib import Path
from typing import TYPE_CHECKING

from ssl_kd.runtime.files import atomically, probe

from .cell import Cell, has_share, paired, share_of
from .index_verdict import IndexVerdict, index_verdicts
from .neighbour_verdict import NeighbourVerdict, neighbour_verdicts
from .table import Layout
from .text import Row, escaped, inert, one_line, plain
from .verdict import Verdict, verdicts

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
    "programs",
    "notes",
)

if TYPE_CHECKING:
    from rich.table import Table

    from ..report.projections import Look
    from ..report.training_curves import Curves
    from .latency import Latency
    from .runs import Run


@dataclass(frozen=True)
class Results:
    """All cells of an evaluation; shares are kept of `reference`'s figures.

    `facts` say what made them (versions, digests of encoders and tasks), `left_out` which cells there cannot be. For
    the report: `looks` are pictures, `curves` what was logged while an encoder was trained (key -> steps and values),
    `latencies` the time for a single image, `runs` finished distillation runs to stand beside.
    """

    cells: tuple[Cell, ...]
    reference: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    left_out: tuple[str, ...] = ()
    curves: Mapping[str, Curves] = field(default_factory=dict)
    latencies: Mapping[str, Latency] = field(default_factory=dict)
    runs: tuple[Run, ...] = ()

    @cached_property
    def rows(self) -> list[Row]:
        """One dict per figure, with the keys of COLUMNS; `headline` marks the one that tables show."""
        return [row for cell in self.cells for row in self._rows_of(cell)]

    def value(self, encoder: str, task: str, evaluator: str = "knn", metric: str = "", k: int | None = None) -> float:
        """Return one figure; without a metric the task's own, without k the protocol's headline."""
        cell = self._find(encoder, task, evaluator)
        return cell.scores.value(metric or cell.metric, k)

    def headline(self, encoder: str, task: str, evaluator: str = "knn") -> Row:
        """Return the row of the figure that tables show for a cell."""
        cell = self._find(encoder, task, evaluator)
        wanted = (cell.task, cell.encoder, cell.scores.evaluator, cell.scores.protocol, True)
        keys = ("task", "encoder", "evaluator", "protocol", "headline")
        return next(row for row in self.rows if tuple(row[key] for key in keys) == wanted)

    def verdicts(self) -> list[Verdict]:
        """Return how much each encoder keeps of the reference, in a sentence each; see `ssl_kd.eval.results.verdict`."""
        return verdicts(self.cells, self.reference, self.headline, self.facts)

    def neighbour_verdicts(self) -> list[NeighbourVerdict]:
        """Return how many of the reference's neighbours each encoder shares; see `ssl_kd.eval.results.neighbour_verdict`."""
        return neighbour_verdicts(self.cells, self.reference, self.facts)

    def index_verdicts(self) -> list[IndexVerdict]:
        """Return whether to keep an index of the reference or embed again; see `ssl_kd.eval.results.index_verdict`."""
        return index_verdicts(self.cells, self.reference, self.facts)

    def answers(self) -> list[str]:
        """Return all verdicts in words."""
        every: list[Verdict | NeighbourVerdict | IndexVerdict] = [*self.verdicts(), *self.neighbour_verdicts()]
        return [one.sentence(self.reference) for one in [*every, *self.index_verdicts()]]

    def table(self) -> Table:
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
        cells = [[one_line(text).replace("|", "\\|") for text in line] for line in [header, rule, *lines]]
        text = "\n".join("| " + " | ".join(line) + " |" for line in cells)
        notes = [f"- {one_line(note)}" for note in together(self.notes)]
        answer = [f"- **{one_line(said)}**" for said in self.answers()]
        return "\n\n".join(["\n".join(answer), text, one_line(self.caption()), *notes]).lstrip() + "\n"

    def latex(self) -> str:
        """Return the same table as a LaTeX tabular with booktabs rules."""
        header, lines = self.grid()
        rows = [" & ".join(map(escaped, line)) + r" \\" for line in lines]
        for i in range(len(lines) - 1, 0, -1):
            if lines[i][0] != lines[i - 1][0]:
                rows.insert(i, r"\midrule")
        top = [rf"% {escaped(self.caption())}", rf"\begin{{tabular}}{{ll{'r' * (len(header) - 2)}}}", r"\toprule"]
        head = [" & ".join(map(escaped, header)) + r" \\", r"\midrule"]
        return "\n".join([*top, *head, *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def comparisons(self) -> list[Row]:
        """Return every pair of encoders on the headline figures: the share that the second keeps of the first, and p.

        The share is nan where it says nothing (see `has_share`).
        """
        found: list[Row] = []
        for i, first in enumerate(self.cells):
            for other in self.cells[i + 1 :]:
                if (first.task, first.evaluator) != (other.task, other.evaluator):
                    continue
                metric, k = first.metric, first.scores.headline_k
                share = paired(other.scores, first.scores, metric, k)
                if share is not None:
                    names = {"task": first.task, "evaluator": first.evaluator, "metric": metric, "k": k}
                    told = has_share(first.scores.evaluator, metric)
                    shares = (share.value, share.low, share.high) if told else (math.nan,) * 3
                    figures = {**dict(zip(("share", "low", "high"), shares, strict=True)), "p": share.p}
                    found.append({**names, "first": first.encoder, "second": other.encoder, **figures})
        return found

    @property
    def notes(self) -> list[str]:
        """What was left out, licences that forbid commerce, and what evaluators had to say: clamped k, and the like."""
        licences = [self.facts["licences"]] if "licences" in self.facts else []
        told = [line for kind in ("encoders", "tasks") for line in self.facts.get(f"notes on {kind}", "").splitlines()]
        cells = [f"{c.task}, {c.encoder}, {c.evaluator}: {note}" for c in self.cells for note in c.scores.notes]
        return [f"left out: {what}" for what in self.left_out] + licences + told + cells

    def csv(self) -> str:
        """Return all rows as CSV with a header; no cell of it is a formula to a spreadsheet."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            cells = {**row, "notes": "; ".join(row["notes"])}
            writer.writerow({name: inert(cell) for name, cell in cells.items()})
        return text.getvalue()

    def jsonl(self) -> str:
        """Return all rows as JSON lines; what is not a number becomes null."""
        return "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in self.rows)

    def save(self, folder: str | Path) -> Path:
        """Write results.jsonl, .csv, .md, .tex and facts.json into a folder, each atomically. UserError where it cannot be."""
        folder = Path(folder)
        probe(folder / "results.jsonl")
        forms = {"jsonl": self.jsonl(), "csv": self.csv(), "md": self.markdown(), "tex": self.latex()}
        files = {f"results.{name}": text for name, text in forms.items()} | {"facts.json": self.record()}
        for name, text in files.items():
            atomically(folder / name, methodcaller("write", text.encode(errors="backslashreplace")))
        return folder

    def record(self) -> str:
        """Return as JSON what made the figures: encoders, tasks, objects from Python, programs, and what was left out."""
        found = {"reference": self.reference, "facts": dict(self.facts), "left_out": list(self.left_out)}
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"

    def _find(self, encoder: str, task: str, evaluator: str) -> Cell:
        for cell in self.cells:
            if (cell.encoder, cell.task) == (encoder, task) and evaluator in (cell.evaluator, cell.scores.evaluator):
                return cell
        raise KeyError(f"no cell {encoder} x {task} x {evaluator}")

    def _rows_of(self, cell: Cell) -> Iterable[Row]:
        peers = [
            c for c in self.cells if (c.task, c.evaluator, c.encoder) == (cell.task, cell.evaluator, self.reference)
        ]
        for score in cell.scores.rows:
            share = share_of(cell, peers[0], score.metric, score.k) if peers else None
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
                "programs": cell.programs,
                "notes": list(cell.scores.notes),
            }

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Return header and lines of the table of headline figures, as text; see `Layout.grid`."""
        return self._layout.grid()

    def caption(self) -> str:
        """Say how to read the table."""
        return self._layout.caption()

    @property
    def _layout(self) -> Layout:
        return Layout(self.cells, self.reference, self.headline)


def together(notes: Sequence[str]) -> list[str]:
    """Notes that say the same of several cells as one: "TEXT (CELL and 5 more)"."""
    alike: dict[str, list[str]] = {}
    for note in notes:
        alike.setdefault(note.partition(": ")[2] or note, []).append(note)
    return [
        own[0] if len(own) == 1 else f"{text} ({own[0].partition(': ')[0]} and {len(own) - 1} more)"
        for text, own in alike.items()
    ]
