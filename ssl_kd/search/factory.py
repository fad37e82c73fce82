"""faiss' indexes by their factory strings: built, and asked in words that a person understands.

"IVF256,Flat nprobe=16" is such a string and, behind it, words that set how widely the index looks.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from ssl_kd.errors import UserError

if TYPE_CHECKING:
    import faiss

TRAINED = 1 << 29  # bytes of rows that an index learns from: 350,000 rows of 384 numbers
ADDED = 1 << 26  # bytes of rows that are added at a time

T = TypeVar("T")


def split(name: str) -> tuple[str, str]:
    """The factory string, and the words behind it as faiss reads them."""
    factory, *words = name.split() or [""]
    return factory, ",".join(words)


def trained(
    rows: np.ndarray, factory: str, ready: Callable[[np.ndarray], np.ndarray], cosine: bool = True
) -> faiss.Index:
    """A faiss index of all rows (N, D), numbered as they stand; `ready` makes float32 of a part of them.

    UserError for a factory string that faiss does not take.
    """
    import faiss

    metric = faiss.METRIC_INNER_PRODUCT if cosine else faiss.METRIC_L2
    index = asked(factory, lambda: faiss.index_factory(rows.shape[1], factory, metric))
    most = max(1, TRAINED // (4 * rows.shape[1]))
    some = np.arange(len(rows))
    if most < len(rows):
        some = np.sort(np.random.default_rng(0).permutation(len(rows))[:most])
    if not index.is_trained:
        asked(factory, lambda: index.train(ready(rows[some])))
    step = max(1, ADDED // (4 * rows.shape[1]))
    for begin in range(0, len(rows), step):
        index.add(ready(rows[begin : begin + step]))
    return index


def look(index: faiss.Index, name: str, words: str) -> None:
    """Set how widely an index looks. UserError for words that it does not know."""
    import faiss

    if words:
        asked(name, lambda: faiss.ParameterSpace().set_index_parameters(index, words))  # type: ignore[arg-type]  # its stub is wrong


def asked(name: str, what: Callable[[], T]) -> T:
    """What faiss answers; its complaint as a UserError."""
    try:
        return what()
    except RuntimeError as error:
        raise refusal(name, error) from None


def refusal(name: str, error: RuntimeError) -> UserError:
    """The error for an index that faiss does not take."""
    why = re.sub(r"^.*\.cpp:\d+: (Error: '.*' failed: )?", "", " ".join(str(error).split()))  # not where in its source
    return UserError(f"index {name!r}: faiss does not take it ({why}); expected something like 'IVF256,Flat nprobe=16'")
