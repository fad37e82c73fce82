"""The catalogue of objectives: ours, those of self-supervised distillation, and the classics in a form without labels."""

from __future__ import annotations

from ssl_kd.objectives.presets.classics import CLASSICS, SYSTEMS
from ssl_kd.objectives.presets.newest import NEWEST
from ssl_kd.objectives.presets.on_prototypes import ON_PROTOTYPES
from ssl_kd.objectives.presets.ours import OURS
from ssl_kd.objectives.presets.papers import SELF_SUPERVISED
from ssl_kd.objectives.presets.preset import Preset
from ssl_kd.registry import Registry

__all__ = ["CATALOGUE", "CLASSICS", "NEWEST", "ON_PROTOTYPES", "OURS", "SELF_SUPERVISED", "SYSTEMS", "Preset"]

CATALOGUE = Registry(
    "objective",
    OURS | SELF_SUPERVISED | NEWEST | ON_PROTOTYPES | CLASSICS | SYSTEMS,
    group="ssl_kd.presets",
    kind=Preset,
)
