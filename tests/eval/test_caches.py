"""Whatever eval/ writes and reads back: damage is computed anew and never another figure, and other pictures are other answers."""

from __future__ import annotations

import json
import os
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_kd.checkpoints.saving import save_student
from ssl_kd.data.open import open_images
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.data.sources.decode import THIS_TIME, UnreadableError
from ssl_kd.data.subset import Subset
from ssl_kd.errors import ImagesError, UserError
from ssl_kd.eval.banks import FeatureBank, load_bank
from ssl_kd.eval.datasets.tasks import Split, Task, by_class_folder
from ssl_kd.eval.evaluation import evaluate, evaluate_encoders
from ssl_kd.eval.evaluators.ann_index import open_index
from ssl_kd.eval.extraction import feature_cache, versions
from ssl_kd.eval.extraction.feature_cache import FeatureStore
from ssl_kd.eval.runner import cell_cache
from ssl_kd.eval.runner.config import EvalConfig
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing

SIZE = 16


def network(seed=0):
    torch.manual_seed(seed)
    return build("test_resnet", preprocessing=Preprocessing(size=32, resize=32, crop=32))


def picture(seed):
    return np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)


def folder_of(path, count=6, seed=0):
    """<class>/<i>.bmp: every file of one size, every picture another."""
    for i in range(count):
        place = path / ("cat", "dog")[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(seed + i)).save(place / f"{i:02d}.bmp")
    return path


def config(lab, out, **more):
    given = {"evaluators": ["knn", "retrieval/top1000"], "index": "IVF2,Flat nprobe=2", "report": False} | more
    return EvalConfig(str(out), [{"name": "t", "path": str(lab / "t")}], [str(lab / "a.safetensors")], **given)


@pytest.fixture
def lab(tmp_path):
    save_student(network(), tmp_path / "a.safetensors")
    folder_of(tmp_path / "t" / "train", 12)
    folder_of(tmp_path / "t" / "test", 6, seed=100)
    return tmp_path


def flip(path, other):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_last(path, other):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)


def cut(path, other):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path, other):
    path.write_bytes(b"")


def delete(path, other):
    path.unlink()


def swap(path, other):
    shutil.copy(other, path)


KINDS = ("features/*/features.npy", "features/*/kept.npy", "features/*/state.json", "features/*.faiss", "cells/*.npz")


def rows_of(results):
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in results.rows]


def _slow(*rest):
    return [pytest.param(one, marks=pytest.mark.slow) for one in rest]


@pytest.mark.parametrize("harm", [flip, cut, *_slow(flip_last, empty, delete, swap)], ids=lambda harm: harm.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_damage_of_any_file_is_computed_anew(lab, kind, harm):
    out = lab / "out"
    first = evaluate(config(lab, out), quiet=True)
    folder_of(lab / "u" / "train", 12, seed=500)
    folder_of(lab / "u" / "test", 12, seed=600)  # as many as there, so that their files differ in content alone
    evaluate(EvalConfig(**{**vars(config(lab, lab / "other")), "tasks": [str(lab / "u")]}), quiet=True)
    paths = sorted(out.glob(kind))
    assert paths
    if not kind.startswith("cells"):
        shutil.rmtree(out / "cells")
    for path, other in zip(paths, sorted((lab / "other").glob(kind)), strict=False):
        harm(path, other)
    assert rows_of(evaluate(config(lab, out), quiet=True)) == rows_of(first)


def test_every_kind_of_file_that_is_read_back_is_in_the_table(lab):
    evaluate(config(lab, lab / "out"), quiet=True)
    written = {p for p in (lab / "out").rglob("*") if p.is_file() and p.name != "lock"}
    known = {p for kind in KINDS for p in (lab / "out").glob(kind)}
    never_read = {lab / "out" / f"results.{end}" for end in ("jsonl", "csv", "md", "tex")} | {
        lab / "out" / "facts.json",
        lab / "out" / "results.npz",  # read by `ssl-kd report`, which refuses a damaged one: tests/cli/test_report.py
        lab / "out" / ".ssl_kd.json",  # what is ours in the folder; read by the commands that write
    }
    assert written == known | never_read


def test_a_bank_that_was_swapped_whole_is_not_taken_for_the_other(tmp_path):
    store, one, two = FeatureStore(tmp_path), ArrayImages(np.stack([picture(i) for i in range(4)])), None
    two = ArrayImages(np.stack([picture(i) for i in range(10, 14)]))
    own = np.array(store.bank(network(), one, quiet=True).features)
    (first,) = tmp_path.iterdir()
    store.bank(network(), two, quiet=True)
    (second,) = set(tmp_path.iterdir()) - {first}
    for name in ("features.npy", "kept.npy", "state.json"):
        shutil.copy(second / name, first / name)
    np.testing.assert_array_equal(store.bank(network(), one, quiet=True).features, own)


def test_no_bit_of_a_cell_or_a_bank_file_can_flip_unseen(lab):
    evaluate(config(lab, lab / "out", evaluators=["knn"], index=""), quiet=True)
    (path,) = (lab / "out" / "cells").glob("*.npz")
    good = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(good), 200).tolist():
        harmed = bytearray(good)
        harmed[place // 8] ^= 1 << place % 8
        path.write_bytes(harmed)
        assert cell_cache.load_cell(path.parent, path.stem) is None
    bank = FeatureBank(np.eye(6, 3, dtype=np.float32), [0, 1] * 3, list("abcdef"), "k", [0, 1] * 3)
    path = bank.save(lab / "bank.npz")
    good = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(good), 400).tolist():
        harmed = bytearray(good)
        harmed[place // 8] ^= 1 << place % 8
        path.write_bytes(harmed)
        try:
            found = load_bank(path)
        except UserError:
            continue
        np.testing.assert_array_equal(found.features, bank.features)
        assert (found.labels.tolist(), list(found.ids), found.held.tolist()) == ([0, 1] * 3, list("abcdef"), [0, 1] * 3)


def test_a_note_never_outlives_its_rows(tmp_path, monkeypatch):
    """Killed while a bank is made anew: what the note vouched for is gone, and the note says so."""
    images, store = ArrayImages(np.stack([picture(i) for i in range(4)])), FeatureStore(tmp_path)
    whole = np.array(store.bank(network(), images, quiet=True).features)
    (shelf,) = tmp_path.iterdir()
    (shelf / "kept.npy").unlink()

    def killed(*_):
        raise SystemExit  # before a row is written, and without the last note

    with monkeypatch.context() as during:
        during.setattr(feature_cache._Writer, "add", killed)
        during.setattr(feature_cache._Writer, "note", lambda *_: None)
        with pytest.raises(SystemExit):
            store.bank(network(), images, quiet=True)
    state = json.loads((shelf / "state.json").read_text())
    assert (state["images"], state["done"]) == (0, False)
    np.testing.assert_array_equal(store.bank(network(), images, quiet=True).features, whole)


def test_a_bank_made_anew_leaves_those_who_read_the_old_one_alone(tmp_path):
    store = FeatureStore(tmp_path)
    old = store.bank(network(), flaky({3}), quiet=True)
    rows = np.array(old.features)
    assert len(store.bank(network(), flaky(()), quiet=True)) == 8
    np.testing.assert_array_equal(old.features, rows)  # a file cut under its map would end this process


def as_folder(path):
    return open_images(path)


def as_zip(path):
    with zipfile.ZipFile(f"{path}.zip", "w") as archive:
        for file in sorted(path.rglob("*.bmp")):
            archive.write(file, file.relative_to(path))
    return open_images(f"{path}.zip")


def as_array(path):
    return ArrayImages(np.stack([np.asarray(Image.open(file)) for file in sorted(path.rglob("*.bmp"))]))


def replaced(path):
    Image.fromarray(picture(77)).save(path / "cat" / "02.bmp")


def repainted(path):
    """Some bytes in place: the file keeps its name and its size."""
    with open(path / "cat" / "02.bmp", "r+b") as file:
        file.seek(200)
        file.write(b"\x07" * 300)


def added(path):
    Image.fromarray(picture(78)).save(path / "dog" / "99.bmp")


def removed(path):
    (path / "cat" / "02.bmp").unlink()


@pytest.mark.parametrize("change", [replaced, repainted, added, removed], ids=lambda change: change.__name__)
@pytest.mark.parametrize("source", [as_folder, *_slow(as_zip, as_array)], ids=lambda source: source.__name__)
@pytest.mark.parametrize("cache", ["features", "cells"])
def test_other_pictures_are_other_answers(tmp_path, source, change, cache):
    """Each cache alone answers as a fresh folder does."""

    def bank(out):
        store = FeatureStore(out)
        return np.array(store.bank(network(), source(tmp_path / "test"), quiet=True).features)

    def cells(out):
        images = source(tmp_path / "test")
        task = Task(
            "t",
            by_class_folder(open_images(tmp_path / "train")),
            Split(images, [["cat", "dog"][i % 2] for i in range(len(images))]),
        )
        found = evaluate_encoders({"a": network()}, [task], ["knn", "retrieval"], quiet=True, out=out)
        return [row["value"] for row in found.rows] + [found.cells[0].scores.predicted[1].tolist()]

    ask = bank if cache == "features" else cells
    folder_of(tmp_path / "train", 12, seed=30)
    folder_of(tmp_path / "test", 6)
    before = ask(tmp_path / "kept")
    np.testing.assert_array_equal(np.array(before, object), np.array(ask(tmp_path / "kept"), object))
    change(tmp_path / "test")
    after, fresh = ask(tmp_path / "kept"), ask(tmp_path / "fresh")
    np.testing.assert_array_equal(np.array(after, object), np.array(fresh, object))
    if cache == "features":
        assert len(after) != len(before) or not np.array_equal(after, before)
    else:
        assert len(list((tmp_path / "kept" / "cells").iterdir())) == 4  # the old ones and the new


@pytest.mark.parametrize("program", ["ssl-kd", "torch", "torchvision", "timm", "pillow", "faiss-cpu"])
def test_another_version_is_another_answer_and_says_so(lab, monkeypatch, program):
    def files():
        return {p: p.stat().st_mtime_ns for kind in KINDS for p in (lab / "out").glob(kind)}

    first = evaluate(config(lab, lab / "out", evaluators=["knn"], index="", report=True), quiet=True)
    before, version = files(), versions.installed
    monkeypatch.setattr(versions, "installed", lambda name: "9.9.9" if name == program else version(name))
    again = evaluate(config(lab, lab / "out", evaluators=["knn"], index="", report=True), quiet=True)
    new = [path for path in files() if path not in before]
    assert [path.suffix for path in new if path.parent.name == "cells"] == [".npz"]
    assert bool([path for path in new if path.name == "features.npy"]) == (program != "faiss-cpu")
    assert f"{program} 9.9.9" in again.rows[0]["programs"]
    assert f"{program} 9.9.9" not in first.rows[0]["programs"]
    assert f"{program} 9.9.9" in (lab / "out" / "report.html").read_text()
    assert f"{program} 9.9.9" in json.loads((lab / "out" / "facts.json").read_text())["facts"]["programs"]


def hidden(path):
    """A file that cannot be read for a moment: its content is away, its place is the same."""
    content, times = path.read_bytes(), os.stat(path)
    path.write_bytes(b"x" * len(content))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return content, times


class Flaky(ArrayImages):
    """Pictures of which some cannot be read as long as they are `away`."""

    away: frozenset[int] = frozenset()

    def _load(self, i, shorter):
        from ssl_kd.data.sources.decode import UnreadableError

        if i in self.away:
            raise UnreadableError("locked by another program")
        return super()._load(i, shorter)


def flaky(away, count=8, seed=0, allowed=0.5):
    images = Flaky(np.stack([picture(seed + i) for i in range(count)]), allowed)
    images.away = frozenset(away)
    return images


def task_of(away):
    return Task("t", Split(flaky(away), np.arange(8) % 2), Split(flaky((), seed=50), np.arange(8) % 2))


def test_a_picture_that_was_away_is_tried_again_before_a_bank_without_it_is_served(tmp_path):
    store = FeatureStore(tmp_path)
    assert len(store.bank(network(), flaky({3}), quiet=True)) == 7
    assert len(store.bank(network(), flaky({3}), quiet=True)) == 7
    assert len(store.bank(network(), flaky(()), quiet=True)) == 8


def test_and_before_a_cell_without_it_is_served(tmp_path):
    def run(away):
        return evaluate_encoders({"a": network()}, [task_of(away)], ["knn"], quiet=True, out=tmp_path).cells[0]

    lacking = run({3})
    assert any("1 of 8 train images of t are left out for a" in note for note in lacking.scores.notes)
    assert lacking.scores.details["bank"] == 7
    assert run({3}).scores.details["bank"] == 7
    whole = run(())
    assert whole.scores.details["bank"] == 8
    assert not any("left out" in note for note in whole.scores.notes)


def test_too_many_unreadable_pictures_stay_too_many_however_often_one_asks(tmp_path):
    for _ in range(5):
        with pytest.raises(ImagesError, match="are unreadable"):
            FeatureStore(tmp_path).bank(network(), flaky({1, 3, 5, 7}, allowed=0.3), quiet=True, batch_size=2)


def test_an_index_of_another_bank_is_not_taken(tmp_path):
    rng = np.random.default_rng(0)
    banks = [rng.normal(size=(60, 8)).astype(np.float32) for _ in range(2)]
    own = open_index(banks[0], "IVF2,Flat nprobe=2", tmp_path)(banks[0][:5], 3)[1]
    (first,) = tmp_path.glob("*.faiss")
    open_index(banks[1], "IVF2,Flat nprobe=2", tmp_path)
    (second,) = set(tmp_path.glob("*.faiss")) - {first}
    shutil.copy(second, first)
    np.testing.assert_array_equal(open_index(banks[0], "IVF2,Flat nprobe=2", tmp_path)(banks[0][:5], 3)[1], own)


class Locked(ArrayImages):
    """Pictures of which one cannot be read while another program holds it."""

    held = True

    def _load(self, i, shorter):
        if i == 1 and self.held:
            raise UnreadableError(f"{THIS_TIME}locked")
        return super()._load(i, shorter)


@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("kept", ["cells", "features"])
def test_a_running_process_too_tries_a_picture_again_that_was_locked(part, kept, tmp_path):
    """In the same process, where the source remembers what it could not read; also behind a part of the source."""
    pixels = np.stack([picture(i) for i in range(8)])
    whole = Locked(pixels, max_unreadable=0.5)
    source = Subset(whole, np.arange(1, 8)) if part else whole
    task = Task("t", Split(source, np.arange(len(source)) % 2), Split(ArrayImages(255 - pixels), np.arange(8) % 2))
    where = {"out": tmp_path / "out"} if kept == "cells" else {"features": tmp_path / "features"}
    missing = len(source) - 1

    def rows():
        found = evaluate_encoders({"net": network()}, [task], ["knn"], quiet=True, **where)
        return any("left out" in note for cell in found.cells for note in cell.scores.notes)

    assert rows()
    assert rows()
    assert len(source) - len(source.unreadable) == missing
    whole.held = False
    assert not rows()
    assert not rows()
    assert not source.unreadable
