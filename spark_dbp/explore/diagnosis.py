"""Judge what the driver and the workers say of themselves: what is missing, what does not go together.

Imports `workers`, `compat`, `spark_errors` and `errors`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from spark_dbp.engine.compat import list_supported_java
from spark_dbp.engine.spark_errors import read_first_line
from spark_dbp.errors import SparkDbpError
from spark_dbp.explore.workers import WorkerReport

Status = Literal["ok", "warning", "problem"]

# Module to the distribution that has it. A job cannot run without `BOTH` and, on the driver, `DRIVER`.
BOTH = {"numpy": "numpy", "pyarrow": "pyarrow", "marisa_trie": "marisa-trie"}
DRIVER = {"pydantic": "pydantic", "yaml": "pyyaml"}
DEDUP = {"datasketch": "datasketch", "scipy": "scipy"}
SHOWN = {"pandas": "pandas", "spark_dbp": "spark-dbp"}
_OLDEST, _NEWEST = (3, 5), (4, 3)
_SET_PYTHON = "set PYSPARK_PYTHON, or spark.pyspark.python, to a Python"
# A task needs about this much (docs/reliability.md).
_TASK_MEMORY = 1 << 30
_TASK_SPACE = 1 << 30


@dataclass(frozen=True)
class Finding:
    """What the doctor found.

    Attributes
    ----------
    about : str
        What was looked at: ``java``, ``spark``, ``python``, ``packages``, ``memory`` ...
    status : {"ok", "warning", "problem"}
        With a problem, a job could not run.
    what : str
        What was found, and where.
    mend : str
        What would mend it; empty when nothing needs to.
    """

    about: str
    status: Status
    what: str
    mend: str = ""


def take_error(about: str, error: SparkDbpError) -> Finding:
    """One of our errors as a problem."""
    return Finding(about, "problem", error.what, error.mend)


def check_spark(server: str, client: str) -> Iterator[Finding]:
    """Whether this version of Spark, and of the pyspark that talks to it, is one of those that were tried."""
    mend = "use Spark 3.5 to 4.3"
    if not _OLDEST <= _read_version(server)[:2] <= _NEWEST:
        yield Finding("spark", "warning", f"Spark {server} was never tried", mend)
    elif _read_version(server)[:2] != _read_version(client)[:2]:
        what = f"Spark {server}, and pyspark {client} on the driver"
        yield Finding("spark", "warning", what, f"install pyspark {'.'.join(server.split('.')[:2])}.*")
    else:
        yield Finding("spark", "ok", f"Spark {server}")


def check_driver_packages(packages: Mapping[str, str], needed: Mapping[str, str]) -> Iterator[Finding]:
    """Whether the driver has what it needs, in versions that go together."""
    yield from _find_missing("the driver", packages, {**needed, **DRIVER})
    pyspark, pandas, numpy = (_read_version(packages[name]) for name in ("pyspark", "pandas", "numpy"))
    # pyspark's own requirements leave these open.
    if pyspark < (4,) and numpy >= (2,):
        what = f"numpy {packages['numpy']} with pyspark {packages['pyspark']}, which was made for numpy 1"
        yield Finding("packages", "warning", what, "pip install 'numpy<2'")
    if pandas >= (3,):
        what = f"pandas {packages['pandas']} with pyspark {packages['pyspark']}, which was made for pandas 2"
        yield Finding("packages", "warning", what, "pip install 'pandas<3'")


def explain_failed_task(error: Exception) -> Finding:
    """Why a task that only looks around has failed."""
    text = str(error.__cause__ or error)
    if re.search(r"PYTHON_VERSION_MISMATCH|different version.*than that in driver", text):
        found = re.findall(r"\b(3[., ]+\d+)\b", text)
        shown = f": {found[0].replace(', ', '.')} and {found[1].replace(', ', '.')}" if len(found) > 1 else ""
        return Finding(
            "python",
            "problem",
            f"driver and workers have different versions of Python{shown}",
            f"{_SET_PYTHON} of the driver's version, or send one along "
            "(spark-submit --archives env.tar.gz#environment)",
        )
    module = re.search(r"No module named '([\w.]+)'", text)
    module = module or re.search(r"(\w+) >= [\d.]+ must be installed", text)
    if module:
        name = module[1].lower()
        return Finding(
            "packages",
            "problem",
            f"{name} is missing on workers, or on the driver",
            f"install {name} on driver and workers, or send an environment along "
            "(spark-submit --archives env.tar.gz#environment)",
        )
    started = re.search(r'Cannot run program "([^"]+)"', text)
    if started:
        return Finding(
            "python",
            "problem",
            f"workers cannot start Python as {started[1]}",
            f"{_SET_PYTHON} that every worker has",
        )
    if isinstance(error, SparkDbpError):
        return take_error("workers", error)
    what = f"a task failed: {read_first_line(error)}"
    return Finding("workers", "problem", what, "run with --debug for the whole trace")


def check_workers(
    driver: Mapping[str, Any], asked: list[WorkerReport], needed: Mapping[str, str]
) -> Iterator[Finding]:
    """Whether workers have what a job needs, and agree with the driver where they must.

    Parameters
    ----------
    driver : mapping
        What `look_around` says of the driver.
    asked : list of WorkerReport
    needed : mapping of str to str
        Modules that workers need, and their distributions.
    """
    hosts = sorted({report.host for report in asked})
    shown = ", ".join(hosts[:5]) + (f" and {len(hosts) - 5} more" if len(hosts) > 5 else "")
    yield Finding("workers", "ok", f"{len(asked)} tasks run at once on {shown}")
    yield from _check_java({report.java for report in asked})
    yield from _check_python(driver, asked)
    for report in _one_each(asked, lambda report: report.packages):
        where = f"workers on {report.host}"
        yield from _find_missing(where, report.packages, {**needed, "spark_dbp": "spark-dbp"})
        yield from _compare_packages(driver["packages"], report.packages, where)
    ours = driver["packages"]
    versions = ", ".join(f"{name} {ours[name]}" for name in (*needed, *SHOWN) if not _is_missing(ours[name]))
    yield Finding("packages", "ok", f"on the driver: {versions}")
    yield from _check_memory(asked)
    yield from _check_space(driver, asked)


def _check_java(versions: set[str]) -> Iterator[Finding]:
    supported = list_supported_java()
    for version in sorted(versions):
        number = _read_version(version)
        if number[:1] == (25,) and number < (25, 0, 3):
            what = f"Java {version} may corrupt data with its garbage collector G1 (JDK-8377811)"
            yield Finding("java", "problem", what, "use Java 25.0.3 or later, 17 or 21")
        elif version and number[0] not in supported:
            what = f"Java {version} runs the executors, which was never tried with this Spark"
            yield Finding("java", "warning", what, f"use Java {' or '.join(map(str, supported))}")
        else:
            yield Finding("java", "ok", f"Java {version or '(version not shown)'} on the executors")


def _check_python(driver: Mapping[str, Any], asked: list[WorkerReport]) -> Iterator[Finding]:
    ours = _read_version(driver["python"])[:2]
    others = [report for report in asked if _read_version(report.python)[:2] != ours]
    for report in _one_each(others, lambda report: report.python):
        yield Finding(
            "python",
            "problem",
            f"Python {driver['python']} on the driver, {report.python} on {report.host}: {report.executable}",
            f"{_SET_PYTHON} of the driver's version",
        )
    if not others:
        executables = sorted({report.executable for report in asked})
        yield Finding("python", "ok", f"Python {driver['python']} on driver and workers ({executables[0]})")


def _compare_packages(ours: Mapping[str, str], theirs: Mapping[str, str], where: str) -> Iterator[Finding]:
    for name, version in theirs.items():
        if _is_missing(version) or _is_missing(ours[name]) or version == ours[name]:
            continue
        if name == "spark_dbp":
            yield Finding(
                "packages",
                "problem",
                f"spark_dbp {ours[name]} on the driver and {version} on {where}",
                "install the same version on both, or send the wheel along (spark-submit --py-files)",
            )
        elif _read_version(version)[:1] != _read_version(ours[name])[:1]:
            # Only numpy computes what must be equal on both.
            yield Finding(
                "packages",
                "problem" if name == "numpy" else "warning",
                f"{name} {ours[name]} on the driver and {version} on {where}",
                f"install {name} {ours[name]} on both",
            )


def _find_missing(where: str, packages: Mapping[str, str], needed: Mapping[str, str]) -> Iterator[Finding]:
    for module, distribution in needed.items():
        if _is_missing(packages[module]):
            mend = f"install {distribution} there"
            if module in DEDUP:
                mend = "install spark-dbp[dedup] there"
            elif module == "spark_dbp":
                mend = "install it there, or send the wheel along (spark-submit --py-files spark_dbp-....whl)"
            reason = packages[module].removeprefix("missing: ")
            yield Finding("packages", "problem", f"{where} cannot import {module}: {reason}", mend)


def _check_memory(asked: list[WorkerReport]) -> Iterator[Finding]:
    knowing = [report for report in asked if report.memory]
    if not knowing:
        yield Finding("memory", "ok", "no limit of a worker's memory is known")
        return

    def share(report: WorkerReport) -> int:
        """A limit of the process is one task's; those of a container or a machine are shared by its tasks."""
        alone = report.memory_of.startswith("the process")
        return (report.memory or 0) // (1 if alone else sum(other.host == report.host for other in asked))

    least = min(knowing, key=share)
    what = f"a task may take {share(least) / 2**30:.1f} GB (of {least.memory_of} on {least.host})"
    if share(least) < _TASK_MEMORY:
        yield Finding(
            "memory",
            "warning",
            f"{what}, and may need 1 GB",
            "raise spark.executor.pyspark.memory or .memoryOverhead, or lower spark.executor.cores",
        )
    else:
        yield Finding("memory", "ok", what)


def _check_space(driver: Mapping[str, Any], asked: list[WorkerReport]) -> Iterator[Finding]:
    places = [("the driver", *item) for item in driver["free"].items()]
    places += [(report.host, *item) for report in asked for item in report.free.items()]
    where, folder, free = min(places, key=lambda place: place[2])
    mend = "make room there, or name another disk (TMPDIR for Python, spark.local.dir for Spark)"
    if free < 0:
        yield Finding("space", "problem", f"temporary files cannot be written to {folder} on {where}", mend)
        return
    what = f"{free / 2**30:.1f} GB free for temporary files in {folder} on {where}"
    if free < _TASK_SPACE:
        yield Finding("space", "warning", what, mend)
    else:
        yield Finding("space", "ok", f"{what}, the least of all")


def _one_each(
    reports: Iterable[WorkerReport], of: Callable[[WorkerReport], object]
) -> Iterator[WorkerReport]:
    """Of reports that say the same, the first."""
    seen: list[object] = []
    for report in reports:
        if of(report) not in seen:
            seen.append(of(report))
            yield report


def _is_missing(version: str) -> bool:
    return version.startswith("missing: ")


def _read_version(text: str) -> tuple[int, ...]:
    """Numbers of a version, as far as they go.

    Examples
    --------
    >>> _read_version("17.0.15+6-LTS"), _read_version("2.1.0rc1"), _read_version("missing: x")
    ((17, 0, 15), (2, 1, 0), ())
    """
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(map(int, found[0].split("."))) if found else ()
