"""Shuffle rows as blocks: what a task has for a part travels as one value, not row by row.

A **part** is a set of rows that one worker takes up as a whole, so its maker sees to it that it fits. A
**block** is the rows that one task has for one part, as bytes. A shuffle of rows costs Spark a microsecond
each, which for rows of a few bytes is more than all else. Imports `arrow`, `compat`; numpy and pyarrow inside
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.arrow import gather_batches
from spark_dbp.engine.compat import can_choose_partitions, send_to_partitions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from pyspark.sql import DataFrame

# Rows, and bytes, that a worker gathers before it splits them.
_GATHERED, _GATHERED_BYTES = 1_000_000, 64 << 20
BLOCKS = "task INT, part INT, rows BINARY"


def number_tasks(frame: DataFrame, n_tasks: int) -> npt.NDArray[np.int32]:
    """The number by which each of `n_tasks` is reached in a shuffle of the session of `frame`.

    Parameters
    ----------
    frame : DataFrame
        Any of the session.
    n_tasks : int

    Returns
    -------
    ndarray of shape (n_tasks,), int32
        For `split_into_blocks`. From 0 on; before Spark 4.1 see `invert_hash`.
    """
    import numpy as np

    return np.arange(n_tasks, dtype=np.int32) if can_choose_partitions(frame) else invert_hash(n_tasks)


def split_into_blocks(
    batches: Iterator[pa.RecordBatch],
    n_parts: int,
    part_of: Callable[[pa.Table], npt.NDArray[Any]],
    tasks: npt.NDArray[np.int32],
) -> Iterator[pa.RecordBatch]:
    """Rows by part: what `shuffle_blocks` moves.

    Parameters
    ----------
    batches : iterator of RecordBatch
    n_parts : int
    part_of : callable
        From a table to the numbers of its rows' parts.
    tasks : ndarray of int32
        From `number_tasks`: each task gets as many parts as the others, one more or less.

    Yields
    ------
    RecordBatch
        `BLOCKS`.
    """
    import numpy as np
    import pyarrow as pa

    schema = pa.schema([("task", pa.int32()), ("part", pa.int32()), ("rows", pa.binary())])
    for table in gather_batches(batches, _GATHERED, _GATHERED_BYTES):
        # Short numbers are sorted by radix, ten times as fast.
        part = part_of(table).astype(np.uint16 if n_parts <= 2**16 else np.int32)
        order = np.argsort(part, kind="stable")
        part = part[order]
        rows = table.take(pa.array(order)).combine_chunks()
        starts = np.flatnonzero(np.diff(part.astype(np.int32), prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(part)], strict=True):
            number = int(part[start])
            content = write_block(rows.slice(start, stop - start))
            block = {"task": [int(tasks[number % len(tasks)])], "part": [number], "rows": [content]}
            yield pa.RecordBatch.from_pydict(block, schema)


def write_block(rows: pa.Table) -> bytes:
    """Rows as one block; `read_block` undoes it."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as stream:
        stream.write_table(rows)
    return sink.getvalue().to_pybytes()


def read_block(rows: pa.BinaryScalar) -> pa.Table:
    """The rows of one block."""
    import pyarrow as pa

    return pa.ipc.open_stream(rows.as_buffer()).read_all()


def shuffle_blocks(blocks: DataFrame, n_tasks: int) -> DataFrame:
    """Bring the blocks of a part to one task, one behind the other.

    Parameters
    ----------
    blocks : DataFrame
        `BLOCKS`.
    n_tasks : int
        As many as `number_tasks` was asked for.

    Returns
    -------
    DataFrame
        ``part``, ``rows``, for `read_parts`.
    """
    shuffled = send_to_partitions(blocks, n_tasks, "task")
    return shuffled.sortWithinPartitions("part").select("part", "rows")


def invert_hash(n_partitions: int) -> npt.NDArray[np.int32]:
    """Numbers that the hash partitioning of Spark before 4.1 sends one to each partition.

    The numbers from 0 on would leave a third of the partitions empty and others with several parts, and a
    stage is as slow as its fullest partition. Were Spark to hash otherwise, only that balance would suffer.

    Parameters
    ----------
    n_partitions : int

    Returns
    -------
    ndarray of shape (n_partitions,), int32

    Examples
    --------
    >>> invert_hash(4).tolist()
    [12, 6, 2, 0]
    """
    import numpy as np

    candidates = np.arange(32 * n_partitions + 64, dtype=np.uint32)
    partition = _murmur3(candidates).view(np.int32) % n_partitions
    numbers = np.arange(n_partitions, dtype=np.int32)
    found, first = np.unique(partition, return_index=True)
    numbers[found] = first
    return numbers


def _murmur3(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MurmurHash3 (x86, 32 bits) of INT values with Spark's seed, 42."""
    import numpy as np

    def rotate(values: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
        return (values << np.uint32(bits)) | (values >> np.uint32(32 - bits))

    mixed = rotate(numbers * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    h = rotate(np.uint32(42) ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    h ^= np.uint32(4)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def read_parts(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """The parts, one at a time, of blocks that `shuffle_blocks` brought.

    Yields
    ------
    part : int
    rows : Table
        In one chunk.
    """
    import pyarrow as pa

    blocks = (
        (part, rows)
        for batch in batches
        for part, rows in zip(batch.column(0).to_pylist(), batch.column(1), strict=True)
    )
    for part, of_part in groupby(blocks, key=lambda block: block[0]):
        yield part, pa.concat_tables([read_block(rows) for _, rows in of_part]).combine_chunks()
