"""Precision: chosen by a measurement, on the device that is there."""

import os
import subprocess
import sys

import pytest
import torch

from ssl_kd.errors import UserError
from ssl_kd.runtime import devices

CHECKED = {"MALLOC_PERTURB_": "77", "MALLOC_CHECK_": "3"}  # glibc: what was written past an end is noticed


@pytest.mark.parametrize(("pays", "want"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_follows_the_probe_and_a_word_overrides_it(monkeypatch, pays, want):
    monkeypatch.setattr(devices, "bf16_pays", lambda device: pays)
    assert devices.resolve("auto", "cpu") == want
    assert devices.resolve("32-true", "cpu") == "32-true"
    assert devices.resolve("bf16-mixed", "cpu") == "bf16-mixed"


def test_the_probe_answers_on_this_machine():
    assert devices.bf16_pays("cpu") in (True, False)


def test_the_probe_leaves_what_a_seed_draws_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    devices.bf16_pays.cache_clear()
    torch.manual_seed(0)
    devices.bf16_pays("cpu")
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said():
    with pytest.raises(UserError, match="sees no GPU"):
        devices.make_fabric("cuda", "auto")


NARROW = """
import torch
from ssl_kd.runtime.devices import sound_gradients
torch.set_num_threads(1)
net = torch.nn.Conv2d({narrow}, {narrow}, 1, 2, bias=False).to(memory_format=torch.channels_last)
wide = torch.nn.Conv2d({narrow}, {narrow}, 1, 2, bias=False).double()
wide.load_state_dict(net.state_dict())
for _ in range(30):
    x = torch.randn(20, {narrow}, 8, 8)
    with sound_gradients(net):
        net(x.contiguous(memory_format=torch.channels_last)).square().sum().backward()
    wide(x.double()).square().sum().backward()
    torch.testing.assert_close(net.weight.grad.double(), wide.weight.grad, rtol=1e-4, atol=1e-2)
    others = [torch.randn(37 * i + 1) for i in range(50)]
assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()
"""


@pytest.mark.parametrize("narrow", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_gradients_of_narrow_strided_layers_leave_other_memory_alone(narrow):
    """On a processor with AVX2 alone torch 2.14.1 dies here without sound_gradients: "free(): invalid next size"."""
    code = NARROW.format(narrow=narrow)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | CHECKED)
    assert done.returncode == 0, done.stderr[-2000:]


def test_onednn_comes_back_after_an_error_too(monkeypatch):
    monkeypatch.setattr(devices, "writes_out_of_bounds", lambda network: True)
    seen = []

    def backward():
        with devices.sound_gradients(torch.nn.Linear(2, 2)):
            seen.append(torch.backends.mkldnn.enabled)
            raise ValueError("lost")

    with pytest.raises(ValueError, match="lost"):
        backward()
    assert seen == [False]
    assert torch.backends.mkldnn.enabled == torch.backends.mkldnn.is_available()
