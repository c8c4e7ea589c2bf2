"""Compute parts of a run again in another way than the run did: by the other engine, or in plain numpy.

Imports numpy, `columns`, `compat`, `probe` and kernels; pyspark and pyarrow inside functions.

A check that uses the code that it checks would find damage, but no error of that code.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from spark_dbp.columns import BIN, CLUSTER_ID, D_INTRA, DISTANCE, HISTOGRAM, KEY, N_ITEMS, QUOTA, RANK
from spark_dbp.engine.compat import collect_arrow
from spark_dbp.engine.probe import find_problem_of_readers
from spark_dbp.kernels.histogram import DISTANCE_UNIT, find_bins, to_whole_distances
from spark_dbp.kernels.ranking import FARTHEST_FIRST

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

# Rows of the clusters that are computed again on the driver: about so many, at most.
_SAMPLED_ROWS, _MOST_ROWS = 200_000, 2_000_000


def choose_other_engine(spark: SparkSession, engine: str, paths: list[str]) -> str | None:
    """The engine that did not make a run; None where it cannot read the run.

    Parameters
    ----------
    spark : SparkSession
    engine : {"arrow", "sql", ""}
        What made it. Earlier versions do not say; they had only ``arrow``.
    paths : list of str
        Files of its tables.
    """
    if engine != "sql":
        return "sql"
    return None if find_problem_of_readers(spark, paths) else "arrow"


def sample_clusters(sizes: npt.NDArray[np.int64], ids: npt.NDArray[np.int32], seed: str) -> list[int]:
    """Clusters, chosen by a hash of their id and `seed`, that together have about 200,000 rows.

    Examples
    --------
    >>> sample_clusters(np.array([150_000, 150_000, 0, 40_000]), np.arange(4), "a")
    [0, 3]
    >>> sample_clusters(np.array([9_000_000, 5_000_000]), np.arange(2), "a")
    []
    """
    found, n_rows = [], 0
    for row in sorted(range(len(ids)), key=lambda row: crc32(f"{seed} {ids[row]}".encode())):
        is_too_much = n_rows and n_rows + sizes[row] > _SAMPLED_ROWS
        if is_too_much or not 0 < sizes[row] <= _MOST_ROWS:
            continue
        found.append(int(ids[row]))
        n_rows += int(sizes[row])
    return sorted(found)


def check_in_numpy(
    clusters: list[int],
    assignments: DataFrame,
    keep_list: DataFrame,
    stats: pd.DataFrame,
    quotas: pd.DataFrame,
    which_to_keep: str,
    seed: int,
) -> Iterator[str]:
    """Compute statistics and kept rows of a few clusters again on the driver, by a plain sort.

    Parameters
    ----------
    clusters : list of int
    assignments, keep_list : DataFrame
    stats, quotas : pandas.DataFrame
        The tables of the run.
    which_to_keep, seed
        Settings of the run.

    Yields
    ------
    str
        What is wrong.
    """
    import pyarrow as pa
    from pyspark.sql import functions as F

    is_sampled = F.col(CLUSTER_ID).isin(clusters)
    score = F.xxhash64(KEY, F.lit(seed).cast("bigint")) if which_to_keep == "random" else F.col(DISTANCE)
    rows = collect_arrow(
        assignments.where(is_sampled).select(KEY, CLUSTER_ID, DISTANCE, score.alias("score"))
    )
    kept = collect_arrow(keep_list.where(is_sampled).select(KEY, CLUSTER_ID, DISTANCE, RANK))
    # From the smallest on, and of equal ones the smaller key first.
    direction = "descending" if which_to_keep in FARTHEST_FIRST else "ascending"
    rows = rows.sort_by([(CLUSTER_ID, "ascending"), ("score", direction), (KEY, "ascending")])
    kept = kept.sort_by([(CLUSTER_ID, "ascending"), (RANK, "ascending")])
    of_row, of_kept = (table.column(CLUSTER_ID).to_numpy() for table in (rows, kept))
    for cluster in clusters:
        start, stop = np.searchsorted(of_row, [cluster, cluster + 1])
        in_cluster = rows.slice(start, stop - start)
        yield from _check_statistics(cluster, in_cluster, stats[stats[CLUSTER_ID] == cluster].iloc[0])
        quota = int(quotas.loc[quotas[CLUSTER_ID] == cluster, QUOTA].iloc[0])
        chosen = choose_rows(in_cluster.num_rows, quota, which_to_keep)
        wanted = in_cluster.take(pa.array(chosen))
        start, stop = np.searchsorted(of_kept, [cluster, cluster + 1])
        found = kept.slice(start, stop - start)
        same = found.column(KEY).combine_chunks().equals(wanted.column(KEY).combine_chunks())
        if not same or found.column(RANK).to_pylist() != list(range(1, quota + 1)):
            yield f"table keep_list: the rows of cluster {cluster} are not those of a plain sort"


def choose_rows(n_items: int, quota: int, which_to_keep: str) -> npt.NDArray[np.int64]:
    """Which of so many sorted rows are kept: the first ones, or for ``stratified`` evenly spread ones.

    Examples
    --------
    >>> choose_rows(5, 2, "hard").tolist(), choose_rows(5, 2, "stratified").tolist()
    ([0, 1], [1, 3])
    """
    if which_to_keep != "stratified":
        return np.arange(quota)
    until = [(2 * rank * quota + n_items) // (2 * n_items) for rank in range(n_items + 1)]  # exact integers
    return np.flatnonzero(np.diff(until))


def _check_statistics(cluster: int, rows: pa.Table, stored: pd.Series) -> Iterator[str]:
    distance = rows.column(DISTANCE).to_numpy()
    bins, n_items = np.unique(find_bins(distance), return_counts=True)
    d_intra = float(to_whole_distances(distance).sum()) * DISTANCE_UNIT / max(1, len(distance))
    histogram = [(row[BIN], row[N_ITEMS]) for row in stored[HISTOGRAM]]
    if (
        stored[N_ITEMS] != len(distance)
        or stored[D_INTRA] != d_intra
        or histogram != list(zip(bins.tolist(), n_items.tolist(), strict=True))
    ):
        yield f"table cluster_stats: cluster {cluster} has other statistics in plain numpy"
