"""Export: what leaves for other programs says what the Encoder says, with its card; what does not is never kept."""

import hashlib
import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from small_disk import files_end_at

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.exporters import export
from ssl_kd.exporters.export import BOUND, HUB, TARGETS
from ssl_kd.exporters.pictures import pictures
from ssl_kd.models.encoder import frozen
from ssl_kd.models.preprocessing import Preprocessing

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="pip install 'ssl-kd[export]'")
EYES = Preprocessing(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), interpolation="bicubic").at(32)
ROTATING = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}
NETWORKS = {
    "half a resnet for small images": ("resnet18", {"channels": [8, 8, 8, 16], "small_stem": True}),
    "mobilenet": ("mobilenetv3_small_050", {}),
    "vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 8, "depth": 2}),
    "one block of a vit": ("vit_tiny_patch16_224", {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1}),
    "a whole resnet": ("resnet18", {"small_stem": True}),
    "torchvision's resnet": ("torchvision/resnet18", {}),
    "torchvision's mobilenet": ("torchvision/mobilenet_v3_small", {}),
    "selective kernels": ("ssl_kd/resnet50", {"selective": 0.0625}),
    "rotary positions": ("vit_small_patch16_dinov3", {**ROTATING, "positions": "rotary"}),
    "rotary positions with periods of their own": (
        "vit_small_patch16_dinov3",
        {**ROTATING, "positions": "rotary_stored"},
    ),
    "a normed convnext": ("convnext_atto", {"norm_patches": True}),
}
LIGHT = {
    "half a resnet for small images": ("timm", "safetensors", "torchscript"),
    "mobilenet": ("timm",),
    "vit": ("timm", "safetensors", "torchscript"),
    "one block of a vit": ("onnx",),
    "rotary positions": ("timm",),
    "rotary positions with periods of their own": ("timm",),
    "a whole resnet": ("torchvision",),
}
HEAVY = {
    "half a resnet for small images": ("onnx",),
    "mobilenet": ("safetensors", "torchscript", "onnx"),
    "vit": ("onnx",),
    "a whole resnet": ("timm", "safetensors", "torchscript", "onnx"),
    "torchvision's resnet": ("timm", "torchvision", "safetensors", "torchscript", "onnx"),
    "torchvision's mobilenet": ("torchvision", "safetensors", "torchscript", "onnx"),
    "selective kernels": ("safetensors", "torchscript", "onnx"),
    "rotary positions": ("torchscript", "onnx"),
    "rotary positions with periods of their own": ("safetensors", "torchscript", "onnx"),
    "a normed convnext": ("timm", "safetensors", "onnx"),
}
CASES = [
    pytest.param(
        network,
        form,
        marks=([needs_onnx] if form == "onnx" else []) + ([pytest.mark.slow] if cases is HEAVY else []),
        id=f"{network} as {form}",
    )
    for cases in (LIGHT, HEAVY)
    for network, forms in cases.items()
    for form in forms
]


def network(name, eyes=EYES):
    """Random weights, and running statistics that are not those of a fresh network."""
    torch.manual_seed(3)
    arch, args = NETWORKS[name]
    encoder = ssl_kd.build(arch, preprocessing=eyes, **args).train()
    encoder(torch.rand(8, 3, 32, 32))
    return frozen(encoder)


def asked(card, folder, monkeypatch, images):
    """What somebody gets who types the card's lines and heeds its preprocessing."""
    monkeypatch.chdir(folder)
    scope = {}
    with export._quiet_torchscript():
        exec("\n".join(card["load"]), scope)
    model, eyes = scope["model"], card["preprocessing"]
    if "normalised" in card["input"]:
        images = (images - torch.tensor(eyes["mean"]).view(3, 1, 1)) / torch.tensor(eyes["std"]).view(3, 1, 1)
    with torch.no_grad():
        said = model(images.numpy() if card["format"] == "onnx" else images)
    said = getattr(said, "embedding", said)
    return torch.as_tensor(said).flatten(1)


@pytest.mark.parametrize(("name", "form"), CASES)
def test_the_lines_of_the_card_give_the_encoders_embeddings(name, form, tmp_path, monkeypatch):
    encoder = network(name)
    (done,) = ssl_kd.export(encoder, form, tmp_path / "model.bin")
    assert (done.path, done.card) == (tmp_path / "model.bin", tmp_path / "model.bin.json")
    assert sorted(tmp_path.iterdir()) == [done.path, done.card]
    card = json.loads(done.card.read_text())
    images = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(7))  # not those it was measured on
    with torch.no_grad():
        expected = encoder(images).embedding
    said = asked(card, tmp_path, monkeypatch, images)
    assert (said - expected).abs().max() <= BOUND * expected.abs().max()
    assert card["measured"]["max_absolute_difference"] == done.difference
    assert done.relative <= BOUND == card["measured"]["bound"]
    assert done.cosine > 1 - 1e-6


@pytest.mark.parametrize(
    ("name", "form"),
    [("half a resnet for small images", "timm"), ("vit", "timm"), ("torchvision's resnet", "torchvision")],
)
def test_a_state_dict_of_ours_is_read_back_with_its_own_pixels(name, form, tmp_path):
    """It was taken for a lab's ResNet at 224 px."""
    encoder = network(name)
    ssl_kd.export(encoder, form, tmp_path / "weights")
    again, images = ssl_kd.load_encoder(tmp_path / "weights"), torch.rand(2, 3, 32, 32)
    assert again.preprocessing == encoder.preprocessing
    assert again.digest == encoder.digest
    assert torch.equal(again(images).embedding, encoder(images).embedding)


@pytest.mark.slow
@needs_onnx
def test_an_onnx_program_holds_the_rotation_as_a_constant(tmp_path):
    import onnx

    ssl_kd.export(network("rotary positions"), "onnx", tmp_path / "model.onnx")
    used = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "MatMul" in used or "Gemm" in used
    assert not used & {"Sin", "Cos", "Range"}


def test_every_format_is_tried():
    exact = {name for name, target in TARGETS.items() if not (target.shrink or target.companion)}
    assert {form for forms in LIGHT.values() for form in forms} == exact  # the others: test_int8.py


def test_several_formats_go_into_a_folder_with_the_students_story(tmp_path):
    file = ssl_kd.save_student(network("vit"), tmp_path / "s.safetensors", teacher="DINO", epochs=3)
    made = ssl_kd.export(file, ["timm", "safetensors"], tmp_path / "out")
    assert [done.path.name for done in made] == ["timm.safetensors", "student.safetensors"]
    card = json.loads(made[0].card.read_text())
    assert card["card"] == {"teacher": "DINO", "epochs": 3}
    assert card["preprocessing"]["mean"] == [0.4, 0.5, 0.6]
    assert (card["preprocessing"]["resize"], card["preprocessing"]["interpolation"]) == (EYES.resize, "bicubic")
    assert card["arch_args"] == {"img_size": 32, "patch_size": 8, "depth": 2}
    # The story also travels inside the file that has a place for it.
    assert ssl_kd.inspect(made[1].path).card == {"teacher": "DINO", "epochs": 3}


@pytest.mark.parametrize("link", [None, os.symlink, os.link])
@pytest.mark.parametrize(("form", "folder"), [("timm", False), ("torchscript", False), ("safetensors", True)])
def test_the_student_itself_is_never_replaced(form, folder, link, tmp_path):
    file = ssl_kd.save_student(network("vit"), tmp_path / "runs" / "student.safetensors")
    other = tmp_path / "other" / file.name
    other.parent.mkdir()
    if link:
        link(file, other)
    before, out = file.read_bytes(), other if link else file
    with pytest.raises(ssl_kd.UserError, match=r"student.safetensors is the student that is exported"):
        ssl_kd.export(file, form, out.parent if folder else out)
    assert file.read_bytes() == before
    assert sorted(p.name for p in out.parent.iterdir()) == [file.name]


def wrong_by_a_percent(encoder, path, card):
    from safetensors.torch import save_file

    state = {name: t.clone().contiguous() for name, t in encoder.backbone.state_dict().items()}
    state["norm.weight"][0] *= 1.01
    save_file(state, path)


def of_another_width(encoder, path, card):
    export._write_state(network("half a resnet for small images"), path, card)


def torn(encoder, path, card):
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("write", "words"), [(wrong_by_a_percent, "not kept: it differs from the encoder by"), (torn, "No space left")]
)
def test_what_differs_or_breaks_leaves_nothing(write, words, tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS.built_in, "timm", replace(TARGETS["timm"], write=write))
    ssl_kd.export(network("half a resnet for small images"), "safetensors", tmp_path / "out" / "student.safetensors")
    older = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ssl_kd.UserError, match=words):
        ssl_kd.export(network("vit"), ["safetensors", "timm"], tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == older


# What lies where `model` and `model.json` will be written, and whether that may be replaced.
IN_THE_WAY = {
    "an export of ours": ({}, True),
    "of an older version, whose card has no digest": ({"model.json": lambda card: without(card, "sha256")}, True),
    "the card alone": ({"model": None}, True),
    "the file alone": ({"model.json": None}, False),
    "another's file": ({"model": lambda file: b"theirs", "model.json": None}, False),
    "another's file beside our card": ({"model": lambda file: file + b"x"}, False),
    "another's card": ({"model.json": lambda card: b'{"lr": 1}'}, False),
    "a card of another file": ({"model.json": lambda card: card.replace(b'"model"', b'"other"')}, False),
    "a card that is no text": ({"model.json": lambda card: b"\xff{"}, False),
}


def without(card, key):
    return json.dumps({k: v for k, v in json.loads(card).items() if k != key}).encode()


@pytest.mark.parametrize("case", IN_THE_WAY)
def test_only_an_export_of_ours_is_replaced(case, tmp_path):
    changes, replaced = IN_THE_WAY[case]
    ssl_kd.export(network("vit"), "timm", tmp_path / "model")
    for name, change in changes.items():
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink() if change is None else (tmp_path / name).write_bytes(change(content))
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    if replaced:
        ssl_kd.export(network("vit"), "torchscript", tmp_path / "model")
        assert json.loads((tmp_path / "model.json").read_text())["format"] == "torchscript"
        return
    with pytest.raises(
        ssl_kd.UserError, match=r"^out: .*(not ours to replace|cannot be read).*choose another"
    ) as caught:
        ssl_kd.export(network("vit"), "torchscript", tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


ENDINGS = {form: Path(target.name).suffix for form, target in TARGETS.built_in.items()} | {HUB: "a folder"}


@pytest.mark.parametrize(
    ("form", "ending"),
    [(form, other) for form, own in ENDINGS.items() for other in sorted({*ENDINGS.values()} - {own, "a folder"})],
)
def test_a_file_is_not_given_the_ending_of_another_format(form, ending, tmp_path):
    """The file that lies there stays, and nobody is to take a state dict for an ONNX program."""
    out = tmp_path / f"student{ending.upper()}"
    with pytest.raises(ssl_kd.UserError, match=rf"^out: {out.name} ends as a file of .*, and {form} writes ") as caught:
        ssl_kd.export("no student is looked for", form, out)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("moment", ["card_of", "put_in_place"])
def test_an_export_that_was_killed_is_swept_by_the_next_one(moment, tmp_path, monkeypatch):
    """Before the card is there, and between the card and the file; on top of an older export."""
    file = ssl_kd.save_student(network("vit"), tmp_path / "s.safetensors")
    out = tmp_path / "out"
    ssl_kd.export(file, ["timm", "safetensors"], out)
    pid = os.fork()
    if not pid:
        monkeypatch.setattr(export, moment, lambda *_: os.kill(os.getpid(), 9))
        ssl_kd.export(file, ["timm", "safetensors"], out, feature="cls2")
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 9
    assert [p.name for p in out.iterdir() if p.name.endswith(".part")]
    (out / "film.mkv.part").write_bytes(b"theirs")
    ssl_kd.export(file, ["timm", "safetensors"], out, feature="cls2")
    names = ("timm.safetensors", "student.safetensors")
    assert {p.name for p in out.iterdir()} == {*names, *(f"{name}.json" for name in names), "film.mkv.part"}
    for name in names:
        card = json.loads((out / f"{name}.json").read_text())
        assert card["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()


@pytest.mark.parametrize("form", ["timm", "safetensors", "torchscript"])
def test_a_disk_without_room_is_one_line(form, tmp_path):
    """The libraries' own writers turn a full disk into errors of their own."""
    with files_end_at(5_000), pytest.raises(ssl_kd.UserError, match=r"could not be written .File too large.") as said:
        ssl_kd.export(network("vit"), form, tmp_path / "model")
    assert "\n" not in str(said.value)
    assert not list(tmp_path.iterdir())


def test_a_state_of_other_shapes_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setitem(TARGETS.built_in, "timm", replace(TARGETS["timm"], write=of_another_width))
    with pytest.raises(ssl_kd.UserError, match="does not load strictly"):
        ssl_kd.export(network("vit"), "timm", tmp_path / "model")
    assert not list(tmp_path.iterdir())


MISTAKES = {
    "a format nobody knows": (lambda e: (e, "onyx"), "Did you mean onnx"),
    "one format twice": (lambda e: (e, ["timm", "timm"]), "each once"),
    "no format": (lambda e: (e, []), "got none"),
    "a vit for torchvision": (lambda e: (e, ["timm", "torchvision"]), "one of resnet18"),
    "half a resnet for torchvision": (
        lambda e: (network("half a resnet for small images"), "torchvision"),
        "at its full width, got resnet18 with channels",
    ),
    "torchvision's own for timm": (
        lambda e: (ssl_kd.build("torchvision/mobilenet_v3_small"), "timm"),
        "one of timm's networks",
    ),
    "a stem that timm lacks": (
        lambda e: (ssl_kd.build("vit_tiny_patch16_224", depth=1, conv_stem=True), "timm"),
        "conv_stem",
    ),
    "a module without a name": (
        lambda e: (ssl_kd.Encoder.from_module(torch.nn.Flatten(), 3072, EYES), "safetensors"),
        "no name to rebuild it by",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_is_said_before_anything_is_written(case, tmp_path):
    given, words = MISTAKES[case]
    encoder, formats = given(network("vit"))
    with pytest.raises(ssl_kd.UserError, match=words):
        ssl_kd.export(encoder, formats, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_do_not_leave(tmp_path):
    encoder = network("vit")
    encoder.backbone.norm.weight.data[0] = torch.nan
    with pytest.raises(ssl_kd.UserError, match=r"NaN or infinity: norm\.weight"):
        ssl_kd.export(encoder, "timm", tmp_path / "model")


def test_a_module_from_python_becomes_torchscript(tmp_path):
    flat = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
    (done,) = ssl_kd.export(ssl_kd.Encoder.from_module(flat, 12, EYES), "torchscript", tmp_path / "model.pt")
    assert done.difference == 0


def test_a_feature_of_two_blocks_needs_a_whole_program(tmp_path, monkeypatch):
    file = ssl_kd.save_student(network("vit"), tmp_path / "s.safetensors")
    images = torch.rand(3, 3, 32, 32)
    script, state = ssl_kd.export(file, ["torchscript", "timm"], tmp_path / "out", feature="cls2")
    script, state = (json.loads(done.card.read_text()) for done in (script, state))
    assert (script["feature"], script["dim"]) == ("cls2", 384)
    assert (state["feature"], state["dim"]) == ("cls", 192)  # what timm's own forward gives
    said = asked(script, tmp_path / "out", monkeypatch, images)
    assert torch.allclose(said, ssl_kd.load_teacher(file, feature="cls2")(images).embedding, atol=1e-5)


def test_timm_reads_a_vit_at_another_size_only_where_positions_are_stretched_alike(tmp_path):
    arch, args = NETWORKS["vit"]
    for positions, kept in (("antialias", True), ("corners", False)):
        torch.manual_seed(0)
        encoder = frozen(ssl_kd.build(arch, preprocessing=EYES.at(48), positions=positions, **args))
        encoder.backbone.pos_embed.data.normal_()
        if kept:
            (done,) = ssl_kd.export(encoder, "timm", tmp_path / "model")
            assert "dynamic_img_size=True" in done.card.read_text()
        else:
            with pytest.raises(ssl_kd.UserError, match="not kept"):
                ssl_kd.export(encoder, "timm", tmp_path / "other")


def test_pictures_look_like_photographs_and_draw_from_nowhere():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    x = pictures(4, 64)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(x, pictures(4, 64))
    assert x.shape == (4, 3, 64, 64)
    assert 0 <= x.min() < 0.1 < 0.9 < x.max() <= 1
    # Neighbouring pixels resemble each other, as they do not in white noise.
    near = np.corrcoef(x[..., 1:].flatten(), x[..., :-1].flatten())[0, 1]
    assert near > 0.6


def test_the_command_measures_on_your_pictures(tmp_path, capsys):
    from PIL import Image

    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.new("RGB", (40, 36), (80 * i, 90, 250 - 80 * i)).save(photos / f"{i}.png")
    file = ssl_kd.save_student(network("vit"), tmp_path / "s.safetensors")
    out = tmp_path / "model.safetensors"
    assert main(["export", str(file), "--to", "timm", "--out", str(out), "--images", str(photos)]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert out.exists()
    assert main(["export", str(file), "--to", "tim", "--out", str(out)]) == 2
    assert "Did you mean timm" in capsys.readouterr().err


def test_help_names_every_format(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    shown = capsys.readouterr().out
    assert all(name in shown for name in TARGETS)
