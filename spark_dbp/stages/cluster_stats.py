"""Stage 3: size, d_intra, d_inter and distance histogram of every cluster.

Imports pyspark inside functions; numpy and `geometry`.

``d_intra,j`` is the mean of ``1 - cos(x, c_j)`` over the cluster, ``d_inter,j`` the mean of
``1 - cos(c_j, c_i)`` over its nearest other centroids (arXiv 2401.04578, section 3).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import (
    BINS_PER_UNIT,
    CLUSTER_ID,
    COMPLEXITY,
    D_INTER,
    D_INTRA,
    DISTANCE,
    DISTANCE_UNIT,
    HISTOGRAM,
    N_BINS,
    N_ITEMS,
)
from spark_dbp.compat import collect_arrow
from spark_dbp.geometry import mean_distance_to_nearest

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame


def distance_bin() -> Column:
    """Histogram bin of ``distance_to_centroid``: floor(1024 d), the last bin closed."""
    from pyspark.sql import functions as F

    bins = F.floor(F.col(DISTANCE).cast("double") * BINS_PER_UNIT)
    return F.least(bins, F.lit(N_BINS - 1)).cast("int")


def whole_distance() -> Column:
    """``distance_to_centroid`` as a long in units of ``DISTANCE_UNIT``: sums of it are exact."""
    from pyspark.sql import functions as F

    return F.rint(F.col(DISTANCE).cast("double") / F.lit(DISTANCE_UNIT)).cast("bigint")


def mean_distance(frame: DataFrame) -> float:
    """Mean of ``distance_to_centroid``, the same for any order of the rows."""
    from pyspark.sql import functions as F

    total, rows = frame.agg(F.sum(whole_distance()), F.count(F.lit(1))).collect()[0]
    return float(total) * DISTANCE_UNIT / rows


def cluster_stats(assignments: DataFrame) -> DataFrame:
    """Size, d_intra and distance histogram of every cluster that has samples.

    Distances are added up as longs, so the result does not depend on the order of the rows.

    Parameters
    ----------
    assignments : DataFrame
        ``cluster_id`` and ``distance_to_centroid``.

    Returns
    -------
    DataFrame
        ``cluster_id`` INT, ``n_items`` BIGINT, ``d_intra`` DOUBLE, ``distance_histogram``
        ARRAY<STRUCT<bin INT, n_items BIGINT>> (bins that are not empty, rising; 1/1024 wide).

    Notes
    -----
    One pass over two columns; the shuffle moves at most 2048 small rows a cluster and map task.
    """
    from pyspark.sql import functions as F

    return (
        assignments.groupBy(CLUSTER_ID, distance_bin().alias("bin"))
        .agg(F.count(F.lit(1)).alias(N_ITEMS), F.sum(whole_distance()).alias("total"))
        .groupBy(CLUSTER_ID)
        .agg(
            F.sum(N_ITEMS).alias(N_ITEMS),
            (F.sum("total").cast("double") * F.lit(DISTANCE_UNIT) / F.sum(N_ITEMS)).alias(D_INTRA),
            F.array_sort(F.collect_list(F.struct("bin", N_ITEMS))).alias(HISTOGRAM),
        )
    )


def complete_stats(
    stats: DataFrame,
    cluster_ids: npt.NDArray[np.int32],
    centroids: npt.NDArray[np.float32],
    n_neighbors: int = 20,
) -> pa.Table:
    """The cluster_stats table: `cluster_stats` with d_inter, complexity and the clusters without samples.

    Parameters
    ----------
    stats : DataFrame
        From `cluster_stats`; its k rows are collected.
    cluster_ids : ndarray of int32, shape (k,)
        Rising.
    centroids : ndarray of float32, shape (k, dim)
    n_neighbors : int
        l, how many nearest other centroids d_inter averages over. All others when there are fewer;
        with a single cluster d_inter is 0.

    Returns
    -------
    pyarrow.Table
        One row a centroid, by ``cluster_id``. A cluster without samples has ``n_items`` 0 and null
        measures, and is no neighbour of others.
    """
    import pyarrow as pa

    found = collect_arrow(stats.orderBy(CLUSTER_ID)).combine_chunks()
    ids = found.column(CLUSTER_ID).to_numpy().astype(np.int32)
    rows = np.searchsorted(cluster_ids, ids)
    d_intra = np.full(len(cluster_ids), np.nan)
    d_inter = np.full(len(cluster_ids), np.nan)
    n_items = np.zeros(len(cluster_ids), dtype=np.int64)
    n_items[rows] = found.column(N_ITEMS).to_numpy()
    d_intra[rows] = found.column(D_INTRA).to_numpy()
    d_inter[rows] = mean_distance_to_nearest(centroids[rows], n_neighbors)
    empty = n_items == 0
    histogram_type = pa.list_(pa.struct([("bin", pa.int32()), (N_ITEMS, pa.int64())]))
    histograms: list[object] = [[] for _ in cluster_ids]
    for row, histogram in zip(rows, found.column(HISTOGRAM).to_pylist(), strict=True):
        histograms[row] = histogram
    return pa.table(
        {
            CLUSTER_ID: pa.array(cluster_ids, pa.int32()),
            N_ITEMS: pa.array(n_items),
            D_INTRA: pa.array(d_intra, mask=empty),
            D_INTER: pa.array(d_inter, mask=empty),
            COMPLEXITY: pa.array(d_intra * d_inter, mask=empty),
            HISTOGRAM: pa.array(histograms, histogram_type),
        }
    )
