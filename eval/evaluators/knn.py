"""k-nearest-neighbour evaluation on feature banks, exact, by named protocols; the only file that knows faiss' k-NN.

    scores = KNN("dino")(train, test)
    scores.value("top1", k=20)

One faiss search serves every k. A protocol's name fixes every constant, so a number can be compared with a paper's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ssl_kd.errors import UserError
from ssl_kd.registry import Registry
from ssl_kd.runtime.progress import Progress
from ssl_kd.search.vectors import unit_rows

from ..banks import FeatureBank, Matched, blocks, match
from ..metrics import Scores, figures, hits_of_figures

if TYPE_CHECKING:
    import faiss

SHARD_BYTES = 24 << 20  # a bank that has to be normalised or converted is searched in copies of this size
QUERY_BYTES = 16 << 20  # queries asked of such a bank at a time: with a shard, and what they find, below 64 MB
MERGED = 1024  # of these queries, how many are taken through a shard at a time
BLOCK = 2048  # queries searched and counted at a time: what bounds the memory beyond the bank
VOTE_CELLS = 1 << 19  # cells of one table of votes (queries x classes, or queries x neighbours)
UNIT = 1e-6  # a length this close to 1 is what float32 makes of a unit vector
GUESSES = 5  # ranked guesses per query: what top-5 needs
GPU_K = 2048  # the most neighbours that faiss finds on a GPU
GPU_BYTES = 1 << 30  # of vectors, and of queries, that faiss takes to a GPU at a time
NEAR = 1e-6  # similarities this close to a tied one count as tied


@dataclass(frozen=True)
class KNNProtocol:
    """How neighbours are found and how they vote.

    `similarity`: cosine, or euclidean on the features as they are (then the similarity is -distance).
    `vote`: "exp" gives exp(similarity / temperature) per neighbour, "inverse" 1 / distance, "equal" one each.
    `ks` in ascending order; `headline` is the k that a table shows first.
    """

    name: str
    ks: tuple[int, ...]
    headline: int
    similarity: str = "cosine"
    vote: str = "exp"
    temperature: float = 0.07
    source: str = ""


PROTOCOLS: Registry[KNNProtocol] = Registry(
    "k-NN protocols",
    {
        row.name: row
        for row in (
            # k = 1 and 5 are ours, the paper's script reports 10, 20, 100 and 200 and calls 20 the usual one
            KNNProtocol("dino", (1, 5, 10, 20, 200), 20, source="facebookresearch/dino eval_knn.py"),
            # its softmax over the 200 nearest divides every vote of a query by one number: the same guesses as "exp"
            KNNProtocol("dinov2", (10, 20, 100, 200), 20, source="facebookresearch/dinov2 eval/evaluators/knn.py"),
            KNNProtocol("lightly", (200,), 200, temperature=0.1, source="lightly knn_predict"),
            KNNProtocol("solo", (20,), 20, source="solo-learn WeightedKNNClassifier"),
            KNNProtocol("solo-euclidean", (20,), 20, "euclidean", "inverse", source="solo-learn WeightedKNNClassifier"),
            # on unit vectors the Euclidean and the cosine order agree; ties go to the nearest instead of to chance
            KNNProtocol("compress", (1, 20), 1, vote="equal", source="UMBCvision/CompRess eval_knn.py"),
            KNNProtocol("plain", (1, 5, 10, 20, 50, 100, 200), 20, vote="equal", source="majority of the nearest"),
            KNNProtocol("plain-euclidean", (1, 5, 10, 20, 50, 100, 200), 20, "euclidean", "equal", source="majority"),
        )
    },
    group="ssl_kd.knn_protocols",
    kind=KNNProtocol,
    named=True,
)


@dataclass(frozen=True)
class KNN:
    """Evaluator: guess each test row's class from its nearest train rows.

    `protocol` is a name of PROTOCOLS or a KNNProtocol of your own (under a name of its own). Given the very same bank
    twice, a row is never its own neighbour. k is clamped to the bank, and `notes` says so.
    """

    protocol: str | KNNProtocol = "dino"

    quiet: bool = True

    name = "knn"

    def __call__(self, train: FeatureBank, test: FeatureBank, own: np.ndarray | None = None) -> Scores:
        """Return top-1, mean per class and top-5 for each k, with intervals and the guesses behind them.

        `own` (Q,) names the train row that each test row itself is, -1 for none; not needed for the very same bank.
        """
        protocol = knn_protocol(self.protocol)
        banks = match(train, test, squares=protocol.similarity != "cosine")
        own = np.arange(len(banks.x)) if banks.same else own
        ks, notes = _clamp(protocol, len(banks.x) - (own is not None))
        classes, search = len(banks.classes), Search(banks.x, protocol.similarity)
        ranked = {k: np.empty((len(banks.x_test), min(GUESSES, classes)), np.int64) for k in ks}

        def vote(part: slice, near: np.ndarray, index: np.ndarray) -> None:
            for k, guesses in ranked_votes(near, index, banks.y, classes, ks, protocol).items():
                ranked[k][part] = guesses

        with (
            Progress("nearest neighbours", len(banks.x_test), "queries", self.quiet) as bar,
            ThreadPoolExecutor(1, "votes") as beside,
        ):
            voting: Future[None] | None = None
            for part in blocks(len(banks.x_test), search.block):
                near, index = search(banks.x_test[part], ks[-1], None if own is None else own[part])
                if voting is not None:
                    voting.result()
                # one block is counted while faiss, which holds no lock of Python's, looks for the next one's neighbours
                voting = beside.submit(vote, part, near, index)
                bar.advance(part.stop - part.start)
            if voting is not None:
                voting.result()
        rows = [row for k in ks for row in figures(banks.y_test, ranked[k], classes, k)]
        return Scores(
            "knn",
            protocol.name,
            tuple(rows),
            banks.classes,
            banks.y_test,
            {k: ranked[k][:, 0] for k in ks},
            min(protocol.headline, ks[-1]),
            (*notes, *_zero_notes(banks, protocol)),
            {"temperature": protocol.temperature if protocol.vote == "exp" else None, "bank": len(banks.x)},
            each=hits_of_figures(banks.y_test, ranked, classes),
        )


def knn_protocol(protocol: str | KNNProtocol) -> KNNProtocol:
    """Return a protocol by name, or the given one as it is."""
    if isinstance(protocol, KNNProtocol):
        return protocol
    return PROTOCOLS[protocol]


class Search:
    """Exact nearest rows of a bank (N, D), by faiss; on a GPU where both the machine and its build of faiss have one.

    `similarity` is "cosine" or "euclidean" (then minus the distance). The bank may be memory-mapped or float16. One
    that holds float32 unit vectors already, or is searched by distance, is not copied; another is normalised or
    converted in shards of `shard_bytes` (None: SHARD_BYTES), anew for every block of queries.
    """

    def __init__(self, bank: np.ndarray, similarity: str = "cosine", shard_bytes: int | None = None):
        self.bank, self.similarity = bank, similarity
        as_is = bank.dtype == np.float32 and bank.flags.c_contiguous
        self.as_is = as_is and (similarity != "cosine" or _is_unit(bank))
        rows = len(bank) if self.as_is else max(1, (shard_bytes or SHARD_BYTES) // (4 * bank.shape[1]))
        self.parts = list(blocks(len(bank), rows))
        self.held = self._shard(self.parts[0]) if len(self.parts) == 1 else None
        self.block = BLOCK if self.held is not None else max(1, min(BLOCK, QUERY_BYTES // (4 * bank.shape[1])))
        self.card = _card()

    def __call__(self, queries: np.ndarray, k: int, own: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return similarity (Q, k) float32, falling, and row numbers (Q, k) of each query's k nearest rows.

        Equal similarities stand in the order of their row numbers, also at the cut. `own` (Q,) names a row that each
        query must not meet (-1: none): itself, where queries are rows of the bank. k must not exceed the rows that can
        be met.
        """
        size = len(self.bank) - (own is not None)
        if not 1 <= k <= size:
            raise UserError(f"k is {k}, but the bank offers {size} neighbours")
        q = _ready(queries, self.similarity)
        wanted = min(k + 1 + (own is not None), len(self.bank))  # one more shows whether the last place is tied
        best, index = self._search(q, wanted)
        if own is not None:
            best, index = without(best, index, own)
        if best.shape[1] > k:
            for row in np.flatnonzero(best[:, k] == best[:, k - 1]).tolist():
                skip = None if own is None or own[row] < 0 else int(own[row])
                best[row, :k], index[row, :k] = self._settle(q[row], k, best[row, k], skip)
            best, index = best[:, :k], index[:, :k]
        tied = np.flatnonzero((best[:, 1:] == best[:, :-1]).any(1))
        order = np.lexsort((index[tied], -best[tied]), axis=1)
        index[tied] = np.take_along_axis(index[tied], order, 1)
        return (best if self.similarity == "cosine" else -np.sqrt(np.maximum(-best, 0))), index

    def _shard(self, part: slice) -> np.ndarray:
        return self.bank[part] if self.as_is else _ready(self.bank[part], self.similarity)

    def _shards(self) -> Iterator[tuple[slice, np.ndarray]]:
        for part in self.parts:
            yield part, self._shard(part) if self.held is None else self.held

    def _search(self, q: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best (Q, k), highest first, as inner products or negative squared distances."""
        import faiss

        cosine = self.similarity == "cosine"
        if self.held is not None:
            best, index = self._nearest(q, self.held, k)
            return (best if cosine else -best), index
        heap = faiss.ResultHeap(len(q), k, keep_max=cosine)
        for part, shard in self._shards():
            for some in blocks(len(q), MERGED):
                near, where = self._nearest(q[some], shard, min(k, len(shard)))
                heap.add_result_subset(np.arange(some.start, some.stop), near, where + part.start)
        heap.finalize()
        return (heap.D if cosine else -heap.D), heap.I

    def _nearest(self, q: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        metric = faiss.METRIC_INNER_PRODUCT if self.similarity == "cosine" else faiss.METRIC_L2
        if self.card is None or k > GPU_K:
            return faiss.knn(q, rows, k, metric=metric)
        return faiss.knn_gpu(
            self.card, q, rows, k, metric=metric, vectorsMemoryLimit=GPU_BYTES, queriesMemoryLimit=GPU_BYTES
        )

    def _settle(self, query: np.ndarray, k: int, edge: float, skip: int | None) -> tuple[np.ndarray, np.ndarray]:
        """Cut a tie at the last place by row number: faiss keeps whichever of the tied rows it met in its own order."""
        scores = np.concatenate([_scores(query, shard, self.similarity) for _, shard in self._shards()])
        if skip is not None:
            scores[skip] = -np.inf
        close = np.abs(scores - edge) <= NEAR * max(1.0, abs(edge))
        scores[close] = edge
        above = np.flatnonzero(~close & (scores > edge))
        chosen = np.concatenate([above[np.argsort(-scores[above], kind="stable")], np.flatnonzero(close)])[:k]
        return scores[chosen], chosen


def neighbours(
    queries: np.ndarray, bank: np.ndarray, k: int, similarity: str = "cosine", leave_one_out: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return similarity (Q, k) and row numbers (Q, k) of each query's nearest rows of the bank: `Search` in one call.

    With `leave_one_out` query i never meets row i.
    """
    search = Search(bank, similarity)
    own = np.arange(len(queries)) if leave_one_out else None
    found = [
        search(queries[part], k, None if own is None else own[part]) for part in blocks(len(queries), search.block)
    ]
    return np.concatenate([near for near, _ in found]), np.concatenate([index for _, index in found])


def ranked_votes(
    similarity: np.ndarray,
    index: np.ndarray,
    labels: np.ndarray,
    classes: int,
    ks: tuple[int, ...],
    protocol: KNNProtocol,
) -> dict[int, np.ndarray]:
    """Return for each k the ranked guesses (Q, 5) from the votes of the k nearest, -1 where no class is left.

    A tie goes to the class of the nearest neighbour among the tied. `labels` (N,) are class numbers below `classes`.
    """
    ranked = {k: np.empty((len(index), min(GUESSES, classes)), np.int64) for k in ks}
    for part in blocks(len(index), max(1, VOTE_CELLS // max(classes, ks[-1]))):
        weights, voters = _weights(similarity[part], protocol), labels[index[part]]
        cells = np.arange(len(voters))[:, None] * classes + voters
        for k in ks:
            # always from the nearest on, one by one: equal votes then give equal sums, whatever other k is asked
            size = len(voters) * classes
            table = np.bincount(cells[:, :k].ravel(), weights[:, :k].ravel(), minlength=size)
            # looked up at the neighbours, not over the classes: argmax meets the nearest of the tied first
            standing = table[cells[:, :k]]
            for place in range(ranked[k].shape[1]):
                first = standing.argmax(1)[:, None]
                left = np.take_along_axis(standing, first, 1) > -1
                guess = np.take_along_axis(voters, first, 1)
                ranked[k][part, place] = np.where(left, guess, -1)[:, 0]
                standing[voters[:, :k] == guess] = -1
    return ranked


def _clamp(protocol: KNNProtocol, size: int) -> tuple[tuple[int, ...], list[str]]:
    if size < 1:
        raise UserError("train: one row has no neighbour but itself; k-NN needs at least two")
    return tuple(sorted({min(k, size) for k in protocol.ks})), clamp_notes(protocol.ks, size, "rows of the bank")


def clamp_notes(ks: Sequence[int], size: int, rows: str) -> list[str]:
    """Return a note on those k for which there are not as many rows, none where there are."""
    large = [k for k in ks if k > size]
    return [f"k = {', '.join(map(str, large))} clamped to the {size} {rows}"] if large else []


def _zero_notes(banks: Matched, protocol: KNNProtocol) -> list[str]:
    if protocol.similarity != "cosine":
        return []
    counts = {name: int((~x.any(1)).sum()) for name, x in (("train", banks.x), ("test", banks.x_test))}
    return [f"{n} {name} rows are all zero: their cosine is taken as 0" for name, n in counts.items() if n]


def _weights(similarity: np.ndarray, protocol: KNNProtocol) -> np.ndarray:
    if protocol.vote == "exp":
        # taken from each query's nearest, a factor common to all its votes: exp cannot overflow at a small temperature
        return np.asarray(np.exp((similarity - similarity[:, :1]).astype(np.float64) / protocol.temperature))
    if protocol.vote == "inverse":
        return 1 / (np.abs(similarity.astype(np.float64)) + 1e-8)
    return np.ones(similarity.shape)


def without(best: np.ndarray, index: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return similarities and row numbers (Q, K) without each query's own row, one column less; the last goes if need be."""
    others = index != own[:, None]
    others[others.all(1), -1] = False  # crowded out by its own duplicates: then the last place goes
    shape = (len(index), index.shape[1] - 1)
    return best[others].reshape(shape), index[others].reshape(shape)


def _card() -> faiss.StandardGpuResources | None:
    """Return faiss' handle of a GPU, None where the machine or this build of faiss has none."""
    import faiss

    if not hasattr(faiss, "StandardGpuResources") or faiss.get_num_gpus() < 1:
        return None
    return faiss.StandardGpuResources()


def _scores(query: np.ndarray, rows: np.ndarray, similarity: str) -> np.ndarray:
    return np.asarray(rows @ query if similarity == "cosine" else -((rows - query) ** 2).sum(1))


def _ready(rows: np.ndarray, similarity: str) -> np.ndarray:
    """Return C-ordered float32 rows, of unit length for cosine (all-zero rows stay zero)."""
    return unit_rows(rows) if similarity == "cosine" else np.ascontiguousarray(rows, np.float32)


def _is_unit(rows: np.ndarray) -> bool:
    lengths = (np.einsum("nd,nd->n", rows[part], rows[part]) for part in blocks(len(rows)))
    return all(np.abs(squares - 1).max() <= 2 * UNIT for squares in lengths)
