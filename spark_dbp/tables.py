"""Write a stage's tables and read them back. Imports `files`, the store, `scan`, `mapped`; no mathematics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spark_dbp import files
from spark_dbp.digest import table_digest
from spark_dbp.errors import SparkDbpError
from spark_dbp.mapped import Mapped
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
    rows: DataFrame | Mapped,
    *,
    expected_rows: int | None = None,
    with_digest: bool = True,
) -> DataFrame:
    """Write `rows` to a new directory, read them back, count them; returns what was read back."""
    path = writer.new_directory(table)
    if isinstance(rows, Mapped):
        rows.write_parquet(path)
    else:
        rows.write.parquet(files.spark_path(path))
    back = spark.read.schema(rows.schema).parquet(files.spark_path(path))
    n_rows, digest = table_digest(back) if with_digest else (back.count(), None)
    if expected_rows is not None and n_rows != expected_rows:
        raise SparkDbpError(
            f"table {table} has {n_rows:,} rows where {expected_rows:,} were expected",
            mend="the input changed while it was read, or this is a bug: run again, then report it",
        )
    writer.report(table, n_rows, digest)
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
    path, frame = store.at(stage.tables[table]), read_table(store, spark, stage, table)
    return CommittedTable(spark, path, frame, progress=store.progress)


def read_samples(store: RunStore, spark: SparkSession, samples: Stage) -> CommittedTable:
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


def read_centroids(store: RunStore, cluster: Stage, table: str = "centroids") -> tuple[Any, Any]:
    """Cluster ids, shape (k,), and centroids, shape (k, dim)."""
    return arrays_of(files.read_parquet(store.at(cluster.tables[table])))
