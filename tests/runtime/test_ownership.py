"""Every command that writes, pointed at a place full of a stranger's files with our names: not one byte is changed."""

import contextlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ssl_kd
from ssl_kd.checkpoints import zoo
from ssl_kd.cli.main import COMMANDS, main
from ssl_kd.compare.shelf import COMPARISON
from ssl_kd.distillation.target_cache import TARGETS
from ssl_kd.errors import UserError
from ssl_kd.eval.certify import FOLDER as CERTIFICATE
from ssl_kd.eval.runner.place import EVALUATION
from ssl_kd.exporters.export import TARGETS as FORMATS
from ssl_kd.exporters.hub import FOLDER as HUB
from ssl_kd.runtime.ownership import MARKER, Kind, mark, remove_ours, require_ours
from ssl_kd.runtime.run_dir import RUN
from ssl_kd.search.store import INDEX

DEAD = 2**22 + 1  # no process has this number
KEY = "0123456789abcdef"
READERS = {"inspect", "doctor", "completion"}  # commands that write nothing
HIDDEN = (".lock", ".gitignore")


def concrete(pattern):
    """A name that fits a pattern of ours."""
    return pattern.replace("[0-9a-f]" * 16, KEY).replace("*", "1")


def names_of_ours():
    """Every name that any command writes into a folder, and what killed writers of these leave."""
    plain = [name for name in COMPARISON.names if name not in ("cells", "judged", "features", "targets")]
    runs = {
        concrete(name) for name in (*RUN.names, *TARGETS.names, *INDEX.names, *HUB.names, *CERTIFICATE.names, *plain)
    }
    evaluations = {*EVALUATION.names} - {"cells", "features"} | {
        f"cells/{KEY}{KEY[:8]}.json",
        f"features/{KEY}/state.txt",
    }
    exports = {name for target in FORMATS.values() for name in (target.name, f"{target.name}.json")}
    single = {"o.npz", "t.pth.tar", "model", "model.json", "neighbours.png", "film.mkv.part", "thesis.part"}
    whole = runs | evaluations | exports | single
    left = {f"{name}.{DEAD}.part" for name in whole} | {f"t.pth.tar.{DEAD}.trial.part"}
    left |= {str(Path(name).with_name(f".{Path(name).name}.{DEAD}.part")) for name in whole}
    return whole | left | {*HIDDEN}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """A teacher, some images, a task."""
    folder = tmp_path_factory.mktemp("things")
    torch.manual_seed(1)
    small = ssl_kd.Preprocessing().at(32, 1.0)
    ssl_kd.save_student(ssl_kd.build("resnet18", preprocessing=small, channels=[8, 8, 8, 16]), folder / "w.safetensors")
    random = np.random.default_rng(0)
    np.save(folder / "i.npy", random.integers(0, 256, (20, 32, 32, 3), np.uint8))
    for split in ("train", "test"):
        for kind in ("cat", "dog"):
            (folder / "task" / split / kind).mkdir(parents=True)
            for i in range(6):
                pixels = random.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"task/{split}/{kind}/{i}.png")
    return folder


def distil(things, **more):
    given = {"teacher": things / "w.safetensors", "student": "resnet18", "student_args": "{channels: [8, 8, 8, 8]}"}
    given |= {"images": things / "i.npy", "size": 32, "epochs": 1, "batch_size": 10, "precision": "32-true"} | more
    return [str(word) for key, value in given.items() for word in (f"--{key}", value)] + ["--quiet"]


def evaluation(things, place):
    return ["eval", "--out", str(place), "--tasks", f"[{{name: t, path: {things / 'task'}}}]", "--evaluators", "[knn]",
            "--encoders", f"[{{name: a, weights: {things / 'w.safetensors'}}}]", "--report", "false", "--quiet"]  # fmt: skip


def embedding(things, out):
    return [
        "embed",
        "--weights",
        str(things / "w.safetensors"),
        "--images",
        str(things / "i.npy"),
        "--out",
        str(out),
        "--quiet",
    ]


def exporting(things, out, *formats):
    return ["export", str(things / "w.safetensors"), "--to", *formats, "--out", str(out)]


def pretraining(things, out):
    return ["pretrain", "--images", str(things / "i.npy"), "--arch", "resnet18", "--arch_args", "{channels: [8, 8, 8, 8]}",
            "--size", "32", "--epochs", "1", "--batch_size", "10", "--out", str(out), "--quiet"]  # fmt: skip


def comparing(things, out):
    task = f"[{things / 'task'}]"
    return ["compare", "--teachers", f"{{t: {things / 'w.safetensors'}}}", "--images", str(things / "i.npy"), "--tasks", task,
            "--budgets", "{short: 20}", "--seeds", "[0]", "--size", "32", "--out", str(out), "--quiet"]  # fmt: skip


# What is typed, given the things and the place; each is refused.
COMMAND_LINES = {
    "distill": lambda things, place: ["distill", *distil(things, out=place)],
    "distill --overwrite": lambda things, place: ["distill", *distil(things, out=place, overwrite="true")],
    "distill --targets": lambda things, place: [
        "distill",
        *distil(things, out=place.parent / "run", replay=1, targets=place),
    ],
    "targets": lambda things, place: ["targets", *distil(things, out=place, replay=1)],
    "targets --overwrite": lambda things, place: ["targets", *distil(things, out=place, replay=1, overwrite="true")],
    "targets --targets": lambda things, place: [
        "targets",
        *distil(things, out=place.parent / "run", replay=1, targets=place),
    ],
    "pretrain": lambda things, place: pretraining(things, place / "t.pth.tar"),
    "export": lambda things, place: exporting(things, place / "model", "timm"),
    "export to a folder": lambda things, place: exporting(things, place, "safetensors", "timm"),
    "embed": lambda things, place: embedding(things, place / "o.npz"),
    "embed --overwrite": lambda things, place: [*embedding(things, place / "o.npz"), "--overwrite"],
    "eval": lambda things, place: evaluation(things, place),
    "demo": lambda things, place: ["demo", "--out", str(place), "--quiet"],
    "compare": lambda things, place: comparing(things, place),
    "certify": lambda things, place: ["certify", "--file", str(things / "w.safetensors"), "--student",
        str(things / "w.safetensors"), "--images", str(things / "i.npy"), "--out", str(place), "--quiet"],
    "report": lambda things, place: ["report", str(place), "--out", str(place / "report.html")],
    "configs copy": lambda things, place: ["configs", "copy", "distill/four_teachers", str(place / "config.yaml")],
    "index build": lambda things, place: ["index", "build", "--weights", str(things / "w.safetensors"), "--images",
        str(things / "task"), "--out", str(place), "--quiet"],
    "index add": lambda things, place: ["index", "add", "--index", str(place), "--images", str(things / "task")],
    "index remove": lambda things, place: ["index", "remove", "--index", str(place), "train/cat/0.png"],
    "index train": lambda things, place: ["index", "train", "--index", str(place), "--factory", "Flat"],
    "search": lambda things, place: ["search", "--index", str(place), str(things / "task/train/cat/0.png")],
}  # fmt: skip
# How the stranger's folder looks, beside all the names.
FOLDERS = {
    "without a marker": {},
    "with a marker of another's": {MARKER: b"mine"},
    "with a marker that nothing vouches for": {MARKER: json.dumps({"run": ["config.yaml"], "evaluation": []}).encode()},
    "with a config of another's": {"config.yaml": b"lr: 0.1\nepochs: 3\nseed: 1\n"},
}


def snapshot(place):
    return {
        str(p.relative_to(place)): p.read_bytes() if p.is_file() else p.stat().st_mtime_ns for p in place.rglob("*")
    }


def fill(place, extra):
    for name in names_of_ours():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"mine")
    for name, content in extra.items():
        (place / name).write_bytes(content)


def test_every_command_that_writes_is_tried():
    tried = {words.split()[0] for words in COMMAND_LINES}
    assert tried | READERS | {"zoo"} == set(COMMANDS)  # the zoo writes into the cache: below


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("words", COMMAND_LINES)
def test_not_one_byte_of_a_strangers_folder_is_changed(words, folder, things, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "project"
    fill(place, FOLDERS[folder])
    before = snapshot(place)
    assert main(COMMAND_LINES[words](things, place)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    assert snapshot(place) == before
    assert [p.name for p in tmp_path.iterdir()] == ["project"]  # and nothing was begun elsewhere


@pytest.mark.parametrize("names", [("dino_deitsmall16_pretrain.pth.part",), ("dino_deitsmall16_pretrain.pth.part", "origin.json"),
                                   ("origin.json",), ("dino_deitsmall16_pretrain.pth", "origin.json")])  # fmt: skip
def test_not_one_byte_of_a_strangers_weights_is_changed(names, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror/dino_deitsmall16_pretrain.pth").write_bytes(b"weights")
    monkeypatch.setenv("SSL_KD_MIRROR", str(tmp_path / "mirror"))
    home = zoo.place(zoo.find("dino_vits16")).parent
    home.mkdir(parents=True)
    for name in names:
        (home / name).write_bytes(b"mine")
    before = snapshot(home)
    assert main(["zoo", "download", "--quiet", "dino_vits16"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert {name: content for name, content in snapshot(home).items() if not name.endswith(".lock")} == before


# Commands that write single names beside whatever else there is.
NEIGHBOURS = {
    "pretrain": lambda things, place: pretraining(things, place / "teacher.pth.tar"),
    "export": lambda things, place: exporting(things, place / "network", "timm"),
    "embed": lambda things, place: embedding(things, place / "features.npz"),
    "eval": lambda things, place: evaluation(things, place),
}


@pytest.mark.parametrize("words", NEIGHBOURS)
def test_neighbours_of_what_is_written_stay_as_they_are_and_ours_can_be_written_again(
    words, things, tmp_path, monkeypatch
):
    monkeypatch.setenv("SSL_KD_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "project"
    fill(place, {})
    for path in (*place.glob("*results.*"), *place.glob("*report.html*"), *place.glob("*facts.json*")):
        path.unlink()
    for name in ("cells", "features"):
        shutil.rmtree(place / name)
    before = snapshot(place)
    again = ["--overwrite"] if words == "embed" else []
    assert main(NEIGHBOURS[words](things, place)) == 0
    assert main([*NEIGHBOURS[words](things, place), *again]) == 0
    after = snapshot(place)
    assert {name: after.get(name) for name, content in before.items() if isinstance(content, bytes)} == {
        name: content for name, content in before.items() if isinstance(content, bytes)
    }
    assert len(after) > len(before)


def test_a_folder_serves_a_run_and_its_evaluation(things, tmp_path):
    run = tmp_path / "run"
    assert main(["distill", *distil(things, out=run)]) == 0
    assert main(evaluation(things, run)) == 0
    assert json.loads((run / MARKER).read_text()).keys() == {"run", "evaluation", "check"}
    assert main(["distill", *distil(things, out=run)]) == 0
    assert main(["distill", *distil(things, out=run, overwrite="true", epochs=2)]) == 0
    assert (run / "results.jsonl").exists()  # overwriting a run leaves what an evaluation wrote


@pytest.mark.parametrize("left", ["results.jsonl", "cells", "features"])
def test_an_evaluation_of_an_older_version_goes_on(left, things, tmp_path):
    assert main(evaluation(things, tmp_path / "e")) == 0
    for path in (tmp_path / "e").iterdir():
        if path.name != left:
            os.rename(path, tmp_path / path.name)
    assert main(evaluation(things, tmp_path / "e")) == 0
    assert (tmp_path / "e/results.md").exists()


# ------------------------------------------------------------------------------------------------- the marker itself

BOX = Kind("box", "out", "a box", ("a.txt", "deep/*.bin"), lambda folder: (folder / "old").exists())


def test_a_missing_and_an_empty_folder_may_be_taken(tmp_path):
    require_ours(tmp_path / "new", BOX)
    assert not (tmp_path / "new").exists()
    require_ours(tmp_path, BOX)
    (tmp_path / ".DS_Store").write_bytes(b"")
    require_ours(tmp_path, BOX)
    assert os.listdir(tmp_path) == [".DS_Store"]


def test_what_is_marked_is_ours_and_alone_is_removed(tmp_path):
    mark(tmp_path, BOX)
    for name in ("a.txt", "b.txt", "deep/x.bin", "deep/x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    require_ours(tmp_path, BOX)
    remove_ours(tmp_path, BOX)
    assert sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")) == [MARKER, "b.txt", "deep", "deep/x.txt"]


def test_an_older_folder_is_taken_by_its_content(tmp_path):
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match=r"out: .*not a box .it holds a\.txt.; choose another"):
        require_ours(tmp_path, BOX)
    (tmp_path / "old").write_text("")
    require_ours(tmp_path, BOX)


@pytest.mark.parametrize("at", range(0, 60, 3))
def test_no_flipped_bit_makes_a_marker_say_more(at, tmp_path):
    mark(tmp_path, BOX)
    (tmp_path / "b.txt").write_text("mine")
    data = bytearray((tmp_path / MARKER).read_bytes())
    data[at] ^= 1
    (tmp_path / MARKER).write_bytes(data)
    with contextlib.suppress(UserError):
        require_ours(tmp_path, BOX)
        remove_ours(tmp_path, BOX)
    assert (tmp_path / "b.txt").exists()


def taken(place):
    require_ours(place, BOX)
    mark(place, BOX)


def test_a_folder_that_is_a_file_or_a_link_in_a_circle_is_one_line(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for place in (tmp_path / "file", tmp_path / "circle", tmp_path / "file/below"):
        with pytest.raises(UserError) as caught:
            taken(place)
        assert "\n" not in str(caught.value)
    assert (tmp_path / "file").read_text() == "mine"
