"""An index in an object store: copied to the cache to be read and changed, and put back when it has changed.

What grows goes there first and `index.json` last, so a reader finds the index as it was before a change or after it. One
machine changes an index at a time: a change by another one is noticed before anything is put back.
"""

from __future__ import annotations

import os
from pathlib import Path

from ssl_kd.errors import UserError, shown_name
from ssl_kd.runtime.download import alone, digest_of, download
from ssl_kd.runtime.files import atomic_text, sealed, unsealed
from ssl_kd.runtime.ownership import mark, remove_ours, require_ours
from ssl_kd.runtime.stores import TRIES, Told, about, local_folder, put, remove
from ssl_kd.search.store import GROWING, HEAD, INDEX, is_index, read_head


class Remote:
    """An index at an address, and its copy in the cache."""

    def __init__(self, url: str):
        self.url = url.rstrip("/")
        self.folder = local_folder("indexes", self.url)
        self._noted = self.folder.with_suffix(".json")  # the version of index.json there, and its digest here

    def pull(self) -> Path:
        """Bring the copy up to date, and return its folder, which is empty where there is no index.

        Changes of this machine that did not get there yet stay. UserError where somebody changed the index meanwhile.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with alone(self.folder):
            told, known, mine = about(f"{self.url}/{HEAD}"), self._known(), self._mine()
            version = told.version if told else ""
            if version == known.get("version", "") and (mine or not told):
                return self.folder
            if mine not in ("", known.get("head")):
                raise UserError(
                    f"{shown_name(self.url)}: was changed there, while changes that were made here wait in {self.folder}; "
                    "remove that folder to drop them"
                )
            remove_ours(self.folder, INDEX)
            if told:
                self._fetch(told)
            else:
                self._noted.unlink(missing_ok=True)
        return self.folder

    def push(self) -> None:
        """Put what has changed here into the store. UserError where somebody changed the index there meanwhile."""
        with alone(self.folder):
            known, mine = self._known(), self._mine()
            if mine == known.get("head"):
                return
            told = about(f"{self.url}/{HEAD}")
            if (told.version if told else "") != known.get("version", ""):
                raise UserError(
                    f"{shown_name(self.url)}: was changed by another machine meanwhile; what was made here waits in "
                    f"{self.folder}: remove that folder and give the command again"
                )
            fast = read_head(self.folder).fast
            for name in (*GROWING, *([str(fast["file"])] if fast else [])):
                put(self.folder / name, f"{self.url}/{name}")
            self._note(put(self.folder / HEAD, f"{self.url}/{HEAD}"))
            old = known.get("fast", "")
            if old and old != fast.get("file"):
                remove(f"{self.url}/{old}")

    def _fetch(self, told: Told) -> None:
        """Bring all files, `index.json` last, as they are in one version of it."""
        require_ours(self.folder, INDEX)
        mark(self.folder, INDEX)
        waiting = self.folder.with_suffix(".new") / HEAD
        for _ in range(TRIES):
            download(f"{self.url}/{HEAD}", waiting, quiet=True)
            fast = read_head(waiting.parent).fast
            for name in (*GROWING, *([Path(str(fast["file"])).name] if fast else [])):
                download(f"{self.url}/{name}", self.folder / name, quiet=True)
            now = about(f"{self.url}/{HEAD}")
            if now == told:
                os.replace(waiting, self.folder / HEAD)
                self._note(told)
                return
            if now is None:
                break
            told = now
        raise UserError(f"{shown_name(self.url)}: the index changed again and again while it was read; try later")

    def _mine(self) -> str:
        return digest_of(self.folder / HEAD) if is_index(self.folder) else ""

    def _known(self) -> dict[str, str]:
        try:
            return {key: str(value) for key, value in unsealed(self._noted.read_text()).items()}
        except (OSError, ValueError):
            return {}

    def _note(self, told: Told) -> None:
        fast = str(read_head(self.folder).fast.get("file", ""))
        atomic_text(self._noted, sealed({"version": told.version, "head": self._mine(), "fast": fast, "url": self.url}))
