"""Approximate indexes for retrieval over large banks that are asked again and again, by faiss' factory strings.

    index = open_index(bank, "IVF256,Flat nprobe=16", folder)      # trained once, then read from the folder
    similarity, rows = index(queries, 100)
    found_again(index, bank, queries, (10, 100))                   # {10: 0.97, 100: 0.94} of the exact neighbours

An evaluation that asks a bank once is faster and exact without: training an index takes longer than the search. Words
after the factory string (`nprobe=16`, `efSearch=64`) set how widely an index looks; they need no other index.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from ssl_kd.runtime.files import atomically
from ssl_kd.search import factory as faiss_factory
from ssl_kd.search.vectors import unit_rows

from ..banks import blocks
from .knn import Search, without

if TYPE_CHECKING:
    import faiss

CHUNK = 1 << 22  # bytes of a file that are read at a time to check them
SAMPLED = 256  # queries whose exact neighbours are looked up, to know how many an index finds


@dataclass(frozen=True)
class ApproximateIndex:
    """A trained faiss index of a bank's unit vectors; cosine decides who is near."""

    index: faiss.Index
    name: str

    def __call__(self, queries: np.ndarray, k: int, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return similarity (Q, k) as the index sees it and row numbers (Q, k), -1 where it found no more rows.

        `own` (Q,) names a row that each query must not meet.
        """
        near, rows = self.index.search(unit_rows(queries), k + (own is not None))
        return (near, rows) if own is None else without(near, rows, own)


def open_index(bank: np.ndarray, name: str, folder: Path | None = None) -> ApproximateIndex:
    """Return the index of a bank (N, D) by its name, read from `folder` if it is there and written into it if not.

    The file's name is a digest of the bank's content and the factory string, so that nothing stale is ever read; it
    appears whole or not at all, and a damaged one is made anew. UserError for a name that faiss does not take.
    """
    factory, words = faiss_factory.split(name)
    path = None if folder is None else folder / f"{_digest(bank, factory)}.faiss"
    index = _read(path, bank)
    if index is None:
        index = faiss_factory.trained(bank, factory, unit_rows)
        if path is not None:
            _write(index, path)
    faiss_factory.look(index, name, words)
    return ApproximateIndex(index, name)


def check_index(name: str) -> str:
    """Return the name if faiss can read it, before anybody waits for features; its fit to a width shows later."""
    import faiss

    factory, words = faiss_factory.split(name)
    try:
        index = faiss.index_factory(64, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        if "could not parse" in str(error):
            raise faiss_factory.refusal(name, error) from None
        return name
    faiss_factory.look(index, name, words)
    return name


def found_again(
    index: ApproximateIndex,
    bank: np.ndarray,
    queries: np.ndarray,
    ks: tuple[int, ...],
    own: np.ndarray | None = None,
    seed: int = 0,
) -> dict[int, float]:
    """Return for each k the share of the exact k nearest rows that the index finds, over a seeded sample of queries."""
    some = np.sort(np.random.default_rng(seed).permutation(len(queries))[:SAMPLED])
    asked, itself = np.asarray(queries[some]), None if own is None else own[some]
    _, given = index(asked, max(ks), itself)
    _, exact = Search(bank)(asked, max(ks), itself)
    return {
        k: float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(exact[:, :k], given[:, :k], strict=True)]))
        for k in ks
    }


def _digest(bank: np.ndarray, factory: str) -> str:
    import faiss

    digest = hashlib.blake2b(f"{faiss.__version__} {factory} {bank.dtype} {bank.shape}".encode(), digest_size=16)
    for part in blocks(len(bank)):
        digest.update(np.ascontiguousarray(bank[part]).tobytes())
    return digest.hexdigest()


def _read(path: Path | None, bank: np.ndarray) -> faiss.Index | None:
    """Return what was kept, None when there is nothing or nothing that fits."""
    import faiss

    if path is None or not _is_whole(path):
        return None
    try:
        index = faiss.read_index(str(path))
    except RuntimeError:
        return None
    return index if (index.ntotal, index.d) == bank.shape else None


def _write(index: faiss.Index, path: Path) -> None:
    import faiss

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = faiss.PyCallbackIOWriter  # type: ignore[attr-defined]
    digest = hashlib.sha256(path.name.encode())

    def write(file: IO[bytes]) -> None:
        def put(data: bytes) -> int:
            digest.update(data)
            return file.write(data)

        faiss.write_index(index, writer(put))
        file.write(digest.digest())

    atomically(path, write)


def _is_whole(path: Path) -> bool:
    """Return whether a file ends in the SHA-256 of its own name and all before it: nothing changed, nothing swapped."""
    digest = hashlib.sha256(path.name.encode())
    try:
        with path.open("rb") as file:
            left = file.seek(0, 2) - 32
            file.seek(0)
            while left > 0 and (data := file.read(min(left, CHUNK))):
                digest.update(data)
                left -= len(data)
            return not left and file.read() == digest.digest()
    except OSError:
        return False
