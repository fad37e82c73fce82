"""Every set of the literature is read from a small copy of what its archive unpacks to: splits, labels, pictures."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import socket

import numpy as np
import pytest
from PIL import Image

from ssl_kd.errors import UserError
from ssl_kd.eval.datasets.literature import METRICS_OF_TASKS, TASKS, usual_metric
from ssl_kd.eval.datasets.published import READERS, VOC_CLASSES, labels_of, published_task
from ssl_kd.eval.runner.build import open_task
from ssl_kd.eval.runner.config import TaskConfig


def paint(path, number):
    """A picture whose first pixel tells its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((6, 6, 3), number, np.uint8)
    Image.fromarray(pixels).save(path, quality=95) if path.suffix == ".jpg" else Image.fromarray(pixels).save(path)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def mat(path, **arrays):
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, arrays)


# Each writes a set under `root` and returns (train labels, test labels, validation rows or None).


def food101(root, patch):
    base = root / "food-101"
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        write(base / "meta" / f"{split}.json", json.dumps({c: [f"{c}/{n}" for n in numbers] for c in ("pie", "soup")}))
        for c in ("pie", "soup"):
            for n in numbers:
                paint(base / "images" / c / f"{n}.jpg", n)
    return [0, 0, 1, 1], [0, 1], None


def cifar(kind, folder, key, names):
    def make(root, patch):
        from torchvision import datasets

        data = getattr(datasets, kind)
        rng = np.random.default_rng(0)

        def batch(name):
            content = {"data": rng.integers(0, 256, (3, 3072), np.uint8), key: [0, 1, 2]}
            (root / folder).mkdir(exist_ok=True)
            (root / folder / name).write_bytes(pickle.dumps(content))
            return [name, md5(root / folder / name)]

        patch.setattr(data, "train_list", [batch(name) for name in names[:-1]])
        patch.setattr(data, "test_list", [batch(names[-1])])
        meta = {**data.meta}
        (root / folder / meta["filename"]).write_bytes(pickle.dumps({meta["key"]: ["a", "b", "c"]}))
        patch.setattr(data, "meta", {**meta, "md5": md5(root / folder / meta["filename"])})
        return [0, 1, 2] * (len(names) - 1), [0, 1, 2], None

    return make


def birdsnap(root, patch):
    for c in ("jay", "owl"):
        for n in range(3):
            paint(root / "birdsnap" / "images" / c / f"{n}.jpg", n)
    write(root / "birdsnap" / "test_images.txt", "path\njay/1.jpg\nowl/2.jpg\n")
    return ["jay", "jay", "owl", "owl"], ["jay", "owl"], None


def sun397(root, patch):
    for c in ("a/abbey", "a/arch/indoor"):
        for n in range(3):
            paint(root / "SUN397" / c / f"sun_{n}.jpg", n)
    lists = {"Training": ["a/abbey/sun_0", "a/arch/indoor/sun_1"], "Testing": ["a/arch/indoor/sun_0", "a/abbey/sun_2"]}
    for part, names in lists.items():
        write(root / "SUN397" / f"{part}_01.txt", "".join(f"/{name}.jpg\n" for name in names))
    return ["a/abbey", "a/arch/indoor"], ["a/arch/indoor", "a/abbey"], None


def cars(root, patch):
    base = root / "stanford_cars"
    kind = [("fname", "O"), ("class", "i4")]
    for part, where in (
        ("train", base / "devkit" / "cars_train_annos.mat"),
        ("test", base / "cars_test_annos_withlabels.mat"),
    ):
        rows = [(f"{n}.jpg", n % 2 + 1) for n in range(3)]
        mat(where, annotations=np.array(rows, dtype=kind))
        for n in range(3):
            paint(base / f"cars_{part}" / f"{n}.jpg", n)
    mat(base / "devkit" / "cars_meta.mat", class_names=np.array(["a", "b"], dtype=object))
    return [0, 1, 0], [0, 1, 0], None


def aircraft(root, patch):
    base = root / "fgvc-aircraft-2013b" / "data"
    write(base / "variants.txt", "707\n747 B\n")
    lists = {"train": ["1 707", "2 747 B"], "val": ["3 747 B"], "test": ["4 707"]}
    for split, lines in lists.items():
        write(base / f"images_variant_{split}.txt", "\n".join(lines) + "\n")
        for line in lines:
            paint(base / "images" / f"{line.split()[0]}.jpg", int(line.split()[0]))
    return [0, 1, 1], [0], [False, False, True]


def voc07(root, patch):
    base = root / "VOCdevkit" / "VOC2007"
    names = {"trainval": ["000005", "000007", "000009"], "test": ["000001", "000002"]}
    for name in [*names["trainval"], *names["test"]]:
        paint(base / "JPEGImages" / f"{name}.jpg", int(name))
    for part, listed in names.items():
        for i, label in enumerate(VOC_CLASSES):
            values = [(1, -1, 0)[(i + n) % 3] for n in range(len(listed))]
            write(
                base / "ImageSets" / "Main" / f"{label}_{part}.txt",
                "".join(f"{name} {value:2d}\n" for name, value in zip(listed, values, strict=True)),
            )
    write(base / "ImageSets" / "Main" / "val.txt", "000007\n")
    rule = np.array([1, -1, 0])
    expected = {
        part: rule[np.add.outer(np.arange(len(listed)), np.arange(20)) % 3].tolist() for part, listed in names.items()
    }
    return expected["trainval"], expected["test"], [False, True, False]


def dtd(root, patch):
    base = root / "dtd" / "dtd"
    for split, n in (("train", 1), ("val", 2), ("test", 3)):
        write(base / "labels" / f"{split}1.txt", f"dotted/d_{n}.jpg\nwoven/w_{n}.jpg\n")
        for c in ("dotted", "woven"):
            paint(base / "images" / c / f"{c[0]}_{n}.jpg", n)
    return [0, 1, 0, 1], [0, 1], [False, False, True, True]


def pets(root, patch):
    base = root / "oxford-iiit-pet"
    for split, lines in (
        ("trainval", ["Beagle_1 2 2 1", "Abyssinian_1 1 1 1"]),
        ("test", ["Beagle_2 2 2 1", "Abyssinian_2 1 1 1"]),
    ):
        write(base / "annotations" / f"{split}.txt", "\n".join(lines) + "\n")
        for line in lines:
            paint(base / "images" / f"{line.split()[0]}.jpg", 7)
    return [1, 0], [1, 0], None


def caltech101(root, patch):
    for c in ("BACKGROUND_Google", "ant", "yin_yang"):
        for n in range(1, 33):
            paint(root / "caltech101" / "101_ObjectCategories" / c / f"image_{n:04d}.jpg", n)
    names = ["BACKGROUND_Google", "ant", "yin_yang"]
    return [c for c in names for _ in range(30)], [c for c in names for _ in range(2)], None


def flowers102(root, patch):
    from torchvision import datasets

    base = root / "flowers-102"
    mat(base / "imagelabels.mat", labels=np.array([2, 1, 2, 1]))
    mat(base / "setid.mat", trnid=np.array([1, 2]), valid=np.array([3, 3]), tstid=np.array([4, 1]))
    for n in range(1, 5):
        paint(base / "jpg" / f"image_{n:05d}.jpg", n)
    files = {key: (name, md5(base / name)) for key, name in (("label", "imagelabels.mat"), ("setid", "setid.mat"))}
    patch.setattr(datasets.Flowers102, "_file_dict", {**datasets.Flowers102._file_dict, **files})
    return [1, 0, 1, 1], [0, 1], [False, False, True, True]


def stl10(root, patch):
    from torchvision import datasets

    base = root / "stl10_binary"
    base.mkdir()

    def put(name, content):
        (base / name).write_bytes(content.astype(np.uint8).tobytes())
        return [name, md5(base / name)]

    pictures = np.arange(3 * 3 * 96 * 96) % 256
    lists = {
        split: [put(f"{split}_X.bin", pictures), put(f"{split}_y.bin", np.array([1, 10, 3]))]
        for split in ("train", "test")
    }
    patch.setattr(datasets.STL10, "train_list", [*lists["train"], put("unlabeled_X.bin", pictures)])
    patch.setattr(datasets.STL10, "test_list", lists["test"])
    return [0, 9, 2], [0, 9, 2], None


def svhn(root, patch):
    from torchvision import datasets

    sums = {}
    for split in ("train", "test"):
        name = f"{split}_32x32.mat"
        mat(root / name, X=np.zeros((32, 32, 3, 3), np.uint8), y=np.array([[10], [1], [9]], np.uint8))
        sums[split] = ["", name, md5(root / name)]
    patch.setattr(datasets.SVHN, "split_list", {**datasets.SVHN.split_list, **sums})
    return [0, 1, 9], [0, 1, 9], None


def gtsrb(root, patch):
    for c in ("00000", "00001"):
        paint(root / "gtsrb" / "GTSRB" / "Training" / c / "0.ppm", 1)
        paint(root / "gtsrb" / "GTSRB" / "Final_Test" / "Images" / f"{c}.ppm", 1)
    write(root / "gtsrb" / "GT-final_test.csv", "Filename;ClassId\n00000.ppm;1\n00001.ppm;0\n")
    return [0, 1], [1, 0], None


def imagenette(root, patch):
    for split in ("train", "val"):
        for c in ("n01440764", "n02102040"):
            paint(root / "imagenette2" / split / c / "a.JPEG".lower(), 1)
    return [0, 1], [0, 1], None


def eurosat(root, patch):
    for c in ("Forest", "River"):
        for n in range(5):
            paint(root / "eurosat" / "2750" / c / f"{c}_{n}.jpg", n)
    return ["Forest"] * 4 + ["River"] * 4, ["Forest", "River"], None


def tinyimagenet(root, patch):
    base = root / "tiny-imagenet-200"
    for c in ("n01443537", "n01629819"):
        paint(base / "train" / c / "images" / f"{c}_0.JPEG", 1)
        paint(base / "val" / "images" / f"val_{int(c[-1])}.JPEG", 2)
    lines = ["val_7.JPEG\tn01629819\t0\t0\t9\t9", "val_9.JPEG\tn01443537\t0\t0\t9\t9"]
    write(base / "val" / "val_annotations.txt", "\n".join(lines) + "\n")
    return ["n01443537", "n01629819"], ["n01629819", "n01443537"], None


def imagenet1k(root, patch):
    for split in ("train", "val"):
        for c in ("n01440764", "n01443537"):
            paint(root / "imagenet" / split / c / "0.JPEG", 1)
    return ["n01440764", "n01443537"], ["n01440764", "n01443537"], None


LAYOUTS = {
    "food101": food101,
    "cifar10": cifar("CIFAR10", "cifar-10-batches-py", "labels", ["data_batch_1", "data_batch_2", "test_batch"]),
    "cifar100": cifar("CIFAR100", "cifar-100-python", "fine_labels", ["train", "test"]),
    **{f.__name__: f for f in (birdsnap, sun397, cars, aircraft, voc07, dtd, pets, caltech101, flowers102)},
    **{f.__name__: f for f in (stl10, svhn, gtsrb, imagenette, eurosat, tinyimagenet, imagenet1k)},
}
ROOTED = [row for row in TASKS.values() if row.kind or row.reader]


@pytest.mark.parametrize("row", ROOTED, ids=lambda row: row.name)
def test_the_set_is_read_as_its_archive_unpacks(row, tmp_path, monkeypatch):
    train, test, held = LAYOUTS[row.name](tmp_path, monkeypatch)
    task = published_task(row.name, tmp_path)
    assert (task.name, task.metric) == (row.name, row.metric)
    assert task.train.labels.tolist() == train
    assert task.test.labels.tolist() == test
    assert (None if task.held is None else task.held.tolist()) == held
    for split in (task.train, task.test):
        assert all(split.images.read(i) is not None for i in range(len(split.images)))
    assert task.digest == published_task(row.name, tmp_path).digest


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("row", ROOTED, ids=lambda row: row.name)
def test_a_missing_set_is_named_and_nothing_is_downloaded(row, offline, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_KD_OFFLINE", str(int(offline)))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("went to the network"))
    with pytest.raises(UserError, match=r"nothing (is downloaded|lies)|no such folder|it is empty") as caught:
        published_task(row.name, tmp_path, download=offline)
    said = str(caught.value)
    assert row.name in said
    assert "\n" not in said
    for complaint in ("unknown value for argument", "unexpected keyword"):
        assert complaint not in said.lower()


@pytest.mark.parametrize("name", ["sun397", "voc07", "tinyimagenet"])
def test_readers_take_zips_as_well(name, tmp_path, monkeypatch):
    LAYOUTS[name](tmp_path / "plain", monkeypatch)
    inside = {"sun397": "SUN397", "voc07": "VOCdevkit/VOC2007", "tinyimagenet": "tiny-imagenet-200"}[name]
    plain = published_task(name, tmp_path / "plain")
    packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "plain" / inside)
    if name == "sun397":  # the folder's own name is part of the layout
        packed = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "plain")
    task = published_task(name, packed)
    assert task.train.labels.tolist() == plain.train.labels.tolist()
    np.testing.assert_array_equal(task.test.images.read(1), plain.test.images.read(1))


def test_pictures_stand_with_their_own_labels(tmp_path, monkeypatch):
    LAYOUTS["voc07"](tmp_path, monkeypatch)
    task = published_task("voc07", tmp_path)
    assert task.several
    assert task.classes == VOC_CLASSES
    for split, numbers in ((task.train, (5, 7, 9)), (task.test, (1, 2))):
        painted = [split.images.read(i).getpixel((0, 0))[0] for i in range(len(numbers))]
        assert painted == pytest.approx(numbers, abs=1)


def test_lists_that_name_absent_images_are_refused(tmp_path, monkeypatch):
    LAYOUTS["sun397"](tmp_path, monkeypatch)
    (tmp_path / "SUN397" / "a" / "abbey" / "sun_2.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 listed images are missing, first a/abbey/sun_2\.jpg"):
        published_task("sun397", tmp_path)
    (tmp_path / "SUN397" / "Training_01.txt").unlink()
    with pytest.raises(UserError, match=r"Training_01\.txt is missing"):
        published_task("sun397", tmp_path)


def test_the_table_has_the_twelve_of_kornblith_with_their_metrics():
    from torchvision import datasets

    per_class = ("aircraft", "pets", "caltech101", "flowers102")
    plain = ("food101", "cifar10", "cifar100", "birdsnap", "sun397", "cars", "dtd")
    assert {name: usual_metric(name) for name in (*per_class, *plain, "voc07")} == {
        **dict.fromkeys(per_class, "mean_per_class"),
        **dict.fromkeys(plain, "top1"),
        "voc07": "map11",
    }
    for row in TASKS.values():
        assert row.metric in METRICS_OF_TASKS
        assert not row.kind or row.kind in datasets.__all__
        assert not row.reader or row.reader in READERS
    assert usual_metric("unheard of") == "top1"


def test_labels_are_found_where_data_sets_keep_them():
    class Listed(list):
        pass

    for name, kept in {"targets": [4, 5], "_labels": [4, 5], "_samples": [("a", 4), ("b", 5)]}.items():
        data = Listed([("picture", 4), ("picture", 5)])
        setattr(data, name, kept)
        assert labels_of(data).tolist() == [4, 5]
    assert labels_of(Listed([("picture", 4), ("picture", 5)])).tolist() == [4, 5]


def test_unknown_names_give_the_nearest_and_torchvisions_own_name_is_understood(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="Did you mean"):
        published_task("CIFAR11", tmp_path)
    LAYOUTS["dtd"](tmp_path, monkeypatch)
    assert published_task("DTD", tmp_path).name == "dtd"


def test_a_configuration_may_choose_another_metric(tmp_path, monkeypatch):
    LAYOUTS["food101"](tmp_path, monkeypatch)
    entry = TaskConfig("food101", root=str(tmp_path), metric="mean_per_class")
    assert open_task(entry).metric == "mean_per_class"


def test_a_configuration_may_not_choose_the_metric_of_images_of_several_classes(tmp_path, monkeypatch):
    LAYOUTS["voc07"](tmp_path, monkeypatch)
    with pytest.raises(UserError, match="metric top1 needs one class per image"):
        open_task(TaskConfig("voc07", root=str(tmp_path), metric="top1"))
