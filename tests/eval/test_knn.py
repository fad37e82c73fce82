"""k-NN agrees with brute force and with DINO's vote, and takes any bank a person may bring."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ssl_kd.errors import NonFinite, UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.evaluators.knn import KNN, PROTOCOLS, KNNProtocol, Search, neighbours, ranked_votes


def banks(n=300, q=80, width=12, classes=7, seed=0, spread=1.2):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    y = rng.integers(0, classes, n + q)
    x = (centres[y] + spread * rng.normal(size=(n + q, width))).astype(np.float32)
    return FeatureBank(x[:n], y[:n]), FeatureBank(x[n:], y[n:])


def dino_vote(train, test, k, temperature, classes):
    """DINO's evaluation written from its description: one-hot table of the k nearest, weighted and summed."""
    bank, queries = F.normalize(torch.from_numpy(train.features)), F.normalize(torch.from_numpy(test.features))
    similarity, index = (queries @ bank.T).topk(k, largest=True, sorted=True)
    one_hot = F.one_hot(torch.from_numpy(train.labels)[index], classes).double()
    votes = (one_hot * (similarity.double() / temperature).exp()[..., None]).sum(1)
    return votes.sort(1, descending=True).indices.numpy()


@pytest.mark.parametrize("k", [1, 5, 10, 20, 200])
def test_knn_agrees_with_dinos_vote_to_the_last_row(k):
    train, test = banks()
    scores, expected = KNN("dino")(train, test), dino_vote(train, test, k, 0.07, 7)
    np.testing.assert_array_equal(scores.predicted[k], expected[:, 0])
    assert scores.value("top1", k) == (expected[:, 0] == test.labels).mean()


def test_top_five_counts_like_dinos():
    train, test = banks()
    expected = (dino_vote(train, test, 200, 0.07, 7)[:, :5] == test.labels[:, None]).any(1).mean()
    assert KNN("dino")(train, test).value("top5", 200) == expected


@pytest.mark.parametrize(
    ("protocol", "settings"),
    [
        ("plain", {"metric": "cosine", "weights": "uniform"}),
        ("plain-euclidean", {"metric": "euclidean", "weights": "uniform"}),
        ("solo-euclidean", {"metric": "euclidean", "weights": lambda d: 1 / (d + 1e-8)}),
        ("lightly", {"metric": "cosine", "weights": lambda d: np.exp((1 - d) / 0.1)}),
        ("solo", {"metric": "cosine", "weights": lambda d: np.exp((1 - d) / 0.07)}),
        ("compress", {"metric": "cosine", "weights": "uniform"}),
    ],
)
def test_protocols_agree_with_sklearn(protocol, settings):
    from sklearn.neighbors import KNeighborsClassifier

    train, test = banks(seed=1)
    scores = KNN(protocol)(train, test)
    for k, predicted in scores.predicted.items():
        model = KNeighborsClassifier(k, algorithm="brute", **settings).fit(train.features, train.labels)
        votes = np.sort(model.predict_proba(test.features), axis=1)
        clear = votes[:, -1] > votes[:, -2] + 1e-9  # on a tie sklearn takes the smallest class, we the nearest
        assert clear.mean() > 0.5
        np.testing.assert_array_equal(predicted[clear], model.predict(test.features)[clear])


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_neighbours_agree_with_brute_force(similarity):
    from sklearn.neighbors import NearestNeighbors

    train, test = banks(seed=2)
    got, index = neighbours(test.features, train.features, 30, similarity)
    oracle = NearestNeighbors(n_neighbors=30, algorithm="brute", metric=similarity).fit(
        train.features.astype(np.float64)
    )
    distance, expected = oracle.kneighbors(test.features.astype(np.float64))
    np.testing.assert_array_equal(index, expected)
    np.testing.assert_allclose(got, 1 - distance if similarity == "cosine" else -distance, atol=1e-3)


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
@pytest.mark.parametrize("shard_bytes", [1, 1000, 5000])
def test_neighbours_do_not_depend_on_shards(similarity, shard_bytes):
    train, test = banks(seed=3)
    train.features[40:80] = train.features[0]  # duplicates: ties within and across shards
    whole = Search(train.features, similarity)(test.features, 25)
    cut = Search(train.features.astype(np.float64), similarity, shard_bytes)(test.features, 25)
    np.testing.assert_array_equal(whole[1], cut[1])
    np.testing.assert_allclose(whole[0], cut[0], atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_memory_mapped_bank_in_shards_gives_the_votes_of_one_in_memory(tmp_path, monkeypatch, dtype):
    train, test = banks(n=900, q=150, seed=8)
    train.features[500:520] = train.features[:20]  # ties across shards
    np.save(tmp_path / "bank.npy", train.features.astype(dtype))
    mapped = FeatureBank(np.load(tmp_path / "bank.npy", mmap_mode="r"), train.labels)
    whole = KNN("dino")(FeatureBank(np.array(mapped.features), train.labels), test)
    monkeypatch.setattr("ssl_kd.eval.evaluators.knn.SHARD_BYTES", 5000)
    monkeypatch.setattr("ssl_kd.eval.evaluators.knn.QUERY_BYTES", 3000)
    monkeypatch.setattr("ssl_kd.eval.evaluators.knn.MERGED", 7)
    search = Search(mapped.features)
    assert len(search.parts) > 5
    assert search.block < 100
    cut = KNN("dino")(mapped, test)
    assert cut.rows == whole.rows
    for k, guesses in whole.predicted.items():
        np.testing.assert_array_equal(cut.predicted[k], guesses)


def test_a_search_in_shards_needs_a_shard_and_not_the_bank(tmp_path, monkeypatch):
    """numpy's own memory, the memory map aside: a 16 MB bank in shards of 1 MB."""
    np.save(tmp_path / "bank.npy", np.random.default_rng(0).normal(size=(65_536, 64)).astype(np.float32))
    bank = np.load(tmp_path / "bank.npy", mmap_mode="r")
    search = Search(bank, shard_bytes=1 << 20)
    tracemalloc.start()
    search(np.array(bank[:20]), 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 << 20


@pytest.mark.parametrize("similarity", ["cosine", "euclidean"])
def test_a_gpu_is_asked_where_faiss_has_one_and_only_for_as_many_as_it_can(monkeypatch, similarity):
    """A double of faiss' surface, answered by the processor: that a GPU is asked rightly, not that one answers."""
    import faiss

    asked = []

    def knn_gpu(card, queries, rows, k, metric, **limits):
        asked.append((card, k, limits))
        return faiss.knn(queries, rows, k, metric=metric)

    train, test = banks(seed=3)
    expected = Search(train.features, similarity)(test.features, 25)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "card", raising=False)
    monkeypatch.setattr(faiss, "knn_gpu", knn_gpu, raising=False)
    assert Search(train.features, similarity).card is None  # a build for GPUs on a machine without one
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    for shard_bytes in (1 << 20, 5000):
        found = Search(train.features.astype(np.float64), similarity, shard_bytes)(test.features, 25)
        np.testing.assert_array_equal(found[1], expected[1])
    assert {(card, k) for card, k, *_ in asked} == {("card", 26)}
    assert all(set(limits) == {"vectorsMemoryLimit", "queriesMemoryLimit"} for _, _, limits in asked)
    count = len(asked)
    monkeypatch.setattr("ssl_kd.eval.evaluators.knn.GPU_K", 20)
    Search(train.features, similarity)(test.features, 25)
    assert len(asked) == count


def test_guesses_do_not_depend_on_row_order():
    train, test = banks(seed=4)
    order = np.random.default_rng(0).permutation(len(train))
    for k, predicted in KNN("dino")(train, test).predicted.items():
        np.testing.assert_array_equal(predicted, KNN("dino")(train.rows(order), test).predicted[k])


def test_votes_do_not_depend_on_how_many_queries_share_a_table(monkeypatch):
    train, test = banks(seed=5)
    whole = KNN("dino")(train, test)
    monkeypatch.setattr("ssl_kd.eval.evaluators.knn.VOTE_CELLS", 300)
    monkeypatch.setattr("ssl_kd.eval.evaluators.knn.BLOCK", 7)
    assert KNN("dino")(train, test).rows == whole.rows


def test_ties_go_to_the_nearest_and_equal_neighbours_stand_in_row_order():
    labels = np.array([2, 1, 1, 2, 0])
    index = np.array([[1, 0, 2, 3, 4], [0, 1, 3, 2, 4]])
    ranked = ranked_votes(np.zeros((2, 5), np.float32), index, labels, 3, (4,), PROTOCOLS["plain"])[4]
    np.testing.assert_array_equal(ranked, [[1, 2, -1], [2, 1, -1]])
    constant = np.ones((9, 3), np.float32)
    np.testing.assert_array_equal(neighbours(constant[:2], constant, 4)[1], [[0, 1, 2, 3]] * 2)


def test_a_bank_against_itself_never_meets_itself():
    train, _ = banks(n=60, classes=3)
    scores = KNN("dino")(train, train)
    from sklearn.neighbors import NearestNeighbors

    expected = NearestNeighbors(n_neighbors=2, algorithm="brute", metric="cosine").fit(train.features).kneighbors()[1]
    np.testing.assert_array_equal(scores.predicted[1], train.labels[expected[:, 0]])
    assert max(scores.predicted) == 59
    double = FeatureBank(np.repeat(train.features, 2, axis=0), np.repeat(train.labels, 2))
    assert KNN("dino")(double, double).value("top1", 1) == 1.0


def test_shuffled_labels_give_chance_and_blobs_give_one():
    train, test = banks(n=2000, q=1000, classes=5, spread=0.05)
    assert KNN("dino")(train, test).value() == 1.0
    cloud, test = banks(n=2000, q=1000, classes=5, spread=50.0)
    shuffled = FeatureBank(cloud.features, np.random.default_rng(0).permutation(cloud.labels))
    chance = KNN("dino")(shuffled, test).score("top1", 20)
    assert chance.low < 0.2 < chance.high


def test_k_is_clamped_and_said():
    train, test = banks(n=5, q=9, classes=2)
    scores = KNN("dino")(train, test)
    assert list(scores.predicted) == [1, 5]
    assert "10, 20, 200 clamped to the 5 rows" in scores.notes[0]
    assert scores.headline_k == 5


@pytest.mark.parametrize("rename", [lambda y: y + 7, lambda y: np.array([f"class {i}" for i in y]), lambda y: y * 1000])
def test_labels_may_be_anything(rename):
    train, test = banks(seed=6)
    expected = KNN("dino")(train, test)
    got = KNN("dino")(
        FeatureBank(train.features, rename(train.labels)), FeatureBank(test.features, rename(test.labels))
    )
    assert got.value() == expected.value()
    np.testing.assert_array_equal(got.classes[got.predicted[20]], rename(expected.predicted[20]))


def test_many_classes_and_float16_banks_work():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(22_000, 4)).astype(np.float16)
    y = np.arange(22_000) % 21_841
    scores = KNN("plain")(FeatureBank(x, y), FeatureBank(x[:50], y[:50]))
    assert scores.value("top1", 1) > 0.9


def test_votes_among_many_classes_need_no_table_of_queries_by_classes():
    rng = np.random.default_rng(0)
    labels, index = np.arange(21_841), rng.integers(0, 21_841, (2000, 20))
    tracemalloc.start()
    ranked = ranked_votes(-np.sort(rng.random((2000, 20)), 1), index, labels, 21_841, (1, 20), PROTOCOLS["dino"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(ranked[1][:, 0], index[:, 0])
    assert peak < 2000 * 21_841 * 8 / 10


def test_unit_banks_are_not_copied_and_give_the_same():
    train, test = banks(seed=7)
    unit = train.features / np.linalg.norm(train.features, axis=1, keepdims=True)
    assert np.shares_memory(Search(unit).held, unit)
    assert not np.shares_memory(Search(train.features).held, train.features)
    np.testing.assert_array_equal(Search(unit)(test.features, 9)[1], Search(train.features)(test.features, 9)[1])


def test_zero_vectors_are_named():
    train, test = banks()
    train.features[3] = 0
    test.features[:2] = 0
    notes = " ".join(KNN("dino")(train, test).notes)
    assert "1 train rows are all zero" in notes
    assert "2 test rows are all zero" in notes


def broken(kind):
    train, test = banks(n=20, q=10, classes=3)
    if kind == "nan":
        test.features[4, 2] = np.nan
    if kind == "infinite":
        train.features[4, 2] = np.inf
    if kind == "one class":
        train = FeatureBank(train.features, np.zeros(20, int))
    if kind == "unknown class":
        test = FeatureBank(test.features, test.labels + 50)
    if kind == "width":
        test = FeatureBank(test.features[:, :5], test.labels)
    if kind == "empty":
        test = FeatureBank(test.features[:0], test.labels[:0])
    if kind == "unlabelled":
        train = FeatureBank(train.features)
    if kind == "mixed labels":
        test = FeatureBank(test.features, test.labels.astype(str))
    return train, test


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("nan", "test: row 4 .*not finite"),
        ("infinite", "train: row 4 .*not finite"),
        ("one class", "one class only"),
        ("unknown class", "classes that train lacks"),
        ("width", "12 wide and test features 5"),
        ("empty", "test: the bank has no rows"),
        ("unlabelled", "train: the bank has no labels"),
        ("mixed labels", "both must be of one kind"),
    ],
)
def test_bad_banks_give_one_clear_line(kind, says):
    with pytest.raises((UserError, NonFinite), match=says) as caught:
        KNN("dino")(*broken(kind))
    assert "\n" not in str(caught.value)


def test_unknown_protocol_names_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean dino"):
        KNN("dinov")(*banks())


def test_a_protocol_of_ones_own_keeps_its_name():
    scores = KNN(KNNProtocol("mine", (3,), 3, vote="equal"))(*banks())
    assert scores.protocol == "mine"
    assert list(scores.predicted) == [3]


@pytest.mark.parametrize("scale", [1e20, 1e39, 1e-25, 1e-60])
def test_cosine_does_not_depend_on_a_scale_that_float32_cannot_square(scale):
    train, test = banks()
    expected = KNN("dino")(train, test)
    how = np.float32 if 1e-30 < scale < 1e30 else np.float64
    huge = [FeatureBank(bank.features.astype(how) * how(scale), bank.labels) for bank in (train, test)]
    np.testing.assert_array_equal(KNN("dino")(*huge).predicted[20], expected.predicted[20])
    assert KNN("dino")(huge[0], test).value("top1", 20) == expected.value("top1", 20)


@pytest.mark.parametrize(("scale", "how"), [(1e20, np.float32), (1e39, np.float64)])
def test_distances_that_float32_cannot_hold_are_one_line(scale, how):
    train, test = banks()
    long = FeatureBank(train.features.astype(how) * how(scale), train.labels)
    with pytest.raises(UserError, match=r"train: row 0 of the features is longer than 1e.15.*divide all features"):
        KNN("plain-euclidean")(long, test)


def test_a_row_named_as_its_own_is_never_met_and_minus_one_names_none():
    train, _ = banks()
    own = np.arange(len(train))
    expected = KNN("plain")(train, train)
    twin = FeatureBank(train.features.copy(), train.labels)
    np.testing.assert_array_equal(KNN("plain")(train, twin, own).predicted[5], expected.predicted[5])
    assert KNN("plain")(train, twin, np.where(own % 2, own, -1)).value("top1", 1) > expected.value("top1", 1)


def test_equal_votes_are_a_tie_whatever_other_ks_are_asked():
    """Oracle: exact counts per similarity; all cosines here are exact in float32, so that classes with the same ones tie."""
    whole = alone = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n, classes = int(rng.integers(24, 80)), int(rng.integers(2, 7))
        basis = np.vstack([np.eye(4), -np.eye(4), [[0.6, 0.8, 0, 0], [0, 0.6, 0.8, 0], [0.8, 0, 0, 0.6]]]).astype(
            np.float32
        )
        x, queries = basis[rng.integers(0, len(basis), n)], np.vstack([np.eye(4), -np.eye(4)]).astype(np.float32)
        y = rng.integers(0, classes, n)
        y[:classes] = np.arange(classes)
        train, test = FeatureBank(x, y), FeatureBank(queries, np.zeros(len(queries), int))
        many = KNN("dino")(train, test).predicted[20]
        one = KNN(KNNProtocol("k20", (20,), 20))(train, test).predicted[20]
        similarity = (queries @ x.T).round(6)
        for i in range(len(queries)):
            near = np.lexsort((np.arange(n), -similarity[i]))[:20]
            votes = {c: sorted(similarity[i, j] for j in near if y[j] == c) for c in set(y[near].tolist())}
            best = max(votes, key=lambda c: sum(np.exp(np.float64(s) / 0.07) for s in votes[c]))
            right = next(int(y[j]) for j in near if votes[int(y[j])] == votes[best])
            whole += int(many[i]) != right
            alone += int(one[i]) != int(many[i])
    assert (whole, alone) == (0, 0)
