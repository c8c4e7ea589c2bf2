"""See at the start that this process reaches a store, by itself or through the Spark session.

Imports `patience`, `files`, `mounts`, `paths` and `errors`; `hadoop` inside functions.

The driver writes and reads a run's small files: run.json, marks, the lock, tables of k rows. It does so with
pyarrow (or fsspec) where these have credentials, else with the session's own Hadoop FileSystem.
"""

from __future__ import annotations

import logging
import posixpath
from functools import partial
from itertools import takewhile
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.engine.patience import finish_within
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.lake import files, mounts, paths

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

_BY_PYARROW, _BY_HADOOP = "pyarrow", "the Hadoop file system of the Spark session"
# Stores that only Hadoop's own client replaces a file on in one step.
_BETTER_BY_HADOOP = ("hdfs", "viewfs")
# How long, in seconds, a client may take to answer. That of S3 takes 6 seconds and more where it finds no
# credentials, or no server.
_PATIENCE = 20.0
_told: set[str] = set()
_MEND = (
    "give the session rights there (spark.hadoop.fs... settings), or this process (AWS_* variables or a role "
    "for S3, GOOGLE_APPLICATION_CREDENTIALS for GCS); or name another store"
)
_MEND_CONNECT = (
    "with Spark Connect this process must reach the store by itself: give it rights there (AWS_* variables "
    "or a role for S3, GOOGLE_APPLICATION_CREDENTIALS for GCS); or name a directory that it has, such as "
    "/Volumes/CATALOG/SCHEMA/VOLUME/... on Databricks"
)


def reach_storage(
    spark: SparkSession,
    path: str,
    name: str,
    *,
    writes: bool = False,
    is_needed: bool = True,
    must_answer: bool = False,
) -> None:
    """See that this process reaches the store of `path`; where only the session does, mount its file system.

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
    must_answer : bool
        Whether to refuse a store that gives no answer at all: whoever reads there would wait without end.

    Raises
    ------
    ConfigError
        When it is not reached. The message names every way that was tried.
    """
    path = files.normalize(path)
    if files.is_local(path):
        return
    root, failures, is_silent = mounts.split_root(path)[0], [], False
    for way in _list_ways(spark, root):
        try:
            finish_within(_PATIENCE, partial(_reach, spark, path, way, writes))
        except (OSError, SparkDbpError) as error:
            failures.append(f"{way}: {getattr(error, 'what', None) or error}")
            is_silent |= isinstance(error, TimeoutError)
        else:
            if must_answer and way == _BY_PYARROW and _has_jvm(spark):
                _refuse_silent(spark, path, name)
            _tell(f"{root} is reached by {way}", f" ({'; '.join(failures)})" if failures else "")
            return
    mounts.unmount(root)
    what = f"{name} {path}: this process does not reach {root} ({'; '.join(failures)})"
    if is_needed or (must_answer and is_silent and _has_jvm(spark)):
        raise ConfigError(what, mend=_MEND if _BY_HADOOP in _list_ways(spark, root) else _MEND_CONNECT)
    _tell(what, "; only Spark reads it")


def _refuse_silent(spark: SparkSession, path: str, name: str) -> None:
    """Refuse a store that this process reaches by itself, and that the session waits for."""
    from spark_dbp.engine.hadoop import open_hadoop

    root, key = mounts.split_root(_find_beginning(path))
    try:
        finish_within(_PATIENCE, lambda: open_hadoop(spark, root).get_file_info(f"/{key}"))
    except TimeoutError as error:
        raise ConfigError(
            f"{name} {path}: this process reaches {root}, the session does not ({_BY_HADOOP}: {error})",
            mend="give the session the same endpoint and rights (spark.hadoop.fs... settings), and see that "
            "the network lets it there",
        ) from None
    except (OSError, SparkDbpError) as error:
        log.debug("Spark does not open %s: %s", root, error)  # Spark's own message says more


def _tell(what: str, why: str) -> None:
    """Log `what`, once in the life of this process."""
    if what not in _told:
        _told.add(what)
        log.info("%s%s", what, why)


def _list_ways(spark: SparkSession, root: str) -> list[str]:
    """The ways to reach a root, the best first."""
    if not _has_jvm(spark):
        return [_BY_PYARROW]
    is_better = mounts.is_mounted(root) or root.partition("://")[0] in _BETTER_BY_HADOOP
    return [_BY_HADOOP] if is_better else [_BY_PYARROW, _BY_HADOOP]


def _has_jvm(spark: SparkSession) -> bool:
    from spark_dbp.engine.hadoop import has_jvm

    return has_jvm(spark)


def _reach(spark: SparkSession, path: str, way: str, writes: bool) -> None:
    """Read, or write, read and delete, at a path or at the beginning of a glob.

    Raises
    ------
    OSError, SparkDbpError
        When that fails.
    """
    if way == _BY_HADOOP:
        from spark_dbp.engine.hadoop import open_hadoop

        root, _ = mounts.split_root(path)
        mounts.mount(root, open_hadoop(spark, root))
    if not writes:
        files.exists(_find_beginning(path))
        return
    probe, content = files.join(path, f".probe-{uuid4().hex[:8]}"), uuid4().bytes
    files.write_bytes(probe, content)
    try:
        if files.read_bytes(probe) != content or posixpath.basename(probe) not in files.list_names(path):
            raise OSError(f"{probe} was written and is not there")
        if not mounts.is_mounted(path) and not _is_seen_by_spark(spark, probe):
            raise OSError("it reaches another store of that name than Spark does")
    finally:
        files.delete(probe)
        files.delete_if_empty(path)


def _is_seen_by_spark(spark: SparkSession, path: str) -> bool:
    """Whether the session sees a file that this process wrote. Where it has no JVM, that is not known.

    pyarrow and Spark take the endpoint of a store from different settings.
    """
    if not _has_jvm(spark):
        return True
    from spark_dbp.engine.hadoop import open_hadoop

    root, key = mounts.split_root(path)
    try:
        return bool(open_hadoop(spark, root).get_file_info(f"/{key}").is_file)
    except OSError as error:
        log.debug("Spark does not open %s: %s", root, error)
        return True  # Spark's own message, when it reads or writes there, says more


def _find_beginning(path: str) -> str:
    """The last directory before the first name that is a glob; `path` itself where there is none.

    Examples
    --------
    >>> _find_beginning("s3://lake/in/*/x"), _find_beginning("s3://lake/in")
    ('s3://lake/in', 's3://lake/in')
    """
    root, key = mounts.split_root(path)
    plain = list(takewhile(lambda name: not paths.has_glob(name), key.split("/")))
    return "/".join([root, *plain]) if plain else f"{root}/"
