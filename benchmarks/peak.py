"""How much memory something needed meanwhile: a thread that looks at this process every few milliseconds."""

from __future__ import annotations

import threading
from pathlib import Path

ANONYMOUS, RESIDENT = "RssAnon", "VmRSS"  # what cannot be given back to files, and all that lies in memory


def now(kind: str = RESIDENT) -> int:
    """Bytes that this process holds, of that kind."""
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith(kind + ":"):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{status} says nothing of {kind}; this benchmark needs Linux")


class Peak:
    """`with Peak(kind) as peak: ...`, then `peak.megabytes` is the highest level above the one at entry."""

    def __init__(self, kind: str = RESIDENT, every: float = 0.002):
        self.kind, self.every = kind, every

    def __enter__(self) -> Peak:
        self.base = self.top = now(self.kind)
        self.over = threading.Event()
        self.watch = threading.Thread(target=self._run, daemon=True)
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watch.join()

    def _run(self) -> None:
        while not self.over.wait(self.every):
            self.top = max(self.top, now(self.kind))

    @property
    def megabytes(self) -> float:
        """MB, a million bytes, that the highest level lies above the one at entry."""
        return (self.top - self.base) / 1e6
