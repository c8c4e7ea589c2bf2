"""Write a table of the run, and see that what lies there is what was to be written.

Imports `mapped_rows`, `arrow`, `compat`, `lake`, `row_hash` and `errors`; pyspark inside functions.

Where workers write, they count and digest their rows on the way, and the footers of their files must agree.
What Spark writes is read back. So what is committed is what lies there, whatever the tasks that wrote it went
through.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY
from spark_dbp.engine.arrow import list_file_names
from spark_dbp.engine.compat import from_arrow_schema, open_reader, to_arrow_schema
from spark_dbp.engine.mapped_rows import Count, MappedRows, WrittenRows, write_rows
from spark_dbp.errors import SparkDbpError
from spark_dbp.kernels.row_hash import digest_rows, write_digest
from spark_dbp.lake import files, parquet_files, paths
from spark_dbp.lake.digest import digest_and_sum
from spark_dbp.lake.table_files import read_footers

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType


@dataclass(frozen=True)
class WrittenTable:
    """What is known of a table that a step wrote.

    Attributes
    ----------
    frame : DataFrame
        The table.
    names : list of str
        Names of its files.
    rows : int
    digest : str
        Of all columns.
    key_digest : str
        Of the column ``key`` alone; empty for a small table.
    totals : dict of str to int
        Sums of whole numbers that the writer asked for.
    by_workers : WrittenRows
        What workers reported; nothing where Spark wrote.
    """

    frame: DataFrame
    names: list[str]
    rows: int
    digest: str
    key_digest: str = ""
    totals: Mapping[str, int] = field(default_factory=dict)
    by_workers: WrittenRows = field(default_factory=WrittenRows)


def read_frame(spark: SparkSession, path: str, schema: StructType | None = None) -> DataFrame:
    """The Parquet files of a directory. Without a schema, Spark starts a job to look for it."""
    reader = open_reader(spark)
    return (reader if schema is None else reader.schema(schema)).parquet(paths.to_spark_source(path))


def write_table(
    spark: SparkSession,
    table: str,
    rows: DataFrame | MappedRows,
    path: str,
    *,
    describe: Callable[[str], AbstractContextManager[None]],
    totals: Mapping[str, Column],
    count: Count | None = None,
    n_keys: int | None = None,
) -> WrittenTable:
    """Write `rows` to a new directory, and see what lies there.

    Parameters
    ----------
    spark : SparkSession
    table : str
        Name of the table, for messages.
    rows : DataFrame or MappedRows
    path : str
    describe : callable
        Says in Spark's UI what jobs are for.
    totals : mapping of str to Column
        Whole numbers of the table's rows to add up, where Spark reads them back.
    count : callable, optional
        What workers count while they write; the same totals, and perhaps more.
    n_keys : int, optional
        About how many rows there are. Where it is given, workers compare the hashes of keys.

    Returns
    -------
    WrittenTable

    Raises
    ------
    SparkDbpError
        When what lies there has other columns, files or rows than were written.
    """
    schema = rows.schema
    with describe(f"write {table}"):
        by_workers = write_rows(rows, path, count, n_keys)
    if by_workers.names:
        _check_footers(table, path, schema, by_workers)
        digest, keys = (write_digest(by_workers.add_up(name)) for name in ("digest", "key_digest"))
        frame, n_rows = read_frame(spark, path, schema), by_workers.add_up("rows")
        return WrittenTable(frame, by_workers.names, n_rows, digest, keys, by_workers.totals, by_workers)
    back = read_frame(spark, path)
    check_equal(table, "columns", _describe_columns(back.schema), _describe_columns(schema))
    # The first pass over what was written, by which it is also known that it can be read.
    with describe(f"read {table} back"):
        n_rows, (digest, keys), sums = digest_and_sum(back, [back.columns, [KEY]], totals.values())
    found = {**dict(zip(totals, sums, strict=True)), **by_workers.totals}
    return WrittenTable(back, list_file_names(back), n_rows, digest, keys, found, by_workers)


def write_small_table(spark: SparkSession, table: str, content: pa.Table, path: str) -> WrittenTable:
    """Write a table of O(k) rows from the driver to a new directory, and read it back there."""
    name = parquet_files.write_parquet(path, content)
    check_equal(table, "files", files.list_names(path), [name])
    back = parquet_files.read_parquet(path)
    check_equal(table, "content", back.equals(content), True)
    frame = read_frame(spark, path, from_arrow_schema(content.schema))
    return WrittenTable(frame, [name], back.num_rows, digest_rows(back))


def check_equal(table: str, what: str, found: Any, expected: Any) -> None:
    """Refuse a table that is not as it was to be; `expected` may be None, which is not compared.

    Raises
    ------
    SparkDbpError
    """
    if expected is not None and found != expected:
        raise SparkDbpError(
            f"table {table} has {what} {found} where {expected} was written",
            mend="something else wrote to the run directory, or this is a bug: run again, then report it",
        )


def _describe_columns(schema: StructType) -> str:
    return ", ".join(f"{field.name} {field.dataType.simpleString()}" for field in schema)


def _check_footers(table: str, path: str, schema: StructType, written: WrittenRows) -> None:
    """See that the files that workers wrote, and no others, lie in the directory of a table."""
    shown = {name for name in files.list_names(path) if not name.startswith(("_", "."))}
    for name in sorted(shown ^ set(written.names)):
        raise SparkDbpError(
            f"table {table}: file {name!r} was "
            + ("not written, and lies there" if name in shown else "written, and is not there"),
            mend="something else wrote to the run directory, or this is a bug: run again, then report it",
        )
    columns = to_arrow_schema(schema)
    rows = {file.name: file.rows for file in written.files}
    for name, (n_rows, found) in zip(written.names, read_footers(path, written.names), strict=True):
        check_equal(f"{table}, file {name!r}", "rows", n_rows, rows[name])
        check_equal(f"{table}, file {name!r}", "columns", found.equals(columns), True)
