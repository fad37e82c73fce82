"""How long calls take on this machine, taken in turns, and what the machine can do.

A figure of speed means nothing without the processor and the threads beside it: int8 is fast where the processor multiplies
eight-bit numbers (VNNI, AMX, dot products of ARM), and slower than float elsewhere.
"""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

ROUNDS, LEAST = 60, 8
SECONDS = 2.0  # per call; a large network gets fewer rounds
BUSY = 2.0  # upper over lower end of a median's interval, from which on it says more of the machine than of the call
Z95 = 1.959963984540054
# Instructions that decide how fast small numbers are multiplied, as Linux names them.
FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_int8", "asimddp", "i8mm")


@dataclass(frozen=True)
class Timing:
    """Median seconds of a call with its 95 % interval, over so many rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def __str__(self) -> str:
        busy = ", the machine was busy: measure again" if self.high > BUSY * self.low else ""
        return f"{1000 * self.median:.2f} ms [{1000 * self.low:.2f}, {1000 * self.high:.2f}{busy}]"


def in_turns(
    calls: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, seconds: float = SECONDS, least: int = LEAST
) -> dict[str, Timing]:
    """Time each call in turns, so that a machine that is busy for a while is busy for all of them.

    Each is called once beforehand, then `rounds` times, or fewer, but at least `least`, once `seconds` are spent on it.
    The interval is that of the median, by order statistics: no shape is assumed.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for turn in range(rounds):
        for name, call in calls.items():
            if turn < least or sum(taken[name]) < seconds:
                began = time.perf_counter()
                call()
                taken[name].append(time.perf_counter() - began)
    return {name: median(spent) for name, spent in taken.items()}


def threads_said(count: int) -> str:
    """`one thread`, or `8 threads`."""
    return "one thread" if count == 1 else f"{count} threads"


def median(spent: list[float]) -> Timing:
    """The median of some seconds and its 95 % interval by order statistics (binomial, normal approximation)."""
    ranked, n = sorted(spent), len(spent)
    arm = Z95 * math.sqrt(n) / 2
    low, high = max(0, math.floor(n / 2 - arm)), min(n - 1, math.ceil(n / 2 + arm))
    middle = (ranked[(n - 1) // 2] + ranked[n // 2]) / 2
    return Timing(middle, ranked[low], ranked[high], n)


def processor() -> tuple[str, set[str]]:
    """Its name, and the features that Linux names; empty elsewhere."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                name = " ".join(value.split())
            if key.strip() in ("flags", "Features"):
                flags |= set(value.split())
    except OSError:
        pass
    return name, flags


def machine() -> str:
    """The processor in a line: its name, and which of FEATURES it has."""
    name, flags = processor()
    found = [feature for feature in FEATURES if feature in flags]
    return f"{name} ({', '.join(found) or 'none of the known instructions for small numbers'})"
