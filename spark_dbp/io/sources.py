"""Open the input table of a run, and notice when it changes while the run reads it.

Imports `compat`, `catalog`, `row_bytes`, `expressions`, `forms`, `spark_errors`, `footers`, `input_files`,
`errors` and `digest`; pyspark inside functions.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.engine.catalog import TableVersion, find_version, read_version, refresh_table
from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array, open_reader
from spark_dbp.engine.expressions import (
    check_expression,
    find_names,
    refuse_ambiguous_names,
    refuse_expression,
)
from spark_dbp.engine.file_scan import FileScan, NotPlainError, plan_file_scan
from spark_dbp.engine.forms import compute_columns
from spark_dbp.engine.row_bytes import count_row_bytes
from spark_dbp.engine.spark_errors import read_condition, translate_errors
from spark_dbp.errors import InputError
from spark_dbp.io.footers import list_parquet, read_parquet, take_types_from_rows
from spark_dbp.io.input_files import list_read_files, name_literally, read_checked, read_folders_as_text
from spark_dbp.lake.digest import digest_and_sum

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession


log = logging.getLogger("spark_dbp")


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
        Of the path, size, modification time and number of rows of every file. For a view, of its rows. For a
        Delta or Iceberg table, of its version.
    version : str or None
        ``Delta version 7``, ``Iceberg snapshot 3777742893977342910``; None for other tables.
    """

    rows: int
    files: int | None = None
    bytes: int | None = None
    digest: str | None = None
    version: str | None = None

    @property
    def bytes_per_row(self) -> float:
        """Bytes of the files for each row, about as many as a row takes in memory; 0 where not known."""
        return (self.bytes or 0) / max(1, self.rows)

    def __str__(self) -> str:
        if self.version is not None:
            return f"{self.version} ({self.rows:,} rows)"
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
        All rows and columns, and those that are computed, before the filter.
    snapshot : Snapshot
    is_pinned : bool
        Whether `frame` is a version of a Delta or Iceberg table, whatever is written to that meanwhile.
    given : DataFrame
        `frame` before columns are computed.
    compute : callable
        Makes of `given`, or of some of its rows, what `frame` is.
    name : str
        The setting and its value, for messages: ``input.path /data/x``.
    look_again : callable, optional
        Takes the snapshot anew, for what is neither Parquet nor a table.
    scan : callable, optional
        Plans how workers read it, given where they note how far they are.
    has_shards : bool
        Whether `given` lists the samples of a WebDataset.
    """

    spark: SparkSession
    paths: list[str]
    table: str | None
    predicate: str | None
    frame: DataFrame
    snapshot: Snapshot
    is_pinned: bool
    given: DataFrame
    compute: Callable[[DataFrame], DataFrame]
    name: str
    look_again: Callable[[], Snapshot] | None = None
    scan: Callable[[str], FileScan] | None = None
    has_shards: bool = False

    def read_rows(self, some: Column | None = None) -> DataFrame:
        """Rows that the filter lets through, with all their columns.

        Parameters
        ----------
        some : Column, optional
            A condition on the rows of `given`, which may name the file that a row is from.

        Raises
        ------
        ConfigError
            When the filter is no valid SQL for these columns.
        """
        frame = self.frame if some is None else self.compute(self.given.where(some))
        return apply_filter(frame, self.predicate)

    def plan_scan(self, columns: Collection[str], progress: str) -> FileScan:
        """Share the files of the table among tasks that read them themselves.

        Raises
        ------
        NotPlainError
            When only Spark can read just these rows.
        """
        if self.predicate is not None:
            raise NotPlainError("it is filtered")
        if self.scan is not None:
            for name in columns:
                if name not in self.given.columns:
                    raise NotPlainError(f"{name!r} is no column of its own")
            return self.scan(progress)
        if not self.paths:
            raise NotPlainError("it is a table of the catalog")
        return plan_file_scan(self.frame, columns, self.snapshot.rows, progress)

    def check_unchanged(self, rows_read: int | None = None) -> None:
        """Refuse a table that has changed since the snapshot.

        A version of a Delta or Iceberg table stays as it is. A view does not list its files, so only its row
        count is compared. Its rows may come from a computation that differs each time. The run uses the rows
        that it has written.

        Parameters
        ----------
        rows_read : int, optional
            Number of rows that were read, after the filter.

        Raises
        ------
        InputError
            When the files, or the number of rows, have changed.
        """
        if self.snapshot.files is not None and not self.is_pinned:
            now = self._look_again()
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

    def _look_again(self) -> Snapshot:
        if self.look_again is not None:
            return self.look_again()
        if self.paths:
            with translate_errors(self.name, opening=True):
                return take_snapshot(list_parquet(self.spark, self.paths), is_whole=True)
        frame = _read(self.spark, [], self.table)  # lists the files anew
        version = find_version(self.spark, self.table) if self.table and self.snapshot.version else None
        return take_snapshot(frame) if version is None else _snapshot_of_version(frame, version)


def open_source(
    spark: SparkSession,
    *,
    paths: list[str] | None = None,
    table: str | None = None,
    predicate: str | None = None,
    columns: list[str],
    computed: Collection[tuple[str, str]] = (),
    written: Iterable[tuple[str, str]] = (),
    compared: Collection[str] = (),
    digested: list[str] | None = None,
    only_looks: bool = False,
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
        Columns that are read.
    computed : collection of (str, str)
        For those of `columns` that are SQL, the key of the configuration and the SQL.
    written : iterable of (str, str)
        All SQL as the user wrote it, before what depends on the moment was replaced.
    compared : collection of str
        Columns whose values are told apart: the key, and those that deduplication compares. Where they come
        from names of folders, they are read as texts.
    digested : list of str, optional
        Columns of which the snapshot of a view is a digest; by default all of `columns`.
    only_looks : bool
        Whether a view, which does not list its files, is counted but not digested: its snapshot then has no
        digest.

    Returns
    -------
    Source

    Raises
    ------
    InputError
        When there is no such path or table, or files of it are passed over or named twice (`passed_over`).
    ConfigError
        When SQL of the configuration is refused.
    """
    paths, found, version = name_literally(paths or []), None, None
    # Columns that the run needs, among them those that SQL names.
    needed = [*columns, *(name for _, sql in computed for name in find_names(sql))]
    if paths:
        frame, found = read_checked("input.path", paths, lambda: _read(spark, paths, None, needed, predicate))
    else:
        frame = _read(spark, [], table)
    with translate_errors(_name(paths, table)):
        is_pinned = False
        if table:
            frame, version, is_pinned = _pin(spark, table, frame)
        if found is not None:
            uris = found.column("file_path").to_pylist()
            frame = take_types_from_rows(frame, paths, len(uris), needed, predicate)
            frame = read_folders_as_text(frame, paths, uris, compared)
        refuse_ambiguous_names(written, frame.columns)
        if predicate is not None:
            check_expression(frame, predicate, "input.filter")
        given, compute = frame, partial(compute_columns, names=columns, expressions=computed)
        frame = compute(given)
        if version is not None:
            snapshot = _snapshot_of_version(frame, version)
        else:
            snapshot = (
                take_snapshot(frame, digested or columns, only_looks=only_looks)
                if found is None
                else _summarize(found)
            )
    name = _name(paths, table)
    return Source(spark, paths, table, predicate, frame, snapshot, is_pinned, given, compute, name)


def _pin(spark: SparkSession, table: str, frame: DataFrame) -> tuple[DataFrame, TableVersion | None, bool]:
    """The newest version of a Delta or Iceberg table, as a DataFrame where that can be read; else `frame`.

    A version has the columns with which it was written. Where these are not the table's any more (a column
    was renamed since), the table itself is read, and looked at again when that is done.
    """
    version = find_version(spark, table)
    if version is None:
        return frame, None, False
    pinned = read_version(spark, table, version)
    if pinned is None or pinned.schema.simpleString() != frame.schema.simpleString():
        return frame, version, False
    log.info("input.table %s: read at %s", table, version)
    return pinned, version, True


def _snapshot_of_version(frame: DataFrame, version: TableVersion) -> Snapshot:
    identity = [version.format, version.table_id, version.number]
    n_bytes = version.bytes
    if n_bytes is None:  # so that Arrow batches of wide rows are bounded all the same
        n_bytes = _snapshot_of_rows(frame, frame.columns).bytes
    return Snapshot(
        rows=int(frame.count()),
        files=version.files or 0,
        bytes=n_bytes,
        digest=hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16],
        version=str(version),
    )


def _name(paths: list[str], table: str | None) -> str:
    return f"input.path {', '.join(paths)}" if paths else f"input.table {table}"


def _read(
    spark: SparkSession,
    paths: list[str],
    table: str | None,
    columns: Sequence[str] = (),
    predicate: str | None = None,
) -> DataFrame:
    with translate_errors(_name(paths, table), opening=True):
        if table:  # a session remembers which files a table has, and other programs write to it
            refresh_table(spark, table)
        frame = open_reader(spark).table(table) if table else read_parquet(spark, paths, columns, predicate)
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
        raise refuse_expression(error, predicate, "input.filter", frame.columns) from error


def take_snapshot(
    frame: DataFrame,
    columns: list[str] | None = None,
    *,
    is_whole: bool = False,
    only_looks: bool = False,
) -> Snapshot:
    """Count the rows of `frame`, and digest the list of its files.

    Parameters
    ----------
    frame : DataFrame
        As Spark reads a path or a table. Only the footers of the files are read.
    columns : list of str, optional
        Columns to digest for a view, which does not list its files. By default all.
    is_whole : bool
        Whether `frame` is just what Spark reads from paths.
    only_looks : bool
        Whether a view is only counted.

    Returns
    -------
    Snapshot
    """
    found = list_read_files(frame, is_whole=is_whole)
    if found is None and only_looks:
        return Snapshot(rows=int(frame.count()))
    return _summarize(found) if found is not None else _snapshot_of_rows(frame, columns or frame.columns)


def _summarize(found: pa.Table) -> Snapshot:
    return summarize_files(tuple(row.values()) for row in found.to_pylist())


def summarize_files(rows: Iterable[tuple[str, int, int, int]]) -> Snapshot:
    """The snapshot of files, each with its URI as Spark writes it, bytes, time of change and rows.

    Examples
    --------
    >>> str(summarize_files([("file:/x/a.parquet", 900, 1_700_000_000_000_000, 20)]))
    '20 rows in 1 files of 900 bytes'
    """
    rows = sorted(rows)
    digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
    return Snapshot(
        rows=sum(row[3] for row in rows), files=len(rows), bytes=sum(row[1] for row in rows), digest=digest
    )


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
