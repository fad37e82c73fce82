"""A certificate says what a finished file keeps, beside the student and the teacher that it came from."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import CARD, small_model, write

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.eval.certify import Certificate, CertifyConfig, _at_learned_size, certify
from ssl_kd.eval.certify import main as certify_main
from ssl_kd.exporters.pictures import pictures
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.runtime.timing import Timing

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


@pytest.fixture(scope="module")
def network(made):
    """A student that can be built anew, of the small programs' width and pixels."""
    student = ssl_kd.build("resnet18", small_stem=True, channels=[4, 4, 4, 12]).eval()
    student.preprocessing = Preprocessing(size=8, resize=9, crop=8)
    ssl_kd.save_student(student, made / "student.safetensors")
    return made / "student.safetensors"


@pytest.mark.slow
def test_a_program_stands_beside_the_student_in_floats_by_its_own_engine(made, network, tmp_path):
    asked = []

    def float_form(student, file, folder):
        asked.append((student.dim, file.name))
        return write(folder, small_model(width=12), CARD, "floats.onnx")

    config = CertifyConfig(
        file=str(made / "other.onnx"),
        images=str(made / "photos"),
        student=str(network),
        teacher=str(made / "teacher.onnx"),
        out=str(tmp_path),
        quiet=True,
    )
    found = certify(config, float_form)
    assert asked == [(12, "other.onnx")]
    assert found.engines == {
        "teacher": "onnxruntime",
        "student": "PyTorch",
        "student in floats": "onnxruntime",
        "file": "onnxruntime",
    }
    assert found.sizes.keys() == found.timings.keys() == found.engines.keys()
    assert "of the student in floats" in found.lines()[-1]
    assert {cell.encoder for cell in found.tables["teacher"].cells} == {"teacher", "student", "file", "random"}
    assert json.loads((tmp_path / "certificate.json").read_text())["student"]["share"] == found.student.share


@pytest.mark.slow
def test_without_a_float_form_times_of_other_engines_are_said_not_to_compare(made, network, tmp_path, capsys):
    words = [str(made / "other.onnx"), "--images", str(made / "photos"), "--student", str(network)]
    assert certify_main([*words, "--out", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert "student and file ran by other engines" in told.out
    assert "Against the student:\n" in told.err  # before the figures of a pass, as they come


TIMES = {
    "quicker": (0.5, "the file is 2.0 times as quick, 0.50 ms against 1.00 ms"),
    "alike": (1.0, "the file is not clearly quicker here"),
    "slower": (2.0, "the file is slower here"),
}


@pytest.mark.parametrize("case", TIMES)
def test_a_certificate_says_whether_the_file_is_quicker_than_floats(case):
    taken, words = TIMES[case]
    times = {
        name: Timing(ms / 1e3, 0.9 * ms / 1e3, 1.1 * ms / 1e3, 60)
        for name, ms in (("file", taken), ("student in floats", 1.0))
    }
    found = Certificate({}, {}, times, dict.fromkeys(times, "onnxruntime"), "a machine", 2, 2.0, None)
    assert found.lines()[-1].startswith(words)


@pytest.mark.slow
def test_a_file_of_a_student_at_chance_is_said_to_be_of_no_use(made, network, tmp_path, capsys):
    """The student of no training at all: its own random row is as good."""
    words = [str(made / "other.onnx"), "--images", str(made / "photos"), "--student", str(network)]
    words += ["--teacher", str(made / "teacher.onnx"), "--within", "100", "--out", str(tmp_path), "--quiet", "true"]
    assert certify_main(words) == 1  # of no use, though nothing is lost
    said = capsys.readouterr().out
    assert "a random network (" in said
    assert "so there was nothing to lose" in said
    assert "Next: ssl-kd distill" in said


@pytest.mark.slow
def test_a_teacher_may_be_a_bare_file_with_its_size(made, tmp_path, capsys):
    import torch

    teacher = ssl_kd.build("resnet18", channels=[4, 4, 4, 12])
    torch.save(teacher.backbone.state_dict(), tmp_path / "bare.pth")
    words = [str(made / "other.onnx"), "--images", str(made / "photos"), "--student", str(made / "student.onnx")]
    spec = f"path: {tmp_path / 'bare.pth'}, arch: resnet18, arch_args: {{channels: [4, 4, 4, 12]}}, mean: 0.5, std: 0.5"
    words += ["--within", "100", "--out", str(tmp_path / "out"), "--quiet", "true"]
    assert certify_main([*words, "--teacher", f"{{{spec}, size: 32}}"]) in (0, 1)
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["bytes"].keys() >= {"teacher", "file"}
    assert certify_main([*words, "--teacher", f"{{{spec}, sise: 32}}"]) == 2
    said = capsys.readouterr().err
    assert "teacher" in said
    assert "Did you mean size" in said


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


def test_a_teacher_is_judged_at_the_size_that_its_student_learned_it_at(made, tmp_path, capsys):
    teacher = ssl_kd.build("resnet18", channels=[4, 4, 4, 12], preprocessing=Preprocessing().at(32))
    ssl_kd.save_student(teacher, tmp_path / "teacher.safetensors")
    origin = ssl_kd.load_teacher(tmp_path / "teacher.safetensors").origin
    student = ssl_kd.build("resnet18", channels=[4, 4, 4, 12], preprocessing=Preprocessing().at(16))
    student.origin = f"distilled from {origin}"
    place = ssl_kd.save_student(student, tmp_path / "student.safetensors")
    words = [str(place), "--images", str(made / "photos"), "--student", str(place), "--out", str(tmp_path / "out")]
    file = str(tmp_path / "teacher.safetensors")
    assert certify_main([*words, "--teacher", file, "--quiet", "true"]) in (0, 1)
    line = "the teacher is judged at 16 px, where its student learned it; with size: 32 in --teacher"
    assert line in capsys.readouterr().out
    assert line in (tmp_path / "out" / "certificate.md").read_text()
    config, said = _at_learned_size(CertifyConfig(student=str(place), teacher={"path": file, "size": 32}))
    assert (config.teacher["size"], said) == (32, "")
