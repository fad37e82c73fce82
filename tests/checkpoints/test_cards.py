"""The known medical networks as their folders lie on the hub: at their true widths without memory, and small with numbers.

The oracle is timm's own call as the card writes it. The config.json files are those that were read or quoted
(`ssl_kd.checkpoints.cards`).
"""

import json
from pathlib import Path

import layouts
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked

from ssl_kd.checkpoints.agreement import timms
from ssl_kd.checkpoints.assembly import blueprint
from ssl_kd.checkpoints.cards import CARDS, HALF, HIBOU, OPTIMUS, XRAY
from ssl_kd.checkpoints.folders import Folder, open_folder
from ssl_kd.checkpoints.formats import Contents
from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.checkpoints.reading import Reading
from ssl_kd.errors import CheckpointError
from ssl_kd.models.preprocessing import Preprocessing

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "input_size": [3, 224, 224]}
GATED = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU}
UNI = {
    "architecture": "vit_large_patch16_224",
    "patch_size": 16,
    "img_size": 224,
    "init_values": 1.0,
    "num_classes": 0,
    "dynamic_img_size": True,
    "num_features": 1024,
    "global_pool": "token",
    "pretrained_cfg": {**IMAGENET, "crop_pct": 1, "interpolation": "bilinear", "fixed_input_size": False},
}
VIRCHOW = {
    "architecture": "vit_huge_patch14_224",
    "model_args": {
        "img_size": 224,
        "init_values": 1e-5,
        "num_classes": 0,
        "mlp_ratio": 5.3375,
        "global_pool": "",
        "dynamic_img_size": True,
    },
    "pretrained_cfg": {**IMAGENET, "crop_pct": 1.0, "crop_mode": "center", "interpolation": "bicubic"},
}
VIRCHOW2 = {**VIRCHOW, "model_args": {**VIRCHOW["model_args"], "reg_tokens": 4}}
H_OPTIMUS = {
    "architecture": "vit_giant_patch14_reg4_dinov2",
    "num_classes": 0,
    "num_features": 1536,
    "global_pool": "token",
    "pretrained_cfg": {
        "custom_load": True,
        "input_size": [3, 224, 224],
        "fixed_input_size": True,
        "num_classes": 0,
        "license": "Apache 2.0",
        "mean": list(OPTIMUS.mean),
        "std": list(OPTIMUS.std),
    },
}
UNI2_CALL = {
    "img_size": 224,
    "patch_size": 14,
    "depth": 24,
    "num_heads": 24,
    "init_values": 1e-5,
    "embed_dim": 1536,
    "mlp_ratio": 2.66667 * 2,
    "no_embed_class": True,
    "reg_tokens": 8,
    **GATED,
}
UNI2_BARE = {"architecture": "vit_giant_patch14_224", "num_classes": 0, "pretrained_cfg": {**IMAGENET, "crop_pct": 1}}
UNI2_FULL = {
    **UNI2_BARE,
    "model_args": {name: value for name, value in UNI2_CALL.items() if name not in GATED},
    "global_pool": "token",
}
WHOLE = Preprocessing(size=224, resize=224, crop=224, interpolation="bicubic")
# name -> config.json, timm's architecture and the card's arguments, feature, width, pixels
TIMMS = {
    "MahmoodLab/UNI": (
        *(UNI, "vit_large_patch16_224", {"init_values": 1e-5, "img_size": 224}, "cls", 1024),
        Preprocessing(size=224, resize=224, crop=224, interpolation="bilinear"),
    ),
    "paige-ai/Virchow": (
        VIRCHOW,
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, **GATED},
        *("cls_avg", 2560, WHOLE),
    ),
    "paige-ai/Virchow2": (
        VIRCHOW2,
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4, **GATED},
        *("cls_avg", 2560, WHOLE),
    ),
    "bioptimus/H-optimus-0": (
        H_OPTIMUS,
        "vit_giant_patch14_reg4_dinov2",
        {"init_values": 1e-5, "img_size": 224},
        *("cls", 1536, OPTIMUS),
    ),
    "MahmoodLab/UNI2-h": (UNI2_BARE, "vit_giant_patch14_224", UNI2_CALL, "cls", 1536, WHOLE),
    "MahmoodLab/UNI2-h, whole config": (UNI2_FULL, "vit_giant_patch14_224", UNI2_CALL, "cls", 1536, WHOLE),
}


@pytest.mark.parametrize("name", TIMMS)
def test_a_known_timm_folder_is_the_network_of_its_card_with_its_feature_and_pixels(name):
    config, arch, call, feature, width, pixels = TIMMS[name]
    with torch.device("meta"):
        oracle = timm.create_model(arch, num_classes=0, **{**call, "depth": 2})
    file = Contents(oracle.state_dict(), "safetensors")
    shallow = {**config, "model_args": {**config.get("model_args", {}), "depth": 2}}  # blocks are alike, and take time
    folder = Folder(Path(), Path(), shallow, name=name.partition(",")[0])
    weights = timms(file, folder, Reading())
    network = blueprint(weights).backbone
    assert {key: tensor.shape for key, tensor in network.state_dict().items()} == {
        key: tensor.shape for key, tensor in oracle.state_dict().items()
    }
    (one, other) = (net.blocks[0].attn for net in (network, oracle))
    assert (one.num_heads, one.scale) == (other.num_heads, other.scale)
    assert network.num_prefix_tokens == oracle.num_prefix_tokens
    assert network.no_embed_class == oracle.no_embed_class
    assert {m.eps for m in network.modules() if isinstance(m, torch.nn.LayerNorm)} == {
        m.eps for m in oracle.modules() if isinstance(m, torch.nn.LayerNorm)
    }
    assert (weights.feature, weights.dim, weights.preprocessing) == (feature, width, pixels)


def test_a_network_that_nobody_knows_is_not_given_the_width_of_its_weights():
    """Heads and depth are in no shape that would show a lost block: the folder has to say them."""
    with torch.device("meta"):
        oracle = timm.create_model("vit_giant_patch14_224", num_classes=0, **{**UNI2_CALL, "depth": 2})
    folder = Folder(Path(), Path(), {**UNI2_BARE, "depth": 2}, name="someone/else")
    with pytest.raises(CheckpointError, match=r"has other shapes for|has no place for|lacks"):
        blueprint(timms(Contents(oracle.state_dict(), "safetensors"), folder, Reading()))


def written(folder, state, config, processor=None, readme=""):
    folder.mkdir(parents=True)
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "README.md").write_text(readme)
    return folder


def answers(encoder, images, oracle):
    with torch.no_grad():
        tokens = oracle((images - encoder.mean) / encoder.std)
        torch.testing.assert_close(encoder(images).embedding, tokens, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("bare", [False, True])
def test_layer_scale_registers_and_grid_are_seen_where_the_card_passes_them_by_hand(registers, bare, tmp_path):
    """UNI's and H-optimus' config.json name an architecture without layer scale, or at another size."""
    more = {"reg_tokens": registers, "no_embed_class": bare}
    net = layouts.shaken(
        timm.create_model("vit_tiny_patch16_224", img_size=64, init_values=1e-5, num_classes=0, **more)
    )
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {**IMAGENET, "input_size": [3, 64, 64]}}
    encoder = load_teacher(written(tmp_path / "x", net.state_dict(), config))
    answers(encoder, torch.rand(2, 3, 64, 64), net)


def test_positions_of_another_size_than_the_config_says_are_resized_as_timm_does_it(tmp_path):
    net = layouts.vit(init_values=1e-5)
    args = {"img_size": 48, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2, "init_values": 1e-5}
    config = {"architecture": "vit_base_patch16_224", "model_args": args, "num_classes": 0}
    folder = written(
        tmp_path / "x", net.state_dict(), {**config, "pretrained_cfg": {**IMAGENET, "input_size": [3, 48, 48]}}
    )
    oracle = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    answers(load_teacher(folder), torch.rand(2, 3, 48, 48), oracle)


# transformers

HIBOU_CONFIG = {
    "architectures": ["Dinov2ModelWithRegisters"],
    "model_type": "dinov2",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "image_size": 32,
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
    "num_register_tokens": 4,
    "use_swiglu_ffn": True,
}
DINOV2 = {key: value for key, value in HIBOU_CONFIG.items() if "register" not in key and "swiglu" not in key}


def bit(pixels):
    """transformers' BitImageProcessor of these pixels."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "do_center_crop": True,
        "do_normalize": True,
        "do_rescale": True,
        "resample": 3,
        "size": {"shortest_edge": pixels.resize},
        "crop_size": {"height": pixels.crop, "width": pixels.crop},
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "rescale_factor": 1 / 255,
    }


PHIKON2 = Preprocessing(size=224, resize=224, crop=224, interpolation="bicubic")
# name -> preprocessor_config.json, or None where the repository has none; pixels; feature
TRANSFORMERS = {
    "microsoft/rad-dino": (bit(XRAY), XRAY, "cls"),
    "owkin/phikon-v2": (bit(PHIKON2), PHIKON2, "cls"),
    "kaiko-ai/midnight": (None, HALF, "cls_avg"),
    "histai/hibou-b": (bit(HIBOU), HIBOU, "cls"),
    "histai/hibou-L": (None, HIBOU, "cls"),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_known_transformers_folder_has_the_pixels_and_the_feature_of_its_card(name, tmp_path):
    processor, pixels, feature = TRANSFORMERS[name]
    state, net, _ = layouts.huggingface(second=True)
    folder = tmp_path / f"models--{name.replace('/', '--')}" / "snapshots" / "abc"
    encoder = load_teacher(written(folder, state, DINOV2, processor))
    assert (encoder.preprocessing, encoder.feature) == (pixels, feature)
    assert encoder.origin.startswith(f"{name}, Hugging Face DINOv2")
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = net.forward_features((images - encoder.mean) / encoder.std)
    want = tokens[:, 0] if feature == "cls" else torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images).embedding, want, rtol=1e-4, atol=1e-4)


def test_a_readme_that_loads_a_known_network_names_its_folder(tmp_path):
    state, _, _ = layouts.huggingface(second=True)
    own = "---\nlicense: mit\n---\n# Kaiko midnight\nmodel = AutoModel.from_pretrained('kaiko-ai/midnight')\n"
    encoder = load_teacher(written(tmp_path / "downloads", state, DINOV2, readme=own))
    assert (encoder.preprocessing, encoder.feature, encoder.licence) == (HALF, "cls_avg", "mit")
    after = "m = AutoModel.from_pretrained('me/mine')  # made from AutoModel.from_pretrained('kaiko-ai/midnight')"
    encoder = load_teacher(written(tmp_path / "mine", state, DINOV2, readme=after))
    assert encoder.feature == "cls"
    assert "kaiko" not in encoder.origin


def test_a_folder_without_pixels_says_whose_it_takes(tmp_path):
    state, _, _ = layouts.huggingface(second=True)
    report = inspect(written(tmp_path / "x", state, DINOV2))
    assert "pixels as its family has them (no preprocessor_config.json)" in report.origin
    assert "preprocessor_config" not in inspect(written(tmp_path / "y", state, DINOV2, bit(HALF))).origin


def test_a_folders_own_statistics_win_over_the_card(tmp_path):
    other = {**H_OPTIMUS, "pretrained_cfg": {**H_OPTIMUS["pretrained_cfg"], "mean": [0.5] * 3}}
    folder = Folder(Path(), Path(), other, name="bioptimus/H-optimus-0")
    assert folder.pixels().mean == (0.5,) * 3
    said = {**H_OPTIMUS, "pretrained_cfg": {**H_OPTIMUS["pretrained_cfg"], "crop_pct": 0.9}}
    assert Folder(Path(), Path(), said, name="bioptimus/H-optimus-0").pixels().resize == 248


@pytest.mark.parametrize("file", ["model.safetensors", ""])
def test_naming_the_weights_in_a_folder_is_naming_the_folder(file, tmp_path):
    """Else a RAD-DINO whose file is named, not its folder, would get ImageNet's pixels."""
    state, _, _ = layouts.huggingface(second=True)
    readme = "---\nlicense: msrla\n---\n"
    encoder = load_teacher(written(tmp_path / "x", state, DINOV2, bit(XRAY), readme) / file)
    assert (encoder.preprocessing, encoder.licence) == (XRAY, "msrla")


def test_a_file_under_another_name_is_read_alone(tmp_path):
    """As RAD-DINO's backbone_compatible.safetensors, which lies beside files of transformers in the lab's own names."""
    state, _, _ = layouts.huggingface(second=True)
    folder = written(tmp_path / "x", state, {**DINOV2, "hidden_size": 64}, bit(XRAY))
    own = folder / "own.safetensors"
    save_file(layouts.dinov2()[0], own)
    assert load_teacher(own).preprocessing != XRAY


def test_every_card_says_where_it_was_read_and_is_on_the_page():
    page = (Path(__file__).parents[2] / "docs" / "teachers.md").read_text()
    for name, card in CARDS.items():
        (line,) = [line for line in page.splitlines() if line.lower().startswith(f"| `{name}`")]
        assert card.source in line
        assert (card.feature == "cls_avg") == ("mean patch" in line)


def test_the_row_of_uni2_is_what_its_card_passes():
    args = CARDS["mahmoodlab/uni2-h"].args
    assert args == {name: UNI2_CALL[name] for name in args}
    assert {"depth", "num_heads", "embed_dim", "reg_tokens"} <= args.keys()


def test_a_hub_cache_folder_names_its_network(tmp_path):
    state, _, _ = layouts.huggingface(second=True)
    written(tmp_path / "models--histai--hibou-b" / "snapshots" / "abc", state, DINOV2)
    assert open_folder(tmp_path / "models--histai--hibou-b").name == "histai/hibou-b"
