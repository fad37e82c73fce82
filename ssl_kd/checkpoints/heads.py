"""The head that a self-supervised teacher was trained with, where its file has one: DINO's last layer, SwAV's prototypes.

    head = load_head("dino_deitsmall16_pretrain_full_checkpoint.pth")   # (N, 384) -> (N, 65,536)

Loading a teacher leaves these heads out on purpose; objectives on `teacher_head` ask for them here. Nothing in the file is
run, and every tensor of the head is used or the load fails.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ssl_kd.checkpoints.formats.weights import Contents, select
from ssl_kd.checkpoints.loading import by_name
from ssl_kd.checkpoints.reading import reading
from ssl_kd.checkpoints.sources import source
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError
from ssl_kd.models.encoder import Encoder, not_finite
from ssl_kd.objectives.teacher_heads import Head

DINO_TEMPERATURE, SWAV_TEMPERATURE = 0.04, 0.1  # of the teacher at the end of its training; of SwAV's assignments
DINO_LAYERS = ("mlp.0", "mlp.2", "mlp.4")


def load_head(path_or_name: str | os.PathLike[str]) -> Head:
    """The frozen head of a DINO checkpoint (full, with its teacher) or of a SwAV file. CheckpointError where there is none."""
    path = Path(path_or_name)
    if not path.exists():
        found = by_name(str(path_or_name), reading())
        if isinstance(found, Encoder):
            raise CheckpointError(
                f"{path_or_name}: weights of a library have no self-supervised head; name a lab's file"
            )
        path = found[0]
    file = source(path).file
    try:
        return _head(file)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def _head(file: Contents) -> Head:
    for path in (("teacher",), ()):
        for prefix in ("module.head.", "head."):
            state = select(file.state(*path), prefix)
            if any(name.startswith("last_layer.") for name in state):
                return _dino(_whole(file, state), _centre(file))
    for prefix in ("module.", ""):
        state = select(file.state(), prefix)
        if "prototypes.weight" in state and any(name.startswith("projection_head.") for name in state):
            heads = {name: t for name, t in state.items() if name.startswith(("projection_head.", "prototypes."))}
            return _swav(_whole(file, heads))
    raise CheckpointError(
        "it holds no head that is known here; expected a full DINO checkpoint (teacher, head.last_layer) or a SwAV file "
        "(projection_head, prototypes)"
    )


def _whole(file: Contents, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their values, checked."""
    file.fill(state.values())
    file.verify(state.values())
    if bad := not_finite(state):
        raise BrokenCheckpoint(f"{len(bad)} tensors of its head hold NaN or infinity")
    return {name: tensor.float() for name, tensor in state.items()}


def _centre(file: Contents) -> Tensor | None:
    """DINO's running centre of the teacher's outputs, where the file kept its loss."""
    found = file.state("dino_loss").get("center")
    return None if found is None else _whole(file, {"center": found})["center"]


def _dino(state: dict[str, Tensor], centre: Tensor | None) -> Head:
    """Linear, GELU, Linear, GELU, Linear, unit length, and a weight-normed last layer without bias."""
    length, direction = (
        _one(state, f"last_layer.{a}", f"last_layer.parametrizations.weight.original{b}")
        for a, b in (("weight_g", 0), ("weight_v", 1))
    )
    layers: list[nn.Module] = []
    for name in DINO_LAYERS:
        layers += [_linear(state, name), nn.GELU()]
    _must_be_used(state)
    prototypes = direction * (length / direction.norm(dim=1, keepdim=True))
    return Head(nn.Sequential(*layers[:-1]), prototypes, DINO_TEMPERATURE, centre)


def _swav(state: dict[str, Tensor]) -> Head:
    """Linear, batch norm, ReLU, Linear (or one Linear), unit length, prototypes."""
    prototypes = _one(state, "prototypes.weight")
    if "projection_head.weight" in state:
        projection: nn.Module = _linear(state, "projection_head")
    else:
        first = _linear(state, "projection_head.0")
        last = _linear(state, "projection_head.3" if "projection_head.3.weight" in state else "projection_head.2")
        between: list[nn.Module] = [nn.ReLU()]
        if "projection_head.1.weight" in state:
            norm = nn.BatchNorm1d(first.out_features)
            names = ("weight", "bias", "running_mean", "running_var")
            given = {name: _one(state, f"projection_head.1.{name}") for name in names}
            state.pop("projection_head.1.num_batches_tracked", None)
            norm.load_state_dict(given | {"num_batches_tracked": torch.zeros((), dtype=torch.long)})
            between.insert(0, norm)
        projection = nn.Sequential(first, *between, last)
    _must_be_used(state)
    return Head(projection, prototypes, SWAV_TEMPERATURE)


def _linear(state: dict[str, Tensor], name: str) -> nn.Linear:
    weight, bias = _one(state, f"{name}.weight"), _one(state, f"{name}.bias")
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    try:
        layer.load_state_dict({"weight": weight, "bias": bias})
    except RuntimeError:
        raise BrokenCheckpoint(f"its head's {name} has a weight and a bias that do not fit") from None
    return layer


def _one(state: dict[str, Tensor], *names: str) -> Tensor:
    """Take out the tensor of one of these names."""
    for name in names:
        if name in state:
            return state.pop(name)
    raise BrokenCheckpoint(f"its head lacks {names[0]}")


def _must_be_used(state: Mapping[str, Tensor]) -> None:
    if state:
        raise BrokenCheckpoint(f"its head is of another kind: no place for {', '.join(list(state)[:3])}")
