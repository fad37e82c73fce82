"""An evaluation from a configuration: every cell once, resumed where it stopped, and one clear line for bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from ssl_kd.checkpoints.saving import save_student
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.errors import UserError
from ssl_kd.eval.cli import main
from ssl_kd.eval.datasets.tasks import ArrayTask, Split, Task
from ssl_kd.eval.evaluation import evaluate, evaluate_encoders
from ssl_kd.eval.evaluators.registry import EVALUATORS
from ssl_kd.eval.runner import cells
from ssl_kd.eval.runner.build import random_like
from ssl_kd.eval.runner.config import EvalConfig
from ssl_kd.models.encoder import Encoder, build
from ssl_kd.models.preprocessing import Preprocessing

SIZE = 16


class Colours(nn.Module):
    """Mean colour of each quarter: separates images by hue without any training."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(12))
        self.noise = noise

    def forward(self, x):
        pooled = nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
        wobble = torch.sin(1e4 * pooled.sum(1, keepdim=True) * torch.arange(1, 13))
        return (1 - self.noise) * pooled * self.scale + self.noise * wobble


def encoder(noise=0.0):
    pre = Preprocessing((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), SIZE, SIZE, SIZE)
    return Encoder.from_module(Colours(noise), 12, pre)


def network(seed=0):
    torch.manual_seed(seed)
    return build("test_resnet", preprocessing=Preprocessing(size=32, resize=32, crop=32))


def pictures(n, seed=0, classes=3):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    base = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])[labels]
    return (base[:, None, None] + rng.integers(-50, 50, (n, SIZE, SIZE, 3))).clip(0, 255).astype(np.uint8), labels


def task(name="hues", seed=0, train=90, test=60):
    return ArrayTask(name, *pictures(train, seed), *pictures(test, seed + 1))


def small(seed=0):
    return task(seed=seed, train=24, test=12)


def test_python_entry_gives_every_cell_with_its_share():
    encoders = {"teacher": encoder(), "student": encoder(0.9)}
    results = evaluate_encoders(encoders, [task(), task("again", 5)], ["knn", "linear/quick-lbfgs"], quiet=True)
    assert len(results.cells) == 8
    assert results.value("teacher", "hues") == 1.0
    assert results.headline("teacher", "hues", "linear")["share_kept"] == 1.0
    row = results.headline("student", "again", "knn")
    assert row["share_kept"] == pytest.approx(row["value"] / results.value("teacher", "again"))
    assert row["share_low"] <= row["share_kept"] <= row["share_high"]
    assert row["low"] <= row["value"] <= row["high"]
    assert (row["parameters"], row["width"], row["n"], row["k"]) == (12, 12, 60, 20)
    assert row["images_per_second"] > 0
    assert "hues" in results.markdown()


def test_results_are_the_same_in_every_form(tmp_path):
    results = evaluate_encoders({"a": encoder(), "b": encoder(0.5)}, [task()], ["knn"], quiet=True, out=tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    table = list(csv.DictReader(io.StringIO((tmp_path / "results.csv").read_text())))
    assert len(lines) == len(table) == len(results.rows)
    for line, row, record in zip(lines, table, results.rows, strict=True):
        assert line["value"] == float(row["value"]) == record["value"]
        assert line["encoder"] == row["encoder"]
    assert sum(row["headline"] for row in results.rows) == 2
    text = (tmp_path / "results.md").read_text()
    assert f"{100 * results.value('b', 'hues'):.1f}" in text
    assert "clamped to the 90 rows" in text
    latex = (tmp_path / "results.tex").read_text()
    assert latex.count(r"\\") == 3  # header and two encoders
    assert r"knn/dino \%" in latex
    assert r"$\pm$" in latex


def test_retrieval_and_comparisons_with_the_reference_are_cells_too(tmp_path):
    evaluators = ["retrieval", "asymmetric/top1000", "agreement"]
    encoders = {"a": network(), "b": network(1)}
    results = evaluate_encoders(encoders, [small()], evaluators, quiet=True, out=tmp_path)
    assert results.value("a", "hues", "agreement") == 1.0
    assert 0 < results.value("b", "hues", "agreement") < 1
    assert results.value("a", "hues", "asymmetric") == results.value("a", "hues", "retrieval")
    row = results.headline("b", "hues", "retrieval")
    assert row["metric"] == "map"
    assert row["share_low"] <= row["share_kept"] <= row["share_high"]
    again = evaluate_encoders(encoders, [small()], evaluators, quiet=True, out=tmp_path)
    assert again.rows == results.rows
    kept = len(list((tmp_path / "cells").iterdir()))
    evaluate_encoders(encoders, [small()], ["agreement"], reference="b", quiet=True, out=tmp_path)
    assert len(list((tmp_path / "cells").iterdir())) == kept + 2


def test_every_evaluator_of_the_table_runs_and_comes_back_from_disk(tmp_path):
    encoders, tasks = {"a": network(), "b": network(1)}, [task(train=60, test=30)]
    first = evaluate_encoders(encoders, tasks, list(EVALUATORS), quiet=True, out=tmp_path)
    assert {cell.scores.evaluator for cell in first.cells} == set(EVALUATORS)
    for kind in EVALUATORS:
        headline = first.headline("b", "hues", kind)
        assert headline["low"] <= headline["value"] <= headline["high"]
        assert (headline["share_kept"] is None) == (kind in ("calibration", "cka"))
    again = evaluate_encoders(encoders, tasks, list(EVALUATORS), quiet=True, out=tmp_path)
    assert again.jsonl() == first.jsonl()


def test_a_finished_cell_is_not_computed_again(tmp_path, monkeypatch):
    encoders = {"a": network(), "b": network(1)}
    first = evaluate_encoders(encoders, [small()], ["knn"], quiet=True, out=tmp_path)

    def never(*_, **__):
        raise AssertionError("read images for a finished cell")

    monkeypatch.setattr(cells, "make_banks", never)
    again = evaluate_encoders(encoders, [small()], ["knn"], quiet=True, out=tmp_path)
    assert again.rows == first.rows
    assert again.cells[0].scores.details == first.cells[0].scores.details
    for changed in ({"encoders": {"a": network(2)}}, {"tasks": [small(9)]}, {"evaluators": ["knn/plain"]}):
        settings = {"encoders": encoders, "tasks": [small()], "evaluators": ["knn"], **changed}
        with pytest.raises(AssertionError, match="finished cell"):
            evaluate_encoders(**settings, quiet=True, out=tmp_path)


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
    whole, made = cells.make_banks, []

    def breaks_at_the_second(name, *rest):
        made.append(name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return whole(name, *rest)

    monkeypatch.setattr(cells, "make_banks", breaks_at_the_second)
    encoders = {"a": network(), "b": network(1)}
    with pytest.raises(KeyboardInterrupt):
        evaluate_encoders(encoders, [small()], ["knn"], quiet=True, out=tmp_path)
    evaluate_encoders(encoders, [small()], ["knn"], quiet=True, out=tmp_path)
    assert made == ["a", "b", "b"]


def test_a_damaged_cell_is_computed_anew(tmp_path):
    first = evaluate_encoders({"a": network()}, [small()], ["knn"], quiet=True, out=tmp_path)
    (cell,) = (tmp_path / "cells").iterdir()
    cell.write_bytes(cell.read_bytes()[:200])
    again = evaluate_encoders({"a": network()}, [small()], ["knn"], quiet=True, out=tmp_path)
    assert [row["value"] for row in again.rows] == [row["value"] for row in first.rows]


def test_a_module_from_python_is_computed_each_time(tmp_path):
    """Its code has no digest: a kept cell could be stale."""
    first = evaluate_encoders({"a": encoder()}, [task()], ["knn"], quiet=True, out=tmp_path)
    second = evaluate_encoders({"a": encoder(0.99)}, [task()], ["knn"], quiet=True, out=tmp_path)
    assert second.value("a", "hues") < first.value("a", "hues")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder task and a student file, as a person would have them."""
    home = tmp_path_factory.mktemp("lab")
    for split, n, seed in (("train", 24, 0), ("test", 12, 1)):
        for i, (pixels, label) in enumerate(zip(*pictures(n, seed), strict=True)):
            folder = home / "hues" / split / f"hue{label}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"{i}.png")
    torch.manual_seed(0)
    pre = Preprocessing(size=32, resize=32, crop=32)
    save_student(build("test_resnet", preprocessing=pre), home / "student.safetensors")
    return home


def config(lab, tmp_path, **changes):
    settings = {
        "out": str(tmp_path / "out"),
        "tasks": [{"path": str(lab / "hues")}],
        "encoders": [
            {"name": "student", "weights": str(lab / "student.safetensors")},
            {"name": "random", "like": "student", "seed": 3},
        ],
        "evaluators": ["knn", "linear/quick-lbfgs"],
        "quiet": True,
        **changes,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    return str(tmp_path / "config.yaml")


def test_the_command_line_runs_a_configuration(lab, tmp_path, capsys):
    assert main([config(lab, tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "student" in printed
    assert "results.md" in printed
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {row["encoder"] for row in rows} == {"student", "random"}
    assert {row["task"] for row in rows} == {"hues"}
    text = (tmp_path / "out" / "report.html").read_text()
    assert text.count("data:image/jpeg") == 3 * (1 + 2 * 5)  # classes x query and neighbours of two encoders
    assert str(lab / "student.safetensors") in text


def test_new_evaluators_read_the_features_that_are_there(lab, tmp_path, monkeypatch):
    assert main([config(lab, tmp_path), "--evaluators", "[knn]"]) == 0
    monkeypatch.setattr(Encoder, "embeddings", None)  # a network that is asked again fails
    assert main([config(lab, tmp_path), "--evaluators", "[knn, knn/plain]"]) == 0
    with pytest.raises(TypeError):
        main([config(lab, tmp_path), "--out", str(tmp_path / "elsewhere"), "--evaluators", "[knn]"])


def test_a_corrupted_task_is_another_task(lab, tmp_path):
    path = str(lab / "hues")
    assert main([config(lab, tmp_path, tasks=[{"path": path}, {"path": path, "corrupt": "noise", "severity": 5}])]) == 0
    text = (tmp_path / "out" / "results.csv").read_text()
    assert "hues + noise 5,student" in text
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 8


def test_settings_on_the_command_line_win(lab, tmp_path):
    assert main([config(lab, tmp_path), "--out", str(tmp_path / "other"), "--evaluators", "[knn]"]) == 0
    assert not (tmp_path / "out").exists()
    assert "linear" not in (tmp_path / "other" / "results.csv").read_text()


def test_a_random_row_is_the_same_network_with_other_weights():
    student = network()
    one, same, other = random_like(student, 1), random_like(student, 1), random_like(student, 2)
    assert one.digest == same.digest
    assert len({one.digest, other.digest, student.digest}) == 3
    assert (one.arch, one.dim, one.preprocessing) == (student.arch, student.dim, student.preprocessing)


def test_a_size_changes_what_the_network_sees(lab, tmp_path):
    entry = {"name": "student", "weights": str(lab / "student.safetensors")}
    plain = EvalConfig(str(tmp_path / "a"), [str(lab / "hues")], [entry], ["knn"], quiet=True)
    larger = EvalConfig(str(tmp_path / "b"), plain.tasks, [{**entry, "size": 48, "crop_ratio": 1.0}], ["knn"])
    names = [cell.name for out in (plain, larger) for cell in _cells_after(out)]
    assert len(set(names)) == 2


def test_an_engine_or_precision_of_choice_has_cells_and_features_of_its_own_and_bf16_says_so(lab, tmp_path):
    out, kept = str(tmp_path / "out"), []
    for changes in ({}, {"engine": "eager"}, {"engine": "eager", "precision": "bf16-mixed"}):
        settings = EvalConfig(out, [str(lab / "hues")], [str(lab / "student.safetensors")], ["knn"], report=False)
        results = evaluate(replace(settings, **changes), quiet=True)
        kept.append(tuple(len(list((tmp_path / "out" / part).iterdir())) for part in ("cells", "features")))
        assert (
            results.facts["features"]
            == f"{changes.get('precision', '32-true')}, engine {changes.get('engine', 'folded')}"
        )
        assert ("features at bf16-mixed" in results.markdown()) == ("precision" in changes)
    assert kept == [(1, 2), (2, 4), (3, 6)]


def test_an_approximate_index_is_kept_beside_the_features_and_its_recall_beside_the_figures(lab, tmp_path):
    settings = EvalConfig(
        str(tmp_path), [str(lab / "hues")], [str(lab / "student.safetensors")], ["retrieval/top1000"], report=False
    )
    exact = evaluate(settings, quiet=True)
    approximate = evaluate(replace(settings, index="IVF2,Flat nprobe=2"), quiet=True)
    assert [row["value"] for row in approximate.rows] == pytest.approx([row["value"] for row in exact.rows], abs=1e-3)
    assert approximate.cells[0].scores.protocol == "top1000@IVF2,Flat nprobe=2"
    assert "finds 100.0 % of 1" in approximate.markdown()
    assert len(list((tmp_path / "features").glob("*.faiss"))) == 1


def _cells_after(settings):
    evaluate(settings, quiet=True)
    return list((Path(settings.out) / "cells").iterdir())


BAD = {
    "unknown key": ({"evaluatrs": ["knn"]}, "no setting 'evaluatrs'. Did you mean evaluators"),
    "unknown key of a task": ({"tasks": [{"pth": "x"}]}, "no setting 'pth'; known: name, path.* Did you mean path"),
    "unknown key of an encoder": (
        {"encoders": [{"weigths": "x"}]},
        r"encoders\[0\]: no setting 'weigths'.*Did you mean weights",
    ),
    "no tasks": ({"tasks": []}, "tasks: expected a list with at least one entry"),
    "no encoders": ({"encoders": []}, "encoders: expected a list"),
    "missing task": ({"tasks": ["/nowhere/at/all"]}, "/nowhere/at/all"),
    "missing weights": ({"encoders": ["/nowhere/student.safetensors"]}, "no such file"),
    "unknown evaluator": ({"evaluators": ["lineer"]}, "Did you mean linear"),
    "unknown protocol": ({"evaluators": ["knn/dinov3"]}, "Did you mean dino"),
    "unknown reference": ({"reference": "studnet"}, "Did you mean student"),
    "unknown like": ({"encoders": [{"like": "teacher"}]}, "like: 'teacher' is no encoder"),
    "weights and like": ({"encoders": [{"weights": "x", "like": "y"}]}, "either weights"),
    "wrong type": ({"encoders": [{"weights": "x", "size": "big"}]}, r"encoders\[0\]\.size: expected int"),
    "wrong metric": ({"tasks": [{"path": "x", "metric": "f1"}]}, "top1 or mean_per_class"),
    "double name": ({"tasks": ["a/x", "b/x"]}, "two entries are called 'x'"),
    "unknown corruption": ({"tasks": [{"path": "HUES", "corrupt": "blurr"}]}, "Did you mean blur"),
    "wrong severity": ({"tasks": [{"path": "HUES", "corrupt": "blur", "severity": 9}]}, "severity is 1 to 5, got 9"),
    "wrong precision": ({"precision": "fp16"}, "32-true or bf16-mixed"),
    "wrong engine": ({"engine": "foldd"}, "engine: expected one of .* Did you mean folded"),
    "unreadable index": (
        {"evaluators": ["retrieval/top1000"], "index": "IVF4,Flt"},
        "index 'IVF4,Flt': faiss does not",
    ),
    "index for nobody": ({"index": "IVF4,Flat"}, "serves retrieval/top1000 and asymmetric/top1000; neither"),
    "wrong device": ({"device": "gpuu"}, "device: expected cpu or cuda, got 'gpuu'"),
    "weights and supervised": ({"encoders": [{"weights": "x", "supervised": "y"}]}, "or supervised"),
    "ood of an unknown task": ({"ood": [["hues", "hue"]]}, r"ood\[0\]: expected one of hues; got 'hue'. Did you mean"),
    "ood of one task": ({"ood": [["hues", "hues"]]}, "two tasks' names"),
    "ood as an evaluator": ({"evaluators": ["ood"]}, "give them as ood:"),
    "no workers": ({"workers": 0}, "workers: expected at least 1"),
    "workers without a cache": ({"workers": 2, "cache": "none"}, "share features through the cache"),
    "unknown map": ({"maps": ["tsnee"]}, "maps: expected some of pca, tsne, umap"),
    "seed below zero": ({"seed": -1}, "seed: expected a whole number from 0"),
    "seed that torch cannot take": ({"seed": 2**64}, "seed: expected a whole number from 0"),
    "seed of a row that torch cannot take": (
        {"encoders": [{"like": "x", "seed": 10**20}]},
        "encoder random x: seed: exp",
    ),
    "seed of a checkpoint": ({"encoders": [{"weights": "x", "seed": 1}]}, "encoder x: seed says nothing without like"),
    "feature of a random row": (
        {"encoders": ["x", {"like": "x", "size": 64, "feature": "nope"}]},
        "encoder random x: feature says nothing without weights",
    ),
    "severity of nothing": ({"tasks": [{"path": "x", "severity": 77}]}, "severity says nothing without corrupt"),
    "download of a folder": ({"tasks": [{"path": "x", "download": True}]}, "download says nothing without root"),
    "device of another kind": ({"device": "meta"}, "device: expected cpu or cuda, got 'meta'"),
    "cache that is a file": (
        {"cache": "HUES/../student.safetensors"},
        "features: .* cannot be made a folder: File exists",
    ),
    "cache where no folder can be": ({"cache": "/proc/x"}, "features: /proc/x cannot be made a folder"),
    "no batch": ({"batch_size": 0}, "batch_size: expected at least 1"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_settings_give_one_line_exit_code_two_and_no_folder(lab, tmp_path, capsys, kind):
    changes, says = BAD[kind]
    changes = yaml.safe_load(yaml.safe_dump(changes).replace("HUES", str(lab / "hues")))
    assert main([config(lab, tmp_path, **changes)]) == 2
    complaint = capsys.readouterr().err.strip()
    assert len(complaint.splitlines()) == 1
    assert re.search(says, complaint), complaint
    assert not (tmp_path / "out").exists()


def test_an_out_that_is_a_file_is_refused(lab, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    assert main([config(lab, tmp_path, out=str(tmp_path / "taken"))]) == 2
    assert "cannot be made a folder" in capsys.readouterr().err
    assert (tmp_path / "taken").read_text() == "mine"


def test_cells_that_are_a_file_are_refused_before_the_work(lab, tmp_path, capsys, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cells").write_text("mine")
    monkeypatch.setattr(cells, "make_banks", None)
    assert main([config(lab, tmp_path)]) == 2
    assert "not an evaluation's folder (it holds cells)" in capsys.readouterr().err
    assert (tmp_path / "out" / "cells").read_text() == "mine"


def test_an_evaluator_spelt_twice_is_one(lab, tmp_path):
    found = evaluate_encoders({"a": encoder()}, [task()], ["knn", "knn/dino", "knn"], quiet=True)
    assert len(found.cells) == 1
    assert main([config(lab, tmp_path), "--evaluators", "[knn, knn/dino]", "--report", "false"]) == 0
    rows = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    assert len(set(rows)) == len(rows) > 0


def test_class_folders_need_not_be_utf_8(lab, tmp_path):
    shutil.copytree(lab / "hues", tmp_path / "hues")
    for split in ("train", "test"):
        (tmp_path / "hues" / split / "hue0").rename(os.fsdecode(os.fsencode(tmp_path / "hues" / split) + b"/hu\xe9"))
    assert main([config(lab, tmp_path, tasks=[str(tmp_path / "hues")], evaluators=["knn"])]) == 0
    assert "hu\\udce9" in (tmp_path / "out" / "report.html").read_text()


def test_ctrl_c_is_one_line_and_exit_code_130(lab, tmp_path, capsys, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(cells, "make_banks", stopped)
    assert main([config(lab, tmp_path)]) == 130
    assert "the same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["/nowhere.yaml"], ["--nothing", "1"]])
def test_a_wrong_command_line_gives_one_line(argv, capsys):
    assert main(argv) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_help_wakes_no_torch():
    code = "import sys; from ssl_kd.eval.cli import main\ntry: main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--evaluators" in out.stdout
    assert out.stdout.strip().endswith("False")


def test_python_entry_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match="Did you mean"):
        evaluate_encoders({"teacher": encoder()}, [task()], ["knn"], reference="techer", quiet=True)
    with pytest.raises(UserError, match="at least one"):
        evaluate_encoders({}, [task()], quiet=True)
    for settings, says in (
        ({"ood": [("hues", "zz")]}, r"ood\[0\]: expected one of hues"),
        ({"device": "foo"}, "device: expected cpu or cuda"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"engine": "foldd"}, "Did you mean folded"),
        ({"seed": -1}, "seed: expected"),
        ({"features": "/proc/x"}, "features: /proc/x cannot be made a folder"),
    ):
        with pytest.raises(UserError, match=says):
            evaluate_encoders({"a": encoder()}, [task()], ["knn"], quiet=True, **settings)


def test_a_feature_cache_may_be_given_as_words(tmp_path):
    home = str(tmp_path / "features")
    evaluate_encoders({"a": network()}, [small()], ["retrieval/top1000@Flat"], quiet=True, features=home)
    assert len(list(Path(home).glob("*.faiss"))) == 1


def test_strangers_are_rows_of_their_own(lab, tmp_path):
    path = str(lab / "hues")
    tasks = [{"path": path}, {"name": "noisy", "path": path, "corrupt": "noise", "severity": 5}]
    title = "noisy + noise 5"
    assert main([config(lab, tmp_path, tasks=tasks, ood=[["hues", title], [title, "hues"]])]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    found = [row for row in rows if row["evaluator"] == "ood"]
    assert [row["task"] for row in found] == [f"hues vs {title}"] * 2 + [f"{title} vs hues"] * 2
    for row in found:
        assert row["low"] <= row["value"] <= row["high"]
        assert row["share_kept"] is None  # half of it is chance
        assert 0 <= row["p"] <= 1
        assert (row["metric"], row["protocol"], row["headline"], row["n"]) == ("auroc", "knn50", True, 24)
    text = (tmp_path / "out" / "results.md").read_text()
    assert "(AUROC)" in text


def several(seed=0):
    """Pictures with one to three coloured quarters, and which of the colours they show."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 60, (40, SIZE, SIZE, 3), np.uint8), np.where(rng.random((40, 3)) < 0.5, 1, -1)
    for image, row in zip(images, labels, strict=True):
        for c in np.flatnonzero(row > 0):
            image[: SIZE // 2, : SIZE // 2, c] += 150
    return Split(ArrayImages(images, name=f"several {seed}"), labels.astype(np.int8))


def test_images_of_several_classes_are_judged_by_who_can(tmp_path):
    split = several()
    voc = Task("voc", split, several(1), "map11", np.arange(40) >= 30, ("red", "green", "blue"))
    encoders = {"a": encoder(), "b": encoder(0.9)}
    found = evaluate_encoders(encoders, [task(), voc], ["knn", "linear/quick-lbfgs", "linear/moco-linear"], quiet=True)
    assert len(found.cells) == 8
    assert found.value("a", "voc", "linear") > 0.95
    row = found.headline("b", "voc", "linear")
    assert (row["metric"], row["n"]) == ("map11", 40)
    assert row["share_low"] <= row["share_kept"] <= row["share_high"]
    assert [note.split(":")[1] for note in found.notes if "left out" in note] == [
        " voc, knn/dino",
        " voc, linear/moco-linear",
    ]
    assert found.cells[-1].scores.classes.tolist() == ["red", "green", "blue"]
    with pytest.raises(UserError, match="nothing to do: voc, knn/dino: it needs one class per image"):
        evaluate_encoders(encoders, [voc], ["knn"], quiet=True)


def test_a_supervised_row_says_so(lab, tmp_path):
    source = str(lab / "student.safetensors")
    assert main([config(lab, tmp_path, encoders=[source, {"supervised": source}], evaluators=["knn"])]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert {row["encoder"] for row in rows} == {"student", "supervised student"}


def test_every_pair_of_encoders_is_compared():
    encoders = {"a": encoder(), "b": encoder(0.9), "c": encoder(0.97)}
    found = evaluate_encoders(encoders, [task()], ["knn"], quiet=True)
    pairs = {(row["first"], row["second"]): row for row in found.comparisons()}
    assert list(pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    headline = found.headline("b", "hues")
    assert (pairs["a", "b"]["share"], pairs["a", "b"]["p"]) == (headline["share_kept"], headline["p"])
    assert pairs["b", "c"]["share"] == pytest.approx(found.value("c", "hues") / found.value("b", "hues"))


def test_tables_survive_names_that_their_format_would_read(tmp_path):
    names = {"50% & more_{x}": encoder(), "a|b\\c~^#$": encoder(0.9), "[x]": encoder(0.5)}
    found = evaluate_encoders(names, [task("[a] #1")], ["knn"], quiet=True)
    latex = found.latex()
    body = latex[latex.index(r"\toprule") :].replace(r"\\", "\n")
    bare = re.sub(
        r"\\(?:textbackslash|textasciitilde|textasciicircum|toprule|midrule|bottomrule)|\\[&%$#_{}]", "", body
    )
    assert not re.search(r"[%#_~^]", bare)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    lines = [line for line in re.sub(r"\\&", "", body).split("\n") if "&" in line]
    assert {line.count("&") for line in lines} == {5}
    assert not any(line.strip().startswith("[") for line in lines)
    rows = [line for line in found.markdown().splitlines() if line.startswith("|")]
    assert len(rows) == 5
    for line in rows:
        assert len(re.findall(r"(?<!\\)\|", line)) == 7


@pytest.mark.slow
def test_latex_compiles(tmp_path):
    if shutil.which("pdflatex") is None:
        pytest.skip("needs pdflatex with booktabs")
    found = evaluate_encoders(
        {"50% & more_{x}": encoder(), "a|b\\c~^#$": encoder(0.9)}, [task("[a] <1>")], ["knn"], quiet=True
    )
    text = r"\documentclass{article}\usepackage{booktabs}\begin{document}" + "\n" + found.latex() + r"\end{document}"
    (tmp_path / "x.tex").write_text(text)
    done = subprocess.run(
        ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "x.tex"], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-800:]
    assert (tmp_path / "x.pdf").stat().st_size > 1000
