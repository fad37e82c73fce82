"""L2-regularised multinomial logistic regression, many strengths at once: what every L-BFGS probe runs on.

The objective is scikit-learn's divided by N: mean cross-entropy + penalty / 2 * |W|^2, bias free, penalty = 1 / (C N).

Why it is quick. The features are centred and turned into the eigenbasis of their covariance, which changes neither
the objective (the bias absorbs the centre, a rotation keeps |W|) nor the answer, but makes the Hessian at the start
diagonal: (curvature * eigenvalue + penalty), with the curvature mean p (1 - p). L-BFGS preconditioned by it, curvature
followed on the way, needs some 15 passes where plain L-BFGS needs 50 to 100. Strengths are solved in
groups from strong to weak, each group in one matrix product per chunk of rows (those that have converged leave it), and
each starts near where a little stronger one ended: the weakest ones, on features that no penalty holds, need a single pass.

Tried without gain: bfloat16 products (more passes), the exact diagonal of the Hessian every ten steps (no fewer steps),
one curvature for all classes (2.5 times the passes on 960 rows of 800 dead-ended features), the eigenbasis of rows weighted
by their curvature, made anew on the way (207 passes for 212 on 3,000 x 64 x 300 classes, 15 strengths; 743 to 840 for 743 on the
heavy-tailed features of a MobileNetV3), longer memory, taking the memory along to the next group (no fewer passes), starting
ahead of the last group's end on the line of the last two.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_kd.errors import UserError

from ..banks import blocks
from .deterministic import Pieces, fixed_rounding
from .out_of_core import Rows, scratch

MEMORY = 10  # pairs of steps that L-BFGS remembers
CELLS = 1 << 17  # rows x strengths x classes of one piece: its logits stay in a core's own cache
ROWS = 1024  # features turned at a time
STATE = 1 << 22  # weights solved at once; 22 copies of them are alive, so 370 MB, and one more for each piece under way
COLUMNS = 160  # strengths x classes solved at once: enough for a quick product, few enough to start near the last ones
HALVINGS = 20
# How far a strength goes: what part of `precision` it asks for, the objective below which it is as good as nothing, against
# which a gain is measured at least, and the part of that gain which is so little that the gradient is not looked at.
FARTHEST = {torch.float32: (1.0, 0.01, 0.001), torch.float64: (0.1, 1e-7, 0.0)}
FUSED = 24  # classes from which on torch's own softmax is the quicker one: on fewer it takes four times as long
SAMPLED = 8  # one row in so many is asked for its curvature
EXACT = 1 << 20  # numbers: up to so many in the features, and in the logits of one strength, are solved in float64
FIRM, RUNG = (
    1e-3,
    10.0,
)  # penalty, as a share of the mean variance, above which a fit may start at no weights; then down
ROUGHLY = 1e-2, 1e-2, 100  # tolerance, precision and passes on the way down
FLAT = 1e-6  # directions with a spread below this share of the largest are left out: float32 holds nothing there


def unseen(n: int, **notes: object) -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Fits:
    """Fitted models, one per strength: weights (R, C, D), bias (R, C) and how each one ended (R,).

    `gradient` is the largest absolute entry of the objective's gradient, `passes` the times the data were read
    after the start was found.
    """

    weights: Tensor
    bias: Tensor
    objective: Tensor
    gradient: Tensor
    passes: Tensor
    converged: Tensor

    def logits(self, x: Tensor) -> Tensor:
        """Return (R, N, C) for features (N, D)."""
        return torch.einsum("nd,rcd->rnc", x, self.weights) + self.bias[:, None]


@dataclass(frozen=True)
class Rotated:
    """Features in the eigenbasis of their covariance: x = z @ turn.T + centre, up to directions that carry nothing."""

    z: Tensor  # (N, E), E <= D
    spread: Tensor  # (E,) variances
    turn: Tensor  # (D, E), orthonormal columns
    centre: Tensor  # (D,)


def rotate(x: Tensor | Rows, pieces: Pieces | None = None) -> Rotated:
    """Centre features (N, D) and turn them into the eigenbasis of their covariance; beyond x and z little is needed.

    Features that stay on disk are read twice, and turned into a file.
    """
    pieces, centre = pieces or Pieces(), x.mean(0)
    covariance = centre.new_zeros(x.shape[1], x.shape[1])

    def product(part: slice) -> Tensor:
        rows = x[part] - centre
        return rows.T @ rows

    for found in pieces(product, blocks(len(x), ROWS), covariance.numel()):
        covariance += found
    turn = _turn(covariance.div_(len(x)))
    shape = len(x), turn.shape[1]
    z = x.new_empty(shape) if isinstance(x, Tensor) else scratch(*shape)
    spread = z.new_zeros(shape[1])

    def turned(part: slice) -> Tensor:
        return torch.mm(x[part] - centre, turn, out=z[part]).square().sum(0)

    for found in pieces(turned, blocks(len(x), ROWS)):
        spread += found / len(x)
    keep = spread > FLAT**2 * spread.max()
    keep[-1] = True  # constant features leave the bias alone to fit, but a product needs a column
    if not keep.all():
        shape = len(x), int(keep.sum())
        z = _columns(z, keep, z.new_empty(shape) if isinstance(x, Tensor) else scratch(*shape))
    return Rotated(z, spread[keep], turn[:, keep], centre)


def _turn(covariance: Tensor) -> Tensor:
    """Return the eigenvectors (D, L) of a covariance (D, D), largest last, without the columns that never vary.

    Dead columns leave a matrix full of zeros, on which MKL's float32 solver may give up.
    """
    spread = covariance.diagonal()
    live = spread > FLAT**2 / len(spread) * spread.max()  # all others together make no direction worth keeping
    live[spread.argmax()] = True
    turn = covariance.new_zeros(len(spread), int(live.sum()))
    turn[live] = _eigenvectors(covariance[live][:, live])
    return turn


def _eigenvectors(matrix: Tensor) -> Tensor:
    """Return the eigenvectors of a symmetric matrix as columns, largest last.

    Where the quick solver fails, slower ones in float64 take over. (LAPACK's evr in float32 would be as quick, but its
    vectors are off a right angle by up to 0.05.)
    """
    import scipy.linalg

    if not torch.isfinite(matrix).all():
        raise UserError("probe: the covariance of the features overflows float32; divide all features by a constant")
    try:
        turn: Tensor = torch.linalg.eigh(matrix)[1]
        return turn
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]  # it is there, but not by its stub
        wide = matrix.double().cpu().numpy()
    for driver in ("evr", "ev"):
        try:
            return torch.from_numpy(scipy.linalg.eigh(wide, driver=driver)[1]).to(matrix)
        except scipy.linalg.LinAlgError:
            continue
    raise UserError(
        f"probe: no eigenbasis of {len(wide)} feature columns could be found; look for columns of wildly different scale"
    )


def _columns(wide: Tensor, keep: Tensor, room: Tensor) -> Tensor:
    for part in blocks(len(wide), ROWS):
        room[part] = wide[part][:, keep]
    return room


def fit(
    x: Tensor | Rows,
    y: Tensor,
    classes: int,
    penalties: Tensor,
    tolerance: float = 1e-4,
    precision: float = 3e-4,
    max_passes: int = 1000,
    advance: Callable[..., None] = unseen,
) -> Fits:
    """Fit one model per penalty (R,) to features (N, D) float32, in memory or on disk, and class numbers (N,).

    A strength has converged when no entry of the gradient exceeds `tolerance` (scikit-learn's rule) and L-BFGS expects to gain
    less than `precision` of the objective, or of 0.01 nats; or when it expects to gain a thousandth of that (FARTHEST has the
    small print), or no step gains anything that float32 can show. Strong penalties are solved first, in groups that fit into
    memory; weaker ones start from there.

    Small problems (EXACT) are solved in float64, and further: there weak penalties leave the weights loose, and in
    float32 another rounding of the products moved them by up to 8 %. Larger ones are not: on 4,000 x 512 x 50 classes that
    took 2.5 times the processor's time, for objectives that were lower by 4e-5 at most. The number of threads changes no bit
    (`ssl_kd.eval.solvers.deterministic`). `advance(n, passes=...)` hears after every pass how many more strengths have ended.
    """
    kind = x.dtype
    if isinstance(x, Tensor) and max(x.numel(), len(x) * classes) <= EXACT:
        x = x.double()
    with fixed_rounding(x.device) as pieces:
        basis = rotate(x, pieces)
        order = penalties.argsort(descending=True)
        group = max(1, min(COLUMNS // classes, STATE // (classes * basis.z.shape[1])))
        way, parts = _Way(basis, y, classes, pieces), []
        for some in torch.split(order, group):
            problem = _Problem(basis, y, classes, penalties[some].to(x.dtype), pieces)
            starts = torch.stack([way.start(penalty) for penalty in problem.penalties])
            parts.append(_minimise(problem, starts, tolerance, precision, max_passes, advance))
            way.ended(problem.penalties[-1], parts[-1][0][-1])
        points, objective, slope, passes, converged = (
            torch.cat(column)[order.argsort()] for column in zip(*parts, strict=True)
        )
        weights, bias = _split(points, classes)
        weights = weights @ basis.turn.T
        bias = bias - weights @ basis.centre
    return Fits(weights.to(kind), bias.to(kind), objective.to(kind), slope.to(kind), passes.to(kind), converged)


class _Way:
    """Where each strength starts, asked for from strong to weak: at the answer, roughly solved, for one a little stronger.

    From no weights at all, or from the answer for a much stronger one, a weak penalty lets the first step run far out
    along directions in which the rows hardly differ. There the objective is flat, no rule sees that it is not the least
    one, and a model is left that fits train alone.
    """

    def __init__(self, basis: Rotated, y: Tensor, classes: int, pieces: Pieces):
        self.given = basis, y, classes
        self.pieces = pieces
        self.next = FIRM * basis.spread.mean()
        self.point = _Problem(*self.given, self.next[None], pieces).start()[0]

    def start(self, penalty: Tensor) -> Tensor:
        """Return a point (P,)."""
        while self.next > 2 * penalty:
            problem = _Problem(*self.given, self.next[None], self.pieces)
            self.point = _minimise(problem, self.point[None], *ROUGHLY, unseen)[0][0]
            self.next = self.next / RUNG
        return self.point

    def ended(self, penalty: Tensor, point: Tensor) -> None:
        """Start the next ones where this one ended."""
        self.point, self.next = point, torch.minimum(self.next, penalty / RUNG)


class _Problem:
    """The objective of several strengths over one set of rotated features; points are rows [weights, bias]."""

    def __init__(self, basis: Rotated, y: Tensor, classes: int, penalties: Tensor, pieces: Pieces):
        self.z, self.spread, self.y, self.classes, self.penalties = basis.z, basis.spread, y, classes, penalties
        self.pieces, self.mine = pieces, threading.local()

    def start(self) -> Tensor:
        """Return (R, P): no weights, and the bias that alone fits best."""
        share = torch.bincount(self.y, minlength=self.classes).to(self.z).clamp_min(0.5) / len(self.y)
        bias = share.log() - share.log().mean()
        return torch.cat([bias.new_zeros(self.classes * self.z.shape[1]), bias]).repeat(len(self.penalties), 1)

    def evaluate(self, points: Tensor, which: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return objective (r,), gradient (r, P), curvature (r, C) at points (r, P) of the strengths `which` (r,)."""
        n, r, c = len(self.z), len(which), self.classes
        weights, bias = _split(points, c)
        columns, offset = weights.reshape(r * c, -1), bias.reshape(-1)
        gradient, bias_gradient = torch.zeros_like(columns), torch.zeros_like(offset)
        loss = torch.zeros(r, dtype=torch.float64, device=points.device)
        bend, asked = torch.zeros_like(bias), 0
        count = -(-n // max(256, CELLS // (r * c)))
        size = -(-n // (count + count % 2))  # evenly many, for an even number of threads

        def piece(part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
            rows, labels = self.z[part], self.y[part]
            logits = torch.addmm(offset, rows, columns.T, out=self.room(len(rows), r * c)).view(len(rows), r, c)
            lost, own = into_probabilities(logits, labels)
            sample = logits[::SAMPLED]
            bent = (sample - sample.square()).sum(0)
            logits.view(-1)[own] -= 1
            errors = logits.view(len(rows), r * c)
            return lost, errors.T @ rows, errors.sum(0), bent, len(sample)

        for lost, turn, shift, bent, sampled in self.pieces(piece, blocks(n, size), gradient.numel()):
            loss += lost
            gradient += turn
            bias_gradient += shift
            bend, asked = bend + bent, asked + sampled
        penalty = self.penalties[which]
        objective = (loss / n).to(points.dtype) + penalty / 2 * weights.square().sum((1, 2))
        slope = gradient.view(r, c, -1) / n + penalty[:, None, None] * weights
        bend /= asked
        # between a class's own curvature and that of all: its own alone overshoots where a class is nearly certain
        bend = (bend * bend.mean(1, keepdim=True)).sqrt().clamp_min(1e-9)
        return objective, torch.cat([slope.flatten(1), bias_gradient.view(r, c) / n], 1), bend

    def room(self, rows: int, columns: int) -> Tensor:
        """Return a place for a piece's logits, one a thread for all its pieces: fresh memory would cost a tenth of the time."""
        kept = getattr(self.mine, "room", None)
        if kept is None or kept.numel() < rows * columns:
            kept = self.mine.room = self.z.new_empty(rows * columns)
        return kept[: rows * columns].view(rows, columns)

    def precondition(self, vectors: Tensor, bend: Tensor, which: Tensor) -> Tensor:
        """Return vectors (r, P) divided by the Hessian's diagonal, had every row the mean curvature `bend` (r, C)."""
        weights, bias = _split(vectors, self.classes)
        scale = bend[:, :, None] * self.spread + self.penalties[which][:, None, None]
        return torch.cat([(weights / scale).flatten(1), bias / bend], 1)


def _minimise(
    problem: _Problem,
    points: Tensor,
    tolerance: float,
    precision: float,
    max_passes: int,
    advance: Callable[..., None],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run L-BFGS on every strength at once from points (R, P); return points, objective, gradient, passes, converged."""
    live = torch.arange(len(points), device=points.device)
    state = _State(points, *problem.evaluate(points, live))
    share, certain, nothing = FARTHEST[points.dtype]
    final, ends = points.clone(), points.new_zeros(3, len(points))
    converged = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    passes = torch.ones(len(points), dtype=points.dtype, device=points.device)
    stuck = torch.zeros_like(converged)
    history: list[tuple[Tensor, Tensor, Tensor]] = []
    while True:
        step = _direction(problem, state, history, live)
        gain = (step * state.slope).sum(1)
        steepest = state.slope.abs().amax(1)
        enough = share * precision * state.value.clamp_min(certain)
        near = (steepest <= tolerance) | (gain / 2 <= nothing * enough)
        done = ((gain / 2 <= enough) | stuck) & near
        leave = done | stuck | (passes[live] >= max_passes)
        if leave.any():
            gone, stay = live[leave], ~leave
            final[gone], converged[gone] = state.points[leave], done[leave]
            ends[:, gone] = torch.stack([state.value, steepest, passes[live]])[:, leave]
            live, state, step, gain = live[stay], state.of(stay), step[stay], gain[stay]
            history = [(s[stay], d[stay], scale[stay]) for s, d, scale in history]
        advance(int(leave.sum()), passes=int(passes.max()))
        if not len(live):
            return final, ends[0], ends[1], ends[2], converged
        new, stuck = _search(problem, state, step, gain, live, passes)
        moved, bent = new.points - state.points, new.slope - state.slope
        curve = (moved * bent).sum(1)
        sound = curve > 1e-10 * moved.norm(dim=1) * bent.norm(dim=1)
        # a pair without curvature is kept as zeros, so that all strengths stay in one tensor
        history.append((moved, bent, torch.where(sound, 1 / curve.clamp_min(1e-37), 0)))
        del history[:-MEMORY]
        state = new


@dataclass
class _State:
    """Where the strengths under way stand: points (r, P), value (r,), slope (r, P), bend (r, C)."""

    points: Tensor
    value: Tensor
    slope: Tensor
    bend: Tensor

    def of(self, which: Tensor) -> _State:
        return _State(self.points[which], self.value[which], self.slope[which], self.bend[which])


def _direction(problem: _Problem, state: _State, history: list[tuple[Tensor, Tensor, Tensor]], live: Tensor) -> Tensor:
    """Return L-BFGS' estimate of the inverse Hessian times the slope (the two loops of Nocedal & Wright)."""
    step, shares = state.slope.clone(), []
    for moved, bent, inverse in reversed(history):
        share = inverse * (moved * step).sum(1)
        step.addcmul_(share[:, None], bent, value=-1)
        shares.append(share)
    step = problem.precondition(step, state.bend, live)
    if history:
        moved, bent, inverse = history[-1]
        length = (bent * problem.precondition(bent, state.bend, live)).sum(1)
        step *= torch.where(inverse > 0, (moved * bent).sum(1) / length.clamp_min(1e-37), 1)[:, None]
    for (moved, bent, inverse), share in zip(history, reversed(shares), strict=True):
        step.addcmul_((share - inverse * (bent * step).sum(1))[:, None], moved)
    return step


def _search(
    problem: _Problem, state: _State, step: Tensor, gain: Tensor, live: Tensor, passes: Tensor
) -> tuple[_State, Tensor]:
    """Halve each strength's step until its objective falls enough; those that never do are stuck at float32."""
    new = _State(state.points.clone(), state.value.clone(), state.slope.clone(), state.bend.clone())
    size, waiting = torch.ones_like(gain), torch.ones_like(live, dtype=torch.bool)
    for _ in range(HALVINGS):
        which = waiting.nonzero()[:, 0]
        tried = state.points[which] - size[which, None] * step[which]
        value, slope, bend = problem.evaluate(tried, live[which])
        passes[live[which]] += 1
        # near the end the true gain is below what float32 can show: allow for its rounding
        before = state.value[which]
        good = value <= before - 1e-4 * size[which] * gain[which] + 2e-7 * before.abs()
        taken = which[good]
        new.points[taken], new.value[taken] = tried[good], value[good]
        new.slope[taken], new.bend[taken] = slope[good], bend[good]
        waiting[taken] = False
        size[which[~good]] /= 2
        if not waiting.any():
            break
    return new, waiting


def into_probabilities(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits (N, R, C) into softmax probabilities in place.

    Returns the summed cross-entropies (R,), and where in the flat probabilities the labelled ones are (N R,).
    """
    n, heads, classes = logits.shape
    own = (torch.arange(n * heads, device=labels.device).view(n, heads) * classes + labels[:, None]).view(-1)
    if classes >= FUSED:
        torch.log_softmax(logits, -1, out=logits)
        lost = -logits.view(-1)[own].view(n, heads).sum(0)
        logits.exp_()
        return lost, own
    logits -= logits.amax(-1, keepdim=True)
    right = logits.view(-1)[own].view(n, heads).sum(0)
    total = logits.exp_().sum(-1, keepdim=True)
    logits /= total
    return total.log().sum((0, 2)) - right, own


def _split(points: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    return points[:, :-classes].view(len(points), classes, -1), points[:, -classes:]
