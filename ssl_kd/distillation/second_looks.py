"""More looks at the images of a step, for terms that ask for them: half hidden, or moved to a boundary of the student."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ssl_kd.models.encoder import Encoder, at_rest
from ssl_kd.objectives.boundary import Boundary
from ssl_kd.objectives.masked import MASK, MASKED, drawn, hide
from ssl_kd.types import ViewBatch


def hidden_look(student: Encoder, views: ViewBatch, patches: int) -> dict[str, Tensor]:
    """What the student says of the large views with patches hidden, and which were: layers for `MaskedTokens`."""
    large = views.pixels[: views.teacher_views]
    masks = [drawn(views.index, views.epoch, view, patches) for view in range(len(large))]
    mask = torch.cat(masks).to(large[0].device)
    tokens = student(hide(torch.cat(large), mask, student.mean)).tokens
    return {} if tokens is None else {MASKED: tokens, MASK: mask}


def terms_at_boundary(objective: nn.Module) -> Iterator[Boundary]:
    """Those inside an objective."""
    return (module for module in objective.modules() if isinstance(module, Boundary))


def moved(student: Encoder, pixels: Tensor, term: Boundary) -> Tensor:
    """Views (N, 3, S, S) moved to where the lead of the student's nearest prototype is about 0, in [0, 1], without a gradient.

    A step is Newton's for a lead that is linear in the pixels. Student and head are in eval mode meanwhile: nothing of them moves.
    """
    for _ in range(term.steps):
        pixels = pixels.detach().requires_grad_()
        with torch.enable_grad(), at_rest(student), at_rest(term):
            ahead = term.lead(student(pixels).embedding)
            (gradient,) = torch.autograd.grad(ahead.sum(), pixels)
        length = gradient.flatten(1).square().sum(1).clamp_min(1e-12)
        step = (ahead.detach() / length).reshape(-1, 1, 1, 1)
        pixels = (pixels.detach() - step * gradient).clamp(0, 1)
    return pixels.detach()
