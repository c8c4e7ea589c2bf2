"""Publish a finished run as tables of the session's catalog (``output.table``).

Imports `job`, `runs`, `engine`, `lake`, `columns` and `errors`; pyspark inside functions.

::

    <prefix>_duplicates, <prefix>_cluster_stats, <prefix>_quotas     each replaced as a whole
    <prefix>_keep_list                                               the last table
    <prefix>_kept                                                    a view of the input's rows that are kept
    <prefix>_verdicts                                                on demand (`explore.verdicts`)

Parquet tables are external: they point to the directories of the run, and nothing is copied. Delta and
Iceberg tables are copies, sorted by key, that replace the earlier ones in one commit. The properties of every
table name its run. What has no such property is somebody else's, and never replaced.

``published.json`` in the run directory says what was published (`lake.published`).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from spark_dbp._version import __version__
from spark_dbp.columns import (
    CLUSTER_ID,
    KEY,
    find_path,
    join_name,
    quote_name,
    split_name,
)
from spark_dbp.config_base import ColumnOrSql
from spark_dbp.config_input import InputConfig
from spark_dbp.engine.catalog_target import TABLES, VERDICTS, VIEW, Target
from spark_dbp.engine.catalog_writer import (
    RUN_ID,
    drop_ours,
    find_ours,
    point_external_table,
    replace_table,
    replace_view,
)
from spark_dbp.engine.spark_errors import is_from_spark, read_reason
from spark_dbp.errors import ConflictError, SparkDbpError
from spark_dbp.job import Job
from spark_dbp.lake.published import read_published, write_published
from spark_dbp.runs import Run, open_run

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

_COMMENTS = {
    "duplicates": "Samples that deduplication left out, and which sample each one repeats",
    "cluster_stats": "Size, d_intra, d_inter and complexity of every cluster",
    "quotas": "How many samples of every cluster are kept",
    "keep_list": "The samples that are kept; join it by key",
    VIEW: "The rows of the input that are kept",
}


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
    mark = read_published(run.path)
    points_to = [run.document["tables"][table] for table in TABLES if table in run.document["tables"]]
    if target.table_format != "parquet":
        points_to = []  # the tables are copies
    before = mark.get(target.table, {})
    if before.get("run_id") != run.document["run_id"]:
        either = sorted({*before.get("points_to", []), *points_to})
        write_published(run.path, mark | {target.table: {**before, "run_id": None, "points_to": either}})
    try:
        view = _publish(job, target, run)
    except Exception as error:
        if not isinstance(error, SparkDbpError) and not is_from_spark(error):
            raise
        if isinstance(error, SparkDbpError):
            known = error
        else:
            known = SparkDbpError(read_reason(error), mend="see what the catalog says")
        raise type(known)(
            f"the run is finished, but not wholly published to output.table {target.table}: {known.what}",
            mend=f"{known.mend}; then run the same command: it publishes the rest and computes nothing again",
        ) from error
    done = {
        "run_id": run.document["run_id"],
        "table_format": target.table_format,
        "tables": {name: target.show(name) for name in TABLES if name in run.document["tables"]} | view,
        "points_to": points_to,
    }
    if before != done:
        write_published(run.path, mark | {target.table: done})


def _publish(job: Job, target: Target, run: Run) -> dict[str, str]:
    """Write the tables that are not there yet. Returns the view and its name, if there is one."""
    done = []
    for table in TABLES:
        if table == "keep_list":  # before it: a view or duplicates of an earlier run would not go with it
            gone = [] if "duplicates" in run.document["tables"] else ["duplicates"]
            for name in gone if job.config.input.table else [*gone, VIEW]:
                drop_ours(job.spark, target.name(name))
            _drop_other_verdicts(job, target, run)
        if table in run.document["tables"] and _publish_table(job, target, run, table):
            done.append(table)
    if not done:
        log.info("%s: published already", target.table)
    return _publish_view(job, target, run)


def _drop_other_verdicts(job: Job, target: Target, run: Run) -> None:
    """Drop the verdicts of another run, which are published on demand and would be taken for this one's."""
    name = target.name(VERDICTS)
    info = find_ours(job.spark, name)
    if info is not None and info.properties[RUN_ID] != run.document["run_id"]:
        drop_ours(job.spark, name)


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
            f"{target.show(table)} has {n_rows:,} rows after {expected:,} were published",
            mend="see that nothing else writes to that table",
        )
    log.info("Published %s: %s rows", target.show(table), f"{n_rows:,}")
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
            log.info("Published %s: a view of %s", target.show(VIEW), given.table)
    except Exception as error:
        # A catalog without views, an input that is a temporary view or is gone: the tables serve without it.
        if not is_from_spark(error):
            raise
        log.warning("%s is not made: %s", target.show(VIEW), read_reason(error))
        return {}
    return {VIEW: target.show(VIEW)}


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
