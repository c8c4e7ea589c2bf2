"""Exact deduplication on any columns. Imports pyspark inside functions only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dbp.columns import DUPLICATE_OF, KEY, METHOD, SIMILARITY
from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array
from spark_dbp.errors import InputError
from spark_dbp.stages.ingest import type_of

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


def exact_dedup(
    frame: DataFrame, *, key: str = "key", columns: list[str], order_by: str | None = None
) -> DataFrame:
    """Rows that agree with an earlier row in all of `columns`.

    A null in one of the columns is no value to agree on: such rows are never duplicates.

    Parameters
    ----------
    frame : DataFrame
    key : str
        Column of unique keys.
    columns : list of str
        Such as a checksum, a URL, a caption, or the embedding itself.
    order_by : str, optional
        The survivor of equal rows is the first by this column, then by key; by key alone without it.

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
    Groups are combined before they are shuffled, so a value that most rows share is no burden.
    """
    from pyspark.sql import functions as F

    names = [f"value_{number}" for number in range(len(columns))]
    values = []
    for source, name in zip(columns, names, strict=True):
        data_type = type_of(frame, source, "columns", section="dedup.exact")
        if type(data_type).__name__ in ("MapType", "VariantType"):
            raise InputError(
                f"dedup.exact.columns: {source!r} is {data_type.simpleString().upper()} "
                "and cannot be compared",
                mend="name other columns, or a view that casts it",
            )
        is_vector = is_ml_vector(data_type)
        values.append((ml_vector_to_array(source) if is_vector else column(source)).alias(name))
    order = (
        [] if order_by is None else [check_order(frame, order_by, "dedup.exact.order_by").alias("first_by")]
    )
    rows = frame.select(column(key).alias(KEY), *order, *values).dropna(subset=names)
    first = F.struct(*([F.col("first_by")] if order else []), F.col(KEY))
    groups = (
        rows.groupBy(*names)
        .agg(F.min(first).alias("first"), F.count(F.lit(1)).alias("times"))
        .where("times > 1")
        .select(*names, F.col(f"first.{KEY}").alias(DUPLICATE_OF))
    )
    return (
        rows.join(groups, names)
        .where(F.col(KEY) != F.col(DUPLICATE_OF))
        .select(
            KEY,
            DUPLICATE_OF,
            F.lit("exact").alias(METHOD),
            F.lit(1.0).cast("float").alias(SIMILARITY),
        )
    )


def check_order(frame: DataFrame, name: str, where: str) -> Column:
    """The column that chooses survivors, once it is known to have no nulls.

    Raises
    ------
    InputError
        When it is missing, cannot be ordered or has nulls.
    """
    section, role = where.rsplit(".", 1)
    data_type = type_of(frame, name, role, section=section)
    if type(data_type).__name__ in ("MapType", "VariantType") or is_ml_vector(data_type):
        raise InputError(
            f"{where}: {name!r} cannot be ordered", mend="name a column of numbers, dates or text"
        )
    n_null = frame.where(column(name).isNull()).count()
    if n_null:
        raise InputError(
            f"{where}: column {name!r} is null in {n_null:,} rows, so which of equal rows survives is open",
            mend="fill it in a view, or leave order_by out to keep the smallest key",
        )
    return column(name)
