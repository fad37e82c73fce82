"""Every source notices what happens to its pictures: replaced, added, removed, renamed, painted over."""

import http.server
import os
import pickle
import shutil
import tarfile
import threading
import time
import zipfile
from functools import partial

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ssl_kd.data.open import open_images
from ssl_kd.data.sources import array, dataset, fingerprint
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.sources.base import ImageSource, content_key
from ssl_kd.data.subset import Subset
from ssl_kd.errors import ImagesError

COUNT = 6
pyarrow = pytest.importorskip("pyarrow")


def pixels(seed, side=8):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def first_set():
    return [(f"{i}.bmp", pixels(i)) for i in range(COUNT)]


def files_in(folder, rows):
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in rows:
        Image.fromarray(picture).save(folder / name)
    return folder


# How each source is written, in place over what is there. Sizes and dates of files stay, where the counts do.


def as_folder(root, rows):
    for old in (root / "set").glob("*") if (root / "set").exists() else ():
        if old.name not in dict(rows):
            old.unlink()
    return files_in(root / "set", rows)


def as_zip(root, rows):
    with zipfile.ZipFile(root / "set.zip", "w") as out:
        for path in sorted(files_in(root / "src", rows).iterdir()):
            if path.name in dict(rows):
                out.write(path, path.name)
    return root / "set.zip"


def as_tar(root, rows):
    files_in(root / "src", rows)
    with tarfile.open(root / "set.tar", "w") as out:
        for name, _ in rows:
            out.add(root / "src" / name, name)
    return root / "set.tar"


def as_npy(root, rows):
    np.save(root / "set.npy", np.stack([picture for _, picture in rows]))
    return root / "set.npy"


def as_parquet(root, rows):
    from pyarrow import parquet

    folder = files_in(root / "src", rows)
    table = pyarrow.table({"image": [(folder / name).read_bytes() for name, _ in rows]})
    parquet.write_table(table, root / "set.parquet", row_group_size=2, compression="none", use_dictionary=False)
    return root / "set.parquet"


def as_array(root, rows):
    return np.stack([picture for _, picture in rows])


def as_data_set(root, rows):
    return [Image.fromarray(picture) for _, picture in rows]


def as_subset(root, rows):
    return Subset(open_images(as_folder(root, rows)), np.arange(len(rows) - 1))


def as_the_others(root, rows):
    return Subset(open_images(as_tar(root, rows)), np.array([0]), others=True)


SOURCES = {
    "folder": as_folder,
    "zip": as_zip,
    "tar": as_tar,
    "npy": as_npy,
    "parquet": as_parquet,
    "array": as_array,
    "data set": as_data_set,
    "subset": as_subset,
    "the others": as_the_others,
}
WITHOUT_NAMES = ("npy", "parquet", "array", "data set")


def replaced(rows):
    return [rows[0], (rows[1][0], pixels(99)), *rows[2:]]


def added(rows):
    return [*rows, ("7.bmp", pixels(7))]


def removed(rows):
    return rows[:-1]


def renamed(rows):
    return [("00.bmp", rows[0][1]), *rows[1:]]


def repainted(rows):
    """One sample of one picture, by one."""
    picture = rows[2][1].copy()
    picture[3, 3, 1] ^= 1
    return [*rows[:2], (rows[2][0], picture), *rows[3:]]


CHANGES = (replaced, added, removed, renamed, repainted)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "cache"))


@pytest.fixture(params=["small", "large"])
def regime(request, monkeypatch):
    """Small sets are hashed whole; large ones by stamps and samples: here everything is large, and no sample is taken."""
    if request.param == "large":
        monkeypatch.setattr(fingerprint, "SMALL_BYTES", 0)
        monkeypatch.setattr(fingerprint, "SAMPLED_FILES", 0)
        monkeypatch.setattr(array, "HASHED_BYTES", 0)
    return request.param


def dates_kept(root, make, rows):
    """Write the rows over what is there, and set the dates of all files back: as cp -p and unpacked archives do."""
    before = {path: path.stat() for path in root.rglob("*") if path.is_file()}
    source = make(root, rows)
    for path, stat in before.items():
        if path.exists():
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return source


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("kind", SOURCES)
def test_every_change_of_every_source_is_another_content_digest(tmp_path, kind, change, regime):
    if change is renamed and kind in WITHOUT_NAMES:
        pytest.skip("has no names")
    make = SOURCES[kind]
    before = open_images(make(tmp_path, first_set()))
    digests = before.content_digest, before.full_digest
    assert open_images(make(tmp_path, first_set()) if kind in ("array", "data set") else before).content_digest
    time.sleep(0.02)  # the clock of file systems ticks a hundred times a second
    after = open_images(dates_kept(tmp_path, make, change(first_set())))
    assert after.content_digest != digests[0]
    assert after.full_digest != digests[1]


@pytest.mark.parametrize("kind", SOURCES)
def test_what_did_not_change_keeps_its_digests(tmp_path, kind, regime):
    make = SOURCES[kind]
    source = make(tmp_path, first_set())
    one = open_images(source)
    other = open_images(
        make(tmp_path, first_set()) if isinstance(source, ImageSource) and regime == "small" else source
    )
    assert one.digest == other.digest
    assert one.content_digest == other.content_digest == content_key(one)
    assert one.full_digest == other.full_digest
    assert len({one.digest, one.content_digest}) == 2  # and the digest that runs recorded is not touched


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "npy", "parquet"])
def test_a_copy_of_a_small_set_has_its_content_digest_and_any_copy_the_full_one(tmp_path, kind, regime):
    (tmp_path / "a").mkdir()
    source = SOURCES[kind](tmp_path / "a", first_set())
    time.sleep(0.02)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    here, there = open_images(source), open_images(tmp_path / "b" / source.name)
    same = here.content_digest == there.content_digest
    assert same == (regime == "small" or kind == "zip")
    assert open_images(here, verify=True).content_digest == open_images(there, verify=True).content_digest
    assert here.content_digest == here.full_digest


def test_digests_have_the_values_that_runs_and_caches_recorded(tmp_path):
    """Written down with the code before content digests. They name what old run folders trained on."""
    images = [(f"{i}.bmp", np.full((8, 8, 3), 40 * i, np.uint8)) for i in range(COUNT)]
    folder = open_images(as_folder(tmp_path, images))
    assert folder.digest == FOLDER
    assert open_images(as_zip(tmp_path, images)).digest == FOLDER
    assert open_images(as_tar(tmp_path, images)).digest == TAR
    assert open_images(as_array(tmp_path, images)).digest == open_images(as_npy(tmp_path, images)).digest == ARRAY
    assert open_images(as_data_set(tmp_path, images)).digest == DATA_SET
    assert Subset(folder, np.array([1, 3])).digest == HELD_OUT
    assert Subset(folder, np.array([1, 3]), others=True).digest == REST
    assert Subset(folder, np.array([3, 1]), mark="").digest == CHOSEN


FOLDER = "cfbcb0b7416d8b91b6b4bc8aaff9a0e75407ec6347fcd318d43b841e0a82d9e0"
TAR = "0128abab4eaa5833133cd313f41047b6a2ff758e54fee7bfefdaeca8f3fcf48a"
ARRAY = "d18bead60198825caa54def6d808ed3a3b738e7434ce6612e0f8c8998e7c7d0c"
DATA_SET = "170eebdb93646eb6a122225d170e8e64dfaa8f32a7173490d246f239023c4314"
HELD_OUT = "b5aa16a3b181155980b034aa48d75e4ff2cc8703deda58a39da4303e0f2d4958"
REST = "cca489f0c1db2073a52a227f9476a69a5da4a321e91e402cfec7dc29eb309388"
CHOSEN = "c62df61e724c455317ae3b7fe5189b349a465a7e2f0a0e89286d8ba397877c83"


def test_an_array_painted_over_beyond_the_pictures_that_its_digest_looks_at(monkeypatch):
    monkeypatch.setattr(array, "HASHED_ROWS", 2)
    pictures = np.zeros((9, 2, 2, 3), np.uint8)
    before = ArrayImages(pictures)
    before.content_digest  # noqa: B018 - computed now
    changed = pictures.copy()
    changed[1] = 7
    assert ArrayImages(changed).digest == before.digest
    assert ArrayImages(changed).content_digest != before.content_digest


def test_of_a_large_data_set_some_items_are_checked_and_all_on_request(monkeypatch):
    monkeypatch.setattr(dataset, "LOOKED_AT", 2)
    monkeypatch.setattr(dataset, "SAMPLED", 2)
    monkeypatch.setattr(dataset, "ALL_PIXELS", 0)
    pictures = [Image.fromarray(pixels(i)) for i in range(5)]
    one, other = open_images(pictures), open_images([*pictures[:2], Image.fromarray(pixels(9)), *pictures[3:]])
    assert one.content_digest == other.content_digest
    assert one.full_digest != other.full_digest


def test_the_array_and_the_files_behind_a_data_set_are_checked(tmp_path, monkeypatch):
    class Behind(list):
        pass

    monkeypatch.setattr(dataset, "LOOKED_AT", 1)
    monkeypatch.setattr(dataset, "ALL_PIXELS", 0)
    path = files_in(tmp_path, first_set()) / "3.bmp"
    found = []
    for data, painted in ((0, False), (1, False), (0, True)):
        if painted:
            Image.fromarray(pixels(50)).save(path)
        source = Behind(Image.fromarray(pixels(i)) for i in range(4))
        source.data, source.samples = np.full((4, 2), data), [(str(path), 0)]
        found.append(open_images(source).content_digest)
    assert len(set(found)) == 3


def test_shards_at_a_url_are_known_by_the_digest_that_each_fetch_is_held_to(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    handler = partial(_Quiet, directory=str(root))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        found = []
        for rows in (first_set(), repainted(first_set())):
            as_tar(root, rows)
            os.environ["SSL_KD_CACHE"] = str(tmp_path / f"cache{len(found)}")
            found.append(open_images(f"http://127.0.0.1:{server.server_address[1]}/set.tar"))
        assert found[0].digest == found[1].digest
        assert found[0].content_digest != found[1].content_digest
    finally:
        server.shutdown()
        server.server_close()


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


# ------------------------------------------------------------------------------------- a data set like any other


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_is_a_data_set_for_a_plain_loader(tmp_path, kind):
    images = open_images(SOURCES[kind](tmp_path, first_set()))
    assert isinstance(images, Dataset)
    assert np.array_equal(np.asarray(images[0]), np.asarray(images.read(0)))
    assert images[-1].mode == "RGB"
    with pytest.raises(IndexError):
        images[len(images)]
    batches = list(DataLoader(images, batch_size=2, collate_fn=list))
    assert [np.asarray(p)[0, 0].tolist() for batch in batches for p in batch] == [
        np.asarray(images.read(i))[0, 0].tolist() for i in range(len(images))
    ]
    images.transform = np.array
    assert next(iter(DataLoader(images, batch_size=3))).shape == (3, 8, 8, 3)
    again = pickle.loads(pickle.dumps(images))  # as processes are given it
    assert again[1].tolist() == images[1].tolist()
    assert again.content_digest == images.content_digest


def test_an_item_that_cannot_be_read_is_an_error_with_its_name(tmp_path):
    folder = as_folder(tmp_path, first_set())
    (folder / "2.bmp").write_bytes(b"junk")
    with pytest.raises(ImagesError, match=r"2\.bmp cannot be read: not a picture"):
        open_images(folder)[2]


def test_a_part_beyond_the_whole_is_refused(tmp_path):
    with pytest.raises(ImagesError, match="beyond its 6"):
        Subset(open_images(as_folder(tmp_path, first_set())), np.array([2, 6]))
