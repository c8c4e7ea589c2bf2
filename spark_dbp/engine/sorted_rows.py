"""Rows of a DataFrame in order on the driver, a few at a time. Imports `arrow` and `compat`.

Spark sorts, in ranges that are partitions. The driver asks for one partition after the other, so it holds
about two of them, whatever their number. Nobody needs to reach a storage for it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from spark_dbp.engine.arrow import gather_batches
from spark_dbp.engine.compat import map_in_arrow

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

# Bytes of a partition that is sorted and sent, and rows and bytes that travel together.
_PART_BYTES, _SENT_ROWS, _SENT_BYTES = 32 << 20, 65_536, 4 << 20


def stream_sorted(
    frame: DataFrame, order: Sequence[Column | str], n_bytes: float
) -> Iterator[pa.RecordBatch]:
    """Sort a DataFrame, and bring its rows to the driver in this order.

    Parameters
    ----------
    frame : DataFrame
    order : sequence of Column or str
        By which no two rows should be equal, unless it does not matter which comes first.
    n_bytes : float
        About how many bytes all rows have. It decides in how many partitions they are sorted.

    Yields
    ------
    RecordBatch
        Of lengths that depend on the partitions: see `regroup_rows`.

    Examples
    --------
    >>> for batch in stream_sorted(frame, ["key"], 1e6):  # doctest: +SKIP
    ...     print(batch.num_rows)
    """
    n_parts = max(1, math.ceil(n_bytes / _PART_BYTES))
    spread = frame.repartition(1) if n_parts == 1 else frame.repartitionByRange(n_parts, *order)
    return iter_batches(spread.sortWithinPartitions(*order))


def iter_batches(frame: DataFrame) -> Iterator[pa.RecordBatch]:
    """The rows of a DataFrame on the driver, in the order of its partitions, a few at a time."""
    import pyarrow as pa

    def pack(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for table in gather_batches(batches, _SENT_ROWS, _SENT_BYTES):
            step = max(1, int(_SENT_BYTES * table.num_rows / max(1, table.nbytes)))
            for start in range(0, table.num_rows, step):
                sink = pa.BufferOutputStream()
                with pa.ipc.new_stream(sink, table.schema) as stream:
                    stream.write_table(table.slice(start, step).combine_chunks())
                yield pa.RecordBatch.from_pydict({"stream": [sink.getvalue().to_pybytes()]})

    for row in map_in_arrow(frame, pack, "stream BINARY").toLocalIterator(prefetchPartitions=True):
        yield from pa.ipc.open_stream(bytes(row.stream))


def regroup_rows(batches: Iterable[pa.RecordBatch], n_rows: int) -> Iterator[pa.Table]:
    """Tables of `n_rows` rows each, the last one of the rest, whatever the lengths of the batches.

    Examples
    --------
    >>> import pyarrow as pa
    >>> batches = [pa.RecordBatch.from_pydict({"x": x}) for x in ([1, 2, 3], [4], [5])]
    >>> [table.column("x").to_pylist() for table in regroup_rows(batches, 2)]
    [[1, 2], [3, 4], [5]]
    """
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    rows_held = 0
    for batch in batches:
        held.append(batch)
        rows_held += batch.num_rows
        if rows_held < n_rows:
            continue
        table = pa.Table.from_batches(held)
        whole = rows_held - rows_held % n_rows
        for start in range(0, whole, n_rows):
            yield table.slice(start, n_rows).combine_chunks()
        held, rows_held = table.slice(whole).to_batches(), rows_held - whole
    if rows_held:
        yield pa.Table.from_batches(held).combine_chunks()
