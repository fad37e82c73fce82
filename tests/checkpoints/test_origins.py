"""What a file does not decide is not claimed: its origin is unknown, or somebody who knows is asked."""

import json
import re
from functools import cache

import layouts
import pytest
import timm
import torch

from ssl_kd.checkpoints.formats import FORMATS
from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.checkpoints.saving import save_student
from ssl_kd.errors import CheckpointError, UnknownCheckpoint, UserError


def net(**options):
    return layouts.vit(**options).state_dict()


@cache
def thin():
    return layouts.shaken(timm.create_model("resnet18", num_classes=0, channels=[4, 4, 4, 8])).state_dict()


def resnet(prefix=""):
    return layouts.prefixed(thin(), prefix)


def small(base):
    """The first blocks' names and shapes of a published width, in half precision and all zeros but for the norms."""
    with torch.device("meta"):
        made = timm.create_model(base, num_classes=0)
    return {name: torch.zeros(t.shape, dtype=torch.float16) for name, t in made.state_dict().items()}


def hf(prefix="", **beside):
    return {**layouts.prefixed(layouts.huggingface(second=False)[0], prefix), **beside}


ONE = torch.ones(1)
# What it is: (the object, container, what the origin must match; or the words of the refusal after "!")
FILES = {
    "MoCo v3's ViT-S, flat": (
        lambda: small("vit_small_patch16_224"),
        "zip",
        "6 heads of unknown origin, read as DINO's$",
    ),
    "any ViT, flat": (net, "zip", "unknown origin, read as DINO's$"),
    "any ViT in safetensors": (net, "safetensors", "unknown origin, read as timm's DINO$"),
    "a ViT under `state_dict`": (lambda: {"state_dict": net()}, "zip", "unknown origin, read as iBOT's$"),
    "a ViT under `model`": (lambda: {"model": net()}, "zip", "unknown origin, read as MAE's$"),
    "a ViT wrapped twice": (
        lambda: layouts.prefixed(net(), "module._orig_mod."),
        "zip",
        "unknown origin, read as DINO's$",
    ),
    "a compiled teacher without head": (
        lambda: {"teacher": layouts.prefixed(net(), "_orig_mod.backbone.")},
        "zip",
        "unknown origin, read as DINO's, teacher",
    ),
    "a teacher with DINO's head": (lambda: layouts.dino_vit_full()[0], "zip", "^DINO ViT"),
    "a teacher with a mask head": (lambda: layouts.ibot_full()[0], "zip", "^iBOT ViT"),
    "iBOT's student alone": (lambda: {"state_dict": {**net(), "masked_embed": torch.ones(1, 128)}}, "zip", "^iBOT ViT"),
    "a decoder": (lambda: {**net(), "decoder_embed.weight": ONE, "mask_token": ONE}, "zip", "^MAE ViT"),
    "transformers' decoder": (
        lambda: hf("vit.", **{"decoder.mask_token": ONE}),
        "safetensors",
        "^Hugging Face MAE ViT",
    ),
    "transformers' names": (hf, "safetensors", "unknown origin, read as Hugging Face's DINO$"),
    "a mask token": (lambda: {**net(), "mask_token": ONE}, "zip", "!a ViT under `the whole file`.*format="),
    "a target encoder": (
        lambda: {"target_encoder": layouts.prefixed(net(), "module.")},
        "zip",
        "unknown origin, read as MSN's$",
    ),
    "a ResNet, flat": (resnet, "zip", "unknown origin, read as DINO's$"),
    "a ResNet with a classifier": (
        lambda: {**resnet(), "fc.weight": ONE},
        "zip",
        "unknown origin, read as torchvision's$",
    ),
    "a ResNet under `model`": (lambda: {"model": resnet()}, "zip", "unknown origin, read as DINO's$"),
    "a ResNet under `state_dict`": (lambda: {"state_dict": resnet()}, "zip", "unknown origin, read as OpenSelfSup's$"),
    "a ResNet deep down": (lambda: {"a": {"b": resnet("net.trunk.")}}, "zip", "unknown origin, read as torchvision's$"),
    "a ResNet and a probe, alone": (
        lambda: {"state_dict": {**resnet(), "fc.weight": ONE}},
        "zip",
        "unknown origin, read as SimCLR v1's$",
    ),
    "a projector that is nobody's": (
        lambda: {"model": {**resnet("module.backbone."), "module.projector.0.weight": ONE}},
        "zip",
        "unknown origin, read as Barlow Twins'$",
    ),
    "an encoder and nothing beside it": (
        lambda: {"state_dict": resnet("module.encoder.")},
        "zip",
        "unknown origin, read as SimSiam's$",
    ),
    "two ResNets": (lambda: {"a": resnet(), "b": resnet()}, "zip", "!holds a ResNet under `a`, a ResNet under `b`"),
    "13 channels": (
        lambda: {**resnet(), "conv1.weight": torch.ones(64, 13, 7, 7)},
        "zip",
        "!takes 13 channels, and images have 3",
    ),
    "one channel": (
        lambda: {**net(), "patch_embed.proj.weight": torch.ones(128, 1, 8, 8)},
        "zip",
        "!takes 1 channels, and images have 3",
    ),
    "a projection too wide": (
        lambda: {**net(), "blocks.1.attn.proj.weight": torch.ones(128, 129)},
        "zip",
        "!other shapes for 1 tensors: blocks.1.attn.proj.weight",
    ),
    "a norm too long": (
        lambda: {**resnet(), "layer4.1.bn2.weight": torch.ones(9)},
        "zip",
        "!other shapes for 1 tensors",
    ),
    "a patch that is no square": (
        lambda: {**net(), "patch_embed.proj.weight": torch.ones(128, 3, 8, 4)},
        "zip",
        "!shapes for 1 tensors",
    ),
}


@pytest.mark.parametrize("what", FILES)
def test_a_file_is_called_a_labs_only_where_it_decides_that(what, tmp_path):
    """And inspect and load_teacher give one verdict."""
    make, container, expected = FILES[what]
    with torch.no_grad():
        tree = {name: t.contiguous() if isinstance(t, torch.Tensor) else t for name, t in make().items()}
        path = layouts.save(tree, container, tmp_path)
    report = inspect(path)
    if expected.startswith("!"):
        with pytest.raises(CheckpointError) as refused:
            load_teacher(path)
        assert str(refused.value) == f"{path}: {report.problem}"
        assert re.search(expected[1:], report.problem)
        return
    assert report.problem is None
    encoder = load_teacher(path)
    assert re.search(expected, report.origin)
    assert (encoder.origin, encoder.digest) == (report.origin, report.digest)
    assert report.origin in str(report)
    assert set(report.used) | set(report.dropped) == set(names(tree))


def names(tree, path=""):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from names(value, f"{path}{key}/")
        elif isinstance(value, torch.Tensor):
            yield f"{path}{key}"


def test_whoever_names_the_format_vouches_for_it(tmp_path):
    path = layouts.save(resnet(), "zip", tmp_path)
    assert load_teacher(path, format="vicreg").origin == inspect(path, format="vicreg").origin == "VICReg resnet18"
    assert load_teacher(path, format="vicreg").preprocessing.interpolation == "bilinear"
    assert load_teacher(path, format="dino_resnet").preprocessing.interpolation == "bicubic"
    nested = layouts.save({"net": layouts.prefixed(layouts.vit().state_dict(), "trunk.")}, "zip", tmp_path)
    assert load_teacher(nested, format="mae").origin == "MAE ViT of width 128, patch 8"


@pytest.mark.parametrize(
    ("layout", "origin", "colours"),
    [
        (layouts.byol, "BYOL (sthalles) resnet18", ((0.0,) * 3, (1.0,) * 3, 96)),
        (layouts.byol_learner, "BYOL resnet18", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)),
        (layouts.byol_lightning, "BYOL resnet18", ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224)),
    ],
)
def test_byol_has_the_pixels_of_the_program_that_trained_it(layout, origin, colours, tmp_path):
    encoder = load_teacher(layouts.save(layout()[0], "zip", tmp_path))
    pixels = encoder.preprocessing
    assert (encoder.origin, (pixels.mean, pixels.std, pixels.size)) == (origin, colours)


def test_a_format_that_does_not_fit_is_met_with_what_was_found(tmp_path):
    path = layouts.save(layouts.simsiam()[0], "zip", tmp_path)
    with pytest.raises(UnknownCheckpoint, match=r"not laid out as moco.*a ResNet under `state_dict/module.encoder.`"):
        load_teacher(path, format="moco")


@pytest.mark.parametrize(
    ("device", "lab", "interpolation"), [("cpu", "DINO's", "bicubic"), ("cuda:0", "Barlow Twins'", "bilinear")]
)
def test_a_bare_resnet_has_the_pixels_of_those_who_saved_it_there(device, lab, interpolation, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.serialization.location_tag", lambda storage: device)
    path = layouts.save(resnet(), "zip", tmp_path)
    report = inspect(path)
    assert report.origin == f"resnet18 of unknown origin, read as {lab}"
    assert report.preprocessing.interpolation == interpolation


@pytest.mark.parametrize(
    ("config", "origin", "eps"),
    [
        ({"model_type": "vit_msn", "layer_norm_eps": 1e-6}, "^Hugging Face MSN ViT", 1e-6),
        ({"model_type": "vit_mae"}, "^Hugging Face MAE ViT", 1e-12),
        ({"model_type": "vit", "layer_norm_eps": 1e-5}, "unknown origin", 1e-5),
        ({"model_type": ["vit_msn"], "layer_norm_eps": "nan"}, "unknown origin", 1e-12),
        ({"model_type": "vit_msn", "layer_norm_eps": 1e308, "num_attention_heads": -1}, "^Hugging Face MSN", 1e-6),
        ("no mapping", "unknown origin", 1e-12),
    ],
)
def test_the_config_beside_a_file_says_what_it_is(config, origin, eps, tmp_path):
    path = layouts.save(hf(), "safetensors", tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    encoder = load_teacher(path)
    assert re.search(origin, encoder.origin)
    assert encoder.backbone.norm.eps == eps


def test_an_unknown_origin_goes_into_the_students_card(tmp_path):
    encoder = load_teacher(layouts.save(net(), "zip", tmp_path))
    assert "of unknown origin" in load_teacher(save_student(encoder, tmp_path / "s.safetensors")).origin


def test_the_last_formats_read_a_network_wherever_it_lies_when_they_are_named(tmp_path):
    path = layouts.save({"a": {"b": layouts.prefixed(net(), "x.")}, "c": resnet()}, "zip", tmp_path)
    assert load_teacher(path, format="vit").arch == "vit_base_patch16_224"
    assert load_teacher(path, format="resnet").arch == "resnet18"
    with pytest.raises(UserError, match=r"holds a ViT under `a/b/x.`, a ResNet under `c`"):
        load_teacher(path)
    assert {"vit", "resnet"} <= set(FORMATS)
