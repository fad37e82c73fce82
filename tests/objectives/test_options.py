"""The table of options: every option has a row, every row refuses what cannot be, and that is one line."""

import pytest

from ssl_kd.errors import UserError
from ssl_kd.objectives import PRESETS, build_objective, taps
from ssl_kd.objectives.factory import TERMS, defaults_of, terms_of
from ssl_kd.objectives.options import OPTIONS, must_fit

QUEUE = {"term": "correlation", "relation": "queue"}
NUMBERS = ["0.5", [1], {"a": 1}, float("nan"), float("inf"), -(10**400), -1, True]
# By how a row's words begin: what it takes, and what it does not.
SAMPLES = {
    "a name": ("mse", [3, ["mse"], {"a": 1}, True]),
    "a list of layers": (["stage.1"], ["stage.1", 3, [3], [""], {"a": 1}]),
    "a whole number": (7, [*NUMBERS, 1.5, 10**13]),
    "a number": (0.5, NUMBERS),
    "true or false": (True, [1, "yes", "false", [True]]),
}


def test_every_option_of_every_term_has_a_row_and_no_row_is_idle():
    known = {option for kind in TERMS for option in defaults_of(kind)}
    assert known == set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_takes_its_default_and_refuses_other_types(option):
    kind = next(kind for kind in TERMS if option in defaults_of(kind))
    taps([{"term": kind, option: defaults_of(kind)[option]}])
    fine, wrong = next(samples for words, samples in SAMPLES.items() if OPTIONS[option][0].startswith(words))
    taps([{"term": kind, option: fine}])
    for value in wrong:
        with pytest.raises(UserError, match=f"objective: {option}: expected {OPTIONS[option][0][:6]}") as caught:
            taps([{"term": kind, option: value}])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "least"),
    [("neighbours", 1), ("teacher_width", 1), ("size", 1), ("per_image", 1), ("rows", 3), ("order", 1)],
)
def test_what_would_teach_nothing_is_refused(option, least):
    must_fit(option, least)
    with pytest.raises(UserError, match=f"at least {least}"):
        must_fit(option, least - 1)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_pass_the_check_that_spelled_terms_meet(name):
    assert terms_of(list(PRESETS[name])) == PRESETS[name]


@pytest.mark.parametrize(
    "objective",
    [[{"term": ["alignment"]}], [{"term": {"a": 1}}], [{1: 2, "term": "alignment"}], [{"term": 3}], 5, {"a": 1}, None],
)
def test_objectives_of_any_type_are_refused_in_one_line(objective):
    with pytest.raises(UserError, match="objective: ") as caught:
        taps(objective)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [{**QUEUE, "size": 2**31 - 1}, {**QUEUE, "teacher_width": 2**31 - 1}])
def test_what_has_no_room_is_refused_in_one_line(spec):
    with pytest.raises(UserError, match="objective: correlation cannot be built with") as caught:
        build_objective([spec], 6, 2**20)
    assert "\n" not in str(caught.value)


def test_null_stands_for_not_given_only_where_that_is_the_default():
    build_objective([{**QUEUE, "size": None, "teacher_width": None}], 6, 10)
    for kind in TERMS:
        named = [name for name, default in TERMS[kind].options().items() if default is not None]
        assert named
        for name in named:
            with pytest.raises(UserError, match=f"{name}: expected .*; got None"):
                terms_of([{"term": kind, name: None}])
