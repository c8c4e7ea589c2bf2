"""Which rows of a run were left out, by which step and why: one rule for `verdicts`, `explain`, `diff` and
`export`.

Imports `columns`, `engine` and what is beside it, and the stage `score_filter`; pyspark inside functions.

A row that was left out is pruned, a duplicate, refused by the score filter, bad, or not let through by
`input.filter`. The tables of a run hold no rows of the last kind, and of some runs no bad rows. Bad rows may
have no key, or the key of other rows; all others have a key of their own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dbp.columns import CLUSTER_ID, DISTANCE, DUPLICATE_OF, KEY, METHOD, PROBLEM, REASON
from spark_dbp.engine.highest import SCORE
from spark_dbp.explore.check_filter import read_scores
from spark_dbp.explore.given_input import FILTER, GivenInput
from spark_dbp.explore.run_tables import RunTables
from spark_dbp.stages.score_filter import REFUSED, find_reason

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

STEP = "step"
# What run.json calls duplicates: the method, and this.
DUPLICATES = " duplicates"


def find_pruned(tables: RunTables) -> DataFrame:
    """``key``, ``cluster_id`` and ``distance_to_centroid`` of samples that are clustered and not kept."""
    keys = tables.read("keep_list").select(KEY)
    return tables.read("assignments").select(KEY, CLUSTER_ID, DISTANCE).join(keys, KEY, "left_anti")


def find_duplicates(tables: RunTables) -> DataFrame | None:
    """``key``, ``step``, ``reason``, ``duplicate_of``; None of a run without deduplication."""
    from pyspark.sql import functions as F

    if "duplicates" not in tables.run.document["tables"]:
        return None
    step, reason = F.concat(METHOD, F.lit("_dedup")), F.concat(METHOD, F.lit(DUPLICATES))
    return _tell(tables.read("duplicates"), step, reason, DUPLICATE_OF)


def find_refused(tables: RunTables) -> DataFrame | None:
    """``key``, ``step``, ``reason`` of samples that the score filter left out; None of a run without one.

    They are those of `RunTables.left_out_by_score`, and are read with their scores, which say why.
    """
    from pyspark.sql import functions as F

    settings = tables.config.score_filter
    if settings is None:
        return None
    scores = read_scores(tables)
    rows = scores.join(tables.read("filtered").select(KEY), KEY, "left_anti")
    reason = find_reason(scores.schema[SCORE].dataType, settings.at_least)
    return _tell(rows, F.lit("score_filter"), F.coalesce(reason, F.lit(REFUSED)))


def find_bad(tables: RunTables) -> DataFrame | None:
    """``key``, ``step``, ``reason`` of bad rows that the run's tables hold; None where no row was bad."""
    from pyspark.sql import functions as F

    if not tables.steps["ingest"].info["dropped"]:
        return None
    step = F.lit(tables.first_step)
    if tables.config.embeds_main:
        return _tell(tables.read("rejected"), step, F.col(REASON))
    return _tell(tables.bad_samples(), step, F.col(PROBLEM))


def list_dropped(tables: RunTables) -> list[DataFrame]:
    """Rows that were left out before they were clustered, as far as the run's tables hold them.

    Returns
    -------
    list of DataFrame
        ``key``, ``step``, ``reason``, perhaps ``duplicate_of``. Together they hold no row twice.
    """
    found = (find(tables) for find in (find_duplicates, find_refused, find_bad))
    return [rows for rows in found if rows is not None]


def list_outside(tables: RunTables, given: GivenInput, outside: dict[str, int]) -> list[DataFrame]:
    """Rows that the run's tables do not hold, from the input; in the form of `list_dropped`.

    Parameters
    ----------
    tables : RunTables
    given : GivenInput
        With a `source`.
    outside : dict of str to int
        Of `count_outside`.
    """
    from pyspark.sql import functions as F

    step = F.lit(tables.first_step)
    found = [_tell(given.left_out_by_filter(), step, F.lit(FILTER))] if FILTER in outside else []
    if set(outside) - {FILTER}:
        found.append(_tell(given.bad_rows(), step, F.col(PROBLEM)))
    return found


def _tell(rows: DataFrame, step: Column, reason: Column, *more: str) -> DataFrame:
    return rows.select(KEY, step.alias(STEP), reason.alias(REASON), *more)
