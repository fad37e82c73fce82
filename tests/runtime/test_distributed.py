"""Several processes act as one: the same losses and the same student as one process with the same global batch."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import walk
from PIL import Image
from torch import nn

import ssl_kd
from ssl_kd.data.augment import SCHEMES
from ssl_kd.data.loader import ViewLoader
from ssl_kd.runtime import distributed

# Their losses are small differences of numbers near 1 (times 30,000 for pkt), so that float32 leaves them fewer digits.
ROUNDED = {"pkt": 1e-4, "queue": 1e-4}


def launch(processes, *command):
    """Run a Python command line, by torchrun where there are several processes."""
    head = [sys.executable]
    if processes > 1:
        head += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([*head, *command], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def walked(folder, processes, names=()):
    """{preset: losses, gradient norms and student}, each distilled by so many processes; one is this one."""
    out = folder / f"{processes}.pt"
    (folder / str(processes)).mkdir()
    command = [str(folder / str(processes)), str(out), *names]
    if processes == 1:
        walk.main(*command)
    else:
        launch(processes, walk.__file__, *command)
    return torch.load(out, weights_only=True)


def must_be_alike(name, alone, together):
    """1e-5 for each loss and each weight; gradient norms, in which rounding adds up, to 1e-3."""
    for key, tolerance in (("losses", ROUNDED.get(name, 1e-5)), ("norms", 1e-3)):
        assert len(alone[key]) == len(together[key]) >= 8
        assert np.allclose(alone[key], together[key], rtol=tolerance, atol=1e-8), (name, key, alone, together)
    for part, tensor in alone["student"].items():
        gap = float((tensor.double() - together["student"][part].double()).abs().max())
        assert gap <= 1e-5 * max(1.0, float(tensor.abs().max())), (name, part, gap)


def test_two_processes_train_the_student_of_one(tmp_path):
    names = ("default", "dlkd_light")
    one, two = (walked(tmp_path, processes, names) for processes in (1, 2))
    for name in names:
        must_be_alike(name, one[name], two[name])
    # Students that stayed what they were would be alike too: those of two presets began as one.
    moved = [one["default"]["student"][k] - t for k, t in one["dlkd_light"]["student"].items() if "conv" in k]
    assert max(float(gap.abs().max()) for gap in moved) > 1e-3


@pytest.mark.slow
def test_several_students_train_alike_in_two_processes(tmp_path):
    """With and without terms between them, online and from stored targets."""
    one, two = (walked(tmp_path, processes, tuple(walk.GROUPS)) for processes in (1, 2))
    for name in walk.GROUPS:
        must_be_alike(name, one[name], two[name])


@pytest.mark.slow
def test_every_preset_trains_alike_in_two_processes(tmp_path):
    names = tuple(name for name in walk.CASES if name not in walk.GROUPS)
    one, two = (walked(tmp_path, processes, names) for processes in (1, 2))
    assert set(one) == set(two) == set(names)
    for name in names:
        must_be_alike(name, one[name], two[name])


@pytest.mark.slow
def test_the_command_under_torchrun_gives_the_student_of_the_bare_command(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(photos / f"{i}.png")
    torch.manual_seed(0)
    teacher = ssl_kd.save_student(ssl_kd.build("resnet18", channels=[8, 8, 8, 16]), tmp_path / "teacher.safetensors")
    students = []
    for processes in (1, 2):
        out = tmp_path / f"run{processes}"
        command = (
            f"--teacher {teacher} --images {photos} --out {out} --student resnet18 --size 32 --epochs 1 --batch_size 4"
        )
        command += " --optimizer sgd --lr 0.002 --precision 32-true --accelerator cpu --quiet true"
        launch(processes, "-m", "ssl_kd", "distill", *command.split(), "--student_args", "{channels: [8, 8, 8, 8]}")
        students.append(ssl_kd.load_teacher(out / "student.safetensors").backbone.state_dict())
    alone, together = students
    assert all(torch.allclose(alone[k].double(), together[k].double(), rtol=1e-5, atol=1e-5) for k in alone)


def test_a_batch_is_shared_out_whole():
    from ssl_kd.data.sources.array import ArrayImages

    images = ArrayImages(np.zeros((11, 8, 8, 3), np.uint8))
    whole = ViewLoader(images, SCHEMES["weak"], 8, 5)
    parts = []
    for rank in range(2):
        loader = ViewLoader(images, SCHEMES["weak"], 8, 5)
        parts.append([v.index.tolist() for v in loader.epoch(0, share=(rank, 2))])
    for batch, left, right in zip(whole.epoch(0), *parts, strict=True):
        assert batch.index.tolist() == left + right


@pytest.mark.parametrize(("count", "batch_size", "processes"), [(23, 6, 2), (24, 6, 2), (31, 8, 3), (17, 17, 4)])
def test_over_all_processes_each_image_comes_once_an_epoch(count, batch_size, processes):
    from ssl_kd.data.sources.array import ArrayImages

    images = ArrayImages(np.zeros((count, 8, 8, 3), np.uint8))
    seen = []
    for rank in range(processes):
        loader = ViewLoader(images, SCHEMES["weak"], 8, batch_size)
        seen.append([batch.index.tolist() for batch in loader.epoch(3, share=(rank, processes))])
    assert len({len(batches) for batches in seen}) == 1  # all take the same number of steps
    flat = [i for batches in seen for batch in batches for i in batch]
    assert sorted(flat) == list(range(count))
    for parts in zip(*seen, strict=True):
        assert max(map(len, parts)) - min(map(len, parts)) <= 1  # nobody waits long for another


def test_our_batch_norm_is_torchs_in_one_process(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(
        distributed.dist, "all_reduce", lambda x, **_: None
    )  # two ranks, of which the other has no rows
    torch.manual_seed(0)
    x = torch.randn(6, 4, 3, 3)
    torchs = nn.BatchNorm2d(4)
    ours = nn.BatchNorm2d(4)
    ours.load_state_dict(torchs.state_dict())
    distributed.synchronise_norms(ours)
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
    assert distributed.counts(4, x.device) == [4]
    assert distributed.gather(x, [4]) is x
    assert distributed.gather_views(x, 2, [2]) is x
    assert distributed.any_rank(True, x.device) is True
