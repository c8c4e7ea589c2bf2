"""Stage 5: keep the N_j hardest (or easiest, or random) samples of every cluster, with their ranks.

Imports pyspark inside functions only.

How it stays free of skew: a histogram of the score in each cluster tells which bins are kept whole and
which one the quota cuts. Rows below the cut never move; the others are ranked by windows over
(cluster, bin), whose offset is the number of rows in the bins before. No window is a whole cluster.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dbp.columns import CLUSTER_ID, DISTANCE, HISTOGRAM, KEY, N_ITEMS, QUOTA, RANK
from spark_dbp.stages.cluster_stats import cluster_stats, distance_bin

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# The upper bits of the hash: 2048 bins of equal expectation, in the order of the hash.
_HASH_BIN_SHIFT = 53


def select(
    assignments: DataFrame,
    quotas: DataFrame,
    *,
    which_to_keep: str = "hard",
    seed: int = 0,
    stats: DataFrame | None = None,
) -> DataFrame:
    """Rows to keep: the first ``quota`` of every cluster in the order that `which_to_keep` names.

    Parameters
    ----------
    assignments : DataFrame
        ``key`` (unique), ``cluster_id``, ``distance_to_centroid``.
    quotas : DataFrame
        ``cluster_id`` and ``quota``, at most the size of the cluster.
    which_to_keep : {"hard", "easy", "random"}
        Farthest from the centroid first, nearest first, or by ``xxhash64(key, seed)``. Equal
        distances (hashes) are ordered by key.
    seed : int
        For ``random``.
    stats : DataFrame, optional
        ``cluster_id`` and ``distance_histogram`` of these assignments; saves a pass over them
        unless samples are kept at random.

    Returns
    -------
    DataFrame
        ``key``, ``cluster_id``, ``distance_to_centroid``, ``rank`` INT (1 = first kept in its cluster).

    Notes
    -----
    Shuffles the kept rows and those that share the bin of a cut, not the dropped ones.
    """
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    score, bins, descending = _score(which_to_keep, seed)
    scored = assignments.select(KEY, CLUSTER_ID, DISTANCE, bins.alias("bin"))
    if which_to_keep == "random":
        histogram = scored.groupBy(CLUSTER_ID, "bin").agg(F.count(F.lit(1)).alias(N_ITEMS))
    else:
        histogram = (stats if stats is not None else cluster_stats(assignments)).select(
            CLUSTER_ID, F.inline(HISTOGRAM)
        )
    reached = _reached_bins(histogram, quotas, descending)
    candidates = scored.join(F.broadcast(reached), [CLUSTER_ID, "bin"])
    order = [score.desc() if descending else score.asc(), F.col(KEY).asc()]
    in_bin = F.row_number().over(Window.partitionBy(CLUSTER_ID, "bin").orderBy(*order))
    ranked = candidates.withColumn(RANK, (F.col("rows_before") + in_bin).cast("int"))
    return ranked.where(F.col(RANK) <= F.col(QUOTA)).select(KEY, CLUSTER_ID, DISTANCE, RANK)


def _score(which_to_keep: str, seed: int) -> tuple[Column, Column, bool]:
    """What rows are ordered by, its histogram bin, and whether the largest come first."""
    from pyspark.sql import functions as F

    if which_to_keep == "random":
        score = F.xxhash64(KEY, F.lit(seed).cast("bigint"))
        return score, F.shiftright(score, _HASH_BIN_SHIFT).cast("int"), False
    return F.col(DISTANCE), distance_bin(), which_to_keep == "hard"


def _reached_bins(histogram: DataFrame, quotas: DataFrame, descending: bool) -> DataFrame:
    """Bins that hold kept rows: ``cluster_id, bin, quota, rows_before`` (rows in the bins ahead)."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    first = F.col("bin").desc() if descending else F.col("bin").asc()
    ahead = Window.partitionBy(CLUSTER_ID).orderBy(first).rowsBetween(Window.unboundedPreceding, -1)
    return (
        histogram.join(quotas.select(CLUSTER_ID, QUOTA), CLUSTER_ID)
        .withColumn("rows_before", F.coalesce(F.sum(N_ITEMS).over(ahead), F.lit(0)))
        .where(F.col("rows_before") < F.col(QUOTA))
        .select(CLUSTER_ID, "bin", QUOTA, "rows_before")
    )
