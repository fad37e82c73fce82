"""Weights that timm and torchvision publish: with SSL_KD_OFFLINE only what lies in those libraries' caches."""

import socket

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models

from ssl_kd import load_teacher
from ssl_kd.errors import CheckpointError


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    """Empty caches of both libraries, no network, SSL_KD_OFFLINE set."""
    monkeypatch.setenv("SSL_KD_OFFLINE", "1")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("went to the network"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("asked for an address"))
    return tmp_path


@pytest.mark.parametrize("name", ["timm/resnet18", "timm/resnet18.a1_in1k", "torchvision/resnet18"])
def test_offline_means_no_network_for_the_libraries_either(name):
    with pytest.raises(CheckpointError, match=f"{name}: SSL_KD_OFFLINE is set, and its weights .* are not in"):
        load_teacher(name)


def test_offline_timm_weights_come_from_its_own_cache(caches):
    made = timm.create_model("test_resnet")
    folder = caches / "hub/models--timm--test_resnet.r160_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("abc")
    (folder / "snapshots/abc").mkdir(parents=True)
    save_file(made.state_dict(), folder / "snapshots/abc/model.safetensors")
    loaded = load_teacher("timm/test_resnet").backbone.state_dict()
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in loaded.items())


def test_offline_torchvision_weights_come_from_its_own_cache(caches):
    made = models.shufflenet_v2_x0_5().state_dict()
    file = models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url.rpartition("/")[2]
    (caches / "torch/hub/checkpoints").mkdir(parents=True)
    torch.save(made, caches / "torch/hub/checkpoints" / file)
    loaded = load_teacher("torchvision/shufflenet_v2_x0_5").backbone.state_dict()
    assert all(torch.equal(tensor, made[name]) for name, tensor in loaded.items())
