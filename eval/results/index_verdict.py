"""Keep the index or embed again? The answer in a sentence, where an evaluation asked a reference's index by another encoder.

Two ways are open to who has an index of the reference and a cheaper encoder: ask the old index by the new encoder
(`asymmetric`), or embed all pictures again (its own `retrieval`). The second is advised only where it is better beyond the
95 % interval of the difference, query by query: it costs a pass over every picture. Neither is advised where all that was
measured is below half of the reference's own mAP, and below it beyond the interval, or where a network with random weights
stands in the table and no way is above that one's own index beyond the interval: such a student is not good enough to search by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics import Z95, Scores
from .cell import Cell
from .standing import is_random

KEY = ("map", None)
ENOUGH = 0.5  # of the reference's mAP: below it a student is not good enough, whichever way it is asked


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
    own_lost: float  # the reference's mAP less that of the encoder's own index, and half its interval; nan without one
    own_half: float
    good_enough: (
        bool  # whether any way reaches ENOUGH of the reference or cannot be told from it, and is better than chance
    )
    random: float | None = None  # the own index of a network with random weights, where it is as good as any way

    def sentence(self, reference: str) -> str:
        """Say it in words and figures."""
        said = f"{self.task}: queries by {self.encoder} against {reference}'s index: mAP {_points(self.asked)} ± "
        said += f"{_points(self.half)}, {reference} {_points(self.reference)}"
        said += "" if self.own is None else f", {self.encoder}'s own index {_points(self.own)}"
        said += "" if self.bridge is None else f", bridge {_points(self.bridge)}"
        saved = "" if self.faster is None or self.faster < 1.05 else f" and save {self.faster:.2g}x per query"
        if not self.good_enough:
            best = max(self.asked, self.own or 0, self.bridge or 0)
            if self.random is not None:
                said += f", random weights in their own index {_points(self.random)}: keep {reference} for queries too: {self.encoder} "
                return (
                    f"{said}cannot be told from a random network; train it longer, on more images, or take a larger one"
                )
            said += f": keep {reference} for queries too: {self.encoder} is not good enough, at best {_points(best / self.reference)} % "
            return f"{said}of {reference}'s mAP; train it longer, on more images, or take a larger one"
        if not self.keep:
            return (
                f"{said}: re-embed, its own index is better than its queries to {reference}'s, beyond the interval; "
                f"beside {reference}'s own search {_change(self.own_lost, self.own_half)}"
            )
        return f"{said}: keep it, {_change(self.lost, self.lost_half)}{saved}"


def index_verdicts(cells: Sequence[Cell], reference: str, facts: Mapping[str, str]) -> list[IndexVerdict]:
    """One for each task and encoder that asked the reference's index, where the reference asked it as well.

    Random rows have none of their own; they stand in the others'.
    """
    found = []
    for cell in cells:
        if cell.scores.evaluator == "asymmetric" and cell.encoder != reference and not is_random(facts, cell.encoder):
            theirs = _retrieval(cells, reference, cell)
            if theirs is not None:
                rows = [_retrieval(cells, c.encoder, cell) for c in cells if is_random(facts, c.encoder)]
                random = [row for row in rows if row is not None]
                alike = [row for row in random if row.parameters == cell.parameters]
                least = next(iter([*alike, *random]), None)
                found.append(_verdict(cell, theirs, _retrieval(cells, cell.encoder, cell), least))
    return found


def _retrieval(cells: Sequence[Cell], encoder: str, like: Cell) -> Cell | None:
    wanted = (encoder, like.task, "retrieval", like.scores.protocol)
    return next(
        (c for c in cells if (c.encoder, c.task, c.scores.evaluator, c.scores.protocol) == wanted),
        None,
    )


def _verdict(asked: Cell, theirs: Cell, own: Cell | None, random: Cell | None) -> IndexVerdict:
    score, base = asked.scores.score(*KEY), theirs.scores.value(*KEY)
    lost, half = _difference(theirs.scores, asked.scores)
    better, wide = (0.0, 0.0) if own is None else _difference(own.scores, asked.scores)
    own_lost, own_half = (math.nan, math.nan) if own is None else _difference(theirs.scores, own.scores)
    losses = [(lost, half)] + ([] if own is None else [(own_lost, own_half)])
    bridge = asked.scores.details.get("bridge")
    poor = all(gone > max(arm, (1 - ENOUGH) * base) for gone, arm in losses) and (bridge or 0) < ENOUGH * base
    chance = random is not None and not any(_beats(way, random) for way in (asked, own))
    rates = asked.images_per_second, theirs.images_per_second
    return IndexVerdict(
        asked.encoder,
        asked.task,
        score.value,
        (score.high - score.low) / 2,
        base,
        lost,
        half,
        None if own is None else own.scores.value(*KEY),
        bridge,
        rates[0] / rates[1] if rates[0] and rates[1] else None,
        better <= wide,
        own_lost,
        own_half,
        not (poor or chance),
        random.scores.value(*KEY) if random is not None and chance else None,
    )


def _beats(way: Cell | None, random: Cell) -> bool:
    if way is None:
        return False
    gap, half = _difference(way.scores, random.scores)
    return gap > half


def _difference(one: Scores, other: Scores) -> tuple[float, float]:
    """The mean difference over the queries, and half its 95 % interval."""
    a, b = one.each.get(KEY), other.each.get(KEY)
    if a is None or b is None or len(a) != len(b) or len(a) < 2:
        return one.value(*KEY) - other.value(*KEY), math.inf
    gap = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    return float(gap.mean()), Z95 * float(gap.std(ddof=1)) / math.sqrt(len(gap))


def _change(lost: float, half: float) -> str:
    return f"you {'lose' if lost >= 0 else 'gain'} {_points(abs(lost))} ± {_points(half)} points"


def _points(share: float) -> str:
    return f"{100 * share:.1f}"
