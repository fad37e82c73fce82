"""Several processes act as one: the same losses and the same student as one process with the same global batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ssl_kd import ranks
from ssl_kd.views import SCHEMES, ViewLoader

SCRIPT = """
import sys, torch, numpy as np, ssl_kd
from ssl_kd.images import ArrayImages
torch.set_num_threads(1)
objective, views, out = sys.argv[1:4]
torch.manual_seed(1)
teacher = ssl_kd.build("resnet18", channels=[8, 8, 8, 16]).eval()
images = ArrayImages(np.random.default_rng(0).integers(0, 256, (23, 32, 32, 3), dtype=np.uint8))
ssl_kd.distill(
    teacher, images=images, out=out, objective=objective, views=views, student="resnet18",
    student_args={"channels": [8, 8, 8, 8]}, size=32, epochs=3, batch_size=8, quiet=True, precision="32-true",
    accelerator="cpu", log_every=1, optimizer="sgd", lr=0.05,
)
"""


def train(out, processes, objective, views, script):
    script.write_text(SCRIPT)
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*head, str(script), objective, views, str(out)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path.cwd(),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    from safetensors.torch import load_file

    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], load_file(out / "student.safetensors")


@pytest.mark.parametrize(
    ("objective", "views"), [("default", "weak"), pytest.param("dlkd_light", "multi", marks=pytest.mark.slow)]
)
def test_two_processes_train_the_student_of_one(tmp_path, objective, views):
    one, alone = train(tmp_path / "one", 1, objective, views, tmp_path / "run.py")
    two, together = train(tmp_path / "two", 2, objective, views, tmp_path / "run.py")
    assert len(one) == len(two) == 9
    assert np.allclose(one, two, rtol=1e-5, atol=1e-5)
    for name, tensor in alone.items():
        assert torch.allclose(tensor.float(), together[name].float(), atol=2e-4), name


def test_a_batch_is_shared_out_whole():
    from ssl_kd.images import ArrayImages

    images = ArrayImages(np.zeros((11, 8, 8, 3), np.uint8))
    whole = ViewLoader(images, SCHEMES["weak"], 8, 5)
    parts = []
    for rank in range(2):
        loader = ViewLoader(images, SCHEMES["weak"], 8, 5)
        loader.share = (rank, 2)
        parts.append([v.index.tolist() for v in loader.epoch(0)])
    for batch, left, right in zip(whole.epoch(0), *parts, strict=True):
        assert batch.index.tolist() == left + right


@pytest.mark.parametrize(("count", "batch_size", "processes"), [(23, 6, 2), (24, 6, 2), (31, 8, 3), (17, 17, 4)])
def test_over_all_processes_each_image_comes_once_an_epoch(count, batch_size, processes):
    from ssl_kd.images import ArrayImages

    images = ArrayImages(np.zeros((count, 8, 8, 3), np.uint8))
    seen = []
    for rank in range(processes):
        loader = ViewLoader(images, SCHEMES["weak"], 8, batch_size)
        loader.share = (rank, processes)
        seen.append([batch.index.tolist() for batch in loader.epoch(3)])
    assert len({len(batches) for batches in seen}) == 1  # all take the same number of steps
    flat = [i for batches in seen for batch in batches for i in batch]
    assert sorted(flat) == list(range(count))
    for parts in zip(*seen, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1  # nobody waits long for another


def test_our_batch_norm_is_torchs_in_one_process(monkeypatch):
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks.dist, "all_reduce", lambda x, **_: None)  # two ranks, of which the other has no rows
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 3)
    torchs = nn.BatchNorm2d(4)
    ours = nn.BatchNorm2d(4)
    ours.load_state_dict(torchs.state_dict())
    ranks.synchronise_norms(ours)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    weight = torch.randn(6, 4, 3, 3)
    (torchs(a) * weight).sum().backward()
    (ours(b) * weight).sum().backward()
    assert torch.allclose(a.grad, b.grad, atol=1e-5)
    assert all(
        torch.allclose(p, q, atol=1e-6)
        for p, q in zip(torchs.state_dict().values(), ours.state_dict().values(), strict=True)
    )
    assert torch.allclose(torchs.eval()(x), ours.eval()(x), atol=1e-6)


def test_alone_nothing_is_gathered():
    x = torch.randn(4, 3)
    assert ranks.counts(4, x.device) == [4]
    assert ranks.gather(x, [4]) is x
    assert ranks.gather_views(x, 2, [2]) is x
    assert ranks.any_rank(True, x.device) is True
