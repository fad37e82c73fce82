"""A comparison from its settings to its tables: `ssl-kd compare CONFIG.yaml`, or from Python.

found = compare(CompareConfig(teachers={"dino": "dino.pth"}, images="photos/", tasks=["flowers.zip"], out="runs/compare"))
print(markdown(found))
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ssl_kd.compare import judging
from ssl_kd.compare.config import CompareConfig, check, objectives_of, students_of, teachers_of
from ssl_kd.compare.plan import Job, jobs_of
from ssl_kd.compare.results import Comparison, Group, Line
from ssl_kd.compare.shelf import COMPARISON, Record, Shelf
from ssl_kd.compare.table import markdown
from ssl_kd.compare.training import hide_ranks
from ssl_kd.compare.work import Worker, work
from ssl_kd.errors import UserError
from ssl_kd.metrics import chance_overlap
from ssl_kd.models.factory import must_be_an_architecture
from ssl_kd.runtime.files import atomic_text
from ssl_kd.runtime.ownership import mark, require_ours
from ssl_kd.runtime.run_dir import environment
from ssl_kd.runtime.signals import Interrupted


def compare(config: CompareConfig) -> Comparison:
    """Finish what is unfinished of a comparison (not with `show`), write its tables and report into `out`, and return what was found.

    Raises UserError for bad input before anything is loaded.
    """
    check(config)
    judging.check(config)
    for what, rows in (("students", students_of(config)), ("teachers", teachers_of(config))):
        for name, row in rows.items():
            must_be_an_architecture(f"{what}: arch of {name}", row.arch)
    out = Path(config.out)
    require_ours(out, COMPARISON)
    if config.show and not (out / "cells").is_dir():
        raise UserError(f"out: expected the folder of a comparison that was begun; there is none in {out}")
    number, count = hide_ranks()
    mark(out, COMPARISON)
    if not config.show:
        try:
            if count > 1:
                Worker(config, number, count).run()
            else:
                work(config)
        except Interrupted as stop:
            raise Interrupted(stop.what, "the same command resumes the comparison") from None
    found = collect(config)
    if not number:
        save(found, config)
    return found


def save(found: Comparison, config: CompareConfig) -> None:
    """Write tables, rows and report into `out`."""
    from ssl_kd.compare.report import page

    out = Path(config.out)
    atomic_text(out / "config.yaml", settings_text(config))
    atomic_text(out / "compare.md", markdown(found))
    atomic_text(out / "compare.csv", found.csv())
    atomic_text(out / "compare.jsonl", found.jsonl())
    atomic_text(out / "pairs.csv", found.pairs_csv())
    atomic_text(out / "report.html", page(found, settings_text(config), f"Comparison: {out.name}"))


def settings_text(config: CompareConfig) -> str:
    """The settings as YAML; what was an object from Python stands there by its origin."""
    import yaml

    from ssl_kd.models.encoder import Encoder

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [plain(one) for one in value]
        return f"<{value.origin} from Python>" if isinstance(value, Encoder) else value

    settings = {one.name: plain(getattr(config, one.name)) for one in fields(config) if one.name not in ("show", "own")}
    text = str(yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))
    return text + (f"# and on the command line: --own {config.own}\n" if config.own else "")


def collect(config: CompareConfig) -> Comparison:
    """What is finished of a comparison, from its folder."""
    return Collector(config).comparison()


class Collector:
    """Reads records and figures of finished cells."""

    def __init__(self, config: CompareConfig):
        self.config, out = config, Path(config.out)
        self.worker = Worker(replace(config, quiet=True))
        self.study, self.judge = self.worker.study, self.worker.judge
        self.shelf = Shelf(out / "cells")

    def comparison(self) -> Comparison:
        """All of it."""
        lines: list[Line] = []
        teachers, refused, unfinished = {}, {}, 0
        trials: dict[tuple[str, str, str, str], dict[float, float]] = {}
        for job in jobs_of(self.config):
            record = self.study.record(job)
            if record is None or not self.worker.is_finished(job):
                unfinished += 1
            elif "refused" in record:
                refused[f"{job.objective or job.kind}, {job.student} from {job.teacher}"] = record["refused"]
                if job.kind == "trial":
                    trials.setdefault(_of(job), {})[job.lr] = 0.0
            elif job.kind == "teacher":
                teachers[job.teacher] = self.figures(job, record)
            elif job.kind == "trial":
                trials.setdefault(_of(job), {})[job.lr] = float(record["score"] or 0.0)
            elif job.kind not in ("targets", "pace"):
                lines += self.lines(job, record)
        against = self.config.against or next(iter(objectives_of(self.config)))
        scored_by = f"k-NN and linear probe on {self.judge.aside.name}, which is judged nowhere" if self.judge.aside else (
            "neighbours in common with the teacher on held-out images, without labels"
        )  # fmt: skip
        chances = {name: chance_overlap(self.study.held(name)) for name in self.config.pools}
        order = sorted(lines, key=lambda line: line.kind != "student")
        return Comparison(
            tuple(order), teachers, against, refused, trials, scored_by, unfinished, self.facts(), chances
        )

    def figures(self, job: Job, record: Record) -> dict[str, dict[str, float]]:
        """A cell's figures by task."""
        teacher = self.study.teacher(job.teacher)
        found = {t: self.judge.figures(self.worker.seen(record, t), t, teacher) for t in self.judge.tasks}
        return {task: figures for task, figures in found.items() if figures is not None}

    def lines(self, job: Job, record: Record) -> list[Line]:
        """A cell's lines: a row beside stands in every group that it belongs to."""
        pools = [job.pool] if job.pool else list(self.config.pools)
        budgets = [job.budget] if job.budget else list(self.config.budgets)
        students = [job.student] if job.student else list(self.config.students)
        found = self.figures(job, record)
        return [
            Line(
                Group(job.teacher, student, pool, budget),
                job.kind,
                job.objective or job.kind,
                job.seed,
                found,
                int(record.get("parameters", 0)),
                float(record.get("seconds", 0.0)),
                int(record.get("looks", 0)),
                float(record.get("lr", 0.0)),
                int(record.get("replay", 0)),
                tuple((float(a), float(b), float(c)) for a, b, c in record.get("curve", [])),
            )
            for student in students
            for pool in pools
            for budget in budgets
        ]

    def facts(self) -> dict[str, str]:
        """What made the figures."""
        found = {}
        for name in self.study.teacher_rows:
            encoder = self.study.teacher(name)
            found[f"teacher {name}"] = (
                f"{encoder.arch}, {encoder.origin}, {encoder.parameter_count:,} parameters, {encoder.preprocessing.size} px, "
                f"SHA-256 {encoder.digest[:16]}"
            )
        for size in dict.fromkeys(map(self.study.size, self.study.teacher_rows)):
            found[f"images are judged at {size} px"] = (
                f"whole, without a crop; a row of `ssl-kd eval` does so with {{..., size: {size}, crop_ratio: 1.0}}"
            )
        for name in self.config.pools:
            images = self.study.pool(name)
            found[f"images {name}"] = (
                f"{len(images):,}, {self.study.held(name)} of them held out, digest {images.digest[:16]}"
            )
        for name, task in self.judge.tasks.items():
            found[f"task {name}"] = (
                f"{len(task.train.images):,} train, {len(task.test.images):,} test, digest {task.digest[:16]}"
            )
        return found | {"machine": environment()["machine"], "programs": self.judge.programs}


def _of(job: Job) -> tuple[str, str, str, str]:
    return job.teacher, job.student, job.pool, job.objective


def main(argv: Sequence[str]) -> int:
    """`ssl-kd compare`; returns the exit code."""
    from ssl_kd.runtime.command_line import parse

    config = parse(
        CompareConfig,
        argv,
        "ssl-kd compare",
        examples=(
            "ssl-kd compare configs/compare/demo.yaml    # on the files that ssl-kd demo leaves",
            "ssl-kd compare configs/compare/demo.yaml --own my_parts:Distance --workers 2",
            "ssl-kd compare configs/compare/demo.yaml --equal_time simreg --out runs/compare/demo_time",
        ),
    )
    began, first = time.monotonic(), os.environ.get("RANK", "0") == "0"
    found = compare(config)
    if not first:
        return 0  # of several processes the first prints
    _print(found)
    print(
        f"{config.out}/report.html, compare.md and compare.csv hold all of it ({(time.monotonic() - began) / 60:.1f} minutes)"
    )
    print(f"Next: open {config.out}/report.html in a browser; ssl-kd distill --help for the longer run")
    return 0


def _print(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ssl_kd.compare.table import caption, main_table, random_lines

    console = Console(width=None if sys.stdout.isatty() else 180)
    for group in found.groups:
        header, lines = main_table(found, group)
        table = Table(title=Text(group.title, "table.title"))
        for number, name in enumerate(header):
            table.add_column(Text(name), justify="right" if number else "left")
        for line in lines:
            table.add_row(*map(Text, line))
        console.print(table)
    console.print(Text(caption(found)))
    for said in random_lines(found):
        console.print(Text(said))
    for title, why in found.refused.items():
        console.print(Text(f"left out: {title}: {why}"))
    if found.unfinished:
        console.print(
            Text(f"{found.unfinished} cells are not finished yet; the same command without --show finishes them")
        )
