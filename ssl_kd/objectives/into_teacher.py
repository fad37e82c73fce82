"""The way from a student's embedding to its teacher's own coordinates, as an objective has learnt it.

An alignment compares g(s) with a normalised teacher, n(t). What is kept of it is the inverse of n behind g, so that
the result stands beside raw teacher features. Batch norms and chains of linear maps are folded into one linear map, in double precision:
what is left are linear maps, ReLUs, GELUs and layer norms.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_kd.objectives.alignment import (
    Alignment,
    cosine_distance,
    difference,
    pearson_distance,
    unit_columns,
    unit_squared,
)
from ssl_kd.objectives.correlation import Correlation
from ssl_kd.objectives.memory_bank import MemoryBank
from ssl_kd.objectives.relations import CrossTable

BLIND = (difference, pearson_distance, unit_columns)  # zero in other places than the teacher's, too
DIRECTIONS = (cosine_distance, unit_squared)  # see no length: it must not matter to the space's inverse
KEPT = (nn.ReLU, nn.GELU, nn.LayerNorm)
CLOSE = 1e-6  # of a space that is affine, as a share of its largest number


def into_teacher(objective: nn.Module) -> list[nn.Module] | None:
    """Layers (N, Ds) -> (N, Dt), on the CPU in float32, or None where the objective has learnt no such way.

    The first alignment of embeddings counts, unless its distance does not see where a sample lies: a cosine in a space
    around the teacher's mean knows a direction from there, and no length to go. After it the head of a relation across
    both spaces: to the batch's teacher embeddings, or to a queue of them; around a mean it goes the usual length. Custom heads
    and spaces count where they are made of the layers above, or affine.
    """
    for term in objective.modules():
        if isinstance(term, Alignment) and term.of == "embedding" and term.distance not in BLIND:
            back = _undone(term.space, term.widths[1])
            if back is None or (term.distance in DIRECTIONS and any(bool(layer.bias.any()) for layer in back)):
                continue
            if found := _folded([*_parts(term.projector), *back], term.widths[1]):
                return found
    for term in objective.modules():
        if isinstance(term, Correlation) and isinstance(term.relation, CrossTable | MemoryBank):
            own = isinstance(term.view_of_teacher, nn.Identity) and term.relation.needs_teacher_width
            back = _undone(term.space, width := term.widths[1] or 0) if own else None
            if back:  # from around a mean there is no length to go but the usual one
                back = [_linear(back[0].weight * _stretch(term), back[0].bias)]
            if back is not None and (found := _folded([*_parts(term.projector), *back], width)):
                return found
    return None


def _stretch(term: Correlation) -> float:
    """By how much the head's usual answer is shorter than the teacher's usual embedding in the term's space."""
    ours, theirs = (0.0, 1.0) if term.lengths is None else term.lengths.double().tolist()
    return theirs / ours if ours else 1.0


def _parts(head: nn.Module) -> list[nn.Module]:
    if type(head) in (nn.Sequential, nn.Identity):
        return [part for child in head.children() for part in _parts(child)]
    return [] if isinstance(head, nn.Dropout) else [copy.deepcopy(head).cpu().double().eval()]


def _undone(space: nn.Module, width: int) -> list[nn.Linear] | None:
    """The inverse of a target norm as a linear map; nothing where it is none, None where it is not affine."""
    space = copy.deepcopy(space).cpu().double().eval()
    probe = torch.randn(8, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        shift = space(torch.zeros(1, width, dtype=torch.float64))
        matrix = space(torch.eye(width, dtype=torch.float64)) - shift
        given = space(probe)
    if not torch.allclose(probe @ matrix + shift, given, rtol=0, atol=CLOSE * float(given.abs().max())):
        return None
    if torch.equal(matrix, torch.eye(width, dtype=torch.float64)) and not shift.any():
        return []
    if torch.linalg.matrix_rank(matrix) < width:
        return None
    inverse = torch.linalg.inv(matrix)
    return [_linear(inverse.T, -(shift @ inverse)[0])]


def _folded(parts: Sequence[nn.Module], width: int) -> list[nn.Module] | None:
    """The same map by few layers; None where a layer is of another kind."""
    layers: list[nn.Module] = []
    for part in parts or [_linear(torch.eye(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64))]:
        affine = _affine(part)
        if affine is None and not isinstance(part, KEPT):
            return None
        if affine is not None and layers and isinstance(layers[-1], nn.Linear):
            layers[-1] = _linear(affine.weight @ layers[-1].weight, affine(layers[-1].bias))
        else:
            layers.append(part if affine is None else affine)
    finite = all(bool(p.isfinite().all()) for layer in layers for p in layer.parameters())
    return [_plain(layer).float().requires_grad_(False) for layer in layers] if finite else None


def _affine(part: nn.Module) -> nn.Linear | None:
    if isinstance(part, nn.Linear):
        bias = part.bias if part.bias is not None else part.weight.new_zeros(part.out_features)
        return _linear(part.weight, bias)
    if isinstance(part, _BatchNorm) and part.running_mean is not None and part.running_var is not None:
        scale, shift = _of_norm(part)
        return _linear(torch.diag(scale), shift)
    return None


def _of_norm(norm: _BatchNorm) -> Iterator[Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    scale = scale if norm.weight is None else scale * norm.weight
    yield scale
    yield -norm.running_mean * scale + (0 if norm.bias is None else norm.bias)


def _plain(layer: nn.Module) -> nn.Module:
    """In place is fine in training; behind features that somebody else holds it is not."""
    return nn.ReLU() if isinstance(layer, nn.ReLU) else layer


@torch.no_grad()
def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    # Without first weights: drawing them would move the random numbers of a run that keeps its best student.
    made = nn.Linear(weight.shape[1], weight.shape[0], device="meta", dtype=torch.float64).to_empty(device="cpu")
    made.weight.copy_(weight)
    made.bias.copy_(bias)
    return made
