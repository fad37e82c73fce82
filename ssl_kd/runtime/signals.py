"""Ctrl-C and SIGTERM in the middle of a run: note them, finish the step, save the state, and name the way to resume."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

ANNOUNCEMENT = "finishing this step; press again to stop at once"


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM arrived and the state is saved: `what` was stopped where, and `how` to resume."""

    def __init__(self, what: str, how: str):
        super().__init__(f"{what}; {how}")
        self.what = what


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """Collect Ctrl-C and SIGTERM in a list instead of dying in the middle of a step. A second one kills as usual.

    The first Ctrl-C is answered by one line on standard error.
    """
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def note(number: int, frame: object) -> None:
        caught.append(signal.Signals(number).name)
        signal.signal(number, before[signal.Signals(number)])
        if number == signal.SIGINT and os.environ.get("RANK", "0") == "0":
            # Not by print: the signal may have come in the middle of one, which cannot be entered twice.
            with suppress(OSError):
                os.write(2, f"\n{ANNOUNCEMENT}\n".encode())

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, note)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
