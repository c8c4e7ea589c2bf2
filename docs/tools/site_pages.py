"""Which files of the repository are pages of the site, and the links between them. Imports nothing of others.

A link from a page to a file of the repository works on a code host. On the site the file becomes a page too:
README.md is the first one, a notebook is shown with its code, any other file as it is.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Fences and code within a line are no Markdown; else the target of a link or an image.
_CODE = re.compile(r"(^(?P<fence>```+|~~~+).*?^(?P=fence)\s*?$|(?P<tick>`+)[^`].*?(?P=tick))", re.M | re.S)
_TARGET = re.compile(r"\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".sh": "sh", ".toml": "toml"}


def name_page(path: str) -> str:
    """Where a file of the repository is on the site, seen from docs/.

    Examples
    --------
    >>> [name_page(path) for path in ("docs/faq.md", "README.md", "notebooks/1.ipynb", "conf/a.yaml")]
    ['faq.md', 'index.md', 'notebooks/1.md', 'repository/conf/a.yaml.md']
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path in ("README.md", "CHANGELOG.md"):
        return {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}[path]
    if path.endswith(".ipynb"):
        return path.removesuffix(".ipynb") + ".md"
    return path if path.endswith(".md") else f"repository/{path}.md"


def split_code(text: str) -> Iterator[tuple[str, bool]]:
    """The pieces of a Markdown text, and whether each is code."""
    at = 0
    for found in _CODE.finditer(text):
        yield text[at : found.start()], False
        yield found[0], True
        at = found.end()
    yield text[at:], False


def list_links(path: str, text: str) -> Iterator[tuple[str, str]]:
    """The files of the repository, and anchors, that the links of a page lead to; `path` is the page's."""
    for piece, is_code in split_code(text):
        for found in () if is_code else _TARGET.finditer(piece):
            target = posixpath.join(posixpath.dirname(path), found[1]) if found[1] else path
            yield posixpath.normpath(target), (found[2] or "").removeprefix("#")


def move_links(path: str, text: str) -> str:
    """The text of a page with its links as they are on the site."""
    start = posixpath.dirname(name_page(path)) or "."

    def move(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(path), found[1]))
        if not found[1] or not (ROOT / target).exists():
            return found[0]  # of the page itself; or mkdocs says that it is not there
        return f"]({posixpath.relpath(name_page(target), start)}{found[2] or ''})"

    return "".join(piece if is_code else _TARGET.sub(move, piece) for piece, is_code in split_code(text))


def show_notebook(path: Path) -> str:
    """A notebook as Markdown: its texts and its code. Notebooks of the repository hold no outputs."""
    pieces = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]).strip()
        if source:
            pieces.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    heading, _, rest = pieces[0].partition("\n")
    note = f"*The notebook `{path.relative_to(ROOT).as_posix()}`; run it to see what it prints and draws.*"
    return "\n\n".join([heading, note, rest.strip(), *pieces[1:]]) + "\n"


def show_file(path: Path) -> str:
    """Any file, or the files of a directory, as Markdown."""
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        parts = [f"# {name}\n"]
        for one in sorted(path.iterdir()):
            if one.is_file():
                parts.append(show_file(one).replace("# ", "## ", 1))
        return "\n".join(parts)
    text = path.read_text(encoding="utf-8")
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", text)), default=0))
    return f"# {name}\n\n{fence}{_LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n{fence}\n"


def read_page(path: str) -> str:
    """The Markdown of the page that a file of the repository becomes."""
    file = ROOT / path
    if file.suffix == ".md":
        return file.read_text(encoding="utf-8")
    return show_notebook(file) if file.suffix == ".ipynb" else show_file(file)


def find_pages(docs: list[str]) -> list[str]:
    """Files outside of docs/ that become pages, given the pages that are there: paths in the repository."""
    found = {"README.md", "CHANGELOG.md"}
    found |= {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")}
    waiting = [*docs, *found]
    while waiting:
        path = waiting.pop()
        for target, _ in list_links(path, read_page(path)):
            if not target.startswith((".", "docs/")) and target not in found and (ROOT / target).exists():
                found.add(target)
                waiting.append(target)
    return sorted(found)
