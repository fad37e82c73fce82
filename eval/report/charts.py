"""The report's drawings: SVG without scripts, at most 380 px wide so that a phone shows them at their own size.

Colours are the classes c0 to c10 of `report.css`, so that they change with light and dark. No colour stands alone: each has
a shape of its own as a mark and a dash pattern of its own as a line. Every drawing says in words what it shows.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 38
NAMED = 10  # colours; the one after them is grey, for classes that have none of their own
# The second sign of each colour. Shapes: corners of a mark of radius 1 around (0, 0); none is a circle.
_SQUARE = ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85))
_PLUS = (1, 0.35), (0.35, 0.35), (0.35, 1), (-0.35, 1), (-0.35, 0.35), (-1, 0.35)
SHAPES: tuple[tuple[tuple[float, float], ...], ...] = (
    (),
    _SQUARE,
    ((0, -1.15), (1.05, 0.8), (-1.05, 0.8)),
    ((0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)),
    ((0, 1.15), (1.05, -0.8), (-1.05, -0.8)),
    (*_PLUS, *((-x, -y) for x, y in _PLUS)),
    tuple((0.75 * (x - y), 0.75 * (x + y)) for x, y in (*_PLUS, *((-x, -y) for x, y in _PLUS))),
    ((-1.1, -0.6), (1.1, -0.6), (1.1, 0.6), (-1.1, 0.6)),
    ((-0.6, -1.1), (0.6, -1.1), (0.6, 1.1), (-0.6, 1.1)),
    tuple(
        (r * math.sin(math.pi * i / 5), -r * math.cos(math.pi * i / 5))
        for i in range(10)
        for r in ((1.25, 0.55)[i % 2],)
    ),
    (),
)
DASHES = ("", "7 3", "2 3", "9 3 2 3", "5 2", "1 4", "12 4", "7 3 2 3 2 3", "4 6", "3 1", "1 2")


def text(value: object) -> str:
    """Return text safe inside HTML and its attributes."""
    return html.escape(str(value), quote=True)


def colour(number: int) -> str:
    """Return the class of the n-th colour; grey from NAMED on."""
    return f"c{min(number, NAMED)}"


def mark(number: int, x: float = 6, y: float = 6, radius: float = 5, words: str = "", more: str = "") -> str:
    """Return the n-th colour's mark at a place; `words` are shown to a mouse over it."""
    title = f"<title>{text(words)}</title>" if words else ""
    corners = SHAPES[min(number, NAMED)]
    if not corners:
        return f'<circle class="{colour(number)}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"{more}>{title}</circle>'
    path = " ".join(f"{x + radius * a:.1f},{y + radius * b:.1f}" for a, b in corners)
    return f'<polygon class="{colour(number)}" points="{path}"{more}>{title}</polygon>'


def dash(number: int) -> str:
    """Return the n-th colour's dash pattern, as an attribute."""
    pattern = DASHES[min(number, NAMED)]
    return f' stroke-dasharray="{pattern}"' if pattern else ""


def svg(width: float, height: float, marks: Iterable[str], words: str) -> str:
    """Return a drawing that says `words` to those who cannot see it."""
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" '
        f'aria-label="{text(words)}">{"".join(marks)}</svg>'
    )


@dataclass(frozen=True)
class Axis:
    """A scale from numbers to pixels: `ticks` have room for their words."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """Return a number's place in pixels."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        """Round numbers within the scale, about four."""
        if self.log:
            for digits in ((1,), (1, 2, 5), range(1, 10)):
                found = [m * 10.0**e for e in range(-9, 13) for m in digits if self.low <= m * 10.0**e <= self.high]
                if len(found) > 1:
                    break
            return found[:: max(1, math.ceil(len(found) / 5))] or [(self.low * self.high) ** 0.5]
        rough = (self.high - self.low) / 4
        size = 10 ** math.floor(math.log10(rough))
        step = next(size * m for m in (1, 2, 2.5, 5, 10) if size * m >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [step * n for n in range(first, first + 12) if step * n <= self.high + step * 1e-6]


def axis(values: Iterable[float], start: float, end: float, log: bool = False, pad: float = 0.06) -> Axis:
    """Return a scale that holds all values with a margin; equal values get one of their own."""
    found = [v for v in values if math.isfinite(v) and (v > 0 or not log)] or [1.0]
    low, high = min(found), max(found)
    if log:
        apart = max(math.log10(high / low), 0.3) * pad * 2
        return Axis(low / 10**apart, high * 10**apart, start, end, True)
    apart = (high - low) * pad or abs(high) * pad or 1.0
    return Axis(low - apart, high + apart, start, end)


def frame(x: Axis, y: Axis, x_label: str, y_label: str, percent: bool = False) -> list[str]:
    """Return axes with ticks and labels; `percent` writes the y axis in percent."""
    bottom, left = y.start, x.start
    marks = [f'<path class="axis" d="M{left} {y.end}V{bottom}H{x.end}"/>']
    for tick in x.ticks:
        at = x(tick)
        marks.append(f'<path class="axis" d="M{at:.1f} {bottom}v4"/>')
        anchor = "end" if at > x.end - 14 else "middle"
        marks.append(f'<text class="soft" x="{at:.1f}" y="{bottom + 16}" text-anchor="{anchor}">{short(tick)}</text>')
    for tick in y.ticks:
        marks.append(f'<path class="axis" d="M{left} {y(tick):.1f}H{x.end}" stroke-dasharray="2 4"/>')
        said = f"{100 * tick:g} %" if percent else short(tick)
        marks.append(f'<text class="soft" x="{left - 5}" y="{y(tick) + 4:.1f}" text-anchor="end">{said}</text>')
    marks.append(f'<text class="soft" x="{x.end}" y="{bottom + 32}" text-anchor="end">{text(x_label)}</text>')
    if y_label:
        marks.append(f'<text class="soft" x="{left + 5}" y="{y.end + 10}">{text(y_label)}</text>')
    return marks


def short(value: float) -> str:
    """Return a number for a tick: 1200000 as 1.2M, 0.00001 as 1e-05."""
    size = abs(value)
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if size >= scale:
            return f"{value / scale:.3g}{unit}"
    return f"{value:.3g}" if size > 1e-12 else "0"


@dataclass(frozen=True)
class Point:
    """A name's place in a chart: what it costs and what it reaches, each with its interval; nan where there is none."""

    name: str
    at: tuple[float, float, float]  # value, low, high
    reached: tuple[float, float, float]


def points_chart(
    points: Sequence[Point], x_label: str, words: str, numbers: Mapping[str, int], chance: float = math.nan
) -> str:
    """Return marks over a logarithmic x axis; what is reached is a share, drawn in percent, and so is chance."""
    x = axis([v for p in points for v in p.at], LEFT, WIDTH - RIGHT, log=True)
    y = axis([*(v for p in points for v in p.reached), chance], HEIGHT - BOTTOM, TOP)
    marks = frame(x, y, x_label, "", percent=True) + _chance_line(x, y, chance)
    for point in points:
        (at, *across), (value, *along) = point.at, point.reached
        kind = colour(numbers[point.name])
        if all(map(math.isfinite, along)):
            marks.append(
                f'<path class="{kind}" stroke-width="2" d="M{x(at):.1f} {y(along[0]):.1f}V{y(along[1]):.1f}"/>'
            )
        if all(map(math.isfinite, across)):
            marks.append(
                f'<path class="{kind}" stroke-width="2" d="M{x(across[0]):.1f} {y(value):.1f}H{x(across[1]):.1f}"/>'
            )
        said = f"{point.name}: {short(at)} {x_label}, {100 * value:.1f} %"
        marks.append(mark(numbers[point.name], x(at), y(value), 5.5, said))
    return svg(WIDTH, HEIGHT, marks, words)


def lines_chart(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    words: str,
    numbers: Mapping[str, int],
    events: Sequence[tuple[str, float, str]] = (),
    levels: Mapping[str, float] | None = None,
) -> str:
    """Return one line per name over steps.

    `events` (name, step, words) are upright lines with a cross, `levels` dotted level lines by what they are called.
    """
    levels = levels or {}
    x = axis(
        [*(s for steps, _ in curves.values() for s in steps), *(e[1] for e in events)], LEFT, WIDTH - RIGHT, pad=0.0
    )
    y = axis([*(v for _, values in curves.values() for v in values), *levels.values()], HEIGHT - BOTTOM, TOP)
    marks = frame(x, y, "step", "")
    for said, level in levels.items():
        marks.append(f'<path class="rule" stroke-dasharray="1 3" d="M{x.start} {y(level):.1f}H{x.end}"/>')
        marks.append(f'<text class="soft" x="{x.end}" y="{y(level) - 4:.1f}" text-anchor="end">{text(said)}</text>')
    for name, (steps, values) in curves.items():
        path = "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in thinned(list(zip(steps, values, strict=True))))
        number = numbers[name]
        marks.append(f'<path class="line {colour(number)}" style="fill:none"{dash(number)} d="M{path}"/>')
        marks.append(mark(number, x(steps[-1]), y(values[-1]), 4, f"{name} ends at {values[-1]:.3g}"))
    for name, step, said in events:
        at = f"{x(step):.1f}"
        marks.append(f'<path class="line {colour(numbers[name])}" stroke-dasharray="1 2" d="M{at} {y.start}V{y.end}"/>')
        marks.append(f'<text x="{at}" y="{y.end + 10}" text-anchor="middle">✕<title>{text(said)}</title></text>')
    return svg(WIDTH, HEIGHT, marks, words)


def _chance_line(x: Axis, y: Axis, chance: float) -> list[str]:
    """A dotted level line with its value; nothing where chance is not known."""
    if not math.isfinite(chance):
        return []
    return [
        f'<path class="rule" stroke-dasharray="1 3" d="M{x.start} {y(chance):.1f}H{x.end}"/>',
        f'<text class="soft" x="{x.end}" y="{y(chance) - 4:.1f}" text-anchor="end">chance {100 * chance:.1f} %</text>',
    ]


def series_chart(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    x_label: str,
    words: str,
    numbers: Mapping[str, int],
    log: bool = False,
    chance: float = math.nan,
) -> str:
    """Return a line per name through its points (x, value, low, high), with their intervals; values are shares, in percent.

    `chance` is a dotted level line.
    """
    points = [point for own in series.values() for point in own]
    x = axis([p[0] for p in points], LEFT, WIDTH - RIGHT, log=log, pad=0.03)
    y = axis([*(v for p in points for v in p[1:]), chance], HEIGHT - BOTTOM, TOP)
    marks = frame(x, y, x_label, "", percent=True) + _chance_line(x, y, chance)
    for name, own in series.items():
        kind = colour(numbers[name])
        path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value, _, _ in own)
        marks.append(f'<path class="line {kind}" style="fill:none"{dash(numbers[name])} d="M{path}"/>')
        for at, value, low, high in own:
            if math.isfinite(low) and math.isfinite(high):
                marks.append(f'<path class="{kind}" stroke-width="1.5" d="M{x(at):.1f} {y(low):.1f}V{y(high):.1f}"/>')
            said = f"{name}: {short(at)} {x_label}, {100 * value:.1f} %"
            marks.append(mark(numbers[name], x(at), y(value), 3.5, said))
    return svg(WIDTH, HEIGHT, marks, words)


def thinned(points: list[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Return at most about so many points of a curve: each stretch's mean, so that no single spike stands for it."""
    if len(points) <= most:
        return points
    parts = np.array_split(np.array(points), most)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def intervals_chart(
    groups: Sequence[tuple[str, Sequence[tuple[str, float, float, float]]]],
    words: str,
    numbers: Mapping[str, int],
    ends: Iterable[float],
) -> str:
    """Return shares with their intervals (name, share, low, high), group by group, around a line at 100 %.

    `ends` are all numbers that the scale holds: those of every chart that stands beside this one, so that they compare.
    """
    x = axis([*(v for v in ends if math.isfinite(v)), 1.0], 8, WIDTH - 10)
    marks, top = [], 26
    for title, rows in groups:
        marks.append(f'<text x="8" y="{top + 12}">{text(title)}</text>')
        top += 24
        for name, share, low, high in rows:
            kind, said = colour(numbers[name]), f"{name}, {title}: keeps {100 * share:.1f} %"
            if math.isfinite(low) and math.isfinite(high):
                said += f" [{100 * low:.1f}, {100 * high:.1f}]"
                marks.append(f'<path class="{kind}" stroke-width="3" d="M{x(low):.1f} {top}H{x(high):.1f}"/>')
            marks.append(mark(numbers[name], x(share), top, 5, said))
            top += 13
        top += 4
    side = "end" if x(1) > WIDTH / 2 else "start"
    rule = [
        f'<path class="axis" d="M8 {top}H{WIDTH - 10}"/><path class="rule" d="M{x(1):.1f} 20V{top}"/>',
        f'<text x="{x(1):.1f}" y="14" text-anchor="{side}">100 %: the reference</text>',
    ]
    ticks = [
        f'<path class="axis" d="M{x(tick):.1f} {top}v4"/>'
        f'<text class="soft" x="{x(tick):.1f}" y="{top + 16}" text-anchor="middle">{100 * tick:g} %</text>'
        for tick in x.ticks
        if 24 < x(tick) < WIDTH - 24
    ]
    return svg(WIDTH, top + 24, [*rule, *marks, *ticks], words)


def map_chart(points: np.ndarray, labels: Sequence[str], numbers: Mapping[str, int], words: str) -> str:
    """Return a projection's points (n, 2) in [-1, 1] with their classes' marks, those without one small and behind."""
    marks = []
    for (x, y), name in sorted(zip(points, labels, strict=True), key=lambda one: numbers[one[1]] < NAMED):
        radius, opacity = (3.0, 0.75) if numbers[name] < NAMED else (1.8, 0.35)
        faint = f' fill-opacity="{opacity}" stroke="none"'
        marks.append(mark(numbers[name], 150 + 142 * x, 150 - 142 * y, radius, name, faint))
    return svg(300, 300, marks, words)


def matrix_chart(counts: np.ndarray, classes: Sequence[str], words: str) -> str:
    """Return a confusion matrix (true class, guess) of up to 20 classes, each row as shares of it."""
    n = len(classes)
    cell, left, top = min(22.0, 220 / n), 96, 76
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    marks = []
    for i, name in enumerate(classes):
        at = i * cell + cell / 2
        said = text(name if len(name) <= 12 else f"{name[:11]}…")
        marks.append(
            f'<text x="{left - 5}" y="{top + at + 4:.1f}" text-anchor="end">{said}<title>{text(name)}</title></text>'
        )
        marks.append(
            f'<text transform="translate({left + at + 3:.1f} {top - 5}) rotate(-55)">{said}<title>{text(name)}</title></text>'
        )
    for i, j in zip(*np.nonzero(counts), strict=True):
        said = f"{classes[i]} taken for {classes[j]}: {counts[i, j]} of {counts[i].sum()}"
        marks.append(
            f'<rect class="heat" x="{left + j * cell:.1f}" y="{top + i * cell:.1f}" width="{cell - 1:.1f}" '
            f'height="{cell - 1:.1f}" fill-opacity="{max(shares[i, j], 0.03):.2f}"><title>{text(said)}</title></rect>'
        )
        if n <= 10 and shares[i, j] >= 0.005:
            ink = "on" if shares[i, j] > 0.55 else ""
            x, y = left + j * cell + cell / 2 - 0.5, top + i * cell + cell / 2 + 3.5
            marks.append(
                f'<text class="cell {ink}" x="{x:.1f}" y="{y:.1f}" text-anchor="middle" pointer-events="none">'
                f"{100 * shares[i, j]:.0f}</text>"
            )
    width = left + n * cell + 44
    return svg(width, top + n * cell + 4, marks, words)


def matrix_picture(counts: np.ndarray, words: str) -> str:
    """Return a confusion matrix of many classes as a small picture: one pixel per pair."""
    import base64
    import io

    from PIL import Image

    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    pixels = np.zeros((*shares.shape, 4), np.uint8)
    pixels[..., :3] = (0, 114, 189)
    pixels[..., 3] = np.round(255 * np.sqrt(shares))  # rare confusions stay visible
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    return f'<img class="matrix" alt="{text(words)}" src="{url}">'


def reliability_chart(bins: Sequence[Mapping[str, float]], width: float, words: str) -> str:
    """Return how often right against how sure: a bar per bin, the diagonal where both agree, and how many images each bin has."""
    x, y = Axis(0, 1, 44, 264), Axis(0, 1, 224, 24)
    most = max((part["rows"] for part in bins), default=1)
    counts = Axis(0, most, 330, 290)
    marks = frame(x, y, "how sure", "", percent=True)
    marks.append(f'<text class="soft" x="{x.start}" y="12">right</text>')
    marks.append(f'<text class="soft" x="{x.start}" y="{counts.end - 6}">images: {most:,.0f} in the fullest bar</text>')
    marks.append(f'<path class="axis" d="M{x.start} {counts.start}H{x.end}"/>')
    for part in bins:
        place = min(int(part["confidence"] / width), round(1 / width) - 1) * width
        said = f"sure {100 * part['confidence']:.0f} %, right {100 * part['accuracy']:.0f} %, {part['rows']} images"
        for share, scale, kind in ((part["accuracy"], y, "c0"), (part["rows"], counts, "c10")):
            marks.append(
                f'<rect class="{kind}" fill-opacity=".55" x="{x(place) + 1:.1f}" y="{scale(share):.1f}" '
                f'width="{x(width) - x(0) - 2:.1f}" height="{max(0.5, scale(0) - scale(share)):.1f}">'
                f"<title>{text(said)}</title></rect>"
            )
    marks.append(f'<path class="line c1" stroke-dasharray="5 4" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>')
    return svg(284, 336, marks, words)
