"""What `auto` stands for: how long to train, by which optimiser and at what rate, told from the number of images.

The rule was chosen without labels, by neighbours in common on held-out images (docs/real_teachers.md), and states no more than that:
a run that is known to want something else says so.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from ssl_kd.distillation.student_specs import student_specs

if TYPE_CHECKING:
    from ssl_kd.distillation.config import DistillConfig

LOOKS = 1_000_000  # at images, of a run whose length nobody named
FEWEST, MOST = 20, 400  # passes over the images
RATES = {"muon": 4e-2, "adamw": 4e-3, "sgd": 5e-2}
WARMUP = 0.05, 2.0  # share of the run, and epochs at most

T = TypeVar("T")


def settled(config: DistillConfig, images: int) -> DistillConfig:
    """The config with numbers and names in place of `auto`. images: how many are trained on, at least 1."""
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
        lr=_or(config.lr, RATES[optimizer]),
        warmup=_or(config.warmup, round(min(share * passes, most), 4)),
    )


def known(value: T | Literal["auto"]) -> T:
    """A setting of a settled config: it is not `auto` any more."""
    assert value != "auto"
    return value  # type: ignore[return-value]  # mypy does not narrow a T


def _or(given: T | Literal["auto"], otherwise: T) -> T:
    return otherwise if given == "auto" else known(given)
