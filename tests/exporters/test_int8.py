"""Smaller copies: int8 and float16 files are judged as they were written, and the nodes that suffer stay float."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from programs import CARD, small_model, write

import ssl_kd
from ssl_kd.metrics import neighbour_overlap, shared_neighbours
from ssl_kd.models.encoder import frozen
from ssl_kd.models.preprocessing import Preprocessing

onnx = pytest.importorskip("onnx", reason="pip install 'ssl-kd[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'ssl-kd[export]'")

from ssl_kd.cli.main import main  # noqa: E402
from ssl_kd.exporters import int8  # noqa: E402
from ssl_kd.exporters.export import TARGETS  # noqa: E402
from ssl_kd.exporters.judge import Judge, _divided  # noqa: E402
from ssl_kd.exporters.pictures import pictures  # noqa: E402

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None or find_spec("nncf") is None, reason="pip install 'ssl-kd[openvino-int8]'"
)
PLAIN = {**CARD, "pixels": "plain"}


def student(folder, model=None):
    """A program as the float student: no export is needed to have an ONNX file of it."""
    path = write(folder, model or small_model(depth=3, width=16), PLAIN)
    return path, ssl_kd.load_encoder(path)


def ops(model):
    return [node.op_type for node in onnx.ModelProto.FromString(model).graph.node]


def test_no_photo_is_in_two_parts():
    for count in (60, 100, 5000):
        parts = _divided(count)
        numbers = torch.cat(list(parts.values()))
        assert len(numbers.unique()) == len(numbers) <= count
        assert min(len(part) for part in parts.values()) >= 12


def test_nothing_asked_makes_everything_int8(tmp_path):
    path, encoder = student(tmp_path)
    chosen = int8.shrink(path, Judge(encoder, pictures(80, 8), keep=0))
    assert chosen.floats == ()
    assert (chosen.nodes, ops(chosen.model).count("Conv")) == (4, 3)
    held = {t.name: t for t in onnx.ModelProto.FromString(chosen.model).graph.initializer}
    kernels = [t for name, t in held.items() if name.startswith("kernel") and len(t.dims) == 4]
    assert {t.data_type for t in kernels} == {onnx.TensorProto.INT8}
    # a scale for each of the four channels
    assert [list(t.dims) for name, t in held.items() if name == "kernel0_scale"] == [[4]]


def test_everything_asked_leaves_everything_float(tmp_path):
    path, encoder = student(tmp_path)
    judge = Judge(encoder, pictures(80, 8), keep=100)
    chosen = int8.shrink(path, judge)
    assert set(chosen.floats) == {"conv0", "conv1", "conv2", "linear"}
    assert chosen.lack <= 0
    assert judge.verdict(int8.program(chosen.model)).with_student.value == 1


def test_the_node_that_does_most_harm_is_the_first_to_stay_float(tmp_path):
    """One channel of the second layer is a thousand times larger than the others, and nothing reads it."""
    model = small_model(depth=3, width=16)
    held = {t.name: t for t in model.graph.initializer}
    second, third = (onnx.numpy_helper.to_array(held[name]).copy() for name in ("kernel1", "kernel2"))
    second[0], third[:, 0] = np.abs(second[0]) * 1000, 0
    for name, value in (("kernel1", second), ("kernel2", third)):
        held[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    path, encoder = student(tmp_path, model)
    judge = Judge(encoder, pictures(80, 8), keep=60)
    plain = Judge(encoder, pictures(80, 8), keep=0)
    whole = judge.verdict(int8.program(int8.shrink(path, plain).model))
    chosen = int8.shrink(path, judge)
    assert "conv2" in chosen.floats  # it reads the layer whose range one channel takes
    assert len(chosen.floats) < chosen.nodes
    assert not whole.met
    assert judge.verdict(int8.program(chosen.model)).met


def test_the_verdict_is_the_overlap_of_the_finished_file(tmp_path):
    path, encoder = student(tmp_path)
    (tmp_path / "teacher").mkdir()
    _, teacher = student(tmp_path / "teacher", small_model(seed=5, depth=2, width=12))
    judge = Judge(encoder, pictures(200, 8), teacher, within=5)
    ask = int8.program(int8.shrink(path, judge).model)
    verdict, part = judge.verdict(ask), judge.proof
    rows = part.rows(ask)
    assert verdict.with_student.value == pytest.approx(neighbour_overlap(rows, part.student))
    assert verdict.with_teacher.value == pytest.approx(neighbour_overlap(rows, part.teacher))
    lost = neighbour_overlap(part.student, part.teacher) - neighbour_overlap(rows, part.teacher)
    assert verdict.lost.value == pytest.approx(lost)
    assert verdict.met == (lost <= 0.05)
    assert verdict.lost.low < verdict.lost.value < verdict.lost.high
    assert verdict.chance == 10 / (len(part.photos) - 1)


def test_shared_neighbours_are_what_each_image_gives_to_the_overlap():
    rows, others = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(0))
    each = shared_neighbours(rows, others, 4)
    assert each.mean() == pytest.approx(neighbour_overlap(rows, others, 4))
    assert shared_neighbours(rows, 3 * rows, 4).tolist() == [1.0] * 30


MISTAKES = {
    "no photos": ({"images": None}, "give --images FOLDER"),
    "few photos": ({"images": torch.rand(20, 3, 32, 32)}, "at least 60 readable photos, got 20"),
    "points beyond all": ({"within": 120.0}, "points of overlap from 0 to 100, got 120"),
    "percent below none": ({"keep": -1.0}, "from 0 to 100, got -1"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_judged_is_said_before_anything_is_written(case, tmp_path):
    changes, words = MISTAKES[case]
    encoder = frozen(ssl_kd.build("resnet18", small_stem=True, channels=[8, 8, 8, 16]))
    given = {"images": torch.rand(80, 3, 32, 32)} | changes
    with pytest.raises(ssl_kd.UserError, match=words):
        ssl_kd.export(encoder, "onnx-int8", tmp_path / "out.onnx", **given)
    assert not list(tmp_path.iterdir())


def small_vit():
    torch.manual_seed(3)
    eyes = Preprocessing(interpolation="bicubic").at(32)
    args = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1}
    return frozen(ssl_kd.build("vit_tiny_patch16_224", preprocessing=eyes, **args))


def test_an_export_says_what_the_file_keeps_and_reads_back_as_an_encoder(tmp_path, capsys):
    encoder, photos = small_vit(), pictures(120, 32)
    half, small = ssl_kd.export(encoder, ["onnx-fp16", "onnx-int8"], tmp_path / "out", photos, keep=50)
    assert half.met
    assert half.verdict.with_student.value > 0.95
    assert half.verdict.smaller < 0.8  # a small network is mostly graph
    card = json.loads(small.card.read_text())
    verdict = card["measured"]["verdict"]
    assert verdict["with_student"]["value"] == small.verdict.with_student.value
    assert verdict["timings"].keys() == {"float", "onnx-int8"}
    again = ssl_kd.load_encoder(small.path)
    assert (again.feature, again.dim) == (encoder.feature, encoder.dim)
    rows = torch.cat([again(part).embedding for part in photos.split(40)])
    own = torch.cat([encoder(part).embedding for part in photos.split(40)])
    assert neighbour_overlap(rows, own) > 0.5
    assert "nodes stay float" in str(small)


def test_a_file_that_misses_the_target_is_kept_and_the_command_fails(tmp_path, capsys, monkeypatch):
    from dataclasses import replace

    photos = tmp_path / "photos"
    photos.mkdir()
    from PIL import Image

    for i, picture in enumerate(pictures(64, 32, seed=2)):
        Image.fromarray((picture.permute(1, 2, 0).numpy() * 255).astype(np.uint8)).save(photos / f"{i:02}.png")
    card = {**PLAIN, "preprocessing": {**CARD["preprocessing"], "size": 32, "resize": 32, "crop": 32}}
    path = write(tmp_path, small_model(size=32, depth=1), card)
    monkeypatch.setitem(
        TARGETS.built_in,
        "onnx-int8",
        replace(
            TARGETS["onnx-int8"],
            possible=lambda _: (),
            write=lambda encoder, to, card: to.write_bytes(path.read_bytes()),
            shrink=lambda to, judge: to.write_bytes(small_model(size=32, seed=9).SerializeToString()) and {"nodes": 1},
        ),
    )
    code = main(["export", str(path), "--to", "onnx-int8", "--images", str(photos), "--out", str(tmp_path / "o.onnx")])
    said = capsys.readouterr().out
    assert code == 1
    assert "MISSED" in said
    assert (tmp_path / "o.onnx").exists()


@needs_openvino
@pytest.mark.slow
def test_openvino_files_say_the_same_and_their_int8_form_is_judged(tmp_path):
    encoder, photos = small_vit(), pictures(120, 32)
    exact, small = ssl_kd.export(encoder, ["openvino", "openvino-int8"], tmp_path, photos, keep=50)
    assert exact.relative < 1e-4
    assert {p.name for p in tmp_path.iterdir()} == {
        f"model{kind}{end}" for kind in ("", ".int8") for end in (".xml", ".bin", ".xml.json")
    }
    assert small.met
    again = ssl_kd.load_encoder(exact.path)
    assert torch.allclose(again(photos[:3]).embedding, encoder(photos[:3]).embedding, atol=1e-3)
    ssl_kd.export(encoder, "openvino", exact.path, photos)  # over its own files
    (tmp_path / "model.bin").write_bytes(b"theirs")
    with pytest.raises(ssl_kd.UserError, match="not ours to replace"):
        ssl_kd.export(encoder, "openvino", exact.path, photos)
    assert (tmp_path / "model.bin").read_bytes() == b"theirs"
