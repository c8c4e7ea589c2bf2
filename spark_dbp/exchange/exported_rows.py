"""Which rows of a run are exported: those it kept, or those it left out, by reason.

Imports `columns`, `runs`, `errors` and `explore`, which knows why a row was left out; pyspark in functions.

The account of a run (``run.json``, ``accounting.dropped``) has a name for every reason. Here these are
grouped, because a table of the run often holds several of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import reduce
from typing import TYPE_CHECKING

from spark_dbp.columns import CLUSTER_ID, DISTANCE, KEY, REASON
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.explore.given_input import FILTER
from spark_dbp.explore.left_out import DUPLICATES, find_bad, find_duplicates, find_pruned
from spark_dbp.explore.run_tables import RunTables
from spark_dbp.explore.story import PRUNED

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dbp.runs import Run

BAD, SCORE, PRUNE = "bad_rows", "score_filter", "prune"
REASONS = ("exact", "minhash", "semantic", SCORE, PRUNE, BAD, FILTER)


@dataclass(frozen=True)
class ExportedRows:
    """Rows of a run.

    Attributes
    ----------
    frame : DataFrame
        ``key``, ``cluster_id``, ``distance_to_centroid``, and ``rank`` of those that were kept, or ``reason``
        of those that were left out. The latter have a cluster only when they were pruned.
    n_rows : int
        How many there must be.
    by_reason : dict of str to int
        How many of each reason; empty for those that were kept.
    not_in_tables : dict of str to int
        Rows that should be among them, but of which the run has no keys, by reason.
    """

    frame: DataFrame
    n_rows: int
    by_reason: dict[str, int] = field(default_factory=dict)
    not_in_tables: dict[str, int] = field(default_factory=dict)


def find_kept(run: Run, spark: SparkSession) -> ExportedRows:
    """The keep list."""
    return ExportedRows(run.keep_list(spark), int(run.document["rows"]["keep_list"]))


def find_dropped(run: Run, spark: SparkSession, reason: str | None = None) -> ExportedRows:
    """The rows that were left out, for any reason or for one.

    Parameters
    ----------
    run : Run
    spark : SparkSession
    reason : str, optional
        One of `REASONS`, or what the account of the run calls bad rows.

    Raises
    ------
    ConfigError
        When there is no such reason. It lists those that there are.
    InputError
        When the run has no keys of these rows.
    """
    tables, groups = RunTables(run, spark), group_reasons(run)
    wanted, problem = [reason] if reason else list(REASONS), None
    if reason is not None and reason not in REASONS:
        wanted, problem = [_find_group(run, groups, reason)], None
        if wanted == [BAD]:
            problem = reason
    frames, by_reason, missing = [], dict[str, int](), dict[str, int]()
    for group in wanted:
        names = groups.get(group, {})
        n_rows = sum(names.values()) if problem is None else names[problem]
        if group == FILTER:
            if n_rows and reason is not None:
                raise InputError(
                    f"--reason {FILTER}: the run has no keys of the {n_rows:,} rows that {FILTER} left out",
                    mend="read them from the input, with the opposite of the filter "
                    f"{run.document['config']['input'].get('filter')!r}",
                )
            missing |= {FILTER: n_rows} if n_rows else {}
            continue
        by_reason[group] = n_rows
        if not n_rows:
            continue
        found = _find_group_rows(tables, group, problem)
        if group == BAD:
            by_reason[group] = found.count()
            missing |= {BAD: n_rows - by_reason[group]} if n_rows > by_reason[group] else {}
        frames.append(_complete(found, group))
    if not frames:
        frames = [_complete(run.assignments(spark).where("1 = 0"), "")]
    rows = reduce(lambda a, b: a.unionByName(b), frames)
    if not any(by_reason.values()) and missing and reason is not None:
        raise InputError(
            f"--reason {reason}: the run has no keys of these {sum(missing.values()):,} rows",
            mend="look for them in the input",
        )
    return ExportedRows(rows, sum(by_reason.values()), by_reason, missing)


def group_reasons(run: Run) -> dict[str, dict[str, int]]:
    """Number of rows by the name in the account, of each group of `REASONS` that has such names."""
    score = run.document["stages"].get("score_filter", {}).get("info", {}).get("left_out", {})
    groups: dict[str, dict[str, int]] = {}
    for name, n_rows in run.document["accounting"]["dropped"].items():
        groups.setdefault(_name_group(name, score), {})[name] = int(n_rows)
    return groups


def _name_group(name: str, score: Mapping[str, int]) -> str:
    if name == FILTER:
        return FILTER
    if name.endswith(DUPLICATES):
        return name.removesuffix(DUPLICATES)
    if name == PRUNED:
        return PRUNE
    return SCORE if name in score else BAD


def _find_group(run: Run, groups: Mapping[str, Mapping[str, int]], reason: str) -> str:
    """The group of a name in the account, where it has one alone or is one of the bad rows."""
    for group, names in groups.items():
        if reason in names and (group == BAD or len(names) == 1):
            return group
    known = ", ".join([*REASONS, *map(repr, groups.get(BAD, ()))])
    raise ConfigError(f"--reason {reason!r}: {run.path} has no such reason", mend=f"name one of: {known}")


def _find_group_rows(tables: RunTables, group: str, problem: str | None) -> DataFrame:
    """``key``, of pruned rows their clusters too. `left_out` says which rows these are."""
    from pyspark.sql import functions as F

    if group == PRUNE:
        return find_pruned(tables)
    if group == SCORE:
        found = tables.left_out_by_score()
        assert found is not None
        return found
    if group == BAD:
        return _find_bad(tables, problem)
    rows = find_duplicates(tables)
    assert rows is not None
    return rows.where(F.col(REASON) == group + DUPLICATES)


def _find_bad(tables: RunTables, problem: str | None) -> DataFrame:
    """Keys of bad rows and of rejected items, as far as the run has them, each once.

    The key of a bad row may be that of a good one too. Such a key is not among those that were left out.
    """
    from pyspark.sql import functions as F

    bad = find_bad(tables)
    assert bad is not None
    bad = bad.where(F.col(KEY).isNotNull())
    if problem is not None:
        bad = bad.where(F.col(REASON) == problem)
    return bad.select(KEY).distinct().join(tables.good_samples().select(KEY), KEY, "left_anti")


def _complete(rows: DataFrame, reason: str) -> DataFrame:
    """The columns of rows that were left out."""
    from pyspark.sql import functions as F

    kinds = {CLUSTER_ID: "int", DISTANCE: "float"}
    given = [
        F.col(name) if name in rows.columns else F.lit(None).cast(kind).alias(name)
        for name, kind in kinds.items()
    ]
    return rows.select(KEY, *given, F.lit(reason).alias(REASON))
