"""Tiny features of made-up networks, and presets at work on them, for the tests of objectives."""

import math

import numpy as np
import torch

from ssl_kd import objectives
from ssl_kd.objectives.inputs import Widths
from ssl_kd.objectives.prototypes import Prototypes
from ssl_kd.objectives.teacher_heads import Head, TeacherHead
from ssl_kd.types import Features, ViewBatch

ATTENTION = "blocks.-1.attn.attn_drop"


def views(b, v=1, start=0, epoch=0):
    return ViewBatch(np.arange(start, start + b), epoch, tuple(torch.zeros(b, 3, 2, 2) for _ in range(v)))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def features(z):
    return Features(embedding=z, tokens=None, layers={})


def everything(n, width, seed=0, side=4, scale=1.0):
    """Leaves of a network that gives all that an objective may read: embedding, tokens, stages, attention, its average."""
    return {
        "embedding": scale * rand(n, width, seed=seed),
        "tokens": scale * rand(n, side * side, width, seed=seed + 1),
        "stage.1": scale * rand(n, width + 4, 8, 8, seed=seed + 6),
        "stage.2": scale * rand(n, width + 3, 8, 8, seed=seed + 7),
        "stage.3": scale * rand(n, width + 2, 4, 4, seed=seed + 2),
        "stage.4": scale * rand(n, width + 1, 2, 2, seed=seed + 3),
        ATTENTION: rand(n, 2, 1 + side * side, 1 + side * side, seed=seed + 4),
        "ema": rand(n, width, seed=seed + 5),
        "masked tokens": scale * rand(n, side * side, width, seed=seed + 8),
        "boundary": scale * rand(n, width, seed=seed + 9),
    }


def as_features(leaves):
    layers = {k: v for k, v in leaves.items() if k not in ("embedding", "tokens", ATTENTION)}
    mask = (torch.arange(leaves["tokens"].shape[1]) % 2 == 0).float().repeat(len(leaves["tokens"]), 1)
    layers |= {ATTENTION: leaves[ATTENTION].softmax(3), "mask": mask}
    return Features(leaves["embedding"], leaves["tokens"], layers)


def widths(width):
    return Widths.of(as_features(everything(2, width)))


def rows(leaves, order):
    return {name: leaf[order] for name, leaf in leaves.items()}


def lay_all(module, seed=0):
    """The same, with prototypes and teachers' heads for every relation inside that waits for them."""
    for part in list(module.modules()):
        if isinstance(part, TeacherHead):
            projection = torch.nn.Linear(part.widths[1], 5)
            part.give(Head(projection, torch.nn.functional.normalize(rand(12, 5, seed=seed), dim=1), 0.1))
        if isinstance(part, Prototypes):
            part.lay(rand(*part.anchors.shape, seed=seed))
    return module


def build_objective(*given):
    """An objective, its prototypes laid."""
    return lay_all(objectives.build_objective(*given))


B, DS, DT = 5, 6, 7


def unit(z, axis=1):
    return z / np.linalg.norm(z, axis=axis, keepdims=True)


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def kl(p, q):
    """Mean over rows of KL(p || q)."""
    return float(
        np.mean(
            [sum(a * math.log(a / b) for a, b in zip(x, y, strict=True) if a > 0) for x, y in zip(p, q, strict=True)]
        )
    )


class Case:
    """A preset at work: batches of teacher and student, heads in eval mode so that they can be applied twice."""

    def __init__(self, name, v=1, ds=DS, dt=DT, b=B):
        torch.manual_seed(0)
        self.objective = build_objective(name, widths(ds), widths(dt))
        for module in self.objective.modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        self.terms = list(self.objective.terms.values())
        self.v, self.b = v, b
        self.make = lambda step: (everything(v * b, ds, 10 * step), everything(v * b, dt, 10 * step + 100))

    def batch(self, step):
        s, t = self.make(step)
        return as_features(s), as_features(t)

    def answer(self, step, epoch=0):
        total, values = self.objective(*self.batch(step), views(self.b, self.v, start=step * self.b, epoch=epoch))
        return total.item(), [v.item() for v in values.values()]

    @torch.no_grad()
    def projected(self, step, term=0, of="embedding"):
        return self.terms[term].projector(read(self.batch(step)[0], of)).numpy().astype(np.float64)

    def teacher(self, step, of="embedding"):
        return read(self.batch(step)[1], of).numpy().astype(np.float64)

    def student(self, step, of="embedding"):
        return read(self.batch(step)[0], of).numpy().astype(np.float64)


def read(features, of):
    """Embedding, tokens, or the cells of a stage as (N, L, C)."""
    return features.layers[of].flatten(2).mT if of in features.layers else getattr(features, of)


def standardised(t):
    return (t - t.mean(0)) / t.std(0)


def gram_kl(s, t, tau):
    """Patch by patch, image by image."""
    rows = [(softmax(unit(b) @ unit(b).T / tau), softmax(unit(a) @ unit(a).T / tau)) for a, b in zip(s, t, strict=True)]
    return float(np.mean([kl(p, q) for p, q in rows]))
