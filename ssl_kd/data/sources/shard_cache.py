"""Remote shards as whole files in a folder of bounded size, fetched ahead of whoever reads them.

A fetched file is checked against the SHA-256 that it had when it was indexed, and a stored one once more by each process
that reads it, which costs one pass over the file; a damaged one is fetched anew. Connections that break are taken up
where they broke (`download`); a shard that cannot be had is one line that names it and the byte it came to.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np

from ssl_kd.data.samplers import WINDOW
from ssl_kd.errors import ImagesError, UserError, shown_name
from ssl_kd.runtime.download import Check, digest_of, download
from ssl_kd.runtime.files import atomic_text, sealed, unsealed

LOADERS = 4  # shards fetched or indexed at once
PAUSE = 1.0  # seconds before a broken connection is tried again, doubled after each
LIMIT = "SSL_KD_SHARD_GB"  # environment: gigabytes of fetched shards to keep
GIGABYTES = 50.0


class Fetched:
    """Remote shards, number -> URL, kept in `home`: those that are near in the plan, and others up to a limit."""

    def __init__(self, home: Path, urls: Mapping[int, str], shards: int):
        self.home, self.urls = home, urls
        self.known: dict[int, str] = {}  # sha256 of each, once indexed
        self._sound: dict[int, tuple[int, int, int]] = {}  # size, date and inode of files that this process has checked
        self.limit = _limit()
        self._plan = self._place = np.arange(shards)
        self._window = -1
        self._waiting: deque[int] = deque()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, object]:
        """Without its lock, so that a loader's processes can be given it."""
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__ |= state
        self._lock = threading.Lock()

    def learn(self, notes: Sequence[Mapping[str, object] | None]) -> None:
        """Take over what was noted of each shard that is indexed."""
        self.known = {i: str(note["sha256"]) for i, note in enumerate(notes) if note and "sha256" in note}

    def plan(self, shards: np.ndarray) -> None:
        """Say in which order the shards will be read."""
        self._plan, self._place, self._window = shards, np.argsort(shards), -1

    def path(self, shard: int) -> Path:
        """Return the file of a shard that is being read, fetching it if it is not here, and its neighbours meanwhile."""
        self._ahead(int(self._place[shard]) // WINDOW)
        return self.fetch(shard)

    def fetch(self, shard: int) -> Path:
        """Return the file of a shard, fetching it if it is not here. Raises ImagesError with its name and the byte."""
        target = self.home / f"{shard:06d}.tar"
        if not self._is_sound(shard, target):
            try:
                sha256 = download(
                    self.urls[shard], target, Check(sha256=self.known.get(shard)), quiet=True, pause=PAUSE
                )
                if shard not in self.known:  # then nobody else fetches it; later the index has its digest
                    atomic_text(_digest_file(target), sealed({"sha256": sha256}))
                self._sound[shard] = _stamp(target)
            except UserError as error:
                name = unquote(urlsplit(self.urls[shard]).path).rpartition("/")[2]
                part = target.with_name(target.name + ".part")
                came = part.stat().st_size if part.exists() else 0
                raise ImagesError(f"shard {shown_name(name)} failed at byte {came:,}: {error}") from None
            except FileNotFoundError:  # put away by another process already: the reader comes again
                pass
        return target

    def _is_sound(self, shard: int, target: Path) -> bool:
        """Whether the file is here, as it was when it came; a damaged one is removed."""
        try:
            stamp = _stamp(target)
            if self._sound.get(shard) == stamp:
                return True
            # A shard that is not indexed yet has its digest beside it only; one of an older version has none.
            wanted = self.known.get(shard) or _noted_digest(target)
            if wanted and digest_of(target) != wanted:
                target.unlink()
                return False
        except FileNotFoundError:
            return False
        self._sound[shard] = stamp
        return True

    def make_room(self, keep: set[int]) -> None:
        """Remove the indexed shards fetched longest ago, beyond the limit and except `keep`."""
        known, files = set(self.known), []
        for file in self.home.glob("??????.tar"):
            try:
                found = file.stat()
            except FileNotFoundError:  # another process was faster
                continue
            files.append((found.st_mtime, found.st_size, file))
        used = sum(size for _, size, _ in files)
        limit = min(self.limit, used + int(0.8 * shutil.disk_usage(self.home).free))
        for _, size, file in sorted(files):
            if used > limit and int(file.stem) not in keep and int(file.stem) in known:
                file.unlink(missing_ok=True)
                _digest_file(file).unlink(missing_ok=True)
                used -= size

    def _ahead(self, window: int) -> None:
        """On entering a window, fetch the rest of it and the next one in the background."""
        with self._lock:
            if window == self._window:
                return
            self._window = window
            near = self._plan[max(window - 1, 0) * WINDOW : (window + 2) * WINDOW].tolist()
            self._waiting = deque(
                s for s in self._plan[window * WINDOW : (window + 2) * WINDOW].tolist() if s in self.urls
            )
        self.make_room(set(near))
        for _ in range(min(LOADERS, len(self._waiting))):
            # Daemons: a program that ends does not wait for shards that nobody will read.
            threading.Thread(target=self._fetch_waiting, name="shards", daemon=True).start()

    def _fetch_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    return
                shard = self._waiting.popleft()
            try:
                self.fetch(shard)
            except (UserError, OSError):
                return  # whoever reads the shard will meet it too, and say so


def _stamp(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _digest_file(target: Path) -> Path:
    return target.with_suffix(".sha256.json")


def _noted_digest(target: Path) -> str | None:
    try:
        return str(unsealed(_digest_file(target).read_text())["sha256"])
    except (OSError, ValueError, KeyError):
        return None


def _limit() -> int:
    text = os.environ.get(LIMIT, str(GIGABYTES))
    try:
        gigabytes = float(text)
        if not 0 <= gigabytes < float("inf"):
            raise ValueError
    except ValueError:
        raise ImagesError(f"{LIMIT}: expected gigabytes, 0 or more, got {text!r}") from None
    return int(gigabytes * 1e9)
