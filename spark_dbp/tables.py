"""Write a stage's tables and read them back. Imports `files`, `store`, `digest`, `scan`; no mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spark_dbp import files
from spark_dbp.digest import table_digest
from spark_dbp.errors import SparkDbpError
from spark_dbp.scan import CommittedTable
from spark_dbp.stages.given_centroids import arrays_of
from spark_dbp.stages.ingest import good_samples
from spark_dbp.store import RunStore, Stage, StageWriter

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def write_frame(
    writer: StageWriter,
    spark: SparkSession,
    table: str,
    frame: DataFrame,
    *,
    expected_rows: int | None = None,
    with_digest: bool = True,
) -> DataFrame:
    """Write `frame` to a new directory, read it back, count it; returns what was read back."""
    path = files.spark_path(writer.new_directory(table))
    frame.write.parquet(path)
    back = spark.read.schema(frame.schema).parquet(path)
    rows, digest = table_digest(back) if with_digest else (back.count(), None)
    if expected_rows is not None and rows != expected_rows:
        raise SparkDbpError(
            f"table {table} has {rows:,} rows where {expected_rows:,} were expected",
            mend="the input changed while it was read, or this is a bug: run again, then report it",
        )
    writer.report(table, rows, digest)
    return back


def write_arrow(writer: StageWriter, spark: SparkSession, table: str, content: Any) -> None:
    """Write a small pyarrow Table from the driver, read it back, count it."""
    path = writer.new_directory(table)
    files.write_parquet(path, content)
    writer.report(table, *table_digest(spark.read.parquet(files.spark_path(path))))


def read_table(store: RunStore, spark: SparkSession, stage: Stage, table: str) -> DataFrame:
    """A committed table as a DataFrame."""
    return spark.read.parquet(files.spark_path(store.at(stage.tables[table])))


def read_committed(store: RunStore, spark: SparkSession, stage: Stage, table: str) -> CommittedTable:
    """A committed table that workers may read themselves."""
    return CommittedTable(spark, store.at(stage.tables[table]), read_table(store, spark, stage, table))


def read_samples(store: RunStore, spark: SparkSession, samples: Stage) -> CommittedTable:
    """The good rows of the samples, or the survivors of deduplication, that a stage committed."""
    table = "survivors" if "survivors" in samples.tables else "samples"
    dimension = samples.info["dimension"]
    frame = read_table(store, spark, samples, table)
    if table == "samples":
        frame = good_samples(frame, dimension)
    has_problems = table == "samples" and bool(samples.info["dropped"])
    return CommittedTable(spark, store.at(samples.tables[table]), frame, dimension, has_problems)


def read_centroids(store: RunStore, cluster: Stage, table: str = "centroids") -> tuple[Any, Any]:
    """Cluster ids, shape (k,), and centroids, shape (k, dim)."""
    return arrays_of(files.read_parquet(store.at(cluster.tables[table])))
