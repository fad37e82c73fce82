"""Tasks take labels from class folders, zips, arrays and torchvision's own lists, and say what is missing."""

from __future__ import annotations

import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from eval.tasks import TASKS, ArrayTask, folder_pair, folder_task, labels_of, torchvision_task, usual_metric
from ssl_kd.errors import UserError


def fill(folder, classes=("cat", "dog"), each=2, seed=0):
    rng = np.random.default_rng(seed)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder


@pytest.fixture
def pets(tmp_path):
    fill(tmp_path / "pets" / "train", each=3)
    fill(tmp_path / "pets" / "test", seed=1)
    return tmp_path / "pets"


def test_a_folder_and_a_zip_of_it_are_one_task(pets, tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
        for path in sorted(pets.rglob("*.png")):
            archive.write(path, path.relative_to(pets))
    folder, packed = folder_task(pets), folder_task(tmp_path / "pets.zip")
    for task in (folder, packed):
        assert task.name == "pets"
        assert task.train.labels.tolist() == ["cat"] * 3 + ["dog"] * 3
        assert task.test.labels.tolist() == ["cat"] * 2 + ["dog"] * 2
    np.testing.assert_array_equal(folder.train.images.read(4), packed.train.images.read(4))


def test_val_stands_in_for_test(pets):
    (pets / "test").rename(pets / "val")
    assert len(folder_task(pets).test.images) == 4


def test_two_folders_make_a_task(pets):
    task = folder_pair(pets / "train", pets / "test", "mine", "mean_per_class")
    assert (task.name, task.metric, len(task.train.labels)) == ("mine", "mean_per_class", 6)


def test_the_digest_sees_a_picture_painted_over(pets):
    before = folder_task(pets).digest
    assert folder_task(pets).digest == before
    os.utime(pets / "test" / "dog" / "1.png", (1, 1))
    assert folder_task(pets).digest != before


def test_the_digest_sees_labels(pets):
    before = folder_task(pets).digest
    (pets / "train" / "cat").rename(pets / "train" / "ant")
    assert folder_task(pets).digest != before


def test_arrays_make_a_task():
    x, y = np.zeros((4, 8, 8, 3), np.uint8), np.array([1, 1, 2, 2])
    task = ArrayTask("mine", x, y, x[:2], y[:2])
    assert task.test.images.read(0).size == (8, 8)
    assert task.digest != ArrayTask("mine", x, y[::-1], x[:2], y[:2]).digest
    with pytest.raises(UserError, match="4 images but 3 labels"):
        ArrayTask("mine", x, y[:3], x, y)


def test_an_image_without_a_class_folder_is_named(pets):
    shutil.copy(pets / "train" / "cat" / "0.png", pets / "train" / "loose.png")
    with pytest.raises(UserError, match=r"loose.png lies in no class folder"):
        folder_task(pets)


@pytest.mark.parametrize("path", ["missing", "empty", "note.txt"])
def test_what_is_no_task_gives_one_clear_line(tmp_path, path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("hello")
    with pytest.raises(UserError, match="expected a folder train") as caught:
        folder_task(tmp_path / path)
    assert "\n" not in str(caught.value)


def test_every_row_of_the_table_names_a_torchvision_data_set():
    from torchvision import datasets

    for row in TASKS.values():
        assert row.metric in ("top1", "mean_per_class")
        assert not row.kind or row.kind in datasets.__all__
    assert usual_metric("flowers102") == "mean_per_class"
    assert usual_metric("unheard of") == "top1"


@pytest.mark.parametrize("row", [row for row in TASKS.values() if row.kind], ids=lambda row: row.name)
def test_torchvision_is_asked_for_splits_that_it_knows(row, tmp_path):
    """Nothing lies there, so each must say that the files are missing, not that the split is unknown."""
    with pytest.raises(UserError, match=r"nothing is downloaded") as caught:
        torchvision_task(row.name, tmp_path)
    for complaint in ("unknown value for argument", "unexpected keyword"):
        assert complaint not in str(caught.value).lower()


def test_torchvision_cifar_is_read_from_disk_without_a_download(tmp_path):
    import hashlib
    import pickle

    from torchvision import datasets

    folder = tmp_path / datasets.CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def batch(name):
        return write(name, {"data": rng.integers(0, 256, (3, 3072), np.uint8), "labels": [0, 1, 2]})

    train, test = [batch("data_batch_1"), batch("data_batch_2")], [batch("test_batch")]
    names = write("batches.meta", {"label_names": ["a", "b", "c"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.CIFAR10, "train_list", train)
        patch.setattr(datasets.CIFAR10, "test_list", test)
        patch.setattr(datasets.CIFAR10, "meta", {"filename": names[0], "key": "label_names", "md5": names[1]})
        task = torchvision_task("CIFAR10", tmp_path)
    assert task.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert len(task.test.images) == 3
    assert task.train.images.read(5).size == (32, 32)


def test_labels_are_found_where_data_sets_keep_them():
    class Listed(list):
        pass

    for name, kept in {"targets": [4, 5], "_labels": [4, 5], "_samples": [("a", 4), ("b", 5)]}.items():
        data = Listed([("picture", 4), ("picture", 5)])
        setattr(data, name, kept)
        assert labels_of(data).tolist() == [4, 5]
    assert labels_of(Listed([("picture", 4), ("picture", 5)])).tolist() == [4, 5]


def test_unknown_torchvision_names_give_the_nearest(tmp_path):
    with pytest.raises(UserError, match="Did you mean"):
        torchvision_task("CIFAR11", tmp_path)
