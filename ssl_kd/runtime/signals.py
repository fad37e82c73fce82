"""Ctrl-C and SIGTERM in the middle of a run: note them, finish the step, save, and say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived and the state is saved: `what` was stopped where, and `how` to go on."""

    def __init__(self, what: str, how: str):
        super().__init__(f"{what}; {how}")
        self.what = what


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect Ctrl-C and SIGTERM in a list instead of dying in the middle of a step. A second one kills as usual."""
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
