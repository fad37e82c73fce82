"""Is a student any good without labels? How many of the reference's neighbours it shares, beside chance and a random network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .cell import Cell
from .standing import Beside, beside_random, is_random


@dataclass(frozen=True)
class NeighbourVerdict:
    """What an encoder shares of the reference's neighbours on a task. Figures are fractions; `low` to `high` is a 95 % interval."""

    encoder: str
    task: str
    k: int
    share: float
    low: float
    high: float
    chance: float  # what unrelated networks share
    beside: Beside | None  # a random network's figure, where there is one

    @property
    def is_chance(self) -> bool:
        """Whether it cannot be told from chance, or from a random network where one stands beside it."""
        return self.low <= self.chance or (self.beside is not None and self.beside.low <= 0)

    def sentence(self, reference: str) -> str:
        """Say it in words and figures."""
        said = f"{self.task}: {self.encoder} shares {100 * self.share:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f}) "
        said += f"of {reference}'s {self.k} nearest neighbours, chance {100 * self.chance:.1f}: "
        if self.low <= self.chance:
            said += "cannot be told from chance" + ("" if self.beside is None else "; ")
        if self.beside is not None:
            return said + self.beside.words()
        if self.low > self.chance:
            said += f"{self.share / self.chance:.1f} times chance; a random network, which often is above chance too, "
            said += f"can stand beside it: {{name: random, like: {self.encoder}}}"
        return said


def neighbour_verdicts(cells: Sequence[Cell], reference: str, facts: Mapping[str, str]) -> list[NeighbourVerdict]:
    """One for each task and encoder whose neighbours were compared with the reference's; random rows stand in the others'."""
    own = [c for c in cells if c.scores.evaluator == "agreement" and c.encoder != reference]
    trained = [c for c in own if not is_random(facts, c.encoder)]
    return [found for cell in trained or own if (found := _verdict(cell, cells, facts)) is not None]


def _verdict(cell: Cell, cells: Sequence[Cell], facts: Mapping[str, str]) -> NeighbourVerdict | None:
    k = cell.scores.headline_k
    chance = cell.scores.details.get("chance", {}).get(str(k))
    if k is None or not chance:
        return None
    score = cell.scores.score("overlap", k)
    here = [c for c in cells if c.task == cell.task]
    beside = beside_random(here, facts, cell.encoder, cell.evaluator)
    return NeighbourVerdict(cell.encoder, cell.task, k, score.value, score.low, score.high, chance, beside)
