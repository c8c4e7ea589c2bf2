"""Pairs of texts that share a band.

Imports `scan`, `signatures`, `vectors`; pyspark and pyarrow inside functions.

Every text has a dozen bands or more, so bands travel as blocks of numbers and not as rows: a shuffle of rows
takes several times as long as all else. Buckets too large for a worker's memory go through Spark's
sort instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.engine.arrow import write_and_read_back
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.kernels.signatures import bound_similarities
from spark_dbp.kernels.vectors import to_matrix

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

# In a bucket each text is compared with this many that follow it by id; in smaller ones with all.
NEIGHBOURS = 100
# A block's entry: what `bound_similarities` asks for stands beside band and id.
_ENTRY = np.dtype([("band", "<i8"), ("id", "<i8"), ("n_shingles", "<i4"), ("parity", "<i8")])
_OF_TEXT = ["id", "n_shingles", "parity"]
# A bound may fall below the similarity by so much where both are rounded.
_ROUNDING = 1e-9
# A worker is meant to hold the first many bytes of entries at a time, and never holds more than the second.
_MEANT, _MOST = 2**24, 2**27


def find_candidate_pairs(texts: DataFrame, n_bands: int, threshold: float, scratch: str) -> DataFrame:
    """Pairs of the ids of texts that share a band and may reach the threshold.

    Parameters
    ----------
    texts : DataFrame
        A table with ``id`` BIGINT, ``n_shingles`` INT, ``parity`` BIGINT, ``bands`` BINARY: `n_bands` longs.
    n_bands : int
    threshold : float
        Pairs whose `bound_similarities` are below it are left out.
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
            of_text = {name: batch.column(name).to_numpy() for name in _OF_TEXT}
            blocks = list(band_blocks(of_text, to_matrix(batch.column("bands"), "<i8"), n_parts))
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
            for a, b in pairs_in_buckets(np.concatenate(entries), threshold):
                no_block = pa.nulls(len(a), pa.binary())
                yield pa.RecordBatch.from_arrays([pa.array(a), pa.array(b), no_block], ["a", "b", "entries"])

    blocks = map_in_arrow(texts.select(*_OF_TEXT, "bands"), split, "part INT, entries BINARY")
    shuffled = blocks.repartition(n_parts, "part")
    met = write_and_read_back(map_in_arrow(shuffled, meet, "a BIGINT, b BIGINT, entries BINARY"), scratch)
    pairs = met.where("entries IS NULL").select("a", "b")
    left = met.where("entries IS NOT NULL").select("entries")
    if not left.isEmpty():
        pairs = pairs.unionByName(_sorted_by_spark(left, threshold))
    return pairs.distinct()


def band_blocks(
    of_text: dict[str, npt.NDArray[Any]], bands: npt.NDArray[np.int64], n_parts: int
) -> Iterator[tuple[int, npt.NDArray[np.void]]]:
    """Bands and their texts as blocks, one for each part that has any; equal bands always fall in one part.

    Parameters
    ----------
    of_text : dict of str to ndarray of shape (n,)
        ``id``, ``n_shingles``, ``parity``.
    bands : ndarray of shape (n, n_bands), int64
    n_parts : int

    Yields
    ------
    part : int
        Below `n_parts`.
    entries : ndarray of (band, id, n_shingles, parity)

    Examples
    --------
    >>> of_text = {"id": np.array([1, 2]), "n_shingles": np.array([4, 5]), "parity": np.array([0, 1])}
    >>> [(part, found.tolist()) for part, found in band_blocks(of_text, np.array([[7, 8], [7, 9]]), 1)]
    [(0, [(7, 1, 4, 0), (8, 1, 4, 0), (7, 2, 5, 1), (9, 2, 5, 1)])]
    """
    entries = np.empty(bands.size, dtype=_ENTRY)
    entries["band"] = bands.reshape(-1)
    for name in _OF_TEXT:
        entries[name] = np.repeat(of_text[name], bands.shape[1])
    part = entries["band"].view(np.uint64) % np.uint64(n_parts)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part, np.arange(n_parts + 1, dtype=np.uint64), sorter=order)
    for number in range(n_parts):
        if bounds[number] < bounds[number + 1]:
            yield number, entries[order[bounds[number] : bounds[number + 1]]]


def pairs_in_buckets(
    entries: npt.NDArray[np.void], threshold: float
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Pairs of ids that share a band, as arrays; a pair that shares several is there several times.

    Parameters
    ----------
    entries : ndarray of (band, id, n_shingles, parity)
    threshold : float
        Pairs whose `bound_similarities` are below it are left out.

    Yields
    ------
    a, b : ndarray of int64
        a is below b, and b one of the `NEIGHBOURS` that follow a in the bucket.

    Examples
    --------
    >>> of_text = {"id": np.array([3, 1, 2]), "n_shingles": np.full(3, 9), "parity": np.array([0, 0, 63])}
    >>> _, entries = next(band_blocks(of_text, np.array([[7], [7], [7]]), 1))
    >>> [(a.tolist(), b.tolist()) for a, b in pairs_in_buckets(entries, 0.8)]
    [([], []), ([1], [3])]
    """
    order = np.argsort(entries["band"])
    band = entries["band"][order]
    # Most bands are there once: only the others need their ids in order.
    same = band[1:] == band[:-1]
    entries = entries[order[np.concatenate(([False], same)) | np.concatenate((same, [False]))]]
    entries = entries[np.lexsort((entries["id"], entries["band"]))]
    band, ids, n_shingles, parity = (np.ascontiguousarray(entries[name]) for name in ("band", *_OF_TEXT))
    for distance in range(1, NEIGHBOURS + 1):
        a = np.flatnonzero(band[distance:] == band[:-distance])
        if not len(a):
            return
        b = a + distance
        bounds = bound_similarities(n_shingles[a], parity[a], n_shingles[b], parity[b])
        likely = (bounds > threshold - _ROUNDING) & (ids[a] != ids[b])
        yield ids[a[likely]], ids[b[likely]]


def _left(blocks: pa.Array) -> pa.RecordBatch:
    import pyarrow as pa

    no_id = pa.nulls(len(blocks), pa.int64())
    return pa.RecordBatch.from_arrays([no_id, no_id, blocks], ["a", "b", "entries"])


def _sorted_by_spark(blocks: DataFrame, threshold: float) -> DataFrame:
    """What `pairs_in_buckets` finds, in memory that does not grow with the buckets."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    def rows(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            for block in batch.column(0):
                entries = np.frombuffer(block.as_buffer(), dtype=_ENTRY)
                columns = [pa.array(np.ascontiguousarray(entries[name])) for name in names]
                yield pa.RecordBatch.from_arrays(columns, names)

    names = ["band", *_OF_TEXT]
    bands = map_in_arrow(blocks, rows, "band BIGINT, id BIGINT, n_shingles INT, parity BIGINT")
    following = Window.partitionBy("band").orderBy("id").rowsBetween(1, NEIGHBOURS)
    near = bands.withColumn("following", F.collect_list(F.struct(*_OF_TEXT)).over(following))
    pairs = near.select(*_OF_TEXT, F.explode("following").alias("other"))
    # `bound_similarities`
    differing = F.bit_count(F.col("parity").bitwiseXOR(F.col("other.parity")))
    total = F.col("n_shingles") + F.col("other.n_shingles")
    bound = (total - differing) / (total + differing)
    likely = pairs.where((bound > threshold - _ROUNDING) & (F.col("id") != F.col("other.id")))
    return likely.select(F.col("id").alias("a"), F.col("other.id").alias("b"))
