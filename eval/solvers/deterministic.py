"""Work in fixed pieces, one thread each, added up in order: the same bits whatever the number of threads.

A product that several threads share is rounded otherwise by each number of them, and an iteration of hundreds of steps
makes a visible difference of that. Pieces whose size knows nothing of threads do not, and cost no time: while one
thread's piece waits for memory, another's is in its cache.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")
AHEAD = 2  # pieces a thread that are under way, so that none waits for its turn to be added up
HELD = 1 << 28  # numbers that results may hold until their turn: 1 GB in float32


class Pieces:
    """Asked for the results of pieces of work, does them side by side and yields them in order."""

    def __init__(self, pool: ThreadPoolExecutor | None = None, ahead: int = 1):
        self.pool, self.ahead = pool, ahead

    def __call__(self, work: Callable[[Piece], Result], pieces: Iterable[Piece], held: int = 1) -> Iterator[Result]:
        """Yield work(piece) for every piece, a result of `held` numbers each; an error is raised in its place."""
        if self.pool is None:
            yield from map(work, pieces)
            return
        waiting: deque[Future[Result]] = deque()
        ahead = max(1, min(self.ahead, HELD // held))
        try:
            for piece in pieces:
                waiting.append(self.pool.submit(work, piece))
                if len(waiting) == ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def fixed_rounding(device: torch.device) -> Iterator[Pieces]:
    """Have torch use one thread an operation in here, and as many for pieces as it used outside.

    On any device but the CPU pieces are done one after the other: there the device itself is what works in parallel.
    """
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield Pieces()
        return
    torch.set_num_threads(1)  # threads begun from here on take this over
    try:
        with ThreadPoolExecutor(threads, thread_name_prefix="pieces") as pool:
            yield Pieces(pool, AHEAD * threads)
    finally:
        torch.set_num_threads(threads)
