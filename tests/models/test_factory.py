"""Networks without numbers: their shapes alone, of whatever constructor."""

import pytest
import torch
from torch import nn

from ssl_kd.errors import UserError
from ssl_kd.models.factory import make, without_numbers

SAID = (  # by torch 2.6
    "aten::_unique2: attempted to run this operator with Meta tensors, but there was no fake impl",
    "Tensor.item() cannot be called on meta tensors",
)


class Calculates(nn.Module):
    """Like a network whose constructor needs numbers, which tensors without any do not have."""

    says = SAID[0]

    def __init__(self):
        super().__init__()
        if torch.empty(1).is_meta:
            raise RuntimeError(self.says)
        self.layer = nn.Linear(3, int(torch.ones(4).sum()))


@pytest.mark.parametrize("says", SAID)
def test_a_constructor_that_calculates_leaves_no_numbers_and_moves_no_random_ones(says, monkeypatch):
    monkeypatch.setattr(Calculates, "says", says)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    made = without_numbers(Calculates)
    assert {name: (tuple(t.shape), t.is_meta) for name, t in made.state_dict().items()} == {
        "layer.weight": ((4, 3), True),
        "layer.bias": ((4,), True),
    }
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("arch", ["regnetx_002", "resnet18", "vit_tiny_patch16_224", "torchvision/resnet18"])
def test_a_network_without_numbers_has_the_shapes_of_one_with(arch):
    empty, full = without_numbers(lambda: make(arch, {})), make(arch, {})
    assert all(t.is_meta for t in empty.state_dict().values())
    assert {n: t.shape for n, t in empty.state_dict().items()} == {n: t.shape for n, t in full.state_dict().items()}


def test_what_does_not_fit_is_built_once():
    calls = []

    def build():
        calls.append(1)
        return make("resnet18", {"no_such_argument": 1})

    with pytest.raises(UserError, match="cannot be built"):
        without_numbers(build)
    assert calls == [1]
