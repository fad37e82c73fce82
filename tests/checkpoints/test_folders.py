"""Folders of transformers and timm, shards, wrappers and architectures by hand: read whole, or refused in one line."""

import json
import os
import shlex

import layouts
import pytest
import timm
import torch
from safetensors.torch import save_file

from ssl_kd.checkpoints.folders import processor_pixels
from ssl_kd.checkpoints.loading import inspect, load_teacher
from ssl_kd.checkpoints.reading import colours, reading, spelled
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError
from ssl_kd.models.preprocessing import Preprocessing, timm_pixels

DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
    "num_channels": 3,
}
RAD = {
    "image_processor_type": "BitImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": 40},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "image_mean": [0.53, 0.53, 0.53],
    "image_std": [0.26, 0.26, 0.26],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
}


def write_json(path, content):
    path.write_text(json.dumps(content))


def folder_of(tmp_path, state, config, processor=None, readme="", shards=0, kind="safetensors"):
    tmp_path.mkdir(parents=True, exist_ok=True)
    names = list(state)
    stem = "model" if kind == "safetensors" else "pytorch_model"
    cuts = [names[i :: max(1, shards)] for i in range(max(1, shards))]
    where = {}
    for i, part in enumerate(cuts, start=1):
        file = f"{stem}-{i:05}-of-{shards:05}.{kind}" if shards else f"{stem}.{kind}"
        tensors = {name: state[name].contiguous() for name in part}
        if kind == "safetensors":
            save_file(tensors, tmp_path / file, metadata={"format": "pt"})
        else:
            torch.save(tensors, tmp_path / file)
        where |= dict.fromkeys(part, file)
    if shards:
        write_json(tmp_path / f"{stem}.{kind}.index.json", {"weight_map": where})
    write_json(tmp_path / "config.json", config)
    if processor:
        write_json(tmp_path / "preprocessor_config.json", processor)
    if readme:
        (tmp_path / "README.md").write_text(readme)
    return tmp_path


def features(encoder, images):
    with torch.no_grad():
        return encoder(images).embedding


@pytest.fixture(scope="module")
def dinov2():
    state, net, _ = layouts.huggingface(second=True)
    return state, net


# Shards


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_a_folder_of_shards_is_the_network_that_the_index_and_the_whole_file_are(kind, dinov2, tmp_path):
    state, net = dinov2
    folder = folder_of(tmp_path / "x", state, DINOV2, RAD, shards=3, kind=kind)
    encoder = load_teacher(folder)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        want = net((images - encoder.mean) / encoder.std)
    torch.testing.assert_close(features(encoder, images), want, rtol=1e-5, atol=1e-5)
    index = next(folder.glob("*.index.json"))
    whole = folder_of(tmp_path / "y", state, DINOV2, RAD)
    assert load_teacher(index).digest == load_teacher(whole).digest == encoder.digest
    assert set(inspect(folder).used) == set(inspect(whole).used)


def test_only_the_shards_of_what_is_used_are_read(dinov2, tmp_path):
    from ssl_kd.checkpoints.sources import source

    folder = folder_of(tmp_path / "x", dinov2[0], DINOV2, shards=3)
    file = source(folder).file
    (wanted,) = (tensor for name, tensor in file.leaves() if name == "layernorm.weight")
    others = [tensor for name, tensor in file.leaves() if name == "layernorm.bias"]
    file.fill([wanted])
    assert torch.equal(wanted, dinov2[0]["layernorm.weight"])
    assert not others[0].any()


def swapped(content, _):
    """The index names the other shard for one tensor."""
    where = content["weight_map"]
    where["layernorm.weight"] = next(file for file in where.values() if file != where["layernorm.weight"])


def spoiled(folder, change):
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content, folder)
    write_json(index, content)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda c, f: c["weight_map"].pop("layernorm.weight"),
            "tensors that model.safetensors.index.json does not name",
        ),
        (swapped, "which lacks it"),
        (lambda c, f: c["weight_map"].update(more="model-00001-of-00002.safetensors"), "says that more lies in"),
        (lambda c, f: (f / "model-00002-of-00002.safetensors").unlink(), "shard model-00002-of-00002.*no such file"),
        (lambda c, f: c["weight_map"].update(x="../secret-00001-of-00002.safetensors"), "which is no shard beside it"),
        (lambda c, f: c["weight_map"].update(x="/etc/passwd"), "which is no shard beside it"),
        (lambda c, f: c.update(weight_map=[]), "has no weight_map"),
        (lambda c, f: c["weight_map"].update({str(i): f"a-{i:05}-of-00999.bin" for i in range(999)}), "at most 256"),
        (lambda c, f: os.truncate(f / "model-00002-of-00002.safetensors", 500), "shard model-00002"),
    ],
)
def test_shards_that_do_not_fit_their_index_are_refused(change, says, dinov2, tmp_path):
    folder = folder_of(tmp_path / "x", dinov2[0], DINOV2, shards=2)
    spoiled(folder, change)
    with pytest.raises(CheckpointError, match=says) as error:
        load_teacher(folder)
    assert str(error.value).isprintable()


def test_a_shard_on_its_own_is_called_a_part(dinov2, tmp_path):
    folder = folder_of(tmp_path / "x", dinov2[0], DINOV2, shards=2)
    with pytest.raises(CheckpointError, match=r"part 1 of 2 of a network.*model.safetensors.index.json"):
        load_teacher(folder / "model-00001-of-00002.safetensors")


# transformers


def test_a_transformers_folder_decides_pixels_heads_and_epsilon(dinov2, tmp_path):
    config = {**DINOV2, "num_attention_heads": 4, "layer_norm_eps": 1e-3}
    folder = folder_of(tmp_path / "x", dinov2[0], config, RAD, "---\nlicense: cc-by-nc-4.0\n---\nA card.")
    encoder = load_teacher(folder)
    assert encoder.preprocessing == Preprocessing((0.53,) * 3, (0.26,) * 3, 32, 40, 32, "bicubic")
    assert encoder.backbone.blocks[0].attn.num_heads == 4
    assert {m.eps for m in encoder.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-3}
    assert encoder.licence == "cc-by-nc-4.0"
    assert "licence " in str(inspect(folder))
    assert "cc-by-nc-4.0" in str(inspect(folder))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"hidden_size": 256}, "says hidden_size 256, but the weights beside it have 128"),
        ({"num_hidden_layers": 3}, "says num_hidden_layers 3, but the weights beside it have 2"),
        ({"patch_size": 14}, "says patch_size 14, but the weights beside it have 8"),
        ({"num_channels": 4}, "says num_channels 4, but the weights beside it have 3"),
    ],
)
def test_a_config_that_speaks_of_another_network_is_refused(wrong, says, dinov2, tmp_path):
    folder = folder_of(tmp_path / "x", dinov2[0], DINOV2 | wrong)
    with pytest.raises(BrokenCheckpoint, match=says):
        load_teacher(folder)
    assert says in inspect(folder).problem


@pytest.mark.parametrize(
    ("processor", "pixels"),
    [
        (
            {
                "feature_extractor_type": "ViTFeatureExtractor",
                "size": 224,
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
            Preprocessing((0.5,) * 3, (0.5,) * 3, 224, 224, 224, "bilinear", square=True),
        ),
        (
            {"size": {"height": 96, "width": 96}, "do_normalize": False, "resample": 3},
            Preprocessing((0.0,) * 3, (1.0,) * 3, 96, 96, 96, "bicubic", square=True),
        ),
        (RAD, Preprocessing((0.53,) * 3, (0.26,) * 3, 32, 40, 32, "bicubic")),
    ],
)
def test_an_image_processors_settings_are_understood(processor, pixels):
    assert processor_pixels(processor) == pixels


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"do_rescale": False}, "not scaled to"),
        ({"rescale_factor": 1.0}, "not scaled to"),
        ({"size": {"height": 3, "width": 4}}, "only squares"),
        ({"image_mean": [1, 2]}, "mean and std need three numbers"),
        ({"resample": 9}, "cannot be used"),
        ({"size": "large"}, "cannot be used"),
        ({"crop_pct": 0.9}, "crop_pct"),
    ],
)
def test_an_image_processor_that_is_not_done_here_is_one_line(change, says):
    with pytest.raises(UserError, match=says) as error:
        processor_pixels(RAD | change)
    assert str(error.value).isprintable()


# timm

TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 128, "depth": 2, "num_heads": 2}
PIXELS = {"input_size": [3, 32, 32], "mean": [0.7, 0.6, 0.5], "std": [0.2, 0.2, 0.2], "crop_pct": 0.8}


def timm_config(**more):
    args = {**TIMM, "init_values": 1e-5, "dynamic_img_size": True, "num_classes": 0}
    return {
        "architecture": "vit_small_patch16_224",
        "num_features": 128,
        "global_pool": "token",
        "model_args": args,
        "pretrained_cfg": {**PIXELS, "interpolation": "bicubic", "license": "apache-2.0"},
    } | more


def test_a_timm_folder_is_read_as_timm_builds_it(tmp_path):
    net = layouts.vit(init_values=1e-5)
    folder = folder_of(tmp_path / "x", net.state_dict(), timm_config())
    encoder = load_teacher(folder)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(features(encoder, images), net((images - encoder.mean) / encoder.std))
    assert encoder.preprocessing == Preprocessing((0.7, 0.6, 0.5), (0.2,) * 3, 32, 40, 32, "bicubic")
    assert (encoder.feature, encoder.licence) == ("cls", "apache-2.0")


def test_a_cnn_of_a_timm_folder_is_read_without_its_classifier(tmp_path):
    net = layouts.shaken(timm.create_model("convnext_atto", num_classes=7))
    config = {"architecture": "convnext_atto", "num_classes": 7, "num_features": 320, "pretrained_cfg": PIXELS}
    encoder = load_teacher(folder_of(tmp_path / "x", net.state_dict(), config))
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        want = net.forward_head(net.forward_features((images - encoder.mean) / encoder.std), pre_logits=True)
    torch.testing.assert_close(features(encoder, images), want)


def test_gated_layers_that_a_card_passes_as_code_are_seen_in_the_weights(tmp_path):
    """Virchow's folder: `mlp_layer` and `act_layer` are in its card only, and the card concatenates the mean patch token."""
    net = layouts.vit(base="vit_giant_patch14_dinov2", mlp_ratio=5.375, init_values=1e-5, num_heads=2)
    args = {**TIMM, "init_values": 1e-5, "mlp_ratio": 5.375}
    config = timm_config(global_pool="", model_args=args)
    folder = folder_of(tmp_path / "models--paige-ai--Virchow" / "snapshots" / "abc", net.state_dict(), config)
    encoder = load_teacher(folder)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        tokens = net.forward_features((images - encoder.mean) / encoder.std)
    want = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1)
    assert encoder.feature == "cls_avg"
    torch.testing.assert_close(features(encoder, images), want)
    assert load_teacher(tmp_path / "models--paige-ai--Virchow").digest == encoder.digest


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_features": 64}, "says num_features 64"),
        ({"architecture": "vit_smal_patch16_224"}, "Did you mean vit_small_patch16_224"),
        ({"model_args": {**TIMM, "depth": 3}}, "lacks"),
        ({"model_args": "x"}, "model_args is no mapping"),
        ({"pretrained_cfg": {**PIXELS, "input_size": [13, 32, 32]}}, "takes 13 channels"),
        ({"pretrained_cfg": {"input_size": [3, 32, 32]}}, "cannot be used"),
        ({"pretrained_cfg": {**PIXELS, "crop_mode": "border"}}, "crop_mode"),
    ],
)
def test_a_timm_folder_that_disagrees_with_itself_is_refused(change, says, tmp_path):
    folder = folder_of(tmp_path / "x", layouts.vit(init_values=1e-5).state_dict(), timm_config(**change))
    with pytest.raises(UserError, match=says) as error:
        load_teacher(folder)
    assert str(error.value).isprintable()


def test_squash_is_a_square():
    assert timm_pixels({**PIXELS, "crop_mode": "squash", "crop_pct": 1.0}).square


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '"x"', "\0"])
def test_a_damaged_config_is_one_line(text, dinov2, tmp_path):
    folder = folder_of(tmp_path / "x", dinov2[0], DINOV2)
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config.json") as error:
        load_teacher(folder)
    assert str(error.value).isprintable()


def test_both_a_whole_file_and_an_index_are_refused(dinov2, tmp_path):
    folder = folder_of(tmp_path / "x", dinov2[0], DINOV2, shards=2)
    save_file({k: v.contiguous() for k, v in dinov2[0].items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"holds both model\.safetensors and model\.safetensors\.index\.json"):
        load_teacher(folder)


# Wrappers and branches


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: layouts.prefixed(s, "module."),
        lambda s: layouts.prefixed(s, "module._orig_mod."),
        lambda s: layouts.prefixed(s, "_orig_mod."),
        lambda s: {"state_dict": layouts.prefixed(s, "model.")},
        lambda s: {"model": {"state_dict": s}, "epoch": 3},
        lambda s: {"model": layouts.renamed(s, [(r"^blocks\.", "blocks._orig_mod.")])},
    ],
)
def test_wrappers_that_change_no_weight_are_taken_off(wrap, tmp_path):
    """A DINOv2 in the lab's names is known by them, whatever stands around."""
    state, _, _ = layouts.dinov2()
    plain = load_teacher(layouts.save(state, "zip", tmp_path))
    path = layouts.save(wrap(state), "zip", tmp_path)
    encoder, report = load_teacher(path), inspect(path)
    assert (encoder.digest, encoder.origin) == (plain.digest, plain.origin)
    assert report.problem is None
    assert len(report.used) + len(report.dropped) == len(state)


def test_a_branch_can_be_named(tmp_path):
    one, other = layouts.shaken(layouts.vit(), 1), layouts.shaken(layouts.vit(), 2)
    tree = {
        "nets": {**layouts.prefixed(one.state_dict(), "a.enc."), **layouts.prefixed(other.state_dict(), "b.enc.")},
        "epoch": 1,
    }
    path = layouts.save(tree, "zip", tmp_path)
    images = torch.rand(1, 3, 32, 32)
    for branch in ("nets/b.enc.", "nets/b.enc"):
        encoder = load_teacher(path, branch=branch)
        with torch.no_grad():
            want = other((images - encoder.mean) / encoder.std)
        torch.testing.assert_close(features(encoder, images), want, rtol=1e-4, atol=1e-4)
        assert all(name.startswith("nets/b.enc.") for name in inspect(path, branch=branch).used)
    with pytest.raises(CheckpointError, match=r"no tensor lies below nets/c; the file has nets/a"):
        load_teacher(path, branch="nets/c")


# Any architecture by hand


@pytest.mark.parametrize(
    "arch", ["tf_efficientnet_lite0", "regnetx_002", "convnext_atto", "torchvision/mobilenet_v3_small"]
)
def test_a_bare_state_dict_of_any_network_is_read_by_its_architecture(arch, tmp_path):
    import torchvision

    source, _, name = arch.rpartition("/")
    whole = torchvision.models.get_model(name) if source else timm.create_model(name)
    path = layouts.save(
        {"state_dict": layouts.prefixed(layouts.shaken(whole).state_dict(), "module.")}, "zip", tmp_path
    )
    encoder = load_teacher(path, arch=arch, mean=0.5, std=[0.5, 0.4, 0.3], size=64)
    assert encoder.preprocessing == Preprocessing((0.5,) * 3, (0.5, 0.4, 0.3), interpolation="bicubic").at(64)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        x = (images - encoder.mean) / encoder.std
        last = [part for part in whole.modules() if isinstance(part, torch.nn.Linear)][-1]
        torch.testing.assert_close(last(features(encoder, images)), whole(x), rtol=1e-4, atol=1e-4)
    report = inspect(path, arch=arch, mean=0.5, std=0.5)
    assert report.problem is None
    assert all(name.startswith("state_dict/module.") for name in report.used)
    assert len(report.dropped) == 2  # the classifier's weight and bias


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"arch": "regnetx_002"}, "mean and std: nothing says which pixels.*--arch regnetx_002.pycls_in1k"),
        ({"arch": "regnetx_002", "mean": 0.5}, "mean and std: nothing says"),
        ({"arch": "regnetx_004", "mean": 0.5, "std": 0.5}, "lacks|has other shapes"),
        ({"arch": "regnetx_002.nobody"}, "Invalid pretrained tag"),
        ({"arch": "regnetx_00"}, "no such architecture"),
        ({"arch": "regnetx_002", "mean": [0.5] * 13, "std": [0.5] * 13}, "got 13: networks of other channels"),
        (
            {"arch": "regnetx_002", "arch_args": {"in_chans": 13}, "mean": 0.5, "std": 0.5},
            "in_chans is 13, and images have",
        ),
        ({"arch": "regnetx_002", "format": "moco"}, "either a format"),
        ({"arch_args": {"img_size": 3}}, "belong to arch"),
        ({"arch": "regnetx_002", "mean": 0.5, "std": 0.5, "size": -3}, "a side in pixels"),
        ({"arch": "regnetx_002", "mean": 0.5, "std": 0.5, "branch": "elsewhere."}, "no tensor lies below"),
    ],
)
def test_what_does_not_fit_by_hand_is_one_line(given, says, tmp_path):
    path = layouts.save(timm.create_model("regnetx_002").state_dict(), "zip", tmp_path)
    with pytest.raises(UserError, match=says) as error:
        load_teacher(path, **given)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("arch", ["regnetx_002", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("bands", [1, 13])
def test_a_network_of_other_bands_is_named_whatever_its_first_layer_is_called(arch, bands, tmp_path):
    path = layouts.save(timm.create_model(arch, in_chans=bands).state_dict(), "zip", tmp_path)
    with pytest.raises(BrokenCheckpoint, match=f"takes {bands} channels, and images have 3") as error:
        load_teacher(path, arch=arch, mean=0.5, std=0.5)
    assert str(error.value).isprintable()


def test_the_next_line_can_be_pasted_into_a_shell():
    given = {"arch": "x", "arch_args": {"img_size": 32, "act": "it's"}, "mean": ["0.5", "0.4", "0.3"], "size": None}
    words = shlex.split(" ".join(spelled(given)))
    assert words == [
        "--teacher-arch",
        "x",
        "--teacher-arch-args",
        json.dumps(given["arch_args"]),
        "--teacher-mean",
        *given["mean"],
    ]


def test_a_tensor_too_many_is_refused_by_hand_as_well(tmp_path):
    state = timm.create_model("regnetx_002").state_dict() | {"adapter.weight": torch.ones(2)}
    with pytest.raises(BrokenCheckpoint, match=r"has no place for 1 tensors: adapter\.weight"):
        load_teacher(layouts.save(state, "zip", tmp_path), arch="regnetx_002", mean=0, std=1)


def test_a_tag_of_timm_says_its_pixels(tmp_path):
    path = layouts.save(timm.create_model("tf_efficientnet_lite0").state_dict(), "zip", tmp_path)
    encoder = load_teacher(path, arch="tf_efficientnet_lite0.in1k")
    assert (encoder.preprocessing.mean, encoder.preprocessing.size) == ((0.5,) * 3, 224)
    assert encoder.arch == "tf_efficientnet_lite0"


def test_pixels_by_hand_win_over_a_format(tmp_path):
    path = layouts.save(layouts.dinov2()[0], "zip", tmp_path)
    assert load_teacher(path, mean=0.5, std=0.25, size=28).preprocessing.mean == (0.5,) * 3
    assert load_teacher(path, size=28).preprocessing.size == 28


@pytest.mark.parametrize(
    "text", ["0.1 0.2 0.3", "0.1,0.2,0.3", "[0.1, 0.2, 0.3]", ["0.1", "0.2", "0.3"], (0.1, 0.2, 0.3), ["[0.1,0.2,0.3]"]]
)
def test_three_numbers_may_be_written_in_any_way(text):
    assert colours("mean", text) == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("bad", ["red", [1, 2], {}, True, [True, 1, 1], ["x"]])
def test_numbers_that_are_none_are_named(bad):
    with pytest.raises(UserError, match="mean: expected"):
        colours("mean", bad)


def test_nothing_is_nothing():
    assert not reading("cls", "", None, "").by_hand
