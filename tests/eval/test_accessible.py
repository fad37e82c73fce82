"""Reports as a reader with a screen reader or a keyboard has them: axe-core finds nothing wrong in a real browser."""

import pytest
from browser import Browser, missing_axe
from small_results import results

from ssl_kd.compare.report import page as page_of_comparison
from ssl_kd.compare.results import Comparison, Group, Line
from ssl_kd.eval.report.html import page

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
pytestmark += [pytest.mark.skipif(bool(missing_axe()), reason=missing_axe() or "all there")]
KNN, LINEAR = "knn/dino k=20 *", "linear/quick-lbfgs *"


def comparison():
    """Two students by three objectives over two seeds, with every section of the report."""
    lines = []
    for student, parameters, base in (("half", 2_800_000, 0.4), ("tiny", 500_000, 0.3)):
        for budget, more in (("short", 0.0), ("long", 0.1)):
            group = Group("lite0", student, "photos", budget)
            for place, name in enumerate(("centred", "default", "sp")):
                for seed in range(2):
                    value = base + more - 0.02 * place + 0.01 * seed
                    figures = {task: {KNN: value, LINEAR: value + 0.1} for task in ("food", "flowers")}
                    curve = tuple((100.0 * i, float(i), 0.1 * i * value) for i in range(4))
                    lines.append(Line(group, "student", name, seed, figures, parameters, 60.0, 1000, 0.04, curve=curve))
    teachers = {"lite0": {task: {KNN: 0.7, LINEAR: 0.8} for task in ("food", "flowers")}}
    trials = {("lite0", "half", "photos", "centred"): {0.02: 0.4, 0.04: 0.5}}
    more = {"refused": {"leap": "needs patches"}, "trials": trials, "scored_by": "neighbours", "facts": {"torch": "2"}}
    return Comparison(tuple(lines), teachers, "default", **more)


REPORTS = {
    "evaluation": lambda: page(results(), "out: x\n", "Evaluation: pets"),
    "comparison": lambda: page_of_comparison(comparison(), "out: x\n", "Comparison: x"),
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("report", REPORTS)
def test_axe_finds_no_fault(report, dark, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(REPORTS[report](), encoding="utf-8")
    for width in (1280, 390):
        with Browser(tmp_path / f"{width}", width, 844, dark) as browser:
            browser.open(path)
            browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert browser.faults() == []
            assert browser.run("return document.documentElement.scrollWidth") <= width
