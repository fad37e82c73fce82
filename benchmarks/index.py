"""An index of made-up vectors beside bare faiss on the same vectors: building, adding 1 %, opening and searching.

    python -m benchmarks index [--rows 1000000] [--width 384]

Goals: a search takes at most 1.05 times as long as faiss' own flat index; adding 1 % of the rows costs about 1 % of
building. Times are the best of several.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space import Space
from ssl_kd.search.index import Index
from ssl_kd.search.store import Store, create
from ssl_kd.search.vectors import unit_rows

CHUNK = 1 << 16
K = 10


def best(what: Callable[[], object], times: int = 5) -> float:
    """Seconds of the fastest of several."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        what()
        found.append(time.perf_counter() - began)
    return min(found)


def fill(store: Store, first: int, count: int, width: int) -> float:
    """Add rows in chunks, each committed; seconds spent in the store."""
    spent = 0.0
    for begin in range(first, first + count, CHUNK):
        size = min(CHUNK, first + count - begin)
        rows = unit_rows(np.random.default_rng(begin).normal(size=(size, width)).astype(np.float32))
        names = [f"photos/{i:09d}.jpg" for i in range(begin, begin + size)]
        began = time.perf_counter()
        with store.writing() as writer:
            if (store.rows_of(names) >= 0).any():
                raise SystemExit("a name is there already")
            writer.add(names, rows, "photos", "/photos")
            writer.commit()
        spent += time.perf_counter() - began
    return spent


def main() -> int:
    import faiss

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--factory", default="", help="train this one as well, such as IVF1024,Flat")
    options = parser.parse_args()
    rows, width = options.rows, options.width
    with tempfile.TemporaryDirectory() as folder:
        space = Space("0" * 64, "pool", Preprocessing().key(), width, "none", "made-up vectors")
        about: dict[str, object] = {"space": space.record(), "norm": "unit", "weights": ""}
        store = create(Path(folder) / "i", width, about)
        built, added = fill(store, 0, rows, width), fill(store, rows, rows // 100, width)
        opened = best(lambda: Store(store.folder), 3)
        index = Index(Store(store.folder))
        checked = best(index.store.check, 1)
        print(f"{rows:,} rows of {width}: built in {built:.1f} s, 1 % added in {added:.2f} s ({added / built:.1%})")
        print(f"opened in {opened:.2f} s, all vectors compared with their check sums in {checked:.1f} s")
        bare = faiss.IndexFlatIP(width)
        bare.add(np.ascontiguousarray(index.store.vectors))
        for queries in (1, 16, 256):
            asked = unit_rows(np.random.default_rng(1).normal(size=(queries, width)).astype(np.float32))
            found, own, theirs = bare.search(asked, K)[1], [], []
            if not np.array_equal(found, index.nearest(asked, K)[1]):
                raise SystemExit("the two do not find the same rows")
            for _ in range(5):  # in turn, since a busy machine slows both
                own.append(best(lambda a=asked: index.nearest(a, K), 1))  # type: ignore[misc]
                theirs.append(best(lambda a=asked: bare.search(a, K), 1))  # type: ignore[misc]
            print(f"{queries:>4} queries: {1e3 * min(own):8.1f} ms, bare faiss {1e3 * min(theirs):8.1f} ms", end="")
            print(f", {min(own) / min(theirs):.3f} times as long")
        if options.factory:
            seconds = best(lambda: index.train(options.factory), 1)
            print(f"{options.factory}: trained in {seconds:.1f} s, recall {index.store.head.fast['recall']}")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB, faiss' copy included")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
