"""Join rows to the groups that they belong to, where one group may have most of the rows.

Imports `columns`; pyspark inside functions.

A join sends all rows of a group to one task. Where half of all rows share a value, that task would take as
long as all others together. So a large group is cut into slices by a hash of the row's key: each slice is
joined on its own, to a copy of the group.
"""

from __future__ import annotations

from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

from spark_dbp.columns import KEY

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# About how many rows of a group go to one task.
_SLICE_ROWS = 10_000


def join_groups(
    rows: DataFrame, groups: DataFrame, on: list[str], *, key: str = KEY, n_rows: str = "times"
) -> DataFrame:
    """``rows.join(groups, on)``, and no task gets all rows of a large group.

    Parameters
    ----------
    rows : DataFrame
        `key`, the columns `on`, and others that `groups` does not have.
    groups : DataFrame
        The columns `on`, unique, and `n_rows`.
    on : list of str
        Columns of both.
    key : str
        Column of `rows` that is different in every row.
    n_rows : str
        Column of `groups`: how many of `rows` a group has.

    Returns
    -------
    DataFrame
        Columns of both.

    Notes
    -----
    What is broadcast is a hash and a number for each group of more than `_SLICE_ROWS` rows, never a value: of
    10^10 rows at most a million of them.
    """
    from pyspark.sql import functions as F

    # That no column is null is known. Asking for it makes Spark read and group the rows once for both uses
    # of `groups`: the two plans then have the same columns and filters up to the shuffle.
    no_nulls = [F.col(name).isNotNull() for name in groups.columns]
    large = groups.where(reduce(and_, no_nulls, F.col(n_rows) > _SLICE_ROWS))
    slices = large.groupBy(F.xxhash64(*on).alias("hash")).agg(
        F.max(F.ceil(F.col(n_rows) / _SLICE_ROWS)).cast("int").alias("n_slices")
    )

    # Both sides take the number of slices from the same table, by the same hash. So it does not matter
    # that different groups may have the same hash.
    def count_slices(frame: DataFrame) -> DataFrame:
        counted = frame.withColumn("hash", F.xxhash64(*on)).join(F.broadcast(slices), "hash", "left")
        return counted.withColumn("n_slices", F.coalesce("n_slices", F.lit(1))).drop("hash")

    slice_of_row = F.pmod(F.xxhash64(key), F.col("n_slices")).cast("int")
    all_slices = F.explode(F.sequence(F.lit(0), F.col("n_slices") - 1))
    left = count_slices(rows).withColumn("slice", slice_of_row).drop("n_slices")
    right = count_slices(groups).withColumn("slice", all_slices).drop("n_slices")
    return left.join(right, [*on, "slice"]).drop("slice")
