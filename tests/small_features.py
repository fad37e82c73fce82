"""Tiny features of made-up networks, for the tests of objectives."""

import numpy as np
import torch

from ssl_kd.encoder import Features
from ssl_kd.objectives.reading import Widths
from ssl_kd.views import Views

ATTENTION = "blocks.11.attn.attn_drop"


def views(b, v=1, start=0, epoch=0):
    return Views(np.arange(start, start + b), epoch, tuple(torch.zeros(b, 3, 2, 2) for _ in range(v)))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(z):
    return Features(embedding=z, tokens=None, layers={})


def everything(n, width, seed=0, side=4, scale=1.0):
    """Leaves of a network that gives all that an objective may read: embedding, tokens, stages, attention, its average."""
    return {
        "embedding": scale * rand(n, width, seed=seed),
        "tokens": scale * rand(n, side * side, width, seed=seed + 1),
        "layer3": scale * rand(n, width + 2, 4, 4, seed=seed + 2),
        "layer4": scale * rand(n, width + 1, 2, 2, seed=seed + 3),
        ATTENTION: rand(n, 2, 1 + side * side, 1 + side * side, seed=seed + 4),
        "ema": rand(n, width, seed=seed + 5),
    }


def as_features(leaves):
    layers = {k: v for k, v in leaves.items() if k not in ("embedding", "tokens", ATTENTION)}
    return Features(leaves["embedding"], leaves["tokens"], layers | {ATTENTION: leaves[ATTENTION].softmax(3)})


def widths(width):
    return Widths.of(as_features(everything(2, width)))


def rows(leaves, order):
    return {name: leaf[order] for name, leaf in leaves.items()}
