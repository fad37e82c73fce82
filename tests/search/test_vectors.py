"""Exact nearest rows: an oracle in numpy decides, with rows removed or not, by either distance."""

import numpy as np
import pytest

from ssl_kd.search import vectors
from ssl_kd.search.vectors import nearest, unit_rows


def oracle(rows, queries, k, cosine, gone, first):
    table = 1 - queries @ rows.T if cosine else np.linalg.norm(queries[:, None] - rows[None], axis=2)
    table[:, gone] = np.inf
    table[:, :first] = np.inf
    order = np.argsort(table, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(table, order, 1), order


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("gone", [(), (0, 3, 199), tuple(range(20, 120))])
@pytest.mark.parametrize("first", [0, 50])
def test_the_nearest_rows_are_those_of_plain_arithmetic(cosine, gone, first, monkeypatch):
    monkeypatch.setattr(vectors, "MORE", 5)
    monkeypatch.setattr(vectors, "BLOCK", 4 * 8 * 30)
    rng = np.random.default_rng(0)
    rows, queries = (rng.normal(size=(n, 8)).astype(np.float32) for n in (200, 7))
    if cosine:
        rows, queries = unit_rows(rows), unit_rows(queries)
    near, where = nearest(rows, queries, 10, cosine, np.array(gone, np.int64), first)
    far, expected = oracle(rows, queries, 10, cosine, list(gone), first)
    assert np.array_equal(where, expected)
    np.testing.assert_allclose(near, far, atol=1e-5)


def test_equal_rows_stand_in_their_order_and_k_ends_at_the_live_rows():
    rows = unit_rows(np.ones((6, 4)))
    near, where = nearest(rows, rows[:1], 99, True, np.array([2]))
    assert where.tolist() == [[0, 1, 3, 4, 5]]
    assert near.max() < 1e-6
    assert nearest(rows, rows[:1], 3, True, np.arange(6))[1].shape == (1, 0)
