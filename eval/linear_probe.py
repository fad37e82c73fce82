"""Linear probes on feature banks by named protocols: regularised logistic regression, the strength chosen on train.

    scores = LinearProbe("simclr-lbfgs")(train, test)
    scores.value("top1"), scores.details["strength"]

A part of train chooses the strength, the winner is fitted again on all of train, and test is touched once. Features
are used as they are: no protocol here scales or normalises them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from eval.features import FeatureBank, Matched, match
from eval.logistic import Fits, fit
from eval.metrics import Scores, accuracy, figures, mean_per_class
from ssl_kd.errors import UserError, nearest

ROWS = 4096  # rows whose logits for all strengths are alive at once


@dataclass(frozen=True)
class LinearProtocol:
    """What a linear probe's name fixes.

    `strengths` are weights of |W|^2 / 2 against the *summed* cross-entropy, that is 1 / C of scikit-learn. `holdout` is
    the share of each class of train that chooses among them. `tolerance` bounds the mean gradient, `precision` the gain
    still expected, as a share of the objective.
    """

    name: str
    strengths: tuple[float, ...]
    holdout: float
    tolerance: float = 1e-4
    precision: float = 1e-4
    max_passes: int = 1000
    source: str = ""


def _grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(w) for w in np.logspace(low, high, count))


PROTOCOLS: dict[str, LinearProtocol] = {
    row.name: row
    for row in (
        LinearProtocol(
            "simclr-lbfgs", _grid(-6, 5, 45), 0.2, source="Kornblith et al. 2019, SimCLR; details of ssl-transfer"
        ),
        # C from 1e-6 to 1e5; differs: float32 with a tight stop instead of float64 with tol 1e-12
        LinearProtocol(
            "dinov2-logreg", _grid(-5, 6, 45), 0.1, 1e-6, 1e-6, source="facebookresearch/dinov2 eval/log_regression.py"
        ),
        LinearProtocol("quick-lbfgs", _grid(-4, 4, 9), 0.2, source="simclr-lbfgs with 9 strengths, for a quick look"),
    )
}


@dataclass(frozen=True)
class LinearProbe:
    """Evaluator: multinomial logistic regression on frozen features.

    `protocol` is a name of PROTOCOLS or a LinearProtocol of your own. `metric` (top1 or mean_per_class) chooses the
    strength; a given `strength` skips the choice. `seed` draws the held-out part. `device` runs the fits.
    """

    protocol: str | LinearProtocol = "simclr-lbfgs"
    metric: str = "top1"
    strength: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __call__(self, train: FeatureBank, test: FeatureBank) -> Scores:
        """Return top-1, mean per class and top-5 with intervals; `details` hold the strength and the whole sweep."""
        protocol, banks = linear_protocol(self.protocol), match(train, test)
        if self.metric not in ("top1", "mean_per_class"):
            raise UserError(f"metric: expected top1 or mean_per_class to choose by, got {self.metric!r}")
        x, y = _tensor(banks.x, self.device), torch.from_numpy(banks.y).to(self.device)
        sweep = [] if self.strength is not None else self._sweep(protocol, banks, x, y)
        strength = float(self.strength) if self.strength is not None else _best(sweep, self.metric)["strength"]
        final = _fit(protocol, x, y, banks, (strength,))
        ranked = _ranked(final, _tensor(banks.x_test, self.device))
        return Scores(
            "linear",
            protocol.name,
            tuple(figures(banks.y_test, ranked, len(banks.classes))),
            banks.classes,
            banks.y_test,
            {None: ranked[:, 0]},
            notes=tuple(_notes(sweep, strength, final)),
            details={
                "strength": strength,
                "objective": float(final.objective[0]),
                "converged": bool(final.converged[0]),
                "sweep": sweep,
            },
        )

    def _sweep(
        self, protocol: LinearProtocol, banks: Matched, x: torch.Tensor, y: torch.Tensor
    ) -> list[dict[str, Any]]:
        held = holdout(banks.y, protocol.holdout, self.seed)
        chosen = torch.from_numpy(held).to(x.device)
        fits = _fit(protocol, x[~chosen], y[~chosen], banks, protocol.strengths)
        guesses, losses = _judge(fits, x[chosen], y[chosen])
        labels = banks.y[held]
        return [
            {
                "strength": strength,
                "top1": accuracy(labels, guess).value,
                "mean_per_class": mean_per_class(labels, guess).value,
                "loss": float(loss),
                "objective": float(fits.objective[i]),
                "gradient": float(fits.gradient[i]),
                "passes": int(fits.passes[i]),
                "converged": bool(fits.converged[i]),
            }
            for i, (strength, guess, loss) in enumerate(zip(protocol.strengths, guesses, losses, strict=True))
        ]


def linear_protocol(protocol: str | LinearProtocol) -> LinearProtocol:
    """Return a protocol by name, or the given one as it is."""
    if isinstance(protocol, LinearProtocol):
        return protocol
    if protocol not in PROTOCOLS:
        known = list(PROTOCOLS)
        raise UserError(f"no linear protocol {protocol!r}; known: {', '.join(known)}.{nearest(protocol, known)}")
    return PROTOCOLS[protocol]


def holdout(y: np.ndarray, share: float, seed: int = 0) -> np.ndarray:
    """Return booleans (N,): `share` of each class, rounded, at least one of a class of two and never all of a class.

    Raises UserError when every class has one row only, since then nothing can be held out.
    """
    held = np.zeros(len(y), dtype=bool)
    rng = np.random.default_rng(seed)
    for name in np.unique(y):
        rows = rng.permutation(np.flatnonzero(y == name))
        held[rows[: min(max(1, round(share * len(rows))), len(rows) - 1)]] = True
    if not held.any():
        raise UserError("train has one row per class, so none can be held out to choose a strength; pass strength=...")
    return held


def _fit(protocol: LinearProtocol, x: torch.Tensor, y: torch.Tensor, banks: Matched, strengths: Any) -> Fits:
    penalties = torch.tensor(strengths, dtype=torch.float32, device=x.device) / len(x)
    return fit(x, y, len(banks.classes), penalties, protocol.tolerance, protocol.precision, protocol.max_passes)


def _judge(fits: Fits, x: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return each strength's guesses (R, N) and mean cross-entropy (R,)."""
    guesses, losses = [], torch.zeros(len(fits.weights), device=x.device)
    for rows, labels in zip(x.split(ROWS), y.split(ROWS), strict=True):
        logits = fits.logits(rows)
        guesses.append(logits.argmax(2))
        own = logits.gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]
        losses += (logits.logsumexp(2) - own).sum(1)
    return torch.cat(guesses, 1).cpu().numpy(), (losses / len(x)).cpu().numpy()


def _best(sweep: list[dict[str, Any]], metric: str) -> dict[str, Any]:
    """Return the strength with the highest metric; a tie goes to the smaller loss, then to the stronger penalty."""
    return max(sweep, key=lambda row: (row[metric], -row["loss"], row["strength"]))


def _ranked(fits: Fits, x: torch.Tensor) -> np.ndarray:
    """Return the classes (N, up to 5) by falling logit; equal ones by class number."""
    parts = [np.argsort(-fits.logits(rows)[0].cpu().numpy(), 1, kind="stable")[:, :5] for rows in x.split(ROWS)]
    return np.concatenate(parts)


def _notes(sweep: list[dict[str, Any]], strength: float, final: Fits) -> list[str]:
    notes = []
    if late := [f"{row['strength']:.1e}" for row in sweep if not row["converged"]]:
        notes.append(f"{len(late)} of {len(sweep)} strengths did not converge: {', '.join(late)}")
    if not final.converged[0]:
        notes.append(f"the final fit did not converge: gradient {float(final.gradient[0]):.1e}")
    ends = [row["strength"] for row in sweep]
    if len(ends) > 2 and strength in (min(ends), max(ends)):
        notes.append(f"the chosen strength {strength:.1e} is the {'weakest' if strength == min(ends) else 'strongest'}")
    return notes


def _tensor(features: np.ndarray, device: str) -> torch.Tensor:
    # a copy: torch warns about, and could write to, a read-only memory map
    return torch.from_numpy(np.array(features, dtype=np.float32, order="C")).to(device)
