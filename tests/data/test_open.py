"""One door for pictures: every source gives ids, RGB pictures and a digest; damage is counted, named and borne."""

import io
import os
import re
import shutil
import sys
import threading
import time
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_kd.data.open import open_images
from ssl_kd.data.prefetch import prefetch
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.sources.dataset import DatasetImages
from ssl_kd.data.sources.folder import FolderImages
from ssl_kd.data.sources.zip import ZipImages
from ssl_kd.errors import ImagesError


def picture(seed, size=(8, 6)):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8))


def encoded(image, kind="PNG"):
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def plant(root, count=6, kind="png"):
    """Folder with `count` pictures in two sub-folders and a note; returns {id: picture}."""
    made = {f"{'ab'[i % 2]}/{i}.{kind}": picture(i) for i in range(count)}
    for name, image in made.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(image))
    (root / "notes.txt").write_text("no picture")
    return made


def pack(folder, archive, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(archive, "w", method) as out:
        for path in sorted(folder.rglob("*"), reverse=True):
            out.write(path, path.relative_to(folder))
    return archive


def same(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


class Pairs:
    """A map-style data set with labels, as torchvision's are."""

    def __init__(self, count=5, item=lambda i: (picture(i), 7)):
        self.count, self.item = count, item

    def __len__(self):
        return self.count

    def __getitem__(self, i):
        return self.item(i)


@pytest.fixture
def folder(tmp_path):
    plant(tmp_path / "set")
    return tmp_path / "set"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_folder_and_a_zip_of_it_are_the_same_images(tmp_path, method):
    made = plant(tmp_path / "set")
    loose = open_images(tmp_path / "set")
    packed = open_images(pack(tmp_path / "set", tmp_path / "set.zip", method))
    assert isinstance(loose, FolderImages)
    assert isinstance(packed, ZipImages)
    assert list(loose.ids) == list(packed.ids) == sorted(made)
    for images in (loose, packed):
        assert all(same(images.read(i), made[name]) for i, name in enumerate(images.ids))
        assert images.read(0).mode == "RGB"
    assert loose.digest == packed.digest


def test_part_of_an_archive_can_be_chosen_in_either_spelling(folder, tmp_path):
    archive = pack(folder, tmp_path / "set.zip")
    for spelling in (f"{archive}/a", f"{archive}:a", f"{archive}/a/", f"{archive}:/a"):
        images = open_images(spelling)
        assert list(images.ids) == ["0.png", "2.png", "4.png"]
        assert same(images.read(1), picture(2))
    assert open_images(f"{archive}:a").digest == open_images(folder / "a").digest


def test_a_folder_named_like_an_archive_is_a_folder(tmp_path):
    plant(tmp_path / "set.zip")
    assert len(open_images(tmp_path / "set.zip/a")) == 3


def test_home_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert len(open_images("~/set")) == 6


def test_arrays_are_images(tmp_path):
    array = np.stack([np.asarray(picture(i)) for i in range(4)])
    np.save(tmp_path / "set.npy", array)
    for images in (open_images(array), open_images(tmp_path / "set.npy"), ArrayImages(np.asfortranarray(array))):
        assert list(images.ids) == ["0", "1", "2", "3"]
        assert same(images.read(2), array[2])
        assert images.digest == ArrayImages(array).digest
    changed = array.copy()
    changed[3, 0, 0, 0] ^= 1
    assert ArrayImages(changed).digest != ArrayImages(array).digest
    assert ArrayImages(array.reshape(8, 3, 8, 3)).digest != ArrayImages(array).digest


def test_data_sets_lose_their_labels_at_the_door():
    images = open_images(Pairs())
    assert isinstance(images, DatasetImages)
    assert images.ids[1:3] == ["1", "2"]
    assert same(images.read(3), picture(3))
    assert same(open_images([picture(9).convert("L")]).read(0), picture(9).convert("L").convert("RGB"))
    assert images.digest == open_images(Pairs(item=lambda i: (picture(i), 8))).digest
    assert images.digest != open_images(Pairs(item=lambda i: (picture(i + 1), 7))).digest


def test_images_pass_the_door_unchanged(folder):
    images = open_images(folder)
    assert open_images(images) is images


def test_torchvision_sets_are_opened_by_name(tmp_path):
    from torchvision import datasets  # noqa: F401  # its own import warnings are not our subject

    plant(tmp_path / "set")
    images = open_images(f"torchvision/ImageFolder:{tmp_path / 'set'}")
    assert len(images) == 6
    assert same(images.read(0), picture(0))
    for spec, reason in {
        f"torchvision/CIFAR10:{tmp_path}:test": "nothing is downloaded unless",
        f"torchvision/CIFAR1O:{tmp_path}": "Did you mean CIFAR10",
        f"torchvision/CIFAR10:{tmp_path}:valid": "no split 'valid'",
        f"torchvision/STL10:{tmp_path}:valid": "split",
        "torchvision/CIFAR10": "expected torchvision/CIFAR10:root",
        f"torchvision/FakeData:{tmp_path}:a:b:c": "expected torchvision/FakeData:root",
        "torchvision/FakeData:x": "torchvision/FakeData:x: 'str' object",
    }.items():
        with pytest.raises(ImagesError, match=reason) as caught:
            open_images(spec)
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["set"]


def broken_sources(root):
    plant(root / "set")
    (root / "empty").mkdir()
    (root / "texts").mkdir()
    (root / "texts/a.txt").write_text("a")
    (root / "file.tar").write_bytes(b"\0" * 2048)
    (root / "zero.zip").write_bytes(b"")
    (root / "cut.zip").write_bytes(pack(root / "set", root / "set.zip").read_bytes()[:-60])
    (root / "bad.npy").write_bytes(b"\x93NUMPY rest is missing")
    np.save(root / "floats.npy", np.zeros((2, 4, 4, 3), np.float32))
    pack(root / "texts", root / "texts.zip")
    return {
        root / "empty": "it is empty",
        root / "texts": "it holds a.txt",
        root / "texts.zip": "it holds a.txt",
        root / "sett": "no such folder or archive. Did you mean set",
        root / "file.tar": "it is empty",
        root / "zero.zip": "expected a folder or a zip archive",
        root / "cut.zip": "expected a folder or a zip archive",
        root / "set.zip/aa": "no such folder in the archive",
        root / "bad.npy": "not a readable .npy",
        root / "floats.npy": "expected uint8",
    }


def test_what_holds_no_images_is_refused_in_one_line(tmp_path):
    for source, reason in broken_sources(tmp_path).items():
        with pytest.raises(ImagesError, match=reason) as caught:
            open_images(source)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (3, "got int"),
        (None, "got NoneType"),
        (np.zeros((2, 3, 4, 4), np.uint8), "expected uint8 of shape"),
        (np.zeros((0, 4, 4, 3), np.uint8), "no images"),
        ([], "empty"),
        (["a.jpg"], "no such picture file"),
        (["a.jpg", "b.zip"], "must name pictures, tar shards"),
        ([{"image": 1}], "holds dict"),
        ([()], "holds tuple"),
        ("", "no such folder"),
    ],
)
def test_what_is_no_source_is_refused_in_one_line(source, reason):
    with pytest.raises(ImagesError, match=reason) as caught:
        open_images(source)
    assert "\n" not in str(caught.value)


def test_an_encrypted_archive_is_said_to_be_one(folder, tmp_path):
    archive = pack(folder, tmp_path / "set.zip")
    data = bytearray(archive.read_bytes())
    at = -1
    while (at := data.find(b"PK\x01\x02", at + 1)) >= 0:
        data[at + 8] |= 1
    archive.write_bytes(data)
    with pytest.raises(ImagesError, match="encrypted"):
        open_images(archive)


def test_bad_pictures_are_none_and_remembered_with_the_reason(tmp_path):
    made = plant(tmp_path, 12)
    (tmp_path / "a/0.png").write_bytes(b"")
    (tmp_path / "a/2.png").write_text("text")
    (tmp_path / "a/4.png").write_bytes(encoded(picture(4))[:60])
    os.remove(tmp_path / "b/1.png")
    os.symlink("nowhere", tmp_path / "b/1.png")
    images = open_images(tmp_path, max_unreadable=0.5)
    read = {name: images.read(i) for i, name in enumerate(images.ids)}
    assert {name for name, image in read.items() if image is None} == set(images.unreadable)
    assert set(images.unreadable) == {"a/0.png", "a/2.png", "a/4.png", "b/1.png"}
    assert "empty file" in images.unreadable["a/0.png"]
    assert "known format" in images.unreadable["a/2.png"]
    assert "damaged" in images.unreadable["a/4.png"]
    assert "No such file" in images.unreadable["b/1.png"]
    assert same(read["a/6.png"], made["a/6.png"])


def test_a_bad_picture_stays_bad_so_that_a_run_sees_the_same_images_every_epoch(folder):
    (folder / "a/0.png").write_bytes(b"")
    images = open_images(folder)
    assert images.read(0) is None
    (folder / "a/0.png").write_bytes(encoded(picture(0)))
    assert images.read(0) is None
    assert images.read(1) is not None


def test_too_many_bad_pictures_stop_with_their_names(tmp_path):
    plant(tmp_path, 40)
    for i in range(0, 10, 2):
        (tmp_path / f"a/{i}.png").write_bytes(b"")
    images = open_images(tmp_path, max_unreadable=0.1)
    assert images.allowed == 4
    with pytest.raises(ImagesError, match=r"5 of 40 images are unreadable.*a/0.png \(empty.*\.\.\.") as caught:
        [images.read(i) for i in range(len(images))]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("count", "share", "allowed"),
    [(1, 0.01, 0), (1, 1.0, 0), (6, 0.01, 1), (6, 0, 0), (199, 0.01, 1), (300, 0.01, 3), (6, 1.0, 5)],
)
def test_one_bad_picture_is_borne_in_a_small_set_but_never_all(count, share, allowed):
    assert ArrayImages(np.zeros((count, 1, 1, 3), np.uint8), share).allowed == allowed


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_the_share_of_bad_pictures_must_be_a_share(folder, share):
    with pytest.raises(ImagesError, match="from 0 to 1"):
        open_images(folder, max_unreadable=share)


def test_an_unreadable_first_item_of_a_data_set_is_borne_but_an_error_in_its_code_is_not():
    def first_is_bad(i):
        if i == 0:
            raise Image.UnidentifiedImageError("cannot identify")
        return picture(i), 0

    images = open_images(Pairs(item=first_is_bad))
    assert images.unreadable == {"0": "cannot identify"}
    assert same(images.read(1), picture(1))
    with pytest.raises(ZeroDivisionError):
        open_images(Pairs(item=lambda i: 1 / 0))


def test_damage_in_an_archive_is_noticed_by_checksum(folder, tmp_path):
    archive = pack(folder, tmp_path / "set.zip")
    data = bytearray(archive.read_bytes())
    images = open_images(archive, max_unreadable=0.9)
    data[data.find(encoded(picture(0))) + 20] ^= 1
    data[data.find(b"b/5.png") - 30] = 0  # the local header's signature
    archive.write_bytes(data)
    given = [images.read(i) for i in range(len(images))]
    assert [image is None for image in given] == [name in ("a/0.png", "b/5.png") for name in images.ids]
    assert all("damaged in the archive" in reason for reason in images.unreadable.values())


def test_an_archive_member_cannot_swell_beyond_the_size_that_the_index_states(tmp_path):
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a.png", bytes(50_000_000))
        out.writestr("b.png", encoded(picture(1)))
    data = bytearray(archive.read_bytes())
    at = data.find(b"PK\x01\x02")
    data[at + 24 : at + 28] = (1000).to_bytes(4, "little")
    archive.write_bytes(data)
    images = open_images(archive)
    tracemalloc.start()
    assert images.read(0) is None
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert same(images.read(1), picture(1))


def test_other_zip_methods_are_named(folder, tmp_path):
    images = open_images(pack(folder, tmp_path / "set.zip", zipfile.ZIP_BZIP2))
    assert images.read(0) is None
    assert "only stored and deflated" in images.unreadable["a/0.png"]


def test_archive_names_that_climb_out_write_nothing(tmp_path):
    archive = tmp_path / "x/set.zip"
    archive.parent.mkdir()
    with zipfile.ZipFile(archive, "w") as out:
        out.writestr("../evil.png", encoded(picture(0)))
        out.writestr("/tmp/abs.png", encoded(picture(1)))
    images = open_images(archive)
    assert [images.read(i) is not None for i in range(len(images))] == [True] * len(images)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["set.zip", "x"]


def test_digest_names_ids_and_sizes_and_not_the_place(folder, tmp_path):
    digest = open_images(folder).digest
    shutil.copytree(folder, tmp_path / "copy")
    assert open_images(tmp_path / "copy").digest == digest
    (tmp_path / "copy/a/0.png").rename(tmp_path / "copy/a/00.png")
    assert open_images(tmp_path / "copy").digest != digest
    (folder / "b/1.png").write_bytes(encoded(picture(1)) + b"!")
    assert open_images(folder).digest != digest


def test_an_archive_costs_less_than_200_bytes_an_image(tmp_path):
    count = 5_000
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as out:
        for i in range(count):
            out.writestr(f"train/n{i // 1300:08d}/n{i // 1300:08d}_{i}.JPEG", b"x")
    tracemalloc.start()
    images = open_images(tmp_path / "set.zip")
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert len(images) == count
    assert held / count < 200


def test_reading_from_many_threads_gives_every_picture_its_own_pixels(folder, tmp_path):
    archive = pack(folder, tmp_path / "set.zip", zipfile.ZIP_DEFLATED)
    for images in (open_images(folder), open_images(archive)):
        order = list(range(6)) * 30
        given = list(prefetch(images.read, order, threads=8, depth=16))
        assert all(same(image, picture(int(images.ids[i][2]))) for i, image in zip(order, given, strict=True))


def test_the_hint_reaches_the_decoder(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(0, (640, 480)), "JPEG"))
    assert open_images(tmp_path).read(0, shorter=100).size == (160, 120)


def workers():
    return [t for t in threading.enumerate() if t.name.startswith("prefetch")]


@pytest.mark.parametrize("threads", [0, 1, 2, 5])
def test_prefetch_keeps_the_order(threads):
    def slow_for_even(job):
        time.sleep(0.002 * (job % 2 == 0))
        return job * job

    assert list(prefetch(slow_for_even, range(30), threads=threads)) == [i * i for i in range(30)]
    assert list(prefetch(slow_for_even, [], threads=threads)) == []
    assert not workers()


def test_prefetch_works_ahead_but_not_further_than_its_depth():
    begun = []
    stream = prefetch(lambda job: begun.append(job) or job, iter(range(10**9)), threads=2, depth=3)
    for wanted in range(20):
        assert next(stream) == wanted
        deadline = time.monotonic() + 5
        while len(begun) < wanted + 4 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert len(begun) == wanted + 4
    stream.close()
    assert not workers()


def test_prefetch_uses_its_threads_at_once():
    gate = threading.Barrier(3, timeout=10)  # passes only when three reads are under way together
    assert list(prefetch(lambda job: gate.wait() >= 0, range(3), threads=3, depth=1)) == [True] * 3


def test_prefetch_raises_at_the_item_that_failed():
    def read(job):
        if job == 3:
            raise ImagesError("three")
        return job

    stream = prefetch(read, range(10))
    assert [next(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ImagesError, match="three"):
        next(stream)
    with pytest.raises(StopIteration):
        next(stream)
    assert not workers()


def test_prefetch_raises_what_the_jobs_raise():
    def jobs():
        yield 1
        raise KeyError("jobs")

    with pytest.raises(KeyError, match="jobs"):
        list(prefetch(lambda job: job, jobs()))
    assert not workers()


def test_prefetch_ends_its_threads_when_the_consumer_stops():
    done = []
    for job in prefetch(lambda job: time.sleep(0.001) or done.append(job) or job, range(1000), threads=3):
        if job == 5:
            break
    assert not workers()
    assert len(done) < 20
    assert next(zip(prefetch(lambda job: job, range(1000)), range(3), strict=False)) == (0, 0)
    assert not workers()


def test_prefetch_starts_nothing_before_the_first_item_is_asked_for():
    stream = prefetch(lambda job: job, range(3))
    assert not workers()
    del stream


def test_opening_images_wakes_no_library_of_networks():
    import subprocess

    code = "import sys, ssl_kd.data.open; sys.exit(any(m in sys.modules for m in ('torchvision', 'timm', 'lightly')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_page_on_images_runs(tmp_path, monkeypatch):
    plant(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[2] / "docs" / "images.md").read_text()
    names = {}
    for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(code, names)
    assert len(names["images"]) == 6
    assert same(names["picture"], picture(0))
    assert len(names["batch"]) == 2


def test_offline_torchvision_downloads_no_data_set(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    monkeypatch.setattr(CIFAR10, "download", lambda self: pytest.fail("went to the network"))
    with pytest.raises(ImagesError, match=r"nothing is downloaded unless .* SSL_KD_OFFLINE is not set"):
        open_images(f"torchvision/CIFAR10:{tmp_path}:test:download")
