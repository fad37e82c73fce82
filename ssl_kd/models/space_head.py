"""A head that carries a student's feature into another space: what makes it a drop-in for queries to an old index.

Distillation trains such a head to compare the student with its teacher; kept with the student, it lets the student
answer in the teacher's own coordinates. It is data: linear maps, ReLUs, GELUs and layer norms, nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ssl_kd.errors import BrokenCheckpoint
from ssl_kd.models.preprocessing import Preprocessing
from ssl_kd.models.space import Space

MOST_LAYERS = 16
LARGEST = 1 << 16  # no width is larger


def _kind(layer: nn.Module) -> list[object]:
    if isinstance(layer, nn.Linear):
        return ["linear", layer.in_features, layer.out_features]
    if isinstance(layer, nn.LayerNorm) and len(layer.normalized_shape) == 1:
        return ["layer_norm", layer.normalized_shape[0], layer.eps]
    if isinstance(layer, nn.ReLU | nn.GELU):
        return ["relu" if isinstance(layer, nn.ReLU) else "gelu"]
    raise ValueError(f"{type(layer).__name__} is no layer of a head")


def _layer(kind: Sequence[object]) -> nn.Module:
    """The inverse of `_kind`, without numbers. ValueError for anything else."""
    name, *given = kind
    sizes = [size for size in given if type(size) in (int, float) and isinstance(size, int | float)]
    if len(sizes) < len(given) or not all(0 < size <= LARGEST for size in sizes):
        raise ValueError(f"the sizes of a head's layer are {given}")
    if name == "linear":
        return nn.Linear(int(sizes[0]), int(sizes[1]))
    if name == "layer_norm":
        return nn.LayerNorm(int(sizes[0]), float(sizes[1]))
    if name in ("relu", "gelu") and not sizes:
        return nn.ReLU() if name == "relu" else nn.GELU()
    raise ValueError(f"a head has no layer {name!r}")


class SpaceHead(nn.Module):
    """Features (B, Ds) by the name `source` to the coordinates of `space`, (B, Dt). Frozen, float32.

    heard: the pixels at which the other network was heard while the head was trained, as `Preprocessing.key`, where it is
    known; those of `space` are that network's own.
    """

    def __init__(self, layers: Sequence[nn.Module], space: Space, source: str, heard: str = ""):
        super().__init__()
        self.layers, self.space, self.source, self.heard = nn.Sequential(*layers), space, source, heard
        self.requires_grad_(False).eval()

    def forward(self, features: Tensor) -> Tensor:
        """(B, Ds) -> (B, Dt)."""
        out: Tensor = self.layers(features)
        return out

    @property
    def digest(self) -> str:
        """SHA-256 of where it leads and of its numbers."""
        total = hashlib.sha256(json.dumps([self.space.record(), self.source, self._kinds()]).encode())
        for name, tensor in self.layers.state_dict().items():
            data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            total.update(name.encode())
            total.update(data)
        return total.hexdigest()

    def record(self) -> dict[str, object]:
        """All but the numbers, for JSON."""
        return {
            "space": self.space.record(),
            "source": self.source,
            "layers": self._kinds(),
            "digest": self.digest,
            "heard": self.heard,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, object], state: Mapping[str, Tensor]) -> SpaceHead:
        """The inverse of `record`. ValueError, TypeError, KeyError or RuntimeError where the two do not fit.

        BrokenCheckpoint where a number has changed.
        """
        kinds = record["layers"]
        if not isinstance(kinds, list) or not 0 < len(kinds) <= MOST_LAYERS:
            raise ValueError("a head has no layers, or too many")
        with torch.device("meta"):
            layers = [_layer(kind) for kind in kinds]
        heard = str(record.get("heard", ""))
        if heard:
            Preprocessing.from_key(heard)
        head = cls(layers, Space.from_record(record["space"]), str(record["source"]), heard)
        numbers = {name: tensor.detach().float().clone() for name, tensor in state.items()}
        head.layers.load_state_dict(numbers, strict=True, assign=True)
        head.requires_grad_(False)
        if head.digest != record["digest"]:
            raise BrokenCheckpoint("the head into another space is damaged: its digest is not the recorded one")
        return head

    def _kinds(self) -> list[list[object]]:
        return [_kind(layer) for layer in self.layers]
