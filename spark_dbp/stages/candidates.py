"""Pairs of texts that share a band. Imports `scan`, `vectors`; pyspark and pyarrow inside functions.

Every text has a dozen bands or more, so bands travel as blocks of numbers and not as rows: a shuffle of rows
takes several times as long as all else. Buckets too large for a worker's memory go through Spark's
sort instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spark_dbp.scan import written
from spark_dbp.vectors import matrix_of

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

# In a bucket each text is compared with this many that follow it by id; in smaller ones with all.
NEIGHBOURS = 100
# A block's entry: band, id.
_ENTRY = np.dtype([("band", "<i8"), ("id", "<i8")])
# A worker is meant to hold the first many bytes of entries at a time, and never holds more than the second.
_MEANT, _MOST = 2**24, 2**27


def candidate_pairs(texts: DataFrame, n_bands: int, scratch: str) -> DataFrame:
    """Pairs of the ids of texts that share a band.

    Parameters
    ----------
    texts : DataFrame
        A table with ``id`` BIGINT and ``bands`` BINARY: `n_bands` longs.
    n_bands : int
    scratch : str
        New directory, reachable from the workers.

    Returns
    -------
    DataFrame
        ``a``, ``b`` BIGINT, a below b; each pair once. It reads `scratch`.

    Notes
    -----
    The time is O(n log n) for n bands in buckets of bounded size. In buckets of more than `NEIGHBOURS` texts,
    each text is paired with the `NEIGHBOURS` that follow it by id only.
    """
    n_parts = max(1, math.ceil(texts.count() * n_bands * _ENTRY.itemsize / _MEANT))

    def split(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            bands = matrix_of(batch.column(1), "<i8")
            blocks = list(band_blocks(batch.column(0).to_numpy(), bands, n_parts))
            numbers = pa.array([part for part, _ in blocks], pa.int32())
            entries = pa.array([block.tobytes() for _, block in blocks], pa.binary())
            yield pa.RecordBatch.from_arrays([numbers, entries], ["part", "entries"])

    most = _MOST  # the workers' module has its own

    def meet(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        held: list[pa.Array] = []
        n_bytes = 0
        for batch in batches:
            held.append(batch.column("entries"))
            n_bytes += batch.column("entries").nbytes
            if n_bytes > most:
                yield from (_left(blocks) for blocks in held)
                held = []
        if n_bytes > most:
            yield from (_left(blocks) for blocks in held)
            return
        entries = [np.frombuffer(block.as_buffer(), dtype=_ENTRY) for blocks in held for block in blocks]
        if entries:
            for a, b in pairs_in_buckets(np.concatenate(entries)):
                no_block = pa.nulls(len(a), pa.binary())
                yield pa.RecordBatch.from_arrays([pa.array(a), pa.array(b), no_block], ["a", "b", "entries"])

    blocks = texts.select("id", "bands").mapInArrow(split, "part INT, entries BINARY")
    shuffled = blocks.repartition(n_parts, "part")
    met = written(shuffled.mapInArrow(meet, "a BIGINT, b BIGINT, entries BINARY"), scratch)
    pairs = met.where("entries IS NULL").select("a", "b")
    left = met.where("entries IS NOT NULL").select("entries")
    if not left.isEmpty():
        pairs = pairs.unionByName(_sorted_by_spark(left))
    return pairs.distinct()


def band_blocks(
    ids: npt.NDArray[np.int64], bands: npt.NDArray[np.int64], n_parts: int
) -> Iterator[tuple[int, npt.NDArray[np.void]]]:
    """Bands and ids as blocks, one for each part that has any; equal bands always fall in one part.

    Parameters
    ----------
    ids : ndarray of shape (n,), int64
    bands : ndarray of shape (n, n_bands), int64
    n_parts : int

    Yields
    ------
    part : int
        Below `n_parts`.
    entries : ndarray of (band, id)

    Examples
    --------
    >>> ids, bands = np.array([1, 2]), np.array([[7, 8], [7, 9]])
    >>> [(part, entries.tolist()) for part, entries in band_blocks(ids, bands, 1)]
    [(0, [(7, 1), (8, 1), (7, 2), (9, 2)])]
    """
    entries = np.empty(bands.size, dtype=_ENTRY)
    entries["band"] = bands.reshape(-1)
    entries["id"] = np.repeat(ids, bands.shape[1])
    part = entries["band"].view(np.uint64) % np.uint64(n_parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part, np.arange(n_parts + 1, dtype=np.uint64), sorter=order)
    for number in range(n_parts):
        if bounds[number] < bounds[number + 1]:
            yield number, entries[order[bounds[number] : bounds[number + 1]]]


def pairs_in_buckets(
    entries: npt.NDArray[np.void],
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of ids that share a band, as arrays; a pair that shares several is there several times.

    Parameters
    ----------
    entries : ndarray of (band, id)

    Yields
    ------
    a, b : ndarray of int64
        a is below b, and b one of the `NEIGHBOURS` that follow a in the bucket.

    Examples
    --------
    >>> entries = np.array([(7, 3), (8, 1), (7, 1), (7, 2)], dtype=[("band", "<i8"), ("id", "<i8")])
    >>> [(a.tolist(), b.tolist()) for a, b in pairs_in_buckets(entries)]
    [([1, 2], [2, 3]), ([1], [3])]
    """
    band, ids = entries["band"], entries["id"]
    order = np.argsort(band)
    band = band[order]
    # Most bands are there once: only the others need their ids in order.
    same = band[1:] == band[:-1]
    shared = np.concatenate(([False], same)) | np.concatenate((same, [False]))
    band, ids = band[shared], ids[order[shared]]
    order = np.lexsort((ids, band))
    band, ids = band[order], ids[order]
    for distance in range(1, NEIGHBOURS + 1):
        a = np.flatnonzero(band[distance:] == band[:-distance])
        if not len(a):
            return
        different = a[ids[a] != ids[a + distance]]
        yield ids[different], ids[different + distance]


def _left(blocks: pa.Array) -> pa.RecordBatch:
    import pyarrow as pa

    no_id = pa.nulls(len(blocks), pa.int64())
    return pa.RecordBatch.from_arrays([no_id, no_id, blocks], ["a", "b", "entries"])


def _sorted_by_spark(blocks: DataFrame) -> DataFrame:
    """What `pairs_in_buckets` finds, in memory that does not grow with the buckets."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    def rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            for block in batch.column(0):
                entries = np.frombuffer(block.as_buffer(), dtype=_ENTRY)
                columns = [pa.array(np.ascontiguousarray(entries[name])) for name in ("band", "id")]
                yield pa.RecordBatch.from_arrays(columns, ["band", "id"])

    bands = blocks.mapInArrow(rows, "band BIGINT, id BIGINT")
    following = Window.partitionBy("band").orderBy("id").rowsBetween(1, NEIGHBOURS)
    near = bands.withColumn("following", F.collect_list("id").over(following)).where("size(following) > 0")
    return near.select(F.col("id").alias("a"), F.explode("following").alias("b")).where("a != b")
