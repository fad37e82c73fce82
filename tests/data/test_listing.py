"""Picture files are listed in one order, frugally, and links never lead astray."""

import os
import tracemalloc

import pytest

from ssl_kd.data.sources.listing import PackedNames, is_picture_path, picture_paths
from ssl_kd.errors import ImagesError


def plant(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def test_order_is_that_of_the_whole_paths(tmp_path):
    paths = ["b.jpg", "a/z.jpg", "a-b/c.jpg", "a.jpg", "a/b/c.jpg", "A/x.png", "é/ü.jpg", "a b/1.jpg", "a!/2.jpg"]
    plant(tmp_path, *paths)
    assert list(picture_paths(str(tmp_path))) == sorted(paths)


def test_hidden_and_other_files_are_passed_over(tmp_path):
    plant(tmp_path, "a.jpg", ".b.jpg", ".cache/c.jpg", "notes.txt", "d.jpg.txt", "jpg", "e.JPEG", "sub.png/f.PnG")
    assert list(picture_paths(str(tmp_path))) == ["a.jpg", "e.JPEG", "sub.png/f.PnG"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    plant(tmp_path, "real/a.jpg", "set/deep/b.jpg")
    os.symlink(tmp_path / "real", tmp_path / "set/linked")
    os.symlink(tmp_path / "set", tmp_path / "set/deep/up")
    os.symlink(".", tmp_path / "set/self")
    os.symlink("knot.jpg", tmp_path / "set/knot.jpg")
    os.symlink(tmp_path / "real/a.jpg", tmp_path / "set/file.jpg")
    os.symlink(tmp_path / "gone.jpg", tmp_path / "set/gone.jpg")
    found = list(picture_paths(str(tmp_path / "set")))
    assert found == ["deep/b.jpg", "file.jpg", "gone.jpg", "linked/a.jpg"]


def test_a_pipe_named_like_a_picture_is_passed_over(tmp_path):
    plant(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "b.jpg")
    assert list(picture_paths(str(tmp_path))) == ["a.jpg"]


def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    with pytest.raises(ImagesError, match="gone: cannot be listed: No such file"):
        list(picture_paths(str(tmp_path / "gone")))


def test_members_of_archives_follow_the_same_rules():
    assert is_picture_path("a/b.JPG")
    assert not any(map(is_picture_path, ["a/.b.jpg", ".a/b.jpg", "__MACOSX/a/._b.jpg", "a/b.txt", "a/"]))


def test_packed_names_behave_like_a_list():
    names = ["", "a.jpg", "ünï/cödé.png", "bad\udcff.jpg"] * 3
    packed = PackedNames(iter(names))
    assert list(packed) == names
    assert len(packed) == len(names)
    assert packed[-1] == names[-1]
    assert packed[2:9:3] == names[2:9:3]
    assert packed.index("a.jpg") == 1
    assert "b.jpg" not in packed
    for wrong in (12, -13):
        with pytest.raises(IndexError):
            packed[wrong]


def test_packed_names_stay_below_200_bytes_each_while_and_after_they_are_built():
    count = 20_000
    tracemalloc.start()
    packed = PackedNames(f"train/n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG" for i in range(count))
    now, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(packed) == count
    assert now / count < 70
    assert peak / count < 200
