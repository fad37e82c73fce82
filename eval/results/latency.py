"""What one image costs an encoder, by number of threads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssl_kd.runtime.timing import Timing, threads_said


@dataclass(frozen=True)
class Latency:
    """Time for one image in fp32, without reading it: by threads, each a median in seconds with its 95 % interval."""

    device: str
    by_threads: Mapping[int, Timing]

    def where(self, threads: int) -> str:
        """Say on what, such as `one thread`."""
        if self.device != "cpu":
            return self.device
        return threads_said(threads)

    def __str__(self) -> str:
        return ", ".join(f"{self.where(threads)} {one}" for threads, one in self.by_threads.items())
