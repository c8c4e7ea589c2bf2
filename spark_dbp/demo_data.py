"""Real data that is on every machine, for the demos. Imports `files` and `errors`.

Pictures: scikit-learn's handwritten digits, as the shards of a WebDataset. Texts: what the standard library
and some packages say of their functions and classes; their source is read and never imported. scikit-learn,
pillow and pyarrow are imported in functions.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import io
import json
import sysconfig
import tarfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files, parquet_files

N_PICTURES = 600
N_SHARDS = 3
_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

TEXTS_A_PACKAGE = 300
_LEAST_WORDS = 4
# What texts are taken from, and where it is not the name of the module, the module.
PACKAGES = {"numpy": "numpy", "pandas": "pandas", "pyspark": "pyspark", "scikit-learn": "sklearn"}
STANDARD_LIBRARY = "python"
# Directories of tests, and of other packages inside these.
_PASSED_OVER = {
    "test", "tests", "testing", "site-packages", "dist-packages", "externals", "_vendor", "lib2to3",
}  # fmt: skip


def load_digits() -> Any:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, with labels.

    Raises
    ------
    SparkDbpError
        scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SparkDbpError(
            f"the demo's data is not installed: {error}", mend="pip install 'spark-dbp[local]'"
        ) from error
    return load_digits()


def write_digit_shards(directory: str) -> list[str]:
    """Write handwritten digits as the shards of a WebDataset: PNG, caption and json with the label.

    Parameters
    ----------
    directory : str
        Shards that are there already stay as they are.

    Returns
    -------
    list of str
        Paths of the shards.
    """
    paths = [files.join(files.normalize(directory), f"{number:05d}.tar") for number in range(N_SHARDS)]
    if not all(files.exists(path) for path in paths):
        digits = load_digits()
        a_shard = N_PICTURES // N_SHARDS
        for shard, path in enumerate(paths):
            if not files.exists(path):
                numbers = range(shard * a_shard, (shard + 1) * a_shard)
                files.write_bytes(path, _pack_digits(digits, numbers))
    return paths


def _pack_digits(digits: Any, numbers: range) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        for number in numbers:
            label = int(digits.target[number])
            members = {
                "png": _draw_digit(digits.images[number]),
                "txt": f"a handwritten {_NAMES[label]}".encode(),
                "json": json.dumps({"label": label}).encode(),
            }
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _draw_digit(pixels: Any) -> bytes:
    """Dark on white, larger and with a margin: nearer to what models for pictures were trained with."""
    from PIL import Image, ImageOps

    small = Image.fromarray((255 - pixels * (255 / 16)).round().astype("uint8"))
    picture = ImageOps.expand(small.resize((64, 64), Image.Resampling.BICUBIC), border=16, fill=255)
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


def read_digit_labels() -> dict[str, str]:
    """The digit that each picture of `write_digit_shards` shows, by key."""
    return {f"{number:06d}": str(label) for number, label in enumerate(load_digits().target[:N_PICTURES])}


def write_docstrings(directory: str) -> str:
    """Write first lines of docstrings as a Parquet table.

    Parameters
    ----------
    directory : str

    Returns
    -------
    str
        Path of the table (``key``: dotted name, ``text``, ``package``); one that is there already stays.
    """
    import pyarrow as pa

    path = files.join(files.normalize(directory), "docstrings")
    if not files.exists(path):
        rows = [(*row, package) for package in (*PACKAGES, STANDARD_LIBRARY) for row in choose_texts(package)]
        columns = zip(*sorted(rows), strict=True)
        parquet_files.write_parquet(
            path, pa.table(dict(zip(("key", "text", "package"), map(list, columns), strict=True)))
        )
    return path


def read_packages(directory: str) -> dict[str, str]:
    """The package that each text of `write_docstrings` is of, by key."""
    table = parquet_files.read_parquet(files.join(files.normalize(directory), "docstrings"))
    return dict(zip(table.column("key").to_pylist(), table.column("package").to_pylist(), strict=True))


def choose_texts(package: str) -> list[tuple[str, str]]:
    """Names and texts of a package, no text twice: those whose names have the lowest hashes.

    Parameters
    ----------
    package : str
        One of `PACKAGES`, or `STANDARD_LIBRARY`. None are found where it is not installed.
    """
    if package == STANDARD_LIBRARY:
        root, prefix = Path(sysconfig.get_path("stdlib")), ""
    else:
        spec = importlib.util.find_spec(PACKAGES[package])
        if spec is None or spec.origin is None:
            return []
        root, prefix = Path(spec.origin).parent, PACKAGES[package]
    chosen: dict[str, str] = {}
    found = dict(_find_docstrings(root, prefix))
    for name in sorted(found, key=lambda name: hashlib.sha256(name.encode()).digest()):
        chosen.setdefault(found[name], name)
        if len(chosen) == TEXTS_A_PACKAGE:
            break
    return [(name, text) for text, name in chosen.items()]


def _find_docstrings(root: Path, prefix: str) -> Iterator[tuple[str, str]]:
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _PASSED_OVER.isdisjoint(parts):
            continue
        try:
            with warnings.catch_warnings():  # of escapes in old source
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
        module = ".".join(filter(None, [prefix, *(part for part in parts if part != "__init__")]))
        for name, text in list_first_lines(tree):
            yield (f"{module}.{name}" if module else name), text


def list_first_lines(tree: ast.Module) -> list[tuple[str, str]]:
    """Names of a module's public functions and classes, and first lines of what their docstrings say.

    Examples
    --------
    >>> source = '''
    ... def add(a, b):
    ...     "Add two numbers of any type."
    ... def short():
    ...     "Not enough words."
    ... def _hidden():
    ...     "For use in this module."
    ... '''
    >>> list_first_lines(ast.parse(source))
    [('add', 'Add two numbers of any type.')]
    """
    found = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            first, *_ = (ast.get_docstring(node) or "").strip().split("\n")
            if len(first.split()) >= _LEAST_WORDS:
                found.append((node.name, first.strip()))
    return found
