"""The report in a real browser: sorted, darkened and opened by keyboard, on a desk and on a phone, without the network."""

from __future__ import annotations

import io

import numpy as np
import pytest
from browser import Browser, missing
from PIL import Image
from small_results import results

from ssl_kd.eval.report.html import page

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing()), reason=missing() or "all there")]
FIRST = "#s1 table tbody tr:first-child"
COLUMN = "return [...document.querySelectorAll('#s1 tbody tr')].map(r => r.cells[arguments[0]].textContent)"


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(page(results(), "out: x\n" * 3, "Evaluation: pets"))
    return path


@pytest.fixture
def browser(tmp_path, report):
    with Browser(tmp_path) as opened:
        opened.open(report)
        yield opened
        complaints = [entry["message"] for entry in opened.log("browser") if entry["level"] in ("SEVERE", "WARNING")]
        assert complaints == []


def test_a_click_on_a_head_sorts_the_table_and_another_turns_it(browser):
    figures = browser.run(COLUMN, 2)
    rising = sorted(figures, key=lambda text: float(text.split()[0]))
    browser.click("#s1 thead th:nth-child(3) button")
    assert browser.run(COLUMN, 2) == rising
    assert browser.run("return document.querySelector('#s1 th:nth-child(3)').ariaSort") == "ascending"
    browser.click("#s1 thead th:nth-child(3) button")
    assert browser.run(COLUMN, 2) == rising[::-1]
    # "25.0 M" is more than "1.0 k": units count
    browser.click("#s1 thead th:nth-child(7) button")
    assert browser.run(COLUMN, 6) == ["1.0 k", "25.0 M"]


def test_the_keyboard_sorts_opens_a_query_and_follows_the_skip_link(browser):
    browser.press("Tab")
    assert browser.run("return document.activeElement.className") == "skip"
    assert browser.run("return document.activeElement.getBoundingClientRect().left >= 0")
    browser.press("Enter")
    assert browser.run("return location.hash") == "#s0"
    browser.run("document.querySelector('#s1 thead th:nth-child(2) button').focus()")
    browser.press("Enter")
    assert browser.run(COLUMN, 1) == ["student", "teacher"]
    outline = "const s = getComputedStyle(document.activeElement); return [s.outlineStyle, parseFloat(s.outlineWidth)]"
    assert browser.run(outline) == ["solid", 3]
    closed = "return [...document.querySelectorAll('details:not([open])')].length"
    before = browser.run(closed)
    browser.run("document.querySelector('details:has(.hit)').open = false")
    browser.run("document.querySelector('details:has(.hit) > summary').focus()")
    shown = "return document.querySelector('.hit img').checkVisibility()"
    assert not browser.run(shown)
    browser.press("Space")
    assert browser.run(shown)
    assert browser.run(closed) == before


def test_the_button_changes_light_and_dark_and_is_remembered(browser, tmp_path):
    paper = "return getComputedStyle(document.body).backgroundColor"
    assert browser.run(paper) == "rgb(255, 255, 255)"
    browser.click("#theme")
    assert browser.run(paper) == "rgb(21, 21, 21)"
    assert browser.run("return document.querySelector('#theme').textContent") == "Light"
    browser.picture(tmp_path / "dark.png")
    shot = np.asarray(Image.open(io.BytesIO((tmp_path / "dark.png").read_bytes())).convert("L"), float)
    assert shot.mean() < 80
    assert shot.std() > 5
    browser.run("location.reload()")
    assert browser.run(paper) == "rgb(21, 21, 21)"
    browser.click("#theme")
    assert browser.run(paper) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_nothing_is_too_wide_too_faint_or_fetched(tmp_path, report, width, dark):
    with Browser(tmp_path, width, 844, dark) as browser:
        browser.open(report)
        browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert browser.run("return [innerWidth, document.documentElement.scrollWidth]") == [width, width]
        # what is wider than the page lies inside something that scrolls by itself
        wide = browser.run(
            "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > innerWidth + 1"
            " && !e.closest('.scroll, pre, svg')).map(e => e.outerHTML.slice(0, 80))"
        )
        assert wide == []
        for selector in (
            "body",
            "p",
            "figcaption",
            "td",
            "summary",
            ".said",
            "a",
            ".hit figcaption",
            ".miss figcaption",
        ):
            assert contrast(browser, selector) >= 4.5, selector
        assert browser.run("return getComputedStyle(document.body).backgroundColor") == (
            "rgb(21, 21, 21)" if dark else "rgb(255, 255, 255)"
        )
        asked = [url for url in browser.requests() if not url.startswith("data:")]
        assert asked == [report.as_uri()]
        assert [entry for entry in browser.log("browser") if entry["level"] != "INFO"] == []


def contrast(browser, selector):
    """WCAG's ratio of an element's ink to the nearest paper behind it."""
    ink, paper = browser.run(
        "const e = document.querySelector(arguments[0]); let p = e;"
        "while (getComputedStyle(p).backgroundColor === 'rgba(0, 0, 0, 0)') p = p.parentElement;"
        "return [getComputedStyle(e).color, getComputedStyle(p).backgroundColor].map("
        "c => c.match(/[\\d.]+/g).slice(0, 3).map(Number))",
        selector,
    )

    def light(colour):
        parts = [c / 255 / 12.92 if c / 255 <= 0.03928 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted([light(ink), light(paper)])
    return (high + 0.05) / (low + 0.05)
