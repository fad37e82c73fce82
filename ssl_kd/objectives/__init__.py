"""What the student is asked to do: alignment and correlation with a frozen teacher, never labels."""

from ssl_kd.objectives.factory import PRESETS, WeightedSum, build_objective, taps
from ssl_kd.objectives.inputs import Widths

__all__ = ["PRESETS", "WeightedSum", "Widths", "build_objective", "taps"]
