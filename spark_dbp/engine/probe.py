"""See at the start of a run whether its tasks reach the run directory.

Imports `compat`, `errors` and `files`; pyspark and pyarrow inside functions.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.engine.compat import BatchFunction, map_in_arrow, runs_on_this_machine
from spark_dbp.errors import ConfigError
from spark_dbp.lake import files

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

# Most tasks that look. How long, in seconds, a mount may take to show a file that another machine wrote.
_MOST_TASKS, _PATIENCE = 256, 5.0
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


def choose_engine(spark: SparkSession, path: str, wanted: str = "auto") -> EngineChoice:
    """Choose the engine of a run by what its tasks reach.

    Parameters
    ----------
    spark : SparkSession
    path : str
        ``output.path``, a directory that the driver can write to.
    wanted : {"auto", "arrow", "sql"}
        ``engine`` of the configuration.

    Returns
    -------
    EngineChoice

    Raises
    ------
    ConfigError
        When no engine can write there, or not the one that is wanted.
    """
    check_is_shared(spark, path)
    return EngineChoice("arrow", "workers reach the run directory")


def check_is_shared(spark: SparkSession, path: str) -> None:
    """Refuse a local `path` that is another directory on the machines where tasks run.

    The driver writes a small file below `path`. As many tasks as run at once look for it, and write one each
    that the driver looks for. Nothing is left. A session on this machine, and a store, are not looked at.

    Parameters
    ----------
    spark : SparkSession
    path : str
        ``output.path``, a directory that the driver can write to.

    Raises
    ------
    ConfigError
        Names the machine whose task cannot see, or cannot write to, the directory.
    """
    if not files.is_local(path) or runs_on_this_machine(spark):
        return
    driver = socket.gethostname()
    folder = files.join(path, f".probe-{uuid4().hex[:8]}")
    files.touch(files.join(folder, "driver"))
    try:
        # Without a number of partitions, Spark makes as many as tasks can run at once.
        rows = spark.range(0, _MOST_TASKS).coalesce(_MOST_TASKS)
        looked = map_in_arrow(rows, look_from_task(folder, driver, _PATIENCE), _SCHEMA)
        for host, name, problem in looked.collect():
            if not problem and not _wait_for(files.join(folder, name), _PATIENCE):
                problem = f"the driver on {driver} does not see what a task on {host} wrote there"
            if problem:
                raise ConfigError(f"output.path {path} cannot be used on this cluster: {problem}", mend=_MEND)
    finally:
        try:
            files.delete(folder)
        except OSError as error:
            log.warning("cannot delete %s: %s", folder, error)


def look_from_task(folder: str, driver: str, patience: float) -> BatchFunction:
    """The function of a task that looks for the file of the machine `driver`, and writes one of its own.

    A task that does not see the driver's file writes nothing: it would lie on that machine for good.
    """

    def look(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        if not sum(batch.num_rows for batch in batches):
            return
        host, name, problem = socket.gethostname(), uuid4().hex, ""
        try:
            if _wait_for(files.join(folder, "driver"), patience):
                files.touch(files.join(folder, name))
            else:
                problem = f"a task on {host} does not see what the driver on {driver} wrote there"
        except OSError as error:
            problem = f"a task on {host} cannot read and write there: {error.strerror or error}"
        yield pa.RecordBatch.from_pydict({"host": [host], "file": [name], "problem": [problem]})

    return look


def _wait_for(path: str, seconds: float) -> bool:
    """Whether there is a file, or soon will be."""
    until = time.monotonic() + seconds
    while not (found := files.exists(path)) and time.monotonic() < until:
        time.sleep(0.2)
    return found
