"""The publisher's licence of a teacher is said wherever something that was made from it goes."""

from pathlib import Path

import pytest
import torch

import ssl_kd
from ssl_kd.checkpoints.licences import UNSTATED, non_commercial, stated, warning
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.checkpoints.zoo_entries import ZOO
from ssl_kd.eval.evaluation import facts
from ssl_kd.eval.results import Results
from ssl_kd.exporters.export import HUB, TARGETS


def tiny(licence=""):
    torch.manual_seed(0)
    encoder = ssl_kd.build("resnet18", channels=[8, 8, 8, 8]).eval()
    encoder.licence = licence
    return encoder


@pytest.mark.parametrize(
    ("licence", "bound"),
    [
        ("CC-BY-NC-4.0", True),
        ("cc-by-nc-nd-4.0", True),
        ("MIT or CC-BY-NC-4.0", True),
        ("fair-noncommercial-research-license", True),
        ("FAIR Non-Commercial Research License", True),
        ("research-only-licence", True),
        ("apache-2.0", False),
        ("DINOv3 License", False),
        ("commercial", False),
        (UNSTATED, False),
        ("", False),
    ],
)
def test_words_that_forbid_commerce_are_known(licence, bound):
    assert non_commercial(licence) is bound
    assert (licence in warning([licence])) is bound or not licence


def test_the_zoo_and_the_words_agree():
    assert all(entry.non_commercial == non_commercial(entry.licence) for entry in ZOO.values())


@pytest.mark.parametrize(
    ("given", "said"), [(None, ""), (3, ""), ("  ", ""), (["mit", "x"], "mit, x"), ("a\x1b[1mb", "a\\x1b[1mb")]
)
def test_a_licence_is_one_printable_line_or_nothing(given, said):
    assert stated(given) == said


def test_a_report_and_its_notes_say_it():
    known = facts({"teacher": tiny("CC-BY-NC-4.0"), "random": tiny()}, [])
    assert known["licence of teacher"] == "CC-BY-NC-4.0"
    assert "licence of random" not in known
    assert any("non-commercial use (CC-BY-NC-4.0)" in note for note in Results((), "", known).notes)
    assert not Results((), "", facts({"free": tiny("MIT")}, [])).notes


def test_a_students_student_still_says_it(tmp_path):
    first = save_student(tiny(), tmp_path / "a.safetensors", teacher_licence={"a": "MIT", "b": "CC-BY-NC-4.0"})
    assert ssl_kd.load_teacher(first).licence == "MIT, CC-BY-NC-4.0"
    second = save_student(tiny(), tmp_path / "b.safetensors", teacher_licence=ssl_kd.load_teacher(first).licence)
    assert ssl_kd.inspect(second).licence == "MIT, CC-BY-NC-4.0"
    assert ssl_kd.inspect(save_student(tiny(), tmp_path / "c.safetensors")).licence == UNSTATED


def stranger(form):
    """Where a form needs what is not here, or only some of our networks fit into it."""
    for package in {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino",)}.get(form.partition("-")[0], ()):
        pytest.importorskip(package)
    return ssl_kd.build("torchvision/resnet18").eval() if form == "torchvision" else tiny()


# Those that are judged on photos say it by the same card, and take minutes.
FORMS = [*(form for form, target in TARGETS.items() if not target.shrink), HUB]


@pytest.mark.parametrize(
    "form",
    [form if form in ("timm", "safetensors", "hub") else pytest.param(form, marks=pytest.mark.slow) for form in FORMS],
)
def test_whatever_is_made_of_a_student_says_it_and_so_does_what_is_read_back(form, tmp_path):
    student = save_student(stranger(form), tmp_path / "s.safetensors", teacher_licence="CC-BY-NC-4.0")
    name = "hub" if form == HUB else f"out{Path(TARGETS[form].name).suffix}"
    (done,) = ssl_kd.export(student, form, tmp_path / name)
    card = done.card.read_text()
    assert "CC-BY-NC-4.0" in card
    assert "ask before commercial use" in card
    if form not in ("torchscript", "timm", "torchvision"):  # code, and bare weights for others, whose card lies beside
        assert ssl_kd.load_encoder(done.path).licence == "CC-BY-NC-4.0"
        assert ssl_kd.inspect(done.path).licence == "CC-BY-NC-4.0"
