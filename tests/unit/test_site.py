"""The documentation: every page in its place, references as the program is, links that lead somewhere.

`make docs` builds the site, strictly; this needs nothing of mkdocs.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT

import spark_dbp

sys.path.insert(0, str(ROOT / "docs" / "tools"))
import site_pages
import write_reference

DOCS = ROOT / "docs"
PAGES = sorted(path.relative_to(ROOT).as_posix() for path in DOCS.rglob("*.md"))
WRITTEN = [*PAGES, "README.md", "CHANGELOG.md"]


class Loader(yaml.SafeLoader):
    """As YAML's, and leaves out the functions that mkdocs is given by name."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def list_nav(entry: object) -> list[str]:
    if isinstance(entry, str):
        return [entry]
    inner = entry.values() if isinstance(entry, dict) else entry
    return [page for one in inner for page in list_nav(one)]


def make_slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def list_anchors(path: str) -> set[str]:
    text = "".join("`" if is_code and "\n" in piece else piece for piece, is_code in split(path))
    return {make_slug(heading) for heading in re.findall(r"^#+ (.*)$", text, re.M)}


def split(path: str) -> list[tuple[str, bool]]:
    return list(site_pages.split_code(site_pages.read_page(path)))


def test_every_page_is_in_the_navigation_once():
    nav = list_nav(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    assert len(nav) == len(set(nav))
    missing = {site_pages.name_page(page) for page in PAGES} - set(nav)
    assert not missing, f"add to nav in mkdocs.yml: {sorted(missing)}"
    made = {site_pages.name_page(page) for page in site_pages.find_pages(PAGES)}
    gone = set(nav) - {site_pages.name_page(page) for page in PAGES} - made
    assert not gone, f"in nav of mkdocs.yml, but not there: {sorted(gone)}"
    assert {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")} <= set(nav)


@pytest.mark.parametrize("path", WRITTEN)
def test_links_lead_somewhere(path: str):
    for target, anchor in site_pages.list_links(path, site_pages.read_page(path)):
        assert (ROOT / target).exists(), target
        assert not target.startswith(".."), target
        if anchor and target.endswith(".md"):
            assert anchor in list_anchors(target), f"{target}#{anchor}"


@pytest.mark.parametrize("path", WRITTEN)
def test_pages_read_the_same_on_a_code_host_and_on_the_site(path: str):
    """Python-Markdown wants a blank line before a list, four spaces in it, and takes <X> for markup."""
    text, before = "".join("" if is_code and "\n" in piece else piece for piece, is_code in split(path)), ""
    in_list = False
    for line in text.splitlines():
        begins = re.match(r"([-*]|\d+\.) ", line)
        assert not (begins and before.strip() and not in_list), f"a blank line is missing before: {line}"
        assert not (begins and before.startswith("    ")), f"a blank line is missing before: {line}"
        assert not re.match(r" {1,3}(\||[-*] |\d+\. |```)", line), f"four spaces are needed before: {line}"
        if begins or (not line.startswith(" ") and not before.strip() and line.strip()):
            in_list = bool(begins)
        before = line
    prose = "".join(piece for piece, is_code in split(path) if not is_code)
    assert not re.search(r"<(?!!--)[A-Za-z]", prose)
    if path.startswith("docs/"):  # one first heading, which is the title
        assert len(re.findall(r"^# ", prose, re.M)) == 1
        assert text.startswith("# ")
    for alt in re.findall(r"!\[([^\]]*)\]", prose):
        assert len(alt) > 20, "pictures say in words what they show"


@pytest.mark.parametrize("place", write_reference.write_pages(), ids=lambda place: place.stem)
def test_references_are_current(place: Path):
    assert place.read_text() == write_reference.write_pages()[place], "make reference writes it anew"


def test_the_reference_has_every_key():
    page = (DOCS / "reference" / "configuration.md").read_text()
    keys = [name for name, _ in write_reference.list_fields(spark_dbp.RunConfig)]
    assert len(keys) > 80
    for key in keys:
        assert f"| `{key}` |" in page or f"# {key}\n" in page, key
    without = re.findall(r"^\| `([^`]+)` \|.*\|  \|$", page, re.M)
    assert set(without) <= {"score_filter.clip_score.image", "score_filter.clip_score.text"}, without


def test_the_reference_has_every_command_and_option():
    page = (DOCS / "reference" / "commands.md").read_text()
    commands = write_reference.list_commands(write_reference.find_parser())
    assert {"run", "select", "sweep", "explain", "doctor"} <= {name for name, _, _ in commands}
    for name, _, parser in commands:
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for action in write_reference.list_options(parser):
            for option in action.option_strings:
                assert option in section or option in page.split("\n## ")[0], (name, option)
    readme = (ROOT / "README.md").read_text()
    for name, _, _ in commands:
        assert re.search(rf"`(spark-dbp )?{name}\b", readme), f"README's table of commands lacks {name}"


def test_the_reference_has_every_public_name():
    listed = re.findall(r"^::: (\S+)$", (DOCS / "reference" / "api.md").read_text(), re.M)
    names = {name.rpartition(".")[2]: name for name in listed}
    assert len(names) == len(listed)
    assert set(spark_dbp.__all__) - set(names) <= {"__version__", "loaders"}
    assert set(spark_dbp.loaders.__all__) <= set(names)
    for name in set(spark_dbp.__all__) & set(names):
        home, _, _ = names[name].rpartition(".")
        assert getattr(importlib.import_module(home), name) is getattr(spark_dbp, name)
