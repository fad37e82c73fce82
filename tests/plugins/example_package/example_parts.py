"""Parts of ssl_kd from another package: an objective, a distance, a relation and views."""

from dataclasses import replace

from ssl_kd.data.augment import CENTRE, WEAK
from ssl_kd.objectives.presets.preset import Preset, alignment, correlation
from ssl_kd.objectives.relations import Relation


def absolute(s, t):
    """Mean absolute difference."""
    return (s - t).abs().mean()


class ExampleGram(Relation):
    """Inner products of all samples."""

    def tables(self, s, t, batch):
        """(N, Ds), (N, Dt) -> two (N, N) tables."""
        return s @ s.T, t @ t.T


PRESET = Preset(
    (alignment("linear", "absolute"), correlation("example_gram", "linear", comparison="l2", weight=0.1)),
    "an example",
    "ours",
    "-",
    "mean absolute difference and inner products",
    "-",
    views="upper_half",
)
VIEWS = (replace(WEAK, scale=(0.5, 1.0)), CENTRE)
