"""Shuffle rows as blocks, not row by row.

Imports `arrow` and `compat`; numpy and pyarrow inside functions.

A **part** is the rows that one worker takes up as a whole. Whoever plans the parts makes them small enough
for a worker's memory. A **block** is the rows that one task has for one part, as bytes. A shuffle costs Spark
about a microsecond for each row. For rows of a few bytes that would be more than all other work. A block
counts as one row.
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

# Rows and bytes that a worker gathers before it splits them by part.
_GATHERED, _GATHERED_BYTES = 1_000_000, 32 << 20
BLOCKS = "task INT, part INT, rows BINARY"


def number_tasks(frame: DataFrame, n_tasks: int) -> npt.NDArray[np.int32]:
    """The number that sends a row to each of `n_tasks` tasks in a shuffle.

    Parameters
    ----------
    frame : DataFrame
        Any DataFrame of the session.
    n_tasks : int

    Returns
    -------
    ndarray of shape (n_tasks,), int32
        For `split_into_blocks`. 0, 1, 2, ...; before Spark 4.1 those of `invert_hash`.
    """
    import numpy as np

    return np.arange(n_tasks, dtype=np.int32) if can_choose_partitions(frame) else invert_hash(n_tasks)


def split_into_blocks(
    batches: Iterator[pa.RecordBatch],
    n_parts: int,
    part_of: Callable[[pa.Table], npt.NDArray[Any]],
    tasks: npt.NDArray[np.int32],
) -> Iterator[pa.RecordBatch]:
    """Split rows by part, into the blocks that `shuffle_blocks` moves.

    Parameters
    ----------
    batches : iterator of RecordBatch
    n_parts : int
    part_of : callable
        Takes a table, returns the number of the part of each row.
    tasks : ndarray of int32
        From `number_tasks`. All tasks get the same number of parts, or one more.

    Yields
    ------
    RecordBatch
        One block, with the columns of `BLOCKS`.
    """
    import numpy as np
    import pyarrow as pa

    for table in gather_batches(batches, _GATHERED, _GATHERED_BYTES):
        # numpy sorts 16-bit numbers by radix, ten times as fast.
        part = part_of(table).astype(np.uint16 if n_parts <= 2**16 else np.int32)
        order = np.argsort(part, kind="stable")
        part = part[order]
        rows = table.take(pa.array(order)).combine_chunks()
        starts = np.flatnonzero(np.diff(part.astype(np.int32), prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(part)], strict=True):
            number = int(part[start])
            content = write_block(rows.slice(start, stop - start))
            yield make_block(int(tasks[number % len(tasks)]), number, content)


def make_block(task: int, part: int, content: bytes) -> pa.RecordBatch:
    """One block, with the columns of `BLOCKS`."""
    import pyarrow as pa

    schema = pa.schema([("task", pa.int32()), ("part", pa.int32()), ("rows", pa.binary())])
    return pa.RecordBatch.from_pydict({"task": [task], "part": [part], "rows": [content]}, schema)


def write_block(rows: pa.Table) -> bytes:
    """Turn rows into one block. `read_block` undoes it."""
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
    """Bring all blocks of a part to one task, one after the other.

    Parameters
    ----------
    blocks : DataFrame
        With the columns of `BLOCKS`.
    n_tasks : int
        The same number that `number_tasks` was given.

    Returns
    -------
    DataFrame
        ``part``, ``rows``, for `read_parts`.
    """
    shuffled = send_to_partitions(blocks, n_tasks, "task")
    return shuffled.sortWithinPartitions("part").select("part", "rows")


def invert_hash(n_partitions: int) -> npt.NDArray[np.int32]:
    """One number for each partition, which Spark before 4.1 sends to that partition by its hash.

    Hashes of 0, 1, 2, ... would leave a third of the partitions empty and give others several numbers, and a
    shuffle is as slow as its fullest partition. If Spark changed its hash, only this balance would suffer.

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
    """MurmurHash3 (x86, 32 bits) of INT values with the seed that Spark uses, 42."""
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
    """Read the parts that `shuffle_blocks` brought to a task, one at a time.

    Yields
    ------
    part : int
        Its number.
    rows : Table
        Its rows, in one chunk.
    """
    import pyarrow as pa

    blocks = (
        (part, rows)
        for batch in batches
        for part, rows in zip(batch.column(0).to_pylist(), batch.column(1), strict=True)
    )
    for part, of_part in groupby(blocks, key=lambda block: block[0]):
        yield part, pa.concat_tables([read_block(rows) for _, rows in of_part]).combine_chunks()
