"""The report is one sound HTML file that needs nothing else, says every figure, and can be read without a mouse."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from math import nan

import numpy as np
import pytest
import torch
from small_results import cell, results

from ssl_kd.distillation import monitor
from ssl_kd.errors import UserError
from ssl_kd.eval.report.charts import (
    NAMED,
    Axis,
    Point,
    axis,
    dash,
    intervals_chart,
    mark,
    points_chart,
    reliability_chart,
    short,
    thinned,
)
from ssl_kd.eval.report.html import page
from ssl_kd.eval.report.projections import PROJECTIONS, principal_map
from ssl_kd.eval.report.sections import sections, worst_confusions
from ssl_kd.eval.report.training_curves import OF_HEALTH, read_curves, titled
from ssl_kd.eval.results import Results
from ssl_kd.objectives import TERMS

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


def read(text):
    parser = Sound()
    parser.feed(text)
    parser.close()
    assert parser.open == []
    return parser


def test_the_page_is_sound_and_complete():
    found = results()
    parser = read(page(found, "out: x\n", "Mine"))
    words = " ".join(parser.words)
    for row in found.rows:
        assert f"{100 * row['value']:.2f} %" in words
    for part in (
        "teacher",
        "student",
        "pets & co",
        "<emu>",
        "a <note>",
        "out: x",
        "torch 2",
        "quick-lbfgs",
        "left out: voc x knn",
    ):
        assert part in words
    for section in ("Training", "Health without labels", "Paired tests", "Neighbours", "How to reproduce"):
        assert section in parser.words
    assert "overlap; student ends at 0.4" in words


def test_neighbours_speak_of_classes_only_where_there_are_labels():
    shown = results()
    photos = replace(
        shown.looks[0], rows=tuple(tuple(replace(p, hit=None) for p in row) for row in shown.looks[0].rows)
    )
    said = "the same class, a dashed orange one another"
    assert said in page(shown)
    without = page(replace(shown, looks=(photos,)))
    assert said not in without
    assert "A photo to ask with, and the nearest of the other photos under each encoder." in " ".join(without.split())


def test_nothing_is_fetched_and_names_are_no_code():
    found = results()
    text = page(found)
    parser = read(text)
    assert not re.search(r"https?://|//[a-z]+\.", text)
    assert not {tag for tag, _ in parser.seen} & {"link", "iframe", "object"}
    assert [attributes for tag, attributes in parser.seen if tag == "script"] == [{}]
    assert all(attributes["src"].startswith("data:") for _, attributes in parser.seen if "src" in attributes)
    policy = next(a["content"] for _, a in parser.seen if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "<emu>" not in text


def test_every_link_leads_somewhere_and_tables_have_heads():
    parser = read(page(results()))
    places = {attributes["id"] for _, attributes in parser.seen if "id" in attributes}
    links = [attributes["href"] for tag, attributes in parser.seen if tag == "a"]
    assert len(links) > 5
    assert all(link[1:] in places for link in links)
    assert {a.get("scope") for tag, a in parser.seen if tag == "th"} == {"col", "row"}


def test_pictures_and_charts_have_words():
    found = results()
    parser = read(page(found))
    assert all("alt" in attributes for tag, attributes in parser.seen if tag == "img")
    charts = [attributes for tag, attributes in parser.seen if tag == "svg" and "aria-hidden" not in attributes]
    assert len(charts) >= 5
    assert all(attributes.get("aria-label") and attributes["role"] == "img" for attributes in charts)
    assert {"hit", "miss"} <= {attributes.get("class") for _, attributes in parser.seen}


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
    for i in range(2):
        assert abs(np.corrcoef(points[:, i], expected[:, i])[0, 1]) == pytest.approx(1)
    assert explained == pytest.approx(tuple(peer.explained_variance_ratio_), abs=1e-5)
    assert np.abs(points).max() == pytest.approx(1)
    flat, none = principal_map(np.ones((4, 3)))
    assert np.isfinite(flat).all()
    assert none == pytest.approx((0, 0), abs=1e-6)


def test_axes_have_round_ticks_within_them():
    for values, log in (
        ([0.1, 0.93], False),
        ([1e6, 25e6], True),
        ([3.0, 3.0], False),
        ([0.0, 0.0], False),
        ([7], True),
    ):
        one = axis(values, 0, 100, log)
        assert all(0 <= one(v) <= 100 for v in values)
        assert 1 <= len(one.ticks) <= 7
        assert all(one.low <= tick <= one.high * (1 + 1e-9) for tick in one.ticks)
    assert Axis(0, 1, 0, 100).ticks == [0, 0.25, 0.5, 0.75, 1]
    assert [short(v) for v in (25e6, 1500, 0.25, 1e-5, 0)] == ["25M", "1.5k", "0.25", "1e-05", "0"]


def test_long_curves_are_drawn_as_means_of_stretches():
    points = [(float(i), float(i % 2)) for i in range(6000)]
    drawn = thinned(points)
    assert len(drawn) == 300
    assert {y for _, y in drawn} == {0.5}
    assert thinned(points[:5]) == points[:5]


@pytest.mark.parametrize("kind", ["pca", "tsne"])
def test_projections_keep_groups_together(kind):
    rng = np.random.default_rng(0)
    side = np.repeat([0, 1], 30)
    features = np.where(side[:, None], 1.0, -1.0) * np.ones(5) + 0.1 * rng.normal(size=(60, 5))
    found = PROJECTIONS[kind](features.astype(np.float32), 0)
    assert np.abs(found.points).max() == pytest.approx(1)
    middle = np.array([found.points[side == s].mean(0) for s in (0, 1)])
    nearest = np.linalg.norm(found.points[:, None] - middle[None], axis=2).argmin(1)
    assert (nearest == side).mean() > 0.95
    np.testing.assert_array_equal(found.points, PROJECTIONS[kind](features.astype(np.float32), 0).points)


def test_umap_is_asked_for_in_one_line_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(UserError, match=r"pip install 'ssl-kd\[umap\]'"):
        PROJECTIONS["umap"](np.ones((5, 3)), 0)


def test_names_are_no_template_either():
    found = results()
    text = page(found, "{{ 7 * 7 }}", "{% raw %} & <b>")
    assert text.startswith("<!doctype html>")
    assert "{{ 7 * 7 }}" in text
    assert "{% raw %} &amp; &lt;b&gt;" in text


def test_cells_of_different_versions_are_told_apart():
    found = results()
    cells = tuple(replace(one, programs=f"torch {i // 3}") for i, one in enumerate(found.cells))
    words = read(page(replace(found, cells=cells))).words
    assert {"Made by torch 0:", "Made by torch 1:"} <= set(words)
    assert "Made by" not in " ".join(read(page(found)).words)


BAD_LOGS = {
    "an integer of 400 digits": '{"step": 1, "loss": 1' + "0" * 400 + "}\n",
    "an integer of 5,000 digits": '{"loss": 1' + "0" * 5000 + "}\n",
    "nested": "[" * 100_000 + "\n",
    "huge values": '{"step": 2, "a": 1e308}\n{"step": 3, "a": -1e308}\n',
    "huge steps": '{"step": 1e308, "a": 1}\n{"step": -1e308, "a": 2}\n',
    "no numbers": '{"step": "x", "a": 1}\n{"a": NaN}\n{"a": [1]}\n{"a": true}\n',
    "no text": "\x00\x01\n\ud800\n",
}


@pytest.mark.parametrize("what", BAD_LOGS)
def test_a_strangers_log_costs_the_report_nothing(what, tmp_path):
    text = BAD_LOGS[what] + '{"step": 1, "good": 1}\n{"step": 2, "good": 2}\n'
    (tmp_path / "metrics.jsonl").write_bytes(text.encode(errors="surrogatepass"))
    curves = read_curves(str(tmp_path / "student.safetensors"))
    assert curves["good"] == ([1.0, 2.0], [1.0, 2.0])
    read(page(replace(results(), curves={"student": curves})))


def test_only_so_many_curves_of_a_log_are_drawn(tmp_path):
    line = "{" + ", ".join(f'"k{i}": {i}' for i in range(5000)) + "}\n"
    (tmp_path / "metrics.jsonl").write_text(line * 2)
    assert len(read_curves(str(tmp_path / "student.safetensors"))) == 200
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "metrics.jsonl").mkdir()
    assert read_curves(str(tmp_path / "student.safetensors")) == {}


def numbers(text, pattern):
    return [float(found) for found in re.findall(pattern, text)]


def test_every_colour_has_a_second_sign():
    marks = [re.sub(r'class="\w+"', "", mark(number)) for number in range(NAMED)]
    assert len(set(marks)) == NAMED
    assert len({dash(number) for number in range(NAMED)}) == NAMED


def test_share_kept_panels_have_one_scale_and_a_labelled_line_at_100_percent():
    rows = {"near": (0.98, 0.96, 1.0), "far": (0.4, 0.2, 0.6)}
    ends = [v for row in rows.values() for v in row]
    drawn = {
        name: intervals_chart([("knn", [("student", *row)])], name, {"student": 0}, ends) for name, row in rows.items()
    }
    rules = {name: re.search(r'class="rule" d="M([\d.]+)', svg)[1] for name, svg in drawn.items()}
    assert rules["near"] == rules["far"]
    assert all("100 %: the reference" in svg for svg in drawn.values())


def test_times_have_level_bars_and_chance_is_a_line_where_it_is_known():
    points = [Point("student", (2.0, 1.5, 4.0), (0.8, 0.7, 0.9)), Point("teacher", (9.0, nan, nan), (0.9, nan, nan))]
    svg = points_chart(points, "ms", "words", {"student": 0, "teacher": 1}, chance=0.25)
    assert len(re.findall(r"H[\d.]+\"/>", svg)) >= 2  # the axis, and one time's interval
    assert "chance 25.0 %" in svg
    assert len(re.findall(r'stroke-width="2"', svg)) == 2  # the teacher has no interval, and gets none
    assert "chance" not in points_chart(points, "ms", "words", {"student": 0, "teacher": 1})


def test_calibration_counts_its_images_and_cuts_nothing_off():
    bins = [{"rows": 3, "confidence": 0.05, "accuracy": 0.0}, {"rows": 97, "confidence": 1.0, "accuracy": 1.0}]
    svg = reliability_chart(bins, 1 / 15, "words")
    width, height = numbers(svg, r'viewBox="0 0 (\d+)')[0], numbers(svg, r'viewBox="0 0 \d+ (\d+)')[0]
    places = numbers(svg, r'<rect[^>]* y="([-\d.]+)"'), numbers(svg, r'<rect[^>]* height="([-\d.]+)"')
    assert all(0 <= top and top + tall <= height for top, tall in zip(*places, strict=True))
    assert all(0 <= x <= width for x in numbers(svg, r' x="([-\d.]+)"'))
    assert "97 in the fullest bar" in svg
    assert "3 images" in svg


def test_a_collapse_is_an_event_and_the_teacher_and_chance_are_levels():
    text = page(results())
    assert "student had collapsed at step 1" in text
    panel = next(part for part in text.split("<figure") if "<figcaption>overlap" in part)
    assert ">teacher</text>" in panel
    assert ">chance</text>" in panel
    assert "loss term align, smaller is better;" in text
    assert "collapsed;" not in text  # no curve of zeros and ones


def test_a_loss_term_is_never_called_as_the_health_figure_of_its_name():
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    for name in {*OF_HEALTH, *monitor.figures(rows, rows), *TERMS}:
        term, health = titled(name), titled(f"health/{name}")
        assert term == f"loss term {name}, smaller is better"
        assert "smaller" not in health
        assert "loss" not in health


def test_the_references_column_is_last_for_a_phone_shows_the_first():
    found = results()
    cells = [replace(c, scores=replace(c.scores, protocol=f"p{i}")) for c in found.cells for i in range(3)]
    header, lines = headline_of(replace(found, cells=tuple(cells)))
    assert header[2] == "student %"
    assert header[-1] == "teacher %"
    assert {len(line) for line in lines} == {len(header)}


def headline_of(found):
    data = next(data for heading, _, data in sections(found) if heading == "Results")
    return list(data["table"].header), data["table"].rows
