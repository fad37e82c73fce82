"""A linear probe for images that show several classes: one logistic regression per class, judged by VOC 2007's mAP.

    scores = MultiLabelProbe("simclr-lbfgs")(train, test)     # labels (N, C): 1, -1, or 0 for not judged
    scores.value("map11")

One strength for all classes is chosen on the held-out part of train by the mean average precision there (the set's own
validation split, where the bank knows it), as Kornblith et al. 2019 do. Rows labelled 0 take no part in that class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssl_kd.errors import UserError, one_of
from ssl_kd.runtime.progress import Progress

from ..banks import FeatureBank, check_finite
from ..metrics import Scores, eleven_point, map11, mean_area
from .linear_probe import LBFGS_PROTOCOLS, LinearProtocol


@dataclass(frozen=True)
class MultiLabelProbe:
    """Evaluator: one-vs-rest logistic regression by an L-BFGS protocol; `each` keeps the scores (Q, C) of test rows."""

    protocol: str | LinearProtocol = "simclr-lbfgs"
    seed: int = 0
    device: str = "cpu"
    quiet: bool = True

    name = "linear"

    def __call__(self, train: FeatureBank, test: FeatureBank) -> Scores:
        """Return the 11-point mAP; `details` hold each class's average precision, the strength and the sweep."""
        protocol, y, y_test = multilabel_protocol(self.protocol), *_checked(train, test)
        held = _holdout(len(y), protocol.holdout, self.seed) if train.held is None else train.held
        x, x_test = (torch.from_numpy(np.array(bank.features, np.float32)).to(self.device) for bank in (train, test))
        with Progress("linear probe", (len(protocol.strengths) + 1) * y.shape[1], "fits", self.quiet) as bar:
            converged, logits = _one_vs_rest(protocol, protocol.strengths, x[~held], y[~held], x[held], bar)
            sweep = [
                {"strength": strength, "map11": mean_area(y[held], found), "converged": bool(good)}
                for strength, found, good in zip(protocol.strengths, logits, converged, strict=True)
            ]
            best = max(sweep, key=lambda row: (row["map11"], row["strength"]))
            (settled,), (final,) = _one_vs_rest(protocol, (best["strength"],), x, y, x_test, bar)
        areas = [float(eleven_point(y_test[:, c], final[:, c])[0]) for c in range(y.shape[1])]
        late = [f"{row['strength']:.1e}" for row in sweep if not row["converged"]]
        notes = [f"{len(late)} of {len(sweep)} strengths did not converge: {', '.join(late)}"] if late else []
        notes += [] if settled else ["the final fit did not converge"]
        if unseen := int(np.isnan(areas).sum()):
            notes.append(f"{unseen} classes have no judged test row that shows them and are left out of the mean")
        return Scores(
            "linear",
            protocol.name,
            (map11(y_test, final, seed=self.seed),),
            np.arange(y.shape[1]),
            y_test,
            {},
            notes=tuple(notes),
            details={
                "strength": best["strength"],
                "sweep": sweep,
                "average precision": [None if np.isnan(area) else area for area in areas],
            },
            headline_metric="map11",
            each={("map11", None): final},
        )


def multilabel_protocol(protocol: str | LinearProtocol) -> LinearProtocol:
    """Return an L-BFGS protocol by name; the others have no form for several labels."""
    if isinstance(protocol, str):
        return LBFGS_PROTOCOLS[one_of("a linear protocol for several labels per image", protocol, LBFGS_PROTOCOLS)]
    if not isinstance(protocol, LinearProtocol):
        raise UserError(f"{protocol.name}: no linear protocol for several labels per image; take one by L-BFGS")
    return protocol


def _checked(train: FeatureBank, test: FeatureBank) -> tuple[np.ndarray, np.ndarray]:
    """Return both banks' labels. UserError for what cannot be fitted: no rows, other widths, a class without examples."""
    for name, bank in (("train", train), ("test", test)):
        if not len(bank) or bank.labels is None or np.ndim(bank.labels) != 2:
            raise UserError(f"{name}: expected rows with labels (rows, classes) of 1, -1 and 0")
        check_finite(bank, name, squares=True)
    y, y_test = np.asarray(train.labels), np.asarray(test.labels)
    if train.width != test.width or y.shape[1] != y_test.shape[1]:
        raise UserError(
            f"train has {train.width} features and {y.shape[1]} classes, test {test.width} and {y_test.shape[1]}"
        )
    for c in range(y.shape[1]):
        if not ((y[:, c] > 0).any() and (y[:, c] < 0).any()):
            raise UserError(f"train: class number {c} needs images that show it and images that do not")
    return y, y_test


def _holdout(n: int, share: float, seed: int) -> np.ndarray:
    held = np.zeros(n, bool)
    held[np.random.default_rng(seed).permutation(n)[: max(1, round(share * n))]] = True
    return held


def _one_vs_rest(
    protocol: LinearProtocol,
    strengths: Sequence[float],
    x: torch.Tensor,
    y: np.ndarray,
    x_test: torch.Tensor,
    bar: Progress,
) -> tuple[np.ndarray, np.ndarray]:
    """Return whether all classes converged (R,), and every strength's scores (R, Q, C) of the test rows."""
    scores = np.zeros((len(strengths), len(x_test), y.shape[1]), np.float32)
    converged = np.ones(len(strengths), bool)
    for c in range(y.shape[1]):
        rows = np.flatnonzero(y[:, c])
        shown = torch.from_numpy((y[rows, c] > 0).astype(np.int64)).to(x.device)
        if len(set(shown.tolist())) < 2:
            bar.advance(len(strengths))  # a held-out part without the class: every row scores alike
            continue
        # a softmax of two classes halves |w|^2, so twice the strength is the logistic regression's
        penalties = 2 * torch.tensor(strengths, dtype=torch.float32, device=x.device) / len(rows)
        fits = protocol.fit(x[rows], shown, 2, penalties, bar)
        converged &= fits.converged.cpu().numpy()
        logits = fits.logits(x_test)
        scores[:, :, c] = (logits[..., 1] - logits[..., 0]).cpu().numpy()
    return converged, scores
