"""Check the table `filtered` of a run: that it holds what the score filter lets through.

Imports `columns`, `config_embed`, `engine`, `run_tables` and the stages `clip_score` and `score_filter`;
pyspark inside functions.

Where a fraction is kept, rows are grouped by their score, not ranked again: a group must keep as many rows as
it should, and none of them with a lower score, or at an equal score with a larger key, than one left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import TYPE_CHECKING

from spark_dbp.columns import KEY
from spark_dbp.config_embed import find_table
from spark_dbp.engine.compat import collect_rows
from spark_dbp.engine.highest import GROUP, SCORE, count_to_keep
from spark_dbp.explore.run_tables import RunTables, show_examples
from spark_dbp.stages.clip_score import clip_score
from spark_dbp.stages.score_filter import REFUSED, find_reason, to_group, to_score

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

_KEPT, _REASON = "is_kept", "reason"


def check_filtered(tables: RunTables) -> Iterator[str]:
    """What is wrong with the table `filtered`, and with the numbers of rows that the filter left out."""
    from pyspark.sql import functions as F

    settings = tables.config.score_filter
    assert settings is not None
    rows = read_scores(tables)
    filtered = tables.read("filtered").select(KEY, F.lit(True).alias(_KEPT))
    strangers = filtered.join(rows, KEY, "left_anti")
    if n := strangers.count():
        yield f"table filtered: {n:,} keys are no samples, or duplicates, such as {show_examples(strangers)}"
    rows = rows.join(filtered, KEY, "left").withColumn(_KEPT, F.coalesce(_KEPT, F.lit(False)))
    rows = rows.withColumn(_REASON, find_reason(rows.schema[SCORE].dataType, settings.at_least))
    wrong = rows.where(F.col(_KEPT) & F.col(_REASON).isNotNull())
    if n := wrong.count():
        yield f"table filtered: {n:,} rows do not pass the filter, such as {show_examples(wrong)}"
    wrong = rows.where(~F.col(_KEPT) & F.col(_REASON).isNull())
    if settings.keep_fraction is not None:
        yield from _check_order(rows.where(F.col(_REASON).isNull()), settings.keep_fraction)
    elif n := wrong.count():
        yield f"table filtered: {n:,} rows pass the filter and are not there, such as {show_examples(wrong)}"
    yield from _check_counts(tables, rows)


def read_scores(tables: RunTables, keys: DataFrame | None = None) -> DataFrame:
    """The samples that are no duplicates: ``key``, ``score``, and ``score_group`` where it counts.

    Parameters
    ----------
    tables : RunTables
    keys : DataFrame, optional
        ``key``, few: only these are read.
    """
    from pyspark.sql import functions as F

    def take(rows: DataFrame) -> DataFrame:
        return rows if keys is None else rows.join(F.broadcast(keys.select(KEY)), KEY, "left_semi")

    config, good = tables.config, take(tables.good_samples())
    settings = config.score_filter
    assert settings is not None
    names = tables.steps["score_filter"].info["columns"]
    columns: dict[str, Column] = {KEY: good[KEY]}
    if GROUP in names:
        columns[GROUP] = to_group(good, names[GROUP])
    if settings.clip_score is None:
        columns[SCORE] = to_score(good, names[SCORE])
    rows = good.select(*[value.alias(name) for name, value in columns.items()])
    rows = tables.without_duplicates(rows)
    if settings.clip_score is None:
        return rows
    names = (find_table(config.embed, name) for name in settings.clip_score.names)
    given = [tables.good_samples() if name == "samples" else tables.read(name) for name in names]
    return rows.join(clip_score(*map(take, given)), KEY, "left")


def _check_order(scored: DataFrame, fraction: float) -> Iterator[str]:
    """Whether each group keeps as many rows as it should, and the right ones."""
    from pyspark.sql import functions as F

    groups = [GROUP] if GROUP in scored.columns else []
    kept, key, score = F.col(_KEPT), F.col(KEY), F.col(SCORE)
    by_score = scored.groupBy(*groups, SCORE).agg(
        F.count(F.lit(1)).alias("rows"),
        F.count(F.when(kept, 1)).alias("kept"),
        F.max(F.when(kept, key)).alias("last_kept"),
        F.min(F.when(~kept, key)).alias("first_left"),
    )
    by_group = by_score.groupBy(*groups).agg(
        F.sum("rows").alias("rows"),
        F.sum("kept").alias("kept"),
        F.min(F.when(F.col("kept") > 0, score)).alias("lowest_kept"),
        F.max(F.when(F.col("kept") < F.col("rows"), score)).alias("highest_left"),
        F.count(F.when(F.col("last_kept") > F.col("first_left"), 1)).alias("wrong_ties"),
    )
    wanted = count_to_keep(Fraction(repr(float(fraction))), "rows")
    name = F.col(GROUP).cast("string") if groups else F.lit("")
    wrong = by_group.where(F.col("kept") != wanted).select(name, "kept", wanted, "rows")
    for group, n_kept, n_wanted, n_rows in collect_rows(wrong.limit(1)):
        where = f" of group {group!r} ({wrong.count():,} groups are wrong)" if groups else ""
        yield f"table filtered keeps {n_kept:,} of {n_rows:,} rows{where} where {n_wanted:,} should be kept"
    wrong = by_group.where((F.col("lowest_kept") < F.col("highest_left")) | (F.col("wrong_ties") > 0))
    shown = [F.col(column).cast("string") for column in ("lowest_kept", "highest_left")]
    for group, lowest, highest in collect_rows(wrong.select(name, *shown).limit(1)):
        where = f" of group {group!r} ({wrong.count():,} groups are wrong)" if groups else ""
        yield (
            f"table filtered: not the highest scores{where} are kept: {lowest} is the lowest that is kept, "
            f"{highest} the highest that is left out"
        )


def _check_counts(tables: RunTables, rows: DataFrame) -> Iterator[str]:
    from pyspark.sql import functions as F

    found = rows.where(~F.col(_KEPT)).select(F.coalesce(_REASON, F.lit(REFUSED)).alias(_REASON))
    counted = {row[_REASON]: row["count"] for row in found.groupBy(_REASON).count().collect()}
    dropped = tables.run.document["accounting"]["dropped"]
    for reason in tables.steps["score_filter"].info["left_out"]:
        if counted.get(reason, 0) != dropped.get(reason):
            yield (
                f"table filtered leaves out {counted.get(reason, 0):,} rows for {reason!r}, the account has "
                f"{dropped.get(reason, 0):,}"
            )
