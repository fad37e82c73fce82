"""Where a run's student comes from: an architecture's name, a file of weights, an Encoder or a bare module from Python."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.distillation.arguments import plain
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError, must_be, one_line
from ssl_kd.models.encoder import MODULE, Encoder, at_rest, build
from ssl_kd.models.factory import BAD_ARGUMENTS
from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing

DEFAULT = "resnet18"


def find_student(config: DistillConfig, given: Any, contract: Preprocessing) -> tuple[Encoder, dict[str, Any]]:
    """The network to be trained, and what config.yaml says of it.

    given: an Encoder or a module from Python, which are trained in place, or anything else for what the config names.
    contract: the pixels of the run; all but an Encoder from Python see them, by ImageNet's mean and std or their file's.
    """
    eyes = replace(contract, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if isinstance(given, nn.Module):
        if config.student_weights:
            raise UserError("student_weights: a student from Python brings weights of its own; give one of the two")
        return _learns(given if isinstance(given, Encoder) else wrapped(given, eyes)), {"student": config.student}
    if config.student_weights:
        return _from_file(config, contract)
    name = config.student or DEFAULT
    if name.startswith(MODULE):
        raise UserError(f"student: {name} was a module from Python; give it again, as ssl_kd.distill(student=...)")
    return build(name, preprocessing=eyes, **config.student_args), {"student": name}


def wrapped(module: nn.Module, eyes: Preprocessing) -> Encoder:
    """An Encoder of any module that maps normalised pixels to (B, D), a map (B, D, H, W) or Features, as it is found out.

    UserError where it gives something else, or could not be saved at the end of a run.
    """
    kind = type(module).__name__
    odd = [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"student: the state of {kind} holds {odd[0]}, which is no tensor and cannot be saved")
    return Encoder.from_module(module, _width(module, eyes), eyes)


@torch.no_grad()
def _width(module: nn.Module, eyes: Preprocessing) -> int:
    """Numbers per image, by looking at two made-up ones in eval mode."""
    kind, look = type(module).__name__, Encoder.from_module(module, 1, eyes)
    weights = next(module.parameters(), torch.zeros(()))
    pixels = torch.rand(2, 3, eyes.size, eyes.size, generator=torch.Generator().manual_seed(0))
    try:
        with at_rest(module):
            out = module(look.normalise(pixels).to(weights.device))
    except BAD_ARGUMENTS as error:
        raise UserError(f"student: {kind} cannot look at images of {eyes.size} px: {one_line(error, 160)}") from error
    out = getattr(out, "embedding", out)
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if not isinstance(out, Tensor) or out.ndim not in (2, 4) or len(out) != len(pixels):
        raise UserError(f"student: {kind} gives {shape} for 2 images; expected (2, D), (2, D, H, W) or Features")
    return int(out.shape[1])


def _learns(student: Encoder) -> Encoder:
    """The student, if there is something to train; a frozen one would come out as it went in."""
    if not any(p.requires_grad for p in student.parameters()):
        raise UserError(f"student: no parameter of {student.arch} asks for a gradient; call requires_grad_(True) first")
    return student


def _from_file(config: DistillConfig, contract: Preprocessing) -> tuple[Encoder, dict[str, Any]]:
    """A saved network that will see this run's pixels by its own mean and std; UserError where it is not what was asked."""
    found = load_teacher(config.student_weights)
    must_be("student_weights", config.student_digest, config.student_weights, found.digest)
    if config.student and config.student.removeprefix("timm/") != found.arch.removeprefix("timm/"):
        raise UserError(
            f"student: {config.student_weights} holds {found.arch}, not {config.student}; leave student out, or give other "
            f"weights"
        )
    args = plain("student_args", found.arch_args)
    if config.student_args and config.student_args != args:
        raise UserError(f"student_args: {config.student_weights} was built with {args}, not {config.student_args}")
    eyes = replace(contract, mean=found.preprocessing.mean, std=found.preprocessing.std)
    student = Encoder(found.network, found.arch, found.arch_args, found.feature, eyes, found.origin)
    recorded = {"student": found.arch, "student_args": args, "student_digest": found.digest}
    return student.train().requires_grad_(True), recorded
