"""Laws on the source itself: imports, first lines, doctests, what must not occur."""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

import spark_dbp

PACKAGE = ROOT / "spark_dbp"
MODULES = sorted(PACKAGE.rglob("*.py"))
IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]

# Modules that must work where pyspark is not installed: not even inside functions may they import it.
WITHOUT_PYSPARK = {
    "_version.py", "cleaning.py", "cli.py", "columns.py", "config.py", "demo.py", "errors.py", "files.py",
    "geometry.py", "lock.py", "progress.py", "runs.py", "settings.py", "store.py", "vectors.py",
    "keep/trie.py", "stages/lloyd.py", "stages/quota.py",
}  # fmt: skip
# The store and the command line know nothing of the mathematics; the mathematics knows nothing of them.
FORBIDDEN = {
    "store.py": {"spark_dbp.kernels.geometry", "spark_dbp.stages", "spark_dbp.pipeline", "numpy"},
    "cli.py": {"spark_dbp.kernels.geometry", "spark_dbp.stages", "numpy"},
    "geometry.py": {"spark_dbp", "pyarrow"},
    "stages/quota.py": {"spark_dbp.lake.store", "spark_dbp.pipeline", "pyarrow"},
}


def imports(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            for child in node.body:
                child.names = []  # types only: not imported when it runs
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.names:
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def top_level(tree: ast.Module) -> set[str]:
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imports(ast.Module(body=body, type_ignores=[]))


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_import_law(path: Path):
    name = str(path.relative_to(PACKAGE))
    tree = ast.parse(path.read_text())
    assert not any(found.split(".")[0] == "pyspark" for found in top_level(tree)), "pyspark at top level"
    if name in WITHOUT_PYSPARK:
        assert not any(found.split(".")[0] == "pyspark" for found in imports(tree))
    for forbidden in FORBIDDEN.get(name, set()):
        assert not any(f == forbidden or f.startswith(forbidden + ".") for f in top_level(tree))


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_first_lines_say_what_a_module_is_for_and_what_it_may_import(path: Path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert len(text) > 20
    if path.name not in ("_version.py", "__init__.py", "__main__.py"):
        assert re.search(r"\b[Ii]mport", text), "the docstring names what the module may import"


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_what_the_laws_forbid_does_not_occur(path: Path):
    tree = ast.parse(path.read_text())
    called = {
        node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    forbidden = {"rand", "randn", "monotonically_increasing_id", "sample", "toPandas", "parallelize", "avg"}
    if path.name != "compat.py":
        assert not called & forbidden
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert not attributes & {"rdd", "sparkContext", "_jvm", "_jdf", "_sc"}
    assert not any(name.split(".")[0] in ("pickle", "cloudpickle") for name in imports(tree))


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_every_error_says_what_mends_it(path: Path):
    errors = {"SparkDbpError", "ConfigError", "InputError", "InfeasibleError", "ConflictError"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in errors:
            has_mend = len(node.args) > 1 or any(keyword.arg == "mend" for keyword in node.keywords)
            assert has_mend, f"line {node.lineno}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__main__.py"], ids=str)
def test_examples_in_docstrings_run(path: Path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts).removesuffix(".__init__"))
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.failed == 0


def test_public_names_have_docstrings_and_exist():
    for name in spark_dbp.__all__:
        value = getattr(spark_dbp, name)
        if name != "__version__":
            assert value.__doc__, name
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = spark_dbp.no_such_name


def test_import_is_light():
    """`import spark_dbp` loads neither pyspark nor numpy nor pydantic."""
    code = (
        "import sys, spark_dbp; "
        "heavy = {'pyspark', 'numpy', 'pyarrow', 'pandas', 'pydantic', 'yaml'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_reading_side_works_without_pyspark(tmp_path: Path):
    """The solver, the configuration and the trie work where pyspark cannot be imported."""
    code = (
        "import sys; sys.modules['pyspark'] = None\n"
        "from spark_dbp import KeepTrie, RunConfig, open_run, solve_quotas\n"
        "print(solve_quotas([1.5], [1], [2], 2))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[2]"


def test_the_changelog_knows_the_version():
    assert f"## {spark_dbp.__version__}" in (ROOT / "CHANGELOG.md").read_text()
