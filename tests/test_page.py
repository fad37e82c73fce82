"""The report is one sound HTML file that needs nothing else, says every figure, and can be read without a mouse."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest

from eval.looks import Look, Picture, principal_map
from eval.metrics import Scores, figures
from eval.page import page, worst_confusions
from eval.report import Cell, Results

VOID = {"meta", "img", "br", "hr", "link", "input"}


class Sound(HTMLParser):
    """Checks that every element is closed, and remembers attributes and words."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.words = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.words.append(data)


def cell(encoder, right, evaluator="knn", seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, 80)
    guess = np.where(rng.random(80) < right, labels, (labels + 1) % 4)
    k = 20 if evaluator == "knn" else None
    classes = np.array(["cat", "dog", "<emu>", "fox & co"])
    details = {"sweep": [{"strength": s, "top1": 0.5, "converged": s > 1} for s in (1.0, 10.0)], "strength": 10.0}
    scores = Scores(
        evaluator,
        "dino" if k else "quick-lbfgs",
        tuple(figures(labels, guess[:, None], 4, k)),
        classes,
        labels,
        {k: guess},
        k,
        ("a <note>",),
        {} if k else details,
    )
    return Cell("pets & co", encoder, "top1", scores, 1000 if encoder == "student" else 25_000_000, 8, 123.4)


def results():
    cells = [
        cell(name, right, kind) for name, right in (("teacher", 0.9), ("student", 0.8)) for kind in ("knn", "linear")
    ]
    return Results(tuple(cells), "teacher", {"programs": "torch 2"}, looks())


def looks():
    url = "data:image/jpeg;base64,AAAA"
    row = (Picture(url, "cat"), Picture(url, "cat", True), Picture(url, "dog", False))
    points = np.random.default_rng(0).uniform(-1, 1, (20, 2))
    labels = tuple(f"class {i % 9}" for i in range(20))
    return tuple(Look("pets & co", name, points, labels, (0.3, 0.2), (row,)) for name in ("teacher", "student"))


def read(text):
    parser = Sound()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_sound_and_complete():
    found = results()
    parser = read(page(found, found.looks, "out: x\n", "Mine"))
    words = " ".join(parser.words)
    for row in found.rows:
        assert f"{100 * row['value']:.2f} %" in words
    for part in ("teacher", "student", "pets & co", "<emu>", "a <note>", "out: x", "torch 2", "quick-lbfgs"):
        assert part in words


def test_nothing_is_fetched_and_nothing_runs():
    found = results()
    text = page(found, found.looks)
    parser = read(text)
    assert not re.search(r"https?://|//[a-z]+\.", text)
    assert not {tag for tag, _ in parser.seen} & {"script", "link", "iframe", "object"}
    assert all(attributes["src"].startswith("data:") for _, attributes in parser.seen if "src" in attributes)


def test_pictures_and_charts_have_words():
    found = results()
    parser = read(page(found, found.looks))
    assert all(attributes.get("alt") for tag, attributes in parser.seen if tag == "img")
    charts = [attributes for tag, attributes in parser.seen if tag == "svg" and "aria-hidden" not in attributes]
    assert len(charts) >= 5
    assert all(attributes.get("aria-label") and attributes["role"] == "img" for attributes in charts)
    assert {"hit", "miss", "query"} <= {attributes.get("class") for _, attributes in parser.seen}


def test_results_without_looks_or_reference_make_a_page_too():
    parser = read(page(Results(results().cells)))
    assert "Neighbours" not in parser.words
    assert "Share kept" not in parser.words


def test_confusions_are_counted():
    one = cell("teacher", 0.5)
    wrong = one.scores.predicted[20] != one.scores.labels
    found = worst_confusions(one, most=99)
    assert sum(count for *_, count, _ in found) == wrong.sum()
    true, guess, count, of = found[0]
    names = one.scores.classes
    assert count == ((names[one.scores.labels] == true) & (names[one.scores.predicted[20]] == guess)).sum()
    assert of == (names[one.scores.labels] == true).sum()


def test_a_map_is_principal_components():
    from sklearn.decomposition import PCA

    x = np.random.default_rng(0).normal(size=(50, 6)) * np.arange(1, 7)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    points, explained = principal_map(x)
    peer = PCA(2).fit(unit)
    expected = peer.transform(unit)
    for axis in range(2):
        assert abs(np.corrcoef(points[:, axis], expected[:, axis])[0, 1]) == pytest.approx(1)
    assert explained == pytest.approx(tuple(peer.explained_variance_ratio_), abs=1e-5)
    assert np.abs(points).max() == pytest.approx(1)
    flat, none = principal_map(np.ones((4, 3)))
    assert np.isfinite(flat).all()
    assert none == pytest.approx((0, 0), abs=1e-6)


@pytest.mark.slow
def test_a_browser_draws_it_light_dark_and_narrow(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs a headless Chromium")
    from PIL import Image

    (tmp_path / "report.html").write_text(page(results(), looks()))
    pictures = []
    for name, extra in (
        ("light", []),
        ("dark", ["--blink-settings=preferredColorScheme=0"]),
        ("phone", ["--window-size=400,900"]),
    ):
        shot = tmp_path / f"{name}.png"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,900", *extra]
        subprocess.run(
            [*command, f"--screenshot={shot}", f"file://{tmp_path}/report.html"], check=True, capture_output=True
        )
        pictures.append(np.asarray(Image.open(shot).convert("L"), float))
    assert all(picture.std() > 5 for picture in pictures)  # something is drawn
    assert pictures[0].mean() > 200
    assert pictures[1].mean() < 80
