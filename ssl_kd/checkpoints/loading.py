"""The only door between files and Encoders: safe reading, strict loading, and a report of what was found.

teacher = load_teacher("dino_deitsmall16_pretrain.pth")      # frozen, eval mode, its authors' preprocessing
print(inspect("dino_deitsmall16_pretrain.pth"))              # what it is, without building the network
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssl_kd.checkpoints.formats import Contents, Format, Weights, recognise
from ssl_kd.checkpoints.formats.report import Report
from ssl_kd.checkpoints.formats.student import STUDENT, card
from ssl_kd.checkpoints.formats.weights import State, shown
from ssl_kd.checkpoints.pixels_record import recorded
from ssl_kd.checkpoints.programs import describe_program, is_program, load_program
from ssl_kd.checkpoints.torch_file import open_contents
from ssl_kd.errors import BrokenCheckpoint, CheckpointError, UserError, nearest, one_line
from ssl_kd.models.backbones import Network
from ssl_kd.models.encoder import Encoder, digest_of, frozen, not_finite
from ssl_kd.models.factory import make

LONGEST_CONFIG = 1 << 20  # bytes of a config.json; published ones have a thousandth
LARGE = 1 << 33  # bytes of a file whose values `inspect` does not read, and of weights that are not copied
NOT_PARAMETERS = ("running_mean", "running_var", "num_batches_tracked")


def read(path: str | os.PathLike[str]) -> object:
    """The object in a weight file (torch.save of any age, or safetensors) as plain data; nothing in it is run."""
    file = contents(Path(path))
    try:
        return file.tree
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error


def contents(path: Path) -> Contents:
    """The file as plain data. CheckpointError, starting with the path, for anything that is not a checkpoint."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder; name the checkpoint file in it")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is a device or a pipe, not a file")
    try:
        return replace(open_contents(path), config=config_beside(path))
    except CheckpointError as error:
        raise type(error)(f"{path}: {error}") from error


def config_beside(path: Path) -> Mapping[str, object]:
    """What a config.json beside the file says, as transformers writes it; nothing where there is none that can be read."""
    beside = path.with_name("config.json")
    try:
        if not beside.is_file() or beside.stat().st_size > LONGEST_CONFIG:
            return {}
        found = json.loads(beside.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def load_teacher(
    path_or_name: str | os.PathLike[str],
    feature: str | None = None,
    format: str | None = None,  # noqa: A002
) -> Encoder:
    """The frozen Encoder of a checkpoint, in eval mode, with the preprocessing of its authors.

    path_or_name: a file, or a name of the zoo (`ssl-kd zoo list`), or `timm/NAME` or `torchvision/NAME` for the
    weights that those libraries publish; also an .onnx or OpenVINO .xml file with its card (`checkpoints.programs`), which
    runs on the CPU and has one feature. feature: one of the names that the architecture offers (`cls`, `cls4`,
    `cls_avg`, `pool`, ...); None is the one that the authors evaluate. format: a name in `formats.FORMATS`, for a file
    that does not say what it is. Every tensor of the backbone is loaded or the load fails: CheckpointError.
    """
    path, method = Path(path_or_name), ""
    if not path.exists():
        found = by_name(str(path_or_name), feature)
        if isinstance(found, Encoder):
            return frozen(found)
        path, method = found, method_of(str(path_or_name))
    if is_program(path):
        return frozen(load_program(path, feature))
    file = contents(path)
    try:
        row = recognise(file, format)
        vouched = format is not None or (bool(method) and method.startswith(row.family))
        return frozen(assemble(convert(replace(file, vouched=vouched), row), feature))
    except UserError as error:
        raise type(error)(f"{path}: {error}") from error


def by_name(name: str, feature: str | None) -> Encoder | Path:
    """The zoo's file of that name, or an Encoder with the weights that timm or torchvision publishes."""
    from ssl_kd.checkpoints import library_weights, zoo

    if name.startswith(tuple(library_weights.PUBLISHERS)):
        return library_weights.load(name, feature)
    if zoo.known(name):
        return zoo.fetch(name)
    raise CheckpointError(
        f"{one_line(name, 200)}: no such file, and no such name in the zoo.{nearest(name, list(zoo.ZOO))}"
    )


def method_of(name: str) -> str:
    """The method of a teacher of the zoo, in small letters: its publisher says what the file alone need not."""
    from ssl_kd.checkpoints import zoo

    return zoo.find(name).method.lower()


def convert(file: Contents, row: Format, values: bool = True) -> Weights:
    """What the format makes of the file, with its values checked: sums match, every number finite, float32.

    values: False leaves all but small tensors unread and unchecked.
    """
    file = file if values else file.outline()
    try:
        weights = row.convert(file)
        if row is not STUDENT:  # whose record is whole
            weights = replace(weights, preprocessing=recorded(file, weights.preprocessing))
        file.fill(weights.used.values())
        file.verify(weights.used.values() if values else ())
        bad = not_finite(weights.used) if values else []
    except CheckpointError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror or one_line(error, 120)}") from error
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError, MemoryError, AttributeError) as error:
        # A forced format on another kind of file, or shapes that fit no architecture.
        raise BrokenCheckpoint(f"cannot be read as {row.name}: {one_line(error, 120)}") from error
    if bad:
        raise BrokenCheckpoint(f"{len(bad)} of its tensors hold NaN or infinity: {shown(bad)}")
    return weights


def fill_constants(network: Network, weights: Weights) -> None:
    """Compute the buffers that are in no state dict: as timm's modules know how to, else as a fresh network has them."""
    fresh: Network | None = None
    for path, module in network.named_modules():
        empty = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        compute = getattr(module, "init_non_persistent_buffers", None)
        for name in empty:
            if compute:
                setattr(module, name, torch.zeros_like(getattr(module, name), device="cpu"))
            else:
                fresh = fresh or make(weights.arch, weights.arch_args)
                setattr(module, name, getattr(fresh.get_submodule(path), name))
        if empty and compute:
            compute()


def own_copy(state: Mapping[str, Tensor]) -> State:
    """Contiguous tensors in memory of their own, half and double precision as float32.

    Of a large network those that can be are taken as they were read, so that it is in memory once.
    """
    large = sum(tensor.numel() * tensor.element_size() for tensor in state.values()) > LARGE
    return {
        name: tensor
        if large and alone(tensor)
        else tensor.to(loaded_as(tensor), memory_format=torch.contiguous_format, copy=True)
        for name, tensor in state.items()
    }


def alone(tensor: Tensor) -> bool:
    """Whether the memory that a file's tensor was read into holds just this, as float32: twice 27 GB is too much."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return whole and tensor.is_contiguous() and tensor.dtype == torch.float32


def blueprint(weights: Weights, feature: str | None = None) -> Network:
    """The network without memory for its numbers. BrokenCheckpoint unless the weights are exactly what it needs."""
    with torch.device("meta"):
        network = make(weights.arch, weights.arch_args)
    wished = feature or weights.feature
    network.width(weights.heads[wished].source if wished in weights.heads else wished)  # UserError for an unknown one
    wanted, state = network.backbone.state_dict(), weights.state
    both = [name for name in state if name in wanted]
    problems = {
        "lacks": [n for n in wanted if n not in state and not n.endswith("num_batches_tracked")],
        "has no place for": [n for n in state if n not in wanted],
        "has other shapes for": [n for n in both if state[n].shape != wanted[n].shape],
        "has other types for": [n for n in both if loaded_as(state[n]) != wanted[n].dtype],
    }
    for problem, names in problems.items():
        if names:
            raise BrokenCheckpoint(f"{weights.arch} {problem} {len(names)} tensors: {shown(names)}{channels(state)}")
    return network


def loaded_as(tensor: Tensor) -> torch.dtype:
    """Floating numbers of any precision are loaded as float32."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def channels(state: Mapping[str, Tensor]) -> str:
    """That the first layer of a network is not made for RGB, where that is so."""
    for name in ("conv1.weight", "patch_embed.proj.weight", "conv1.0.weight", "patch_embed.proj.0.weight"):
        if name in state and state[name].ndim == 4 and state[name].shape[1] != 3:
            return f"; its first layer takes {state[name].shape[1]} channels, and images have 3 (RGB)"
    return ""


def assemble(weights: Weights, feature: str | None = None) -> Encoder:
    """Build the architecture without spending time on random numbers, and load every tensor strictly."""
    network = blueprint(weights, feature)
    state = own_copy(weights.state)
    for name in network.backbone.state_dict():
        if name.endswith("num_batches_tracked"):  # torch < 0.4.1 had none, and features do not depend on them
            state.setdefault(name, torch.zeros((), dtype=torch.long))
    network.backbone.load_state_dict(state, strict=True, assign=True)
    fill_constants(network, weights)
    encoder = Encoder(network, weights.arch, weights.arch_args, None, weights.preprocessing, weights.origin)
    for name, head in weights.heads.items():
        encoder.heads[name] = head
    return encoder.read_as(feature or weights.feature)


def inspect(path: str | os.PathLike[str], format: str | None = None) -> Report:  # noqa: A002
    """What a weight file is, or in `problem` why it cannot be a teacher. The network takes no memory.

    Of a file above 8 GB only the shapes are looked at: no digest, and `load_teacher` may still find damage.

    Raises CheckpointError only where there is nothing to describe: no file, not a checkpoint, damaged or unsafe.
    """
    path = Path(path)
    if is_program(path):
        return describe_program(path)
    file = contents(path)
    seen = tuple(file.tensors())
    about: dict[str, Any] = {"path": str(path), "container": file.container, "bytes": path.stat().st_size}
    try:
        row = recognise(file, format)
    except CheckpointError as error:
        return Report(**about, dropped=seen, problem=str(error))
    about |= {"format": row.name, "family": row.family, "wrote": row.wrote}
    values = about["bytes"] <= LARGE or row is STUDENT
    try:
        weights = convert(replace(file, vouched=format is not None), row, values)
        blueprint(weights)
    except UserError as error:
        return Report(**about, dropped=seen, problem=str(error))
    return Report(
        **about,
        origin=weights.origin,
        branch=weights.branch,
        arch=weights.arch,
        arch_args=weights.arch_args,
        feature=weights.feature,
        dim=weights.dim,
        preprocessing=weights.preprocessing,
        parameters=sum(t.numel() for n, t in weights.state.items() if not n.endswith(NOT_PARAMETERS)),
        used=tuple(weights.used),
        expected=tuple(weights.state),
        dropped=tuple(name for name in seen if name not in weights.used),
        digest=digest_of(weights.arch, weights.arch_args, weights.state) if values else None,
        card=card(file) if row is STUDENT else {},
    )
