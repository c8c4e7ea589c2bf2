"""Leave samples out by a score: those that a condition or a limit refuses, or all but the best fraction.

Imports `columns`, `compat`, `forms`, `expressions`, `highest` and `errors`; pyspark inside functions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING

from spark_dbp.columns import KEY, describe_type, find_type
from spark_dbp.engine.compat import column as exact_column
from spark_dbp.engine.compat import is_ml_vector
from spark_dbp.engine.expressions import check_expression
from spark_dbp.engine.forms import can_be_compared, to_key_column, to_plain_column
from spark_dbp.engine.highest import GROUP, SCORE, keep_highest
from spark_dbp.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

log = logging.getLogger("spark_dbp")

# Why rows are left out, as `run.json` has it.
REFUSED, NO_ANSWER = "score_filter", "score_filter null"
NULL_SCORE, NAN_SCORE = "score null", "score NaN"
# Names that no column of the input has.
_KEPT, _CONDITION = "spark_dbp_kept_key", "spark_dbp_condition"


def score_filter(
    frame: DataFrame,
    *,
    key: str = "key",
    expr: str | None = None,
    column: str | None = None,
    keep_fraction: float | None = None,
    at_least: float | None = None,
    within: str | None = None,
    scratch: str | None = None,
) -> DataFrame:
    """Rows that pass a filter on a score, with all their columns.

    Give `expr`; or `column` with one of `keep_fraction` and `at_least`.

    Parameters
    ----------
    frame : DataFrame
    key : str
        Column of unique keys.
    expr : str, optional
        SQL condition on the columns. Rows for which it is false or null are left out.
    column : str, optional
        Column of scores, of any type of numbers. A null or NaN never passes, +Infinity is the highest score.
        Scores are compared as their own type does; -0.0 equals 0.0.
    keep_fraction : float, optional
        In (0, 1]: of n rows that have a score, floor(keep_fraction * n) with the highest scores pass. The
        fraction counts as the decimal number that was written. Of equal scores, the smallest keys pass.
    at_least : float, optional
        Rows with this score or a higher one pass.
    within : str, optional
        With `keep_fraction`, the fraction is that of the rows of each value of this column; null is a value.
    scratch : str, optional
        Needed with `keep_fraction`: a new directory, reachable from the workers. It may be deleted once the
        result is written.

    Returns
    -------
    DataFrame
        Which rows these are depends on nothing but `frame` and the settings.

    Raises
    ------
    ConfigError
        For settings that do not go together, or SQL that is no condition on these columns.
    InputError
        When a column is missing, or of a type that is no score or no group.

    Notes
    -----
    No task gets all rows of a group, or all rows of one score. Nothing but a count for each task gets to the
    driver.

    Examples
    --------
    ::

        from spark_dbp import score_filter

        samples = spark.createDataFrame([("a", 0.2), ("b", 0.4), ("c", 0.3)], "key STRING, clip DOUBLE")
        score_filter(samples, column="clip", at_least=0.3)  # b, c
        score_filter(samples, expr="clip < 0.4 AND key <> 'a'")  # c
        score_filter(samples, column="clip", keep_fraction=0.5, scratch="scratch")  # b
    """
    _check_settings(expr, column, keep_fraction, at_least, within, scratch)
    if expr is not None:
        check_expression(frame, expr, "score_filter.expr")
        check_condition(frame.selectExpr(f"(\n{expr}\n) AS {_CONDITION}"), _CONDITION, expr)
        return frame.where(expr)
    assert column is not None
    check_score(frame, column)
    score = to_score(frame, column)
    if at_least is not None:
        return frame.where(_reaches(score, frame.schema[column].dataType, at_least))
    assert scratch is not None
    scored = frame.select(to_key_column(frame, key).alias(KEY), score.alias(SCORE))
    if within is not None:
        check_within(frame, within)
        scored = frame.select(
            to_key_column(frame, key).alias(KEY), score.alias(SCORE), to_group(frame, within).alias(GROUP)
        )
    passing = find_passing(scored, keep_fraction=keep_fraction, scratch=scratch)
    kept = passing.rows.select(exact_column(KEY).alias(_KEPT))
    return frame.join(kept, to_key_column(frame, key) == exact_column(_KEPT), "left_semi")


@dataclass(frozen=True)
class Passing:
    """The rows that pass.

    Attributes
    ----------
    rows : DataFrame
        All columns of what was given.
    n_rows : int
    left_out : dict of str to int
        How many do not pass, by reason.
    n_groups, n_empty : int
        Groups, and those of which nothing is kept; 0 without groups.
    """

    rows: DataFrame
    n_rows: int
    left_out: dict[str, int] = field(default_factory=dict)
    n_groups: int = 0
    n_empty: int = 0


def find_passing(
    scored: DataFrame,
    *,
    keep_fraction: float | None = None,
    at_least: float | None = None,
    scratch: str | None = None,
) -> Passing:
    """Find the rows that pass, and count the others by reason.

    Parameters
    ----------
    scored : DataFrame
        ``key``; ``score``, of `to_score`, or BOOLEAN: whether a row passes; perhaps ``score_group``, of
        `to_group`; and further columns.
    keep_fraction, at_least, scratch
        As for `score_filter`.

    Returns
    -------
    Passing
        Some of the work is done, the rest when its rows are used.
    """
    from pyspark.sql import functions as F

    data_type = scored.schema[SCORE].dataType
    reason = find_reason(data_type, at_least)
    counted = scored.groupBy(reason.alias("reason")).agg(F.count(F.lit(1)).alias("times")).collect()
    counts = {row["reason"]: int(row["times"]) for row in counted}
    left_out = {name: counts.get(name, 0) for name in list_reasons(data_type)}
    passing, n_rows = scored.where(reason.isNull()), counts.get(None, 0)
    if keep_fraction is None:
        return Passing(passing, n_rows, left_out)
    assert scratch is not None
    highest = keep_highest(passing, Fraction(repr(float(keep_fraction))), scratch)
    left_out[REFUSED] = n_rows - highest.n_rows
    if GROUP not in scored.columns:
        return Passing(highest.rows, highest.n_rows, left_out)
    if highest.n_empty:
        log.info(
            "  score_filter.within: of %s of %s groups no row is kept, for keep_fraction %s of their rows is "
            "less than one row",
            f"{highest.n_empty:,}",
            f"{highest.n_groups:,}",
            keep_fraction,
        )
    return Passing(highest.rows, highest.n_rows, left_out, highest.n_groups, highest.n_empty)


def list_reasons(data_type: DataType) -> list[str]:
    """Why rows may be left out whose scores have this type."""
    from pyspark.sql import types as T

    return [NO_ANSWER, REFUSED] if isinstance(data_type, T.BooleanType) else [NULL_SCORE, NAN_SCORE, REFUSED]


def find_reason(data_type: DataType, at_least: float | None = None) -> Column:
    """Why a row is left out, as far as the column ``score`` alone tells; null where it is not."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    score = F.col(SCORE)
    if isinstance(data_type, T.BooleanType):
        return F.when(score.isNull(), NO_ANSWER).when(~score, REFUSED)
    reason = F.when(score.isNull(), NULL_SCORE)
    if isinstance(data_type, T.DoubleType):
        reason = reason.when(F.isnan(score), NAN_SCORE)
    return reason if at_least is None else reason.when(~_reaches(score, data_type, at_least), REFUSED)


def to_score(frame: DataFrame, name: str) -> Column:
    """The column of scores: DOUBLE for FLOAT and DOUBLE, with one zero; else as it is."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if not isinstance(frame.schema[name].dataType, T.FloatType | T.DoubleType):
        return exact_column(name)
    value = exact_column(name).cast("double")
    return F.when(value == 0, F.lit(0.0)).otherwise(value)


def to_group(frame: DataFrame, name: str) -> Column:
    """The column of groups, in a type that Spark compares by value; floats with one zero and one NaN."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    value = to_plain_column(frame, name)
    if not isinstance(frame.schema[name].dataType, T.FloatType | T.DoubleType):
        return value
    return (
        F.when(F.isnan(value), F.lit(math.nan)).when(value == 0, F.lit(0.0)).otherwise(value.cast("double"))
    )


def _reaches(score: Column, data_type: DataType, at_least: float) -> Column:
    """Whether a score is a number of at least `at_least`; false for null and NaN.

    Whole numbers and decimals are compared with the least number of their own type that reaches the limit, so
    nothing is rounded.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if isinstance(data_type, T.FloatType | T.DoubleType):
        return F.coalesce((score >= F.lit(float(at_least))) & ~F.isnan(score), F.lit(False))
    scale, digits = 0, 0
    if isinstance(data_type, T.DecimalType):
        scale, digits = data_type.scale, data_type.precision
        highest = 10**digits - 1
        lowest = -highest
    else:
        bits = {"tinyint": 7, "smallint": 15, "int": 31, "bigint": 63}[data_type.simpleString()]
        lowest, highest = -(2**bits), 2**bits - 1
    limit = math.ceil(Fraction(repr(float(at_least))) * 10**scale)
    if limit > highest:
        return F.lit(False)
    limit = max(limit, lowest)
    written = (
        str(limit)
        if not scale
        else f"{'-' * (limit < 0)}{abs(limit) // 10**scale}.{abs(limit) % 10**scale:0{scale}d}"
    )
    return F.coalesce(score >= F.lit(written).cast(data_type), F.lit(False))


# What is refused.


def _check_settings(
    expr: str | None,
    column: str | None,
    keep_fraction: float | None,
    at_least: float | None,
    within: str | None,
    scratch: str | None,
) -> None:
    given = [
        name
        for name, value in (("keep_fraction", keep_fraction), ("at_least", at_least))
        if value is not None
    ]
    if (expr is None) == (column is None):
        raise ConfigError("score_filter: give exactly one of expr and column", mend="see help(score_filter)")
    if len(given) != (expr is None):
        raise ConfigError(
            f"score_filter: {' and '.join(given) or 'nothing'} is given with {'expr' if expr else 'column'}",
            mend="give exactly one of keep_fraction and at_least with column, and none with expr",
        )
    if keep_fraction is not None and not 0 < keep_fraction <= 1:
        raise ConfigError(
            f"score_filter: keep_fraction {keep_fraction} is not in (0, 1]", mend="0.3 keeps three tenths"
        )
    if at_least is not None and not math.isfinite(at_least):
        raise ConfigError(f"score_filter: at_least {at_least} is no number", mend="give a finite number")
    if within is not None and keep_fraction is None:
        raise ConfigError("score_filter: within goes with keep_fraction", mend="leave it out")
    if keep_fraction is not None and scratch is None:
        raise ConfigError(
            "score_filter: keep_fraction needs scratch", mend="name a new directory that the workers reach"
        )


def check_condition(frame: DataFrame, name: str, expr: str) -> None:
    """Refuse SQL that is no condition; `name` is the column of `frame` with its value.

    Raises
    ------
    ConfigError
    """
    from pyspark.sql import types as T

    data_type = frame.schema[name].dataType
    if not isinstance(data_type, T.BooleanType):
        raise ConfigError(
            f"score_filter.expr {expr!r} is {describe_type(data_type)}, not a boolean",
            mend="write a condition, such as clip_score >= 0.3; for a score, give score_filter.column",
        )


def check_score(frame: DataFrame, name: str) -> None:
    """Refuse a column of scores that is missing, or not of numbers.

    Raises
    ------
    InputError
    """
    from pyspark.sql import types as T

    data_type = find_type(frame, name, "score_filter.column")
    if not isinstance(data_type, T.NumericType):
        raise InputError(
            f"score_filter.column: {name!r} is {describe_type(data_type)}, not a number",
            mend=f"make a number of it, score_filter.column: {{sql: cast({name} as double)}}"
            if isinstance(data_type, T.StringType)
            else "name a column of numbers, or make one: score_filter.column: {sql: ...}",
        )


def check_within(frame: DataFrame, name: str) -> None:
    """Refuse a column of groups that is missing, or whose values cannot be compared.

    Raises
    ------
    InputError
    """
    data_type = find_type(frame, name, "score_filter.within")
    if not can_be_compared(data_type) or is_ml_vector(data_type):
        raise InputError(
            f"score_filter.within: {name!r} is {describe_type(data_type)}, whose values make no groups",
            mend="name a column of text, numbers or dates, or make one: score_filter.within: {sql: ...}",
        )


def describe_left_out(left_out: dict[str, int], reasons: Iterable[str] = ()) -> str:
    """The numbers of rows by reason, for a message.

    Examples
    --------
    >>> describe_left_out({"score null": 0, "score NaN": 2, "score_filter": 7})
    '2 score NaN, 7 score_filter'
    """
    shown = [f"{n:,} {reason}" for reason, n in left_out.items() if n or reason in reasons]
    return ", ".join(shown) or "none"
