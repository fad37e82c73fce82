"""A finished distillation run as its folder tells it: what was asked, and what training itself measured without labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .text import count

# Settings that say where and how loudly a run was made, and decide nothing about the student.
ASIDE = frozenset({"out", "targets", "quiet", "log", "log_every", "save_minutes", "overwrite", "verify", "threads"})


@dataclass(frozen=True)
class Run:
    """What a run's folder says. `overlap`: the last share of neighbours in common with the teacher on held-out images;
    `best`: the highest one and its step; `chance`: what unrelated networks would share; None where nothing was held out.
    `half`: half the 95 % interval of `overlap`; 0 where the run's version did not log it.
    `collapsed`: whether it ended so.
    """

    name: str
    folder: Path
    settings: Mapping[str, object]
    parameters: int | None
    steps: int
    overlap: float | None
    best: tuple[float, float] | None
    chance: float | None
    half: float
    images_per_second: float | None
    collapsed: bool
    command: str

    def sentence(self) -> str:
        """Say in words how far the run came."""
        size = "" if self.parameters is None else f" of {count(self.parameters)} parameters"
        said = f"{self.name}: {self.settings.get('student', 'a student')}{size}, {self.steps:,} steps"
        if self.collapsed:
            return f"{said}; it collapsed"
        if self.overlap is None:
            return f"{said}; no images were held out, so training cannot say how good it is"
        shown = f"{100 * self.overlap:.1f}" + (f" ±{100 * self.half:.1f}" if self.half else "")
        said += f"; {shown} % of its nearest neighbours are the teacher's too"
        beside = [] if self.chance is None else [f"chance: {100 * self.chance:.1f} %"]
        if self.best is not None and self.best[0] > self.overlap:
            beside.append(f"best: {100 * self.best[0]:.1f} % at step {self.best[1]:,.0f}")
        said += f" ({'; '.join(beside)})" if beside else ""
        return said if self.above_chance else f"{said}, which is not above chance"

    @property
    def above_chance(self) -> bool:
        """Whether more neighbours are in common than by chance, interval and all, as far as the run's own log can tell."""
        return self.overlap is not None and (self.chance is None or self.overlap - self.half > self.chance)


def differing(runs: Sequence[Run]) -> list[str]:
    """Return the settings in which runs differ, in the order of the first; none of those that decide nothing."""
    names = dict.fromkeys(name for run in runs for name in run.settings if name not in ASIDE | {"student"})
    return [name for name in names if len({str(run.settings.get(name)) for run in runs}) > 1]
