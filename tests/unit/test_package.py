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

# The house: what each package, or module beside the packages, may import. Arrows go down only.
BASE = {"_version", "errors", "secrets", "columns"}
KERNELS, LAKE = BASE | {"kernels"}, BASE | {"lake"}
ENGINE = KERNELS | LAKE | {"engine"}
ENCODERS = KERNELS | {"lake", "config_base", "config_embed", "encoders"}
IO, LOADERS = ENGINE | {"io"}, LAKE | {"loaders"}
STAGES = IO | LOADERS | ENCODERS | {"config_input", "stages"}
CONFIG = LAKE | {
    "config",
    "config_base",
    "config_embed",
    "config_errors",
    "config_input",
    "config_report",
    "settings",
}
RUNS = CONFIG | ENGINE | LOADERS | {"hints", "run_plots", "runs"}
JOB = STAGES | IO | CONFIG | {"steps", "job"}
PIPELINE = JOB | {
    "build_embeddings",
    "build_samples",
    "build_score_filter",
    "builds",
    "embed_parts",
    "pipeline",
}
PUBLISHING = JOB | RUNS | {"publishing"}
RUNNER = PIPELINE | PUBLISHING | {"accounting", "opening", "runner"}
MAY_IMPORT = {
    "_version": set(),
    "secrets": set(),
    "errors": {"secrets"},
    "columns": {"errors"},
    "kernels": KERNELS,
    "lake": LAKE,
    "engine": ENGINE,
    "io": IO,
    "encoders": ENCODERS,
    "loaders": LOADERS,
    "stages": STAGES,
    "settings": LAKE,
    "config_errors": set(),
    "config_base": LAKE,
    "config_embed": {"config_base", "config_errors", "errors"},
    "config_input": LAKE | {"config_base", "config_errors"},
    "config_report": {"config_base"},
    "config": CONFIG - {"config"},
    "steps": set(),
    "hints": set(),
    "run_plots": {"explore"},  # the one door up, in functions: methods of a run
    "runs": RUNS - {"runs"},
    "job": JOB - {"job"},
    "build_samples": JOB,
    "embed_parts": JOB,
    "build_embeddings": JOB | {"build_samples", "embed_parts"},
    "build_score_filter": JOB | {"build_samples"},
    "builds": JOB | {"build_samples"},
    "accounting": JOB | RUNS,
    "publishing": PUBLISHING - {"publishing"},
    "pipeline": PIPELINE - {"pipeline"},
    "opening": PIPELINE,
    "runner": RUNNER - {"runner"},
    "explore": PIPELINE | RUNS | {"explore", "opening"},
    "demo_data": LAKE,
    "demo": CONFIG | {"demo_data", "encoders"},
    "exchange": STAGES | RUNS | {"explore", "exchange"},
    "commands": RUNNER | {"explore", "exchange", "demo", "commands"},
    "cli": BASE | {"lake", "engine", "commands"},
    "__main__": {"cli"},
    "__init__": RUNNER | {"explore", "exchange"},
}
# What must work where pyspark is not installed: not even inside functions may it be imported there, but in the
# one module of `lake` that digests DataFrames.
WITHOUT_PYSPARK = BASE | {
    "kernels",
    "lake",
    "loaders",
    "encoders",
    "config",
    "config_base",
    "config_embed",
    "config_errors",
    "config_input",
    "config_report",
    "settings",
    "steps",
    "hints",
    "run_plots",
    "runs",
    "demo_data",
    "demo",
    "commands",
    "cli",
}
WITH_PYSPARK = {"lake/digest.py"}
# Its classes are torch's. Whoever imports it has torch.
NEEDS_TORCH = {"loaders/torch.py"}
MOST_LINES = 450


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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


def ours(tree: ast.AST) -> set[str]:
    """Packages, and modules beside them, of spark_dbp that a module imports, also inside functions."""
    found = (name.split(".") for name in imports(tree) if name.startswith("spark_dbp."))
    return {parts[1] for parts in found if parts[1] in MAY_IMPORT}


def test_every_module_has_a_place_in_the_house():
    assert {place_of(path) for path in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_import_law(path: Path):
    tree, place = ast.parse(path.read_text()), place_of(path)
    assert not any(found.split(".")[0] == "pyspark" for found in top_level(tree)), "pyspark at top level"
    if place in WITHOUT_PYSPARK and str(path.relative_to(PACKAGE)) not in WITH_PYSPARK:
        assert not any(found.split(".")[0] == "pyspark" for found in imports(tree))
    assert ours(tree) <= MAY_IMPORT[place], "an arrow that does not go down"


def test_the_import_law_sees_what_it_forbids():
    """Also inside a function, and a package named as such; not what is for types only."""
    code = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from spark_dbp.pipeline import run
def late():
    from spark_dbp import stages
    import spark_dbp.job
"""
    assert ours(ast.parse(code)) == {"stages", "job"}


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_no_file_is_long(path: Path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_the_door_up_is_in_functions_only():
    tree = ast.parse((PACKAGE / "run_plots.py").read_text())
    assert not any(name.startswith("spark_dbp") for name in top_level(tree))


def test_stages_have_one_entry_point_each():
    """Of a stage's module, `spark_dbp` shows its function, or its model."""
    shown = set(spark_dbp._HOME.values())
    modules = {path.stem for path in (PACKAGE / "stages").glob("[a-z]*.py")}
    assert {name.removeprefix("stages.") for name in shown if name.startswith("stages.")} == modules


def functions_below_the_runner() -> list[tuple[str, set[str]]]:
    """Name and parameters of every function, but those of `runner`."""
    return [
        (
            f"{path.relative_to(PACKAGE)}:{node.name}",
            {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)},
        )
        for path in MODULES
        if place_of(path) != "runner"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    ]


def test_only_the_job_holds_session_and_configuration_together():
    functions = functions_below_the_runner()
    assert len(functions) > 200
    held = {
        name
        for name, parameters in functions
        if parameters & {"spark", "session", "directory", "store"} and "config" in parameters
    }
    # The public function gives them to a Job at once.
    assert held == {"job.py:__init__", "explore/plan/make.py:plan"}


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
    of_the_jvm = {"rdd", "sparkContext", "_jvm", "_jdf", "_sc", "_jsparkSession", "_gateway"}
    if path == PACKAGE / "engine" / "hadoop.py":  # the one module that may reach into the JVM
        assert attributes & of_the_jvm == {"_jvm", "_jsparkSession", "_gateway", "sparkContext"}
    else:
        assert not attributes & of_the_jvm
    pickles = [name for name in imports(tree) if name.split(".")[0] in ("pickle", "cloudpickle")]
    if (
        path == PACKAGE / "exchange" / "pygtrie_file.py"
    ):  # others read its file; it may write a pickle, not read one
        assert pickles == ["pickle"]
        used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        of_pickle = {node.attr for node in used if getattr(node.value, "id", "") == "pickle"}
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == "pickle"]
        assert of_pickle == {"dump"}
        assert len(names) == 1  # it is not handed on
    else:
        assert not pickles


@pytest.mark.parametrize("path", MODULES, ids=IDS)
def test_every_error_says_what_mends_it(path: Path):
    errors = {"SparkDbpError", "ConfigError", "InputError", "InfeasibleError", "ConflictError"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in errors:
            has_mend = len(node.args) > 1 or any(keyword.arg == "mend" for keyword in node.keywords)
            assert has_mend, f"line {node.lineno}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__main__.py"], ids=str)
def test_examples_in_docstrings_run(path: Path):
    if str(path.relative_to(PACKAGE)) in NEEDS_TORCH:
        pytest.importorskip("torch")
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
