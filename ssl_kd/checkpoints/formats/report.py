"""What was found in a file, for people and as JSON: every tensor that was used, left out or expected, by name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from ssl_kd.errors import one_line, shown_name
from ssl_kd.models.preprocessing import Preprocessing


@dataclass(frozen=True)
class Report:
    """A weight file described. `problem` is None exactly when `load_teacher` would take it."""

    path: str
    container: str
    bytes: int
    format: str | None = None
    family: str | None = None
    wrote: str | None = None
    origin: str | None = None
    branch: str | None = None
    arch: str | None = None
    arch_args: Mapping[str, object] = field(default_factory=dict)
    feature: str | None = None
    dim: int | None = None
    preprocessing: Preprocessing | None = None
    parameters: int | None = None
    used: tuple[str, ...] = ()  # paths in the file
    expected: tuple[str, ...] = ()  # names in the network, all of them filled from `used`
    dropped: tuple[str, ...] = ()  # paths in the file
    digest: str | None = None
    card: Mapping[str, object] = field(default_factory=dict)  # what our own students carry with them
    spaces: Mapping[str, str] = field(default_factory=dict)  # of others that heads lead into, by the feature's name
    licence: str | None = None  # of the weights, in its publisher's words
    problem: str | None = None

    def to_json(self) -> str:
        """Every field, with all tensor names, as one JSON object."""
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        rows = {"file": f"{self.path} ({self.bytes / 1e6:,.1f} MB, {CONTAINERS[self.container]})"}
        if self.format:
            rows["format"] = f"{self.format}: {self.wrote}"
        if self.problem:
            rows["problem"] = self.problem
        else:
            rows |= self.findings()
        rows |= {"left out": summary(self.dropped), **{key: one_line(value) for key, value in self.card.items()}}
        width = max(14, *(len(name) + 2 for name in rows))
        return "\n".join(f"{name:<{width}}{shown_name(text)}" for name, text in rows.items())

    def findings(self) -> dict[str, str]:
        """The lines about a file that can be loaded."""
        options = "".join(f", {key}={value}" for key, value in self.arch_args.items())
        assert self.preprocessing is not None  # only a Report with a problem has none
        return {
            "what": f"{self.origin}",
            "architecture": f"{self.arch}{options} ({(self.parameters or 0) / 1e6:,.1f} M parameters)",
            "branch": f"{self.branch}",
            "feature": f"{self.feature}, {self.dim} numbers per image",
            **{f"feature {name}": f"by a head in the space of {space}" for name, space in self.spaces.items()},
            "pixels": str(self.preprocessing),
            "used": f"{len(self.used)} tensors, filling all {len(self.expected)} of the network"
            if self.expected
            else "the file as it is, by its own engine",
            "licence": f"{self.licence}",
            "digest": self.digest or "none: the file is large, and only its shapes were read",
        }


CONTAINERS = {
    "zip": "torch.save",
    "legacy": "torch.save before torch 1.6",
    "safetensors": "safetensors",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
}


def summary(names: Sequence[str], most: int = 8) -> str:
    """Tensor names counted by where they are: 'student/module.backbone. (150), teacher/head. (8)'."""
    groups = Counter(group(name) for name in names)
    shown = ", ".join(f"{name} ({count})" for name, count in groups.most_common(most))
    more = f", and {len(groups) - most} more places" if len(groups) > most else ""
    return (shown + more) or "nothing"


def group(name: str) -> str:
    """The place of a tensor: its folder with numbers as *, and its own name up to the first dot, or second for module."""
    folder, slash, leaf = one_line(name, 400).rpartition("/")
    folder = "/".join("*" if part.isdigit() else part for part in folder.split("/"))
    parts = leaf.split(".")
    kept = parts[: 2 if parts[0] == "module" else 1] if len(parts) > 1 else parts
    return f"{folder}{slash}{'.'.join(kept)}{'.' if len(kept) < len(parts) else ''}"[:80]
