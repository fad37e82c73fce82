"""A certificate says what a finished file keeps, beside the student and the teacher that it came from."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import CARD, small_model, write

from ssl_kd.cli.main import main
from ssl_kd.exporters.pictures import pictures

pytest.importorskip("onnxruntime", reason="pip install 'ssl-kd[export]'")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photos, and three programs: a teacher, its student, and a file."""
    folder = tmp_path_factory.mktemp("certify")
    (folder / "photos").mkdir()
    for i, picture in enumerate(pictures(80, 16, seed=4)):
        pixels = (picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / f"{i:03}.png")
    for name, seed in (("teacher", 0), ("student", 1), ("other", 2)):
        write(folder, small_model(seed=seed, width=12), CARD, f"{name}.onnx")
    return folder


def certified(made, file, out, *more):
    words = ["certify", str(made / file), "--images", str(made / "photos"), "--student", str(made / "student.onnx")]
    return main([*words, "--out", str(out), "--quiet", "true", *more])


def test_a_file_that_is_the_student_loses_nothing(made, tmp_path, capsys):
    assert certified(made, "student.onnx", tmp_path, "--teacher", str(made / "teacher.onnx")) == 0
    record = json.loads((tmp_path / "certificate.json").read_text())
    assert (record["met"], record["lost"]["value"]) == (True, 0)
    assert record["bytes"].keys() == record["seconds per image"].keys() == {"teacher", "student", "file"}
    said = capsys.readouterr().out
    assert "lost 0.0" in said
    page = (tmp_path / "certificate.md").read_text()
    assert "## Against the teacher" in page
    assert "## Against the student" in page
    assert (tmp_path / "against_teacher" / "report.html").exists()


def test_a_file_that_loses_too_much_ends_with_one(made, tmp_path, capsys):
    """The teacher itself as the student: any other network loses nearly all."""
    words = ["certify", str(made / "other.onnx"), "--images", str(made / "photos")]
    both = ["--student", str(made / "teacher.onnx"), "--teacher", str(made / "teacher.onnx")]
    assert main([*words, *both, "--out", str(tmp_path), "--quiet", "true"]) == 1
    assert "MISSED" in capsys.readouterr().out
    assert json.loads((tmp_path / "certificate.json").read_text())["lost"]["value"] > 0.2


MISTAKES = {
    "no reference": (["--student", ""], "give --student, --teacher or both"),
    "points beyond all": (["--within", "200"], "within: expected points"),
    "no photos": (["--images", ""], "images: expected a path"),
    "an empty folder": (["--images", "empty"], "expected image files"),
    "no checkpoint": (["--file", "notes.txt"], "is not a checkpoint but text"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_certified_is_one_line(case, made, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("hello")
    more, words = MISTAKES[case]
    assert certified(made, "other.onnx", tmp_path / "out", *more) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
