"""DINOv3: every official size by its shapes in each spelling, what its files decide, and what a large one costs."""

import json
import re
import struct
import time
from functools import cache

import layouts
import numpy as np
import pytest
import rebuild
import timm
import torch
from PIL import Image

from ssl_kd.checkpoints import assembly, loading
from ssl_kd.checkpoints.formats import Contents, dinov3, recognise
from ssl_kd.checkpoints.loading import blueprint, inspect, load_teacher
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.models.preprocessing import IMAGENET_MEAN
from ssl_kd.models.rotary import Rotary


@cache
def _made(name):
    with torch.device("meta"):
        return timm.create_model(name, num_classes=0).state_dict()


def shapes(name):
    """The tensors of one of timm's networks: vectors of ones, the others without memory."""
    return {key: torch.ones(t.shape) if t.ndim < 2 else t for key, t in _made(name).items()}


def lab_vit(name, masked=0.0):
    """A ViT of timm as the lab spells it."""
    state, heads = shapes(name), next(heads for n, heads, _ in dinov3.VITS.values() if n == name)
    rules = [
        (r"^reg_token$", "storage_tokens"),
        (r"\.gamma_([12])$", r".ls\1.gamma"),
        (r"\.mlp\.fc1_g\.", ".mlp.w1."),
        (r"\.mlp\.fc1_x\.", ".mlp.w2."),
        *([(r"\.mlp\.fc2\.", ".mlp.w3.")] if "blocks.0.mlp.fc1_g.weight" in state else []),
    ]
    state, width = layouts.renamed(state, rules), state["cls_token"].shape[-1]
    state["mask_token"] = torch.zeros(1, width)
    state["rope_embed.periods"] = torch.ones(width // heads // 4, dtype=torch.bfloat16)
    for block in {n.split(".")[1] for n in state if n.startswith("blocks.")}:
        state[f"blocks.{block}.attn.qkv.bias"] = torch.ones(3 * width)
        state[f"blocks.{block}.attn.qkv.bias_mask"] = torch.full((3 * width,), masked, dtype=torch.bfloat16)
    return state


def lab_convnext(name):
    state = layouts.renamed(
        shapes(name),
        [
            (r"^stem\.", "downsample_layers.0."),
            (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
            (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
            (r"\.conv_dw\.", ".dwconv."),
            (r"\.mlp\.fc([12])\.", r".pwconv\1."),
            (r"^head\.norm\.", "norm."),
        ],
    )
    return {**state, "norms.3.weight": state["norm.weight"], "norms.3.bias": state["norm.bias"]}


def hf_vit(name):
    """A ViT of timm as transformers spells it."""
    out = {}
    for key, tensor in shapes(name).items():
        if key.endswith("attn.qkv.weight"):
            out |= {
                key.replace("qkv", f"{part}_proj"): piece for part, piece in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            out[key] = tensor
    gated = "blocks.0.mlp.fc1_g.weight" in out
    rules = [
        (r"^(cls_token)$", r"embeddings.\1"),
        (r"^reg_token$", "embeddings.register_tokens"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings."),
        (r"\.gamma_([12])$", r".layer_scale\1.lambda1"),
        (r"\.attn\.proj\.", ".attention.o_proj."),
        (r"\.attn\.", ".attention."),
        (r"\.mlp\.fc1_g\.", ".mlp.gate_proj."),
        (r"\.mlp\.fc1_x\.", ".mlp.up_proj.") if gated else (r"\.mlp\.fc1\.", ".mlp.up_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        (r"^blocks\.", "layer."),
    ]
    return layouts.renamed(out, rules)


def read(state, name=None, container="zip"):
    file = Contents(state, container, vouched=name is not None)
    return recognise(file, name).convert(file)


def whole(*arguments):
    """What was read, and it is exactly what the network needs."""
    weights = read(*arguments)
    blueprint(weights)
    return weights


def sizes(names, fast):
    return [name if name == fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


VIT_NAMES = sizes([name for name, _, _ in dinov3.VITS.values()], "vit_small_plus_patch16_dinov3")
CONVNEXT_NAMES = sizes([name for name, _ in dinov3.CONVNEXTS.values()], "convnext_tiny")


@pytest.mark.parametrize("name", VIT_NAMES)
def test_every_official_vit_is_known_in_three_spellings(name):
    _, heads, size = next(row for row in dinov3.VITS.values() if row[0] == name)
    lab, theirs, timms = whole(lab_vit(name)), whole(hf_vit(name)), whole(shapes(name), None, "safetensors")
    assert (lab.origin, timms.origin, theirs.origin) == (
        f"DINOv3 {size}",
        f"timm DINOv3 {size}",
        f"Hugging Face DINOv3 {size}",
    )
    assert {n: t.shape for n, t in lab.state.items()} == {
        **{n: t.shape for n, t in timms.state.items()},
        "rope.periods": (lab.dim // heads // 4,),
    }
    assert {n: t.shape for n, t in theirs.state.items()} == {n: t.shape for n, t in timms.state.items()}
    assert [w.preprocessing.square for w in (lab, theirs, timms)] == [True, True, False]
    assert [w.preprocessing.size for w in (lab, theirs, timms)] == [256, 224, 256]


@pytest.mark.parametrize("name", CONVNEXT_NAMES)
def test_every_official_convnext_is_known(name):
    lab, timms = whole(lab_convnext(name)), whole(shapes(name), None, "safetensors")
    assert {n: t.shape for n, t in lab.state.items()} == {n: t.shape for n, t in timms.state.items()}
    assert re.fullmatch("DINOv3 ConvNeXt-[TSBL]", lab.origin)
    assert "of unknown origin" in timms.origin


def test_gate_and_value_of_the_mlp_are_not_swapped():
    state = lab_vit("vit_small_plus_patch16_dinov3")
    weights = read(state)
    assert weights.state["blocks.3.mlp.fc1_g.weight"] is state["blocks.3.mlp.w1.weight"]
    assert weights.state["blocks.3.mlp.fc1_x.weight"] is state["blocks.3.mlp.w2.weight"]


def test_satellite_images_have_statistics_of_their_own():
    state = lab_vit("vit_large_patch16_dinov3")
    assert read(state).preprocessing.mean == IMAGENET_MEAN
    norm = {"local_cls_norm.weight": torch.ones(1024), "local_cls_norm.bias": torch.zeros(1024)}
    found = read({**state, **norm})
    assert (found.preprocessing.mean, found.preprocessing.std) == dinov3.SATELLITE
    assert found.origin == "DINOv3 ViT-L, on satellite images (SAT-493M)"
    assert found.preprocessing.square
    forced = read(shapes("vit_large_patch16_dinov3"), "dinov3_sat", "safetensors")
    assert (forced.preprocessing.mean, forced.preprocessing.interpolation) == (dinov3.SATELLITE[0], "bicubic")


def test_the_images_of_a_7b_file_are_said_to_be_unknown():
    state = lab_vit("vit_7b_patch16_dinov3")
    state |= {f"local_cls_norm.{leaf}": torch.ones(4096) for leaf in ("weight", "bias")}
    assert "does not tell" in read(state).origin
    forced = read(state, "dinov3_sat")
    assert forced.preprocessing.std == dinov3.SATELLITE[1]
    assert "does not tell" not in forced.origin


def test_a_masked_bias_counts_as_far_as_its_mask_lets_it():
    name = "vit_small_patch16_dinov3"
    assert "blocks.0.attn.q_bias" not in read(lab_vit(name)).state
    state = lab_vit(name, masked=1.0)
    for key in state:
        if key.endswith("bias_mask"):
            state[key][384:768] = 0  # of an own run: the bias on keys alone is masked
    weights = read(state)
    assert weights.arch == "vit_small_patch16_dinov3_qkvb"
    assert bool((weights.state["blocks.11.attn.v_bias"] == 1).all())
    with pytest.raises(BrokenCheckpoint, match="has a bias on keys"):
        read(lab_vit(name, masked=1.0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"rope_embed.periods": torch.ones(24)}, "6 heads, the 24 periods"),
        ({"blocks.11.ls2.gamma": None}, "lacks 1 tensors: blocks.11.gamma_2"),
        ({"blocks.3.adapter.weight": torch.ones(2)}, "no place for 1 tensors: blocks.3.adapter.weight"),
        ({f"blocks.{i}.": None for i in range(9)}, "width 384 with 3 blocks.*not among the published"),
    ],
)
def test_a_dinov3_that_is_not_whole_is_refused(change, says):
    state = lab_vit("vit_small_patch16_dinov3")
    gone = tuple(name for name, tensor in change.items() if tensor is None)
    state = {name: t for name, t in state.items() if not gone or not name.startswith(gone)}
    state |= {name: tensor for name, tensor in change.items() if tensor is not None}
    with pytest.raises(BrokenCheckpoint, match=says):
        read(state)


def test_the_two_names_of_a_convnexts_norm_must_agree():
    state = lab_convnext("convnext_tiny")
    state["norms.3.bias"] = state["norms.3.bias"] + 1
    with pytest.raises(BrokenCheckpoint, match="one tensor in DINOv3's files"):
        read(state)


def test_periods_stay_in_float32_and_are_the_published_ones():
    module = Rotary(64, stored=False).to(torch.bfloat16)
    assert module.periods.dtype == torch.float32
    torch.testing.assert_close(module.periods, torch.tensor(100.0 ** (np.arange(16) / 16)).float())
    theirs = timm.create_model("vit_small_patch16_dinov3", depth=1, num_classes=0).rope.get_embed([3, 5])
    torch.testing.assert_close(module.get_embed((3, 5)), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("pixels", "name"), [(dinov3.LAB, "dinov3"), (dinov3.HUGGING_FACE, "hf_dinov3")])
def test_pixels_are_the_published_square(pixels, name):
    """Up to a grey level: the references were resized as tensors, one of them after scaling to [0, 1]."""
    raw = pixels(Image.fromarray(rebuild.image()))
    x = ((raw.float() / 255 - torch.tensor(pixels.mean).view(3, 1, 1)) / torch.tensor(pixels.std).view(3, 1, 1)).numpy()
    with np.load(rebuild.HERE / "expected" / "preprocess.npz") as archive:
        want = {key.partition("/")[2]: archive[key] for key in archive.files if key.startswith(f"{name}/")}
    side = want["corner"].shape[-1]
    assert x.shape == tuple(want["shape"])
    np.testing.assert_allclose(x[:, :side, :side], want["corner"], atol=1.01 / 255 / 0.224)
    np.testing.assert_allclose(x.mean((1, 2)), want["mean"], atol=2e-3)


def sparse(path, state):
    """A safetensors file of zeros that takes no room on the disk."""
    header, end = {}, 0
    for name, tensor in state.items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def sparse_zip(path, state):
    """What torch.save writes, but for the numbers: the file has their length and holds none."""
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(t.shape, dtype=t.dtype) for name, t in state.items()}, path)


@pytest.mark.parametrize(
    ("write", "make", "origin"),
    [(sparse, shapes, "timm DINOv3 ViT-7B"), (sparse_zip, lab_vit, "DINOv3 ViT-7B")],
)
def test_a_file_of_27_gigabytes_is_inspected_in_seconds(write, make, origin, tmp_path):
    write(tmp_path / "7b", make("vit_7b_patch16_dinov3"))
    assert (tmp_path / "7b").stat().st_size > 26e9
    began = time.process_time()
    report = inspect(tmp_path / "7b")
    assert time.process_time() - began < 15
    assert (report.origin, report.problem, report.digest) == (origin, None, None)
    assert round(report.parameters / 1e6) == 6716  # as the lab's table of models says
    assert "only its shapes were read" in str(report)


def test_weights_of_a_large_file_are_in_memory_once_and_are_the_same(tmp_path, monkeypatch):
    path = layouts.save(layouts.dino_vit()[0], "zip", tmp_path)
    whole, told = load_teacher(path), inspect(path)
    monkeypatch.setattr(loading, "LARGE", 0)
    monkeypatch.setattr(assembly, "LARGE", 0)
    report, again = inspect(path), load_teacher(path)
    assert report.digest is None
    assert (report.used, report.origin, report.parameters) == (told.used, told.origin, told.parameters)
    assert again.digest == whole.digest
    file = loading.contents(path)
    weights = loading.convert(file, recognise(file))
    pointers = {t.data_ptr() for t in weights.used.values()}
    taken = [t for t in assembly.assemble(weights).backbone.state_dict().values() if t.data_ptr() in pointers]
    assert len(taken) == len(weights.used)
