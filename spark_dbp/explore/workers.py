"""Ask tasks about the machines and the Python that they run in, also where spark_dbp is missing there.

Imports pyspark, by what it is given, and pyarrow inside functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

# Most tasks that look.
_MOST_TASKS = 256
_JAVA = "java_method('java.lang.System', 'getProperty', 'java.version')"


@dataclass(frozen=True)
class WorkerReport:
    """What a task says of where it runs.

    Attributes
    ----------
    host : str
    java : str
        Version of the executor's Java; empty where the platform does not tell.
    python : str
        Version of the worker's Python.
    executable : str
        Path of that Python.
    packages : dict of str to str
        Module to version; what a module that cannot be imported raises, as ``missing: ...``.
    memory : int or None
        Bytes that the worker may take: the least of the limits of its process, its container and its machine.
    memory_of : str
        Which of these limits it is.
    free : dict of str to int
        Directory for temporary files to the bytes that are free there; -1 where it may not be written.
    """

    host: str
    java: str
    python: str
    executable: str
    packages: dict[str, str]
    memory: int | None
    memory_of: str
    free: dict[str, int]


def look_around(modules: Mapping[str, str]) -> dict[str, Any]:
    """What this process runs in: the fields of a `WorkerReport` but `java`.

    Everything is inside, imports too, because this very function is sent to workers (`ask_workers`).

    Parameters
    ----------
    modules : mapping of str to str
        Module to the name of its distribution.

    Examples
    --------
    >>> look_around({"no_such_module": "no-such"})["packages"]["no_such_module"]
    "missing: No module named 'no_such_module'"
    """
    import contextlib
    import importlib
    import importlib.metadata
    import os
    import pathlib
    import platform
    import shutil
    import socket
    import sys
    import tempfile

    packages = {}
    for module, distribution in modules.items():
        try:
            found = importlib.import_module(module)
            packages[module] = getattr(found, "__version__", "") or importlib.metadata.version(distribution)
        except Exception as error:  # also what a library of another platform raises
            packages[module] = f"missing: {error}"
    limits = {}
    with contextlib.suppress(ValueError, OSError, AttributeError):
        limits["the machine"] = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(ImportError):
        import resource

        soft = resource.getrlimit(resource.RLIMIT_AS)[0]
        if soft != resource.RLIM_INFINITY:
            limits["the process (spark.executor.pyspark.memory, or ulimit -v)"] = soft
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError):
            text = pathlib.Path(path).read_text().strip()
            if text.isdigit():
                limits["the container"] = int(text)
    least = min(limits, key=lambda name: limits[name], default="")
    free = {}
    # Spark tells its Python workers where its own scratch space is.
    for folder in [tempfile.gettempdir(), *os.environ.get("SPARK_LOCAL_DIRS", "").split(",")]:
        if folder:
            try:
                free[folder] = shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else -1
            except OSError:
                free[folder] = -1
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": packages,
        "memory": limits.get(least),
        "memory_of": least,
        "free": free,
    }


def ask_workers(spark: SparkSession, modules: Mapping[str, str]) -> list[WorkerReport]:
    """Ask as many tasks as run at once; one report of each.

    Parameters
    ----------
    spark : SparkSession
    modules : mapping of str to str
        As in `look_around`.

    Returns
    -------
    list of WorkerReport
    """
    from pyspark.sql import functions as F

    look = send_by_value(look_around)

    def report(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import json

        import pyarrow as pa

        java = [value for batch in batches for value in batch.column("java").to_pylist()]
        if java:
            text = json.dumps({"java": java[0] or "", **look(modules)})
            yield pa.RecordBatch.from_pydict({"report": [text]})

    # Without a number of partitions, Spark makes as many as tasks can run at once.
    rows = spark.range(0, _MOST_TASKS).coalesce(_MOST_TASKS)
    try:
        asked = rows.select(F.expr(_JAVA).alias("java")).mapInArrow(report, "report STRING").collect()
    except Exception as error:
        if "java_method" not in str(error) and "reflect" not in str(error):
            raise
        # Shared compute of Databricks lets no SQL call Java.
        asked = rows.select(F.lit("").alias("java")).mapInArrow(report, "report STRING").collect()
    return [WorkerReport(**json.loads(row.report)) for row in asked]


def send_by_value(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function that travels to workers as its code, not as the name of a module to import."""
    import types

    copy = types.FunctionType(function.__code__, {"__builtins__": __builtins__}, function.__name__)
    copy.__module__ = "__main__"
    return copy
