"""Weights into the network that they are for: every tensor, strictly, or not at all."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ssl_kd.checkpoints.formats import Weights
from ssl_kd.checkpoints.formats.weights import State, shown
from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.models.backbones import Network
from ssl_kd.models.encoder import Encoder
from ssl_kd.models.factory import make, without_numbers

LARGE = 1 << 33  # bytes of a file whose values `inspect` does not read, and of weights that are not copied


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
    network = without_numbers(lambda: make(weights.arch, weights.arch_args))
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
            raise BrokenCheckpoint(
                f"{weights.arch} {problem} {len(names)} tensors: {shown(names)}{channels(state, wanted)}"
            )
    return network


def loaded_as(tensor: Tensor) -> torch.dtype:
    """Floating numbers of any precision are loaded as float32."""
    return torch.float32 if tensor.is_floating_point() else tensor.dtype


def channels(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """That the first layer of a network is not made for RGB, where that is so: its kernel is the only one that takes three."""
    for name in state.keys() & wanted.keys():
        have, want = state[name].shape, wanted[name].shape
        if len(have) == len(want) == 4 and want[1] == 3 and have[1] != 3 and have[0] == want[0]:
            return f"; its first layer takes {have[1]} channels, and images have 3 (RGB)"
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
