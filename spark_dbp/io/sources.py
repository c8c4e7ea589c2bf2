"""Open the input table of a run, and notice when it changes while the run reads it.

Imports `compat`, `row_bytes`, `spark_errors`, `errors` and `digest`; pyspark inside functions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote
from uuid import uuid4

from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array
from spark_dbp.engine.row_bytes import count_row_bytes
from spark_dbp.engine.spark_errors import read_condition, read_first_line, translate_errors
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.lake.digest import digest_and_sum

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Snapshot:
    """What a table was like when it was read.

    Attributes
    ----------
    rows : int
    files : int or None
        Number of files. None for a view, which does not list its files.
    bytes : int or None
        Bytes of the files. For a view, about how many the columns that the run reads take in memory.
    digest : str
        Of the path, size, modification time and number of rows of every file. For a view, of its rows.
    """

    rows: int
    files: int | None = None
    bytes: int | None = None
    digest: str | None = None

    @property
    def bytes_per_row(self) -> float:
        """Bytes of the files for each row, about as many as a row takes in memory; 0 where not known."""
        return (self.bytes or 0) / max(1, self.rows)

    def __str__(self) -> str:
        if self.files is None:
            return f"{self.rows:,} rows"
        return f"{self.rows:,} rows in {self.files:,} files of {self.bytes:,} bytes"


@dataclass(frozen=True)
class Source:
    """The input table, and its snapshot from the start of the run. `open_source` makes it.

    Attributes
    ----------
    spark : SparkSession
    paths : list of str
        Files, directories or globs; empty for a catalog table or a view.
    table : str or None
        Name of a catalog table or a view.
    predicate : str or None
        ``input.filter``.
    frame : DataFrame
        All rows and columns, before the filter.
    snapshot : Snapshot
    """

    spark: SparkSession
    paths: list[str]
    table: str | None
    predicate: str | None
    frame: DataFrame
    snapshot: Snapshot

    @property
    def name(self) -> str:
        """The setting and its value, for messages: ``input.path /data/x``."""
        return _name(self.paths, self.table)

    def read_rows(self) -> DataFrame:
        """Rows that the filter lets through, with all their columns.

        Raises
        ------
        ConfigError
            When the filter is no valid SQL for these columns.
        """
        return apply_filter(self.frame, self.predicate)

    def check_unchanged(self, rows_read: int | None = None) -> None:
        """Refuse a table that has changed since the snapshot.

        A view does not list its files, so only its row count is compared. Its rows may come from a
        computation that differs each time. The run uses the rows that it has written.

        Parameters
        ----------
        rows_read : int, optional
            Number of rows that were read, after the filter.

        Raises
        ------
        InputError
            When the files, or the number of rows, have changed.
        """
        if self.snapshot.files is not None:
            now = take_snapshot(_read(self.spark, self.paths, self.table))  # lists the files anew
            if now != self.snapshot:
                alike = ", with other times or names" if str(now) == str(self.snapshot) else ""
                raise InputError(
                    f"{self.name} changed while it was read: {self.snapshot} before, {now} now{alike}",
                    mend="run the same command again when nothing writes to that table",
                )
        counted = self.snapshot.rows
        if rows_read is None or rows_read == counted or (self.predicate and rows_read < counted):
            return
        raise InputError(
            f"{self.name} had {counted:,} rows when it was counted and {rows_read:,} when it was read",
            mend="write a table that gives other rows each time to a file first",
        )


def open_source(
    spark: SparkSession,
    *,
    paths: list[str] | None = None,
    table: str | None = None,
    predicate: str | None = None,
    columns: list[str],
) -> Source:
    """Open the input table and take its snapshot.

    Parameters
    ----------
    spark : SparkSession
    paths : list of str, optional
    table : str, optional
        Give either `paths` or `table`.
    predicate : str, optional
        SQL condition. Rows for which it is not true are left out.
    columns : list of str
        Columns that the run reads. The snapshot of a view is a digest of these.

    Returns
    -------
    Source

    Raises
    ------
    InputError
        When there is no such path or table.
    """
    paths = paths or []
    frame = _read(spark, paths, table)
    with translate_errors(_name(paths, table)):
        snapshot = take_snapshot(frame, columns)
        if paths and snapshot.files is not None:
            _refuse_empty_files(spark, paths, frame, snapshot.files)
    return Source(spark, paths, table, predicate, frame, snapshot)


def _refuse_empty_files(spark: SparkSession, paths: list[str], table: DataFrame, n_files: int) -> None:
    """Refuse Parquet files of 0 bytes. Spark skips them without a word, so their rows would be missing.

    Parameters
    ----------
    spark : SparkSession
    paths : list of str
    table : DataFrame
        The DataFrame that Spark reads from `paths`.
    n_files : int
        Number of files with rows, from the snapshot. Sizes are looked up only if there are other files.

    Raises
    ------
    InputError
    """
    listed = table.inputFiles()
    if len(listed) == n_files:
        return
    filled = spark.read.format("binaryFile").load(paths).select("path")
    with_bytes = {_plain(row.path) for row in filled.collect()}
    # Object stores mark directories with empty files, so only names of Parquet files count.
    empty = sorted(
        path
        for path in map(_plain, listed)
        if path not in with_bytes and path.endswith((".parquet", ".parq"))
    )
    if empty:
        raise InputError(
            f"input.path: {len(empty):,} Parquet file{'s have' if len(empty) > 1 else ' has'} 0 bytes, "
            f"such as {', '.join(empty[:5])}",
            mend="write them again, or move them away",
        )


def _plain(uri: str) -> str:
    """The URI of a file in one spelling, because Spark uses two."""
    return re.sub(r"^file:/+", "/", unquote(uri))


def _name(paths: list[str], table: str | None) -> str:
    return f"input.path {', '.join(paths)}" if paths else f"input.table {table}"


def _read(spark: SparkSession, paths: list[str], table: str | None) -> DataFrame:
    with translate_errors(_name(paths, table), opening=True):
        frame = spark.read.table(table) if table else spark.read.parquet(*paths)
        _ = frame.schema  # Connect opens the table only when asked for its schema
        return frame


def apply_filter(frame: DataFrame, predicate: str | None) -> DataFrame:
    """Rows for which the SQL `predicate` is true; all rows without a predicate.

    Raises
    ------
    ConfigError
        When the predicate is no valid SQL for these columns.
    """
    if predicate is None:
        return frame
    try:
        filtered = frame.where(predicate)
        _ = filtered.schema  # Connect checks the SQL only when asked for the schema
        return filtered
    except Exception as error:
        if not read_condition(error):
            raise
        raise ConfigError(
            f"input.filter {predicate!r}: {read_first_line(error)}",
            mend=f"use SQL on the input's columns: {', '.join(frame.columns[:20])}",
        ) from error


def take_snapshot(frame: DataFrame, columns: list[str] | None = None) -> Snapshot:
    """Count the rows of `frame`, and digest the list of its files.

    Parameters
    ----------
    frame : DataFrame
        As Spark reads a path or a table. Only the footers of the files are read.
    columns : list of str, optional
        Columns to digest for a view, which does not list its files. By default all.

    Returns
    -------
    Snapshot
    """
    from pyspark.sql import functions as F

    fields = ["file_path", "file_size", "file_modification_time"]
    try:
        files = frame.groupBy(*[F.col(f"_metadata.{name}").alias(name) for name in fields]).agg(
            F.count(F.lit(1)).alias("rows")
        )
        _ = files.schema
    except Exception as error:
        if not read_condition(error):
            raise
        return _snapshot_of_rows(frame, frame.columns if columns is None else columns)
    n_files, (digest,), (rows, size) = digest_and_sum(
        files, [files.columns], [column("rows"), column("file_size")]
    )
    return Snapshot(rows=rows, files=n_files, bytes=size, digest=digest)


def _snapshot_of_rows(frame: DataFrame, columns: list[str]) -> Snapshot:
    values = [
        ml_vector_to_array(name).alias(f"c{number}") if is_ml_vector(frame.schema[name].dataType)
        else column(name).alias(f"c{number}")
        for number, name in enumerate(columns)
        if frame.columns.count(name) == 1
    ]  # fmt: skip
    # `int`, because the Connect client of Spark 3.5 returns an integer of numpy from `count`.
    if not values:  # the columns are missing; `ingest` will say so
        return Snapshot(rows=int(frame.count()), digest=uuid4().hex)
    chosen = frame.select(*values)
    sizes = [count_row_bytes(chosen)]
    try:
        rows, (digest,), (size,) = digest_and_sum(chosen, [chosen.columns], sizes)
    except Exception as error:
        if not read_condition(error).startswith("DATATYPE_MISMATCH"):
            raise
        # Some columns cannot be hashed. A new digest each time means: never taken for unchanged.
        rows, _, (size,) = digest_and_sum(chosen, [], sizes)
        digest = uuid4().hex
    return Snapshot(rows=rows, bytes=size, digest=digest)
