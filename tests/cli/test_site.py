"""The docs as a site, opened from its folder: axe-core finds no fault on any page, nothing sticks out, the search answers."""

import os
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from browser import Browser, missing, missing_axe

ROOT = Path(__file__).parents[2]
MISSING = missing() or ("" if find_spec("mkdocs") else "needs mkdocs (pip install 'ssl-kd[docs]', or make docs)")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000), pytest.mark.skipif(bool(MISSING), reason=MISSING or "-")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages but the one for a wrong address, whose links are those of a server."""
    out = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--quiet", "-f", ".ci/mkdocs.yml", "-d", str(out)]
    made = subprocess.run(
        words, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, text=True, capture_output=True, timeout=600
    )
    assert made.returncode == 0, made.stderr
    return sorted(page for page in out.rglob("*.html") if page.name != "404.html")


@pytest.mark.skipif(bool(missing_axe()), reason=missing_axe() or "-")
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_fault_on_any_page(site, dark, width, tmp_path):
    assert len(site) > 40
    found = {}
    with Browser(tmp_path, width, 844, dark) as browser:
        for page in site:
            browser.open(page)
            faults = browser.faults()
            if browser.run("return document.documentElement.scrollWidth") > width:
                faults.append("wider than the window")
            if faults:
                found[page.name] = faults
    assert found == {}


def test_the_search_finds_pages_without_a_server_and_without_the_network(site, tmp_path):
    page = next(page for page in site if page.name == "ten_encoders.html")
    hits = "return [...document.querySelectorAll('.md-search-result__item a')].map(link => link.href.split('#')[0])"
    with Browser(tmp_path) as browser:
        browser.open(page)
        browser.write("input[name=query]", "temperature")
        deadline = time.monotonic() + 60
        while not (found := browser.run(hits)) and time.monotonic() < deadline:
            time.sleep(0.2)
        asked = browser.requests()
        assert browser.log("browser") == []
    assert (page.parents[1] / "real_teachers.html").as_uri() in found
    assert [one for one in asked if not one.startswith(("file:", "about:", "data:"))] == []
