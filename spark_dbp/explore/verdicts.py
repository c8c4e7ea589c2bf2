"""What became of every row of the input, as a table to join: kept or dropped, by which step, and why.

Imports `columns`, `engine`, `lake`, `runs`, what is beside it and the stage `select`; pyspark inside
functions.

Each row is in just one of these: the assignments (kept or pruned), the duplicates, the samples that the score
filter left out, the bad rows, and the rows that `input.filter` left out. The last of these, and of some runs
bad rows too, are in no table of the run; they are read from the input, where it is still as the run read it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from spark_dbp._version import __version__
from spark_dbp.columns import (
    CLUSTER_ID,
    DISTANCE,
    DUPLICATE_OF,
    HISTOGRAM,
    KEY,
    N_ITEMS,
    QUOTA,
    RANK,
    REASON,
)
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.catalog_target import VERDICTS as PUBLISHED
from spark_dbp.engine.catalog_target import Target, open_target
from spark_dbp.engine.catalog_writer import RUN_ID, point_external_table, replace_table
from spark_dbp.engine.probe import find_problem_of_readers
from spark_dbp.engine.session import describe_jobs, get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.engine.table_writer import read_frame, write_table
from spark_dbp.errors import ConfigError, ConflictError, DamagedRunError
from spark_dbp.explore.given_input import count_outside, reopen_input
from spark_dbp.explore.left_out import STEP, list_dropped, list_outside
from spark_dbp.explore.run_clusters import read_small_table, translate_damage
from spark_dbp.explore.run_tables import RunTables, read_zone
from spark_dbp.explore.story import KEPT, PRUNED
from spark_dbp.lake import files
from spark_dbp.lake.local_files import can_rename
from spark_dbp.stages.select import select

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from spark_dbp.runs import Run

log = logging.getLogger("spark_dbp")

VERDICT = "verdict"
DROPPED = "dropped"


@dataclass(frozen=True)
class Verdicts:
    """What became of the rows of a run's input.

    Attributes
    ----------
    frame : DataFrame
        ``key``; ``verdict`` (kept, dropped); ``step``; ``reason``, as run.json accounts for it, or ``kept``;
        ``cluster_id`` INT, ``distance_to_centroid`` FLOAT, ``rank`` INT among all samples of the cluster,
        null for rows that were not clustered; ``duplicate_of``, of the key's type.
    missing : dict of str to int
        Rows that are not in it, by reason: those that only the input holds, which is not as it was.
    why : str
        Why they are missing; empty where none is.
    """

    frame: DataFrame
    missing: dict[str, int] = field(default_factory=dict)
    why: str = ""

    def say_missing(self) -> str:
        """What is missing and why, for people; empty where nothing is."""
        return _say_missing(self.missing, self.why)


def _say_missing(missing: dict[str, int], why: str) -> str:
    if not missing:
        return ""
    rows = ", ".join(f"{n:,} rows {reason!r}" for reason, n in missing.items())
    return f"{rows} are not among the verdicts: {why}"


def verdicts(run: Run, spark: SparkSession | None = None) -> DataFrame:
    """What became of every row of the input, as a DataFrame to join.

    Parameters
    ----------
    run : Run
    spark : SparkSession, optional
        By default the session of `get_session`.

    Returns
    -------
    DataFrame
        As `Verdicts.frame`: as many rows as the input had. Rows that only the input holds are left out where
        it has changed; the log then says how many and why (`plan_verdicts` returns the numbers).

    Examples
    --------
    ::

        why = verdicts(open_run("run"), spark)
        metadata.join(why, "key").where("reason = 'semantic duplicates'")
    """
    planned = plan_verdicts(run, spark)
    if planned.missing:
        log.warning("%s", planned.say_missing())
    return planned.frame


def plan_verdicts(run: Run, spark: SparkSession | None = None) -> Verdicts:
    """The same, with the number of rows that are missing.

    Parameters
    ----------
    run, spark
        As for `verdicts`.

    Returns
    -------
    Verdicts
    """
    spark = spark or get_session()
    run.reach_storage(spark)
    with guard_session(spark, read_zone(run)), translate_errors(f"run {run.path}"):
        tables = RunTables(run, spark)
        parts = [_list_clustered(tables), *list_dropped(tables)]
        outside = count_outside(tables)
        if not outside:
            return Verdicts(_unite(tables, parts))
        given = reopen_input(tables)
        if given.source is None:
            return Verdicts(_unite(tables, parts), outside, given.why_not)
        return Verdicts(_unite(tables, [*parts, *list_outside(tables, given, outside)]))


def _list_clustered(tables: RunTables) -> DataFrame:
    """Verdicts on the samples that were clustered, with their ranks."""
    from pyspark.sql import functions as F

    prune = tables.config.prune
    stats = read_small_table(tables.run, "cluster_stats", CLUSTER_ID, N_ITEMS, HISTOGRAM)
    # Of as many as there are, every sample is kept, and so has a rank. That of stratified is of all, not of
    # the kept, so the order of hard serves.
    every = stats.select([CLUSTER_ID, N_ITEMS]).rename_columns([CLUSTER_ID, QUOTA])
    which = "hard" if prune.which_to_keep == "stratified" else prune.which_to_keep
    with translate_damage(tables.run, "assignments"):  # footers of its files are read here
        ranked = select(_open_assignments(tables), every, which_to_keep=which, seed=prune.seed, stats=stats)
    kept = tables.read("keep_list").select(KEY, F.lit(KEPT).alias(VERDICT))
    verdict = F.coalesce(VERDICT, F.lit(DROPPED))
    reason = F.coalesce(F.col(VERDICT), F.lit(PRUNED))
    rows = ranked.join(kept, KEY, "left")
    return rows.select(
        KEY,
        verdict.alias(VERDICT),
        F.lit("select").alias(STEP),
        reason.alias(REASON),
        CLUSTER_ID,
        DISTANCE,
        RANK,
    )


def _open_assignments(tables: RunTables) -> CommittedTable | DataFrame:
    """The assignments, read by workers where these can."""
    run, spark = tables.run, tables.spark
    frame, paths = tables.read("assignments"), run.list_files("assignments")
    if not paths or find_problem_of_readers(spark, paths[:1]):
        return frame
    names = tuple(path.rpartition("/")[2] for path in paths)
    return CommittedTable(spark, run.table_path("assignments"), frame, names=names)


def _unite(tables: RunTables, parts: list[DataFrame]) -> DataFrame:
    """The rows of all parts, with all columns."""
    from pyspark.sql import functions as F

    key_type = parts[0].schema[KEY].dataType
    types: dict[str, Any] = {
        KEY: key_type, VERDICT: "string", STEP: "string", REASON: "string", CLUSTER_ID: "int",
        DISTANCE: "float", RANK: "int", DUPLICATE_OF: key_type,
    }  # fmt: skip
    none = {VERDICT: F.lit(DROPPED)}  # of all but the clustered rows
    whole = [
        part.select(
            [
                (F.col(name) if name in part.columns else none.get(name, F.lit(None)))
                .cast(data_type)
                .alias(name)
                for name, data_type in types.items()
            ]
        )
        for part in parts
    ]
    return reduce(lambda a, b: a.unionByName(b), whole)


@dataclass(frozen=True)
class WrittenVerdicts:
    """A table of verdicts that was written.

    Attributes
    ----------
    path : str
        The directory, or the name of the table.
    rows : int
    by_reason : dict of str to int
    missing : dict of str to int
        As of `Verdicts`.
    why : str
    """

    path: str
    rows: int
    by_reason: dict[str, int]
    missing: dict[str, int]
    why: str

    def say_missing(self) -> str:
        """As of `Verdicts`."""
        return _say_missing(self.missing, self.why)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(vars(self))

    def __str__(self) -> str:
        counts = [f"  {n:>14,}  {reason}" for reason, n in self.by_reason.items()]
        lost = [self.say_missing()] if self.missing else []
        return "\n".join([self.path, f"rows  {self.rows:,}", *counts, *lost])


def write_verdicts(run: Run, out: str, spark: SparkSession | None = None) -> WrittenVerdicts:
    """Write the verdicts as a Parquet table.

    Parameters
    ----------
    run : Run
    out : str
        A new or empty directory, which Spark reaches.
    spark : SparkSession, optional

    Returns
    -------
    WrittenVerdicts

    Raises
    ------
    ConflictError
        When something is in `out` already.
    DamagedRunError
        When the rows are not those that run.json accounts for.
    """
    spark, out = spark or get_session(), files.normalize(out)
    reach_storage(spark, out, "--out", writes=True)
    _refuse_full(out)
    planned = plan_verdicts(run, spark)
    described, draft = describe_jobs(spark, "spark-dbp export: writing the verdicts"), _name_draft(out)
    try:
        with guard_session(spark, read_zone(run)), described, translate_errors(f"run {run.path}"):
            how: dict[str, Any] = {"describe": lambda what: describe_jobs(spark, what), "totals": {}}
            written = write_table(spark, "verdicts", planned.frame, draft, **how)
            counted = _count(run, planned, written.frame, out)
        if draft != out:
            _refuse_full(out)
            if files.is_local(out):
                Path(draft).rename(out)
            else:
                files.move_within(draft, out)
        return counted
    except BaseException:
        files.delete(draft)
        raise


def _refuse_full(out: str) -> None:
    names = files.list_names(out) if files.exists(out) else []
    if names:
        raise ConflictError(f"--out {out} is not empty: {names[0]} is there", mend="name a new directory")
    files.delete_if_empty(out)


def _name_draft(out: str) -> str:
    """Where the table is written before it appears at `out`: there itself where nothing can be renamed."""
    if files.is_local(out):
        if not can_rename(Path(out).parent):
            return out
    elif not files.renames(out):
        return out
    parent, _, name = out.rpartition("/")
    return f"{parent}/.{name}.{uuid4().hex[:8]}"


def publish_verdicts(run: Run, out: str | None = None, spark: SparkSession | None = None) -> WrittenVerdicts:
    """Publish the verdicts as one more table of a run with ``output.table``: ``<prefix>_verdicts``.

    Parameters
    ----------
    run : Run
    out : str, optional
        Where the published tables are Parquet, the new directory that this one points to; else not needed.
    spark : SparkSession, optional

    Returns
    -------
    WrittenVerdicts
        Its ``path`` is the name of the table.

    Raises
    ------
    ConfigError
        When the run names no ``output.table``, something else has that name, or `out` is not needed.
    ConflictError
        When that ``output.table`` shows another run.
    DamagedRunError
        When the rows are not those that run.json accounts for. What was published before stays.
    """
    spark, given = spark or get_session(), run.config().output
    if given.table is None:
        raise ConfigError(
            f"{run.path} has no output.table to publish beside",
            mend="leave --publish away, and give --out DIR",
        )
    if given.table_format == "parquet" and out is None:
        raise ConfigError(
            f"the tables of {given.table} are Parquet, and point to directories",
            mend="name a new directory for this one: --out DIR",
        )
    if given.table_format != "parquet" and out is not None:
        raise ConfigError(
            f"--out {out}: {given.table_format} tables are copies, and point to no directory",
            mend="leave --out away; or leave --publish away, to write a Parquet table alone",
        )
    target = open_target(spark, given.table, given.table_format, run.path)
    assert target is not None
    target.find(PUBLISHED)  # nobody else's
    _refuse_other_run(target, run)
    name, run_id = target.name(PUBLISHED), run.document["run_id"]
    properties = {"spark_dbp.version": __version__, "spark_dbp.run": run.path, RUN_ID: run_id}
    comment = f"What became of every row of the input, and why (spark-dbp {__version__}, run {run_id})"
    if out is not None:
        written = write_verdicts(run, out, spark)
        _refuse_other_run(target, run, mend_more=f"; {written.path} has the verdicts")
        fields = read_frame(spark, written.path).schema.fields
        columns = [(item.name, item.dataType.simpleString()) for item in fields]
        point_external_table(spark, name, written.path, columns, properties, comment)
        return replace(written, path=target.show(PUBLISHED))
    planned = plan_verdicts(run, spark)
    with guard_session(spark, read_zone(run)), translate_errors(f"run {run.path}"):
        # Counted first, so that what is wrong takes nobody's place.
        counted = _count(run, planned, planned.frame, target.show(PUBLISHED))
        _refuse_other_run(target, run)
        replace_table(name, planned.frame.orderBy(KEY), given.table_format, properties, comment)
        return counted


def _refuse_other_run(target: Target, run: Run, mend_more: str = "") -> None:
    """Verdicts stand beside the keep list of their run only."""
    info, run_id = target.find("keep_list"), run.document["run_id"]
    if info is None or info.properties[RUN_ID] != run_id:
        is_what = "is not there" if info is None else f"is of run {info.properties[RUN_ID]}"
        raise ConflictError(
            f"output.table: {target.show('keep_list')} {is_what}, and not of {run.path} (run {run_id})",
            mend="run the job again, which publishes it; or leave --publish away, and give --out DIR"
            + mend_more,
        )


def _count(run: Run, planned: Verdicts, frame: DataFrame, place: str) -> WrittenVerdicts:
    """See that there are as many rows of each reason as run.json accounts for."""
    counted = frame.groupBy(REASON).count().orderBy(REASON).collect()
    account, counts = run.document["accounting"], {row[REASON]: int(row["count"]) for row in counted}
    wanted = {KEPT: account["kept"], **{name: n for name, n in account["dropped"].items() if n}}
    wanted = {name: n for name, n in wanted.items() if name not in planned.missing}
    if counts != wanted:
        raise DamagedRunError(
            f"{run.path}: its tables have rows by reason {counts}, run.json accounts for "
            f"{dict(sorted(wanted.items()))}",
            mend=f"see what is wrong with spark-dbp verify {run.path}",
        )
    return WrittenVerdicts(place, sum(counts.values()), counts, planned.missing, planned.why)
