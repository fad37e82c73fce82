"""An evaluation's encoders take a file's branch, architecture and pixels by hand, in the words of a distillation."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from ssl_kd.errors import UserError
from ssl_kd.eval.runner.build import open_encoders
from ssl_kd.eval.runner.config import EvalConfig, encoders_of


def encoders(**entry):
    return encoders_of(EvalConfig(encoders=[entry]))


def test_a_bare_state_dict_is_one_more_row(tmp_path):
    torch.manual_seed(0)
    file = str(tmp_path / "bare.safetensors")
    save_file(timm.create_model("regnetx_002").state_dict(), file)
    given = {"path": file, "arch": "regnetx_002", "mean": [0.5, 0.5, 0.5], "std": 0.25, "size": 64}
    (encoder,) = open_encoders(encoders(name="x", **given)).values()
    assert (encoder.arch, encoder.dim) == ("regnetx_002", 368)
    assert (encoder.preprocessing.size, encoder.preprocessing.std) == (64, (0.25,) * 3)
    assert encoders(**given)[0].title == "bare"


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"path": "x", "weights": "y"}, "path and weights are one thing"),
        ({"path": "x", "mean": [1, 2]}, "mean: expected three numbers"),
        ({"path": "x", "arch_args": {"a": 1}}, "arch_args: they belong to arch"),
        ({"path": "x", "arch": "y", "format": "moco"}, "either a format"),
        ({"path": "x", "archh": "y"}, "Did you mean arch"),
        ({"path": "x", "mean": {}}, "expected str"),
        ({"like": "x", "arch": "y"}, "arch says nothing without weights"),
    ],
)
def test_what_cannot_be_is_one_line(entry, says):
    with pytest.raises(UserError, match=says):
        encoders(name="a", **entry)
