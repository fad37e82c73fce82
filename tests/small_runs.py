"""What tests of the training loop share: a teacher of 16 numbers, a student of 8, twenty small pictures, settings for seconds."""

import contextlib
import json
import signal

import numpy as np
import pytest
import torch

import ssl_kd
from ssl_kd.data.sources.array import ArrayImages
from ssl_kd.distillation.loop import Loop

SMALL = {
    "student": "resnet18",
    "student_args": {"channels": [8, 8, 8, 8]},
    "size": 32,
    "epochs": 2,
    "batch_size": 8,
    "lr": 1e-3,
    "warmup": 2.0,
    "quiet": True,
    "precision": "32-true",
    "accelerator": "cpu",
    "log_every": 1,
}


def small_teacher():
    """The same one every time."""
    torch.manual_seed(1)
    return ssl_kd.build("resnet18", channels=[8, 8, 8, 16]).eval()


def small_images(n=20, seed=0):
    """Noise, 32 px."""
    return ArrayImages(np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8))


def same(a, b):
    """Whether two networks have the same bits."""
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def logged(folder):
    """The lines of a run's metrics."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@contextlib.contextmanager
def signal_in_step(number, sent=signal.SIGTERM):
    """Inside, a run's step of that number, counted from 0, ends with a signal to this process."""
    train = Loop._train_step

    def train_then_signal(self, views):
        record = train(self, views)
        if self.step == number:
            signal.raise_signal(sent)
        return record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "_train_step", train_then_signal)
        yield
