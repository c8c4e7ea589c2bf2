"""See whether samples can be used: no bad rows but those that may be dropped, and no key twice.

Imports `columns`, `compat`, `mapped_rows`, `row_hash` and `errors`; pyspark inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import DIMENSION, KEY, PROBLEM, VECTOR
from spark_dbp.engine.compat import collect_arrow, collect_rows
from spark_dbp.engine.mapped_rows import WrittenRows
from spark_dbp.errors import InputError
from spark_dbp.kernels.row_hash import write_digest
from spark_dbp.kernels.samples import NULL_KEY

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

WRONG_DIMENSION = "embedding of another dimension"

_EXAMPLES = 5


@dataclass(frozen=True)
class InputReport:
    """What the check of the samples found.

    Attributes
    ----------
    n_rows : int
        Number of good rows. The run goes on with these.
    dimension : int or None
        Dimension of the vectors of good rows; None without embeddings.
    dropped : dict of str to int
        Number of rows left out for each problem.
    keys : str
        Digest of the keys of good rows; empty where it was not taken yet.
    """

    n_rows: int
    dimension: int | None
    dropped: dict[str, int] = field(default_factory=dict)
    keys: str = ""


def estimate_row_bytes(info: Mapping[str, Any]) -> float:
    """About how many bytes a sample takes in memory, from what the step ``ingest`` noted.

    Examples
    --------
    >>> estimate_row_bytes({"dimension": 384, "row_bytes": 1600})
    1600.0
    >>> estimate_row_bytes({"dimension": 384})  # a run of an earlier version
    1536.0
    """
    return float(info.get("row_bytes") or 4 * (info["dimension"] or 0))


def good_samples(samples: DataFrame, dimension: int | None) -> DataFrame:
    """Rows of `samples` without a problem. Where a `dimension` is given, only those of that dimension.

    Without the column ``problem``, all rows are good; without ``dimension``, all vectors have the same.
    """
    from pyspark.sql import functions as F

    good = samples.where(F.col(PROBLEM).isNull()) if PROBLEM in samples.columns else samples
    if dimension is not None and DIMENSION in good.columns:
        good = good.where(F.col(DIMENSION) == dimension)
    return good.drop(PROBLEM, DIMENSION)


def bad_samples(samples: DataFrame, dimension: int | None) -> DataFrame:
    """``key`` and ``problem`` of the rows that `good_samples` leaves out.

    Their keys may be null, and those of other rows too.
    """
    from pyspark.sql import functions as F

    why = F.col(PROBLEM) if PROBLEM in samples.columns else F.lit(None).cast("string")
    if dimension is not None and DIMENSION in samples.columns:
        is_other = ~F.col(DIMENSION).eqNullSafe(F.lit(dimension))
        why = F.coalesce(why, F.when(is_other, F.lit(WRONG_DIMENSION)))
    return samples.select(KEY, why.alias(PROBLEM)).where(F.col(PROBLEM).isNotNull())


def check_samples(samples: DataFrame, on_bad_rows: str = "fail") -> InputReport:
    """Count the rows by problem, and refuse what cannot be used.

    If vectors have several dimensions, the most frequent one counts as right; of equally frequent ones, the
    largest.

    Parameters
    ----------
    samples : DataFrame
        From `ingest`. It is read up to three times, so give a table that was written.
    on_bad_rows : {"fail", "drop"}
        Whether bad rows are an error, or are left out.

    Returns
    -------
    InputReport

    Raises
    ------
    InputError
        For bad rows with ``fail``, for duplicate keys, and when no good row is left. It gives examples.
    """
    report = count_samples_by_spark(samples, on_bad_rows)
    refuse_duplicate_keys(good_samples(samples, report.dimension))
    return report


def count_samples_by_spark(samples: DataFrame, on_bad_rows: str = "fail") -> InputReport:
    """The same as `check_samples`, but for duplicate keys."""
    from pyspark.sql import functions as F

    by = [PROBLEM, DIMENSION] if VECTOR in samples.columns else [PROBLEM]
    counted = collect_arrow(samples.groupBy(*by).agg(F.count(F.lit(1)).alias("rows"))).to_pylist()
    dropped: Counter[str] = Counter()
    by_dimension: dict[int | None, int] = {}
    for row in counted:
        if row[PROBLEM] is not None:
            dropped[row[PROBLEM]] += row["rows"]
        else:
            by_dimension[row.get(DIMENSION)] = row["rows"]
    return _judge(samples, dropped, by_dimension, on_bad_rows)


def check_counts(written: WrittenRows, samples: DataFrame, on_bad_rows: str = "fail") -> InputReport:
    """The same as `check_samples`, from what workers counted while they wrote (`count_samples`).

    Parameters
    ----------
    written : WrittenRows
    samples : DataFrame
        From `ingest`. It is read only where rows are bad, or keys may be repeated.
    on_bad_rows : {"fail", "drop"}

    Returns
    -------
    InputReport
        With the digest of the keys of good rows.
    """
    totals = written.totals
    dropped = Counter({name[8:]: n for name, n in totals.items() if name.startswith("problem ")})
    by_dimension = {
        int(name[10:]) if name[10:] else None: n
        for name, n in totals.items()
        if name.startswith("dimension ")
    }
    report = _judge(samples, dropped, by_dimension, on_bad_rows)
    if written.has_equal_hashes:
        refuse_duplicate_keys(good_samples(samples, report.dimension))
    keys = totals[f"keys {'' if report.dimension is None else report.dimension}"]
    return replace(report, keys=write_digest(keys))


def _judge(
    samples: DataFrame, dropped: Counter[str], by_dimension: dict[int | None, int], on_bad_rows: str
) -> InputReport:
    """Say which rows are good, from their numbers by problem, and by dimension where there is none."""
    if not dropped and not by_dimension:
        raise InputError("the input has no rows", mend="check input.path and input.filter")
    dimension = max(by_dimension, key=lambda d: (by_dimension[d], d or 0), default=None)
    others = sum(by_dimension.values()) - by_dimension.get(dimension, 0)
    if others:
        dropped[WRONG_DIMENSION] = others
    if dropped and on_bad_rows == "fail":
        raise _bad_rows_error(samples, dropped, dimension, by_dimension)
    n_rows = by_dimension.get(dimension, 0)
    if n_rows == 0:
        raise InputError(f"no usable row is left: {_counts(dropped)}", mend="check the input's columns")
    return InputReport(n_rows, dimension, dict(sorted(dropped.items())))


def _counts(dropped: dict[str, int]) -> str:
    return "; ".join(f"{reason}: {rows:,} rows" for reason, rows in sorted(dropped.items()))


def _bad_rows_error(
    samples: DataFrame,
    dropped: dict[str, int],
    dimension: int | None,
    by_dimension: dict[int | None, int],
) -> InputError:
    from pyspark.sql import functions as F

    lines = []
    for reason, rows in sorted(dropped.items()):
        is_it = F.col(PROBLEM) == reason
        detail = ""
        if reason == WRONG_DIMENSION:
            is_it = F.col(PROBLEM).isNull() & (F.col(DIMENSION) != dimension)
            found = sorted(d for d in by_dimension if d != dimension and d is not None)[:_EXAMPLES]
            detail = f" ({', '.join(map(str, found))} where most have {dimension})"
        keys = "" if reason == NULL_KEY else f", such as key {_example_keys(samples.where(is_it))}"
        lines.append(f"{reason}: {rows:,} row{'s' if rows > 1 else ''}{detail}{keys}")
    return InputError(
        "the input has rows that cannot be used\n  - " + "\n  - ".join(lines),
        mend="mend them, leave them out with input.filter, or set input.on_bad_rows: drop",
    )


def _example_keys(frame: DataFrame) -> str:
    from pyspark.sql import functions as F

    rows = collect_rows(frame.select(F.col(KEY).cast("string")).orderBy(KEY).limit(_EXAMPLES))
    return ", ".join(repr(_shortened(row[0])) for row in rows)


def _shortened(text: Any, limit: int = 80) -> Any:
    return text[:limit] + "..." if isinstance(text, str) and len(text) > limit else text


def refuse_duplicate_keys(samples: DataFrame) -> None:
    """Refuse keys that occur more than once, with examples.

    Raises
    ------
    InputError
    """
    from pyspark.sql import functions as F

    # Hashes of 8 bytes are grouped first, because that moves far fewer bytes than grouping keys. Then only
    # the keys with equal hashes are compared.
    hashed = samples.select(KEY, F.xxhash64(KEY).alias("hash"))
    suspects = hashed.groupBy("hash").count().where("count > 1").select("hash")
    if suspects.isEmpty():
        return
    repeated = (
        hashed.join(suspects, "hash", "left_semi")
        .groupBy(KEY)
        .agg(F.count(F.lit(1)).alias("times"))
        .where("times > 1")
    )
    n_keys = repeated.count()
    if n_keys == 0:
        return
    rows = repeated.select(F.col(KEY).cast("string"), "times").orderBy(F.desc("times"), KEY).limit(_EXAMPLES)
    shown = ", ".join(f"{_shortened(name)!r} ({times} times)" for name, times in collect_rows(rows))
    raise InputError(
        f"input.key: {n_keys:,} key{'s are' if n_keys > 1 else ' is'} not unique, such as {shown}",
        mend="name a column that is unique, or make the key so, input.key: {sql: concat(...)}; or write the "
        "table again with one row a key (max_by(struct(*), ...) GROUP BY key)",
    )
