"""Find pairs of texts that share a band, on Spark.

Imports `arrow`, `blocks`, `compat`, `kernels.buckets` and `kernels.vectors`; pyspark and pyarrow inside
functions.

Every text has a dozen bands or more, and an entry for each. The entries travel as blocks (see `blocks`),
because a shuffle row by row would take several times as long as all other work. Parts that are too large for
a worker's memory go through Spark's sort instead.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from spark_dbp.engine.blocks import BLOCKS, number_tasks, read_block, shuffle_blocks, split_into_blocks
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.mapped_rows import write_and_read_back
from spark_dbp.kernels.buckets import ENTRY_BYTES, NEIGHBOURS, OF_TEXT, ROUNDING, enter_bands, pair_in_buckets
from spark_dbp.kernels.vectors import to_matrix

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from pyspark.sql import DataFrame

# Bytes of entries that a worker holds: usually, at most.
_USUAL, _MOST = 2**24, 2**27


def find_candidate_pairs(texts: DataFrame, n_bands: int, threshold: float, scratch: str) -> DataFrame:
    """Pairs of texts, by their ids, that share a band and may reach the threshold.

    Parameters
    ----------
    texts : DataFrame
        A table with ``id`` BIGINT, ``n_shingles`` INT, ``parity`` BIGINT, ``bands`` BINARY (`n_bands` longs).
    n_bands : int
    threshold : float
        Pairs whose upper bound (`bound_similarities`) is below it are left out.
    scratch : str
        New directory, reachable from the workers.

    Returns
    -------
    DataFrame
        ``a``, ``b`` BIGINT, a below b. Each pair comes once. The rows are read from `scratch`.

    Notes
    -----
    O(n log n) time for n entries. In a bucket of more than `NEIGHBOURS` texts, each text is paired only with
    the `NEIGHBOURS` texts that follow it by id.
    """
    n_parts = max(1, math.ceil(texts.count() * n_bands * ENTRY_BYTES / _USUAL))
    tasks = number_tasks(texts, n_parts)

    def split(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return split_into_blocks(enter(batches), n_parts, part_of, tasks)

    def enter(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            if batch.num_rows:
                of_text = {name: batch.column(name).to_numpy() for name in OF_TEXT}
                entries = enter_bands(of_text, to_matrix(batch.column("bands"), "<i8"))
                yield pa.RecordBatch.from_pydict(entries)

    def part_of(rows: pa.Table) -> npt.NDArray[np.uint64]:
        return rows.column("band").to_numpy().view(np.uint64) % np.uint64(n_parts)

    most = _MOST  # a local copy travels to the workers with the function; a module's value does not

    def meet(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Pairs of this task's one part. Where the part is too large, its blocks as they are."""
        import pyarrow as pa

        held: list[pa.BinaryScalar] = []
        n_bytes = 0
        for batch in batches:
            held += list(batch.column("rows"))
            n_bytes += batch.column("rows").nbytes
            if n_bytes > most:
                yield _leave(held)
                held = []
        if n_bytes > most or not held:
            return
        rows = pa.concat_tables([read_block(block) for block in held]).combine_chunks()
        entries = {name: rows.column(name).to_numpy() for name in rows.column_names}
        for a, b in pair_in_buckets(entries, threshold):
            no_block = pa.nulls(len(a), pa.binary())
            yield pa.RecordBatch.from_arrays([pa.array(a), pa.array(b), no_block], ["a", "b", "entries"])

    blocks = map_in_arrow(texts.select(*OF_TEXT, "bands"), split, BLOCKS)
    shuffled = shuffle_blocks(blocks, n_parts)
    met = write_and_read_back(map_in_arrow(shuffled, meet, "a BIGINT, b BIGINT, entries BINARY"), scratch)
    pairs = met.where("entries IS NULL").select("a", "b")
    left = met.where("entries IS NOT NULL").select("entries")
    if not left.isEmpty():
        pairs = pairs.unionByName(_pair_by_sorting(left, threshold))
    return pairs.distinct()


def _leave(blocks: list[pa.BinaryScalar]) -> pa.RecordBatch:
    import pyarrow as pa

    no_id = pa.nulls(len(blocks), pa.int64())
    return pa.RecordBatch.from_arrays([no_id, no_id, pa.array(blocks, pa.binary())], ["a", "b", "entries"])


def _pair_by_sorting(blocks: DataFrame, threshold: float) -> DataFrame:
    """The pairs that `pair_in_buckets` would find, in memory that does not grow with the buckets."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    def read_entries(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for block in batch.column(0):
                yield from read_block(block).to_batches()

    bands = map_in_arrow(blocks, read_entries, "band BIGINT, id BIGINT, n_shingles INT, parity BIGINT")
    following = Window.partitionBy("band").orderBy("id").rowsBetween(1, NEIGHBOURS)
    near = bands.withColumn("following", F.collect_list(F.struct(*OF_TEXT)).over(following))
    pairs = near.select(*OF_TEXT, F.explode("following").alias("other"))
    # The same as `bound_similarities`.
    differing = F.bit_count(F.col("parity").bitwiseXOR(F.col("other.parity")))
    total = F.col("n_shingles") + F.col("other.n_shingles")
    bound = (total - differing) / (total + differing)
    likely = pairs.where((bound > threshold - ROUNDING) & (F.col("id") != F.col("other.id")))
    return likely.select(F.col("id").alias("a"), F.col("other.id").alias("b"))
