"""Settings written once: every annotation has words and a test, ranges hold at their ends, names are near."""

import typing
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from ssl_kd.distillation.config import DistillConfig
from ssl_kd.errors import UserError
from ssl_kd.pretraining.config import PretrainConfig
from ssl_kd.pretraining.methods import METHODS
from ssl_kd.validation import (
    About,
    about,
    check_settings,
    described,
    fits,
    in_words,
    must_fit,
    plain,
    setting,
    types_of,
    with_settings,
)

KINDS = [  # annotation, its words, what fits, what does not
    (str, "text", ["", "a"], [1, None, ["a"]]),
    (bool, "true or false", [True], [1, "true"]),
    (int, "a whole number", [0, -3], [True, 1.0, "1"]),
    (float, "a number", [0, 1.5], [True, "1", None]),
    (list, "a list", [[], [1]], ["a", {}]),
    (list[str], "a list (each item text)", [[], ["a"]], ["a", [1], None]),
    (list[list[int]], "a list (each item a list (each item a whole number))", [[[1]]], [[1], [["a"]]]),
    (tuple[float, float], "a list (each item a number)", [(0.1, 1)], [("a", 1), 3]),
    (dict[str, Any], "a mapping", [{}, {"a": 1}], [[], {1: 2}]),
    (dict[str, int], "a mapping", [{"a": 1}], [{"a": "b"}]),
    (str | None, "text or nothing", ["a", None], [1]),
    (str | list[dict[str, Any]], "text or a list (each item a mapping)", ["a", [{}]], [[1], 3]),
    (typing.Optional[int], "a whole number or nothing", [1, None], ["a"]),  # noqa: UP045 - the older spelling
    (Literal["a", "b"], "a or b", ["a"], ["c", 1]),
    (Literal["", "a", "b", "c"], "a, b or c, or nothing", ["", "c"], ["d"]),
    (Literal[1, 2], "1 or 2", [1], [True, "1", 1.0]),
    (dict[object, object] | Literal[""], "a mapping or nothing", [{}, {1: "a"}, ""], ["a", [1]]),
    (object, "anything", [1, None, b"bytes"], []),
    (Any, "anything", [1, None, b"bytes"], []),
    (Path, "Path", [Path("a")], ["a"]),
]


@pytest.mark.parametrize(("kind", "words", "good", "bad"), KINDS, ids=lambda part: str(part)[:40])
def test_any_sensible_annotation_is_understood(kind, words, good, bad):
    assert in_words(kind) == words
    assert all(fits(kind, value) for value in good)
    assert not any(fits(kind, value) for value in bad)


@pytest.mark.parametrize("config", [DistillConfig, PretrainConfig])
def test_every_setting_has_a_help_and_a_default_of_its_own_type_and_range(config):
    for one in fields(config):
        assert about(one).help, one.name
        assert in_words(types_of(config)[one.name])
    with_settings(config(), {}, "x")
    check_settings(config())
    assert len({one.name for one in fields(config)}) == len(fields(config))


def test_the_methods_of_the_settings_are_those_that_there_are():
    assert set(typing.get_args(types_of(PretrainConfig)["method"])) == set(METHODS)


@dataclass
class Small:
    """Some settings."""

    count: int = setting(2, "of things", least=2, why="one is none")
    share: float = setting(0.5, "of them", above=0, most=1)
    chance: float = setting(0.5, "of one", least=0, below=1)
    rate: float = setting(0.5, "per second", above=0)
    free: float = setting(0.5, "of any size")
    device: Literal["cpu", "cuda"] = setting("cpu", "where")
    names: list[str] = field(default_factory=list, metadata=described("of them"))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("count", 1, "count: expected at least 2 (one is none), got 1"),
        ("count", "two", "count: expected a whole number, got 'two'"),
        ("share", 0, "share: expected above 0 and at most 1, got 0"),
        ("share", 1.5, "share: expected above 0 and at most 1, got 1.5"),
        ("chance", 1, "chance: expected from 0 to below 1, got 1"),
        ("chance", -0.1, "chance: expected from 0 to below 1, got -0.1"),
        ("rate", float("inf"), "rate: expected above 0, got inf"),
        ("free", float("nan"), "free: expected a finite number, got nan"),
        ("device", "gpu", "device: expected cpu or cuda, got 'gpu'. Did you mean cuda?"),
        ("device", "cdua", "device: expected cpu or cuda, got 'cdua'. Did you mean cuda?"),
        ("names", ["a", 1], "names: expected a list (each item text), got ['a', 1]"),
        ("names", "a", "names: expected a list (each item text), got 'a'"),
    ],
)
def test_the_first_wrong_setting_is_one_line(name, value, message):
    with pytest.raises(UserError) as caught:
        check_settings(Small(**{name: value}))
    assert str(caught.value) == message


@pytest.mark.parametrize("good", [{"share": 1}, {"chance": 0}, {"count": 2}, {"rate": 1e-300}, {"names": ["a"]}])
def test_the_ends_of_a_range_are_as_they_are_written(good):
    check_settings(Small(**good))


def test_a_range_without_ends_takes_what_is_finite():
    assert About().holds(-1e300)
    assert not About().holds(float("inf"))
    assert not About().holds(float("nan"))


def test_values_of_numpy_and_paths_become_plain_and_a_whole_number_a_float():
    merged = with_settings(Small(), {"count": np.int64(3), "share": np.float32(0.5), "names": ("a", Path("b"))}, "x")
    assert merged == Small(count=3, share=0.5, names=["a", "b"])
    assert isinstance(must_fit("rate", 1, float), float)


def test_a_setting_that_there_is_not_has_near_names():
    with pytest.raises(UserError, match=r"^x has no setting 'shares'. Did you mean share\? It knows: count, share"):
        with_settings(Small(), {"shares": 1}, "x")


def test_networks_stay_only_where_a_setting_may_hold_them():
    import torch

    network = torch.nn.Flatten()
    assert plain("a", {"b": [network]}, networks=True) == {"b": [network]}
    for value in (network, torch.nn.Flatten):
        with pytest.raises(UserError, match="expected text, numbers, lists and mappings of them, got"):
            plain("a", [value])
    with pytest.raises(UserError, match="got type"):
        plain("a", [torch.nn.Flatten], networks=True)  # a class is none
