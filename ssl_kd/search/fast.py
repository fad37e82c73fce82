"""An approximate index of faiss beside the vectors of a store: it proposes rows, the vectors decide.

Its file holds faiss' own format, named by its SHA-256, which the store's sealed head repeats. It covers the rows there
were when it was trained.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ssl_kd.errors import UserError
from ssl_kd.runtime.files import atomically
from ssl_kd.search.factory import asked, look, refusal, split, trained
from ssl_kd.search.store import NEW, Store
from ssl_kd.search.vectors import nearest, without

if TYPE_CHECKING:
    import faiss

SAMPLED = 256  # rows that are looked up again, to know how many of the exact neighbours are found
NEIGHBOURS = (1, 10, 100)
REFINED = 4  # times k rows are proposed: a lossy index has them in another order than the vectors
CHUNK = 1 << 22


@dataclass
class Fast:
    """A trained index and the rows that it covers: 0 to rows - 1."""

    index: faiss.Index
    rows: int

    @staticmethod
    def check(name: str) -> None:
        """UserError for a string that faiss cannot read, before anybody waits."""
        import faiss

        try:
            faiss.index_factory(64, split(name)[0])
        except RuntimeError as error:
            if "could not parse" in str(error):
                raise refusal(name, error) from None

    @staticmethod
    def train(store: Store, name: str, cosine: bool) -> dict[str, object]:
        """Train on a store's vectors, write the file, and return what the store's head says of it."""
        import faiss

        if not len(store):
            raise UserError(f"{store.folder}: the index holds no pictures; nothing can be learnt from it")
        factory, words = split(name)
        index = trained(store.vectors, factory, lambda rows: np.ascontiguousarray(rows), cosine)
        look(index, name, words)
        digest = hashlib.sha256()
        path = store.folder / NEW

        def write(file: IO[bytes]) -> None:
            def put(data: bytes) -> int:
                digest.update(data)
                return file.write(data)

            faiss.write_index(index, faiss.PyCallbackIOWriter(put))  # type: ignore[attr-defined]

        atomically(path, write)
        named = path.with_name(f"fast-{digest.hexdigest()[:16]}.faiss")
        path.replace(named)
        recall = Fast(index, store.head.rows).recall(store, cosine)
        return {
            "file": named.name,
            "sha256": digest.hexdigest(),
            "factory": name,
            "rows": store.head.rows,
            "recall": recall,
        }

    @classmethod
    def open(cls, store: Store) -> Fast:
        """What the head names. UserError where its file is missing or has changed."""
        import faiss

        record = store.head.fast
        path, name = store.folder / Path(str(record["file"])).name, str(record["factory"])
        try:
            whole = _sum(path) == record["sha256"]
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY) if whole else None
        except (OSError, RuntimeError):
            index = None
        if index is None:
            raise UserError(
                f"{store.folder}: the approximate index is damaged ({path.name}); train it anew with ssl-kd index train"
            )
        look(index, name, split(name)[1])
        return cls(index, int(str(record["rows"])))

    def candidates(self, queries: np.ndarray, k: int, gone: np.ndarray) -> np.ndarray:
        """Row numbers (Q, up to REFINED k) that may be the nearest, no removed ones; -1 where it found no more."""
        gone = gone[gone < self.rows]
        wanted = min(self.rows, REFINED * k + len(gone))
        near, rows = asked("search", lambda: self.index.search(queries, wanted))
        return without(near, rows, gone, min(REFINED * k, self.rows - len(gone)))[1]

    def recall(self, store: Store, cosine: bool) -> dict[str, float]:
        """The share of the exact k nearest that are found, over a seeded sample of the store's own vectors.

        A vector is left out of its own neighbours.
        """
        live = store.live()
        some = np.sort(np.random.default_rng(0).permutation(live)[:SAMPLED])
        queries, found = np.ascontiguousarray(store.vectors[some]), {}
        for k in (k for k in NEIGHBOURS if k < len(live)):
            _, exact = nearest(store.vectors, queries, k + 1, cosine, store.gone)
            given = self.candidates(queries, k + 1, store.gone)
            shares = [len(np.intersect1d(a[a != own][:k], b)) / k for a, b, own in zip(exact, given, some, strict=True)]
            found[str(k)] = math.fsum(shares) / len(shares)
        return found


def _sum(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            digest.update(data)
    return digest.hexdigest()
