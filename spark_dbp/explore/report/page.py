"""Put a report together: one HTML file that needs nothing else. Imports the standard library, `words` and
`clusters`.

Nothing of a run is ever markup. Texts of the page are escaped by `html.escape`; what scripts show is JSON
in which ``<``, ``>`` and ``&`` are written as ``\\u003c`` and so on, and they put it on the page as text.
The page's security policy names the digests of its scripts, so a browser runs no others, and loads nothing
from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from functools import cache
from html import escape
from importlib import resources
from typing import Any

from spark_dbp._version import __version__
from spark_dbp.explore.report.words import Step, write_share

# A page begins so: it may be written over by a later one.
MARK = "<!doctype html>\n<!-- spark-dbp report -->"
_SCRIPTS = ("d3.min.js", "plot.umd.min.js", "report.js")


@cache
def read_asset(name: str) -> str:
    """Text of a file that the page embeds."""
    return (resources.files("spark_dbp.explore.report") / "assets" / name).read_text(encoding="utf-8")


def write_json(value: Any) -> str:
    """JSON for a script element: no character of it can end that, or begin another.

    Examples
    --------
    >>> print(write_json({"key": "</script>"}))
    {"key":"\\u003c/script\\u003e"}
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode("utf-8", "replace").decode()  # halves of surrogate pairs


def fill_page(title: str, sections: list[tuple[str, str, str]], head: str, data: dict[str, Any]) -> bytes:
    """The whole file.

    Parameters
    ----------
    title : str
    sections : list of (str, str, str)
        Identifier, name in the navigation, and HTML.
    head : str
        HTML before the sections.
    data : dict
        What the scripts show.

    Returns
    -------
    bytes
    """
    scripts = [read_asset(name) for name in _SCRIPTS]
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
        f"script-src {allowed}"
    )
    links = "".join(f'<a href="#{name}">{escape(text)}</a>' for name, text, _ in sections)
    body = "\n".join(f'<section id="{name}">\n{content}\n</section>' for name, _, content in sections)
    licences = read_asset("LICENSES.txt").replace("--", "- -")
    code = "\n".join(f"<script>{text}</script>" for text in scripts)
    page = f"""{MARK}
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="spark-dbp {escape(__version__)}">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{read_asset("report.css")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>{head}</header>
<nav aria-label="Sections"><div>{links}</div></nav>
<main id="main">
<noscript><p class="note">This page draws its figures and tables with the script inside it. Scripts are
switched off here, so only the numbers above and in the text are shown.</p></noscript>
{body}
</main>
<footer><p>Written by spark-dbp {escape(__version__)}. Everything is in this file; it loads
nothing and sends nothing.</p></footer>
<script type="application/json" id="data">{write_json(data)}</script>
<!--
{licences}-->
{code}
</body>
</html>
"""
    return page.encode("utf-8", "replace")


def write_head(name: str, sentence: str, tiles: list[tuple[str, str, str]], notes: list[str]) -> str:
    """Title, one sentence, the numbers that matter, and what the page leaves out."""
    shown = "".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for label, value, more in tiles
    )
    listed = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    return (
        f'<p class="eyebrow">Density-based pruning</p><h1>{escape(name)}</h1>'
        f'<p class="lead">{escape(sentence)}</p><dl class="tiles">{shown}</dl>{listed}'
    )


def write_section(heading: str, title: str, text: str, content: str) -> str:
    """A heading, a line that says what one sees, a short explanation, and the figures."""
    return (
        f'<p class="eyebrow">{escape(heading)}</p><h2>{escape(title)}</h2>'
        f'<p class="text">{escape(text)}</p>{content}'
    )


def write_figure(name: str, caption: str, alt: str) -> str:
    """A place for a figure that the script draws. `alt` says what it shows to those who do not see it."""
    return (
        f"<figure><figcaption>{escape(caption)}</figcaption>"
        f'<div class="chart" id="chart-{name}" data-alt="{escape(alt)}"></div></figure>'
    )


def write_funnel(steps: list[Step], rows_in: int, kept: int) -> str:
    """The rows as bars, one below the other; without scripts."""
    rows = [_write_bar("Rows of the input", rows_in, 0, rows_in, rows_in)]
    for step in steps:
        rows.append(_write_bar(step.name, step.before - step.dropped, step.dropped, step.before, rows_in))
    rows.append(_write_bar("Kept", kept, 0, kept, rows_in, is_last=True))
    return (
        '<table class="funnel"><caption class="hidden">Rows that are left after each step</caption>'
        '<thead class="hidden">'
        "<tr><th>Step</th><th>Bar</th><th>Left out</th><th>Rows left</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def _write_bar(
    name: str, left: int, dropped: int, before: int, rows_in: int, *, is_last: bool = False
) -> str:
    widths = [100 * n / max(1, rows_in) for n in (left, dropped)]
    bars = f'<i class="{"kept" if is_last else "left"}" style="width:{widths[0]:.3f}%"></i>'
    bars += f'<i class="out" style="width:{widths[1]:.3f}%"></i>' if dropped else ""
    out = f"− {dropped:,} ({write_share(dropped, before)})" if dropped else ""
    return (
        f'<tr><th scope="row">{escape(name)}</th><td class="bar" aria-hidden="true">{bars}</td>'
        f'<td class="less">{escape(out)}</td><td class="number">{left:,}</td></tr>'
    )


def write_facts(facts: list[tuple[str, str]]) -> str:
    rows = "".join(f'<tr><th scope="row">{escape(a)}</th><td>{escape(b)}</td></tr>' for a, b in facts)
    return f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>'


def write_details(title: str, text: str) -> str:
    return f'<details><summary>{escape(title)}</summary><pre tabindex="0">{escape(text)}</pre></details>'
