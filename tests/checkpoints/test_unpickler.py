"""A checkpoint is data: nothing in it runs, and what is broken is said in one line."""

import argparse
import time

import hostile
import numpy as np
import pytest
import torch

from ssl_kd.checkpoints.loading import inspect, load_teacher, read
from ssl_kd.errors import CheckpointError, UnknownCheckpoint, UnsafeCheckpoint


@pytest.mark.timeout(60)
@pytest.mark.parametrize("what", hostile.FILES)
def test_hostile_file_is_refused_in_one_line(what, tmp_path):
    path = hostile.FILES[what](tmp_path)
    began = time.perf_counter()
    with pytest.raises(CheckpointError) as refused:
        load_teacher(path)
    assert time.perf_counter() - began < 20  # the longest, millions of opcodes, takes two seconds
    message = str(refused.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 600
    assert {p.name for p in tmp_path.iterdir()} == {path.name}


@pytest.mark.parametrize("what", [name for name in hostile.FILES if "os.system" in name or "builtins" in name])
def test_what_asks_for_code_is_called_unsafe(what, tmp_path):
    path = hostile.FILES[what](tmp_path)
    with pytest.raises(UnsafeCheckpoint, match="refused: it asks for"):
        inspect(path)


def test_the_payload_would_run_if_python_read_it(tmp_path):
    """The trap is real: Python's own unpickler falls into it."""
    path = hostile.saved(tmp_path, {"state_dict": hostile.touch(tmp_path)})
    torch.load(path, weights_only=False)
    assert (tmp_path / "ran").exists()


def values():
    """One of everything that training scripts save beside weights."""
    base = torch.arange(24.0)
    return {
        "float32": base,
        "double": base.double(),
        "half": base.half(),
        "bfloat16": base.bfloat16(),
        "long": torch.arange(5),
        "bool": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": base.view(4, 6).T,
        "slice": base[3:11:2],
        "shared": base.view(2, 12),
        "expanded": torch.ones(1).expand(5, 7),
        "parameter": torch.nn.Parameter(base.clone()),
        "numbers": [1, -1, 2**40, -(2**70), 1.5, True, None, "text", "ümlaut", b"bytes"],
        "tuple": ((), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)),
        "nested": {"a": {"b": [{"c": 1}]}},
        7: "a number as key",
        "size": torch.Size([1, 2]),
    }


def same(a, b):
    if isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b.detach())
    if isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in b)
    if isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and (type(a) is type(b) or isinstance(b, tuple))


@pytest.mark.parametrize("new", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_reading_gives_back_what_torch_saved(new, protocol, tmp_path):
    path = tmp_path / "x.pth"
    torch.save(values(), path, _use_new_zipfile_serialization=new, pickle_protocol=protocol)
    assert same(read(path), values())


def test_reading_a_file_cannot_change_it(tmp_path):
    path = hostile.saved(tmp_path, {"w": torch.zeros(1000)})
    before = path.read_bytes()
    read(path)["w"].fill_(1)
    assert path.read_bytes() == before


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_numpy_scalars_are_read_under_old_and_new_names(module, tmp_path):
    path = tmp_path / "x.pth"
    torch.save({"lr": np.float64(0.03), "n": np.int64(-7)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes().replace(b"cnumpy._core.multiarray\n", f"c{module}\n".encode())
    path.write_bytes(data.replace(b"cnumpy.core.multiarray\n", f"c{module}\n".encode()))
    assert read(path) == {"lr": 0.03, "n": -7}


def test_settings_are_read_as_inert_records(tmp_path):
    args = argparse.Namespace(arch="vit_small", lr=0.1)
    args.__dict__["__class__"] = "poison"
    found = read(hostile.saved(tmp_path, {"args": args}))["args"]
    assert not isinstance(found, argparse.Namespace)
    assert found.name == "argparse.Namespace"
    assert found.state["arch"] == "vit_small"


def test_sparse_tensors_beside_the_weights_do_no_harm(tmp_path):
    path = hostile.saved(tmp_path, {"mask": torch.eye(3).to_sparse(), "w": torch.ones(2)})
    assert torch.equal(read(path)["w"], torch.ones(2))


def test_strange_keys_are_shown_on_one_line(tmp_path):
    path = hostile.saved(
        tmp_path, {"a\nb\x1b[31m": torch.ones(1), "layer\u202e": torch.ones(1), "c" * 10_000: torch.ones(1)}
    )
    with pytest.raises(UnknownCheckpoint) as refused:
        load_teacher(path)
    assert str(refused.value).isprintable()
    assert len(str(refused.value)) < 1500
