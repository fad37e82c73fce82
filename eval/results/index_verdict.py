"""Keep the index or embed again? The answer in a sentence, where an evaluation asked a reference's index by another encoder.

Two ways are open to who has an index of the reference and a cheaper encoder: ask the old index by the new encoder
(`asymmetric`), or embed all pictures again (its own `retrieval`). The second is advised only where it is better beyond the
95 % interval of the difference, query by query: it costs a pass over every picture.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics import Z95, Scores
from .cell import Cell

KEY = ("map", None)


@dataclass(frozen=True)
class IndexVerdict:
    """What queries by another encoder cost an index. Figures are mAP as fractions; None where nobody measured them."""

    encoder: str
    task: str
    asked: float
    half: float  # half a 95 % interval of it
    reference: float
    lost: float  # the reference's own queries less these
    lost_half: float
    own: float | None  # the encoder's own index
    bridge: float | None  # through a ridge bridge, where the encoder has a head of its own
    faster: float | None  # images per second, over the reference's
    keep: bool

    def sentence(self, reference: str) -> str:
        """Say it in words and figures."""
        said = f"{self.task}: queries by {self.encoder} against {reference}'s index: mAP {_points(self.asked)} ± "
        said += f"{_points(self.half)}, {reference} {_points(self.reference)}"
        said += "" if self.own is None else f", {self.encoder}'s own index {_points(self.own)}"
        said += "" if self.bridge is None else f", bridge {_points(self.bridge)}"
        saved = "" if self.faster is None or self.faster < 1.05 else f" and save {self.faster:.2g}x per query"
        if not self.keep:
            return f"{said}: re-embed, its own index is better beyond the interval"
        lost, half = _points(abs(self.lost)), _points(self.lost_half)
        return f"{said}: keep it, you {'lose' if self.lost >= 0 else 'gain'} {lost} ± {half} points{saved}"


def index_verdicts(cells: Sequence[Cell], reference: str) -> list[IndexVerdict]:
    """One for each task and encoder that asked the reference's index, where the reference asked it as well."""
    found = []
    for cell in cells:
        if cell.scores.evaluator == "asymmetric" and cell.encoder != reference:
            theirs = _retrieval(cells, reference, cell)
            if theirs is not None:
                found.append(_verdict(cell, theirs, _retrieval(cells, cell.encoder, cell)))
    return found


def _retrieval(cells: Sequence[Cell], encoder: str, like: Cell) -> Cell | None:
    wanted = (encoder, like.task, "retrieval", like.scores.protocol)
    return next(
        (c for c in cells if (c.encoder, c.task, c.scores.evaluator, c.scores.protocol) == wanted),
        None,
    )


def _verdict(asked: Cell, theirs: Cell, own: Cell | None) -> IndexVerdict:
    score = asked.scores.score(*KEY)
    lost, half = _difference(theirs.scores, asked.scores)
    better, wide = (0.0, 0.0) if own is None else _difference(own.scores, asked.scores)
    rates = asked.images_per_second, theirs.images_per_second
    return IndexVerdict(
        asked.encoder,
        asked.task,
        score.value,
        (score.high - score.low) / 2,
        theirs.scores.value(*KEY),
        lost,
        half,
        None if own is None else own.scores.value(*KEY),
        asked.scores.details.get("bridge"),
        rates[0] / rates[1] if rates[0] and rates[1] else None,
        better <= wide,
    )


def _difference(one: Scores, other: Scores) -> tuple[float, float]:
    """The mean difference over the queries, and half its 95 % interval."""
    a, b = one.each.get(KEY), other.each.get(KEY)
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return one.value(*KEY) - other.value(*KEY), math.inf
    gap = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(gap.mean()), Z95 * float(gap.std(ddof=1)) / math.sqrt(len(gap))


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
