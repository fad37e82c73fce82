"""Cells in several processes: each works on cells of its own and leaves them on disk, where the evaluation finds them.

First come the features of every encoder on every task, then the cells, so that nobody waits for a bank that another
is filling. The evaluation then goes through its table as it always does, finds every cell finished, and so writes the
same results in the same order, however many processes there were; what a killed one left out it computes itself.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from ssl_kd.runtime.progress import Progress

from .cells import Bench, Job, Settings, by_task

if TYPE_CHECKING:
    from .config import EncoderConfig, TaskConfig

T = TypeVar("T")
Opening = tuple["Sequence[TaskConfig]", "Sequence[EncoderConfig]", str, Settings, float, int]
WATCH = 1.0  # seconds between looks whether the evaluation is still there


def work(
    bench: Bench,
    jobs: Sequence[Job],
    tasks: Sequence[TaskConfig],
    encoders: Sequence[EncoderConfig],
    workers: int,
    max_unreadable: float = 0.01,
) -> None:
    """Finish the unfinished jobs in `workers` processes, which open tasks and encoders for themselves.

    The processor's threads are divided among them. An error of a cell, or Ctrl-C, ends them all and is raised here.
    """
    open_jobs = [job for job in jobs if bench.choice(job).kept and not bench.is_kept(job)]
    workers = min(workers, len(open_jobs))
    if workers < 2:
        return
    shared = replace(bench.settings, threads=max(1, bench.settings.threads // workers), quiet=True)
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),  # a forked torch hangs in its threads
        _begin,
        (os.getpid(), tasks, encoders, bench.reference, shared, max_unreadable, _threads(workers)),
    )
    try:
        _run(pool, _fill, list(by_task(open_jobs)), "features", bench.settings.quiet)
        _run(pool, _finish, open_jobs, "cells", bench.settings.quiet)
        pool.shutdown()
    except BrokenProcessPool:
        pool.shutdown(wait=False, cancel_futures=True)  # killed from outside: what is missing is computed here
    except BaseException:
        _end(pool)
        raise


def _run(pool: ProcessPoolExecutor, what: Callable[[T], None], jobs: Sequence[T], title: str, quiet: bool) -> None:
    with Progress(title, len(jobs), title, quiet) as bar:
        for done in as_completed([pool.submit(what, job) for job in jobs]):
            done.result()
            bar.advance(1)


def _end(pool: ProcessPoolExecutor) -> None:
    """End the processes at once: whatever they have finished is on disk."""
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()


def _threads(workers: int) -> int:
    import torch

    return max(1, torch.get_num_threads() // workers)


_given: Opening | None = None  # to a worker process: what it opens when its first job comes
_bench: Bench | None = None


def _begin(parent: int, *given: *Opening) -> None:
    """Remember what to open, and see to it that the process ends with the evaluation."""
    global _given, _bench
    _given, _bench = given, None
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _opened() -> Bench:
    """Return this process's own bench, opened by its first job, whose error it then is if that fails."""
    global _bench
    if _bench is None:
        import faiss
        import torch
        from threadpoolctl import threadpool_limits

        from .build import open_encoders, open_task

        assert _given is not None
        tasks, encoders, reference, settings, max_unreadable, threads = _given
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(threads)
        threadpool_limits(threads)
        named = {task.title: open_task(task, max_unreadable) for task in tasks}
        _bench = Bench(open_encoders(encoders), named, reference, settings)
    return _bench


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH)
    os._exit(1)  # the evaluation was killed


def _fill(pair: tuple[str, str]) -> None:
    _opened().banks(*pair)


def _finish(job: Job) -> None:
    _opened().cell(job)
