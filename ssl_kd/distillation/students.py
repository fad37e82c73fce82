"""Where a run's student comes from: an architecture's name, a file of weights, an Encoder or a bare module from Python,
and `package.module:name`, which is such a module or what makes one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ssl_kd.checkpoints.loading import load_teacher
from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError, must_be, one_line
from ssl_kd.models.backbones import main_output
from ssl_kd.models.encoder import MODULE, Encoder, at_rest, build
from ssl_kd.models.factory import BAD_ARGUMENTS
from ssl_kd.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from ssl_kd.runtime.objects import record_of
from ssl_kd.validation import plain

DEFAULT = "resnet18"


def find_student(config: DistillConfig, given: object, contract: Preprocessing) -> tuple[Encoder, dict[str, object]]:
    """The network to be trained, and what config.yaml keeps of it.

    given: an Encoder or a module from Python, which are trained in place; what makes a module of `student_args`; or
    anything else for what the config names. contract: the pixels of the run; all but an Encoder from Python get them,
    by ImageNet's mean and std or their file's.
    """
    eyes = replace(contract, mean=IMAGENET_MEAN, std=IMAGENET_STD)
    if callable(given) and not isinstance(given, nn.Module):
        given = _made(given, config)
    if isinstance(given, nn.Module):
        if config.student_weights:
            raise UserError("student_weights: a student from Python brings weights of its own; give one of the two")
        return _learns(given if isinstance(given, Encoder) else wrapped(given, eyes)), {"student": config.student}
    if config.student_weights:
        return _from_file(config, contract)
    name = config.student or DEFAULT
    if name.startswith(MODULE):
        raise UserError(f"student: {name} was a module from Python; give it again, as ssl_kd.distill(student=...)")
    make: Callable[..., Encoder] = build
    return make(name, preprocessing=eyes, **config.student_args), {"student": name}


def _made(maker: Callable[..., object], config: DistillConfig) -> nn.Module:
    """The module that a class or function makes of `student_args`."""
    try:
        made = maker(**config.student_args)
    except UserError:
        raise
    except Exception as error:  # whatever anybody's class or function raises
        raise UserError(
            f"student: {config.student} cannot be built with {config.student_args}: {one_line(error, 160)}"
        ) from error
    if not isinstance(made, nn.Module):
        raise UserError(f"student: expected {config.student} to make a module, got {type(made).__name__}")
    return made


def wrapped(module: nn.Module, eyes: Preprocessing, whose: str = "student") -> Encoder:
    """An Encoder of any module that maps normalised pixels to (B, D), a map (B, D, H, W) or Features, as it is found out.

    UserError where it gives something else, in eval mode or (a student) in train mode, or could not be saved.
    """
    kind = type(module).__name__
    odd = [name for name, value in module.state_dict().items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"{whose}: the state of {kind} holds {odd[0]}, which is no tensor and cannot be saved")
    with at_rest(module):
        width = _width(module, eyes, whose)
    if whose == "student":
        with _in_train_mode(module):
            _width(module, eyes, whose)
    return Encoder.from_module(module, width, eyes, record_of(module))


@torch.no_grad()
def _width(module: nn.Module, eyes: Preprocessing, whose: str) -> int:
    """Numbers per image, as two made-up ones give them."""
    kind, encoder = type(module).__name__, Encoder.from_module(module, 1, eyes)
    weights = next(module.parameters(), torch.zeros(()))
    pixels = torch.rand(2, 3, eyes.size, eyes.size, generator=torch.Generator().manual_seed(0))
    try:
        out = main_output(module(encoder.normalise(pixels).to(weights.device)))
    except BAD_ARGUMENTS as error:
        raise UserError(f"{whose}: {kind} cannot take images of {eyes.size} px: {one_line(error, 160)}") from error
    out = getattr(out, "embedding", out)
    shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
    if not isinstance(out, Tensor) or out.ndim not in (2, 4) or len(out) != len(pixels):
        mode = " in train mode" if module.training else ""
        raise UserError(f"{whose}: {kind} gives {shape} for 2 images{mode}; expected (2, D), (2, D, H, W) or Features")
    return int(out.shape[1])


@contextmanager
def _in_train_mode(module: nn.Module) -> Iterator[None]:
    """Train mode inside; modes, running statistics and random numbers are afterwards what they were."""
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        with at_rest(module), torch.random.fork_rng(devices=[]):
            module.train()
            yield
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(before[name])


def _learns(student: Encoder) -> Encoder:
    """The student, if there is something to train; a frozen one would come out as it went in."""
    if not any(p.requires_grad for p in student.parameters()):
        raise UserError(f"student: no parameter of {student.arch} asks for a gradient; call requires_grad_(True) first")
    if student.head(student.feature) is not None:
        raise UserError(f"student: reads {student.feature!r}, another network's space; read_as() its own feature first")
    student.heads.clear()  # training moves what they were made for; the run leaves new ones
    return student


def _from_file(config: DistillConfig, contract: Preprocessing) -> tuple[Encoder, dict[str, object]]:
    """A saved network that gets this run's pixels by its own mean and std; UserError where it is not what was asked."""
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
