"""Every column of a comparison's tables has a name: a reader by ear hears it, and the button that sorts by it is called so."""

from ssl_kd.compare.results import Comparison, Group, Line
from ssl_kd.compare.table import main_table, pair_table, task_table

KNN = "knn/dino k=20 *"


def test_every_column_has_a_name():
    group = Group("t", "s", "photos", "short")
    lines = [Line(group, "student", name, seed, {"a": {KNN: 0.5}}) for name in ("sp", "rkd") for seed in range(2)]
    found = Comparison(tuple(lines), {"t": {"a": {KNN: 0.6}}}, "sp")
    for header, rows in (main_table(found, group), task_table(found, group, KNN), pair_table(found, group, KNN)):
        assert all(header)
        assert {len(row) for row in rows} == {len(header)}
