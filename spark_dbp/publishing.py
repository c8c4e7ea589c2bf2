"""Publish a finished run as tables of the session's catalog (``output.table``).

Imports `job`, `runs`, `engine`, `lake`, `columns` and `errors`; pyspark inside functions.

::

    <prefix>_duplicates, <prefix>_cluster_stats, <prefix>_quotas     each replaced as a whole
    <prefix>_keep_list                                               the last table
    <prefix>_kept                                                    a view of the input's rows that are kept

Parquet tables are external: they point to the directories of the run, and nothing is copied. Delta and
Iceberg tables are copies, sorted by key, that replace the earlier ones in one commit. The properties of every
table name its run. What has no such property is somebody else's, and never replaced.

``published.json`` in the run directory says what was published, and which directories tables may point to.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from spark_dbp._version import __version__
from spark_dbp.columns import CLUSTER_ID, KEY, describe_type, find_path, join_name, quote_name, split_name
from spark_dbp.config import ColumnOrSql, InputConfig
from spark_dbp.engine.catalog import TableInfo, describe_table
from spark_dbp.engine.catalog_writer import (
    RUN_ID,
    create_external_table,
    drop_ours,
    point_external_table,
    replace_table,
    replace_view,
)
from spark_dbp.engine.spark_errors import is_from_spark, read_reason, translate_errors
from spark_dbp.errors import ConfigError, ConflictError, SparkDbpError
from spark_dbp.job import Job
from spark_dbp.lake import files, paths
from spark_dbp.lake.store import PUBLISHED
from spark_dbp.runs import Run, open_run

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType

log = logging.getLogger("spark_dbp")

# In this order: who sees a new keep list sees the rest of its run too. A run without deduplication has no
# duplicates.
TABLES = ("duplicates", "cluster_stats", "quotas", "keep_list")
VIEW = "kept"
_PROBE = "spark_dbp_probe"

_COMMENTS = {
    "duplicates": "Samples that deduplication left out, and which sample each one repeats",
    "cluster_stats": "Size, d_intra, d_inter and complexity of every cluster",
    "quotas": "How many samples of every cluster are kept",
    "keep_list": "The samples that are kept; join it by key",
    VIEW: "The rows of the input that are kept",
}


@dataclass(frozen=True)
class Target:
    """Where a run is published.

    Attributes
    ----------
    spark : SparkSession
    table : str
        ``output.table``: catalog, schema, and how the names of the tables begin.
    table_format : {"parquet", "delta", "iceberg"}
    path : str
        The run directory.
    """

    spark: SparkSession
    table: str
    table_format: str
    path: str

    def name(self, table: str) -> str:
        """Name of a published table, with its parts quoted."""
        *schema, prefix = split_name(self.table)
        return join_name([*schema, f"{prefix}_{table}"])

    @property
    def schema(self) -> str:
        """Name of the schema, with its parts quoted."""
        return join_name(split_name(self.table)[:-1])

    def find(self, table: str) -> TableInfo | None:
        """What is there under the name of a published table, unless it is not ours.

        Raises
        ------
        ConfigError
            When something else has that name.
        """
        name = self.name(table)
        info = describe_table(self.spark, name)
        if info is None:
            return None
        if RUN_ID not in info.properties:
            raise ConfigError(
                f"output.table: {name} is there, and is not replaced, for this program did not publish it "
                f"(it has no property {RUN_ID})",
                mend="name another prefix in output.table, or drop or rename that table",
            )
        found, wanted = info.provider or "a view", "a view" if table == VIEW else self.table_format
        if found != wanted:
            raise ConfigError(
                f"output.table: {name} is {found} now, and {wanted} is to be published",
                mend="set output.table_format to what it was, name another prefix, or drop that table",
            )
        if found == "parquet" and info.kind != "EXTERNAL":
            raise ConfigError(
                f"output.table: {name} is a managed table, which cannot be pointed to the run directory",
                mend="name another prefix in output.table, or drop that table",
            )
        return info


def open_target(spark: SparkSession, table: str | None, table_format: str, path: str) -> Target | None:
    """See that a run could be published, before it computes anything; None where it need not be.

    Parameters
    ----------
    spark : SparkSession
    table, table_format : str
        ``output.table`` and ``output.table_format``.
    path : str
        The run directory.

    Returns
    -------
    Target or None

    Raises
    ------
    ConfigError
        When there is no such catalog or schema, when tables of others have these names, or when this session
        may not, or cannot, make tables of this format there.
    """
    if table is None:
        return None
    target = Target(spark, table, table_format, files.normalize(path))
    if table_format == "parquet" and paths.has_glob(target.path):
        raise ConfigError(
            f"output.path {path} has characters of a glob, and a Parquet table cannot point there",
            mend="name a directory without [ ] { } * ? \\, or set output.table_format: delta or iceberg",
        )
    try:
        spark.sql(f"DESCRIBE NAMESPACE {target.schema}").collect()
    except Exception as error:
        if not is_from_spark(error):
            raise
        raise ConfigError(
            f"output.table {table}: the session finds no schema {target.schema}: {read_reason(error)}",
            mend=f"CREATE SCHEMA {target.schema} first, or name another; docs/catalog.md says how a session "
            "gets to know a catalog",
        ) from None
    with _refuse(target):
        found = [target.find(name) for name in (*TABLES, VIEW)]
        if None in found[: len(TABLES)]:
            _try_to_create(target)
    return target


def check_input(target: Target | None, table: str | None) -> None:
    """Refuse to replace the table that the run reads.

    Raises
    ------
    ConfigError
    """
    if target is None or table is None:
        return
    session = [target.spark.catalog.currentCatalog(), target.spark.catalog.currentDatabase()]
    parts = split_name(table)
    parts = [*session[: 3 - len(parts)], *parts] if len(parts) < 3 else parts
    for name in (*TABLES, VIEW):
        if join_name(parts).lower() == target.name(name).lower():
            raise ConfigError(
                f"input.table {table} is one of the tables that output.table {target.table} would replace",
                mend="name another prefix in output.table",
            )


def check_key_type(target: Target | None, data_type: DataType) -> None:
    """Refuse keys of a type that the format of the tables does not have.

    Raises
    ------
    ConfigError
    """
    from pyspark.sql import types as T

    if (
        target is not None
        and target.table_format != "parquet"
        and isinstance(data_type, T.DayTimeIntervalType)
    ):
        raise ConfigError(
            f"input.key is {describe_type(data_type)}, a type that {target.table_format} tables do not have",
            mend="set output.table_format: parquet, or make another key with input.key: {sql: ...}",
        )


def _try_to_create(target: Target) -> None:
    """Make a table of this format beside those to come, and drop it again."""
    name = target.name(_PROBE)
    target.find(_PROBE)
    drop_ours(target.spark, name)  # a run was killed right here
    place = files.join(target.path, f".probe-{uuid4().hex[:8]}")
    columns, properties = [(KEY, "string")], {RUN_ID: "none"}
    try:
        if target.table_format == "parquet":
            create_external_table(target.spark, name, place, columns, properties, "")
        else:
            empty = target.spark.range(0).selectExpr(f"CAST(id AS STRING) AS {KEY}")
            replace_table(name, empty, target.table_format, properties, "")
        target.find(_PROBE)  # a catalog may have made a table of another format
    finally:
        with _log_only(f"cannot drop {name}"):
            drop_ours(target.spark, name)
        files.delete(place)


def publish_run(job: Job, target: Target | None) -> None:
    """Publish the run that was committed; what is published already stays as it is.

    Parameters
    ----------
    job : Job
    target : Target or None
        From `open_target`.

    Raises
    ------
    SparkDbpError
        When a table cannot be written. The run is finished all the same; the same command publishes the rest.
    """
    if target is None:
        return
    run = open_run(job.directory.path)
    mark = _read_mark(run)
    points_to = [run.document["tables"][table] for table in TABLES if table in run.document["tables"]]
    if target.table_format != "parquet":
        points_to = []  # the tables are copies
    before = mark.get(target.table, {})
    if before.get("run_id") != run.document["run_id"]:
        earlier = set(before.get("points_to", [])) | set(points_to)
        _write_mark(run, mark | {target.table: {**before, "run_id": None, "points_to": sorted(earlier)}})
    try:
        with translate_errors():
            view = _publish(job, target, run)
    except SparkDbpError as error:
        raise type(error)(
            f"the run is finished, but not wholly published to output.table {target.table}: {error.what}",
            mend=f"{error.mend}; then run the same command: it publishes the rest and computes nothing again",
        ) from error
    done = {
        "run_id": run.document["run_id"],
        "table_format": target.table_format,
        "tables": {name: target.name(name) for name in TABLES if name in run.document["tables"]} | view,
        "points_to": points_to,
    }
    if before != done:
        _write_mark(run, mark | {target.table: done})


def _publish(job: Job, target: Target, run: Run) -> dict[str, str]:
    """Write the tables that are not there yet. Returns the view and its name, if there is one."""
    done = []
    for table in TABLES:
        if table == "keep_list":  # before it: a view or duplicates of an earlier run would not go with it
            gone = [] if "duplicates" in run.document["tables"] else ["duplicates"]
            for name in gone if job.config.input.table else [*gone, VIEW]:
                drop_ours(job.spark, target.name(name))
        if table in run.document["tables"] and _publish_table(job, target, run, table):
            done.append(table)
    if not done:
        log.info("%s: published already", target.table)
    return _publish_view(job, target, run)


def _publish_table(job: Job, target: Target, run: Run, table: str) -> bool:
    """Write one table, unless it is there."""
    info = target.find(table)
    properties = _make_properties(run, table)
    if info is not None and properties.items() <= info.properties.items():
        return False
    job.directory.check_lock()
    name, comment = target.name(table), _make_comment(run, table)
    frame = run.table(table, job.spark)
    if target.table_format == "parquet":
        columns = [(field.name, field.dataType.simpleString()) for field in frame.schema.fields]
        point_external_table(job.spark, name, run.table_path(table), columns, properties, comment)
    else:
        rows = frame.orderBy(KEY if KEY in frame.columns else CLUSTER_ID)
        replace_table(name, rows, target.table_format, properties, comment)
    n_rows, expected = int(job.spark.read.table(name).count()), run.document["rows"][table]
    if n_rows != expected:
        raise ConflictError(
            f"{name} has {n_rows:,} rows after {expected:,} were published",
            mend="see that nothing else writes to that table",
        )
    log.info("Published %s: %s rows", name, f"{n_rows:,}")
    return True


def _make_properties(run: Run, table: str) -> dict[str, str]:
    properties = {"spark_dbp.version": __version__, "spark_dbp.run": run.path}
    if table != VIEW:
        properties["spark_dbp.digest"] = str(run.document["digests"][table])
    return {**properties, RUN_ID: run.document["run_id"]}


def _make_comment(run: Run, table: str) -> str:
    return f"{_COMMENTS[table]} (spark-dbp {__version__}, run {run.document['run_id']})"


# The view.


def _publish_view(job: Job, target: Target, run: Run) -> dict[str, str]:
    given = job.config.input
    if given.table is None:
        return {}
    name, properties = target.name(VIEW), _make_properties(run, VIEW)
    try:
        query = _write_query(job.spark, given, target.name("keep_list"))
        info = target.find(VIEW)
        if info is None or not properties.items() <= info.properties.items():
            replace_view(job.spark, name, query, properties, _make_comment(run, VIEW))
            log.info("Published %s: a view of %s", name, given.table)
    except Exception as error:
        # A catalog without views, an input that is a temporary view or is gone: the tables serve without it.
        if not is_from_spark(error):
            raise
        log.warning("%s is not made: %s", name, read_reason(error))
        return {}
    return {VIEW: name}


def _write_query(spark: SparkSession, given: InputConfig, keep_list: str) -> str:
    """SQL of the rows of the input that are kept.

    An IN, for in it the names of the key's SQL can only be the input's. The filter too, for keys need only be
    unique among the rows that it lets through.
    """
    assert given.table is not None
    table = join_name(split_name(given.table))
    frame = spark.read.table(table)
    key = _write_key(frame, given.key)
    if dict(spark.read.table(keep_list).dtypes)[KEY] == "string":
        # As ingest does: text is compared by its bytes, whatever its collation.
        key = f"CAST({key} AS STRING)"
    conditions = [f"({given.filter}\n)"] if given.filter is not None else []
    conditions.append(f"{key} IN (SELECT {quote_name(KEY)} FROM {keep_list})")
    return f"SELECT * FROM {table} WHERE {' AND '.join(conditions)}"


def _write_key(frame: DataFrame, key: ColumnOrSql) -> str:
    name = str(key)
    if name in frame.columns:
        return quote_name(name)
    return find_path(frame, name) or f"({name}\n)"


# Errors.


@contextmanager
def _refuse(target: Target) -> Iterator[None]:
    """Say of what the catalog refuses that it concerns ``output.table``, and what would mend it."""
    try:
        yield
    except Exception as error:
        if not is_from_spark(error):
            raise
        raise _explain(target, error) from error


def _explain(target: Target, error: Exception) -> ConfigError:
    text, at = str(error), f"output.table {target.table}"
    if "DATA_SOURCE_NOT_FOUND" in text or "Failed to find the data source" in text:
        return ConfigError(
            f"{at}: this session does not know the format {target.table_format}", mend=_mend_format(target)
        )
    if "REPLACE TABLE AS SELECT" in text:
        return ConfigError(
            f"{at}: this catalog has no {target.table_format} tables that can be replaced as a whole: "
            f"{read_reason(error)}",
            mend=_mend_format(target),
        )
    may_not = re.search("INSUFFICIENT_PERMISSIONS|PERMISSION_DENIED|denied|not authorized", text, re.I)
    mend = "the right to make tables in that schema must be granted" if may_not else _mend_format(target)
    return ConfigError(f"{at}: a table cannot be made there: {read_reason(error)}", mend=mend)


def _mend_format(target: Target) -> str:
    if target.table_format == "parquet":
        return (
            "Parquet tables point to the run directory, as Spark's own catalog, Hive and Glue allow, and "
            "Unity Catalog for an external location: elsewhere set output.table_format: delta or iceberg"
        )
    return (
        f"start the session with the jar and a catalog of {target.table_format.capitalize()} "
        "(docs/catalog.md) and name that catalog, or set output.table_format"
    )


@contextmanager
def _log_only(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_from_spark(error):
            raise
        log.warning("%s: %s", what, read_reason(error))


# The mark.


def _read_mark(run: Run) -> dict[str, Any]:
    path = files.join(run.path, PUBLISHED)
    return dict(json.loads(files.read_bytes(path))) if files.exists(path) else {}


def _write_mark(run: Run, mark: Mapping[str, Any]) -> None:
    files.write_bytes(files.join(run.path, PUBLISHED), (json.dumps(mark, indent=1) + "\n").encode())
