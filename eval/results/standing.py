"""What an evaluation knows of its encoders besides their figures: which are random, whose student one is, what beats a random one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cell import Cell, paired

RANDOM = "random weights, seed "  # begins the origin of such a row


def is_random(facts: Mapping[str, str], encoder: str) -> bool:
    """Whether a row is a `{like: ...}`. A network from Python may have been trained since it was built with random weights."""
    return f", {RANDOM}" in facts.get(f"encoder {encoder}", "")


def is_student_of_another(facts: Mapping[str, str], encoder: str, reference: str) -> bool:
    """Whether an encoder says that it was distilled from something else than the reference."""
    own, theirs = (_origin(facts.get(f"encoder {name}", "")) for name in (encoder, reference))
    return own.startswith("distilled from ") and bool(theirs) and theirs not in own


def _origin(told: str) -> str:
    return told.partition(", ")[2].rpartition(", weights ")[0]


@dataclass(frozen=True)
class Beside:
    """A figure beside a random network's, both fractions; `low` to `high` is the 95 % interval of the difference."""

    own: float
    random: float
    low: float
    high: float

    def words(self) -> str:
        """Say which is better, or that nobody can tell."""
        own, random = (f"{100 * value:.1f}" for value in (self.own, self.random))
        if self.low > 0:
            apart = f"{100 * (self.own - self.random):.1f} points ({100 * self.low:.1f} to {100 * self.high:.1f})"
            return f"{apart} above a random network ({random})"
        if self.high < 0:
            return f"loses to a random network ({own} against {random})"
        return f"cannot be told from a random network ({own} against {random})"


def beside_random(cells: Sequence[Cell], facts: Mapping[str, str], encoder: str, evaluator: str) -> Beside | None:
    """Compare an encoder's headline figures by one evaluator with a random row's, as means over the tasks of both.

    The random row is the one with as many parameters, or else the first. None where there is none, or for a random row.
    """
    own = {c.task: c for c in cells if (c.encoder, c.evaluator) == (encoder, evaluator)}
    rows = [c for c in cells if c.evaluator == evaluator and c.task in own and is_random(facts, c.encoder)]
    if not rows or is_random(facts, encoder):
        return None
    size = next(iter(own.values())).parameters
    name = next((c.encoder for c in rows if c.parameters == size), rows[0].encoder)
    pairs = [(own[c.task], c) for c in rows if c.encoder == name]
    found = [one for mine, theirs in pairs if (one := _one(mine, theirs)) is not None]
    if not found:
        return None
    mine, random = (sum(values) / len(found) for values in zip(*((one.own, one.random) for one in found), strict=True))
    down, up = (
        math.sqrt(sum(arm**2 for arm in arms)) / len(found)
        for arms in (
            [one.own - one.random - one.low for one in found],
            [one.high - one.own + one.random for one in found],
        )
    )
    return Beside(mine, random, mine - random - down, mine - random + up)


def _one(mine: Cell, random: Cell) -> Beside | None:
    """One task, paired image by image; None where that cannot be."""
    share = paired(mine.scores, random.scores, mine.metric, mine.scores.headline_k)
    if share is None or not all(map(math.isfinite, (share.low, share.high))):
        return None
    own, theirs = (cell.scores.value(mine.metric) for cell in (mine, random))
    return Beside(own, theirs, (share.low - 1) * theirs, (share.high - 1) * theirs)
