"""The head that a self-supervised teacher was trained with, where its file has one: DINO's last layer, SwAV's and MSN's prototypes.

    head = load_head("dino_deitsmall16_pretrain_full_checkpoint.pth")   # (N, 384) -> (N, 65,536)

Loading a teacher leaves these heads out on purpose; objectives on `teacher_head` ask for them here. Nothing in the file is
run, and every tensor of the head is used or the load fails.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_kd.checkpoints.formats.weights import Contents, State, select
from ssl_kd.checkpoints.loading import by_name
from ssl_kd.checkpoints.reading import reading
from ssl_kd.checkpoints.sources import source
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError
from ssl_kd.models.encoder import Encoder, not_finite
from ssl_kd.objectives.teacher_heads import Head

# Of the teacher, as the labs' scripts end: DINO's own and SwAV's assignments; iBOT's and DINOv2's; MSN's 0.1, sharpened by 0.25.
DINO_TEMPERATURE, SWAV_TEMPERATURE, IBOT_TEMPERATURE, MSN_TEMPERATURE = 0.04, 0.1, 0.07, 0.025
DINO_LAYERS = ("mlp.0", "mlp.2", "mlp.4")
LAST, LAST_OF_PATCHES = "last_layer.", "last_layer2."
DIRECTIONS = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))


def load_head(path_or_name: str | os.PathLike[str], patches: bool = False) -> Head:
    """The frozen head in a full checkpoint of DINO, iBOT or MSN, a training run of DINOv2 or DINOv3, or a SwAV file.

    patches: the one for patch tokens, which files of iBOT, DINOv2 and DINOv3 have. CheckpointError where there is none.
    """
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
        return _of_patches(file) if patches else _head(file)
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def _head(file: Contents) -> Head:
    if state := _named_last(file, ("module.head.", "head.")):
        return _dino(file, state, ("ibot_loss", "dino_loss"), "center")
    if state := _named_last(file, ("dino_head.",)):
        return _dino(file, state)
    if isinstance(prototypes := file.at("prototypes"), Tensor):
        for prefix in ("module.fc.", "fc."):
            if state := select(file.state("target_encoder"), prefix):
                return _msn(_whole(file, state | {"prototypes": prototypes}))
    for prefix in ("module.", ""):
        state = select(file.state(), prefix)
        if "prototypes.weight" in state and any(name.startswith("projection_head.") for name in state):
            heads = {name: t for name, t in state.items() if name.startswith(("projection_head.", "prototypes."))}
            return _swav(_whole(file, heads))
    raise CheckpointError(
        "it holds no head that is known here; expected a full checkpoint of DINO or iBOT (teacher, head.last_layer), a training "
        "run of DINOv2 or DINOv3 (teacher, dino_head), an MSN file (target_encoder, fc; prototypes) or a SwAV file "
        "(projection_head, prototypes)"
    )


def _of_patches(file: Contents) -> Head:
    """iBOT's last layer for patches, or the head of its own that DINOv2 and DINOv3 may have; else theirs for class tokens."""
    if (state := _named_last(file, ("module.head.", "head."))) and any(n.startswith(LAST_OF_PATCHES) for n in state):
        return _dino(file, state, ("ibot_loss",), "center2", patches=True)
    if state := _named_last(file, ("ibot_head.", "dino_head.")):
        return _dino(file, state)
    raise CheckpointError(
        "it holds no head for patches that is known here; expected a full checkpoint of iBOT (teacher, head.last_layer2) or a "
        "training run of DINOv2 or DINOv3 (teacher, ibot_head or dino_head)"
    )


def _named_last(file: Contents, prefixes: Sequence[str]) -> State:
    """The tensors behind the first of these prefixes with a last layer, in the teacher of a file or in the file itself."""
    for path in (("teacher",), ()):
        for prefix in prefixes:
            state = select(file.state(*path), prefix)
            if any(name.startswith(LAST) for name in state):
                return state
    return {}


def _whole(file: Contents, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with their values, checked."""
    file.fill(state.values())
    file.verify(state.values())
    if bad := not_finite(state):
        raise BrokenCheckpoint(f"{len(bad)} tensors of its head hold NaN or infinity")
    return {name: tensor.float() for name, tensor in state.items()}


def _dino(file: Contents, given: State, losses: Sequence[str] = (), centre: str = "", patches: bool = False) -> Head:
    """Linear, GELU, Linear, GELU, Linear, unit length, and a last layer without bias, weight-normed or (DINOv3) plain.

    losses, centre: where a file may keep the running centre of the teacher's outputs.
    """
    state = _whole(file, given)
    last = {
        name: _last_layer(state, name) for name in (LAST, LAST_OF_PATCHES) if any(n.startswith(name) for n in state)
    }
    layers: list[nn.Module] = []
    for name in DINO_LAYERS:
        layers += [_linear(state, name), nn.GELU()]
    _must_be_used(state)
    found = next((c for c in (file.state(loss).get(centre) for loss in losses) if c is not None), None)
    temperature = DINO_TEMPERATURE if losses and LAST_OF_PATCHES not in last else IBOT_TEMPERATURE
    return Head(
        nn.Sequential(*layers[:-1]),
        last[LAST_OF_PATCHES if patches else LAST],
        temperature,
        None if found is None else _whole(file, {centre: found})[centre],
    )


def _last_layer(state: dict[str, Tensor], name: str) -> Tensor:
    """(K, E), each row of the length that weight norm gives it."""
    if f"{name}weight" in state:
        return _one(state, f"{name}weight")
    length, direction = (_one(state, *(f"{name}{pair[i]}" for pair in DIRECTIONS)) for i in (0, 1))
    normed: Tensor = direction * (length / direction.norm(dim=1, keepdim=True))
    return normed


def _msn(state: dict[str, Tensor]) -> Head:
    """Linear (batch norm) GELU twice, Linear; cosines to the prototypes. It reads the class token behind the final norm."""
    layers: list[nn.Module] = []
    for k in (1, 2):
        layers.append(_linear(state, f"fc{k}"))
        if f"bn{k}.weight" in state:
            layers.append(_batch_norm(state, f"bn{k}"))
        layers.append(nn.GELU())
    layers.append(_linear(state, "fc3"))
    prototypes = F.normalize(_one(state, "prototypes"), dim=1)
    _must_be_used(state)
    return Head(nn.Sequential(*layers), prototypes, MSN_TEMPERATURE, feature="cls")


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
            between.insert(0, _batch_norm(state, "projection_head.1"))
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


def _batch_norm(state: dict[str, Tensor], name: str) -> nn.BatchNorm1d:
    given = {part: _one(state, f"{name}.{part}") for part in ("weight", "bias", "running_mean", "running_var")}
    state.pop(f"{name}.num_batches_tracked", None)
    norm = nn.BatchNorm1d(len(given["weight"]))
    try:
        norm.load_state_dict(given | {"num_batches_tracked": torch.zeros((), dtype=torch.long)})
    except RuntimeError:
        raise BrokenCheckpoint(f"its head's {name} has tensors that do not fit") from None
    return norm


def _one(state: dict[str, Tensor], *names: str) -> Tensor:
    """Take out the tensor of one of these names."""
    for name in names:
        if name in state:
            return state.pop(name)
    raise BrokenCheckpoint(f"its head lacks {names[0]}")


def _must_be_used(state: Mapping[str, Tensor]) -> None:
    if state:
        raise BrokenCheckpoint(f"its head is of another kind: no place for {', '.join(list(state)[:3])}")
