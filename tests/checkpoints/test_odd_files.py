"""Files that are odd and plausible: each is read rightly, or refused in one line that says what to do."""

import argparse
import collections
import datetime
import pathlib

import hostile
import layouts
import pytest
import timm
import torch
from layouts import prefixed

from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.errors import CheckpointError, UserError

HEAD = {"head.weight": torch.ones(10, 128), "head.bias": torch.ones(10)}
FC = {"fc.weight": torch.ones(10, 512), "fc.bias": torch.ones(10)}


def vit(seed=0):
    return layouts.shaken(layouts.vit(), seed).state_dict()


def resnet(seed=0):
    return layouts.shaken(layouts.resnet("resnet18"), seed).state_dict()


def dinov2(seed=0):
    state = layouts.dinov2()[0]
    return {**state, "norm.bias": state["norm.bias"] + seed}


def saved(tree, tmp_path):
    return layouts.save(tree, "zip", tmp_path)


# Weights and their moving average, as timm, the labs' fine-tuning scripts and others keep them side by side.
PAIRS = {
    "timm's EMA of a ResNet": lambda: {
        "state_dict": {**resnet(), **FC},
        "state_dict_ema": {**resnet(1), **FC},
        "epoch": 3,
    },
    "timm's EMA of a ViT": lambda: {"state_dict": {**vit(), **HEAD}, "state_dict_ema": {**vit(1), **HEAD}, "epoch": 3},
    "a ViT beside its EMA": lambda: {"model": vit(), "model_ema": vit(1), "args": argparse.Namespace(lr=1)},
    "a ResNet beside its EMA": lambda: {"model": resnet(), "ema": resnet(1)},
    "the same with wrappers": lambda: {"model": prefixed(resnet(), "module."), "ema": prefixed(resnet(1), "module.")},
    "two in one state dict": lambda: {"state_dict": {**prefixed(vit(), "online."), **prefixed(vit(1), "target.")}},
    "lightly-train's, without its objects": lambda: {
        "state_dict": {
            **prefixed(dinov2(), "student_embedding_model.wrapped_model._model."),
            **prefixed(dinov2(1), "teacher_embedding_model.wrapped_model._model."),
        }
    },
    "DINOv2's own run in one level": lambda: {
        "model": {**prefixed(dinov2(), "student.backbone."), **prefixed(dinov2(1), "teacher.backbone.")}
    },
}


@pytest.mark.parametrize("name", PAIRS)
def test_of_two_networks_neither_is_chosen_and_the_named_branch_is_read(name, tmp_path):
    path = saved(PAIRS[name](), tmp_path)
    report = inspect(path)
    with pytest.raises(CheckpointError) as error:
        load_teacher(path)
    assert str(error.value).removeprefix(f"{path}: ") == report.problem
    assert report.problem.isprintable()
    assert report.problem.count(" under `") == 2
    branch = report.problem.partition("--branch ")[2].partition(")")[0]
    named = report.problem.split("`")[1::2]
    assert named[0] == branch
    one, other = (load_teacher(path, branch=place) for place in named)
    assert one.digest != other.digest
    assert (one.dim, one.arch) == (other.dim, other.arch)


@pytest.mark.parametrize("name", ["timm's EMA of a ResNet", "the same with wrappers"])
def test_an_architecture_by_hand_chooses_neither(name, tmp_path):
    path = saved(PAIRS[name](), tmp_path)
    given = {"arch": "torchvision/resnet18", "mean": 0.5, "std": 0.5}
    with pytest.raises(CheckpointError, match=r"holds such a network under .*--branch (state_dict|model)$"):
        load_teacher(path, **given)
    one, other = (load_teacher(path, branch=key, **given) for key in list(PAIRS[name]())[:2])
    assert one.digest != other.digest


def test_a_format_that_is_named_vouches_for_its_place(tmp_path):
    path = saved({"model": vit(), "model_ema": vit(1)}, tmp_path)
    assert load_teacher(path, format="mae").origin.startswith("MAE ViT")


# Everything that a training script may leave beside or around the weights and that changes none of them.
HARMLESS = {
    "half": lambda s: {name: tensor.half() for name, tensor in s.items()},
    "bfloat16": lambda s: {name: tensor.bfloat16() for name, tensor in s.items()},
    "deepspeed": lambda s: {"module": s, "ds_config": {"a": 1}, "optimizer": None},
    "FSDP": lambda s: layouts.renamed(
        s, [(r"^blocks\.(\d+)\.", r"_fsdp_wrapped_module.blocks.\1._fsdp_wrapped_module.")]
    ),
    "notes": lambda s: {**s, "extra": None, "note": "x", "n": 3},
    "Lightning": lambda s: {
        "state_dict": prefixed(s, "model."),
        "pytorch-lightning_version": "2.4.0",
        "hyper_parameters": {
            "folder": pathlib.PosixPath("/x"),
            "when": datetime.datetime(2026, 1, 1),
            "settings": argparse.Namespace(a=1),
            "counts": collections.Counter(a=1),
            "precision": torch.float16,
            "where": torch.device("cpu"),
        },
    },
}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_no_weight_does_not_matter(name, tmp_path):
    state = dinov2()
    encoder = load_teacher(saved(HARMLESS[name](state), tmp_path))
    plain = load_teacher(saved(state, tmp_path))
    assert encoder.origin == plain.origin
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        near = {"half": 2e-2, "bfloat16": 2e-1}.get(name, 0)
        torch.testing.assert_close(encoder(images).embedding, plain(images).embedding, rtol=0, atol=near)


def without(state, name):
    return {key: tensor for key, tensor in state.items() if key != name}


REFUSED = {
    "registers under another name": (
        lambda: {**dinov2(), "reg_tokens": torch.ones(1, 4, 128)},
        "no place for 1 tensors",
    ),
    "registers of another width": (lambda: {**dinov2(), "register_tokens": torch.ones(1, 4, 64)}, "other shapes for"),
    "adapters of PEFT": (
        lambda: layouts.renamed(dinov2(), [(r"attn\.qkv\.weight", "attn.qkv.base_layer.weight")]),
        "lacks 2 tensors: blocks.0.attn.qkv.weight",
    ),
    "int8": (lambda: {name: (t * 100).to(torch.int8) for name, t in dinov2().items()}, "other types for"),
    "complex": (lambda: {name: t.to(torch.complex64) for name, t in dinov2().items()}, "other types for"),
    "positions of no square": (lambda: {**dinov2(), "pos_embed": torch.ones(1, 12, 128)}, "no square grid"),
    "no positions": (lambda: without(dinov2(), "pos_embed"), "no known teacher format"),
    "nothing": (dict, "no known teacher format among 0 tensors"),
    "an empty level": (lambda: {"state_dict": {}}, "no known teacher format among 0 tensors"),
    "a list": (lambda: [1, 2], "no known teacher format among 0 tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_network_is_one_line(name, tmp_path):
    make, says = REFUSED[name]
    path = saved(make(), tmp_path)
    with pytest.raises(CheckpointError, match=says) as error:
        load_teacher(path)
    assert str(error.value).isprintable()
    assert says in inspect(path).problem


@pytest.mark.parametrize(
    ("wrote", "says"),
    [
        ("lightly_train._models.model_wrapper.ModelWrapper", "exported_models/exported_last.pt"),
        ("somebody.model.Net", r"Save only the model's state_dict\(\)"),
    ],
)
def test_a_pickled_module_is_refused_and_what_to_take_instead_is_said(wrote, says, tmp_path):
    path = hostile.program(tmp_path, hostile.glob(wrote))
    with pytest.raises(CheckpointError, match=rf"asks for {wrote}, which is code and not weights.*{says}"):
        inspect(path)


# What the weights of a ViT show need not be said by hand, and any size is taken.

SHOWN = {
    "layer scale": {"init_values": 1e-5},
    "another grid": {"img_size": 64},
    "registers": {"reg_tokens": 4, "no_embed_class": True, "img_size": 64},
    "registers with positions": {"reg_tokens": 4, "img_size": 64},
}


@pytest.mark.parametrize("name", SHOWN)
def test_a_bare_vit_by_hand_needs_no_arguments_that_its_weights_show(name, tmp_path):
    net = layouts.shaken(timm.create_model("vit_tiny_patch16_224", num_classes=10, **SHOWN[name]))
    path = saved(net.state_dict(), tmp_path)
    encoder = load_teacher(path, arch="vit_tiny_patch16_224", mean=0.5, std=0.25)
    side = SHOWN[name].get("img_size", 224)
    assert encoder.preprocessing.size == side
    images = torch.rand(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(
            net.head(encoder(images).embedding), net((images - 0.5) / 0.25), rtol=1e-4, atol=1e-4
        )
    assert inspect(path, arch="vit_tiny_patch16_224", mean=0.5, std=0.25).problem is None


def test_a_vit_that_pools_its_patches_takes_any_size_as_timm_does(tmp_path):
    args = {"global_pool": "avg", "class_token": False, "img_size": 64}
    net = layouts.shaken(timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **args))
    path = saved(net.state_dict(), tmp_path)
    encoder = load_teacher(path, arch="vit_tiny_patch16_224", arch_args=args, mean=0.5, std=0.5, size=96)
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).embedding, net((images - 0.5) / 0.5))


@pytest.mark.parametrize("arch", ["swin_tiny_patch4_window7_224", "mixer_s32_224", "levit_128s"])
def test_a_network_of_one_size_says_so(arch):
    from ssl_kd.models.encoder import Encoder
    from ssl_kd.models.factory import make

    encoder = Encoder(make(arch, {}), arch).eval()
    with torch.no_grad():
        assert encoder(torch.rand(1, 3, 224, 224)).embedding.isfinite().all()
        with pytest.raises(UserError, match=rf"{arch}: is made for images of 224 px and does not take 96 px") as error:
            encoder(torch.rand(1, 3, 96, 96))
    assert str(error.value).isprintable()


def test_a_dinov2_in_timms_names_is_only_sure_at_the_published_size(tmp_path):
    """Virchow 2, UNI 2 and H-optimus without their folders have timm's names, patches of 14 px, and other eyes."""
    with torch.device("meta"):
        net = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=224, depth=12)
    path = layouts.save(layouts.shaken(net).state_dict(), "safetensors", tmp_path)
    report = inspect(path)
    assert report.origin.endswith("of unknown origin, read as timm's DINOv2")
    assert (report.preprocessing.size, report.preprocessing.resize) == (224, 224)
