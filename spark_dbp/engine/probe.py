"""See at the start of a run what its tasks reach, and choose the engine by it.

Imports `arrow`, `compat`, `spark_errors`, `errors` and `files`; pyspark and pyarrow inside functions.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.engine.compat import BatchFunction, map_in_arrow
from spark_dbp.engine.mapped_rows import write_and_read_back
from spark_dbp.engine.spark_errors import read_condition, read_first_line
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.lake import files, parquet_files, paths
from spark_dbp.lake.local_files import can_rename

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

# Most tasks that look. How long, in seconds, a mount may take to show a file that another machine wrote.
_MOST_TASKS, _PATIENCE = 256, 5.0
# Files that Spark's tasks read, and then write.
_FILES = 8
_SCHEMA = "host STRING, file STRING, problem STRING"
_MEND = (
    "name a store that all machines share (s3://..., gs://..., hdfs://..., abfs://...), or a directory on a "
    "mount that every one of them has and may write to"
)


@dataclass(frozen=True)
class EngineChoice:
    """Which engine a run takes, and why.

    Attributes
    ----------
    name : {"arrow", "sql"}
        ``arrow``: workers read and write the run's tables themselves. ``sql``: only Spark does.
    why : str
        For the log and run.json.
    """

    name: str
    why: str


def choose_engine(
    spark: SparkSession, path: str, wanted: str = "auto", reads: Sequence[str] = ()
) -> EngineChoice:
    """Choose the engine of a run by what its tasks reach.

    Nothing is left below `path`. The log says which engine it is, and why.

    Parameters
    ----------
    spark : SparkSession
    path : str
        ``output.path``, a directory that the driver can write to.
    wanted : {"auto", "arrow", "sql"}
        ``engine`` of the configuration.
    reads : sequence of str
        Files elsewhere that workers must reach for ``arrow``: those of a run whose tables are shared.

    Returns
    -------
    EngineChoice

    Raises
    ------
    ConfigError
        When no engine can write there, or not the one that is wanted.
    """
    choice = _choose(spark, path, wanted, reads)
    log.info("engine %s: %s", choice.name, choice.why)
    return choice


def _choose(spark: SparkSession, path: str, wanted: str, reads: Sequence[str]) -> EngineChoice:
    problem = ""
    if wanted != "sql":
        problem = find_problem_of_workers(spark, path, reads)
        if not problem:
            return EngineChoice("arrow", "driver and workers reach the run directory themselves")
        if wanted == "arrow":
            raise ConfigError(
                f"engine: arrow cannot work with output.path {path}: {problem}",
                mend="set engine: auto, which lets Spark read and write all tables where workers cannot; or "
                + _MEND,
            )
    of_spark = find_problem_of_spark(spark, path)
    if of_spark:
        raise ConfigError(
            f"output.path {path} cannot be used on this cluster: {problem or of_spark}", mend=_MEND
        )
    return EngineChoice("sql", problem or "the configuration asks for it")


def can_workers_read(spark: SparkSession, path: str) -> bool:
    """Whether Python workers can open a file themselves, as many tasks as run at once."""

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        problem = ""
        for _ in batches:
            pass
        try:
            files.read_start(path, 1)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        yield pa.RecordBatch.from_pydict({"problem": [problem]})

    rows = spark.range(0, _MOST_TASKS).coalesce(_MOST_TASKS)
    problems = [row.problem for row in map_in_arrow(rows, look, "problem STRING").collect() if row.problem]
    if problems:
        log.info("  Spark reads %s, for a worker does not: %s", path, problems[0])
    return not problems


def find_problem_of_workers(spark: SparkSession, path: str, reads: Sequence[str] = ()) -> str:
    """Why Python workers cannot read and write below `path`; empty when they can.

    The driver writes a small file. As many tasks as run at once look for it, and write, list, read and delete
    files of their own, of which the driver looks for one.

    Parameters
    ----------
    spark : SparkSession
    path : str
        A directory that the driver can write to.
    reads : sequence of str
        Files elsewhere that the tasks must see too.

    Returns
    -------
    str
        It names the machine.
    """
    driver = socket.gethostname()
    with _make_folder(path) as folder:
        if files.is_local(folder) and not can_rename(Path(files.normalize(folder))):
            return "files there cannot be renamed, so the driver would copy all that workers write"
        files.touch(files.join(folder, "driver"))
        # Without a number of partitions, Spark makes as many as tasks can run at once.
        rows = spark.range(0, _MOST_TASKS).coalesce(_MOST_TASKS)
        look = look_from_task(folder, driver, _PATIENCE, reads)
        for host, name, problem in map_in_arrow(rows, look, _SCHEMA).collect():
            if problem:
                return str(problem)
            if not _wait_for(files.join(folder, name), _PATIENCE):
                return f"the driver on {driver} does not see what a task on {host} wrote there"
    return ""


def find_problem_of_readers(spark: SparkSession, seen: Sequence[str]) -> str:
    """Why Python workers cannot read files; empty when they can read all of them."""

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        if sum(batch.num_rows for batch in batches):
            host = socket.gethostname()
            problem = _find_unseen(seen, host)
            yield pa.RecordBatch.from_pydict({"host": [host], "file": [""], "problem": [problem]})

    rows = spark.range(0, _MOST_TASKS).coalesce(_MOST_TASKS)
    problems = [problem for _, _, problem in map_in_arrow(rows, look, _SCHEMA).collect()]
    return next(filter(None, problems), "")


def find_problem_of_spark(spark: SparkSession, path: str) -> str:
    """Why Spark's own tasks cannot read and write below `path`; empty when they can.

    The driver writes small files, which Spark reads and then writes anew. What Spark cannot read it does not
    write: it would lie on some machine for good.
    """
    import pyarrow as pa

    with _make_folder(path) as folder:
        for number in range(_FILES):
            name = files.join(folder, "read", f"{number}.parquet")
            parquet_files.write_parquet_file(name, pa.table({"number": pa.array([number], pa.int32())}))
        source = paths.to_spark_source(files.join(folder, "read"))
        try:
            given = spark.read.schema("number INT").parquet(source)
            if given.count() != _FILES:
                return "Spark does not see there what the driver wrote"
            written = write_and_read_back(given, files.join(folder, "written"))
            if written.count() != _FILES or not files.list_sizes(files.join(folder, "written")):
                return "the driver does not see there what Spark's tasks wrote"
        except Exception as error:
            if not read_condition(error) and not type(error).__module__.startswith(("pyspark", "py4j")):
                raise
            return f"Spark cannot read and write there: {read_first_line(error)}"
    return ""


@contextmanager
def _make_folder(path: str) -> Iterator[str]:
    """A path for a folder below `path`, which is deleted at the end."""
    folder = files.join(path, f".probe-{uuid4().hex[:8]}")
    try:
        yield folder
    finally:
        try:
            files.delete(folder)
        except (OSError, SparkDbpError) as error:
            log.warning("cannot delete %s: %s", folder, error)


def look_from_task(folder: str, driver: str, patience: float, reads: Sequence[str] = ()) -> BatchFunction:
    """The function of a task that looks for the file of the machine `driver`, and writes one of its own.

    A task that does not see the driver's file writes nothing: it would lie on that machine for good.
    """

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        if not sum(batch.num_rows for batch in batches):
            return
        host, name, problem = socket.gethostname(), uuid4().hex, ""
        try:
            if not _wait_for(files.join(folder, "driver"), patience):
                problem = f"a task on {host} does not see what the driver on {driver} wrote there"
            else:
                _write_and_delete(folder, name)
                problem = _find_unseen(reads, host)
        except Exception as error:  # the client of a store may raise any
            problem = f"a task on {host} cannot read and write there: {_describe(error)}"
        yield pa.RecordBatch.from_pydict({"host": [host], "file": [name], "problem": [problem]})

    return look


def _find_unseen(paths: Sequence[str], host: str) -> str:
    for path in paths:
        try:
            files.read_start(path, 1)
        except FileNotFoundError:
            return f"a task on {host} does not see {path}"
        except Exception as error:  # the client of a store may raise any
            return f"a task on {host} cannot read {path}: {_describe(error)}"
    return ""


def _describe(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or getattr(error, "what", None) or error)


def _write_and_delete(folder: str, name: str) -> None:
    """Write a file that stays for the driver to see, and one that does not; read and list them."""
    for file in (name, f"{name}-gone"):
        files.touch(files.join(folder, file))
        if file not in files.list_names(folder):
            raise OSError("what it wrote is not listed")
    files.read_bytes(files.join(folder, name))
    files.delete(files.join(folder, f"{name}-gone"))


def _wait_for(path: str, seconds: float) -> bool:
    """Whether there is a file, or soon will be."""
    until = time.monotonic() + seconds
    while not (found := files.exists(path)) and time.monotonic() < until:
        time.sleep(0.2)
    return found
