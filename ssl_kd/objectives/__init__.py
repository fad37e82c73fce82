"""What the student is asked to do: alignment and correlation with a frozen teacher, never labels."""

from ssl_kd.objectives.presets import PRESETS, WeightedSum, build_objective

__all__ = ["PRESETS", "WeightedSum", "build_objective"]
