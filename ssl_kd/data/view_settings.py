"""Views as a setting: a scheme's name, recipes as rows of YAML or as objects, or any function of a picture.

views: multi
views: [{scale: [0.2, 1.0]}, {scale: [0.2, 1.0], jitter: 0.8, grey: 0.2, blur: 0.5}]
ssl_kd.distill(..., views=(Recipe(), Recipe(jitter=0.8)))
ssl_kd.distill(..., views=my_transform)        # image -> image or tensor; cannot be replayed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields

from ssl_kd.data.augment import Recipe, Transform, scheme
from ssl_kd.errors import UserError
from ssl_kd.runtime.objects import record_of
from ssl_kd.validation import must_be_known, must_fit, types_of

NO_SCHEME = "views: expected a scheme's name, recipes, or functions from a picture to a view"


def as_views(given: object) -> tuple[Recipe, ...] | None:
    """Recipes and functions that were given as objects; None for a name or rows of YAML, which `recipes_of` reads."""
    if isinstance(given, Recipe) or callable(given):
        given = (given,)
    if not isinstance(given, list | tuple) or not any(isinstance(one, Recipe) or callable(one) for one in given):
        return None
    return tuple(_view(number, one) for number, one in enumerate(given, start=1))


def _view(number: int, given: object) -> Recipe:
    if isinstance(given, Recipe):
        _must_be_possible(number, given)
        return given
    if callable(given):
        return Transform(function=given)
    raise UserError(f"{NO_SCHEME}; got {type(given).__name__} among them")


def views_record(views: Sequence[Recipe]) -> str | list[dict[str, object]]:
    """How a run's config.yaml keeps views that were given as objects: recipes as rows, functions by their names."""
    functions = [record_of(view.function) for view in views if isinstance(view, Transform)]
    if functions:
        return ", ".join(functions)
    return [_row(view) for view in views]


def _row(recipe: Recipe) -> dict[str, object]:
    values = {one.name: getattr(recipe, one.name) for one in fields(recipe)}
    changed = {name: value for name, value in values.items() if value != getattr(Recipe, name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in changed.items()}


def recipes_of(views: str | Sequence[Mapping[str, object]]) -> tuple[Recipe, ...]:
    """The recipes of a scheme's name or of rows. UserError for a row with a key or a value that no recipe has."""
    if isinstance(views, str):
        return scheme(views)
    if not views:
        raise UserError(f"{NO_SCHEME}; got an empty list")
    return tuple(_recipe(number, row) for number, row in enumerate(views, start=1))


def _recipe(number: int, row: Mapping[str, object]) -> Recipe:
    kinds = types_of(Recipe)
    must_be_known(row, list(kinds), f"views: recipe {number}")
    values = {name: must_fit(f"views: {name} of recipe {number}", value, kinds[name]) for name, value in row.items()}
    make: Callable[..., Recipe] = Recipe
    recipe = make(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})
    _must_be_possible(number, recipe)
    return recipe


def _must_be_possible(number: int, recipe: Recipe) -> None:
    ranges = [("scale", recipe.scale, 1.0), ("ratio", recipe.ratio, float("inf"))]
    for name, value, most in ranges:
        if value is not None and not (len(value) == 2 and 0 < value[0] <= value[1] <= most and value[1] < float("inf")):
            raise UserError(
                f"views: {name} of recipe {number}: expected two numbers above 0, the smaller first, got {value}"
            )
    for name in ("flip", "jitter", "grey", "blur", "hue", "brightness", "contrast", "saturation"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise UserError(f"views: {name} of recipe {number}: expected from 0 to 1, got {getattr(recipe, name)}")
    if not 0 < recipe.side <= 1 or not -4 < recipe.quarter_turns < 4:
        raise UserError(
            f"views: recipe {number}: expected side above 0 to 1 and quarter_turns from 0 to 3, got {recipe}"
        )
