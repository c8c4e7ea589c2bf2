"""Hooks of mkdocs: pages outside of docs/, formulas as MathML. Imports `site_pages`, mkdocs, latex2mathml."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_pages import find_pages, move_links, name_page, read_page

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
_sources: dict[str, str] = {}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie outside of docs/."""
    docs = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    _sources.clear()
    _sources.update({path.removeprefix("docs/"): path for path in docs})
    for path in find_pages(docs):
        uri = name_page(path)
        _sources[uri] = path
        files.append(File.generated(config, uri, content=read_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links between files of the repository into links between pages."""
    if page.file.src_uri == "index.md":  # it has no neighbours to list beside it
        page.meta["hide"] = ["navigation"]
    return move_links(_sources[page.file.src_uri], markdown)


def on_page_content(text: str, **_: Any) -> str:
    """Turn formulas into MathML, which browsers show by themselves."""

    def show(found: re.Match[str]) -> str:
        kind = "block" if found[1] == "div" else "inline"
        return str(convert(html.unescape(found[2]).strip(), display=kind))

    return _FORMULA.sub(show, text)
