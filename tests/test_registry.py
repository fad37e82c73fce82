"""Tables of parts: built-in rows, rows added from Python, and what a name that is in none of them is told."""

import pytest

from ssl_kd.errors import UserError
from ssl_kd.registry import Registry, load_object, resolve


def table(**more):
    return Registry("shapes", {"round": 1, "square": 2}, **more)


def test_a_table_is_a_mapping_of_its_rows():
    shapes = table()
    assert (list(shapes), len(shapes), shapes["round"], dict(shapes)) == (
        ["round", "square"],
        2,
        1,
        {"round": 1, "square": 2},
    )
    assert shapes.get("oval") is None


def test_an_unknown_name_is_told_the_near_ones():
    with pytest.raises(UserError, match=r"shapes: no 'rond'; known: round, square.*round") as caught:
        table()["rond"]
    assert "\n" not in str(caught.value)


def test_rows_are_added_from_python_and_never_replace_built_in_ones():
    shapes = table(kind=int)
    shapes["oval"] = 3
    assert shapes["oval"] == 3
    with pytest.raises(UserError, match="'round' is built in"):
        shapes["round"] = 4
    with pytest.raises(UserError, match="is no int, but str"):
        shapes["long"] = "x"
    del shapes["oval"]
    assert "oval" not in shapes
    with pytest.raises(UserError, match="only what was added"):
        del shapes["round"]


def test_module_and_name_are_resolved_only_where_that_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "own_shapes.py").write_text("class Case:\n    star = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve(table(), "own_shapes:Case.star") == 5
    assert resolve(table(), "square") == 2
    with pytest.raises(UserError, match=r"shapes: no 'own_shapes:Case\.star'"):
        table()["own_shapes:Case.star"]
    for wrong, why in (("no_such_module:x", "cannot be imported"), ("own_shapes:Case.stir", "has no Case.stir.*star")):
        with pytest.raises(UserError, match=why) as caught:
            load_object(wrong, "shapes")
        assert "\n" not in str(caught.value)


def test_the_tables_of_the_house_are_registries_with_groups_of_their_own():
    from ssl_kd.checkpoints.formats import FORMATS
    from ssl_kd.data.augment import SCHEMES
    from ssl_kd.eval.evaluators.registry import EVALUATORS
    from ssl_kd.exporters.export import TARGETS
    from ssl_kd.objectives import DISTANCES, DIVERGENCES, PROJECTORS, RELATIONS, TARGET_NORMS, TERMS
    from ssl_kd.objectives.presets import CATALOGUE

    tables = [FORMATS, SCHEMES, EVALUATORS, TARGETS, DISTANCES, DIVERGENCES, PROJECTORS, RELATIONS, TARGET_NORMS, TERMS]
    groups = [part.group for part in (*tables, CATALOGUE)]
    assert len(set(groups)) == 11
    page = (__import__("pathlib").Path(__file__).parents[1] / "docs" / "extending.md").read_text()
    assert [group for group in groups if f"`{group}`" not in page] == []
