"""One way to show progress: a bar with rate and time left on a terminal, a plain line a minute in a log.

with Progress("distill", total=50_000, unit="images") as bar:
    for batch in batches:
        bar.advance(len(batch), loss="0.213")
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

LINE_EVERY = 60.0  # seconds between plain lines when the output is not a terminal


class Progress:
    """Counts work done and shows rate and time left on standard error; silent with `quiet=True`.

    `advance(n, **notes)` adds n units and shows the notes (loss, learning rate, ...) on a line of their own below the
    bar, cut where the terminal ends, so that they never push count, rate and time left away; `keep` shows notes from now
    on; `say` prints a line at once, and `warn` does so also when quiet.
    """

    def __init__(self, title: str, total: int, unit: str = "images", quiet: bool = False, start: int = 0):
        self.title, self.total, self.unit, self.quiet = title, total, unit, quiet
        self.done, self.start = start, start
        self.began = self.spoke = time.monotonic()
        self._bar: Bar | None = None
        self._kept: dict[str, object] = {}

    def __enter__(self) -> Progress:
        if not self.quiet and sys.stderr.isatty():
            self._bar = _two_lines(self.title, self.total, self.unit)
            self._bar.start()
            # A name like t[v2] is no markup.
            shown = _cut(self.title, self._bar.console.width - _beside(self.total, self.unit))
            self._task = self._bar.add_task(shown, total=self.total, completed=self.done, rate="", notes="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif not self.quiet and kind is None:
            self._line("")

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self.start) / max(time.monotonic() - self.began, 1e-9)

    def advance(self, n: int, **notes: object) -> None:
        """Count n more units; show the notes as `name value` pairs."""
        self.done += n
        text = "  ".join(f"{k} {v}" for k, v in (notes | self._kept).items())
        if self._bar is not None:
            self._bar.update(self._task, advance=n, rate=f"{self.rate:.0f}/s", notes=text)
        elif not self.quiet and time.monotonic() - self.spoke > LINE_EVERY:
            self.spoke = time.monotonic()
            self._line(text)

    def keep(self, **notes: object) -> None:
        """Show these notes from now on, until they are given anew."""
        self._kept |= notes

    def say(self, text: str) -> None:
        """Print one line as `warn` does; nothing when quiet."""
        if not self.quiet:
            self.warn(text)

    def warn(self, text: str) -> None:
        """Print one line on standard error, above the bar where there is one."""
        if self._bar is not None:
            self._bar.console.print(f"{self.title}: {text}", markup=False, highlight=False, soft_wrap=True)
        else:
            print(f"{self.title}: {text}", file=sys.stderr, flush=True)

    def _line(self, text: str) -> None:
        seconds = time.monotonic() - self.began
        pace = "nothing left to do" if self.start >= self.total else f"{self.rate:.0f}/s, {duration(seconds)} gone"
        if self.start < self.total:
            left = max(self.total - self.done, 0)
            pace += f", {duration(left / self.rate)} left" if self.rate else ", ? s left"
        print(
            f"{self.title}: {self.done:,} of {self.total:,} {self.unit}, {pace}  {text}".rstrip(),
            file=sys.stderr,
            flush=True,
        )


def duration(seconds: float) -> str:
    """A time in words: "61 s", from two minutes on "5 min 12 s", from an hour on "41 h 24 min"."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def _beside(total: int, unit: str) -> int:
    """Cells beside title and bar: both counts, unit, rate, two times, and the spaces between them."""
    return 2 * len(str(total)) + len(unit) + 36


def _cut(title: str, room: int) -> str:
    """A title, or its beginning where it would push count, rate and time left away; 8 cells are always its own."""
    room = max(room, 8)
    return title if len(title) <= room else title[: room - 1] + "…"


def _two_lines(title: str, total: int, unit: str) -> Bar:
    """A bar of rich's whose notes stand on a second line; it has the room that count, rate and times leave."""
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress
    from rich.text import Text

    class TwoLines(RichProgress):
        def get_renderables(self) -> Iterator[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            yield Text(str(self.tasks[0].fields["notes"]), no_wrap=True, overflow="ellipsis") if self.tasks else ""

    console = Console(stderr=True)
    room = console.width - _beside(total, unit) - len(title) - 8  # times of more than a day
    bar = [BarColumn(bar_width=min(24, room))] if room >= 4 else []
    return TwoLines(
        TextColumn("{task.description}", markup=False),
        *bar,
        MofNCompleteColumn(),
        TextColumn(unit),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
