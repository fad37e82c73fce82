"""Linear probes on feature banks by named protocols; whatever a protocol leaves open is chosen on train.

    scores = LinearProbe("simclr-lbfgs")(train, test)
    scores.value("top1"), scores.details["strength"]
    fitted = LinearProbe("simclr-lbfgs").fit(train)          # fitted.predict(features), fitted.weights

A part of train chooses the strength (or the learning rate), the winner is fitted again on all of train, and test is
touched once, after the last step: no best epoch is picked on it. Features are used as they are, but by
`compress-linear`. A memory-mapped bank of more than 2 GB as float32 stays on disk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ssl_kd.errors import NonFinite, UserError
from ssl_kd.registry import Registry
from ssl_kd.runtime.progress import Progress

from ..banks import FeatureBank, check_finite, check_labelled, match, numbered
from ..metrics import Scores, accuracy, figures, hits_of_figures, mean_per_class
from ..solvers.lbfgs import Fits, fit
from ..solvers.out_of_core import Rows, stays_on_disk
from ..solvers.sgd import SGD_PROTOCOLS, Ready, SGDProtocol, fit_sgd, standardiser

CELLS = 1 << 25  # logits alive at once: rows x classes x strengths


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
    precision: float = 3e-4
    max_passes: int = 1000
    source: str = ""

    knob = "strength"

    @property
    def choices(self) -> tuple[float, ...]:
        """The strengths that a sweep tries."""
        return self.strengths

    def fit(
        self, x: torch.Tensor | Rows, y: torch.Tensor, classes: int, penalties: torch.Tensor, bar: Progress
    ) -> Fits:
        """Fit one model per penalty, as far as this protocol goes."""
        return fit(x, y, classes, penalties, self.tolerance, self.precision, self.max_passes, bar.advance)


def _grid(low: float, high: float, count: int) -> tuple[float, ...]:
    return tuple(float(w) for w in np.logspace(low, high, count))


Protocol = LinearProtocol | SGDProtocol
Tried = dict[str, float]  # one choice of a sweep: itself, its figures on the held-out part, how its fit ended

LBFGS_PROTOCOLS: dict[str, LinearProtocol] = {
    row.name: row
    for row in (
        LinearProtocol(
            "simclr-lbfgs", _grid(-6, 5, 45), 0.2, source="Kornblith et al. 2019, SimCLR; details of ssl-transfer"
        ),
        # C from 1e-6 to 1e5; differs: a tight stop instead of tol 1e-12, and float32 where a set is large
        LinearProtocol(
            "dinov2-logreg", _grid(-5, 6, 45), 0.1, 1e-6, 1e-6, source="facebookresearch/dinov2 eval/log_regression.py"
        ),
        LinearProtocol("quick-lbfgs", _grid(-4, 4, 9), 0.2, source="simclr-lbfgs with 9 strengths, for a quick look"),
    )
}

PROTOCOLS: Registry[Protocol] = Registry(
    "linear protocols",
    {**LBFGS_PROTOCOLS, **SGD_PROTOCOLS},
    group="ssl_kd.linear_protocols",
    kind=Protocol,
    named=True,
)


@dataclass(frozen=True)
class LinearProbe:
    """Evaluator: one linear layer with a softmax on frozen features.

    `protocol` is a name of PROTOCOLS or a protocol of your own. `metric` (top1 or mean_per_class) chooses the strength
    or learning rate; a given `strength` skips the choice. `seed` draws the held-out part, and an SGD's weights and
    batches. `device` runs the fits, `quiet=False` shows how many are done.
    """

    protocol: str | Protocol = "simclr-lbfgs"
    metric: str = "top1"
    strength: float | None = None
    seed: int = 0
    device: str = "cpu"
    quiet: bool = True

    name = "linear"

    def __call__(self, train: FeatureBank, test: FeatureBank) -> Scores:
        """Return top-1, mean per class and top-5 with intervals; `details` hold the strength and the whole sweep."""
        return self._judged(train, test)[0]

    def fit(self, train: FeatureBank) -> FittedProbe:
        """Choose what the protocol leaves open and fit to all of train: the model that the call above judges, bit for bit.

        Raises UserError for a bank without labels or with one class, and NonFinite where every choice diverges.
        """
        check_labelled(train, "train", squares=True)
        classes, y = numbered(train)
        return self._fitted(train.features, y, classes, train.held)

    def with_logits(self, train: FeatureBank, test: FeatureBank) -> tuple[Scores, np.ndarray]:
        """Return the scores and the chosen model's logits (Q, C) of the test rows, float32."""
        scores, fitted = self._judged(train, test)
        return scores, fitted.decision_function(test)

    def _judged(self, train: FeatureBank, test: FeatureBank) -> tuple[Scores, FittedProbe]:
        banks = match(train, test, squares=True)
        fitted = self._fitted(banks.x, banks.y, banks.classes, train.held)
        ranked, classes = _ranked(fitted.fits, fitted.ready(_tensor(banks.x_test, self.device))), len(banks.classes)
        scores = Scores(
            "linear",
            fitted.protocol.name,
            tuple(figures(banks.y_test, ranked, classes)),
            banks.classes,
            banks.y_test,
            {None: ranked[:, 0]},
            notes=tuple(_notes(fitted.sweep, fitted.chosen, fitted.fits, fitted.protocol)),
            details={
                fitted.protocol.knob: fitted.chosen,
                "objective": float(fitted.fits.objective[0]),
                "converged": bool(fitted.fits.converged[0]),
                "sweep": list(fitted.sweep),
            },
            each=hits_of_figures(banks.y_test, {None: ranked}, classes),
        )
        return scores, fitted

    def _fitted(
        self, features: np.ndarray, labels: np.ndarray, names: np.ndarray, own: np.ndarray | None
    ) -> FittedProbe:
        protocol = linear_protocol(self.protocol)
        if self.metric not in ("top1", "mean_per_class"):
            raise UserError(f"metric: expected top1 or mean_per_class to choose by, got {self.metric!r}")
        x, y, classes = _tensor(features, self.device), torch.from_numpy(labels).to(self.device), len(names)
        given = self.strength if self.strength is not None or len(protocol.choices) > 1 else protocol.choices[0]
        with Progress("linear probe", 1 if given is not None else len(protocol.choices) + 1, "fits", self.quiet) as bar:
            sweep = self._sweep(protocol, labels, x, y, classes, own, bar) if given is None else []
            chosen = float(given) if given is not None else _best(sweep, self.metric, protocol.knob)[protocol.knob]
            final, ready = self._fit(protocol, x, y, classes, (chosen,), bar)
        if not torch.isfinite(final.weights).all():
            raise NonFinite(f"{protocol.name}: diverged at {protocol.knob} {chosen:g}; take a protocol with a sweep")
        return FittedProbe(protocol, names, final, ready, chosen, tuple(sweep), self.device)

    def _sweep(
        self,
        protocol: Protocol,
        labels: np.ndarray,
        x: torch.Tensor | Rows,
        y: torch.Tensor,
        classes: int,
        own: np.ndarray | None,
        bar: Progress,
    ) -> list[Tried]:
        """Fit every choice on a part of train and judge it on the rest: the set's `own` validation split if it has one."""
        held = holdout(labels, protocol.holdout, self.seed) if own is None else own
        rest = torch.from_numpy(held).to(x.device)
        fits, ready = self._fit(protocol, x[~rest], y[~rest], classes, protocol.choices, bar)
        guesses, losses = _judge(fits, ready(x[rest]), y[rest])
        return [
            {
                protocol.knob: choice,
                "top1": accuracy(labels[held], guess).value,
                "mean_per_class": mean_per_class(labels[held], guess).value,
                "loss": float(loss),
                "objective": float(fits.objective[i]),
                "gradient": float(fits.gradient[i]),
                "passes": int(fits.passes[i]),
                "converged": bool(fits.converged[i]),
            }
            for i, (choice, guess, loss) in enumerate(zip(protocol.choices, guesses, losses, strict=True))
        ]

    def _fit(
        self,
        protocol: Protocol,
        x: torch.Tensor | Rows,
        y: torch.Tensor,
        classes: int,
        choices: Sequence[float],
        bar: Progress,
    ) -> tuple[Fits, Ready]:
        """Fit all choices to x; return them with what makes features ready for them."""
        knobs = torch.tensor(choices, dtype=torch.float32, device=x.device)
        if isinstance(protocol, SGDProtocol):
            ready = standardiser(x) if protocol.standardise else _as_they_are
            return fit_sgd(ready(x), y, classes, knobs, protocol, self.seed, bar.advance), ready
        return protocol.fit(x, y, classes, knobs / len(x), bar), _as_they_are


@dataclass(frozen=True, eq=False)
class FittedProbe:
    """A fitted linear probe: logits = ready(features) @ weights.T + bias, one per class of `classes` (C,), sorted.

    `chosen` is the strength or learning rate, `sweep` what was tried for it. `ready` is the identity but for protocols
    that standardise, whose weights belong to standardised features.
    """

    protocol: Protocol
    classes: np.ndarray
    fits: Fits
    ready: Ready
    chosen: float
    sweep: tuple[Tried, ...] = ()
    device: str = "cpu"

    @property
    def weights(self) -> np.ndarray:
        """(C, D) float32."""
        return np.asarray(self.fits.weights[0].cpu())

    @property
    def bias(self) -> np.ndarray:
        """(C,) float32."""
        return np.asarray(self.fits.bias[0].cpu())

    def decision_function(self, rows: FeatureBank | np.ndarray) -> np.ndarray:
        """Return logits (N, C) float32 of a bank or features (N, D). UserError for another width, NonFinite for no numbers."""
        bank = rows if isinstance(rows, FeatureBank) else FeatureBank(rows)
        if bank.width != self.fits.weights.shape[2]:
            raise UserError(f"features are {bank.width} wide, but the probe was fitted to {self.fits.weights.shape[2]}")
        check_finite(bank, "features", squares=True)
        if not len(bank):
            return np.empty((0, len(self.classes)), np.float32)
        ready = self.ready(_tensor(bank.features, self.device))
        parts = [self.fits.logits(part)[0].cpu() for part in _split(ready, _rows(self.fits))]
        return np.asarray(torch.cat(parts))

    def predict(self, rows: FeatureBank | np.ndarray) -> np.ndarray:
        """Return the most likely class of each row (N,), as `classes` names it; of equal ones the first."""
        return np.asarray(self.classes[self.decision_function(rows).argmax(1)])


def linear_protocol(protocol: str | Protocol) -> Protocol:
    """Return a protocol by name, or the given one as it is."""
    if not isinstance(protocol, str):
        return protocol
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


def _judge(fits: Fits, x: torch.Tensor | Rows, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return each strength's guesses (R, N) and mean cross-entropy (R,)."""
    guesses, losses, size = [], torch.zeros(len(fits.weights), device=x.device), _rows(fits)
    for rows, labels in zip(_split(x, size), torch.split(y, size), strict=True):
        logits = fits.logits(rows)
        guesses.append(logits.argmax(2))
        own = logits.gather(2, labels.expand(len(logits), -1)[..., None])[..., 0]
        losses += (logits.logsumexp(2) - own).sum(1)
    return torch.cat(guesses, 1).cpu().numpy(), (losses / len(x)).cpu().numpy()


def _split(x: torch.Tensor | Rows, size: int) -> Iterable[torch.Tensor]:
    return x.split(size) if isinstance(x, Rows) else torch.split(x, size)


def _rows(fits: Fits) -> int:
    return max(1, CELLS // (fits.weights.shape[0] * fits.weights.shape[1]))


def _ranked(final: Fits, x: torch.Tensor | Rows) -> np.ndarray:
    """Return the classes (N, up to 5) by falling logit; equal ones by class number."""
    parts = []
    for rows in _split(x, _rows(final)):
        logits = final.logits(rows)[0]
        places = logits.topk(min(5, logits.shape[1]), 1).indices.sort(1).values
        order = logits.gather(1, places).sort(dim=1, descending=True, stable=True).indices
        parts.append(places.gather(1, order).cpu().numpy())
    return np.concatenate(parts)


def _best(sweep: list[Tried], metric: str, knob: str) -> Tried:
    """Return the choice with the highest metric; a tie goes to the smaller loss, then to the larger value."""
    sound = [row for row in sweep if math.isfinite(row["loss"])]
    if not sound:
        raise NonFinite(f"every {knob} of the sweep diverged; look at the scale of the features")
    return max(sound, key=lambda row: (row[metric], -row["loss"], row[knob]))


def _notes(sweep: Sequence[Tried], chosen: float, final: Fits, protocol: Protocol) -> list[str]:
    what = {"strength": "strengths", "lr": "learning rates"}[protocol.knob]
    notes = []
    if late := [f"{row[protocol.knob]:.1e}" for row in sweep if not row["converged"]]:
        notes.append(f"{len(late)} of {len(sweep)} {what} did not converge: {', '.join(late)}")
    if not final.converged[0]:
        notes.append(f"the final fit did not converge: gradient {float(final.gradient[0]):.1e}")
    ends = [row[protocol.knob] for row in sweep]
    if len(ends) > 2 and chosen in (min(ends), max(ends)):
        notes.append(f"the chosen {protocol.knob} {chosen:.1e} is the {'least' if chosen == min(ends) else 'largest'}")
    return notes


def _as_they_are(rows: torch.Tensor | Rows) -> torch.Tensor | Rows:
    return rows


def _tensor(features: np.ndarray, device: str) -> torch.Tensor | Rows:
    if device == "cpu" and stays_on_disk(features):
        return Rows(features, np.arange(len(features)))
    # a copy: torch warns about, and could write to, a read-only memory map
    return torch.from_numpy(np.array(features, dtype=np.float32, order="C")).to(device)
