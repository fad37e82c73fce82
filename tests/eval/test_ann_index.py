"""Approximate indexes find what they say they find, are kept whole and never stale, and refuse what faiss refuses."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.ann_index import check_index, found_again, open_index
from ssl_kd.eval.evaluators.knn import neighbours
from ssl_kd.eval.evaluators.retrieval import Retrieval, RetrievalProtocol, retrieval_protocol


def rows(n=400, width=8, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(5, width))[rng.integers(0, 5, n)] + rng.normal(size=(n, width))).astype(np.float32)


def test_an_index_that_looks_everywhere_is_exact_and_one_that_does_not_says_how_far_it_is():
    bank, queries = rows(), rows(60, seed=1)
    exact = neighbours(queries, bank, 10)[1]
    everywhere, nearby = open_index(bank, "IVF8,Flat nprobe=8"), open_index(bank, "IVF8,Flat nprobe=1")
    np.testing.assert_array_equal(everywhere(queries, 10)[1], exact)
    assert found_again(everywhere, bank, queries, (1, 10)) == {1: 1.0, 10: 1.0}
    given = nearby(queries, 10)[1]
    counted = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), given.tolist(), strict=True)])
    assert found_again(nearby, bank, queries, (1, 10))[10] == pytest.approx(counted)
    assert counted < 1


def test_an_index_of_a_bank_against_itself_never_gives_the_row_itself():
    bank = rows(80)
    own = np.arange(80)
    index = open_index(bank, "IVF2,Flat nprobe=2")
    found = index(bank, 5, own)[1]
    assert not (found == own[:, None]).any()
    np.testing.assert_array_equal(found, neighbours(bank, bank, 5, leave_one_out=True)[1])


def test_an_index_is_kept_read_again_and_never_stale(tmp_path, monkeypatch):
    bank, queries = rows(), rows(20, seed=1)
    first = open_index(bank, "IVF8,PQ4x4 nprobe=2", tmp_path)(queries, 7)[1]
    (kept,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(faiss, "index_factory", None)  # an index that is trained again fails
        np.testing.assert_array_equal(open_index(bank, "IVF8,PQ4x4 nprobe=2", tmp_path)(queries, 7)[1], first)
        open_index(bank.copy(), "IVF8,PQ4x4 nprobe=8", tmp_path)  # how widely it looks needs no other index
    bank[3, 3] += 1e-3
    open_index(bank, "IVF8,PQ4x4", tmp_path)
    open_index(bank, "IVF8,Flat", tmp_path)
    assert len(list(tmp_path.iterdir())) == 3
    bank[3, 3] = rows()[3, 3]
    kept.write_bytes(kept.read_bytes()[:100])
    np.testing.assert_array_equal(open_index(bank, "IVF8,PQ4x4 nprobe=2", tmp_path)(queries, 7)[1], first)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(index, writer):
        writer(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(faiss, "write_index", interrupted)
    monkeypatch.setattr(faiss, "PyCallbackIOWriter", lambda write: write)
    with pytest.raises(KeyboardInterrupt):
        open_index(rows(), "Flat", tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line(tmp_path, monkeypatch):
    opened = open
    monkeypatch.setattr(
        "builtins.open", lambda path, *rest: opened("/dev/full" if str(path).endswith(".part") else path, *rest)
    )
    with pytest.raises(UserError, match=r"faiss: could not be written \(No space left on device\)"):
        open_index(rows(), "Flat", tmp_path)


@pytest.mark.parametrize("name", ["IVF4,Flt", "nonsense", "IVF4,Flat nprob=2", "IVF4,Flat nprobe", ""])
def test_what_faiss_cannot_read_is_refused_before_any_bank_is_there(name):
    with pytest.raises(UserError, match=r"faiss does not take it \(.*IVF256,Flat nprobe=16") as caught:
        check_index(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "says"), [("PQ3x4", "multiple"), ("IVF500,Flat", r"training points \(400\)")])
def test_an_index_that_does_not_fit_the_bank_is_refused(name, says):
    with pytest.raises(UserError, match=says):
        open_index(rows(), name)


def test_retrieval_from_an_approximate_index_says_so_and_counts_no_row_that_was_not_found():
    labels = np.arange(400) % 4
    index, queries = FeatureBank(rows(), labels), FeatureBank(rows(60, seed=1), labels[:60])
    exact = Retrieval(RetrievalProtocol("cut", (1, 10), depth=100))(index, queries)
    wide = Retrieval(RetrievalProtocol("cut", (1, 10), depth=100, index="IVF8,Flat nprobe=8"))(index, queries)
    # two products may round two nearly equal similarities to another order
    np.testing.assert_allclose([row.value for row in wide.rows], [row.value for row in exact.rows], atol=1e-3)
    assert wide.details["recall of the exact"] == {"1": 1.0, "10": 1.0}
    assert "approximate index IVF8,Flat nprobe=8: finds 100.0 % of 1" in wide.notes[-1]
    assert "recall of the exact" not in exact.details
    # two rows per list at most are looked at: most of the hundred places stay empty, and none may count as a hit
    narrow = Retrieval(RetrievalProtocol("cut", (1, 100), depth=100, index="IVF200,Flat"))
    same = FeatureBank(index.features, np.r_[np.zeros(399, int), 1])
    lonely = narrow(same, FeatureBank(queries.features, np.r_[np.ones(59, int), 0]))
    assert lonely.value("precision", 100) <= 0.01 + 1 / 60


def test_only_a_cut_ranking_can_be_approximate():
    assert retrieval_protocol("top1000@IVF256,Flat nprobe=16").depth == 1000
    with pytest.raises(UserError, match="full ranks every row"):
        retrieval_protocol("full@IVF256,Flat")
