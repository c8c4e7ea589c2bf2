"""Reports in headless Chromium (`make test-browser`): nothing from outside, no errors, sorting, searching, keyboard,
narrow windows, colours; what is evil in a run stays text.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_runs import make_rows, make_run

from spark_dbp import write_report

pytestmark = pytest.mark.browser

EVIL = "</script><script>window.hit=1</script><img src=x onerror=window.hit=2><b>\u2028'\"&amp;"
DARK, LIGHT, WIDE, NARROW = "dark", "light", 1280, 400


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    from chromium import Browser

    program = os.environ.get("SPARK_DBP_CHROMIUM") or shutil.which("chromium")
    if program is None:
        pytest.skip("needs Chromium: make test-browser fetches it")
    opened = Browser(program)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A plain run; one whose keys, captions, columns and reasons are evil, with images; one of many clusters."""
    folder = tmp_path_factory.mktemp("pages")
    keys, cluster, distances = make_rows(4000, 60)
    duplicates = pa.table({
        "key": [f"copy {i}" for i in range(300)], "duplicate_of": keys[:300],
        "method": ["exact"] * 100 + ["minhash"] * 100 + ["semantic"] * 100,
        "similarity": pa.array(np.concatenate([np.ones(100), np.linspace(0.8, 1, 100), np.linspace(0.95, 1, 100)]), pa.float32()),
    })  # fmt: skip
    dedup = {
        "exact": {"columns": ["a"]},
        "minhash": {"column": "b"},
        "semantic": {"eps": 0.05, "n_clusters": 2},
    }
    dropped = {
        "input.filter": 321,
        "exact duplicates": 100,
        "minhash duplicates": 100,
        "semantic duplicates": 100,
    }
    made = {
        "plain": make_run(
            folder / "plain", keys, cluster, distances, duplicates=duplicates, dropped=dropped, dedup=dedup,
            prune={"temperature": 0.01},
        ),
        "evil": make_run(
            folder / "evil", [f"{key}{EVIL}" for key in keys], cluster, distances, dropped={EVIL: 9},
            input={"path": "x", "key": EVIL}, duplicates=duplicates.set_column(0, "key", pa.array([EVIL + str(i) for i in range(300)])),
            dedup=dedup,
        ),
        "many": make_run(folder / "many", *make_rows(20_000, 5000)),
        "one": make_run(folder / "one", *make_rows(200, 1)),
        "random": make_run(folder / "random", *make_rows(900, 9), prune={"which_to_keep": "random", "complexity": "uniform"}),
    }  # fmt: skip
    found = {name: folder / f"{name}.html" for name in made}
    for name, run in made.items():
        write_report(run, found[name])
    found["images"] = add_images(made["evil"], folder / "images.html")
    return found


def add_images(run, out: Path) -> Path:
    """The same page with a picture and a caption for each row, as if the input had them."""
    import io

    from PIL import Image

    from spark_dbp.explore.report import write
    from spark_dbp.explore.report.lookup import Found, Wanted, shrink_image

    sink = io.BytesIO()
    Image.effect_noise((64, 48), 60).convert("RGB").save(sink, "PNG")
    small = shrink_image(sink.getvalue())

    def look_up(_run, _wanted, _spark, keys, _type):
        texts = keys.to_pylist()
        captions = dict.fromkeys(texts, f"caption {EVIL}")
        return Found(True, True, dict.fromkeys(texts[::2], small), captions)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "look_up", look_up)
        patch.setattr(write, "find_wanted", lambda _: Wanted("image", "caption", False))
        write.write_report(run, out, spark=object())
    return out


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("name", ["plain", "evil", "images", "many", "one", "random"])
def test_it_is_drawn_without_errors_from_the_file_alone(browser, pages, name, width, scheme):
    browser.open(pages[name], width, scheme=scheme)
    assert browser.said == []
    assert [url for url in browser.asked_for if not url.startswith("data:")] == [pages[name].as_uri()]
    assert browser.evaluate("window.hit") is None
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("document.querySelectorAll('.chart svg').length") >= 5
    empty = "[...document.querySelectorAll('.chart')].filter(one => one.offsetWidth && !one.querySelector('svg')).map(one => one.id)"
    assert browser.evaluate(empty) == []
    folder = os.environ.get("SPARK_DBP_PICTURES")  # to look at them
    if folder:
        browser.take_picture(Path(folder) / f"{name}-{width}-{scheme}.png", whole=True)


def column(browser, number: int) -> list[str]:
    return browser.evaluate(
        f"[...document.querySelectorAll('#table tbody tr')].map(line => line.cells[{number}].innerText.trim())"
    )


def test_a_click_sorts_the_table(browser, pages):
    browser.open(pages["plain"])
    for number, name in ((1, "rows"), (6, "complexity")):
        browser.click(f"#table thead th:nth-child({number + 1}) button")
        if name == "complexity":  # it was sorted by this one, falling
            browser.click(f"#table thead th:nth-child({number + 1}) button")
        for wanted in ("descending", "ascending"):
            head = f"document.querySelector('#table thead th:nth-child({number + 1})')"
            order = browser.evaluate(f"{head}.getAttribute('aria-sort')")
            values = [float(text.replace(",", "")) for text in column(browser, number)]
            assert values == sorted(values, reverse=order == "descending")
            assert order in (wanted, "ascending", "descending")
            browser.click(f"#table thead th:nth-child({number + 1}) button")
    assert browser.evaluate("document.querySelectorAll('#table thead [aria-sort]').length") == 1


def test_a_cluster_is_searched_and_looked_into(browser, pages):
    browser.open(pages["plain"])
    browser.click("#search")
    browser.write("37")
    assert column(browser, 0)[0] == "37"
    assert "found" in browser.evaluate("document.getElementById('found').innerText")
    browser.click("#table tbody tr td:nth-child(2)")
    assert browser.evaluate("document.querySelector('#cluster h3').innerText") == "Cluster 37"
    key = browser.evaluate("document.querySelector('#cluster .k').innerText")
    browser.evaluate("document.getElementById('search').value = ''")
    browser.click("#search")
    browser.write(key)
    assert "37" in column(browser, 0)
    browser.write("no such key")
    assert column(browser, 0) == []
    assert browser.evaluate("document.getElementById('found').innerText") == "0 clusters found"


def test_more_rows_are_shown_on_demand(browser, pages):
    browser.open(pages["plain"])
    assert len(column(browser, 0)) == 25
    browser.click("#more")
    assert len(column(browser, 0)) == 60
    assert browser.evaluate("document.getElementById('more').hidden") is True


def test_everything_works_by_keyboard(browser, pages):
    browser.open(pages["plain"])
    browser.press("Tab", 9)
    assert browser.evaluate("document.activeElement.className") == "skip"
    browser.evaluate("document.querySelector('#table thead th:nth-child(2) button').focus()")
    browser.press("Enter", 13, "\r")
    assert (
        browser.evaluate("document.querySelector('#table thead th:nth-child(2)').getAttribute('aria-sort')")
        == "descending"
    )
    browser.evaluate("document.querySelector('#table tbody button').focus()")
    number = column(browser, 0)[0]
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.querySelector('#cluster h3').innerText") == f"Cluster {number}"
    before = browser.evaluate("document.getElementById('which').value")
    browser.evaluate("document.getElementById('after').focus()")
    browser.press("Enter", 13, "\r")
    assert browser.evaluate("document.getElementById('which').value") != before


def test_hovering_tells_and_a_click_on_a_point_chooses(browser, pages):
    browser.open(pages["plain"], height=1000)
    browser.evaluate(
        "document.getElementById('chart-complexity').scrollIntoView({block: 'center', behavior: 'instant'})"
    )
    x, y = browser.evaluate(
        "(() => { const all = document.querySelectorAll('#chart-complexity svg g[aria-label=dot] circle'); "
        "const box = all[7].getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2] })()"
    )
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    browser.wait_for("document.querySelectorAll('#chart-complexity g[aria-label=tip] text').length > 0")
    told = browser.evaluate("document.querySelector('#chart-complexity g[aria-label=tip] text').textContent")
    told = told.replace("\u200b", "")  # Plot parts lines by these
    assert told.startswith("Cluster ")
    assert "kept" in told
    browser.click_at(x, y)
    browser.wait_for("document.querySelector('#cluster h3').innerText.length > 8")
    chosen = browser.evaluate("document.querySelector('#cluster h3').innerText")
    assert told.startswith(chosen)
    assert browser.said == []


def test_what_is_evil_is_shown_as_text(browser, pages):
    browser.open(pages["images"])
    shown = browser.evaluate("document.querySelector('#cluster .c').textContent")
    assert shown == f"caption {EVIL}".replace("\u2028", " ") or shown == f"caption {EVIL}"
    assert (
        browser.evaluate(
            "document.querySelectorAll('main script, main b.evil, main section img:not([src^=\"data:\"])').length"
        )
        == 0
    )
    assert EVIL.split("\u2028")[0] in browser.evaluate("document.body.innerText")
    assert browser.evaluate("window.hit") is None


def test_images_have_alternatives(browser, pages):
    browser.open(pages["images"])
    assert browser.evaluate("[...document.images].every(one => one.alt.length > 3)")
    browser.wait_for("[...document.images].every(one => one.naturalWidth > 0)")
    assert browser.evaluate("document.querySelectorAll('.thumb[role=img][aria-label]').length") > 0
    assert browser.evaluate(
        "[...document.querySelectorAll('.chart svg')].every(one => (one.getAttribute('aria-label') || '').length > 10)"
    )


CONTRAST = """(() => {
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length === 3 ? [...n, 1] : n; };
  const light = ([r, g, b]) => { const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
  const behind = node => { for (let one = node; one; one = one.parentElement) {
    const color = parse(getComputedStyle(one).backgroundColor); if (color[3] > 0.99) return color; } return [255, 255, 255, 1]; };
  const bad = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const node = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || node.closest('script, style, noscript, .skip, option, optgroup') || !node.getClientRects().length) continue;
    const style = getComputedStyle(node), color = node.closest('svg') && style.fill !== 'none' ? style.fill : style.color;
    const [a, b] = [light(parse(color)), light(behind(node))].sort((x, y) => y - x), ratio = (a + 0.05) / (b + 0.05);
    const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) bad.push(`${walk.currentNode.data.trim().slice(0, 30)}: ${ratio.toFixed(2)}`);
  }
  return bad;
})()"""


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
@pytest.mark.parametrize("name", ["plain", "images", "many"])
def test_text_has_enough_contrast(browser, pages, name, scheme):
    """4.5 to 1, and 3 to 1 for large text (WCAG 2, AA)."""
    browser.open(pages[name], scheme=scheme)
    assert browser.evaluate(CONTRAST) == []


def test_a_change_of_colours_and_width_is_followed(browser, pages):
    browser.open(pages["plain"], WIDE, scheme=LIGHT)
    color = "document.querySelector('#chart-complexity g[aria-label=dot] circle').getAttribute('fill')"
    before = browser.evaluate(color)
    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": DARK}])
    browser.wait_for(f"{color} !== {before!r}")
    browser.resize(NARROW, 900)
    browser.wait_for("document.querySelector('#chart-complexity svg').getBoundingClientRect().width < 380")
    assert browser.evaluate("document.documentElement.scrollWidth") <= NARROW
    assert browser.said == []
