"""Pictures and places as strangers have them: thin, deep, mangled, linked, nested, lying. One line each, nothing flat."""

import io
import logging
import os
import struct
import subprocess
import sys
import tarfile
import time
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, features

from ssl_kd.data import open as door
from ssl_kd.data.augment import CENTRE, STRONG, cut
from ssl_kd.data.open import normal_path, open_images
from ssl_kd.data.sources import fingerprint, listing
from ssl_kd.data.sources.decode import THIS_TIME, UnreadableError, decode, is_temporary
from ssl_kd.errors import ImagesError, UserError

ESC = "\x1b]0;PWNED\x07"


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(door, "_SAID", set())


def grey(values, kind="TIFF"):
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=0, rows=None):
    rows = rows or (b"\0" * (1 + (width * depth + 7) // 8)) * height
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def deep_png(values):
    """16 bits for each of three colours: (H, W, 3) uint16."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png(values.shape[1], values.shape[0], 16, 2, rows)


RNG = np.random.default_rng(0)
NOISE = RNG.random((30, 40))


def between(low, high, kind=np.int32):
    return (low + NOISE * (high - low)).astype(kind)


DEEP = {
    "8 bits in 32": grey(between(0, 255)),
    "12 bits in 32": grey(between(0, 4095)),
    "16 bits in 32": grey(between(0, 65535)),
    "all of 31": grey(between(2**20, 2**31 - 1)),
    "17 bits in 32": grey(between(0, 100_000)),
    "12 bits in 16": grey(between(0, 4095, np.uint16)),
    "12 bits in a PNG": grey(between(0, 4095, np.uint16), "PNG"),
    "dark 12 bits in 16": grey(between(0, 30, np.uint16)),
    "16 bits": grey(between(0, 65535, np.uint16)),
    "16-bit colours": deep_png(np.stack([between(0, 65535, np.uint16)] * 3, 2)),
}


@pytest.mark.parametrize("kind", DEEP)
def test_deep_pictures_are_scaled_and_never_flat(kind):
    found = np.asarray(decode(DEEP[kind])).astype(int)
    assert found.max() - found.min() >= 29
    order = np.argsort(NOISE, axis=None)
    assert (np.diff(found[..., 0].flatten()[order]) >= 0).all()  # brighter stays brighter


HOPELESS = {
    "negative": (grey(between(-5, 100)), "no agreed range"),
    "32 bits far from zero": (grey(between(2**30, 2**30 + 900)), "no agreed range"),
    "floats": (grey(NOISE.astype(np.float32)), "no agreed range"),
    "12-bit colours": (deep_png(np.stack([between(0, 4095, np.uint16)] * 3, 2)), "12 bits or fewer"),
}


@pytest.mark.parametrize("kind", HOPELESS)
def test_what_would_be_flat_is_refused(kind):
    data, reason = HOPELESS[kind]
    with pytest.raises(UnreadableError, match=reason):
        decode(data)


def test_a_flat_picture_stays_flat():
    assert np.asarray(decode(grey(np.full((4, 4), 7, np.uint16)))).tolist() == [[[7] * 3] * 4] * 4


@pytest.mark.parametrize("turn", [False, True])
@pytest.mark.parametrize(("length", "depth"), [(60_000, 8), (2_000_000, 8), (89_000_000, 1)])
def test_thin_pictures_cost_what_they_are(length, depth, turn):
    from ssl_kd.models.preprocessing import Preprocessing

    picture = Image.new("RGB", (1, length) if turn else (length, 1), (10, 200, 30))
    tracemalloc.start()
    for contract in (Preprocessing(), Preprocessing().at(32, 1.0), Preprocessing().at(518)):
        pixels = contract(picture)
        assert pixels.shape == (3, contract.size, contract.size)
        assert pixels.unique().tolist() == [10, 30, 200]
    for recipe in (CENTRE, STRONG):
        for view in range(3):
            assert cut(picture, recipe, 32, 0, 0, view)[0, 0].tolist() == [10, 200, 30]
    assert tracemalloc.get_traced_memory()[1] < 200_000_000
    tracemalloc.stop()


def test_the_middle_of_a_thin_picture_is_what_the_whole_resized_one_shows(monkeypatch):
    from ssl_kd.models import preprocessing

    for size in ((3, 1000), (1001, 4), (40, 900), (2, 901)):
        values = RNG.integers(0, 256, (size[1], size[0], 3), np.uint8)
        picture = Image.fromarray(values)
        for how in ("bilinear", "bicubic", "lanczos", "nearest"):
            contract = preprocessing.Preprocessing(resize=64, crop=56, size=56, interpolation=how)
            whole = contract(picture).int()
            monkeypatch.setattr(preprocessing, "MANY", 1)
            part = contract(picture).int()
            monkeypatch.undo()
            assert (whole - part).abs().max() <= (255 if how == "nearest" else 1)
            assert ((whole - part).abs() <= 1).float().mean() > 0.95


def test_ordinary_pictures_never_take_the_way_of_thin_ones(monkeypatch):
    from ssl_kd.models import preprocessing

    monkeypatch.setattr(preprocessing, "_middle_resized", lambda *given: pytest.fail("cropped first"))
    for size in ((500, 375), (375, 500), (4000, 300), (20_000, 1000), (32, 32), (224, 9000)):
        assert preprocessing.Preprocessing()(Image.new("RGB", size)).shape == (3, 224, 224)


def test_a_picture_that_cannot_be_prepared_is_skipped_and_named(tmp_path):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(png(40 + i, 30))
    images = open_images(tmp_path)

    def prepare(picture):
        if picture.width == 42:
            raise MemoryError
        return picture.size

    assert [images.prepared(i, prepare) for i in range(4)] == [(40, 30), (41, 30), None, (43, 30)]
    assert images.unreadable == {"2.png": "42 x 30 pixels cannot be prepared: MemoryError"}
    with pytest.raises(UserError, match="ours"):
        images.prepared(0, lambda picture: (_ for _ in ()).throw(UserError("ours")))
    with pytest.raises(ZeroDivisionError):  # our own mistake keeps its traceback
        images.prepared(0, lambda picture: 1 / 0)


# ------------------------------------------------------------------------------------------ what is passed over


def test_a_phones_folder_says_in_one_line_what_it_leaves_out(tmp_path, caplog):
    for name in ("a.jpg", "b.JPG"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    for name in ("c.CR2", "d.cr2", "e.jpg_large", "f.png~", "g.svg", "notes.txt", "h.json"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING, "ssl_kd.data"):
        images = open_images(tmp_path)
        open_images(tmp_path)
    assert len(images) == 2
    said = f"{tmp_path}: 5 files were passed over because of the ending (2 .cr2, 1 .jpg_large, 1 .png~, 1 .svg)"
    assert [r.message for r in caplog.records] == [said]  # once
    assert images.passed_over[".txt"] == 1


@pytest.mark.parametrize(("ending", "kind", "feature"), [(".avif", "AVIF", "avif"), (".jp2", "JPEG2000", "jpg_2000")])
def test_new_formats_are_read_where_pillow_can(tmp_path, ending, kind, feature):
    if not features.check(feature):
        pytest.skip(f"this Pillow cannot read {kind}")
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / f"a{ending}", kind)
    found = np.asarray(open_images(tmp_path).read(0)).astype(int)
    assert np.abs(found - [200, 30, 30]).max() < 12


def test_heic_is_read_where_its_plugin_is_installed(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.new("RGB", (64, 64), (200, 30, 30))).save(tmp_path / "a.HEIC")
    found = np.asarray(open_images(tmp_path).read(0)).astype(int)
    assert np.abs(found - [200, 30, 30]).max() < 20


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_archives_count_what_they_leave_out_too(tmp_path, kind):
    names = ["1.png", "1.png", "2.png", "2.seg.png", "3.CR2", "4.txt", ".hidden.png"]
    path = tmp_path / f"x.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as out, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of two members of one name
            for i, name in enumerate(names):
                out.writestr(name, png(10 + i, 10))
    else:
        with tarfile.open(path, "w") as out:
            for i, name in enumerate(names):
                info, data = tarfile.TarInfo(name), png(10 + i, 10)
                info.size = len(data)
                out.addfile(info, io.BytesIO(data))
    images = open_images(path)
    seen = {name.rpartition("/")[2]: images.read(i).width for i, name in enumerate(images.ids)}
    if kind == "zip":  # the last one counts, as for unzip; the other is counted
        assert seen == {"1.png": 11, "2.png": 12, "2.seg.png": 13}
        assert images.passed_over == {"(of a name that a later member has)": 1, ".cr2": 1, ".txt": 1}
    else:  # both are pictures
        assert seen == {"1.png": 10, "1.png#2": 11, "2.png": 12}
        assert images.passed_over == {"(beside the picture of its sample)": 1, ".cr2": 1, ".txt": 1}
    assert "1 .cr2" in images.passed_over_line()


def test_names_with_backslashes_alone_are_paths(tmp_path):
    for i in range(3):
        (tmp_path / "set/train/cat").mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/train/cat/{i}.png").write_bytes(png(10 + i, 10))
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as out:
        for i in range(3):
            out.writestr(zipfile.ZipInfo(f"train\\cat\\{i}.png"), png(10 + i, 10))
    assert open_images(tmp_path / "set.zip").digest == open_images(tmp_path / "set").digest
    assert list(open_images(tmp_path / "set.zip/train/cat").ids) == ["0.png", "1.png", "2.png"]


# ------------------------------------------------------------------------------------------- what it is instead


def tar_of(path, *names, data=b"x" * 99, mode="w"):
    with tarfile.open(path, mode) as out:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def lying_zip(path, field, value):
    """A zip whose index states a number beyond 32 bits, in its zip64 part."""
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(f"{ESC}.png", png(4, 4))
    data = bytearray(path.read_bytes())
    at = data.find(b"PK\1\2")
    (length,) = struct.unpack("<H", data[at + 28 : at + 30])
    data[at + field : at + field + 4] = b"\xff" * 4
    extra = struct.pack("<HHQ", 1, 8, value)
    data[at + 30 : at + 32] = struct.pack("<H", len(extra))
    data[at + 46 + length : at + 46 + length] = extra
    end = data.rfind(b"PK\5\6")
    (size,) = struct.unpack("<I", data[end + 12 : end + 16])
    data[end + 12 : end + 16] = struct.pack("<I", size + len(extra))
    path.write_bytes(data)
    return path


def npy(path, header):
    head = header.encode().ljust(118) + b"\n"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + b"\0" * 64)
    return path


def places(root):
    """Every place that is no data set, and a part of the one line that it is owed."""
    (root / "list.csv").write_text("a.jpg\nb.jpg\n" * 1000)
    (root / "list.txt").write_text("nowhere.jpg\n" * 1000)
    (root / "empty.txt").write_text("\n")
    (root / "binary.txt").write_bytes(b"\0" * 1000)
    (root / ESC).mkdir()
    (root / ESC / f"{ESC}.txt").write_text("x")
    with zipfile.ZipFile(root / "escape.zip", "w") as out:
        out.writestr(f"{ESC}.txt", "x")
        out.writestr(f"{ESC}/b.png", png(4, 4))
    shape = "{'descr': '|u1', 'fortran_order': False, 'shape': %s, }"
    return {
        tar_of(root / "train.tar", "n01.tar", "n02.tar"): "it holds n01.tar, n02.tar: a tar of tars; unpack it once",
        tar_of(root / "img.tar", "0.img"): "it holds 0.img",
        tar_of(root / "esc.tar", f"{ESC}.txt"): r"it holds \\x1b",
        tar_of(root / "x.tgz", "a.png", mode="w:gz"): "packed by gzip",
        tar_of(root / "x.tar.gz", "a.png", mode="w:gz"): "packed by gzip",
        tar_of(root / "x.tar.xz", "a.png", mode="w:xz"): "packed by xz",
        tar_of(root / "nameless", "a.png"): "this is a tar; give its name the ending .tar",
        root / "list.csv": "this is a text; a list of picture files is read if its name ends in .txt",
        root / "list.txt": r"nowhere\.jpg: no such picture file \(named in",
        root / "empty.txt": "names no picture",
        root / "binary.txt": "line 1 is no path",
        root / ESC: r"it holds \\x1b",
        root / "escape.zip/c": r"no such folder in the archive. It holds \\x1b",
        root / f"{ESC}.gone": "no such folder or archive",
        lying_zip(root / "offset.zip", 42, 2**64 - 1): "its index says that",
        lying_zip(root / "packed.zip", 20, 2**63): "its index says that",
        lying_zip(root / "large.zip", 20, 2**40): "its index says that",
        npy(root / "huge.npy", shape % "(4611686018427387904, 4, 4, 3)"): "cut short, or damaged",
        npy(root / "over.npy", shape % f"({10**30}, 4, 4, 3)"): "cut short, or damaged",
        npy(root / "minus.npy", shape % "(-1, 4, 4, 3)"): "no images in an array",
        npy(root / "open.npy", "{'descr': ("): "not a readable .npy",
        npy(root / "quote.npy", "{'descr': '''"): "not a readable .npy",
        npy(root / "nest.npy", "(" * 110): "not a readable .npy",
        npy(root / "object.npy", shape.replace("|u1", "|O") % "(1, 4, 4, 3)"): "expected uint8",
        npy(root / "float.npy", shape.replace("|u1", "<f4") % "(1, 4, 4, 3)"): "scale floating-point pixels to 0..255",
    }


def test_every_place_that_is_no_data_set_is_told_so_in_one_printable_line(tmp_path):
    for place, reason in places(tmp_path).items():
        with pytest.raises(ImagesError, match=reason) as caught:
            open_images(place)
        assert str(caught.value).isprintable(), ascii(place)


def test_a_size_that_lies_costs_one_picture(tmp_path):
    images = open_images(lying_zip(tmp_path / "x.zip", 24, 2**64 - 1))
    with pytest.raises(ImagesError, match="larger than") as caught:  # the only picture: none is left
        images.read(0)
    assert str(caught.value).isprintable()


def test_a_npy_file_that_is_cut_while_it_is_open_costs_pictures_and_not_the_process(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((50, 64, 64, 3), np.uint8))
    images = open_images(tmp_path / "x.npy", max_unreadable=0.9)
    os.truncate(tmp_path / "x.npy", 20_000)
    assert images.read(0) is not None
    assert images.read(49) is None
    assert "cut short" in images.unreadable["49"]


@pytest.mark.parametrize("spelled", ["photos", "photos/", "./photos", "photos//", ".//photos/."])
def test_one_folder_is_one_data_set_however_it_is_spelled(tmp_path, monkeypatch, spelled):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(png(4, 4))
    monkeypatch.chdir(tmp_path)
    assert normal_path(spelled) == open_images(spelled).name == "photos"


def test_only_places_have_another_spelling(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    for source in ("https://host//x.tar", "torchvision/CIFAR10:./data", "gone//x", "", "a/../a"):
        assert normal_path(source) == source


# --------------------------------------------------------------------------------------------- folders and links


@pytest.fixture
def deep(tmp_path):
    """A folder that is emptied by rm: shutil, by which pytest cleans up, stumbles over nested folders itself."""
    yield tmp_path
    subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)


def test_nesting_beyond_the_limit_of_recursion_is_listed(deep):
    tmp_path, depth = deep, 3 * sys.getrecursionlimit() // 2
    at = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(depth):
            os.mkdir("d", dir_fd=at)
            below = os.open("d", os.O_RDONLY, dir_fd=at)
            os.close(at)
            at = below
        file = os.open("x.png", os.O_CREAT | os.O_WRONLY, dir_fd=at)
        os.write(file, png(4, 4))
        os.close(file)
    finally:
        os.close(at)
    images = open_images(tmp_path)
    assert list(images.ids) == ["d/" * depth + "x.png"]
    assert images.read(0).size == (4, 4)


@pytest.mark.parametrize("count", [8, 14, 40])
def test_links_to_links_are_bounded_and_counted(tmp_path, count):
    for i in range(count):
        (tmp_path / f"d{i:02d}").mkdir()
        for name in "ab" if i < count - 1 else "":
            os.symlink(f"../d{i + 1:02d}", tmp_path / f"d{i:02d}/{name}")
    (tmp_path / f"d{count - 1:02d}/x.png").write_bytes(png(4, 4))
    images = open_images(tmp_path)
    assert len(images) <= listing.MOST_LINKS + 1
    assert f"where {listing.MOST_LINKS} others lead to the same one" in images.passed_over_line()


# ------------------------------------------------------------------------------- bad files: their cost, their memory


def test_time_grows_with_the_number_of_bad_files_and_not_with_its_square(tmp_path):
    def steps(count):
        with zipfile.ZipFile(tmp_path / f"{count}.zip", "w") as out:
            for i in range(count):
                out.writestr(f"{i:07d}.bmp", b"")
        images = open_images(tmp_path / f"{count}.zip", max_unreadable=1.0)
        began = time.process_time()
        assert [images.read(i) for i in range(count - 1)] == [None] * (count - 1)
        return time.process_time() - began

    steps(50)
    assert steps(8000) < 40 * max(steps(500), 0.005)  # 16 times as many; 256 times as long if it were quadratic


def test_what_cannot_be_read_once_is_tried_again_and_what_is_damaged_is_not(tmp_path, monkeypatch):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(png(10 + i, 10))
    (tmp_path / "5.png").write_bytes(b"junk")
    images = open_images(tmp_path, max_unreadable=0.9)
    monkeypatch.setattr(fingerprint, "PAUSES", (0.0, 0.0))
    real, tries = fingerprint._whole, []

    def away(descriptor, length):
        tries.append(descriptor)
        if len(tries) <= 4:  # one read with its two repetitions, and one of the next
            raise OSError(5, "Input/output error")
        return real(descriptor, length)

    monkeypatch.setattr(fingerprint, "_whole", away)
    assert [images.read(i) is None for i in range(6)] == [True, False, False, False, False, True]
    assert images.unreadable["0.png"] == THIS_TIME + "Input/output error"
    found = dict(images.unreadable)
    assert [is_temporary(found[name]) for name in ("0.png", "5.png")] == [True, False]

    later = open_images(tmp_path, max_unreadable=0.9)  # another process, with what the first one wrote down
    later.recall(found)
    assert set(later.unreadable) == {"5.png"}
    assert later.read(0) is not None
    assert later.readable_now(found) == images.readable_now(found) == ["0.png"]
    assert images.read(0) is not None


def test_a_command_given_again_does_not_begin_to_count_anew(tmp_path):
    for i in range(10):
        (tmp_path / f"{i}.png").write_bytes(b"junk" if i < 3 else png(10, 10))
    images = open_images(tmp_path)  # one is borne
    with pytest.raises(ImagesError, match="2 of 10"):
        images.recall({"0.png": "damaged", "1.png": "damaged"})
