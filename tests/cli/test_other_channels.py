"""A network for other than three channels is named and refused by every command, in one line, with exit code 2."""

import json

import layouts
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import ssl_kd
from ssl_kd.cli.main import main
from ssl_kd.errors import UserError
from ssl_kd.models.preprocessing import Preprocessing

SENTINEL = 13  # bands of Sentinel-2, of which MoCo's and DINO's ResNets are published


def moco(tmp_path):
    tree, _, _ = layouts.moco("resnet18")
    state = {**tree["state_dict"], "module.encoder_q.conv1.weight": torch.ones(64, SENTINEL, 7, 7)}
    return layouts.save({**tree, "state_dict": state}, "zip", tmp_path), ()


def dinov2(tmp_path):
    state = {**layouts.dinov2()[0], "patch_embed.proj.weight": torch.ones(128, 4, 8, 8)}
    return layouts.save(state, "zip", tmp_path), ()


def by_hand(tmp_path):
    state = timm.create_model("regnetx_002", in_chans=6).state_dict()
    return layouts.save(state, "zip", tmp_path), ("--arch", "regnetx_002", "--mean", "0.5", "--std", "0.5")


def by_hand_with_six_means(tmp_path):
    path, _ = by_hand(tmp_path)
    return path, ("--arch", "regnetx_002", "--mean", *["0.5"] * 6, "--std", *["0.5"] * 6)


def by_hand_with_channels(tmp_path):
    path, given = by_hand(tmp_path)
    return path, (*given, "--arch-args", "{in_chans: 6}")


def timms_folder(tmp_path, said=6):
    net = timm.create_model("regnetx_002", in_chans=6)
    config = {
        "architecture": "regnetx_002",
        "model_args": {"in_chans": 6},
        "pretrained_cfg": {"input_size": [said, 64, 64], "mean": [0.5] * said, "std": [0.5] * said},
    }
    return folder(tmp_path, net.state_dict(), config), ()


def timms_folder_with_three_means(tmp_path):
    return timms_folder(tmp_path, 3)


def transformers_folder(tmp_path):
    state = {**layouts.huggingface(second=True)[0]}
    state["embeddings.patch_embeddings.projection.weight"] = torch.ones(128, 4, 8, 8)
    return folder(tmp_path, state, {"model_type": "dinov2", "num_channels": 4}), ()


def folder(tmp_path, state, config):
    path = tmp_path / "folder"
    path.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config))
    return path


TEACHERS = (
    moco,
    dinov2,
    by_hand,
    by_hand_with_six_means,
    by_hand_with_channels,
    timms_folder,
    timms_folder_with_three_means,
    transformers_folder,
)


def commands(path, given, images, tmp_path):
    """Every command that reads a teacher, as it is typed."""
    out = tmp_path / "out"
    yield ["inspect", path, *given]
    yield ["distill", "--teacher", path, *given, "--student", "resnet18", "--images", images, "--out", out / "run"]
    yield ["embed", "--weights", path, *given, "--images", images, "--out", out / "x.npz"]
    yield ["export", path, *given, "--to", "safetensors", "--out", out / "x.safetensors"]
    if not given:  # a bare state dict has to be exported first, to be known again
        yield ["index", "build", "--weights", path, "--images", images, "--out", out / "x.index"]
    config = tmp_path / "eval.yaml"
    options = {key.removeprefix("--").replace("-", "_"): values for key, values in grouped(given)}
    config.write_text(
        json.dumps(
            {
                "out": str(out / "eval"),
                "tasks": [{"path": str(images)}],
                "encoders": [{"name": "t", "path": str(path), **options}],
                "evaluators": ["knn"],
            }
        )
    )
    yield ["eval", "--config", config]


def grouped(given):
    """Options and their values, as a config has them."""
    starts = [i for i, word in enumerate(given) if word.startswith("--")]
    for start, end in zip(starts, [*starts[1:], len(given)], strict=False):  # nothing where there are no options
        values = list(given[start + 1 : end])
        if given[start] in ("--mean", "--std"):
            yield given[start], [float(value) for value in values]
        else:
            yield given[start], {"in_chans": 6} if "in_chans" in values[0] else values[0]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    for name in "ab":
        for part in ("train", "test"):
            (root / part / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (40, 40), (i * 40, 90, 200)).save(root / part / name / f"{i}.png")
    return root


@pytest.mark.parametrize("teacher", TEACHERS)
def test_every_command_names_the_channels_and_writes_nothing(teacher, images, tmp_path, capsys):
    path, given = teacher(tmp_path)
    for words in commands(path, given, images, tmp_path):
        code = main([str(word) for word in words])
        seen = capsys.readouterr()
        said = (seen.err or seen.out).strip()
        assert code == 2, (words, said)
        line = next(line for line in said.splitlines() if "channel" in line)
        assert line.isprintable()
        assert words[0] == "inspect" or said == line, said
        assert not list((tmp_path / "out").rglob("*.safetensors"))


def test_from_python_a_module_of_six_channels_is_given_three_and_says_so():
    module = torch.nn.Sequential(torch.nn.Conv2d(6, 8, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    encoder = ssl_kd.Encoder.from_module(module, 8, Preprocessing().at(32))
    with pytest.raises(UserError, match=r"images must be \(B, 3, H, W\), got \(2, 6, 32, 32\)"):
        encoder(torch.rand(2, 6, 32, 32))


@pytest.mark.parametrize("numbers", [6, 13])
def test_pixels_of_other_channels_cannot_be_described(numbers):
    with pytest.raises(UserError, match="mean and std need three numbers each"):
        Preprocessing(mean=(0.5,) * numbers, std=(0.5,) * numbers)
