"""Reading ahead in threads, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from ssl_kd.data.sources.base import ImageSource

Job = TypeVar("Job")


Result = TypeVar("Result")


def prefetch(read: Callable[[Job], Result], jobs: Iterable[Job], threads: int = 2, depth: int = 4) -> Iterator[Result]:
    """Yield `read(job)` for every job, in order, while `threads` threads work on the next ones.

    At most `depth` results (or `threads`, if more) are finished or under way ahead of the consumer. An exception of
    `read` is raised where its result would have come. When the consumer stops early, waiting jobs are dropped and the
    threads have ended by the time the iterator is closed. threads=0 reads in the caller's own thread.
    """
    if threads <= 0:
        yield from map(read, jobs)
        return
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prefetch")
    try:
        for job in jobs:
            waiting.append(pool.submit(read, job))
            if len(waiting) > max(depth, threads):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def batch_reader(
    images: ImageSource, prepare: Callable[[Image.Image], Tensor]
) -> Callable[[Sequence[int]], tuple[list[int], Tensor | None]]:
    """What `prefetch` may read: numbers of pictures -> those that were readable, and their pixels (B, ...), None without one."""
    import torch

    def read(job: Sequence[int]) -> tuple[list[int], Tensor | None]:
        seen = [(i, images.prepared(i, prepare)) for i in job]
        numbers = [i for i, picture in seen if picture is not None]
        pixels = [picture for _, picture in seen if picture is not None]
        return numbers, torch.stack(pixels) if pixels else None

    return read
