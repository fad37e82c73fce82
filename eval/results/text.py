"""Figures and names as text: percent, counts, one line, LaTeX, and cells that no spreadsheet runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]  # one figure, by the names of COLUMNS
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # begins what a spreadsheet runs


def inert(cell: object) -> object:
    """Return a CSV cell that no spreadsheet takes for a formula: a text that begins like one gets an apostrophe."""
    if not isinstance(cell, str):
        return cell
    plain = cell.replace("\r", " ")  # Python's writer leaves it bare, and its reader ends the line there
    return f"'{plain}" if cell.startswith(FORMULA) else plain


def shown(row: Row) -> list[str]:
    """Return a row's figure and share kept, in percent with half their intervals."""
    return [
        percent(row["value"], row["low"], row["high"]),
        percent(row["share_kept"], row["share_low"], row["share_high"]),
    ]


LATEX = {
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "[": "{[}",  # after a line's end it would be read as that line's spacing
}


def escaped(text: str) -> str:
    """Return text for LaTeX, in one line."""
    return "".join(LATEX.get(sign, sign) for sign in one_line(text))


def one_line(text: str) -> str:
    """A line break in a name would end the row of a table."""
    return " ".join(text.splitlines())


def percent(value: float | None, low: float | None, high: float | None) -> str:
    """Return percent and half the interval's width; nothing where there is no figure."""
    if value is None or math.isnan(value):
        return ""
    if low is None or high is None or math.isnan(low) or low == high:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ±{50 * (high - low):.1f}"


def rate(images_per_second: float | None) -> str:
    """Return images per second; nothing where nobody measured them."""
    return "" if images_per_second is None else f"{images_per_second:.0f}"


def count(n: int | None) -> str:
    """Return a count in k or M; nothing where it is not known."""
    if n is None:
        return ""
    for unit, size in (("M", 10**6), ("k", 10**3)):
        if n >= size:
            return f"{n / size:.1f} {unit}"
    return str(n)


def plain(row: Row) -> Row:
    """Return a row as JSON knows it: what is no finite number becomes null."""
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in row.items()}
