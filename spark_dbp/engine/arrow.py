"""Let workers read committed tables themselves, as Parquet. `mapped_rows` has how they write.

Imports `files`, `paths`, `columns`, `compat` and `progress`; pyspark and pyarrow inside functions.

Most of what a run moves is vectors. Spark would decode them into rows, encode them as Arrow and send them
through a socket before a worker sees them. So workers read the files of committed tables themselves, at the
speed of pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import unquote

from spark_dbp.columns import DIMENSION, KEY, PROBLEM, VECTOR
from spark_dbp.engine.compat import (
    BatchFunction,
    count_shuffle_partitions,
    map_in_arrow,
)
from spark_dbp.lake import files, parquet_files
from spark_dbp.lake.progress import name_pass, report_progress

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

# Rows in a batch read from a file: with vectors, which are wide; and without.
_BATCH_ROWS, _NARROW_BATCH_ROWS = 4096, 65_536
# Bytes in a batch read from a file. About how many footers are read to find the length of the keys.
_BATCH_BYTES, _FOOTERS = 32 << 20, 16
# Most rows and bytes of a Parquet row group that a worker writes.
_GROUP_ROWS, _GROUP_BYTES = 2**19, 64 << 20


@dataclass(frozen=True)
class CommittedTable:
    """A committed table of samples or of assignments, which workers can read themselves.

    Attributes
    ----------
    spark : SparkSession
    path : str
        Directory of the table, reachable from the workers.
    frame : DataFrame
        The good rows of the table as a DataFrame.
    dimension : int, optional
        Dimension of the vectors of good rows.
    has_problems : bool
        Whether the files hold bad rows, which `frame` leaves out.
    progress : str, optional
        Directory in which workers note how many rows they have read.
    names : tuple of str, optional
        Names of the table's files in `path`. By default those of the files that `frame` reads.
    """

    spark: SparkSession
    path: str
    frame: DataFrame
    dimension: int | None = None
    has_problems: bool = False
    progress: str | None = None
    names: tuple[str, ...] | None = None

    def list_paths(self) -> list[str]:
        """Paths of the table's files; a directory may show others too, which a failed attempt left."""
        names = list_file_names(self.frame) if self.names is None else self.names
        return [files.join(self.path, name) for name in names]


def list_file_names(frame: DataFrame) -> list[str]:
    """Sorted names of the files that Spark reads for `frame`, without their directories."""
    return sorted({unquote(uri).rpartition("/")[2] for uri in frame.inputFiles()})


def measure_key_bytes(samples: DataFrame | CommittedTable) -> float:
    """About how many bytes a key has. Callers need it to bound a worker's memory: a key may have 10 KB.

    For a committed table, the footers of some files tell. For other rows it takes a pass over the keys.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    frame = samples.frame if isinstance(samples, CommittedTable) else samples
    if not isinstance(frame.schema[KEY].dataType, T.StringType | T.BinaryType):
        return 16.0
    if not isinstance(samples, CommittedTable):
        total, rows = frame.agg(F.sum(F.octet_length(KEY)), F.count(F.lit(1))).collect()[0]
        return (total or 0) / max(1, rows)
    paths = samples.list_paths()
    step = max(1, len(paths) // _FOOTERS)
    found = [
        parquet_files.measure_row_bytes(parquet_files.open_parquet(path).metadata, [KEY])
        for path in paths[::step]
    ]
    return max(found, default=16.0)


def map_batches(
    samples: DataFrame | CommittedTable,
    columns: list[str],
    function: BatchFunction,
    schema: StructType | str,
) -> DataFrame:
    """Like ``samples.select(columns).mapInArrow(function, schema)``; workers read the files where they can.

    Parameters
    ----------
    samples : DataFrame or CommittedTable
    columns : list of str
    function : callable
        Takes an iterator of record batches with `columns`, returns an iterator of record batches.
    schema : StructType or str
        Schema of the result.

    Returns
    -------
    DataFrame
    """
    source, mapped = plan_scan(samples, columns, function)
    return map_in_arrow(source, mapped, schema)


def plan_scan(
    samples: DataFrame | CommittedTable, columns: list[str], function: BatchFunction
) -> tuple[DataFrame, BatchFunction]:
    """The DataFrame and the function that `map_batches` gives to ``mapInArrow``.

    The DataFrame has the rows themselves, or only the numbers of the files that workers are to read.
    """
    if not isinstance(samples, CommittedTable) or (
        KEY in columns and not reads_alike(samples.frame.schema[KEY].dataType)
    ):
        frame = samples.frame if isinstance(samples, CommittedTable) else samples
        return frame.select(*columns), function
    paths = samples.list_paths()
    dimension = samples.dimension if samples.has_problems else None
    check = samples.has_problems
    notes = samples.progress and name_pass(samples.progress)

    def over_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        numbers = (number for batch in batches for number in batch.column(0).to_pylist())
        found = (
            batch for number in numbers for batch in _read_file(paths[number], columns, check, dimension)
        )
        yield from function(found if notes is None else report_progress(found, notes))

    n_tasks = max(1, len(paths))
    if VECTOR not in columns:  # a file is read quickly, so a task of its own would cost more than it saves
        n_tasks = min(n_tasks, count_shuffle_partitions(samples.spark))
    return samples.spark.range(0, len(paths), 1, n_tasks), over_files


def gather_batches(
    batches: Iterator[pa.RecordBatch], n_rows: int, n_bytes: float = float("inf")
) -> Iterator[pa.Table]:
    """Join batches into tables. A table ends with the batch that brings it to `n_rows` or to `n_bytes`."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    rows_held = bytes_held = 0
    for batch in batches:
        if not batch.num_rows:
            continue
        held.append(batch)
        rows_held += batch.num_rows
        bytes_held += batch.nbytes
        if rows_held >= n_rows or bytes_held >= n_bytes:
            yield pa.Table.from_batches(held)
            held, rows_held, bytes_held = [], 0, 0
    if held:
        yield pa.Table.from_batches(held)


def reads_alike(data_type: DataType) -> bool:
    """Whether values of this type stay the same when pyarrow reads or writes the Parquet file, not Spark."""
    from pyspark.sql import types as T

    return isinstance(
        data_type,
        T.StringType
        | T.BinaryType
        | T.BooleanType
        | T.IntegralType
        | T.FloatType
        | T.DoubleType
        | T.DateType
        | T.DecimalType,
    )


def _read_file(path: str, columns: list[str], check: bool, dimension: int | None) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc

    wanted = columns + ([PROBLEM] if check else []) + ([DIMENSION] if dimension is not None else [])
    n_rows = _BATCH_ROWS if VECTOR in columns else _NARROW_BATCH_ROWS
    for batch in parquet_files.iter_parquet(path, wanted, n_rows, _BATCH_BYTES):
        if check:
            good = pc.is_null(batch.column(PROBLEM))
            if dimension is not None:
                good = pc.and_(good, pc.fill_null(pc.equal(batch.column(DIMENSION), dimension), False))
            batch = batch.filter(good)
        if batch.num_rows:
            yield batch.select(columns)
