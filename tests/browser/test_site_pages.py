"""The documentation's site, opened as files in headless Chromium: nothing from outside, no errors, nothing too wide,
formulas, search. It looks at what `make docs` built, and is left out where that is not there.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest
from conftest import ROOT

pytestmark = pytest.mark.browser

SITE = ROOT / "site"
LOADED = "document.readyState === 'complete' && location.protocol === 'file:'"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from chromium import Browser

    program = os.environ.get("SPARK_DBP_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium: make test-browser fetches it")
    if not (SITE / "index.html").exists():
        pytest.skip("needs the site: make docs builds it")
    opened = Browser(program)
    yield opened
    opened.close()


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize(
    "page", ["index", "concepts", "migrating", "performance", "reference/configuration", "reference/api"]
)
def test_a_page_is_whole_and_asks_for_nothing_outside(browser, page: str, width: int):
    browser.open(SITE / f"{page}.html", width=width, scheme="dark" if width == 400 else "light", ready=LOADED)
    browser.wait_for("document.fonts.status === 'loaded'")
    assert browser.said == []
    assert [one for one in browser.asked_for if not one.startswith(("file:", "data:", "blob:"))] == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("[...document.images].every(one => one.naturalWidth > 0 && one.alt.length > 20)")


def test_formulas_are_drawn(browser):
    browser.open(SITE / "concepts.html", ready=LOADED)
    assert browser.evaluate("document.querySelectorAll('math').length") > 20
    assert browser.evaluate("[...document.querySelectorAll('math')].every(one => one.clientHeight > 0)")
    shown = browser.evaluate("document.querySelector('article').innerText")
    assert "\\frac" not in shown
    assert "$" not in shown


def test_search_works_without_a_server(browser):
    browser.open(SITE / "index.html", ready=LOADED)
    browser.wait_for("document.querySelector('.md-search-result__meta').innerText.length > 0")
    browser.evaluate("document.querySelector('.md-search__input').focus()")
    browser.write("temperature")
    browser.wait_for("document.querySelectorAll('.md-search-result__item').length > 2")
    assert browser.said == []
