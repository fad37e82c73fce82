"""Nearest rows among vectors that may be larger than memory, exactly: faiss does the arithmetic, in place."""

from __future__ import annotations

import numpy as np

SQUARES = (1e-24, 1e37)  # squared lengths between which float32 loses nothing that counts
BLOCK = 1 << 26  # bytes of rows that are copied at a time, where removed rows lie among them
MORE = 256  # removed rows: so many are passed over behind the search, more are taken out before it


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """Rows (N, D) as float32 of unit length, in C order; all-zero rows stay zero."""
    with np.errstate(over="ignore", under="ignore"):
        # divided in place below: a second copy of a shard would be half the memory
        ready = np.array(rows, np.float32, order="C")
    squares = np.einsum("nd,nd->n", ready, ready)
    extreme = np.flatnonzero(~((squares > SQUARES[0]) & (squares < SQUARES[1])))
    if len(extreme):  # float32 would lose their squares: first divided by their largest entry
        some = np.asarray(rows[extreme], np.float64)
        ready[extreme] = some / np.maximum(np.abs(some).max(1, keepdims=True), np.finfo(np.float64).tiny)
        squares[extreme] = np.einsum("nd,nd->n", ready[extreme], ready[extreme])
    ready /= np.maximum(np.sqrt(squares), np.float32(1e-12))[:, None]
    return ready


def nearest(
    vectors: np.ndarray, queries: np.ndarray, k: int, cosine: bool, gone: np.ndarray, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Distances (Q, K) and row numbers (Q, K) of the k nearest live rows, nearest first; K is k or the live rows.

    vectors: (N, D) float32, a memory map or not; queries: (Q, D) float32; gone: ascending numbers of rows to pass over.
    cosine: both are of unit length and the distance is 1 - cosine; otherwise it is Euclidean. first: rows before it
    take no part. Equal distances stand in the order of the row numbers.
    """
    gone = gone[gone >= first]
    k = min(k, len(vectors) - first - len(gone))
    if k < 1:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    if len(gone) <= MORE:
        near, rows = _faiss(vectors[first:], queries, k + len(gone), cosine)
        near, rows = without(near, rows + first, gone, k)
    else:
        near, rows = _by_blocks(vectors, queries, k, cosine, gone, first)
    return in_order(_distances(near, cosine), rows)


def distances(vectors: np.ndarray, queries: np.ndarray, rows: np.ndarray, cosine: bool) -> np.ndarray:
    """Distances (Q, K) of each query to rows of its own (Q, K), as `nearest` has them; infinite for row -1."""
    found = np.empty(rows.shape, np.float32)
    for number, (query, own) in enumerate(zip(queries, rows, strict=True)):
        some = np.asarray(vectors[np.maximum(own, 0)])
        scores = some @ query if cosine else ((some - query) ** 2).sum(1)
        found[number] = _distances(scores, cosine)
    found[rows < 0] = np.inf
    return found


def in_order(near: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both by distance, and by row number where distances are equal."""
    order = np.lexsort((rows, near), axis=1)
    return np.take_along_axis(near, order, 1), np.take_along_axis(rows, order, 1)


def without(near: np.ndarray, rows: np.ndarray, gone: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The first k of each line whose row is not gone, the others behind them."""
    if len(gone):
        order = np.argsort(np.isin(rows, gone), axis=1, kind="stable")
        near, rows = np.take_along_axis(near, order, 1), np.take_along_axis(rows, order, 1)
    return near[:, :k], rows[:, :k]


def _by_blocks(
    vectors: np.ndarray, queries: np.ndarray, k: int, cosine: bool, gone: np.ndarray, first: int
) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    heap = faiss.ResultHeap(len(queries), k, keep_max=cosine)
    size = max(1, BLOCK // (4 * vectors.shape[1]))
    for begin in range(first, len(vectors), size):
        stop = min(begin + size, len(vectors))
        out = gone[np.searchsorted(gone, begin) : np.searchsorted(gone, stop)]
        numbers = np.setdiff1d(np.arange(begin, stop), out, assume_unique=True)
        if len(numbers):
            block = vectors[begin:stop] if not len(out) else vectors[numbers]
            near, where = _faiss(block, queries, min(k, len(numbers)), cosine)
            heap.add_result(near, numbers[where])
    heap.finalize()
    return heap.D, heap.I


def _faiss(vectors: np.ndarray, queries: np.ndarray, k: int, cosine: bool) -> tuple[np.ndarray, np.ndarray]:
    import faiss

    metric = faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2
    near, rows = faiss.knn(queries, vectors, k, metric=metric)
    return near, rows


def _distances(near: np.ndarray, cosine: bool) -> np.ndarray:
    """What faiss says as a distance; rounding never makes one negative."""
    return np.asarray(np.maximum(1 - near, 0) if cosine else np.sqrt(np.maximum(near, 0)))
