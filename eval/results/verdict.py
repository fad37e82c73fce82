"""The answer in a sentence per encoder: how much of the reference it keeps, how sure that is, and at which size.

Tasks whose interval is too wide to say anything are named and left out of the mean, so that one small test set neither
makes nor hides a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from .cell import Cell
from .standing import Beside, beside_random, is_student_of_another
from .text import Row

WIDE = 0.20  # half an interval of a share kept, above which a task cannot tell
JUDGES = ("knn", "linear")  # evaluators whose share kept is the answer, where they took part


@dataclass(frozen=True)
class Verdict:
    """What an encoder keeps of the reference by one evaluator. Shares are fractions; `low` to `high` is a 95 % interval."""

    encoder: str
    evaluator: str
    share: float
    low: float
    high: float
    tasks: tuple[str, ...]  # whose mean it is; empty: no task can tell
    unsure: tuple[tuple[str, float, float], ...]  # (task, share, half an interval) of those that cannot tell
    size: float  # the reference's parameters over its own; nan: unknown
    beside: Beside | None = None  # a random network's figure, where there is one
    stranger: bool = False  # whether it is the student of another teacher than the reference

    @property
    def certain(self) -> bool:
        """Whether at least one task can tell."""
        return bool(self.tasks)

    def sentence(self, reference: str) -> str:
        """Say it in words."""
        unsure = "; ".join(
            f"{task}: cannot tell ({100 * at:.0f} ± {100 * half:.0f} %)" for task, at, half in self.unsure
        )
        lost = "" if self.beside is None or self.beside.low > 0 else f"; {self.beside.words()}"
        if not self.tasks:
            return f"{self.encoder}, {self.evaluator}: {unsure}{lost}"
        where = self.tasks[0] if len(self.tasks) == 1 else f"{len(self.tasks)} tasks"
        share = f"{100 * self.share:.0f} % ({100 * self.low:.0f} to {100 * self.high:.0f})"
        if self.stranger:
            said = f"{self.encoder}, another teacher's student, is at {share} of {reference}'s {self.evaluator}"
        else:
            said = f"{self.encoder} keeps {share} of {reference}'s {self.evaluator}"
        said += f" on {where}{_at(self.size)}{lost}"
        return f"{said}; {unsure}" if unsure else said


def _at(size: float) -> str:
    if not math.isfinite(size) or 0.95 < size < 1.05:
        return ""
    return f", at 1/{size:.1f} of its size" if size > 1 else f", at {1 / size:.1f} times its size"


def verdicts(
    cells: Sequence[Cell],
    reference: str,
    headline: Callable[[str, str, str], Row],
    facts: Mapping[str, str] | None = None,
) -> list[Verdict]:
    """One verdict per encoder and judging evaluator, in the order of the table; none without a reference.

    facts: those of the results, which tell random rows and whose student one is.
    """
    found = []
    pairs = dict.fromkeys((c.encoder, c.evaluator) for c in cells if c.encoder != reference)
    for encoder, evaluator in pairs:
        if evaluator.split("/")[0] not in JUDGES:
            continue
        own = [c for c in cells if (c.encoder, c.evaluator) == (encoder, evaluator)]
        shares = [(c.task, _share(headline(encoder, c.task, evaluator))) for c in own]
        known = [(task, share) for task, share in shares if share is not None]
        if known:
            sizes = (_parameters(cells, reference), _parameters(cells, encoder))
            verdict = _verdict(encoder, evaluator, known, sizes)
            beside = beside_random(cells, facts or {}, encoder, evaluator)
            stranger = is_student_of_another(facts or {}, encoder, reference)
            found.append(replace(verdict, beside=beside, stranger=stranger))
    return found


def _share(row: Row) -> tuple[float, float, float] | None:
    values = tuple(row[key] for key in ("share_kept", "share_low", "share_high"))
    if any(value is None or not math.isfinite(value) for value in values):
        return None
    return values[0], values[1], values[2]


def _verdict(
    encoder: str,
    evaluator: str,
    known: Sequence[tuple[str, tuple[float, float, float]]],
    sizes: tuple[int | None, int | None],
) -> Verdict:
    """The mean of the tasks that can tell: independent test sets, so that their intervals' arms join as squares."""
    sure = [(task, share) for task, share in known if (share[2] - share[1]) / 2 <= WIDE]
    unsure = tuple((task, share[0], (share[2] - share[1]) / 2) for task, share in known if (task, share) not in sure)
    mean = sum(share[0] for _, share in sure) / len(sure) if sure else math.nan
    down, up = (
        math.sqrt(sum((share[side] - share[0]) ** 2 for _, share in sure)) / max(len(sure), 1) for side in (1, 2)
    )
    size = sizes[0] / sizes[1] if sizes[0] and sizes[1] else math.nan
    return Verdict(encoder, evaluator, mean, mean - down, mean + up, tuple(task for task, _ in sure), unsure, size)


def _parameters(cells: Sequence[Cell], encoder: str) -> int | None:
    return next((cell.parameters for cell in cells if cell.encoder == encoder), None)
