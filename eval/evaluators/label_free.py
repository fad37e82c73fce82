"""Evaluators that need no labels, beside `agreement` and `ood`: what a folder of photos can tell about an encoder.

Alike()(train, test, reference_train, reference_test)     # CKA of the same photos under two encoders
Stability()(index, queries, damaged_queries)              # neighbours that a photo keeps when it is damaged
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ssl_kd.errors import UserError
from ssl_kd.metrics import cka_of, hollow_products

from ..banks import FeatureBank, check_finite
from ..metrics import Z95, Score, Scores, mean_score
from .knn import neighbours

MOST = 2000  # photos of a CKA: it looks at all their pairs
BLOCKS = 20  # of the jackknife, where there are two images for each
LEAST = 8  # images of a CKA


@dataclass(frozen=True)
class Alike:
    """Evaluator: linear CKA of an encoder's and a reference's test rows, unbiased: 0 for unrelated networks, 1 for equal ones.

    The interval is a jackknife's over blocks of photos, drawn by `seed`. Source: Kornblith et al., ICML 2019; see
    `ssl_kd.metrics.centred_kernel_alignment`.
    """

    seed: int = 0

    name = "cka"
    protocol = "linear"
    paired = True

    def __call__(
        self, train: FeatureBank, test: FeatureBank, reference_train: FeatureBank, reference_test: FeatureBank
    ) -> Scores:
        """Return the CKA of the test rows, at most MOST of them. UserError for rows of other images, or too few."""
        if len(test) != len(reference_test) or (len(test.ids) and list(test.ids) != list(reference_test.ids)):
            raise UserError(
                f"cka: two encoders can be compared on the same images only; got {len(test)} and {len(reference_test)} rows"
            )
        if len(test) < LEAST:
            raise UserError(f"cka: expected at least {LEAST} test images, got {len(test)}")
        check_finite(test, "encoder")
        check_finite(reference_test, "reference")
        rows = np.sort(np.random.default_rng(self.seed).permutation(len(test))[:MOST])
        a, b = (hollow_products(torch.from_numpy(np.asarray(bank.features[rows]))) for bank in (test, reference_test))
        value = cka_of(a, b)
        low, high = self._interval(a, b, value)
        note = f"of {len(rows):,} of {len(test):,} test images" if len(rows) < len(test) else ""
        return Scores(
            "cka",
            "linear",
            (Score("cka", value, low, high, len(rows)),),
            np.array([]),
            np.zeros(len(test), int),
            {},
            notes=tuple(filter(None, ("unrelated networks have a CKA of 0", note))),
            headline_metric="cka",
        )

    def _interval(self, a: torch.Tensor, b: torch.Tensor, value: float) -> tuple[float, float]:
        """Delete one block of photos at a time; at most 1."""
        blocks = min(BLOCKS, len(a) // 2)
        block = torch.from_numpy(np.random.default_rng(self.seed).permutation(len(a)) % blocks)
        left = np.array([cka_of(*(z[block != i][:, block != i] for z in (a, b))) for i in range(blocks)])
        arm = Z95 * math.sqrt((blocks - 1) / blocks * float(((left - left.mean()) ** 2).sum()))
        return value - arm, min(1.0, value + arm)


@dataclass(frozen=True)
class Stability:
    """Evaluator: the share of a photo's k nearest that it keeps when it is damaged; the index stays as it is."""

    k: int = 10

    def __call__(self, train: FeatureBank, inside: FeatureBank, outside: FeatureBank) -> Scores:
        """Return the share with its interval. Photos that could not be read in both forms are left out.

        Without ids the rows of both banks are taken to be the same photos in one order.
        """
        for name, bank in (("index", train), ("photos", inside), ("damaged photos", outside)):
            if not len(bank):
                raise UserError(f"stability: no {name}")
            check_finite(bank, name)
        both = _pairs(inside, outside)
        k = min(self.k, len(train))
        before, after = (
            neighbours(bank.features[rows], train.features, k)[1]
            for bank, rows in ((inside, both[:, 0]), (outside, both[:, 1]))
        )
        each = (before[:, :, None] == after[:, None, :]).any(2).mean(1)
        return Scores(
            "stability",
            "neighbours",
            (mean_score("overlap", each, k),),
            np.array([]),
            np.zeros(len(each), int),
            {},
            headline_k=k,
            notes=(f"a damaged photo that nothing ties to its own would keep {100 * k / len(train):.1f} %",),
            details={"chance": {str(k): k / len(train)}},
            headline_metric="overlap",
            each={("overlap", k): each},
        )


def _pairs(inside: FeatureBank, outside: FeatureBank) -> np.ndarray:
    """Return the rows (n, 2) that are one photo in both banks. UserError where there are none."""
    if not len(inside.ids) and not len(outside.ids) and len(inside) == len(outside):
        return np.repeat(np.arange(len(inside))[:, None], 2, 1)
    places = {name: i for i, name in enumerate(outside.ids)}
    both = np.array([(i, places[name]) for i, name in enumerate(inside.ids) if name in places])
    if not len(both):
        raise UserError("stability: the damaged photos are others")
    return both
