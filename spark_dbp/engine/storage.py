"""See at the start that this process reaches a store, by itself or through the Spark session.

Imports `files`, `mounts`, `paths` and `errors`; `hadoop` inside functions.

The driver writes and reads a run's small files: run.json, marks, the lock, tables of k rows. It does so with pyarrow
(or fsspec) where these have credentials, else with the session's own Hadoop FileSystem.
"""

from __future__ import annotations

import logging
import posixpath
import threading
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.lake import files, mounts, paths

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

# Stores that only Hadoop's own client replaces a file on in one step.
_BETTER_BY_HADOOP = ("hdfs", "viewfs")
# How long, in seconds, a client may take to answer. That of S3 looks for credentials for 6 seconds and more where
# there are none.
_PATIENCE = 20.0
_MEND = (
    "give the session rights there (spark.hadoop.fs... settings), or this process (AWS_* variables or a role for "
    "S3, GOOGLE_APPLICATION_CREDENTIALS for GCS); or name another store"
)
_MEND_CONNECT = (
    "through Spark Connect this process must reach the store by itself: give it rights there (AWS_* variables or a "
    "role for S3, GOOGLE_APPLICATION_CREDENTIALS for GCS); or name a directory that it has, such as "
    "/Volumes/CATALOG/SCHEMA/VOLUME/... on Databricks"
)


def reach_storage(
    spark: SparkSession, path: str, name: str, *, writes: bool = False, is_needed: bool = True
) -> None:
    """See that this process reaches the store of `path`; mount the session's file system where only that does.

    A local path is left alone.

    Parameters
    ----------
    spark : SparkSession
    path : str
        A path or a glob.
    name : str
        For messages: ``output.path``.
    writes : bool
        Whether the process writes there: a small file is written, read and deleted.
    is_needed : bool
        Whether to refuse a store that is not reached. Input of Spark's needs no more than Spark.

    Raises
    ------
    ConfigError
        When it is not reached. The message names every way that was tried.
    """
    path = files.normalize(path)
    if files.is_local(path):
        return
    root, _ = mounts.split_root(path)
    place = _find_place(path)
    failures: list[str] = []
    for way, mount in _list_ways(spark, root):
        try:
            mount()
            _try_within_patience(lambda: _look(place, writes))
            if way == "pyarrow" and writes:
                _compare_with_spark(spark, root, place)
        except (OSError, SparkDbpError) as error:
            mounts.unmount(root)
            failures.append(f"{way}: {getattr(error, 'what', None) or error}")
        else:
            why = f" ({failures[0]})" if failures else ""
            log.info("%s: this process reads and writes %s by %s%s", name, root, way, why)
            return
    what = f"{name} {path} cannot be reached by this process: {'; '.join(failures)}"
    if is_needed:
        raise ConfigError(what, mend=_MEND if _has_jvm(spark) else _MEND_CONNECT)
    log.info("%s; Spark reads it alone", what)
