"""Keep N_j samples of every cluster, the hardest or others, with their ranks.

Imports `arrow`, `sql`, `blocks`, `compat`, `errors`, `histogram`, `ranking` and `cluster_stats`; pyspark and
pyarrow inside functions.

A large cluster must not overload one worker. So a histogram of each cluster tells which bins are kept whole
and which bin the quota cuts; for ``stratified`` it tells which bins hold a kept rank. Rows of bins from which
nothing is kept are not shuffled. The others are sorted in groups (see
`ranking`), and the first rank of a group follows from the number of rows before it. No worker holds a whole
cluster. A single bin that is too large for a worker goes through Spark's sort.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import BIN, CLUSTER_ID, DISTANCE, HISTOGRAM, KEY, N_ITEMS, QUOTA, RANK
from spark_dbp.engine.arrow import CommittedTable, map_batches, measure_key_bytes
from spark_dbp.engine.blocks import BLOCKS, number_tasks, read_parts, shuffle_blocks, split_into_blocks
from spark_dbp.engine.compat import collect_arrow, map_in_arrow
from spark_dbp.engine.mapped_rows import MappedRows, to_frame
from spark_dbp.engine.sql import number_large_groups, number_starts, rank_by_windows
from spark_dbp.errors import ConfigError
from spark_dbp.kernels.histogram import BIN_SQL, HASH_BIN_SHIFT, N_BINS
from spark_dbp.kernels.ranking import (
    FARTHEST_FIRST,
    GROUP,
    Groups,
    cut_into_groups,
    find_reached,
    gather_groups,
    number_groups,
    order_histogram,
    rank_rows,
)
from spark_dbp.stages.cluster_stats import cluster_stats

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

# Rows: of a usual group, of a usual part, of the largest group that a worker sorts. The bytes limit the
# same three where keys are long. A part ends with the group that fills it, so it has at most the last two
# together. A worker holds its keys about three times, and takes less than 600 MB in all.
_GROUP_ROWS, _PART_ROWS, _MOST_ROWS = 50_000, 500_000, 1_000_000
_GROUP_BYTES, _PART_BYTES, _MOST_BYTES = 16 << 20, 64 << 20, 96 << 20
_CHOICES = ("hard", "easy", "random", "stratified")
# Rows of a group that Spark ranks, on average, and at most so many such groups: a few rows to sort at a time
# are sorted quickest, while the driver holds a number for each group.
_WINDOW_ROWS, _MOST_WINDOWS = 256, 2**20

Whole = npt.NDArray[np.int64]


def select(
    assignments: DataFrame | CommittedTable,
    quotas: DataFrame | pa.Table,
    *,
    which_to_keep: str = "hard",
    seed: int = 0,
    stats: DataFrame | pa.Table | None = None,
) -> DataFrame:
    """Rows to keep: ``quota`` of every cluster, chosen as `which_to_keep` says.

    Parameters
    ----------
    assignments : DataFrame or CommittedTable
        ``key`` (unique), ``cluster_id``, ``distance_to_centroid``.
    quotas : DataFrame or Table
        ``cluster_id`` and ``quota``, at most the size of the cluster.
    which_to_keep : {"hard", "easy", "random", "stratified"}
        Those farthest from the centroid, those nearest to it, the first by ``xxhash64(key, seed)``, or evenly
        over the distances (see `kernels.ranking.count_spread`). Samples with equal distances (or hashes) are
        ordered by key; ``stratified`` orders as ``hard`` does.
    seed : int
        For ``random`` only.
    stats : DataFrame or Table, optional
        ``cluster_id`` and ``distance_histogram`` of these assignments. Saves a pass over them, except for
        ``random``.

    Returns
    -------
    DataFrame
        ``key``, ``cluster_id``, ``distance_to_centroid``, ``rank`` INT (1 = first kept in its cluster).

    Raises
    ------
    ConfigError
        When `which_to_keep` is unknown.

    Notes
    -----
    The call itself collects the histograms and the quotas, and cuts groups of bins on the driver.

    Of a DataFrame, Spark ranks the rows by a window over each group (`engine.sql.rank_by_windows`). There are
    at most about a million groups, and one more for each cluster.

    Of a committed table, workers sort the rows. A cluster has about one group for every 50,000 rows kept, or
    a single one; for ``stratified`` about one for every 50,000 rows, and at most 64 more.

    The shuffle moves the kept rows, and the other rows of a group that the quota cuts. For ``stratified``
    nearly all rows are moved, fewer where a cluster keeps less than one row in two bins.
    """
    return to_frame(plan_selection(assignments, quotas, which_to_keep=which_to_keep, seed=seed, stats=stats))


def plan_selection(
    assignments: DataFrame | CommittedTable,
    quotas: DataFrame | pa.Table,
    *,
    which_to_keep: str = "hard",
    seed: int = 0,
    stats: DataFrame | pa.Table | None = None,
) -> DataFrame | MappedRows:
    """Like `select`, but of a committed table it returns rows that workers can write themselves."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if which_to_keep not in _CHOICES:
        raise ConfigError(
            f"which_to_keep {which_to_keep!r} is unknown", mend=f"give one of {', '.join(_CHOICES)}"
        )
    frame = to_frame(assignments)
    score = F.xxhash64(KEY, F.lit(seed).cast("bigint"))
    if which_to_keep == "random":
        place = F.shiftright(score, HASH_BIN_SHIFT).cast("int") + N_BINS // 2
        counted = frame.groupBy(CLUSTER_ID, place.alias(BIN)).agg(F.count(F.lit(1)).alias(N_ITEMS))
        bins = F.collect_list(F.struct(BIN, N_ITEMS)).alias(HISTOGRAM)
        histograms = counted.groupBy(CLUSTER_ID).agg(bins)
    else:
        place = N_BINS - 1 - F.expr(BIN_SQL) if which_to_keep in FARTHEST_FIRST else F.expr(BIN_SQL)
        histograms = stats if stats is not None else cluster_stats(assignments)
    by_score = score.asc() if which_to_keep == "random" else F.col(DISTANCE).asc()
    order = F.col(DISTANCE).desc() if which_to_keep in FARTHEST_FIRST else by_score
    columns = [KEY, CLUSTER_ID, DISTANCE]
    rows = frame.select(*columns)  # another column may have one of the names used on the way
    is_spread = which_to_keep == "stratified"
    if not isinstance(assignments, CommittedTable):
        clusters = _number_groups(histograms, quotas, which_to_keep)
        return rank_by_windows(rows, clusters, place, order, spread=is_spread)
    groups = _cut_into_groups(histograms, quotas, which_to_keep, measure_key_bytes(assignments))
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

    if which_to_keep == "random":
        parts = map_in_arrow(rows.withColumn("score", score), to_parts, BLOCKS)
    else:
        parts = map_batches(assignments, columns, to_parts, BLOCKS)
    kept_type = T.StructType([*rows.schema.fields, T.StructField(RANK, T.IntegerType())])
    rest = None
    if (groups.part < 0).any():
        rest = rank_by_windows(rows, number_large_groups(groups), place, order, spread=is_spread)
    return MappedRows(shuffle_blocks(parts, n_parts), to_ranks, kept_type, rest)


def _cut_into_groups(
    histograms: DataFrame | pa.Table, quotas: DataFrame | pa.Table, which_to_keep: str, key_bytes: float
) -> Groups:
    """The groups that workers sort."""
    group_rows, part_rows, most_rows = (
        min(rows, max(1, int(size / max(1.0, key_bytes))))
        for rows, size in (
            (_GROUP_ROWS, _GROUP_BYTES),
            (_PART_ROWS, _PART_BYTES),
            (_MOST_ROWS, _MOST_BYTES),
        )
    )
    found: list[list[Whole]] = []
    for cluster, quota, place, n_items in _list_histograms(histograms, quotas, which_to_keep):
        groups = cut_into_groups(place, n_items, quota, group_rows, which_to_keep)
        same = (np.full(len(groups[0]), value) for value in (cluster, n_items.sum(), quota))
        found.append([*groups, *same])
    names = ["first_place", "last_place", "rows_before", "n_rows", CLUSTER_ID, N_ITEMS, QUOTA]
    none = np.zeros(0, dtype=np.int64)
    joined = [np.concatenate([none, *(groups[i] for groups in found)]) for i in range(len(names))]
    return gather_groups(dict(zip(names, joined, strict=True)), part_rows, most_rows)


def _number_groups(
    histograms: DataFrame | pa.Table, quotas: DataFrame | pa.Table, which_to_keep: str
) -> pa.Table:
    """The groups that `rank_by_windows` takes."""
    import pyarrow as pa

    clusters = list(_list_histograms(histograms, quotas, which_to_keep))
    is_spread = which_to_keep == "stratified"
    n_rows = sum(int(n_items.sum()) if is_spread else quota for _, quota, _, n_items in clusters)
    group_rows = max(_WINDOW_ROWS, n_rows / _MOST_WINDOWS)
    columns: dict[str, list[Any]] = {CLUSTER_ID: [], N_ITEMS: [], QUOTA: [], "shift": [], "rows_before": []}
    for cluster, quota, place, n_items in clusters:
        shift, rows_before = number_groups(place, n_items, quota, group_rows, which_to_keep)
        values = (cluster, int(n_items.sum()), quota, shift, rows_before)
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    types = [pa.int64()] * 3 + [pa.int32(), pa.list_(pa.int64())]
    return number_starts(pa.table(columns, pa.schema(zip(columns, types, strict=True))))


def _list_histograms(
    histograms: DataFrame | pa.Table, quotas: DataFrame | pa.Table, which_to_keep: str
) -> Iterator[tuple[int, int, Whole, Whole]]:
    """Id, quota, places and rows of the bins of each cluster that has a quota, by id, on the driver."""
    import pyarrow as pa

    def collect(table: DataFrame | pa.Table, name: str) -> pa.Table:
        chosen = table.select([CLUSTER_ID, name])
        return (chosen if isinstance(chosen, pa.Table) else collect_arrow(chosen)).sort_by(CLUSTER_ID)

    given = collect(quotas, QUOTA)
    quota_of = dict(zip(*(given.column(name).to_pylist() for name in (CLUSTER_ID, QUOTA)), strict=True))
    held = collect(histograms, HISTOGRAM)
    lists = held.column(HISTOGRAM).combine_chunks()
    ends = np.cumsum(lists.value_lengths().to_numpy())
    bins, n_items = (values.to_numpy().astype(np.int64) for values in lists.flatten().flatten())
    for cluster, end, start in zip(held.column(CLUSTER_ID).to_pylist(), ends, [0, *ends], strict=False):
        if cluster in quota_of:
            places = order_histogram(which_to_keep, bins[start:end], n_items[start:end])
            yield cluster, quota_of[cluster], *places
