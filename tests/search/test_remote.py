"""An index in a store is the index that it is on a disk: whole, checked, and changed by one machine at a time."""

import numpy as np
import pytest
from small_index import laboratory

from ssl_kd.cli.main import main
from ssl_kd.errors import UserError
from ssl_kd.runtime.stores import about
from ssl_kd.search.index import Index


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return laboratory(tmp_path, 6, 3)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """`elsewhere(name)` stands for another machine: an empty cache folder."""
    return lambda name: monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "machines" / name))


def found(index):
    return [
        [(hit.name, hit.distance) for hit in one.hits] for one in index.search(["photos/2.png", "photos/4.png"], k=3)
    ]


@pytest.mark.slow
def test_an_index_in_a_store_answers_as_one_on_disk_on_any_machine(lab, bucket, elsewhere, capsys):
    local = Index.build("on.disk", "photos", "s.safetensors")
    url = f"{bucket.url}/photos.index"
    bucket.server.plan = ["refuse to write", "refuse to write"]
    assert main(["index", "build", "--weights", "s.safetensors", "--images", "photos", "--out", url, "--quiet"]) == 0
    assert "6 pictures added" in capsys.readouterr().out
    bucket.server.plan = []
    elsewhere("second")
    bucket.server.plan = ["truncate", "fail", None, "truncate"]
    index = Index.open(url)
    assert found(index) == found(local)
    index.verify()
    bucket.server.plan, bucket.server.asked = [], []
    Index.open(url)
    assert bucket.reads("photos.index/vectors.f32") == 0  # the copy is as it is there
    assert Index.open(url).add("more").added == 3
    assert Index.open(url).remove(["photos/1.png"]) == 1
    Index.open(url).train("HNSW4")
    elsewhere("first again")
    assert len(Index.open(url)) == 8
    assert Index.open(url).store.head.fast["factory"] == "HNSW4"
    old = [name for name in bucket.names() if name.endswith(".faiss")]
    assert len(old) == 1
    Index.open(url).train("")
    assert not [name for name in bucket.names() if name.endswith(".faiss")]
    assert main(["search", "--index", url, "photos/2.png", "--k", "2"]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["0.00000", "photos/2.png"]


def test_what_cannot_be_put_back_waits_and_goes_there_with_the_next_command(lab, bucket):
    url = f"{bucket.url}/photos.index"
    Index.build(url, "photos", "s.safetensors")
    bucket.server.plan = ["refuse to write"] * 100
    with pytest.raises(UserError, match=r"s3://.*could not be written") as caught:
        Index.open(url).add("more")
    assert "\n" not in str(caught.value)
    bucket.server.plan = []
    assert b'"rows": 6' in bucket.get("photos.index/index.json")
    change = Index.open(url).add("more")
    assert (change.added, change.there) == (0, 3)
    assert b'"rows": 9' in bucket.get("photos.index/index.json")


def test_two_machines_never_mix_their_changes(lab, bucket, elsewhere):
    url = f"{bucket.url}/photos.index"
    Index.build(url, "photos", "s.safetensors")
    elsewhere("second")
    second = Index.open(url)
    elsewhere("third")
    Index.open(url).remove(["photos/5.png"])
    before = {name: bucket.get(name) for name in bucket.names()}
    elsewhere("second")
    with pytest.raises(UserError, match="changed by another machine meanwhile; what was made here waits in"):
        second.add("more")
    with pytest.raises(UserError, match="changes that were made here wait in"):
        Index.open(url)
    assert {name: bucket.get(name) for name in bucket.names()} == before


def test_damage_in_a_store_is_noticed_and_said_in_one_line(lab, bucket, elsewhere):
    url = f"{bucket.url}/photos.index"
    Index.build(url, "photos", "s.safetensors")
    vectors = bytearray(bucket.get("photos.index/vectors.f32"))
    vectors[5] ^= 1
    bucket.put("photos.index/vectors.f32", bytes(vectors))
    elsewhere("second")
    with pytest.raises(UserError, match=r"vectors.f32 has changed in rows 0 to 5"):
        Index.open(url).search("photos/2.png")
    bucket.put("photos.index/vectors.f32", bytes(vectors[:50]))
    elsewhere("third")
    with pytest.raises(UserError, match=r"vectors.f32 ends after 50 of"):
        Index.open(url)
    with pytest.raises(UserError, match="no index there"):
        Index.open(f"{bucket.url}/nothing")


@pytest.mark.slow
def test_an_index_that_changes_while_it_is_read_is_read_as_one_of_both(lab, bucket, elsewhere):
    url = f"{bucket.url}/photos.index"
    Index.build(url, "photos", "s.safetensors")
    older = {name: bucket.get(name) for name in bucket.names()}
    Index.open(url).add("more")
    newer = {name: bucket.get(name) for name in bucket.names()}
    for name, data in older.items():
        bucket.put(name, data)
    elsewhere("second")
    # the other writer puts what grows first and the head last, while the second machine reads
    bucket.server.plan = [
        None,
        lambda: [bucket.put(name, newer[name]) for name in sorted(newer, key=lambda n: "json" in n)],
    ]
    index = Index.open(url)
    assert len(index) in (6, 9)
    index.verify()
    assert np.isfinite(index.store.vectors).all()
    assert about(f"{url}/index.json") is not None
