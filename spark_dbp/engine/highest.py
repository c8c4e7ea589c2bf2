"""Keep the rows with the highest scores: a fraction of all rows, or of every group.

Imports `mapped_rows`, `columns` and `files`; pyspark inside functions.

A window over a group, or over all rows, would send them to one task. So Spark cuts the rows into ranges by
(group, score, key). They are of about the same size, for no two rows have the same key: a group lies in one
range, or fills several that follow one another. How many rows of which group each range has tells what to
keep: of most ranges all or nothing, and of the others the first rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import TYPE_CHECKING

from spark_dbp.columns import KEY
from spark_dbp.engine.mapped_rows import write_and_read_back
from spark_dbp.lake import files

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

SCORE = "score"
GROUP = "score_group"

_RANGE, _TIMES, _BEFORE, _TOTAL = "range_number", "times", "rows_before", "rows_of_group"
_PLACE, _PLACES = "place", "places_left"
# Few enough to send the counts of all groups to every task.
_FEW_GROUPS = 10_000
# Most digits of a whole number that Spark holds.
_DIGITS = 38


@dataclass(frozen=True)
class Highest:
    """Rows with the highest scores.

    Attributes
    ----------
    rows : DataFrame
    n_rows : int
    n_groups : int
    n_empty : int
        Groups of which no row is kept, because the fraction of their rows is less than one row.
    """

    rows: DataFrame
    n_rows: int
    n_groups: int
    n_empty: int


def keep_highest(rows: DataFrame, fraction: Fraction, scratch: str) -> Highest:
    """Keep floor(`fraction` * n) of n rows, those with the highest scores; of equal scores the first by key.

    Parameters
    ----------
    rows : DataFrame
        ``key``, unique; ``score``, a number, neither null nor NaN; further columns, which are kept. With a
        column ``score_group``, n is the number of rows of each of its values; null is one of them.
    fraction : Fraction
        In (0, 1], of at most 17 digits.
    scratch : str
        New directory, reachable from the workers. It may be deleted once the result is written.

    Returns
    -------
    Highest
    """
    from pyspark.sql import functions as F

    groups = [F.col(GROUP)] if GROUP in rows.columns else []
    cut = rows.repartitionByRange(*groups, F.col(SCORE).desc(), F.col(KEY))
    # Where the cuts lie is a matter of chance, so they are written down. What is kept does not depend on it.
    cut = write_and_read_back(
        cut.withColumn(_RANGE, F.spark_partition_id()), files.join(scratch, "score_ranges")
    )
    return _keep_of_groups(cut, fraction, scratch) if groups else _keep_of_all(cut, fraction)


def _keep_of_all(cut: DataFrame, fraction: Fraction) -> Highest:
    from pyspark.sql import functions as F

    counted = cut.groupBy(_RANGE).agg(F.count(F.lit(1)).alias(_TIMES)).collect()  # one row for each range
    counts: dict[int, int] = {row[_RANGE]: row[_TIMES] for row in counted}
    n_keep = left = floor(fraction * sum(counts.values()))
    last = -1
    for number in sorted(counts):
        if counts[number] > left:
            break
        last, left = number, left - counts[number]
    kept = cut.where(F.col(_RANGE) <= last)
    if left:
        next_one = min(number for number in counts if number > last)
        first = _number_rows(cut.where(F.col(_RANGE) == next_one), []).where(F.col(_PLACE) <= left)
        kept = kept.unionByName(first.drop(_PLACE))
    return Highest(kept.drop(_RANGE), n_keep, int(bool(counts)), int(bool(counts) and not n_keep))


def _keep_of_groups(cut: DataFrame, fraction: Fraction, scratch: str) -> Highest:
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    counts = cut.groupBy(_RANGE, GROUP).agg(F.count(F.lit(1)).alias(_TIMES))
    counts = write_and_read_back(counts, files.join(scratch, "score_counts"))
    sizes = counts.groupBy(GROUP).agg(F.sum(_TIMES).alias(_TOTAL))
    sizes = sizes.select(count_to_keep(fraction, _TOTAL).alias("kept"))
    n_rows, n_groups, n_empty = sizes.agg(
        F.coalesce(F.sum("kept"), F.lit(0)), F.count(F.lit(1)), F.count(F.when(F.col("kept") == 0, 1))
    ).collect()[0]
    in_order = Window.partitionBy(GROUP).orderBy(_RANGE).rowsBetween(Window.unboundedPreceding, -1)
    counts = counts.withColumn(_BEFORE, F.coalesce(F.sum(_TIMES).over(in_order), F.lit(0)))
    counts = counts.withColumn(_TOTAL, F.sum(_TIMES).over(Window.partitionBy(GROUP)))
    keep = _keep_of_few if n_groups <= _FEW_GROUPS else _keep_of_many
    kept = keep(cut, counts, fraction).select([name for name in cut.columns if name != _RANGE])
    return Highest(kept, int(n_rows), int(n_groups), int(n_empty))


def _keep_of_few(cut: DataFrame, counts: DataFrame, fraction: Fraction) -> DataFrame:
    """Most groups lie in several ranges: number only the rows of ranges that are kept in part."""
    from pyspark.sql import functions as F

    counts = counts.withColumn(_PLACES, count_to_keep(fraction, _TOTAL) - F.col(_BEFORE))
    joined = _join_counts(cut, counts.where(F.col(_PLACES) > 0), [_TIMES, _PLACES], "inner")
    in_part = F.col(_PLACES) < F.col(_TIMES)
    first = _number_rows(joined.where(in_part), [GROUP]).where(F.col(_PLACE) <= F.col(_PLACES))
    return joined.where(~in_part).select(cut.columns).unionByName(first.select(cut.columns))


def _keep_of_many(cut: DataFrame, counts: DataFrame, fraction: Fraction) -> DataFrame:
    """Most groups lie in one range, which has their number of rows: number all rows."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    # Between two ranges that follow one another lies at most one group, so few groups lie in several.
    spread = counts.where(F.col(_TOTAL) > F.col(_TIMES))
    in_range = F.count(F.lit(1)).over(Window.partitionBy(_RANGE, GROUP))
    numbered = _number_rows(cut, [GROUP]).withColumn("in_range", in_range)
    joined = _join_counts(numbered, spread, [_BEFORE, _TOTAL], "left")
    place = F.col(_PLACE) + F.coalesce(F.col(_BEFORE), F.lit(0))
    counted = joined.withColumn(_TOTAL, F.coalesce(_TOTAL, "in_range"))
    return counted.where(place <= count_to_keep(fraction, _TOTAL))


def _join_counts(rows: DataFrame, counts: DataFrame, names: list[str], how: str) -> DataFrame:
    """Join columns of `counts`, which are few, to the rows of their range and group; null is a group too."""
    from pyspark.sql import functions as F

    few = counts.select(F.col(_RANGE).alias("range_there"), F.col(GROUP).alias("group_there"), *names)
    is_same = (F.col(_RANGE) == F.col("range_there")) & F.col(GROUP).eqNullSafe(F.col("group_there"))
    return rows.join(F.broadcast(few), is_same, how)


def _number_rows(cut: DataFrame, groups: list[str]) -> DataFrame:
    """Number the rows of a range, or of each group in it, from the highest score on."""
    from pyspark.sql import Window
    from pyspark.sql import functions as F

    order = Window.partitionBy(_RANGE, *groups).orderBy(F.col(SCORE).desc(), F.col(KEY))
    return cut.withColumn(_PLACE, F.row_number().over(order))


def count_to_keep(fraction: Fraction, total: str) -> Column:
    """floor(fraction * n) without rounding, of the column `total` BIGINT.

    The product has at most 17 + 19 digits, so Spark holds it exactly.
    """
    from pyspark.sql import functions as F

    if fraction.denominator >= 10**_DIGITS:  # then it is less than one of any number of rows
        return F.lit(0).cast("bigint")
    product = f"CAST({total} AS DECIMAL(19,0)) * CAST('{fraction.numerator}' AS DECIMAL(18,0))"
    return F.expr(f"({product}) DIV CAST('{fraction.denominator}' AS DECIMAL({_DIGITS},0))")
