"""What `auto` stands for: how long to train, by which optimiser and at what rate, told from the number of images.

The rule was chosen without labels, by neighbours in common on held-out images (docs/real_teachers.md), and states no more than that:
a run that is known to want something else says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from torch import nn

from ssl_kd.distillation.student_specs import student_specs

if TYPE_CHECKING:
    from ssl_kd.distillation.config import DistillConfig

LOOKS = 1_000_000  # at images, of a run whose length nobody named
FEWEST, MOST = 20, 400  # passes over the images
RATES = {"muon": 4e-2, "adamw": 4e-3, "sgd": 5e-2}
DELICATE = 0.5  # of Muon's rate, for networks with grouped convolutions or layer norms: MobileNets, EfficientNets, ViTs
WARMUP = 0.05, 2.0  # share of the run, and epochs at most

T = TypeVar("T")


def settled(config: DistillConfig, images: int) -> DistillConfig:
    """The config with numbers and names in place of `auto`, but for the rate. images: how many are trained on, at least 1."""
    # Who names a rate, the run's or a student's, means AdamW's; students share the optimiser.
    rates = [config.lr, *(spec.lr or "auto" for spec in student_specs(config).values())]
    usual: Literal["muon", "adamw"] = "muon" if set(rates) == {"auto"} else "adamw"
    optimizer = usual if config.optimizer == "auto" else config.optimizer
    epochs = _or(config.epochs, min(max(-(-LOOKS // images), FEWEST), MOST))
    passes = config.steps * config.batch_size * config.accumulate / images if config.steps else epochs
    share, most = WARMUP
    return replace(
        config,
        optimizer=optimizer,
        epochs=epochs,
        warmup=_or(config.warmup, round(min(share * passes, most), 4)),
    )


def rated(config: DistillConfig, students: Mapping[str, nn.Module]) -> DistillConfig:
    """The settled config with the rate in place of `auto`; a student of several that needs another has it in its line.

    students: the networks by name, a single one as "".
    """
    if config.lr != "auto":
        return config
    rates = {name: rate_of(network, config.optimizer) for name, network in students.items()}
    usual, lines = max(rates.values()), dict(config.students) if isinstance(config.students, Mapping) else {}
    for name, spec in student_specs(config).items():
        if spec.lr is None and rates[name] != usual:
            given = lines[name]
            lines[name] = {**(given if isinstance(given, Mapping) else {"arch": given}), "lr": rates[name]}
    return replace(config, lr=usual, students=lines or config.students)


def rate_of(network: nn.Module, optimizer: str) -> float:
    """The rate that a network takes by an optimiser."""
    delicate = optimizer == "muon" and any(map(_is_delicate, network.modules()))
    return RATES[optimizer] * (DELICATE if delicate else 1)


def _is_delicate(module: nn.Module) -> bool:
    grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    return grouped or isinstance(module, nn.LayerNorm | nn.RMSNorm)


def known(value: T | Literal["auto"]) -> T:
    """A setting of a settled config: it is not `auto` any more."""
    assert value != "auto"
    return value  # type: ignore[return-value]  # mypy does not narrow a T


def _or(given: T | Literal["auto"], otherwise: T) -> T:
    return otherwise if given == "auto" else known(given)
