"""Where a name stands, an object may: evaluators, protocols, tasks and own features, each with its place in the record."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.errors import UserError
from ssl_kd.eval.banks import FeatureBank
from ssl_kd.eval.datasets.tasks import ArrayTask, Split, Task, by_class_folder
from ssl_kd.eval.evaluation import evaluate, evaluate_encoders, settings_text
from ssl_kd.eval.evaluators.calibration import Calibration
from ssl_kd.eval.evaluators.choices import choices
from ssl_kd.eval.evaluators.few_shot import PROTOCOLS as FEW
from ssl_kd.eval.evaluators.few_shot import FewShotProtocol
from ssl_kd.eval.evaluators.knn import KNN, KNNProtocol
from ssl_kd.eval.evaluators.linear_probe import LBFGS_PROTOCOLS, LinearProbe, LinearProtocol
from ssl_kd.eval.evaluators.retrieval import PROTOCOLS as RETRIEVALS
from ssl_kd.eval.evaluators.retrieval import Agreement, Retrieval, RetrievalProtocol
from ssl_kd.eval.evaluators.robustness import PROTOCOLS as DAMAGES
from ssl_kd.eval.evaluators.robustness import Damage
from ssl_kd.eval.extraction.extract import extract
from ssl_kd.eval.metrics import Score, Scores
from ssl_kd.eval.runner.config import EvalConfig
from ssl_kd.models.encoder import build
from ssl_kd.models.preprocessing import Preprocessing

QUICK = LinearProtocol("two-strengths", (0.1, 1.0), 0.2)
NEAR = KNNProtocol("near", (1, 3), 3)


def network(seed=0):
    torch.manual_seed(seed)
    return build("test_resnet", preprocessing=Preprocessing(size=32, resize=32, crop=32))


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    base = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])[labels]
    return (base[:, None, None] + rng.integers(-50, 50, (n, 16, 16, 3))).clip(0, 255).astype(np.uint8), labels


def task(name="hues", seed=0, train=30, test=15):
    return ArrayTask(name, *pictures(train, seed), *pictures(test, seed + 1))


class Majority:
    """A stranger's evaluator: guesses the most frequent class."""

    def __call__(self, train, test):
        values, counts = np.unique(train.labels, return_counts=True)
        right = np.asarray(test.labels) == values[counts.argmax()]
        row = Score("agreeable", float(right.mean()), 0.0, 1.0, len(test))
        return Scores("whatever", "it says", (row,), values, np.zeros(len(test), int), {})


class Keyed(Majority):
    """The same with a name of its own for all that decides its figures."""

    name = "keyed"

    def key(self):
        return "majority of train, version 2"


def majority(train, test):
    return Majority()(train, test)


OBJECTS = {  # what may stand in `evaluators`: its column, and whether its cells are kept
    "a protocol of k-NN": (NEAR, "knn/near", True),
    "a linear protocol": (QUICK, "linear/two-strengths", True),
    "a linear protocol for calibration": (("calibration", QUICK), "calibration/two-strengths", True),
    "a retrieval protocol": (
        RetrievalProtocol(**{**vars(RETRIEVALS["full"]), "name": "whole"}),
        "retrieval/whole",
        True,
    ),
    "a few-shot protocol": (FewShotProtocol(**{**vars(FEW["shots"]), "name": "few"}), "fewshot/few", True),
    "a kind of damage": (Damage(**{**vars(DAMAGES["label-noise"]), "name": "noise"}), "robustness/noise", True),
    "k-NN": (KNN("plain"), "knn/plain", True),
    "a probe of one strength": (LinearProbe("quick-lbfgs", strength=1.0), "linear/quick-lbfgs", True),
    "a calibration": (Calibration(QUICK), "calibration/two-strengths", True),
    "retrieval": (Retrieval("full"), "retrieval/full", True),
    "agreement": (Agreement((1,)), "agreement/neighbours", True),
    "a stranger's object": (Majority(), "majority/own", False),
    "a stranger's function": (majority, "majority/own", False),
    "a stranger's object under a name": (("most/frequent", Majority()), "most/frequent", False),
    "a stranger's object with a key": (Keyed(), "keyed/own", True),
}


@pytest.mark.parametrize("what", OBJECTS)
def test_an_object_is_a_column_as_a_name_is(what, tmp_path):
    given, title, kept = OBJECTS[what]
    encoders = {"a": network(), "b": network(1)}
    found = evaluate_encoders(encoders, [task()], ["knn/dino", given], quiet=True, out=tmp_path)
    assert [cell.evaluator for cell in found.cells] == ["knn/dino", title] * 2
    headline = found.headline("b", "hues", title)
    assert headline["low"] <= headline["value"] <= headline["high"]
    assert "b" in found.markdown()
    assert len(list((tmp_path / "cells").iterdir())) == (4 if kept else 2)
    record = json.loads((tmp_path / "facts.json").read_text())["facts"][f"evaluator {title}"]
    assert ("test_eval_objects" in record) == ("stranger" in what)
    again = evaluate_encoders(encoders, [task()], ["knn/dino", given], quiet=True, out=tmp_path)
    if kept:
        assert again.jsonl() == found.jsonl()
    assert [row["value"] for row in again.rows] == [row["value"] for row in found.rows]


def test_an_own_protocol_gives_what_its_evaluator_gives():
    encoder, mine = network(), task()
    found = evaluate_encoders({"a": encoder}, [mine], [NEAR], quiet=True)
    train, test = (extract(encoder, part.images, part.labels, quiet=True) for part in (mine.train, mine.test))
    assert found.value("a", "hues", "knn", k=3) == KNN(NEAR)(train, test).value(k=3)


def test_two_constants_under_one_name_are_not_one_cell(tmp_path):
    values = []
    for strength in (1e-6, 1e4):
        probe = LinearProbe("quick-lbfgs", strength=strength)
        values.append(evaluate_encoders({"a": network()}, [task()], [probe], quiet=True, out=tmp_path).cells[0])
    assert [cell.scores.details["strength"] for cell in values] == [1e-6, 1e4]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([3], "expected a name, a protocol or an evaluator"),
        ([KNN], "expected a name, a protocol or an evaluator"),
        ([["knn", "dino"]], "expected a name, a protocol or an evaluator"),
        ([("conjuring", NEAR)], "expected a name, a protocol or an evaluator"),
        (["knn", KNN("dino")], "two are called 'knn/dino'"),
        ([Majority(), majority], "two are called 'majority/own'"),
        ([lambda train, test: 0.5], "expected Scores with at least one row"),
    ],
)
def test_what_is_no_evaluator_is_refused_in_one_line(given, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate_encoders({"a": network()}, [task()], given, quiet=True)
    assert "\n" not in str(caught.value)


def test_names_are_taken_once_however_they_are_spelt():
    assert [one.title for one in choices(["knn", "knn/dino", "linear"])] == ["knn/dino", "linear/simclr-lbfgs"]


def test_a_task_of_arrays_lists_and_data_sets():
    images, labels = pictures(12)

    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, i):
            return Image.fromarray(images[i]), int(labels[i])

    expected = evaluate_encoders({"a": network()}, [task(train=12, test=12)], ["knn/plain"], quiet=True).value(
        "a", "hues"
    )
    train = Split(*pictures(12, 0))
    for test in (
        Split(pictures(12, 1)[0], pictures(12, 1)[1].tolist()),
        Split(ArrayImages(pictures(12, 1)[0]), labels),
    ):
        found = evaluate_encoders({"a": network()}, [Task("hues", train, test)], ["knn/plain"], quiet=True)
        assert found.value("a", "hues") == expected
    assert len(Split(Rows(), labels).images) == 12
    with pytest.raises(UserError, match="12 images but 11 labels"):
        Split(images, labels[:11])


@pytest.fixture
def own():
    """The features of a network, as somebody else would have them: without its network."""
    encoder, mine = network(3), task()
    return [np.array(extract(encoder, part.images, quiet=True).features) for part in (mine.train, mine.test)]


def test_own_features_are_a_row_beside_encoders(own, tmp_path):
    encoders = {"a": network(), "same": network(3), "mine": {"hues": own}}
    names = ["knn", "linear/quick-lbfgs", "retrieval", "agreement", "asymmetric"]
    found = evaluate_encoders(encoders, [task()], names, quiet=True, out=tmp_path)
    for name in names:
        figures = [found.headline(one, "hues", name.split("/")[0]) for one in ("same", "mine")]
        assert figures[0]["value"] == pytest.approx(figures[1]["value"])
        assert figures[0]["p"] == pytest.approx(figures[1]["p"], nan_ok=True)
    row = found.headline("mine", "hues")
    assert (row["parameters"], row["images_per_second"], row["width"]) == (None, None, own[0].shape[1])
    assert "digest" in json.loads((tmp_path / "facts.json").read_text())["facts"]["encoder mine"]
    again = evaluate_encoders(encoders, [task()], names, quiet=True, out=tmp_path)
    assert again.jsonl() == found.jsonl()
    changed = {**encoders, "mine": {"hues": [own[0], own[1] + 1]}}
    other = evaluate_encoders(changed, [task()], names, quiet=True, out=tmp_path)
    assert other.headline("mine", "hues")["value"] != found.headline("mine", "hues")["value"] or len(
        list((tmp_path / "cells").iterdir())
    ) > len(found.cells)


def test_own_features_may_stand_first_and_alone(own):
    found = evaluate_encoders(
        {"mine": {"hues": {"train": own[0], "test": own[1]}}}, [task()], ["knn", "linear"], quiet=True
    )
    assert found.headline("mine", "hues")["share_kept"] == 1
    assert "own features" not in found.markdown().split("\n")[0]


@pytest.fixture
def lab(own, tmp_path):
    """A task in folders, with the files that people would have of it."""
    for split, (images, labels) in (("train", pictures(30)), ("test", pictures(15, 1))):
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = tmp_path / "hues" / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{i:03d}.png")
    return tmp_path


def banks_of(lab):
    from ssl_kd.data.open import open_images

    parts = [open_images(lab / "hues" / split) for split in ("train", "test")]
    return [extract(network(3), images, quiet=True) for images in parts], parts


@pytest.mark.parametrize("form", ["two files", "two arrays in files", "one file of both", "shuffled"])
def test_a_configuration_takes_files_of_features(lab, form):
    from ssl_kd.data.open import open_images

    (train, test), _ = banks_of(lab)
    if form == "two files":
        given = {"train": str(train.save(lab / "train.npz")), "test": str(test.save(lab / "test.npz"))}
    elif form == "two arrays in files":
        np.save(lab / "train.npy", train.features)
        np.save(lab / "test.npy", test.features)
        given = {"train": str(lab / "train.npy"), "test": str(lab / "test.npy")}
    elif form == "shuffled":
        order = np.random.default_rng(0).permutation(len(test))
        given = {"train": str(train.save(lab / "train.npz")), "test": str(test.rows(order).save(lab / "test.npz"))}
    else:
        given = str(extract(network(3), open_images(lab / "hues"), quiet=True).save(lab / "hues.npz"))
    config = EvalConfig(str(lab / "out"), [str(lab / "hues")], [{"name": "mine", "features": {"hues": given}}], ["knn"])
    found = evaluate(config, quiet=True)
    whole = [by_class_folder(open_images(lab / "hues" / split)) for split in ("train", "test")]
    expected = [FeatureBank(bank.features, part.labels) for bank, part in zip((train, test), whole, strict=True)]
    assert found.value("mine", "hues") == pytest.approx(KNN("dino")(*expected).value(k=20))
    assert "mine" in (lab / "out" / "report.html").read_text()


def test_images_without_a_row_are_counted_in_the_notes(lab):
    (train, test), _ = banks_of(lab)
    from ssl_kd.eval.datasets.tasks import folder_task

    given = {"mine": {"hues": (train.rows(np.arange(len(train)) > 1), test)}}
    (cell,) = evaluate_encoders(given, [folder_task(lab / "hues")], ["knn"], quiet=True).cells
    assert any("2 of 30 train images of hues are left out for mine" in note for note in cell.scores.notes)


def wrong_rows(own):
    return {"hues": (own[0][:-1], own[1])}


WRONG = {
    "no features of task 'hues', only of tones": lambda own: {"tones": own},
    "29 rows for 30 images": wrong_rows,
    "expected a train and a test bank, got 3 parts": lambda own: {"hues": (*own, own[0])},
    "expected train and test, got train": lambda own: {"hues": {"train": own[0]}},
    "is no image of the task": lambda own: {"hues": (FeatureBank(own[0], None, [f"x{i}" for i in range(30)]), own[1])},
    "stand there twice": lambda own: {"hues": (FeatureBank(own[0], None, ["1"] * 30), own[1])},
    "its labels are not the task's": lambda own: {"hues": (FeatureBank(own[0], np.arange(30) // 10), own[1])},
    "one bank for both splits needs ids": lambda own: {"hues": own[0]},
    "expected floats of shape": lambda own: {"hues": (own[0][:, 0], own[1])},
    "no such feature file": lambda own: {"hues": ("gone.npz", "gone.npz")},
    "expected a mapping of tasks": lambda own: {},
}


@pytest.mark.parametrize("message", WRONG)
def test_features_that_cannot_be_the_tasks_are_refused_in_one_line(own, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate_encoders({"mine": WRONG[message](own)}, [task()], ["knn"], quiet=True)
    assert "\n" not in str(caught.value)


def test_what_is_no_encoder_is_refused_with_the_way_to_wrap_it():
    with pytest.raises(UserError, match=r"Encoder.from_module wraps a network"):
        evaluate_encoders({"a": torch.nn.Flatten()}, [task()], ["knn"], quiet=True)


def test_a_configuration_from_python_takes_objects(lab):
    encoders = [{"name": "mine", "features": {"tones": [np.eye(12, dtype=np.float32), np.eye(12, dtype=np.float32)]}}]
    config = EvalConfig(str(lab / "out"), [task("tones", train=12, test=12)], encoders, [KNN(NEAR), "knn"])
    found = evaluate(config, quiet=True)
    assert [cell.evaluator for cell in found.cells] == ["knn/near", "knn/dino"]
    text = settings_text(config)
    assert "KNNProtocol(name='near'" in text
    assert "near" in (lab / "out" / "report.html").read_text()
    with pytest.raises(UserError, match=r"workers: knn/near is code of your own.* take workers: 1"):
        evaluate(EvalConfig(**{**vars(config), "workers": 2}), quiet=True)


def test_every_linear_protocol_may_be_given_to_several_classes_or_says_why():
    labels = np.where(np.eye(3)[np.arange(12) % 3] > 0, 1, -1)
    several = Task(
        "many", Split(pictures(12)[0], labels), Split(pictures(12, 1)[0], labels), "map11", classes=("a", "b", "c")
    )
    quick = LBFGS_PROTOCOLS["quick-lbfgs"]
    found = evaluate_encoders({"a": network()}, [several], [quick, KNN("plain")], quiet=True)
    assert [cell.metric for cell in found.cells] == ["map11"]
    assert any("many, knn/plain: it needs one class per image" in note for note in found.notes)


@pytest.mark.parametrize("version", ["1.0", "1.1", ""])
def test_a_packages_evaluator_is_kept_under_its_version_and_one_of_no_package_is_not(version, monkeypatch, tmp_path):
    from types import SimpleNamespace

    from ssl_kd.eval.evaluators.registry import EVALUATORS, Kind

    kind = Kind("own", str, lambda protocol, given: Majority())
    monkeypatch.setitem(EVALUATORS._loaded if version else EVALUATORS._added, "theirs", kind)
    points = [SimpleNamespace(dist=SimpleNamespace(name="theirs", version=version))] if version else []
    monkeypatch.setattr(EVALUATORS, "_offers", {"theirs": points} if version else {})
    (choice,) = choices(["theirs"])
    assert (choice.kept, choice.record.endswith(f"theirs {version}")) == (bool(version), bool(version))
    evaluate_encoders({"a": network()}, [task()], ["theirs"], quiet=True, out=tmp_path)
    assert len(list((tmp_path / "cells").iterdir())) == bool(version)
