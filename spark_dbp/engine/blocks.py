"""Shuffle rows as blocks: what a task has for a part travels as one value, not row by row.

Imports `scan`; numpy and pyarrow inside functions.

A shuffle of rows costs Spark a microsecond each, for rows of a few bytes more than all else. A part goes
to one worker as a whole, so its maker sees to it that it fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.arrow import gather_batches

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa
    from pyspark.sql import DataFrame

# Rows, and bytes, that a worker gathers before it splits them.
_GATHERED, _GATHERED_BYTES = 1_000_000, 64 << 20
BLOCKS = "slot INT, part INT, rows BINARY"


def split_into_blocks(
    batches: Iterator[pa.RecordBatch],
    n_parts: int,
    part_of: Callable[[pa.Table], npt.NDArray[Any]],
    n_tasks: int | None = None,
) -> Iterator[pa.RecordBatch]:
    """Rows by part: what the shuffle moves.

    Parameters
    ----------
    batches : iterator of RecordBatch
    n_parts : int
    part_of : callable
        From a table to the numbers of its rows' parts.
    n_tasks : int, optional
        Of `together`: each gets as many parts as the others. One part each if not given.

    Yields
    ------
    RecordBatch
        `BLOCKS`.
    """
    import numpy as np
    import pyarrow as pa

    schema = pa.schema([("slot", pa.int32()), ("part", pa.int32()), ("rows", pa.binary())])
    slots = invert_hash(n_tasks or n_parts)
    for table in gather_batches(batches, _GATHERED, _GATHERED_BYTES):
        # Short numbers are sorted by radix, ten times as fast.
        part = part_of(table).astype(np.uint16 if n_parts <= 2**16 else np.int32)
        order = np.argsort(part, kind="stable")
        part = part[order]
        rows = table.take(pa.array(order)).combine_chunks()
        starts = np.flatnonzero(np.diff(part.astype(np.int32), prepend=-1))
        for start, stop in zip(starts, [*starts[1:], len(part)], strict=True):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, rows.schema) as stream:
                stream.write_table(rows.slice(start, stop - start))
            number, content = int(part[start]), sink.getvalue().to_pybytes()
            block = {"slot": [int(slots[number % len(slots)])], "part": [number], "rows": [content]}
            yield pa.RecordBatch.from_pydict(block, schema)


def invert_hash(n_parts: int) -> npt.NDArray[np.int32]:
    """Numbers that Spark's hash partitioning sends one to each partition.

    The parts' own numbers would leave a third of the partitions empty and others with several parts, and
    a stage is as slow as its fullest partition. Were Spark to hash otherwise, only that balance would suffer.

    Parameters
    ----------
    n_parts : int

    Returns
    -------
    ndarray of shape (n_parts,), int32

    Examples
    --------
    >>> slots_of(4).tolist()
    [12, 6, 2, 0]
    """
    import numpy as np

    candidates = np.arange(32 * n_parts + 64, dtype=np.uint32)
    partition = _murmur3(candidates).view(np.int32) % n_parts
    slots = np.arange(n_parts, dtype=np.int32)
    found, first = np.unique(partition, return_index=True)
    slots[found] = first
    return slots


def _murmur3(numbers: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """MurmurHash3 (x86, 32 bits) of INT values with Spark's seed, 42."""
    import numpy as np

    def rotated(values: npt.NDArray[np.uint32], bits: int) -> npt.NDArray[np.uint32]:
        return (values << np.uint32(bits)) | (values >> np.uint32(32 - bits))

    mixed = rotated(numbers * np.uint32(0xCC9E2D51), 15) * np.uint32(0x1B873593)
    h = rotated(np.uint32(42) ^ mixed, 13) * np.uint32(5) + np.uint32(0xE6546B64)
    h ^= np.uint32(4)
    h = (h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return h ^ (h >> np.uint32(16))


def shuffle_blocks(blocks: DataFrame, n_parts: int, n_tasks: int | None = None) -> DataFrame:
    """Blocks shuffled so that the blocks of a part follow each other in one of `n_tasks`, or `n_parts`."""
    return blocks.repartition(n_tasks or n_parts, "slot").sortWithinPartitions("part").select("part", "rows")


def read_parts(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, pa.Table]]:
    """The parts, one at a time, of blocks that `together` brought.

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
        tables = [pa.ipc.open_stream(rows.as_buffer()).read_all() for _, rows in of_part]
        yield part, pa.concat_tables(tables).combine_chunks()
