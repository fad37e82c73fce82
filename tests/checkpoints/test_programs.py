"""Programs as Encoders: an ONNX file of anybody's, with its card, answers as its graph says; unsafe ones never run."""

import copy
import json

import numpy as np
import pytest
import torch
from programs import CARD, small_model, write

import ssl_kd
from ssl_kd.checkpoints.programs import LARGEST

onnx = pytest.importorskip("onnx", reason="pip install 'ssl-kd[export]'")
pytest.importorskip("onnxruntime", reason="pip install 'ssl-kd[export]'")

PLAIN = {**CARD, "pixels": "plain"}


def by_hand(model, images):
    """The small model in torch."""
    from onnx import numpy_helper

    held = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in model.graph.initializer}
    x = torch.nn.functional.conv2d(images, held["kernel0"], padding=1).relu()
    return x.mean((2, 3)) @ held["linear"]


@pytest.mark.parametrize("batch", ["batch", 1, 3])
@pytest.mark.parametrize("card", [CARD, PLAIN], ids=["normalised outside", "normalised inside"])
def test_a_program_answers_as_its_graph_says_on_the_pixels_of_its_card(card, batch, tmp_path):
    model = small_model(batch)
    encoder = ssl_kd.load_encoder(write(tmp_path, model, card))
    images = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    seen = (images - 0.5) / 0.25 if card is CARD else images
    assert torch.allclose(encoder(images).embedding, by_hand(model, seen), atol=1e-5)
    assert (encoder.dim, encoder.parameter_count, encoder.preprocessing.resize) == (6, 4 * 27 + 24, 9)
    assert torch.equal(copy.deepcopy(encoder)(images).embedding, encoder(images).embedding)


def test_the_digest_is_that_of_the_file(tmp_path):
    one, same, other = (
        ssl_kd.load_encoder(write(tmp_path, small_model(seed=seed), name=f"{name}.onnx"))
        for name, seed in (("one", 0), ("same", 0), ("other", 1))
    )
    assert one.digest == same.digest != other.digest


def test_inspect_tells_what_a_program_is(tmp_path):
    report = ssl_kd.inspect(write(tmp_path, small_model()))
    assert (report.container, report.dim, report.problem) == ("onnx", 6, None)
    assert "theirs.onnx" in str(report)
    assert "has no card" in ssl_kd.inspect(write(tmp_path, small_model(), None, "bare.onnx")).problem


def changed(change):
    model = small_model()
    change(model)
    return model


def loop(model):
    model.graph.node.add(op_type="Loop", input=["", ""], output=["never"], name="loop")


def stranger(model):
    model.graph.node.add(op_type="Shell", domain="evil.example", input=["embedding"], output=["out"])


def elsewhere(model):
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")


def flood(model):
    sides = onnx.numpy_helper.from_array(np.array([2**16, 2**16], np.int64), "sides")
    model.graph.initializer.append(sides)
    model.graph.node.append(onnx.helper.make_node("ConstantOfShape", ["sides"], ["flood"]))
    assert 4 * 2**32 > LARGEST


REFUSED = {
    "a loop": (loop, "which may never end"),
    "an operator of a stranger's": (stranger, "not known here"),
    "weights in another file": (elsewhere, "in other files"),
    "a tensor of 16 GB": (flood, "more than 2 GB"),
    "functions of its own": (lambda model: model.functions.add(name="f"), "functions or sparse"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_unsafe_graph_is_refused_before_it_runs(case, tmp_path):
    change, words = REFUSED[case]
    path = write(tmp_path, changed(change))
    with pytest.raises(ssl_kd.UserError, match=words) as said:
        ssl_kd.load_encoder(path)
    assert str(said.value).startswith(str(path))
    assert "\n" not in str(said.value)


MISTAKES = {
    "no card": (small_model, None, "has no card; write theirs.onnx.json"),
    "a card without preprocessing": (small_model, {"pixels": "plain"}, "no preprocessing"),
    "a card that does not say who normalises": (
        small_model,
        {**CARD, "pixels": ""},
        'expected "normalised" or "plain"',
    ),
    "a card of another size": (lambda: small_model(size=16), CARD, "crops to 8 px, and the file takes 16"),
    "a card of another file": (small_model, {**CARD, "sha256": "0" * 64}, "the card of another file"),
    "no picture as input": (lambda: small_model(size="side"), CARD, "expected float32 images"),
    "no ONNX": (lambda: b"\x80\x02", CARD, "no ONNX file"),
    "an empty file": (lambda: b"", CARD, "no ONNX file"),
    "half a file": (lambda: small_model().SerializeToString()[:200], CARD, "ONNX"),
    "a map of integers as output": (
        lambda: small_model(extra=[onnx.helper.make_node("Shape", ["flat"], ["sides"])], outputs=("sides",)),
        CARD,
        "onnxruntime cannot start it",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_is_no_program_is_one_line(case, tmp_path):
    make, card, words = MISTAKES[case]
    path = write(tmp_path, make(), card)
    with pytest.raises(ssl_kd.UserError, match=words) as said:
        ssl_kd.load_encoder(path)
    assert str(said.value).startswith(str(path))
    assert "\n" not in str(said.value)


def test_another_feature_or_size_than_the_files_own_is_refused(tmp_path):
    path = write(tmp_path, small_model())
    with pytest.raises(ssl_kd.UserError, match="no feature 'cls4'"):
        ssl_kd.load_encoder(path, feature="cls4")
    with pytest.raises(ssl_kd.UserError, match="takes images of 8 px"):
        ssl_kd.load_encoder(path)(torch.rand(1, 3, 9, 9))


def test_a_card_inside_the_file_serves_as_well(tmp_path):
    model = small_model()
    onnx.helper.set_model_props(model, {"card": json.dumps(PLAIN)})
    assert ssl_kd.load_encoder(write(tmp_path, model, None)).preprocessing.mean == (0.0, 0.0, 0.0)


GIVEN = {"arch": "resnet18", "mean": 0.5, "std": 0.5, "size": 16, "branch": "x.", "format": "timm"}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_by_hand_beside_a_program_is_refused_and_never_ignored(name, tmp_path):
    path = write(tmp_path, small_model("batch"), CARD)
    with pytest.raises(ssl_kd.UserError, match="give nothing but feature beside it"):
        ssl_kd.load_encoder(path, **{name: GIVEN[name]})
    assert "give nothing but feature beside it" in ssl_kd.inspect(path, **{name: GIVEN[name]}).problem
