"""What a comparison found: means over tasks with intervals over seeds, differences paired by seed, and a verdict for each pair.

An interval is Student's t at 95 % over seeds (n - 1 degrees of freedom). A difference is taken seed by seed, so that what
all objectives share in a seed cancels; one objective beats another where the whole interval of their difference is above 0.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import permutations
from typing import NamedTuple

import numpy as np

Figures = Mapping[str, Mapping[str, float]]  # by task, by figure

BEATS, TIES, LOSES, UNKNOWN = "beats", "ties within", "loses", "no verdict"
CANNOT = "cannot tell"  # begins the verdict on a difference whose interval has room for anything
WIDE = 0.2  # half an interval above which it has: a report of `ssl-kd eval` draws the same line


class Interval(NamedTuple):
    """A mean and half its interval, which is not a number for fewer than two values."""

    mean: float
    half: float


def interval(values: Sequence[float]) -> Interval:
    """Mean and half a 95 % t-interval."""
    from scipy.stats import t

    if len(values) < 2:
        return Interval(float(np.mean(values)), math.nan)
    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return Interval(float(np.mean(values)), float(half))


def above_zero(difference: Interval) -> bool:
    """Whether the whole interval is above 0; of one value the value itself."""
    return difference.mean > (0 if math.isnan(difference.half) else difference.half)


@dataclass(frozen=True)
class Group:
    """What the rows of one table share."""

    teacher: str
    student: str
    pool: str
    budget: str

    @property
    def title(self) -> str:
        """The group in words."""
        return f"{self.student} from {self.teacher}, {self.pool}, {self.budget}"


@dataclass(frozen=True)
class Line:
    """One network of a group: an objective's student of one seed, or a row beside (`kind` says which)."""

    group: Group
    kind: str
    name: str
    seed: int
    figures: Figures
    parameters: int = 0
    seconds: float = 0.0
    looks: int = 0
    lr: float = 0.0
    replay: int = 0
    curve: tuple[tuple[float, float, float], ...] = ()  # looks, minutes, neighbours in common on held-out images


@dataclass(frozen=True)
class Pair:
    """How one objective compares with another on one figure."""

    group: Group
    figure: str
    first: str
    second: str
    seeds: int
    difference: Interval

    @property
    def verdict(self) -> str:
        """In words, from the first one's side."""
        if self.seeds < 2:
            return UNKNOWN
        if abs(self.difference.mean) <= self.difference.half:
            return TIES if self.difference.half <= WIDE else f"{CANNOT}: {self.seeds} seeds"
        return BEATS if self.difference.mean > 0 else LOSES


@dataclass(frozen=True)
class Comparison:
    """All lines, the teachers' figures, and what was refused (by the cell's title, why)."""

    lines: tuple[Line, ...]
    teachers: Mapping[str, Figures]
    against: str
    refused: Mapping[str, str] = field(default_factory=dict)
    trials: Mapping[tuple[str, str, str, str], Mapping[float, float]] = field(default_factory=dict)
    scored_by: str = ""
    unfinished: int = 0
    facts: Mapping[str, str] = field(default_factory=dict)
    chances: Mapping[str, float] = field(
        default_factory=dict
    )  # by pool: what unrelated networks share of held-out images

    @cached_property
    def groups(self) -> list[Group]:
        """In order of appearance."""
        return list(dict.fromkeys(line.group for line in self.lines))

    @cached_property
    def tasks(self) -> list[str]:
        """All tasks."""
        found = [*self.teachers.values(), *(line.figures for line in self.lines)]
        return list(dict.fromkeys(task for figures in found for task in figures))

    @cached_property
    def figures(self) -> list[str]:
        """All figures, those that tables show first."""
        found = [*self.teachers.values(), *(line.figures for line in self.lines)]
        names = dict.fromkeys(name for figures in found for task in figures.values() for name in task)
        return sorted(names, key=lambda name: not name.endswith(" *"))

    @cached_property
    def shown(self) -> list[str]:
        """The figures of the main tables: each evaluator's headline, and k-NN of one neighbour."""
        return [
            name for name in self.figures if name.endswith(" *") or (name.startswith("knn/") and name.endswith(" k=1"))
        ]

    @cached_property
    def judged_by(self) -> list[str]:
        """The headline figures, by which pairs are judged."""
        return [name for name in self.figures if name.endswith(" *")]

    def names(self, group: Group, kind: str = "student") -> list[str]:
        """The objectives of a group, best first by the first figure."""
        found = dict.fromkeys(line.name for line in self.lines if line.group == group and line.kind == kind)
        first = self.shown[0] if self.shown else ""
        return sorted(
            found, key=lambda name: -interval(list(self.by_seed(group, name, first, kind).values()) or [0.0]).mean
        )

    def of(self, group: Group, name: str, kind: str = "student") -> list[Line]:
        """A name's lines, one a seed."""
        return [line for line in self.lines if (line.group, line.name, line.kind) == (group, name, kind)]

    def by_seed(self, group: Group, name: str, figure: str, kind: str = "student", task: str = "") -> dict[int, float]:
        """A figure's mean over tasks (or on one), seed by seed; seeds that lack it on a task are left out."""
        found = {}
        for line in self.of(group, name, kind):
            values = [line.figures.get(t, {}).get(figure) for t in ([task] if task else self.tasks)]
            present = [value for value in values if value is not None]
            if present and (len(present) == len(values) or self._never(figure, len(present))):
                found[line.seed] = float(np.mean(present))
        return found

    def _never(self, figure: str, count: int) -> bool:
        """Whether a figure is one that so many tasks alone have."""
        return count == max(
            (
                sum(figure in figures.get(t, {}) for t in self.tasks)
                for figures in (line.figures for line in self.lines)
            ),
            default=0,
        )

    def of_teacher(self, teacher: str, figure: str, task: str = "") -> float:
        """The teacher's mean over tasks, or its figure on one."""
        found = self.teachers.get(teacher, {})
        values = [found.get(t, {}).get(figure, math.nan) for t in ([task] if task else self.tasks)]
        present = [value for value in values if not math.isnan(value)]
        return float(np.mean(present)) if present else math.nan

    def kept(self, group: Group, name: str, figure: str, kind: str = "student", task: str = "") -> Interval:
        """The share of the teacher's figure, with its interval over seeds."""
        base = self.of_teacher(group.teacher, figure, task)
        values = [value / base for value in self.by_seed(group, name, figure, kind, task).values()]
        return interval(values) if values else Interval(math.nan, math.nan)

    def pair(self, group: Group, figure: str, first: str, second: str) -> Pair:
        """The difference of two objectives, paired by seed."""
        mine, theirs = (self.by_seed(group, name, figure) for name in (first, second))
        gaps = [mine[seed] - theirs[seed] for seed in sorted(set(mine) & set(theirs))]
        return Pair(group, figure, first, second, len(gaps), interval(gaps) if gaps else Interval(math.nan, math.nan))

    @property
    def by_knn(self) -> str:
        """The headline figure of k-NN, or where none was asked for the first headline figure."""
        return next((name for name in self.judged_by if name.startswith("knn/")), next(iter(self.judged_by), ""))

    def like_random(self, group: Group) -> list[str]:
        """Objectives that cannot be told from random weights by k-NN; none where no row of random weights is there.

        By the interval of the difference, paired by seed; of one seed by the difference alone.
        """
        random = self.by_seed(group, "random", self.by_knn, "random")
        found = []
        for name in self.names(group):
            mine = self.by_seed(group, name, self.by_knn)
            gaps = [mine[seed] - random[seed] for seed in sorted(set(mine) & set(random))]
            if gaps and not above_zero(interval(gaps)):
                found.append(name)
        return found

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every ordered pair of objectives in every group, by every headline figure."""
        return [
            self.pair(group, figure, *names)
            for group in self.groups
            for figure in self.judged_by
            for names in permutations(self.names(group), 2)
        ]

    # ------------------------------------------------------------------------------------------------- as text

    def csv(self) -> str:
        """One row per network, task and figure."""
        rows = [
            {**vars(line.group), "kind": line.kind, "name": line.name, "seed": line.seed, "task": task,
             "figure": plain_name(figure), "value": value, "teacher_value": self.of_teacher(line.group.teacher, figure, task),
             "parameters": line.parameters, "seconds": round(line.seconds, 2), "looks": line.looks, "lr": line.lr,
             "replay": line.replay}
            for line in self.lines
            for task, found in line.figures.items()
            for figure, value in found.items()
        ]  # fmt: skip
        return _csv(rows)

    def pairs_csv(self) -> str:
        """One row per ordered pair and figure."""
        return _csv(
            [
                {**vars(one.group), "figure": plain_name(one.figure), "first": one.first, "second": one.second,
                 "seeds": one.seeds, "difference": one.difference.mean, "half": one.difference.half, "verdict": one.verdict}
                for one in self.pairs
            ]
        )  # fmt: skip

    def jsonl(self) -> str:
        """One line per network."""
        return "".join(json.dumps({**vars(line), "group": vars(line.group)}) + "\n" for line in self.lines)


def _csv(rows: Sequence[Mapping[str, object]]) -> str:
    from ssl_kd.eval.results.text import inert

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: inert(cell) for name, cell in row.items()} for row in rows)
    return text.getvalue()


def plain_name(figure: str) -> str:
    """A figure's name without its mark."""
    return figure.removesuffix(" *")


def percent(value: Interval, sign: str = "", digits: int = 1) -> str:
    """Percent with half the interval, where there are both."""
    if math.isnan(value.mean):
        return ""
    text = f"{100 * value.mean:{sign}.{digits}f}"
    return text if math.isnan(value.half) else f"{text} ± {100 * value.half:.{digits}f}"
