"""Every engine gives the network's own features and leaves the network alone; one that does not is refused."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from ssl_kd.errors import UserError
from ssl_kd.eval.extraction import engines
from ssl_kd.eval.extraction.engines import ENGINES, fold, started
from ssl_kd.models.encoder import Encoder, build
from ssl_kd.models.preprocessing import Preprocessing

SIDE = 32


def worn(arch, **settings):
    """A network whose batch norms have seen something, so that folding has something to do."""
    torch.manual_seed(0)
    encoder = build(arch, None, Preprocessing().at(SIDE), **settings).eval()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.3)
    return encoder


def pixels(n=5):
    return torch.randint(0, 256, (n, 3, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def norms(encoder):
    return [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]


def own(encoder, images):
    with torch.inference_mode():
        return encoder(images.float() / 255).embedding


@pytest.mark.parametrize(
    "arch", ["resnet18", "torchvision/resnet18", "mobilenetv3_small_050", "regnety_002", "vit_tiny_patch16_224"]
)
def test_folding_changes_no_feature_and_leaves_no_norm_that_follows_a_convolution(arch):
    encoder = worn(arch, **({"img_size": SIDE} if "vit" in arch else {}))
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    folded = fold(encoder)
    torch.testing.assert_close(own(folded, pixels()), own(encoder, pixels()), rtol=1e-4, atol=1e-5)
    assert not norms(folded)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


class Odd(nn.Module):
    """Norms that must stay: one before its convolution, one whose convolution is read twice, one that serves twice."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.read_twice = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.b, self.pool, self.c, self.twice = (
            nn.Conv2d(4, 4, 1),
            nn.AvgPool2d(1),
            nn.Conv2d(4, 4, 1),
            nn.BatchNorm2d(4),
        )

    def forward(self, x):
        x = self.a(self.first(x))
        x = self.read_twice(x) + self.pool(x)
        return self.twice(self.b(x)) + self.twice(self.c(x))


def test_only_a_norm_that_alone_reads_its_convolution_is_folded():
    torch.manual_seed(0)
    encoder = Encoder.from_module(Odd(), 4, Preprocessing().at(SIDE)).eval()
    for norm in norms(encoder):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    assert len(norms(fold(encoder))) == 3
    torch.testing.assert_close(own(fold(encoder), pixels()), own(encoder, pixels()))


@pytest.mark.parametrize("name", [name for name in ENGINES if name != "compiled"])
def test_engines_give_the_networks_own_features_for_any_batch(name):
    if name == "openvino":
        pytest.importorskip("openvino")
    encoder, images = worn("resnet10t"), pixels(5)
    expected = own(encoder, images)
    with started(encoder, ("pool",), name, batch_size=3) as run:
        got = torch.cat([run(part)["pool"] for part in images.split(3)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
    assert run.parity["cosine"] > 0.99999
    assert run.parity["relative error"] < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_network_gives_its_own_features():
    encoder, images = worn("resnet10t"), pixels(5)
    with started(encoder, ("pool",), "compiled", batch_size=3) as run:
        got = torch.cat([run(part)["pool"] for part in images.split(3)])
    torch.testing.assert_close(got, own(encoder, images), rtol=1e-4, atol=1e-5)


def test_an_engine_that_answers_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(
        engines, "fold", lambda _: worn("resnet10t").apply(lambda m: getattr(m, "reset_parameters", int)())
    )
    with started(worn("resnet10t"), ("pool",), "folded") as run, pytest.raises(UserError, match="use engine eager"):
        run(pixels())


def test_an_engine_that_answers_no_numbers_is_refused(monkeypatch):
    nothing = lambda *_: lambda images: {"pool": torch.full((len(images), 512), torch.nan)}  # noqa: E731
    monkeypatch.setitem(ENGINES, "broken", nothing)
    with started(worn("resnet10t"), ("pool",), "broken") as run, pytest.raises(UserError, match="use engine eager"):
        run(pixels())


@pytest.mark.parametrize(
    ("engine", "says"), [("foldet", "folded"), ("openvino", "pip install")], ids=["a typing error", "not installed"]
)
def test_an_engine_that_cannot_be_is_said_in_one_line(monkeypatch, engine, says):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=says), started(worn("resnet10t"), ("pool",), engine):
        pass
