"""Let workers read committed tables and write new ones themselves, as Parquet.

Imports `files`, `paths`, `columns`, `compat` and `progress`; pyspark and pyarrow inside functions.

Most of what a run moves is vectors. Spark would decode them into rows, encode them as Arrow and send them
through a socket before a worker sees them. So workers read the files of committed tables themselves, at the
speed of pyarrow. Workers also write their results themselves, because Spark would decode and encode these row
by row. The files that a worker writes are drafts until it has named them to the driver, so files of failed or
repeated tasks never get into the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote
from uuid import uuid4

from spark_dbp.columns import CLUSTER_ID, DIMENSION, KEY, PROBLEM, VECTOR
from spark_dbp.engine.compat import (
    BatchFunction,
    count_shuffle_partitions,
    map_in_arrow,
    open_reader,
    read_parquet_codec,
    to_arrow_schema,
)
from spark_dbp.lake import files, paths
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

    frame = to_frame(samples)
    if not isinstance(frame.schema[KEY].dataType, T.StringType | T.BinaryType):
        return 16.0
    if not isinstance(samples, CommittedTable):
        total, rows = frame.agg(F.sum(F.octet_length(KEY)), F.count(F.lit(1))).collect()[0]
        return (total or 0) / max(1, rows)
    paths = samples.list_paths()
    step = max(1, len(paths) // _FOOTERS)
    found = [files.measure_row_bytes(files.open_parquet(path).metadata, [KEY]) for path in paths[::step]]
    return max(found, default=16.0)


def write_and_read_back(frame: DataFrame, path: str) -> DataFrame:
    """Write `frame` to a new directory and read it back, so that what is used twice is computed once."""
    write_rows(frame, path)
    return open_reader(frame.sparkSession).schema(frame.schema).parquet(paths.to_spark_source(path))


def to_frame(rows: DataFrame | CommittedTable | MappedRows) -> DataFrame:
    """The rows as a DataFrame, however they are held."""
    if isinstance(rows, MappedRows):
        return rows.to_frame()
    return rows.frame if isinstance(rows, CommittedTable) else rows


def write_rows(
    rows: DataFrame | MappedRows, path: str, totals: Mapping[str, Counter] | None = None
) -> list[WrittenFile]:
    """Write rows to the new directory `path`: by workers where they can, else by Spark.

    Parameters
    ----------
    rows : DataFrame or MappedRows
    path : str
    totals : mapping of str to callable, optional
        What workers count of the rows that they write.

    Returns
    -------
    list of WrittenFile
        The files that workers wrote. Empty where Spark wrote them, which does not tell.
    """
    if isinstance(rows, MappedRows):
        return rows.write_parquet(path, totals)
    rows.write.parquet(files.to_spark_path(path))
    return []


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
        return to_frame(samples).select(*columns), function
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
    for batch in files.iter_parquet(path, wanted, n_rows, _BATCH_BYTES):
        if check:
            good = pc.is_null(batch.column(PROBLEM))
            if dimension is not None:
                good = pc.and_(good, pc.fill_null(pc.equal(batch.column(DIMENSION), dimension), False))
            batch = batch.filter(good)
        if batch.num_rows:
            yield batch.select(columns)


# What workers count of a table of rows.
Counter = Callable[["pa.Table"], int]


@dataclass(frozen=True)
class WrittenFile:
    """A file that a worker wrote, and what it counted on the way.

    Attributes
    ----------
    name : str
    rows : int
    digest, key_digest : int
        Sums of the hashes of all columns, and of the column ``key`` alone (see `kernels.row_hash`).
    totals : dict of str to int
    """

    name: str
    rows: int = 0
    digest: int = 0
    key_digest: int = 0
    totals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class MappedRows:
    """The rows that a function makes of a DataFrame in the workers, which can write them themselves.

    Attributes
    ----------
    source : DataFrame
    function : callable
        Takes an iterator of record batches with the columns of `source`, returns one with those of `schema`.
    schema : StructType
        Its first column is ``key``.
    rest : DataFrame, optional
        Further rows, which Spark computes.
    """

    source: DataFrame
    function: BatchFunction
    schema: StructType
    rest: DataFrame | None = None

    def to_frame(self) -> DataFrame:
        """The rows as a DataFrame."""
        made = map_in_arrow(self.source, self.function, self.schema)
        return made if self.rest is None else made.unionByName(self.rest)

    def write_parquet(self, path: str, totals: Mapping[str, Counter] | None = None) -> list[WrittenFile]:
        """Write the rows to the new directory `path`, reachable from the workers.

        Returns
        -------
        list of WrittenFile
            The files that workers wrote. Empty where Spark wrote them, which does not tell.
        """
        if not all(reads_alike(field.dataType) for field in self.schema):
            self.to_frame().write.parquet(files.to_spark_path(path))
            return []
        draft = files.join(path, f"_draft-{uuid4().hex[:8]}")
        written = self._write_files(self.source, self.function, draft, totals or {})
        if self.rest is not None:
            written += self._write_files(self.rest, lambda batches: batches, draft, totals or {})
        files.publish(draft, [file.name for file in written], path)
        if not written:  # no rows at all: Spark writes an empty file that has the columns
            self.to_frame().limit(0).write.parquet(files.to_spark_path(path))
        return written

    def _write_files(
        self, source: DataFrame, function: BatchFunction, draft: str, totals: Mapping[str, Counter]
    ) -> list[WrittenFile]:
        """Let the workers write files to the directory `draft`."""
        schema, codec = to_arrow_schema(self.schema), read_parquet_codec(source.sparkSession)

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            import pyarrow as pa
            from pyspark import TaskContext

            context = TaskContext.get()
            name = f"part-{context.partitionId() if context else 0:05d}-{uuid4().hex[:8]}.parquet"
            sink, sums = None, [0, 0, 0, *(0 for _ in totals)]
            for table in gather_batches(function(batches), _GROUP_ROWS, _GROUP_BYTES):
                if sink is None:
                    # Keys are all different, so a dictionary of them would save nothing.
                    sink = files.ParquetSink(
                        files.join(draft, name),
                        schema,
                        compression=codec,
                        use_dictionary=[CLUSTER_ID],
                        write_statistics=True,
                    )
                rows = table.select(schema.names).cast(schema)
                sink.write(rows)
                counted = [rows.num_rows, *_digest(rows), *(count(rows) for count in totals.values())]
                sums = [total + more for total, more in zip(sums, counted, strict=True)]
            if sink is not None:
                sink.close()
                rows_written, digest, key_digest, *others = sums
                named = dict(zip(totals, others, strict=True))
                file = WrittenFile(name, rows_written, digest, key_digest, named)
                yield pa.RecordBatch.from_pydict({"file": [json.dumps(vars(file))]})

        found = map_in_arrow(source, write, "file STRING").collect()
        return [WrittenFile(**json.loads(row.file)) for row in found]


def _digest(rows: pa.Table) -> tuple[int, int]:
    """Sums of the hashes of all columns, and of the first one alone, which is ``key``."""
    from spark_dbp.kernels.row_hash import hash_rows, sum_hashes

    digest = key_digest = 0
    for batch in rows.to_batches():
        keys = hash_rows(batch.columns[:1])
        key_digest += sum_hashes(keys)
        digest += sum_hashes(hash_rows(batch.columns[1:], keys))
    return digest, key_digest
