"""Size, d_intra, d_inter and distance histogram of every cluster.

Imports numpy, `arrow`, `sql`, `blocks`, `compat`, `geometry` and `histogram`; pyspark and pyarrow inside
functions.

``d_intra,j`` is the mean of ``1 - cos(x, c_j)`` over the samples x of cluster j. ``d_inter,j`` is the mean of
``1 - cos(c_j, c_i)`` over the nearest other centroids c_i (arXiv 2401.04578, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import BIN, CLUSTER_ID, COMPLEXITY, D_INTER, D_INTRA, DISTANCE, HISTOGRAM, N_ITEMS
from spark_dbp.engine.arrow import CommittedTable, gather_batches, map_batches
from spark_dbp.engine.blocks import BLOCKS, number_tasks, read_parts, shuffle_blocks, split_into_blocks
from spark_dbp.engine.compat import collect_arrow, count_shuffle_partitions, map_in_arrow
from spark_dbp.engine.sql import measure_clusters
from spark_dbp.kernels.geometry import measure_distance_to_nearest
from spark_dbp.kernels.histogram import (
    DISTANCE_UNIT,
    N_BINS,
    BinCounts,
    count_bins,
    find_bins,
    merge_bins,
    to_whole_distances,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame


# Rows that a worker counts at a time; and bins that it holds before it adds up those that occur twice.
_COUNTED, _HELD_BINS = 2**21, 2**22


def cluster_stats(assignments: DataFrame | CommittedTable) -> DataFrame:
    """Size, d_intra and distance histogram of every cluster that has samples.

    Distances are added up as longs, so the result does not depend on the order of the rows.

    Parameters
    ----------
    assignments : DataFrame or CommittedTable
        ``cluster_id`` and ``distance_to_centroid``.

    Returns
    -------
    DataFrame
        ``cluster_id`` INT, ``n_items`` BIGINT, ``d_intra`` DOUBLE, ``distance_histogram``
        ARRAY<STRUCT<bin INT, n_items BIGINT>> (bins that are not empty, rising; 1/1024 wide).

    Notes
    -----
    One pass over two columns. The shuffle moves at most 2048 counters for each cluster and task. Of a
    DataFrame, Spark counts them by groupBy; of a committed table, workers do, and send them as blocks.
    """
    if not isinstance(assignments, CommittedTable):
        return measure_clusters(assignments)
    # No task sends more than a table of few files is worth.
    n_parts = min(count_shuffle_partitions(assignments.spark), max(1, len(assignments.list_paths())))
    tasks = number_tasks(assignments.frame, n_parts)

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        counted = _count_bins(batches)
        return split_into_blocks(counted, n_parts, lambda table: table.column(0).to_numpy() % n_parts, tasks)

    def merge(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return (_of_clusters(rows) for _, rows in read_parts(batches))

    counted = map_batches(assignments, [CLUSTER_ID, DISTANCE], count, BLOCKS)
    histogram = f"ARRAY<STRUCT<{BIN}: INT, {N_ITEMS}: BIGINT>>"
    schema = f"{CLUSTER_ID} INT, {N_ITEMS} BIGINT, {D_INTRA} DOUBLE, {HISTOGRAM} {histogram}"
    return map_in_arrow(shuffle_blocks(counted, n_parts), merge, schema)


def _count_bins(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Number of rows and sum of distances of every bin that a task meets. This is what the shuffle moves."""
    import pyarrow as pa

    found: list[BinCounts] = []
    for rows in gather_batches(batches, _COUNTED):
        cluster = rows.column(0).to_numpy().astype(np.int64)
        distance = rows.column(1).to_numpy().astype(np.float64)
        whole = to_whole_distances(distance)
        found.append(count_bins(cluster * N_BINS + find_bins(distance), whole))
        if sum(len(bins) for bins, _, _ in found) > _HELD_BINS:
            found = [merge_bins(found)]
    if found:
        bins, n_items, total = merge_bins(found)
        cluster, bin_ = np.divmod(bins, N_BINS)
        columns = [cluster.astype(np.int32), bin_.astype(np.int32), n_items, total]
        yield pa.RecordBatch.from_arrays([pa.array(c) for c in columns], [CLUSTER_ID, BIN, N_ITEMS, "total"])


def _of_clusters(rows: pa.Table) -> pa.RecordBatch:
    """Statistics of some clusters, from the bins that all tasks counted for them."""
    import pyarrow as pa

    cluster, bin_, n_items, total = (rows.column(name).to_numpy() for name in rows.column_names)
    bins, n_items, total = merge_bins([(cluster.astype(np.int64) * N_BINS + bin_, n_items, total)])
    cluster, bin_ = np.divmod(bins, N_BINS)
    starts = np.flatnonzero(np.diff(cluster, prepend=-1))
    of_cluster = np.add.reduceat(n_items, starts)
    d_intra = np.add.reduceat(total, starts).astype(np.float64) * DISTANCE_UNIT / of_cluster
    held = pa.StructArray.from_arrays([pa.array(bin_.astype(np.int32)), pa.array(n_items)], [BIN, N_ITEMS])
    offsets = pa.array(np.append(starts, len(bins)).astype(np.int32))
    columns = [cluster[starts].astype(np.int32), of_cluster, d_intra]
    return pa.RecordBatch.from_arrays(
        [*(pa.array(column) for column in columns), pa.ListArray.from_arrays(offsets, held)],
        [CLUSTER_ID, N_ITEMS, D_INTRA, HISTOGRAM],
    )


def complete_stats(
    stats: DataFrame,
    cluster_ids: npt.NDArray[np.int32],
    centroids: npt.NDArray[np.float32],
    n_neighbors: int = 20,
) -> pa.Table:
    """The cluster_stats table: `stats` with d_inter, complexity, and the clusters without samples.

    Parameters
    ----------
    stats : DataFrame
        From `cluster_stats`; its k rows are collected.
    cluster_ids : ndarray of int32, shape (k,)
        Rising.
    centroids : ndarray of float32, shape (k, dim)
    n_neighbors : int
        l: over how many nearest other centroids d_inter is the mean. With fewer centroids than that, over
        all others. With a single cluster d_inter is 0.

    Returns
    -------
    pyarrow.Table
        One row for each centroid, by ``cluster_id``. A cluster without samples has ``n_items`` 0 and null
        measures, and does not count as a neighbour.
    """
    import pyarrow as pa

    found = collect_arrow(stats).combine_chunks().sort_by(CLUSTER_ID)
    ids = found.column(CLUSTER_ID).to_numpy().astype(np.int32)
    rows = np.searchsorted(cluster_ids, ids)
    d_intra = np.full(len(cluster_ids), np.nan)
    d_inter = np.full(len(cluster_ids), np.nan)
    n_items = np.zeros(len(cluster_ids), dtype=np.int64)
    n_items[rows] = found.column(N_ITEMS).to_numpy()
    d_intra[rows] = found.column(D_INTRA).to_numpy()
    d_inter[rows] = measure_distance_to_nearest(centroids[rows], n_neighbors)
    empty = n_items == 0
    bins = found.column(HISTOGRAM).combine_chunks()
    n_bins = np.zeros(len(cluster_ids), dtype=np.int32)
    n_bins[rows] = bins.value_lengths().to_numpy()
    offsets = np.concatenate(([0], np.cumsum(n_bins))).astype(np.int32)
    return pa.table(
        {
            CLUSTER_ID: pa.array(cluster_ids, pa.int32()),
            N_ITEMS: pa.array(n_items),
            D_INTRA: pa.array(d_intra, mask=empty),
            D_INTER: pa.array(d_inter, mask=empty),
            COMPLEXITY: pa.array(d_intra * d_inter, mask=empty),
            HISTOGRAM: pa.ListArray.from_arrays(pa.array(offsets), bins.flatten()),
        }
    )
