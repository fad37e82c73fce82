"""The only door between files and Encoders: safe reading, strict loading, a report of what was loaded."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from ssl_kd.architectures import make
from ssl_kd.encoder import Encoder, as_record, frozen, not_finite
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError
from ssl_kd.formats import recognise
from ssl_kd.formats.student import KEY
from ssl_kd.formats.weights import Contents, Weights


def read(path: str | os.PathLike[str]) -> Contents:
    """A weight file as plain data."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file")
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name the checkpoint file in it")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                return Contents({k: file.get_tensor(k) for k in file.keys()}, "safetensors", file.metadata() or {})
        except SafetensorError as error:
            raise BrokenCheckpoint(f"{path}: not a readable safetensors file: {error}") from error
    return Contents(torch.load(path, map_location="cpu", weights_only=True), "zip")


def load_teacher(
    path_or_name: str | os.PathLike[str], feature: str | None = None, format: str | None = None
) -> Encoder:
    """The frozen Encoder of a checkpoint file, in eval mode, with the preprocessing of its authors.

    feature: one of the names that the architecture offers (`cls`, `cls4`, `cls_avg`, `pool`, ...); None is the one that
    the authors evaluate. format: a name in `formats.FORMATS`, when the file does not say. Raises CheckpointError.
    """
    path = Path(path_or_name)
    file = read(path)
    try:
        weights = recognise(file, format).convert(file)
        return frozen(assemble(weights, feature))
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def assemble(weights: Weights, feature: str | None = None) -> Encoder:
    """Build the architecture without spending time on random numbers and load every tensor strictly."""
    with torch.device("meta"):
        network = make(weights.arch, weights.arch_args)
    wanted = network.backbone.state_dict()
    missing = [k for k in wanted if k not in weights.state and not k.endswith("num_batches_tracked")]
    surplus = [k for k in weights.state if k not in wanted]
    wrong = [k for k, t in weights.state.items() if k in wanted and t.shape != wanted[k].shape]
    for what, names in (("missing", missing), ("unknown", surplus), ("of another shape", wrong)):
        if names:
            raise BrokenCheckpoint(f"{len(names)} tensors of {weights.arch} are {what}: {', '.join(names[:4])}")
    if bad := not_finite(weights.state):
        raise BrokenCheckpoint(f"{len(bad)} tensors hold NaN or infinity: {', '.join(bad[:4])}")
    zero = torch.zeros((), dtype=torch.long)
    state = {k: weights.state.get(k, zero).clone() for k in wanted}
    network.backbone.load_state_dict(state, strict=True, assign=True)
    return Encoder(
        network, weights.arch, weights.arch_args, feature or weights.feature, weights.preprocessing, weights.origin
    )


def save_student(encoder: Encoder, path: str | os.PathLike[str], **card: Any) -> Path:
    """Write a safetensors file that `load_teacher` reads back to the same features; `card` is any JSON to keep with it.

    Atomic: the file appears whole or not at all. Weights that are not finite are refused.
    """
    from safetensors.torch import save

    path = Path(path)
    if encoder.arch.startswith("module/"):
        raise UserError(f"{encoder.arch}: a module from Python has no name to rebuild it by; build() it to save it")
    state = {k: t.detach().cpu().contiguous().clone() for k, t in encoder.backbone.state_dict().items()}
    if bad := not_finite(state):
        raise UserError(f"{path}: not saved, {len(bad)} tensors hold NaN or infinity: {', '.join(bad[:4])}")
    record = json.dumps({**as_record(encoder), "card": card})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(save(state, metadata={"format": "pt", KEY: record}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
