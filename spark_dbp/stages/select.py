"""Keep the N_j hardest (or easiest, or random) samples of every cluster, with their ranks.

Imports `arrow`, `blocks`, `compat`, `histogram`, `ranking` and `cluster_stats`; pyspark and pyarrow inside
functions.

A large cluster must not overload one worker. So a histogram of each cluster tells which bins are kept whole
and which bin the quota cuts. Rows of later bins are never shuffled. The others are sorted in groups (see
`ranking`), and the first rank of a group follows from the number of rows before it. No worker holds a whole
cluster. A single bin that is too large for a worker goes through Spark's sort.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from spark_dbp.columns import BIN, CLUSTER_ID, DISTANCE, HISTOGRAM, KEY, N_ITEMS, QUOTA, RANK
from spark_dbp.engine.arrow import CommittedTable, MappedRows, map_batches, measure_key_bytes, to_frame
from spark_dbp.engine.blocks import BLOCKS, number_tasks, read_parts, shuffle_blocks, split_into_blocks
from spark_dbp.engine.compat import collect_arrow, map_in_arrow
from spark_dbp.kernels.histogram import BIN_SQL, HASH_BIN_SHIFT, N_BINS
from spark_dbp.kernels.ranking import (
    GROUP,
    Groups,
    cut_into_groups,
    find_reached,
    gather_groups,
    order_histogram,
    rank_rows,
)
from spark_dbp.stages.cluster_stats import cluster_stats

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

# Rows: of a usual group, of a usual part, of the largest group that a worker sorts. The bytes limit the
# same three where keys are long. A part ends with the group that fills it, so it has at most the last two
# together. A worker holds its keys about three times, and takes less than 600 MB in all.
_GROUP_ROWS, _PART_ROWS, _MOST_ROWS = 50_000, 500_000, 1_000_000
_GROUP_BYTES, _PART_BYTES, _MOST_BYTES = 16 << 20, 64 << 20, 96 << 20


def select(
    assignments: DataFrame | CommittedTable,
    quotas: DataFrame,
    *,
    which_to_keep: str = "hard",
    seed: int = 0,
    stats: DataFrame | None = None,
) -> DataFrame:
    """Rows to keep: the first ``quota`` of every cluster in the order that `which_to_keep` names.

    Parameters
    ----------
    assignments : DataFrame or CommittedTable
        ``key`` (unique), ``cluster_id``, ``distance_to_centroid``.
    quotas : DataFrame
        ``cluster_id`` and ``quota``, at most the size of the cluster.
    which_to_keep : {"hard", "easy", "random"}
        Farthest from the centroid first, nearest first, or by ``xxhash64(key, seed)``. Samples with equal
        distances (or hashes) are ordered by key.
    seed : int
        For ``random`` only.
    stats : DataFrame, optional
        ``cluster_id`` and ``distance_histogram`` of these assignments. Saves a pass over them, except for
        ``random``.

    Returns
    -------
    DataFrame
        ``key``, ``cluster_id``, ``distance_to_centroid``, ``rank`` INT (1 = first kept in its cluster).

    Notes
    -----
    The call itself computes the groups and collects them to the driver. A cluster has about one group for
    every 50,000 rows kept, or a single one. The shuffle moves the kept rows, and the other rows of a bin that
    the quota cuts.
    """
    return plan_selection(assignments, quotas, which_to_keep=which_to_keep, seed=seed, stats=stats).to_frame()


def plan_selection(
    assignments: DataFrame | CommittedTable,
    quotas: DataFrame,
    *,
    which_to_keep: str = "hard",
    seed: int = 0,
    stats: DataFrame | None = None,
) -> MappedRows:
    """Like `select`, but returns rows that workers can write themselves."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    frame = to_frame(assignments)
    score = F.xxhash64(KEY, F.lit(seed).cast("bigint"))
    if which_to_keep == "random":
        place = F.shiftright(score, HASH_BIN_SHIFT).cast("int") + N_BINS // 2
        counted = frame.groupBy(CLUSTER_ID, place.alias(BIN)).agg(F.count(F.lit(1)).alias(N_ITEMS))
        bins = F.collect_list(F.struct(BIN, N_ITEMS)).alias(HISTOGRAM)
        histograms = counted.groupBy(CLUSTER_ID).agg(bins)
    else:
        place = N_BINS - 1 - F.expr(BIN_SQL) if which_to_keep == "hard" else F.expr(BIN_SQL)
        histograms = stats if stats is not None else cluster_stats(assignments)
    groups = _groups(histograms, quotas, which_to_keep, measure_key_bytes(assignments))
    n_parts = int(groups.part.max(initial=0)) + 1
    tasks = number_tasks(frame, n_parts)

    def to_parts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = find_reached(batches, groups, which_to_keep)
        return split_into_blocks(
            rows, n_parts, lambda table: groups.part[table.column(GROUP).to_numpy()], tasks
        )

    def to_ranks(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _, rows in read_parts(batches):
            yield from rank_rows(rows, groups, which_to_keep)

    columns = [KEY, CLUSTER_ID, DISTANCE]
    if which_to_keep == "random":
        parts = map_in_arrow(frame.select(*columns, score.alias("score")), to_parts, BLOCKS)
    else:
        parts = map_batches(assignments, columns, to_parts, BLOCKS)
    kept_type = T.StructType(
        [*(frame.schema[name] for name in columns), T.StructField(RANK, T.IntegerType())]
    )
    rest = None
    if (groups.part < 0).any():
        rest = _sorted_by_spark(frame, groups, place, score, which_to_keep)
    return MappedRows(shuffle_blocks(parts, n_parts), to_ranks, kept_type, rest)


def _groups(histograms: DataFrame, quotas: DataFrame, which_to_keep: str, key_bytes: float) -> Groups:
    """The groups of all clusters, from a table with one row, and its histogram, for each cluster."""
    group_rows, part_rows, most_rows = (
        min(rows, max(1, int(size / max(1.0, key_bytes))))
        for rows, size in (
            (_GROUP_ROWS, _GROUP_BYTES),
            (_PART_ROWS, _PART_BYTES),
            (_MOST_ROWS, _MOST_BYTES),
        )
    )

    def cut(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            for cluster, quota, histogram in zip(*batch.columns, strict=True):
                bins, n_items = (c.to_numpy().astype(np.int64) for c in histogram.values.flatten())
                place, n_items = order_histogram(which_to_keep, bins, n_items)
                columns = cut_into_groups(place, n_items, quota.as_py(), group_rows)
                same = [np.full(len(columns[0]), value.as_py(), np.int64) for value in (cluster, quota)]
                yield pa.RecordBatch.from_arrays([pa.array(c) for c in (*columns, *same)], names)

    names = ["first_place", "last_place", "rows_before", "n_rows", CLUSTER_ID, QUOTA]
    rows = quotas.select(CLUSTER_ID, QUOTA).join(histograms.select(CLUSTER_ID, HISTOGRAM), CLUSTER_ID)
    schema = ", ".join(f"{name} BIGINT" for name in names)
    found = collect_arrow(map_in_arrow(rows, cut, schema))
    found = found.sort_by([(CLUSTER_ID, "ascending"), ("first_place", "ascending")])
    return gather_groups({name: found.column(name).to_numpy() for name in names}, part_rows, most_rows)


def _sorted_by_spark(
    frame: DataFrame, groups: Groups, place: Column, score: Column, which_to_keep: str
) -> DataFrame:
    """The kept rows of bins that are too large for a worker, ranked by Spark's sort."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    columns = (groups.cluster_id, groups.first_place, groups.quota, groups.rows_before)
    large = [tuple(column[i].item() for column in columns) for i in np.flatnonzero(groups.part < 0)]
    schema = f"{CLUSTER_ID} INT, place INT, {QUOTA} BIGINT, rows_before BIGINT"
    bins = F.broadcast(frame.sparkSession.createDataFrame(large, schema))
    candidates = frame.withColumn("place", place).join(bins, [CLUSTER_ID, "place"])
    order = {"hard": F.col(DISTANCE).desc(), "easy": F.col(DISTANCE).asc(), "random": score.asc()}
    in_bin = Window.partitionBy(CLUSTER_ID, "place").orderBy(order[which_to_keep], F.col(KEY).asc())
    rank = (F.col("rows_before") + F.row_number().over(in_bin)).cast("int")
    kept = candidates.withColumn(RANK, rank).where(F.col(RANK) <= F.col(QUOTA))
    return kept.select(KEY, CLUSTER_ID, DISTANCE, RANK)
