"""Precision: chosen by a measurement, on the device that is there."""

import pytest
import torch

from ssl_kd.errors import UserError
from ssl_kd.runtime import devices


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
