"""A network that is a finished program (ONNX, OpenVINO) and not a module: asked as it is, never trained.

It is one more `Network`, so that an exported file stands beside its student wherever an Encoder does: in `ssl-kd eval`, in
`ssl-kd embed`, in `ssl-kd certify`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from ssl_kd.errors import UserError
from ssl_kd.models.backbones import Network, Reading

PROGRAM = "program/"  # before the kind of file, where an architecture would stand


@dataclass(frozen=True)
class Runner:
    """A program that is ready: asked for (B, 3, S, S) float32 it gives (B, D) float32.

    file: its bytes, which are all that decides its answers. batch: images that it takes at a time, 0 for any number.
    """

    ask: Callable[[np.ndarray], np.ndarray]
    file: bytes
    dim: int
    size: int
    parameters: int
    batch: int = 0


class Program(nn.Module):
    """The backbone of a program: no parameters, and the digest of its file as state."""

    def __init__(self, start: Callable[[], Runner]):
        super().__init__()
        self.start = start
        self._runner: Runner | None = start()
        digest = hashlib.sha256(self.runner.file).digest()
        self.register_buffer("file_digest", torch.tensor(list(digest), dtype=torch.uint8))

    @property
    def runner(self) -> Runner:
        """The running program; started again in a copy or another process."""
        if self._runner is None:
            self._runner = self.start()
        return self._runner

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_runner": None}

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, D), on the CPU. UserError for another size than the program was made for."""
        runner = self.runner
        if x.shape[-2:] != (runner.size, runner.size):
            raise UserError(
                f"the program takes images of {runner.size} px, got {tuple(x.shape[-2:])}; leave its size as it is"
            )
        pixels = np.ascontiguousarray(x.detach().cpu().float().numpy())
        step = runner.batch or max(len(pixels), 1)
        parts = [self._asked(pixels[i : i + step], step) for i in range(0, len(pixels), step)]
        return torch.from_numpy(np.concatenate(parts)).to(x.device)

    def _asked(self, pixels: np.ndarray, step: int) -> np.ndarray:
        short = step - len(pixels)
        whole = np.concatenate([pixels, np.zeros((short, *pixels.shape[1:]), np.float32)]) if short else pixels
        return np.array(self.runner.ask(whole)[: len(pixels)])


class ProgramNet(Network):
    """A program read as a network with one feature."""

    def __init__(self, program: Program, feature: str = "embedding"):
        super().__init__(program)
        self.default, self.dim, self.size = feature, program.runner.dim, program.runner.size

    @property
    def parameter_count(self) -> int:
        """Numbers that the file holds as weights."""
        found: int = self.backbone.runner.parameters
        return found

    def forward(self, x: Tensor, features: Sequence[str]) -> Reading:
        """See Network.forward."""
        return dict.fromkeys(features, self.backbone(x)), None
