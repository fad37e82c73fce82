"""Ranges and choices of settings, checked once before anything is loaded or written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ssl_kd.errors import UserError

SEEDS = 2**63  # exclusive: torch, numpy and the hash of the views take any below


Rule = tuple[bool, str]  # whether a setting is right, and what is said where it is not


def rules_of_training(config: Any) -> tuple[Rule, ...]:
    """The rules that every training run shares: images, place, lengths, seeds, devices."""
    return (
        (bool(config.images), "images: expected a folder, a zip or a data set; got nothing"),
        (bool(config.out), "out: expected a path to write to; got nothing"),
        (config.epochs >= 1, f"epochs: expected at least 1, got {config.epochs}"),
        (
            config.batch_size >= 2,
            f"batch_size: expected at least 2 (samples are related to each other), got {config.batch_size}",
        ),
        (0 < config.lr < math.inf, f"lr: expected above 0, got {config.lr}"),
        (0 <= config.weight_decay < math.inf, f"weight_decay: expected 0 or more, got {config.weight_decay}"),
        (0 <= config.seed < SEEDS, f"seed: expected a whole number from 0 to below 2^63, got {config.seed}"),
        (config.threads >= 1, f"threads: expected at least 1, got {config.threads}"),
        (
            config.precision in ("auto", "32-true", "bf16-mixed"),
            f"precision: expected auto, 32-true or bf16-mixed, got {config.precision!r}",
        ),
        (
            config.accelerator in ("auto", "cpu", "cuda"),
            f"accelerator: expected auto, cpu or cuda, got {config.accelerator!r}",
        ),
    )


def must_hold(rules: Iterable[Rule]) -> None:
    """Raise UserError with the message of the first rule that does not hold."""
    for good, message in rules:
        if not good:
            raise UserError(message)
