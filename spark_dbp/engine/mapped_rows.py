"""Let workers write the tables that they compute, and count what they write.

Imports `arrow`, `blocks`, `compat`, `files`, `paths` and `row_hash`; pyspark and pyarrow inside functions.

Spark would decode and encode what workers compute row by row. So they write Parquet files themselves. These
are drafts until a worker has named them to the driver, so files of failed or repeated tasks never get into
the table. Workers hash every row on the way, which is far cheaper than to read the table again: the sums are
its digest, and equal hashes of keys tell that a key may occur twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from spark_dbp.columns import CLUSTER_ID, VECTOR
from spark_dbp.engine.arrow import CommittedTable, gather_batches, reads_alike
from spark_dbp.engine.blocks import BLOCKS, make_block, number_tasks, shuffle_blocks
from spark_dbp.engine.compat import (
    BatchFunction,
    count_shuffle_partitions,
    map_in_arrow,
    open_reader,
    read_parquet_codec,
    to_arrow_schema,
)
from spark_dbp.kernels.row_hash import Hashes, hash_rows, sum_hashes
from spark_dbp.lake import files, parquet_files, paths

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

# Most rows and bytes of a Parquet row group that a worker writes.
_GROUP_ROWS, _GROUP_BYTES = 2**19, 64 << 20
# Keys whose hashes a worker compares at a time. It holds these about three times.
_COMPARED = 4_000_000
# The part of a shuffle that holds no hashes, but what workers report.
_REPORTS = -1

# What workers count of rows, given the hashes of their keys too.
Count = Callable[["pa.Table", Hashes], Mapping[str, int]]


@dataclass(frozen=True)
class WrittenFile:
    """A file that a worker wrote, and what it counted on the way.

    Attributes
    ----------
    name : str
        Empty where a worker had no rows to write, but counted some.
    rows : int
    digest, key_digest : int
        Sums of the hashes of all columns, and of the first one alone (see `kernels.row_hash`).
    totals : dict of str to int
    """

    name: str
    rows: int = 0
    digest: int = 0
    key_digest: int = 0
    totals: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class WrittenRows:
    """What workers wrote to a directory.

    Attributes
    ----------
    files : list of WrittenFile
    has_equal_hashes : bool
        Whether two keys have the same hash, so that they may be the same. Only where that was asked for.
    """

    files: list[WrittenFile] = field(default_factory=list)
    has_equal_hashes: bool = False

    @property
    def names(self) -> list[str]:
        """Names of the files."""
        return [file.name for file in self.files if file.name]

    def add_up(self, what: str) -> int:
        """Sum of ``rows``, ``digest`` or ``key_digest`` over all files."""
        return sum(getattr(file, what) for file in self.files)

    @property
    def totals(self) -> Counter[str]:
        """Sums of what was counted."""
        found: Counter[str] = Counter()
        for file in self.files:
            found.update(file.totals)
        return found


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
    problem : str, optional
        A further column of what `function` returns. Rows where it is not null are counted and not written.
    """

    source: DataFrame
    function: BatchFunction
    schema: StructType
    rest: DataFrame | None = None
    problem: str | None = None

    def to_frame(self) -> DataFrame:
        """The rows as a DataFrame."""
        made = map_in_arrow(self.source, self.function, self.schema)
        return made if self.rest is None else made.unionByName(self.rest)

    def can_be_written(self) -> bool:
        """Whether workers can write these columns so that Spark reads the same values."""
        return all(reads_alike(field.dataType) for field in self.schema)

    def write_parquet(self, path: str, count: Count | None = None, n_keys: int | None = None) -> WrittenRows:
        """Write the rows to the new directory `path`, reachable from the workers.

        Parameters
        ----------
        path : str
        count : callable, optional
            What workers count of the rows.
        n_keys : int, optional
            About how many rows there are. Where it is given, the hashes of keys are compared.

        Returns
        -------
        WrittenRows
            Without files where Spark wrote them, which does not tell.
        """
        if not self.can_be_written():
            self.to_frame().write.parquet(files.to_spark_path(path))
            return WrittenRows()
        draft = files.join(path, f"_draft-{uuid4().hex[:8]}")
        written = self._write_files(self.source, self.function, draft, count, n_keys)
        if self.rest is not None:
            rest = self._write_files(self.rest, lambda batches: batches, draft, count, None)
            written = WrittenRows(written.files + rest.files, written.has_equal_hashes)
        files.publish(draft, written.names, path)
        if not written.names:  # no rows at all: Spark writes an empty file that has the columns
            self.to_frame().limit(0).write.parquet(files.to_spark_path(path))
        return written

    def write_any(self, path: str, as_they_are: Sequence[str] = ()) -> WrittenRows:
        """Write rows with columns of any type to the new directory `path`, for others: nothing is digested.

        Parameters
        ----------
        path : str
            Reachable from the workers.
        as_they_are : sequence of str
            Columns that neither a codec nor a dictionary makes smaller.

        Returns
        -------
        WrittenRows
            Names and rows of the files.
        """
        draft = files.join(path, f"_draft-{uuid4().hex[:8]}")
        schema = to_arrow_schema(self.schema)
        leaves = parquet_files.list_leaves(schema)
        codec = read_parquet_codec(self.source.sparkSession)
        small = [leaf for leaf in leaves if leaf.split(".")[0] not in as_they_are]
        how = {
            "compression": {leaf: codec if leaf in small else "none" for leaf in leaves},
            "use_dictionary": small,
        }
        written = self._write_files(self.source, self.function, draft, None, None, digests=False, **how)
        files.publish(draft, written.names, path)
        return written

    def _write_files(
        self,
        source: DataFrame,
        function: BatchFunction,
        draft: str,
        count: Count | None,
        n_keys: int | None,
        *,
        digests: bool = True,
        **how: Any,
    ) -> WrittenRows:
        """Let the workers write files to the directory `draft`."""
        schema, problem = to_arrow_schema(self.schema), self.problem
        if not how:
            codec = read_parquet_codec(source.sparkSession)
            # No codec makes vectors smaller, and all of them take time to read.
            # Keys are all different, so a dictionary of them would save nothing.
            how = {
                "compression": {n: "none" if n == VECTOR else codec for n in schema.names},
                "use_dictionary": [CLUSTER_ID],
            }
        n_parts = 0 if n_keys is None else max(1, -(-n_keys // _COMPARED))
        n_tasks = min(max(1, n_parts), count_shuffle_partitions(source.sparkSession))
        tasks = number_tasks(source, n_tasks)

        def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            import pyarrow.compute as pc
            from pyspark import TaskContext

            context = TaskContext.get()
            name = f"part-{context.partitionId() if context else 0:05d}-{uuid4().hex[:8]}.parquet"
            sink, sums, totals = None, [0, 0, 0], Counter[str]()
            for table in gather_batches(function(batches), _GROUP_ROWS, _GROUP_BYTES):
                hashes = _hash_keys(table) if digests else np.zeros(0, np.uint64)
                if count is not None:
                    totals.update(count(table, hashes))
                if problem is not None and table.column(problem).null_count < table.num_rows:
                    is_good = pc.is_null(table.column(problem))
                    table, hashes = table.filter(is_good), hashes[is_good.to_numpy()]
                if not table.num_rows:
                    continue
                if sink is None:
                    path = files.join(draft, name)
                    sink = parquet_files.ParquetSink(path, schema, write_statistics=True, **how)
                rows = table.select(schema.names).cast(schema)
                sink.write(rows)
                digest = sum_hashes(_hash_whole_rows(rows, hashes)) if digests else 0
                counted = rows.num_rows, digest, sum_hashes(hashes)
                sums = [total + more for total, more in zip(sums, counted, strict=True)]
                if n_parts:
                    yield from _split_hashes(hashes, n_parts, tasks)
            if sink is not None:
                sink.close()
            if sink is not None or totals:
                n_rows, digest, key_digest = sums
                file = WrittenFile(name if sink is not None else "", n_rows, digest, key_digest, dict(totals))
                yield make_block(int(tasks[0]), _REPORTS, json.dumps(vars(file)).encode())

        blocks = map_in_arrow(source, write, BLOCKS)
        if not n_parts:
            return WrittenRows([WrittenFile(**json.loads(row.rows)) for row in blocks.collect()])
        compared = map_in_arrow(shuffle_blocks(blocks, n_tasks), _compare_hashes, "part INT, report BINARY")
        rows = compared.collect()
        reports = [WrittenFile(**json.loads(row.report)) for row in rows if row.part == _REPORTS]
        return WrittenRows(reports, has_equal_hashes=len(rows) > len(reports))


def _hash_keys(table: pa.Table) -> Hashes:
    """Hashes of the first column."""
    return np.concatenate([hash_rows([keys]) for keys in table.column(0).chunks])


def _hash_whole_rows(rows: pa.Table, keys: Hashes) -> Hashes:
    """Hashes of all columns, from those of the first one."""
    batch = rows.combine_chunks().to_batches()[0]
    return hash_rows(batch.columns[1:], keys)


def _split_hashes(hashes: Hashes, n_parts: int, tasks: Any) -> Iterator[pa.RecordBatch]:
    """Blocks of hashes; equal ones are in the same part."""
    part = ((hashes >> np.uint64(32)) * np.uint64(n_parts) >> np.uint64(32)).astype(np.uint16)
    order = np.argsort(part, kind="stable")  # of 16-bit numbers, by radix
    bounds = np.searchsorted(part[order], np.arange(n_parts + 1))
    for number, (start, stop) in enumerate(pairwise(bounds)):
        if start < stop:
            content = hashes[order[start:stop]].tobytes()
            yield make_block(int(tasks[number % len(tasks)]), number, content)


def _compare_hashes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The reports of workers, and each part in which two hashes are equal."""
    import pyarrow as pa

    held: list[Hashes] = []
    part = _REPORTS

    def has_equal() -> bool:
        hashes = np.sort(np.concatenate(held)) if held else np.zeros(0, np.uint64)
        return bool((hashes[1:] == hashes[:-1]).any())

    schema = pa.schema([("part", pa.int32()), ("report", pa.binary())])
    for batch in batches:
        for number, content in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
            if number == _REPORTS:
                yield pa.RecordBatch.from_pydict({"part": [number], "report": [content.as_py()]}, schema)
                continue
            if number != part:
                if has_equal():
                    yield pa.RecordBatch.from_pydict({"part": [part], "report": [b""]}, schema)
                held, part = [], number
            held.append(np.frombuffer(content.as_buffer(), np.uint64))
    if has_equal():
        yield pa.RecordBatch.from_pydict({"part": [part], "report": [b""]}, schema)


def to_frame(rows: DataFrame | CommittedTable | MappedRows) -> DataFrame:
    """The rows as a DataFrame, however they are held."""
    if isinstance(rows, MappedRows):
        return rows.to_frame()
    return rows.frame if isinstance(rows, CommittedTable) else rows


def write_and_read_back(frame: DataFrame, path: str) -> DataFrame:
    """Write `frame` to a new directory and read it back, so that what is used twice is computed once."""
    write_rows(frame, path)
    return open_reader(frame.sparkSession).schema(frame.schema).parquet(paths.to_spark_source(path))


def write_rows(
    rows: DataFrame | MappedRows, path: str, count: Count | None = None, n_keys: int | None = None
) -> WrittenRows:
    """Write rows to the new directory `path`: by workers where they can, else by Spark.

    See `MappedRows.write_parquet`.
    """
    if isinstance(rows, MappedRows):
        return rows.write_parquet(path, count, n_keys)
    rows.write.parquet(files.to_spark_path(path))
    return WrittenRows()
