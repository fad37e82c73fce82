"""Do strangers look strange? How well the distance to the k-th nearest train row tells another set's images apart.

    scores = OutOfDistribution("knn50")(train, test, other_test)
    scores.value("auroc", k=50)          # 1: every stranger is farther away than every test image; 0.5: chance

Needs no labels. Source: Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors" (cosine, k = 50 for
sets of CIFAR's size).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssl_kd.errors import UserError, one_of

from ..banks import FeatureBank, check_finite
from ..metrics import Scores, auroc
from .knn import neighbours

PROTOCOLS = {"knn1": 1, "knn10": 10, "knn50": 50}  # neighbours: the last of them is asked


@dataclass(frozen=True)
class OutOfDistribution:
    """Evaluator: the AUROC with which the cosine to the k-th nearest train row ranks test above other images."""

    protocol: str | int = "knn50"

    def __call__(self, train: FeatureBank, inside: FeatureBank, outside: FeatureBank) -> Scores:
        """Return the AUROC with its interval; `each` holds every row's placement, inside rows first."""
        for name, bank in (("train", train), ("inside", inside), ("outside", outside)):
            if not len(bank) or bank.width != train.width:
                raise UserError(
                    f"{name}: {len(bank)} rows, {bank.width} wide; expected at least one, {train.width} wide"
                )
            check_finite(bank, name)
        wanted = ood_protocol(self.protocol)
        k = min(wanted, len(train))
        near, far = (neighbours(bank.features, train.features, k)[0][:, -1] for bank in (inside, outside))
        score, each = auroc(near, far, k)
        return Scores(
            "ood",
            f"knn{wanted}",
            (score,),
            np.array(["inside", "outside"]),
            np.repeat([0, 1], [len(near), len(far)]),
            {},
            headline_k=k,
            notes=() if k == wanted else (f"k = {wanted} was clamped to the {k} rows of train",),
            headline_metric="auroc",
            each={("auroc", k): each},
        )


def ood_protocol(protocol: str | int) -> int:
    """Return a protocol's k by its name, or the given one as it is."""
    return PROTOCOLS[one_of("an ood protocol", protocol, PROTOCOLS)] if isinstance(protocol, str) else protocol
