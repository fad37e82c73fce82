"""Students to files: the tensors and what rebuilds the network, in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from ssl_kd.checkpoints.formats.student import HEADS, header, module_header
from ssl_kd.checkpoints.formats.weights import shown
from ssl_kd.errors import UserError
from ssl_kd.models.encoder import Encoder, not_finite
from ssl_kd.models.space_head import SpaceHead
from ssl_kd.runtime.files import atomically


def save_student(
    encoder: Encoder,
    path: str | os.PathLike[str],
    heads: Mapping[str, SpaceHead] | None = None,
    **notes: object,
) -> Path:
    """Write a safetensors file that `load_teacher` reads back to the same features.

    heads: what leads into other spaces, kept with the student; None: those that the encoder has.
    notes: anything JSON can hold, kept with the file as its card and shown by `inspect`.

    Equal students give equal bytes. Atomic: the file appears whole or not at all.

    UserError for weights that are not finite, or where it cannot be written.
    """
    path = Path(path)
    if encoder.is_module:
        raise UserError(f"{path}: not saved: a module from Python has no name to rebuild it by; make it with build()")
    heads = {name: head for name in encoder.heads if (head := encoder.head(name))} if heads is None else heads
    return _write(encoder, path, lambda: header(encoder, notes, heads), heads)


def save_module(encoder: Encoder, path: str | os.PathLike[str], **notes: object) -> Path:
    """Write the state dict of a module from Python, for `module.load_state_dict(safetensors.torch.load_file(path))`.

    As `save_student` in all else, but `load_teacher` refuses the file: it does not know the module's code.
    """
    return _write(encoder, Path(path), lambda: module_header(encoder, notes))


def _write(
    encoder: Encoder,
    path: Path,
    described: Callable[[], dict[str, str]],
    heads: Mapping[str, SpaceHead] | None = None,
) -> Path:
    from safetensors.torch import save

    tensors = dict(encoder.backbone.state_dict())
    for name, head in (heads or {}).items():
        tensors |= {f"{HEADS}{name}.{key}": tensor for key, tensor in head.layers.state_dict().items()}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    if bad := not_finite(state):
        raise UserError(f"{path}: not saved: {len(bad)} tensors hold NaN or infinity: {shown(bad)}")
    data = _in_order(save({name: tensor.clone() for name, tensor in state.items()}, metadata=described()))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomically(path, lambda file: file.write(data))
    return path


def _in_order(file: bytes) -> bytes:
    """The same safetensors file with its metadata sorted: the library writes them in an order drawn anew each time."""
    end = 8 + int.from_bytes(file[:8], "little")
    header = json.loads(file[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    return len(text).to_bytes(8, "little") + text + file[end:]
