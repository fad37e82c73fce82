"""The table of headline figures as text: which lines, which columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..metrics import METRICS
from .cell import Cell, has_share
from .text import Row, count, rate, shown

WIDE = 3  # evaluators side by side that a terminal can show


@dataclass(frozen=True)
class Layout:
    """How cells become a table; `headline(encoder, task, evaluator)` gives the row that the table shows for one."""

    cells: Sequence[Cell]
    reference: str
    headline: Callable[[str, str, str], Row]

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
        metrics = {(getattr(cell, what), cell.metric) for cell in self.cells}
        return len(metrics) == len({one for one, _ in metrics})

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
                line += shown(self.headline(encoder, task, name)) if name in found else ["", ""]
            lines.append([*line, count(any_cell.parameters), rate(any_cell.images_per_second)])
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
                    pair = shown(self.headline(name, task, evaluator)) if name in cells else ["", ""]
                    line += pair[:1] if name == self.reference else pair
                lines.append(line)
        return header, lines

    def caption(self) -> str:
        """Say how to read the table."""
        at = "".join(f"; {name} at k = {said}" for name in self._evaluators if (said := self._neighbours(name)))
        kept = f"; kept: of {self.reference}'s figure" if self.reference else ""
        if kept and not all(has_share(cell.scores.evaluator, cell.metric) for cell in self.cells):
            kept += ", where a share of it says something: accuracies, mAP and agreement"
        sizes = loads = ""
        if any(cell.images_per_second is not None for cell in self.cells):
            loads = " images/s: with reading, start-up and the machine's other load."
        if self._is_long:
            told = {cell.encoder: _size(cell) for cell in self.cells}
            sizes = ". " + "; ".join(f"{name}: {size}" for name, size in told.items())
        return f"Percent ± half a 95 % interval over test images{at}{kept}{sizes}.{loads}"

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


def _size(cell: Cell) -> str:
    if cell.parameters is None:
        return "own features"
    return f"{count(cell.parameters)} parameters, {rate(cell.images_per_second)} images/s"


def _named(what: str, cell: Cell) -> str:
    """Add the metric's name where it is not accuracy."""
    return what if cell.metric == "top1" else f"{what} ({METRICS.get(cell.metric, cell.metric)})"
