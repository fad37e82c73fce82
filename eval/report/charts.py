"""The report's drawings: SVG without scripts, at most 380 px wide so that a phone shows them at their own size.

Colours are the classes c0 to c10 of `report.css`, so that they change with light and dark; every drawing says in words
what it shows.
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


def text(value: object) -> str:
    """Return text safe inside HTML and its attributes."""
    return html.escape(str(value), quote=True)


def colour(number: int) -> str:
    """Return the class of the n-th colour; grey from NAMED on."""
    return f"c{min(number, NAMED)}"


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


def points_chart(
    points: Sequence[tuple[str, float, float, float, float]], x_label: str, words: str, numbers: Mapping[str, int]
) -> str:
    """Return marks (name, x, value, low, high) over a logarithmic x axis; values are shares, drawn in percent."""
    x = axis([p[1] for p in points], LEFT, WIDTH - RIGHT, log=True)
    y = axis([v for p in points for v in p[2:]], HEIGHT - BOTTOM, TOP)
    marks = frame(x, y, x_label, "", percent=True)
    for name, at, value, low, high in points:
        kind = colour(numbers[name])
        said = f"{name}: {short(at)} {x_label}, {100 * value:.1f} %"
        if math.isfinite(low) and math.isfinite(high):
            marks.append(f'<path class="{kind}" stroke-width="2" d="M{x(at):.1f} {y(low):.1f}V{y(high):.1f}"/>')
        marks.append(
            f'<circle class="{kind}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="5.5"><title>{text(said)}</title></circle>'
        )
    return svg(WIDTH, HEIGHT, marks, words)


def lines_chart(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], words: str, numbers: Mapping[str, int]
) -> str:
    """Return one line per name over steps."""
    x = axis([s for steps, _ in curves.values() for s in steps], LEFT, WIDTH - RIGHT, pad=0.0)
    y = axis([v for _, values in curves.values() for v in values], HEIGHT - BOTTOM, TOP)
    marks = frame(x, y, "step", "")
    for name, (steps, values) in curves.items():
        path = "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in thinned(list(zip(steps, values, strict=True))))
        marks.append(f'<path class="line {colour(numbers[name])}" style="fill:none" d="M{path}"/>')
    return svg(WIDTH, HEIGHT, marks, words)


def series_chart(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]],
    x_label: str,
    words: str,
    numbers: Mapping[str, int],
    log: bool = False,
) -> str:
    """Return a line per name through its points (x, value, low, high), with their intervals; values are shares, in percent."""
    points = [point for own in series.values() for point in own]
    x = axis([p[0] for p in points], LEFT, WIDTH - RIGHT, log=log, pad=0.03)
    y = axis([v for p in points for v in p[1:]], HEIGHT - BOTTOM, TOP)
    marks = frame(x, y, x_label, "", percent=True)
    for name, own in series.items():
        kind = colour(numbers[name])
        path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value, _, _ in own)
        marks.append(f'<path class="line {kind}" style="fill:none" d="M{path}"/>')
        for at, value, low, high in own:
            if math.isfinite(low) and math.isfinite(high):
                marks.append(f'<path class="{kind}" stroke-width="1.5" d="M{x(at):.1f} {y(low):.1f}V{y(high):.1f}"/>')
            said = f"{name}: {short(at)} {x_label}, {100 * value:.1f} %"
            marks.append(
                f'<circle class="{kind}" cx="{x(at):.1f}" cy="{y(value):.1f}" r="3.5"><title>{text(said)}</title></circle>'
            )
    return svg(WIDTH, HEIGHT, marks, words)


def thinned(points: list[tuple[float, float]], most: int = 300) -> list[tuple[float, float]]:
    """Return at most about so many points of a curve: each stretch's mean, so that no single spike stands for it."""
    if len(points) <= most:
        return points
    parts = np.array_split(np.array(points), most)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in parts]


def intervals_chart(
    groups: Sequence[tuple[str, Sequence[tuple[str, float, float, float]]]], words: str, numbers: Mapping[str, int]
) -> str:
    """Return shares with their intervals (name, share, low, high), group by group, around a line at 100 %."""
    ends = [v for _, rows in groups for row in rows for v in row[1:] if math.isfinite(v)]
    x = axis([*ends, 1.0], 8, WIDTH - 10)
    marks, top = [], 8
    for title, rows in groups:
        marks.append(f'<text x="8" y="{top + 12}">{text(title)}</text>')
        top += 24
        for name, share, low, high in rows:
            kind, said = colour(numbers[name]), f"{name}, {title}: keeps {100 * share:.1f} %"
            if math.isfinite(low) and math.isfinite(high):
                said += f" [{100 * low:.1f}, {100 * high:.1f}]"
                marks.append(f'<path class="{kind}" stroke-width="3" d="M{x(low):.1f} {top}H{x(high):.1f}"/>')
            marks.append(
                f'<circle class="{kind}" cx="{x(share):.1f}" cy="{top}" r="5"><title>{text(said)}</title></circle>'
            )
            top += 13
        top += 4
    rule = f'<path class="axis" d="M8 {top}H{WIDTH - 10}M{x(1):.1f} 0V{top}" stroke-width="1.5"/>'
    ticks = [
        f'<text class="soft" x="{x(tick):.1f}" y="{top + 16}" text-anchor="middle">{100 * tick:g} %</text>'
        for tick in x.ticks
        if 24 < x(tick) < WIDTH - 24
    ]
    return svg(WIDTH, top + 24, [rule, *marks, *ticks], words)


def map_chart(points: np.ndarray, labels: Sequence[str], numbers: Mapping[str, int], words: str) -> str:
    """Return a projection's points (n, 2) in [-1, 1] in their classes' colours, those without one small and behind."""
    marks = [
        f'<circle class="{colour(numbers[name])}" cx="{150 + 142 * x:.1f}" cy="{150 - 142 * y:.1f}" '
        f'r="{3 if numbers[name] < NAMED else 1.8}" fill-opacity="{0.75 if numbers[name] < NAMED else 0.35}" '
        f'stroke="none"><title>{text(name)}</title></circle>'
        for (x, y), name in sorted(zip(points, labels, strict=True), key=lambda one: numbers[one[1]] < NAMED)
    ]
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
    """Return how often right against how sure: a bar per bin, and the diagonal where both agree."""
    x, y = Axis(0, 1, 40, 240), Axis(0, 1, 214, 14)
    marks = frame(x, y, "how sure", "right", percent=True)
    for part in bins:
        place = min(int(part["confidence"] / width), round(1 / width) - 1) * width
        said = f"sure {100 * part['confidence']:.0f} %, right {100 * part['accuracy']:.0f} %, {part['rows']} images"
        marks.append(
            f'<rect class="c0" fill-opacity=".55" x="{x(place) + 1:.1f}" y="{y(part["accuracy"]):.1f}" '
            f'width="{x(width) - x(0) - 2:.1f}" height="{max(0.5, y(0) - y(part["accuracy"])):.1f}">'
            f"<title>{text(said)}</title></rect>"
        )
    marks.append(f'<path class="line c1" stroke-dasharray="5 4" d="M{x(0)} {y(0)}L{x(1)} {y(1)}"/>')
    return svg(256, 254, marks, words)
