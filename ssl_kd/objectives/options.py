"""What each option of a spelled term may be: one row per option, asked before anything is built.

Which options a term knows is said by its constructor; whether they suit each other, by the term itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral, Real

from ssl_kd.errors import UserError

Rule = tuple[str, Callable[[object], bool]]  # what is expected, in words, and whether a value is that
MOST = 2**31 - 1  # of anything counted: more is a slip, and past it libraries fail each in their own way


def whole(least: int, most: int = MOST) -> Rule:
    """A whole number within bounds."""
    words = f"a whole number, at least {least} and at most {most:,}"
    return words, lambda v: isinstance(v, Integral) and not isinstance(v, bool) and least <= int(v) <= most


def number(words: str, fits: Callable[[float], bool]) -> Rule:
    """A finite number for which `fits` holds."""

    def is_one(value: object) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):  # to Python a bool is a whole number
            return False
        try:
            exact = float(value)
        except OverflowError:  # a whole number of hundreds of digits
            return False
        return abs(exact) < float("inf") and fits(exact)

    return words, is_one


def _names(value: object) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str):
        return False
    return all(isinstance(name, str) and name for name in value)


NAME: Rule = ("a name", lambda v: isinstance(v, str))
LAYERS: Rule = ("a list of layers, [stage.3]", _names)
SWITCH: Rule = ("true or false", lambda v: isinstance(v, bool))
ABOVE_ZERO = number("a number above 0", lambda v: v > 0)

OPTIONS: dict[str, Rule] = {
    "projector": NAME,
    "space": NAME,
    "distance": NAME,
    "of": NAME,
    "compressor": NAME,
    "of_tokens": SWITCH,
    "relation": NAME,
    "comparison": NAME,
    "batch": NAME,
    "student_layers": LAYERS,
    "teacher_layers": LAYERS,
    "tau": ABOVE_ZERO,
    "tau_student": ABOVE_ZERO,
    "tau_teacher": ABOVE_ZERO,
    "eps": ABOVE_ZERO,
    "alpha": ABOVE_ZERO,
    "rate": number("a number above 0, at most 1", lambda v: 0 < v <= 1),
    "gamma": number("a number above 0, at most 100", lambda v: 0 < v <= 100),
    "threshold": number("a number above 0, at most 1", lambda v: 0 < v <= 1),
    "smoothing": number("a number above 0, at most 1", lambda v: 0 < v <= 1),
    "most_epochs": whole(1),
    "summary": number("a number, 0 or more", lambda v: v >= 0),
    "steps": whole(1, 100),
    "hidden": whole(1),
    "last_hidden": whole(1),
    "prototypes": whole(2, 65536),
    "refresh": whole(0),
    "temperature": ABOVE_ZERO,
    "target": number("a number, 0 or more", lambda v: v >= 0),
    "others": number("a number, 0 or more", lambda v: v >= 0),
    "own": number("a number, 0 or more", lambda v: v >= 0),
    "wrong": number("a number, 0 or more", lambda v: v >= 0),
    "right": number("a number, 0 or more", lambda v: v >= 0),
    "strength": number("a number, 0 or more", lambda v: v >= 0),
    "momentum": number("a number from 0 to below 1", lambda v: 0 <= v < 1),
    "teacher_width": whole(1),
    "size": whole(1),
    "rows": whole(3),  # angles are between three samples
    "per_image": whole(1),
    "neighbours": whole(1),
    "order": whole(1, 100),  # without a first power all pairs would be alike
    "own_head": SWITCH,
    "every_slot": SWITCH,
    "sampled": SWITCH,
}


def must_fit(option: str, value: object) -> None:
    """UserError unless the value is what the option's row says."""
    words, fits = OPTIONS[option]
    if not fits(value):
        raise UserError(f"objective: {option}: expected {words}; got {value!r}")
