"""Tasks take labels from class folders, zips and arrays, and say what is missing."""

from __future__ import annotations

import os
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image

from ssl_kd.data.open import open_images
from ssl_kd.errors import UserError
from ssl_kd.eval import evaluate_encoders
from ssl_kd.eval.datasets.tasks import ArrayTask, Task, corrupted, drawn_task, folder_pair, folder_task, part_of
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing


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
    Image.new("RGB", (8, 8), (1, 2, 3)).save(pets / "test" / "dog" / "1.png")
    assert folder_task(pets).digest != before


def test_the_digest_sees_labels(pets):
    before = folder_task(pets).digest
    (pets / "train" / "cat").rename(pets / "train" / "ant")
    assert folder_task(pets).digest != before


def test_a_class_folder_need_not_be_utf_8(pets):
    before = folder_task(pets).digest
    (pets / "train" / "cat").rename(os.fsdecode(os.fsencode(pets / "train") + b"/caf\xe9"))
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
    with pytest.raises(UserError, match=r"expected a folder train|missing: no such folder") as caught:
        folder_task(tmp_path / path)
    assert "\n" not in str(caught.value)


def test_a_single_folder_of_classes_is_drawn_by_a_fixed_seed(tmp_path):
    fill(tmp_path / "mine", classes=("ant", "bee", "cow"), each=7)
    images = open_images(tmp_path / "mine")
    task = drawn_task(images, "mine", 4)
    assert np.unique(task.train.labels, return_counts=True)[1].tolist() == [4, 4, 4]
    assert sorted([*task.train.images.ids, *task.test.images.ids]) == list(images.ids)
    assert drawn_task(images, "mine", 4).digest == task.digest != drawn_task(images, "mine", 4, seed=1).digest
    assert len(drawn_task(images, "mine", 0.7).train.labels) == 15
    for picture, name in zip(range(9), task.test.images.ids, strict=True):
        expected = Image.open(tmp_path / "mine" / name)
        np.testing.assert_array_equal(task.test.images.read(picture), expected)
    with pytest.raises(UserError, match="class ant has 7 images; the split needs more than 7"):
        drawn_task(images, "mine", 7)


@pytest.mark.parametrize("packed", [False, True])
def test_an_unsplit_set_of_the_literature_may_be_one_folder(tmp_path, packed):
    path = fill(tmp_path / "eurosat", each=5)
    if packed:
        path = shutil.make_archive(str(path), "zip", path)
    task = folder_task(path, "eurosat")
    assert (len(task.train.labels), len(task.test.labels)) == (8, 2)


def test_a_chosen_part_changes_with_what_it_shows(pets):
    split = folder_task(pets).train
    digests = {Task("x", part_of(split, np.array(rows)), split).digest for rows in ([0, 1, 5], [0, 1], [5, 0, 1])}
    assert len(digests) == 3
    before = Task("x", part_of(split, np.array([0])), split).digest
    Image.new("RGB", (8, 8), (1, 2, 3)).save(pets / "train" / "cat" / "0.png")
    assert Task("x", part_of(folder_task(pets).train, np.array([0])), split).digest != before


def test_the_validation_split_is_part_of_the_digest_and_of_a_corrupted_task(pets):
    task = folder_task(pets)
    held = Task("x", task.train, task.test, held=np.arange(6) > 3)
    assert held.digest != task.digest
    assert corrupted(held, "noise").held is held.held


def test_what_spoils_a_tasks_figures_is_noted():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = np.arange(12) % 4
    network = build("resnet18", channels=[8, 8, 8, 8], preprocessing=Preprocessing(size=32, resize=32, crop=32))
    same = ArrayTask("same", images, labels, images, labels)
    fewer = ArrayTask("fewer", images, labels, images[labels < 3] // 2, labels[labels < 3])
    sound = ArrayTask("sound", images, labels, images // 2, labels)
    found = evaluate_encoders({"net": network}, [same, fewer, sound], ["knn"], quiet=True)
    assert [note for note in found.notes if note.startswith(("same:", "fewer:", "sound:"))] == [
        "same: train and test are the same images, so its figures say what is remembered",
        "fewer: 1 of its classes has no test image (3); figures are of the others",
    ]


def test_a_path_is_a_task_and_a_name_an_evaluator(pets):
    network = build("resnet18", channels=[8, 8, 8, 8], preprocessing=Preprocessing(size=32, resize=32, crop=32))
    found = evaluate_encoders({"net": network}, [str(pets)], "knn", quiet=True)
    assert [(cell.task, cell.evaluator) for cell in found.cells] == [("pets", "knn/dino")]
    with pytest.raises(UserError, match="encoders: expected a mapping"):
        evaluate_encoders([network], [str(pets)], "knn")
    with pytest.raises(UserError, match="tasks: expected Tasks, or paths"):
        evaluate_encoders({"net": network}, [3], "knn")
