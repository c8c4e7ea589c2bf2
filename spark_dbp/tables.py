"""Write a stage's tables and read them back. Imports `files`, the store, `scan`, `mapped`; no mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.mapped import MappedRows
from spark_dbp.errors import SparkDbpError
from spark_dbp.io.centroids import arrays_of
from spark_dbp.lake import files
from spark_dbp.lake.digest import digest_columns, digest_table
from spark_dbp.lake.store import FinishedStep, RunDirectory, StepWriter
from spark_dbp.stages.ingest import good_samples

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def write_frame(
    writer: StepWriter,
    spark: SparkSession,
    table: str,
    rows: DataFrame | MappedRows,
    *,
    expected_rows: int | None = None,
    expected_keys: str | None = None,
) -> DataFrame:
    """Write `rows` to a new directory and read them back; returns what was read back.

    Columns, number of rows and keys are compared to what was to be written: what is committed is what
    lies there, whatever the tasks that wrote it went through.

    Parameters
    ----------
    writer : StageWriter
    spark : SparkSession
    table : str
    rows : DataFrame or Mapped
    expected_rows : int, optional
    expected_keys : str, optional
        Digest of the keys that must be there, each as often.

    Returns
    -------
    DataFrame

    Raises
    ------
    SparkDbpError
        When something else was read back.
    """
    path = writer.new_directory(table)
    if isinstance(rows, MappedRows):
        rows.write_parquet(path)
    else:
        rows.write.parquet(files.to_spark_path(path))
    back = spark.read.parquet(files.to_spark_path(path))
    _check(table, "columns", _columns(back), _columns(rows))
    # The first pass over what was written, by which it is also known that it can be read.
    n_rows, (digest, keys) = digest_columns(back, back.columns, [KEY])
    _check(table, "rows", n_rows, expected_rows)
    _check(table, "digest of keys", keys, expected_keys)
    writer.report(table, n_rows, digest, keys)
    return back


def _columns(rows: DataFrame | MappedRows) -> str:
    return ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in rows.schema)


def _check(table: str, what: str, found: Any, expected: Any) -> None:
    if expected is not None and found != expected:
        raise SparkDbpError(
            f"table {table} was read back with {what} {found} where {expected} was written",
            mend="something else wrote to the run directory, or this is a bug: run again, then report it",
        )


def write_arrow(writer: StepWriter, spark: SparkSession, table: str, content: Any) -> None:
    """Write a small pyarrow Table from the driver, read it back, count it."""
    path = writer.new_directory(table)
    files.write_parquet(path, content)
    n_rows, digest = digest_table(spark.read.parquet(files.to_spark_path(path)))
    _check(table, "rows", n_rows, content.num_rows)
    writer.report(table, n_rows, digest)


def read_table(store: RunDirectory, spark: SparkSession, stage: FinishedStep, table: str) -> DataFrame:
    """A committed table as a DataFrame."""
    return spark.read.parquet(files.to_spark_path(store.at(stage.tables[table])))


def read_committed(
    store: RunDirectory, spark: SparkSession, stage: FinishedStep, table: str
) -> CommittedTable:
    """A committed table that workers may read themselves."""
    path, frame = store.at(stage.tables[table]), read_table(store, spark, stage, table)
    return CommittedTable(spark, path, frame, progress=store.progress)


def read_samples(store: RunDirectory, spark: SparkSession, samples: FinishedStep) -> CommittedTable:
    """The good rows of the samples, or the survivors of deduplication, that a stage committed."""
    table = "survivors" if "survivors" in samples.tables else "samples"
    dimension = samples.info["dimension"]
    frame = read_table(store, spark, samples, table)
    if table == "samples":
        frame = good_samples(frame, dimension)
    has_problems = table == "samples" and bool(samples.info["dropped"])
    return CommittedTable(
        spark, store.at(samples.tables[table]), frame, dimension, has_problems, store.progress
    )


def read_centroids(store: RunDirectory, cluster: FinishedStep, table: str = "centroids") -> tuple[Any, Any]:
    """Cluster ids, shape (k,), and centroids, shape (k, dim)."""
    return arrays_of(files.read_parquet(store.at(cluster.tables[table])))
