"""The store: what was committed is there, what was not is not; damage, a second writer and a full disk are one line."""

import json
import os

import numpy as np
import pytest
from small_disk import files_end_at

from ssl_kd.errors import UserError
from ssl_kd.search.store import GROWING, HEAD, NAMES, VECTORS, Store, create


def rows(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 4)).astype(np.float32)


@pytest.fixture
def store(tmp_path):
    made = create(tmp_path / "i", 4, {"of": "tests"})
    with made.writing() as writer:
        writer.add(["a", "b\n", "ü"], rows(3), "photos", "/x/photos")
        writer.commit()
        writer.add(["d", "e"], rows(2, 1))
        writer.remove([1])
        writer.commit()
    return made


def content(store):
    """What an index holds, by name."""
    return {store.name(row): store.vectors[row].tolist() for row in store.live().tolist()}


def test_what_was_added_and_removed_is_there_again(store):
    again = Store(store.folder)
    again.check()
    kept = dict(zip(["a", "ü"], rows(3)[[0, 2]].tolist(), strict=True))
    assert content(again) == kept | dict(zip(["d", "e"], rows(2, 1).tolist(), strict=True))
    assert len(again) == 4
    assert again.head.about == {"of": "tests"}
    assert again.rows_of(["e", "b\n", "nobody", "a"]).tolist() == [4, -1, -1, 0]
    assert again.root(2) == ("photos", "/x/photos")
    assert again.root(3) == ("", "")


def test_nothing_counts_before_it_is_committed(store):
    before = content(store)
    with store.writing() as writer:
        writer.add(["f"], rows(1))
        assert content(Store(store.folder)) == before
    with store.writing():
        pass  # the next writer cuts off what the last one left
    assert os.path.getsize(store.folder / VECTORS) == 5 * 16
    assert content(Store(store.folder)) == before


def test_a_writer_that_left_more_bytes_has_changed_nothing(store):
    before = content(store)
    for name in GROWING:
        with open(store.folder / name, "ab") as file:
            file.write(b"half a row")
    assert content(Store(store.folder)) == before
    with Store(store.folder).writing() as writer:
        writer.add(["f"], rows(1, 5))
        writer.commit()
    assert content(Store(store.folder)) == before | {"f": rows(1, 5)[0].tolist()}


def test_two_writers_are_refused_and_readers_are_not(store):
    with store.writing():
        with pytest.raises(UserError, match="another process is writing"), Store(store.folder).writing():
            pass
        assert len(Store(store.folder)) == 4


def test_a_flip_of_any_bit_of_any_byte_is_one_line(store):
    for name in (*GROWING, HEAD):
        path = store.folder / name
        whole = path.read_bytes()
        for at in range(0, len(whole), 1 + len(whole) // 150):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
            with pytest.raises(UserError, match="is damaged") as caught:
                Store(store.folder).check()
            assert "\n" not in str(caught.value)
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [*GROWING, HEAD])
def test_a_file_that_is_cut_or_lost_is_one_line(store, name):
    path = store.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="is damaged"):
        Store(store.folder)
    path.unlink()
    with pytest.raises(UserError, match=r"is damaged|no index there"):
        Store(store.folder)


def test_a_full_disk_loses_nothing(store):
    before, sizes = content(store), {name: os.path.getsize(store.folder / name) for name in GROWING}
    with (
        files_end_at(5 * 16 + 7),
        pytest.raises(UserError, match="could not be written"),
        store.writing() as writer,
    ):
        writer.add(["f", "g"], rows(2))
    assert content(Store(store.folder)) == before
    assert {name: os.path.getsize(store.folder / name) for name in GROWING} == sizes
    with (
        files_end_at(max(sizes.values()) + 64),
        store.writing() as writer,
    ):  # room for rows, none for the journal's line
        writer.add(["f"], rows(1))
        with pytest.raises(UserError, match="could not be written"):
            writer.commit()
    assert content(Store(store.folder)) == before


def test_a_journal_that_tells_of_other_rows_is_refused(tmp_path):
    from dataclasses import asdict, replace

    from ssl_kd.runtime.files import sealed

    made = create(tmp_path / "i", 4, {})
    with made.writing() as writer:
        writer.add(["a"], rows(1))
        writer.commit()
    head = replace(made.head, rows=2, bytes=made.head.bytes | {VECTORS: 32, "rows.bin": 32})
    (made.folder / HEAD).write_text(sealed(asdict(head)))
    with open(made.folder / VECTORS, "ab") as file, open(made.folder / "rows.bin", "ab") as ends:
        file.write(b"\0" * 16)
        ends.write(b"\0" * 16)
    with pytest.raises(UserError, match="tells of 1 rows"):
        Store(made.folder)


def test_somebody_elses_folder_is_not_taken(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="not an index"):
        create(tmp_path, 4, {})
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_index_of_a_later_version_says_so(store):
    from ssl_kd.runtime.files import sealed

    found = json.loads((store.folder / HEAD).read_text())
    (store.folder / HEAD).write_text(sealed(found | {"version": 99}))
    with pytest.raises(UserError, match="version 99"):
        Store(store.folder)
    assert NAMES in GROWING


def test_names_that_share_a_hash_are_told_apart_by_their_text(tmp_path, monkeypatch):
    from ssl_kd.search import store as module

    monkeypatch.setattr(module, "name_hash", lambda name: len(name))
    made = create(tmp_path / "i", 4, {})
    with made.writing() as writer:
        writer.add(["aa", "bb", "c"], rows(3))
        writer.commit()
    assert made.rows_of(["bb", "cc", "c", "aa", "bb"]).tolist() == [1, -1, 2, 0, 1]
    assert made.rows_of([]).tolist() == []
