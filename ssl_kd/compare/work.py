"""Cells in one process or several: each takes the next one that can be begun and that no other has claimed.

A killed process loses its claim, and whoever comes next resumes the cell from its last saved state.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ssl_kd.compare.config import CompareConfig
from ssl_kd.compare.judging import Judge, judged_folder
from ssl_kd.compare.plan import TRAINED, Job, jobs_of
from ssl_kd.compare.shelf import Record, Shelf
from ssl_kd.compare.training import Study, seen
from ssl_kd.distillation.monitor import few_held_out
from ssl_kd.errors import UserError
from ssl_kd.metrics import chance_overlap
from ssl_kd.runtime.devices import device_kind
from ssl_kd.runtime.files import sweep
from ssl_kd.runtime.signals import Interrupted

WAIT = 0.5  # seconds until a process looks again whether another has finished what it needs
WATCH = 1.0  # seconds between looks whether the comparison is still there


class Worker:
    """One process of a comparison. number: where in the list it begins to look, so that several do not queue."""

    def __init__(self, config: CompareConfig, number: int = 0, count: int = 1):
        out = Path(config.out)
        self.config, self.number, self.count = config, number, count
        self.study = Study(config, Shelf(out / "cells"))
        self.judge = Judge(config, Shelf(judged_folder(out)), device_kind(config.accelerator))
        self.jobs = jobs_of(config)

    def run(self) -> None:
        """Work until every cell is finished."""
        if not (self.number or self.config.quiet) and self._in_turn():
            self._say_first()
        waiting = True
        while waiting:
            waiting = worked = False
            for job in self._in_turn():
                state = self._work_on(job)
                waiting |= state == "waits"
                worked |= state == "worked"
                if worked and job.kind == "targets":
                    break  # what could not begin before may begin now, in its order
            if waiting and not worked:
                time.sleep(WAIT)
            waiting |= worked

    def _say_first(self) -> None:
        """What to know before the first cell: pools of which so few images are held out that the figure tells nothing."""
        for name in self.config.pools:
            held = self.study.held(name)
            if line := few_held_out(held, len(self.study.pool(name)) - held, "--held_out"):
                print(f"compare: {name}: {line}", file=sys.stderr, flush=True)

    def _in_turn(self) -> Sequence[Job]:
        """The unfinished cells, each process beginning at another."""
        open_jobs = [job for job in self.jobs if not self.is_finished(job)]
        start = self.number * len(open_jobs) // max(self.count, 1)
        return [*open_jobs[start:], *open_jobs[:start]]

    def is_finished(self, job: Job) -> bool:
        """Whether a cell's record is there, and its figures, where it is judged."""
        record = self.study.record(job)
        if record is None:
            return False
        return "refused" in record or not self._tasks(job) or not self._unjudged(job, record)

    def _tasks(self, job: Job) -> list[str]:
        return [] if job.kind in ("targets", "pace", "trial") else list(self.judge.tasks)

    def _unjudged(self, job: Job, record: Record) -> list[str]:
        teacher = self.study.teacher(job.teacher)
        return [t for t in self._tasks(job) if self.judge.figures(self.seen(record, t), t, teacher) is None]

    @staticmethod
    def seen(record: Record, task: str) -> Record:
        """By what a cell's network is known on a task: a supervised row has a network for each."""
        found: Record = record["by task"][task] if "by task" in record else record
        return found

    def _work_on(self, job: Job) -> str:
        key = self.study.key(job)
        if key is None:
            return "waits"
        with self.study.shelf.claim(key) as mine:
            if not mine:
                return "waits"
            if self.is_finished(job):
                return "was finished"
            began = time.monotonic()
            place = self.study.shelf.place(key)
            sweep(place, ("cell.json",))
            record = self.study.shelf.record(key)
            if record is None:
                record = self.study.shelf.keep(key, self._made(job, place))
            if "refused" not in record and self._tasks(job) and job.kind != "scratch":
                self._judge(job, record)
            self._tell(job, record, time.monotonic() - began)
        return "worked"

    def _made(self, job: Job, place: Path) -> Record:
        named: Record = {**vars(job), "title": job.title}
        if job.kind == "targets":
            return named | self.study.fill(job, place)
        if job.kind == "scratch":
            return named | self._from_scratch(job)
        if job.kind not in TRAINED:
            return named | seen(self.study.load(job))
        record, student = self.study.train(job, place)
        if job.kind == "trial" and student is not None:
            score = self.judge.score(student, self.study.teacher(job.teacher))
            record |= {} if score is None else {"score": score}
        if job.kind in ("trial", "pace") and student is not None:
            (place / "run" / "student.safetensors").unlink(missing_ok=True)
        return named | {"chosen lr" if job.kind == "student" else "tried lr": record["lr"]} | {
            name: value for name, value in record.items() if name != "lr" or job.kind == "student"
        }  # fmt: skip

    def _from_scratch(self, job: Job) -> Record:
        """A supervised network for each task; its figures are kept at once, for it is thrown away."""
        looks, teacher, by_task, seconds = (
            self.study.budgets[job.budget].looks,
            self.study.teacher(job.teacher),
            {},
            0.0,
        )
        if not looks:
            return {"refused": f"{job.budget} is in minutes; a supervised row needs a budget in looks"}
        for task in self.judge.tasks:
            network = self.study.fresh(job)
            seconds += self.judge.scratch(network, task, looks, job.seed)
            by_task[task] = seen(network)
            self.judge.judge(lambda network=network: network, by_task[task], teacher, [task])  # type: ignore[misc]
        return {"by task": by_task, "seconds": seconds, "looks": looks, "parameters": network.parameter_count}

    def _judge(self, job: Job, record: Record) -> None:
        self.judge.judge(lambda: self.study.load(job), record, self.study.teacher(job.teacher), self._tasks(job))

    def _tell(self, job: Job, record: Record, seconds: float) -> None:
        if self.config.quiet:
            return
        done = sum(map(self.is_finished, self.jobs))
        said = f"refused: {record['refused']}" if "refused" in record else f"{seconds:.0f} s"
        if isinstance(record.get("score"), float):
            said += f", {self._score(job, record['score'])}"
        print(f"[{done} of {len(self.jobs)}] {job.title}: {said}", file=sys.stderr, flush=True)

    def _score(self, job: Job, score: float) -> str:
        """A cell's score by its name, and what chance would be."""
        if job.kind == "trial" and self.judge.aside is not None:
            return f"k-NN and linear probe on {self.judge.aside.name} {100 * score:.1f} %"
        chance = chance_overlap(self.study.held(job.pool))
        return f"neighbours in common {100 * score:.1f} %, chance {100 * chance:.1f} %"


# ----------------------------------------------------------------------------------------------------- processes


def work(config: CompareConfig) -> None:
    """Finish every cell, in `workers` processes that divide the processor's threads among them."""
    if config.workers < 2:
        Worker(config).run()
        return
    rows = [row for row in config.teachers.values() if not isinstance(row, str | dict)]
    if rows or any(
        not isinstance(row.get("path", ""), str) for row in config.teachers.values() if isinstance(row, dict)
    ):
        raise UserError("workers: a teacher from Python stays in this process; take workers 1, or give its file")
    share = replace(config, workers=1, threads=max(1, config.threads // config.workers))
    context = multiprocessing.get_context("spawn")  # a forked torch hangs in its threads
    threads = max(1, torch.get_num_threads() // config.workers)
    said = context.SimpleQueue()
    arguments = [(share, number, config.workers, threads, os.getpid(), said) for number in range(config.workers)]
    processes = [context.Process(target=_begin, args=one) for one in arguments]
    for process in processes:
        process.start()
    try:
        for process in processes:
            while process.is_alive():
                process.join(WATCH)
                _raise_what_was_said(said)
        _raise_what_was_said(said)
    finally:
        for process in processes:
            process.terminate()
            process.join()
    Worker(config).run()  # what a killed one left


def _raise_what_was_said(said: multiprocessing.queues.SimpleQueue[str]) -> None:
    if not said.empty():
        raise UserError(said.get())


def _begin(
    config: CompareConfig,
    number: int,
    count: int,
    threads: int,
    parent: int,
    said: multiprocessing.queues.SimpleQueue[str],
) -> None:
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    torch.set_num_threads(threads)
    try:
        Worker(config, number, count).run()
    except UserError as error:
        said.put(str(error))
    except (Interrupted, KeyboardInterrupt):
        pass  # the comparison was told as well, and says so


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)  # the comparison was killed
