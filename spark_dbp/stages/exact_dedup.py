"""Exact deduplication on any columns.

Imports `columns`, `compat`, `forms`, `group_joins` and `errors`; pyspark inside functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dbp.columns import DUPLICATE_OF, KEY, METHOD, SIMILARITY, find_type
from spark_dbp.engine.compat import column, is_ml_vector
from spark_dbp.engine.forms import can_be_compared, to_plain_column
from spark_dbp.engine.group_joins import join_groups
from spark_dbp.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame


def exact_dedup(
    frame: DataFrame, *, key: str = "key", columns: list[str], order_by: str | None = None
) -> DataFrame:
    """Rows that have the same values as an earlier row in all of `columns`.

    A row with a null in one of the columns is never a duplicate.

    Parameters
    ----------
    frame : DataFrame
    key : str
        Column of unique keys.
    columns : list of str
        Such as a checksum, a URL, a caption, or the embedding itself.
    order_by : str, optional
        Of equal rows, the first by this column and then by key survives. Without it, the first by key.

    Returns
    -------
    DataFrame
        ``key``, ``duplicate_of`` (the survivor), ``method`` "exact", ``similarity`` 1.

    Raises
    ------
    InputError
        When a column is missing or cannot be compared, or `order_by` has nulls.

    Notes
    -----
    Equal rows are combined before the shuffle, and a large group is joined in slices (`join_groups`). So a
    value that most rows share does not overload a task.
    """
    from pyspark.sql import functions as F

    check_comparable(frame, columns)
    names = [f"value_{number}" for number in range(len(columns))]
    values = [to_plain_column(frame, source).alias(name) for source, name in zip(columns, names, strict=True)]
    order = []
    if order_by is not None:
        check_order(frame, order_by, "dedup.exact.order_by")
        check_no_nulls(frame, order_by, "dedup.exact.order_by")
        order = [column(order_by).alias("first_by")]
    rows = frame.select(column(key).alias(KEY), *order, *values).dropna(subset=names)
    first = F.struct(*([F.col("first_by")] if order else []), F.col(KEY))
    groups = (
        rows.groupBy(*names)
        .agg(F.min(first).alias("first"), F.count(F.lit(1)).alias("times"))
        .where("times > 1")
        .select(*names, F.col(f"first.{KEY}").alias(DUPLICATE_OF), "times")
    )
    return (
        join_groups(rows, groups, names)
        .where(F.col(KEY) != F.col(DUPLICATE_OF))
        .select(
            KEY,
            DUPLICATE_OF,
            F.lit("exact").alias(METHOD),
            F.lit(1.0).cast("float").alias(SIMILARITY),
        )
    )


def check_comparable(frame: DataFrame, columns: list[str]) -> None:
    """Refuse columns that are missing, or whose values cannot be compared.

    Raises
    ------
    InputError
    """
    for name in columns:
        data_type = find_type(frame, name, "dedup.exact.columns")
        if not can_be_compared(data_type):
            raise InputError(
                f"dedup.exact.columns: {name!r} is {data_type.simpleString().upper()} and cannot be compared",
                mend="name other columns, or a view that casts it",
            )


def check_order(frame: DataFrame, name: str, setting: str) -> None:
    """Refuse a column for `order_by` that is missing, or whose values have no order.

    Raises
    ------
    InputError
    """
    data_type = find_type(frame, name, setting)
    if not can_be_compared(data_type) or is_ml_vector(data_type):
        raise InputError(
            f"{setting}: {name!r} cannot be ordered", mend="name a column of numbers, dates or text"
        )


def check_no_nulls(frame: DataFrame, name: str, setting: str) -> None:
    """Refuse nulls in the column for `order_by`, because they leave open which row survives.

    Raises
    ------
    InputError
    """
    n_null = frame.where(column(name).isNull()).count()
    if n_null:
        raise InputError(
            f"{setting}: column {name!r} is null in {n_null:,} rows, so which of equal rows survives is open",
            mend="fill it in a view, or leave order_by out to keep the smallest key",
        )
