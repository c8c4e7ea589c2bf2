"""The statistics and the ranks in plain Spark SQL: groupBy and window functions, on rows that Spark reads.

Imports `compat`, `columns`, `histogram` and `ranking`; pyspark and pyarrow inside functions.

The other way is `arrow`, where workers read the files themselves. Both give the same rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from spark_dbp.columns import BIN, CLUSTER_ID, D_INTRA, DISTANCE, HISTOGRAM, KEY, N_ITEMS, QUOTA, RANK
from spark_dbp.engine.compat import count_shuffle_partitions, create_frame
from spark_dbp.kernels.histogram import BIN_BITS, BIN_SQL, DISTANCE_UNIT, WHOLE_DISTANCE_SQL

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

    from spark_dbp.kernels.ranking import Groups

# About how many rows one task of a window sorts.
_TASK_ROWS = 1_000_000
# Bits of a group's start that hold the rows before it: a cluster may have a trillion rows.
_BEFORE_BITS = 40
_MOST_BEFORE = (1 << _BEFORE_BITS) - 1
# `kernels.ranking.count_spread` in SQL. With 2**30 rows in a cluster, the product may not fit into a long.
COUNT_SPREAD_SQL = (
    f"CASE WHEN {N_ITEMS} < {2**30} THEN (2 * {{rank}} * {QUOTA} + {N_ITEMS}) div (2 * {N_ITEMS}) ELSE "
    f"(2 * cast({{rank}} AS DECIMAL(19)) * cast({QUOTA} AS DECIMAL(19)) + {N_ITEMS}) div (2 * {N_ITEMS}) END"
)


def measure_clusters(assignments: DataFrame) -> DataFrame:
    """Size, d_intra and distance histogram of every cluster that has samples, by two groupBys.

    Parameters
    ----------
    assignments : DataFrame
        ``cluster_id`` and ``distance_to_centroid``.

    Returns
    -------
    DataFrame
        As `stages.cluster_stats.cluster_stats` returns.
    """
    from pyspark.sql import functions as F

    # One long to group by, as Spark's quickest way to group takes it: cluster and bin side by side.
    place = F.shiftleft(F.col(CLUSTER_ID).cast("bigint"), BIN_BITS) + F.expr(BIN_SQL)
    counted = (
        assignments.select(place.alias("place"), F.expr(WHOLE_DISTANCE_SQL).alias("whole"))
        .groupBy("place")
        .agg(F.count(F.lit(1)).alias(N_ITEMS), F.sum("whole").alias("total"))
    )
    bin_ = F.col("place").bitwiseAND(F.lit((1 << BIN_BITS) - 1)).cast("int").alias(BIN)
    d_intra = F.sum("total").cast("double") * F.lit(DISTANCE_UNIT) / F.sum(N_ITEMS)
    return counted.groupBy(F.shiftright("place", BIN_BITS).cast("int").alias(CLUSTER_ID)).agg(
        F.sum(N_ITEMS).alias(N_ITEMS),
        d_intra.alias(D_INTRA),
        F.array_sort(F.collect_list(F.struct(bin_, N_ITEMS))).alias(HISTOGRAM),
    )


def rank_by_windows(
    rows: DataFrame, clusters: pa.Table, place: Column, order: Column, *, spread: bool = False
) -> DataFrame:
    """The rows to keep, with their ranks, by a window over groups of neighbouring bins.

    Parameters
    ----------
    rows : DataFrame
        ``key``, ``cluster_id``, ``distance_to_centroid``, and what `place` and `order` need.
    clusters : Table
        From `number_starts` or `number_large_groups`.
    place : Column
        Place of a row's bin in the order of keeping, INT.
    order : Column
        Order of the rows of a bin. Of equal rows the smaller key comes first.
    spread : bool
        Whether ranks are kept evenly (see `kernels.ranking.count_spread`), not the first ones.

    Returns
    -------
    DataFrame
        ``key``, ``cluster_id``, ``distance_to_centroid``, ``rank`` INT (1 = first kept in its cluster).

    Notes
    -----
    Groups without a kept row are left out by the join, before the shuffle. What partitions the window is one
    long, the start of the group: the cluster's number, and its rows that come before the group. Spark sorts
    by it in half the time that two columns take. The cluster and the rank follow from it, so the cluster is
    not shuffled.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    spark = rows.sparkSession
    starts = F.broadcast(create_frame(spark, clusters.select([CLUSTER_ID, "shift", "starts"])))
    sizes = F.broadcast(create_frame(spark, clusters.select(["number", CLUSTER_ID, N_ITEMS, QUOTA])))
    reached = rows.withColumn("place", place).join(starts, CLUSTER_ID)
    reached = reached.withColumn("start", F.expr("get(starts, shiftright(place, shift))"))
    reached = reached.where("start IS NOT NULL").select(KEY, DISTANCE, "start")
    n_rows = int(clusters.column(N_ITEMS if spread else QUOTA).to_numpy().sum())
    n_tasks = max(count_shuffle_partitions(spark), -(-n_rows // _TASK_ROWS))
    in_group = Window.partitionBy("start").orderBy(order, F.col(KEY).asc())
    ranked = reached.repartition(n_tasks, "start").withColumn("in_group", F.row_number().over(in_group))
    ranked = ranked.withColumn("number", F.shiftright("start", _BEFORE_BITS)).join(sizes, "number")
    ranked = ranked.withColumn(RANK, F.col("start").bitwiseAND(F.lit(_MOST_BEFORE)) + F.col("in_group"))
    if spread:
        ranked = ranked.withColumn("earlier", F.expr(COUNT_SPREAD_SQL.format(rank=f"({RANK} - 1)")))
        ranked = ranked.withColumn(RANK, F.expr(COUNT_SPREAD_SQL.format(rank=RANK)))
        kept = ranked.where(F.col(RANK) > F.col("earlier"))
    else:
        kept = ranked.where(F.col(RANK) <= F.col(QUOTA))
    return kept.select(KEY, CLUSTER_ID, DISTANCE, F.col(RANK).cast("int").alias(RANK))


def number_starts(groups: pa.Table) -> pa.Table:
    """The table that `rank_by_windows` takes, from the groups of all clusters.

    Parameters
    ----------
    groups : Table
        One row for each cluster: ``cluster_id``, ``n_items``, ``quota``, and ``shift`` and ``rows_before`` of
        `kernels.ranking.number_groups`.

    Returns
    -------
    Table
        By ``cluster_id``, with its ``number``: 0, 1, 2, ... ``starts``: for each group, this number in the
        upper bits, and in the lower ones the rows before it in its cluster; null where nothing of it is kept.
    """
    import pyarrow as pa

    groups = groups.combine_chunks().sort_by(CLUSTER_ID)
    number = np.arange(groups.num_rows, dtype=np.int64)
    lists = groups.column("rows_before").combine_chunks()
    lengths, before = lists.value_lengths().to_numpy(), lists.flatten().to_numpy()
    starts = pa.array(before + np.repeat(number << _BEFORE_BITS, lengths), mask=before < 0)
    ends = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.table(
        {
            CLUSTER_ID: groups.column(CLUSTER_ID).cast(pa.int32()),
            "shift": groups.column("shift"),
            "starts": pa.ListArray.from_arrays(ends, starts),
            "number": number,
            N_ITEMS: groups.column(N_ITEMS),
            QUOTA: groups.column(QUOTA),
        }
    )


def number_large_groups(groups: Groups) -> pa.Table:
    """The table that `rank_by_windows` takes, with only the bins that are too large for a worker."""
    import pyarrow as pa

    large = np.flatnonzero(groups.part < 0)
    ids, firsts = np.unique(groups.cluster_id[large], return_index=True)
    rows_before = []
    for of_cluster in np.split(large, firsts[1:]):
        places = groups.first_place[of_cluster]
        before = np.full(places.max() + 1, -1, dtype=np.int64)
        before[places] = groups.rows_before[of_cluster]
        rows_before.append(before.tolist())
    return number_starts(
        pa.table(
            {
                CLUSTER_ID: ids,
                N_ITEMS: groups.n_items[large[firsts]],
                QUOTA: groups.quota[large[firsts]],
                "shift": np.zeros(len(ids), dtype=np.int32),
                "rows_before": pa.array(rows_before, pa.list_(pa.int64())),
            }
        )
    )
