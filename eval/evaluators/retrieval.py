"""Retrieval on feature banks: recall, precision, mAP, mAP@R and MRR, and how two encoders' rankings agree.

    Retrieval()(train, test)                         # test rows query an index of the train rows; same class = relevant
    Retrieval()(test, test)                          # every row queries all the others
    Retrieval()(teacher_train, bridge(student_train, teacher_train)(student_test))     # asymmetric
    agreement(teacher_train, teacher_test, student_train, student_test)                # needs no labels

Asymmetric retrieval changes the query encoder and keeps the index: the student's queries are carried into the teacher's
space, by the projector of its distillation or by a `bridge`, a ridge regression that needs images and no labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ssl_kd.errors import UserError
from ssl_kd.registry import Registry
from ssl_kd.runtime.progress import Progress
from ssl_kd.search.vectors import unit_rows

from ..banks import FeatureBank, Matched, blocks, check_finite, match
from ..metrics import Scores, mean_score
from .ann_index import check_index, found_again, open_index
from .knn import Search, clamp_notes

QUERIES = 128  # whose whole rankings are alive at once


@dataclass(frozen=True)
class RetrievalProtocol:
    """What is ranked: the whole index, or (by faiss, for large ones) the nearest `depth` rows of it.

    `index` is the name of an approximate one (`ssl_kd.eval.evaluators.ann_index`) for a cut ranking; empty: exact.
    """

    name: str
    ks: tuple[int, ...] = (1, 5, 10, 20, 100)
    depth: int | None = None
    index: str = ""
    source: str = ""


PROTOCOLS: Registry[RetrievalProtocol] = Registry(
    "retrieval protocols",
    {
        row.name: row
        for row in (
            RetrievalProtocol("full", source="average precision over the whole ranking"),
            # the average precision of a cut ranking is divided by the relevant rows it could have held
            RetrievalProtocol("top1000", depth=1000, source="the usual cut of large-scale retrieval"),
        )
    },
    group="ssl_kd.retrieval_protocols",
    kind=RetrievalProtocol,
    named=True,
)


@dataclass(frozen=True)
class Retrieval:
    """Evaluator: rank the index rows by cosine for each query; rows of the query's class are the relevant ones.

    Recall@k is the share of queries with a relevant row among the first k, precision@k the share of relevant rows
    there, mAP the mean average precision, mAP@R the average precision of the first R (the number of relevant rows),
    MRR the mean of 1 / rank of the first relevant row. Equal similarities stand in one random order in a whole ranking: in
    that of the index, where classes follow each other, an encoder that says the same of every image would look better than
    chance. In a cut ranking they stand in the order of the index. Approximate indexes are kept in `folder` (None: not at
    all), and the share of the exact neighbours that they find is noted.
    """

    protocol: str | RetrievalProtocol = "full"
    quiet: bool = True
    folder: Path | None = None

    name = "retrieval"

    def __call__(self, train: FeatureBank, test: FeatureBank) -> Scores:
        """Return every figure with its interval; given one bank twice, no row finds itself."""
        protocol, banks = retrieval_protocol(self.protocol), match(train, test)
        size = len(banks.x) - banks.same
        if size < 1:
            raise UserError("index: one row cannot be found by itself; retrieval needs at least two")
        depth = min(protocol.depth or size, size)
        ks = tuple(sorted({min(k, depth) for k in protocol.ks}))
        relevant = np.bincount(banks.y, minlength=len(banks.classes))[banks.y_test] - banks.same
        rank, recall = _ranker(banks, protocol, ks, depth, size, self.folder)
        columns: dict[tuple[str, int | None], list[np.ndarray]] = {}
        with Progress("retrieval", len(banks.y_test), "queries", self.quiet) as bar:
            for part in blocks(len(banks.y_test), QUERIES):
                own = np.arange(part.start, part.stop) if banks.same else None
                rows = rank(banks.x_test[part], own)
                hits = (banks.y[rows] == banks.y_test[part, None]) & (rows >= 0)
                for key, values in _figures(hits, relevant[part], ks).items():
                    columns.setdefault(key, []).append(values)
                bar.advance(part.stop - part.start)
        asked = relevant > 0  # a query without any relevant row says nothing about the encoder
        if not asked.any():
            raise UserError("no query has a relevant row in the index: every class has one row only")
        each = {key: np.concatenate(parts)[asked] for key, parts in columns.items()}
        notes = [f"{(~asked).sum()} queries have no relevant row and are left out"] if not asked.all() else []
        notes += clamp_notes(protocol.ks, depth, "rows that are ranked")
        if recall:
            shares = ", ".join(f"{100 * share:.1f} % of {k}" for k, share in recall.items())
            notes.append(f"approximate index {protocol.index}: finds {shares} exact neighbours")
        return Scores(
            "retrieval",
            protocol.name,
            tuple(mean_score(metric, values, k) for (metric, k), values in each.items()),
            banks.classes,
            banks.y_test[asked],
            {},
            notes=tuple(notes),
            details={"index": len(banks.x), "depth": depth} | ({"recall of the exact": recall} if recall else {}),
            headline_metric="map",
            each=each,
        )


def retrieval_protocol(protocol: str | RetrievalProtocol) -> RetrievalProtocol:
    """Return a protocol by name, or the given one as it is; "top1000@IVF256,Flat" is top1000 of an approximate index."""
    if not isinstance(protocol, str):
        return protocol
    plain, _, index = protocol.partition("@")
    if index:
        found = replace(retrieval_protocol(plain), name=protocol, index=check_index(index))
        if found.depth is None:
            raise UserError(
                f"{protocol}: {plain} ranks every row; an approximate index serves a cut ranking, as top1000"
            )
        return found
    return PROTOCOLS[protocol]


def bridge(student: FeatureBank, teacher: FeatureBank, seed: int = 0) -> Callable[[FeatureBank], FeatureBank]:
    """Return a map of student banks into the teacher's space, fitted to both encoders' features of the same images.

    Ridge regression of the teacher's unit vectors on the student's; the penalty is the best of nine on a tenth of the
    rows, by cosine. No label is looked at.
    """
    _same_images(student, teacher)
    check_finite(student, "student")
    check_finite(teacher, "teacher")
    x, y = unit_rows(student.features), unit_rows(teacher.features)
    held = np.random.default_rng(seed).permutation(len(x)) < max(1, len(x) // 10)
    if held.all():
        raise UserError("bridge: needs features of at least two images")
    fits = _ridge(x[~held], y[~held])
    cosines = {
        penalty: (unit_rows(fits(penalty)(x[held])) * y[held]).sum(1).mean() for penalty in np.logspace(-6, 2, 9)
    }
    chosen = max(cosines, key=lambda penalty: cosines[penalty])
    carry = _ridge(x, y)(chosen)

    def carried(bank: FeatureBank) -> FeatureBank:
        if bank.width != student.width:
            raise UserError(f"bridge: was fitted to features {student.width} wide, got {bank.width}")
        return FeatureBank(carry(unit_rows(bank.features)), bank.labels, bank.ids, f"{bank.key}>{teacher.key}")

    return carried


def telling_ks(ks: tuple[int, ...], size: int) -> tuple[int, ...]:
    """Those ks, ascending, that are at most half of an index of so many rows; if none is, the smallest, clamped to it.

    Of more than half any two networks share much: all of it, where k is the whole index.
    """
    if size < 1:
        raise UserError("agreement: needs at least two images in the index")
    return tuple(sorted({k for k in ks if k <= size / 2})) or (min(min(ks), size),)


def left_out_notes(ks: tuple[int, ...], size: int) -> list[str]:
    """Notes on those ks that `telling_ks` leaves out, and on a smallest one that it clamps."""
    kept, least = telling_ks(ks, size), min(ks)
    left = [k for k in ks if k > max((*kept, least))]
    said = f"k = {', '.join(map(str, left))} left out: more than half of the {size} rows of the index"
    return ([said] if left else []) + clamp_notes([least], size, "rows of the index")


def agreement(
    teacher_index: FeatureBank,
    teacher_queries: FeatureBank,
    student_index: FeatureBank,
    student_queries: FeatureBank,
    ks: tuple[int, ...] = (1, 10, 100),
) -> dict[tuple[str, int], np.ndarray]:
    """Return per query (Q,) how alike two encoders rank the same images, for each k; labels play no part.

    "overlap" is the share of the teacher's k nearest that are among the student's; "rank" is Spearman's correlation of
    the student's similarities with the teacher's order over the teacher's k nearest (k > 2), from -1 to 1. A k of more than
    half of the index is left out (`telling_ks`).
    """
    _same_images(student_index, teacher_index)
    _same_images(student_queries, teacher_queries)
    banks = {"reference": (teacher_index, teacher_queries), "encoder": (student_index, student_queries)}
    for name, (index, asked) in banks.items():
        check_finite(index, f"{name}, index")
        if asked is not index:
            check_finite(asked, f"{name}, queries")
    same = teacher_index is teacher_queries
    ks = telling_ks(ks, len(teacher_index) - same)
    theirs, ours = Search(teacher_index.features), Search(student_index.features)
    student_rows = unit_rows(student_index.features)
    found: dict[tuple[str, int], list[np.ndarray]] = {}
    for part in blocks(len(teacher_queries), QUERIES):
        own = np.arange(part.start, part.stop) if same else None
        _, wanted = theirs(teacher_queries.features[part], ks[-1], own)
        _, given = ours(student_queries.features[part], ks[-1], own)
        queries = unit_rows(student_queries.features[part])
        closeness = np.einsum("qkd,qd->qk", student_rows[wanted], queries)
        for k in ks:
            shared = [len(np.intersect1d(a, b)) / k for a, b in zip(wanted[:, :k], given[:, :k], strict=True)]
            found.setdefault(("overlap", k), []).append(np.array(shared))
            if k > 2:
                found.setdefault(("rank", k), []).append(_spearman(closeness[:, :k]))
    return {key: np.concatenate(parts) for key, parts in found.items()}


@dataclass(frozen=True)
class Agreement:
    """Evaluator: how much of a reference's neighbourhoods an encoder keeps; needs both encoders' banks, no labels."""

    ks: tuple[int, ...] = (1, 10, 100)

    name = "agreement"
    protocol = "neighbours"
    paired = True

    def __call__(
        self, train: FeatureBank, test: FeatureBank, reference_train: FeatureBank, reference_test: FeatureBank
    ) -> Scores:
        """Return overlap and rank correlation with intervals; test rows query the train rows."""
        each = agreement(reference_train, reference_test, train, test, self.ks)
        size = len(train) - (reference_train is reference_test)
        shown = sorted({k for _, k in each})[len({k for _, k in each}) // 2]
        chance = (
            f"unrelated networks would share {100 * shown / size:.1f} % of {shown} neighbours among {size:,} images"
        )
        return Scores(
            "agreement",
            "neighbours",
            tuple(mean_score(metric, values, k) for (metric, k), values in each.items()),
            np.array([]),
            np.zeros(len(test), int),
            {},
            notes=(chance, *left_out_notes(self.ks, size)),
            headline_k=shown,
            details={"chance": {str(k): k / size for _, k in each}},
            headline_metric="overlap",
            each={(metric, k): values for (metric, k), values in each.items()},
        )


def _ranker(
    banks: Matched, protocol: RetrievalProtocol, ks: tuple[int, ...], depth: int, size: int, folder: Path | None
) -> tuple[Callable[[np.ndarray, np.ndarray | None], np.ndarray], dict[str, float]]:
    """Return a function of queries (and their own rows) that gives row numbers (Q, depth), nearest first, -1 for none.

    With it, for an approximate index, the share of the exact neighbours that it finds among the first k.
    """
    if protocol.index:
        index = open_index(banks.x, protocol.index, folder)
        found = found_again(index, banks.x, banks.x_test, ks, np.arange(len(banks.x_test)) if banks.same else None)
        return lambda queries, own: index(queries, depth, own)[1], {str(k): share for k, share in found.items()}
    if depth < size:
        search = Search(banks.x)
        return lambda queries, own: search(queries, depth, own)[1], {}
    order = np.random.default_rng(0).permutation(len(banks.x))
    rows, place = unit_rows(banks.x[order]), np.argsort(order)

    def whole(queries: np.ndarray, own: np.ndarray | None) -> np.ndarray:
        similarity = unit_rows(queries) @ rows.T
        if own is not None:
            similarity[np.arange(len(own)), place[own]] = -np.inf
        return order[np.argsort(-similarity, axis=1, kind="stable")[:, :depth]]

    return whole, {}


def _figures(hits: np.ndarray, relevant: np.ndarray, ks: tuple[int, ...]) -> dict[tuple[str, int | None], np.ndarray]:
    """Return every figure per query from hits (Q, depth) in rank order and the relevant rows there are (Q,)."""
    depth = hits.shape[1]
    counted, places = hits.cumsum(1), np.arange(1, depth + 1)
    gains = np.where(hits, counted / places, 0)
    reachable = np.maximum(np.minimum(relevant, depth), 1)
    first = hits.argmax(1)
    within = places <= relevant[:, None]
    figures: dict[tuple[str, int | None], np.ndarray] = {}
    for k in ks:
        figures["recall", k] = (counted[:, k - 1] > 0).astype(np.float64)
        figures["precision", k] = counted[:, k - 1] / k
    figures["map", None] = gains.sum(1) / reachable
    figures["map@r", None] = (gains * within).sum(1) / reachable
    figures["mrr", None] = np.where(hits.any(1), 1 / (first + 1), 0)
    return figures


def _ridge(x: np.ndarray, y: np.ndarray) -> Callable[[float], Callable[[np.ndarray], np.ndarray]]:
    """Return ridge regression of y on x for any penalty, from one eigendecomposition."""
    x_mean, y_mean = x.mean(0), y.mean(0)
    centred = (x - x_mean).astype(np.float64)
    values, turn = np.linalg.eigh(centred.T @ centred / len(x))
    seen = turn.T @ (centred.T @ (y - y_mean) / len(x))

    def at(penalty: float) -> Callable[[np.ndarray], np.ndarray]:
        weights = turn @ (seen / (values.clip(0) + penalty * values.max() + 1e-12)[:, None])
        return lambda rows: ((rows - x_mean) @ weights + y_mean).astype(np.float32)

    return at


def _spearman(closeness: np.ndarray) -> np.ndarray:
    """Correlate each row's ranks (Q, k), highest first, with 0 .. k - 1; a row of equal values gives 0."""
    from scipy.stats import rankdata

    ranks = rankdata(-closeness, axis=1) - (closeness.shape[1] + 1) / 2
    order = np.arange(closeness.shape[1]) - (closeness.shape[1] - 1) / 2
    spread = np.sqrt((ranks**2).sum(1) * (order**2).sum())
    return np.asarray((ranks * order).sum(1) / np.where(spread > 0, spread, 1))


def _same_images(one: FeatureBank, other: FeatureBank) -> None:
    if len(one) != len(other) or (len(one.ids) and len(other.ids) and list(one.ids) != list(other.ids)):
        raise UserError(f"two encoders can be compared on the same images only; got {len(one)} and {len(other)} rows")
