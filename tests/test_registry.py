"""Tables of parts: built-in rows, rows added from Python, and what a name that is in none of them is told."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tables import tables

from ssl_kd.errors import UserError
from ssl_kd.registry import Registry, admit, load_object


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
    with pytest.raises(UserError, match=r"shapes: no 'rond'. Did you mean round. Known: round, square") as caught:
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


OWN = table(group="shapes.of.a.test")


def test_module_and_name_are_imported_only_where_that_is_asked_for(tmp_path, monkeypatch):
    (tmp_path / "own_shapes.py").write_text("class Case:\n    star = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"shapes: own_shapes:Case\.star names code, which is imported only where"):
        OWN["own_shapes:Case.star"]
    admit("shape", ["square", "own_shapes:Case.star"], {"": [f"{__name__}:OWN"]})
    assert OWN["own_shapes:Case.star"] == 5
    for wrong, why in (("no_such_module:x", "cannot be imported"), ("own_shapes:Case.stir", "has no Case.stir.*star")):
        with pytest.raises(UserError, match=why) as caught:
            load_object(wrong, "shapes")
        assert "\n" not in str(caught.value)


def test_a_part_that_has_a_name_of_its_own_stands_under_that_name():
    shapes = table(named=True)
    shapes["oval"] = SimpleNamespace(name="oval")
    with pytest.raises(UserError, match="offered as long calls itself oval"):
        shapes["long"] = SimpleNamespace(name="oval")


def test_only_rows_of_packages_have_a_maker():
    shapes = table(group="no.such_group")
    shapes["oval"] = 3
    assert [shapes.maker(name) for name in ("round", "oval", "nowhere")] == ["", "", ""]


PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
ROWS = re.findall(r"^\| `(ssl_kd\.\w+)` \|", PAGE, re.MULTILINE)
EXAMPLE = Path(__file__).parent / "plugins" / "example_package" / "pyproject.toml"


def test_the_page_and_the_example_know_every_table():
    groups = [part.group for part in tables()]
    assert len(set(groups)) == len(groups)
    assert sorted(ROWS) == sorted(groups)
    assert sorted(tomllib.loads(EXAMPLE.read_text())["project"]["entry-points"]) == sorted(groups)


def test_no_table_of_the_package_is_left_out_of_the_list():
    """A table with a group that `tables` forgets would be neither on the page nor in the example."""
    root = Path(__file__).parents[1]
    files = [*(root / "ssl_kd").rglob("*.py"), *(root / "eval").rglob("*.py")]
    written = [group for file in files for group in re.findall(r'group="(ssl_kd\.\w+)"', file.read_text())]
    assert sorted(written) == sorted(part.group for part in tables())


@pytest.mark.parametrize("part", tables(), ids=lambda part: part.group)
def test_no_table_lets_a_built_in_row_be_replaced(part):
    name = next(iter(part.built_in))
    with pytest.raises(UserError, match="is built in and cannot be replaced"):
        part[name] = part.built_in[name]


def test_the_code_on_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    added = [(part, dict(part._added)) for part in tables()]
    try:
        names = {"__name__": "page"}
        for code in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
            exec(code, names)
        assert names["term"](torch.ones(2, 6), torch.ones(2, 10)).ndim == 0
        assert len(names["images"]) == 4
        assert names["scores"].value("top1", 3) > 0.9
        assert names["student"].dim == 8
    finally:
        for part, rows in added:
            part._added.clear()
            part._added.update(rows)


def test_a_row_from_python_is_computed_anew_each_time(monkeypatch):
    """Its code has no version, so that a kept cell could be stale; that of an installed package has one."""
    from ssl_kd.eval.evaluators.choices import by_name
    from ssl_kd.eval.evaluators.knn import PROTOCOLS, KNNProtocol
    from ssl_kd.eval.evaluators.registry import EVALUATORS

    class Own(KNNProtocol):
        pass

    EVALUATORS["own"] = replace(EVALUATORS["agreement"])
    try:
        assert not by_name("own", "neighbours").kept
    finally:
        del EVALUATORS["own"]
    monkeypatch.setitem(PROTOCOLS.built_in, "own", Own("own", (1,), 1))
    assert not by_name("knn", "own").kept
    assert by_name("agreement", "neighbours").kept
    assert by_name("linear", "moco-linear").kept
    assert by_name("ood", "knn50").kept
