"""Write what a run kept, or left out, in a form that others read.

Imports `runs`, `engine`, `lake`, `explore.verdicts` and what is beside it; pyspark inside functions.

Spark makes and sorts what is written; the driver writes it, a few rows at a time. So nobody but Spark needs
to reach the run, and the bytes do not depend on partitions. The table of verdicts is written by Spark itself.
docs/formats.md says what is in each form.
"""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import REASON
from spark_dbp.engine.arrow import CommittedTable, measure_key_bytes
from spark_dbp.engine.session import TIME_ZONE, bound_batches, describe_jobs, get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import ConfigError, DamagedRunError, InputError
from spark_dbp.exchange.export_formats import DROPPED, FORMS, KEPT, Form, Task, list_dimensions
from spark_dbp.exchange.exported_rows import BAD, ExportedRows, find_dropped, find_kept
from spark_dbp.exchange.pygtrie_file import open_pygtrie
from spark_dbp.exchange.whole_output import check_output, write_whole
from spark_dbp.explore.run_clusters import translate_damage
from spark_dbp.explore.verdicts import publish_verdicts, write_verdicts
from spark_dbp.lake import files
from spark_dbp.runs import Run, open_run
from spark_dbp.stages.check_samples import estimate_row_bytes

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")


@dataclass(frozen=True)
class ExportReport:
    """What was written.

    Attributes
    ----------
    run, format : str
    out : str
        The place, or the name of a published table.
    rows : str
        ``kept`` or ``dropped``; ``all`` of ``verdicts``.
    reason : str or None
    n_rows : int
        Rows that were written.
    by_reason : dict of str to int
        How many of those that were left out, of each reason; of ``verdicts`` also how many were kept.
    not_in_tables : dict of str to int
        Rows that should be among them, but of which the run has no keys, by reason.
    n_files, n_bytes : int
        Of what was written at `out`; 0 of a table that the catalog holds.
    """

    run: str
    format: str
    out: str
    rows: str
    reason: str | None
    n_rows: int
    n_files: int
    n_bytes: int
    by_reason: dict[str, int] = field(default_factory=dict)
    not_in_tables: dict[str, int] = field(default_factory=dict)

    def to_document(self) -> dict[str, Any]:
        """As JSON has it."""
        return dict(vars(self))

    def __str__(self) -> str:
        reasons = ", ".join(f"{n:,} {name}" for name, n in self.by_reason.items() if n)
        lines = [
            f"{self.out}",
            f"{'rows':<12}{self.n_rows:,} {self.rows}{f' ({reasons})' if reasons else ''}",
        ]
        if self.n_files:
            lines.append(f"{'files':<12}{self.n_files:,}, {self.n_bytes:,} bytes")
        if self.not_in_tables:
            missing = ", ".join(f"{n:,} {name}" for name, n in self.not_in_tables.items())
            lines.append(f"{'not there':<12}{missing}")
        return "\n".join(lines)


VERDICTS, ALL = "verdicts", "all"
FORMATS = (*FORMS, VERDICTS)
_OPTIONS = {"key": "--key", "row": "--row", "shard": "--shard", "research_keys": "--research-keys"}


def export(
    run: Run | str | os.PathLike[str],
    to: str,
    out: str | os.PathLike[str] | None = None,
    spark: SparkSession | None = None,
    *,
    rows: str | None = None,
    reason: str | None = None,
    key: str | None = None,
    row: str | None = None,
    shard: str | None = None,
    research_keys: bool = False,
    publish: bool = False,
) -> ExportReport:
    """Write the keys of a finished run, and what goes with them, in a form that others read.

    The bytes depend on the run alone, not on partitions or on the engine, and nothing is at `out` until all
    is; but ``verdicts`` is a table that Spark writes there.

    Parameters
    ----------
    run : Run, str or path
        A run, or its directory.
    to : str
        One of `FORMATS`, which docs/formats.md describes under "Out": ``txt``, ``datacomp``, ``npy``,
        ``pygtrie``, ``semdedup``, ``curator``, ``clip_retrieval``, ``shard_counts``, ``verdicts``.
    out : str or path, optional
        File or folder to write, local or a URI. There must be nothing. Needed unless a table is published
        that is a copy.
    spark : SparkSession, optional
        By default the session of `get_session`.
    rows : {"kept", "dropped"}, optional
        By default those that were kept, and with ``curator`` those that were left out.
    reason : str, optional
        Of those that were left out, the ones that were for this reason: ``exact``, ``minhash``, ``semantic``,
        ``score_filter``, ``prune``, ``bad_rows``, or a bad row's own as run.json names it.
    key : str, optional
        SQL expression for what is written of a row, on ``key``, ``cluster_id``, ``distance_to_centroid``, and
        ``rank`` (kept) or ``reason`` (left out).
    row : str, optional
        With ``semdedup``: SQL expression for the row of a sample in the array of embeddings; ``none`` leaves
        it empty.
    shard : str, optional
        With ``shard_counts``: SQL expression for the name of a row's shard.
    research_keys : bool
        With ``pygtrie``: whether keys are cut as the research code cuts them.
    publish : bool
        With ``verdicts``: whether they become one more table of the run's ``output.table``. Of Parquet tables
        it points to `out`; Delta and Iceberg tables are copies, and take no `out`.

    Returns
    -------
    ExportReport

    Raises
    ------
    ConfigError
        For options that there are not, or that do not go together.
    InputError
        When keys cannot be written in this form. It says how many, with examples.
    ConflictError
        When something is at `out`, or ``output.table`` shows another run.
    DamagedRunError
        When the tables have not as many rows as run.json says.

    Examples
    --------
    >>> export("demo-run/run", "txt", "kept.txt").n_rows  # doctest: +SKIP
    539
    """
    options = {"key": key, "row": row, "shard": shard, "research_keys": research_keys}
    form = check_options(to, rows, reason, has_out=out is not None, publish=publish, **options)
    if not isinstance(run, Run):
        run = open_run(run, spark)
    base = check_output(out, run.path) if out is not None and files.is_local(os.fspath(out)) else None
    spark = spark or get_session()
    run.reach_storage(spark)
    if out is not None and base is None:
        reach_storage(spark, files.join(files.normalize(out), ".."), "--out", writes=True)
        base = check_output(out, run.path)
    if form is None:
        return _write_verdicts(run, base, spark, publish)
    assert base is not None
    which = rows or form.rows
    zone = run.document.get("session", {}).get(TIME_ZONE, "UTC")
    bounded = bound_batches(spark, estimate_row_bytes(run.document["stages"]["ingest"]["info"]))
    described = describe_jobs(spark, f"spark-dbp export: {which} rows as {to}")
    with guard_session(spark, zone), bounded, described, translate_errors(f"run {run.path}"):
        found = find_kept(run, spark) if which == KEPT else find_dropped(run, spark, reason)
        if to == "clip_retrieval" and which == DROPPED:
            found = _leave_out_bad(run, spark, found, reason)
        _tell(run, found, which, to, base)
        task = Task(run, spark, found, to, key, row, shard, research_keys, _measure_keys(run, spark))
        with write_whole(base, is_folder=form.is_folder) as draft:
            _tell_size(task, form, draft)
            n_rows = form.write(task, draft)
            if n_rows != found.n_rows:
                raise DamagedRunError(
                    f"{run.path}: its tables have {n_rows:,} {which} rows, run.json says {found.n_rows:,}",
                    mend=f"see what is wrong with spark-dbp verify {run.path}",
                )
            sizes = [path.stat().st_size for path in _list_files(draft)]
    return ExportReport(
        run=run.path, format=to, out=base, rows=which, reason=reason, n_rows=n_rows, n_files=len(sizes),
        n_bytes=sum(sizes), by_reason=found.by_reason, not_in_tables=found.not_in_tables,
    )  # fmt: skip


def _write_verdicts(run: Run, base: str | None, spark: SparkSession, publish: bool) -> ExportReport:
    log.info("export: every row of the input of %s as %s", run.path, VERDICTS)
    if publish:
        written = publish_verdicts(run, base, spark)
    else:
        assert base is not None
        written = write_verdicts(run, base, spark)
    if written.missing:
        log.warning("  %s", written.say_missing())
    sizes = files.list_sizes(base).values() if base is not None else ()
    return ExportReport(
        run=run.path, format=VERDICTS, out=written.path, rows=ALL, reason=None, n_rows=written.rows,
        n_files=len(sizes), n_bytes=sum(sizes), by_reason=written.by_reason, not_in_tables=written.missing,
    )  # fmt: skip


def check_options(
    to: str,
    rows: str | None,
    reason: str | None,
    *,
    has_out: bool = True,
    publish: bool = False,
    **options: Any,
) -> Form | None:
    """The format, when the options go with it; None for ``verdicts``. Needs no run and no session.

    Raises
    ------
    ConfigError
    """
    if to == VERDICTS:
        given = {"--rows": rows, "--reason": reason, **{_OPTIONS[name]: options[name] for name in options}}
        refused = next((name for name, value in given.items() if value), None)
        if refused is not None:
            raise ConfigError(
                f"--to {to} does not take {refused}: it has a row for every row of the input, with its key",
                mend="leave it out; the columns of the table tell rows and reasons apart",
            )
    elif to not in FORMS:
        raise ConfigError(f"--to {to}: there is no such format", mend=f"name one of: {', '.join(FORMATS)}")
    elif publish:
        raise ConfigError(f"--to {to} makes no table to publish", mend=f"--publish goes with --to {VERDICTS}")
    if not has_out and not publish:
        raise ConfigError(f"export --to {to} needs --out", mend="name a new file or folder: --out PATH")
    if to == VERDICTS:
        return None
    form = FORMS[to]
    if rows not in (None, KEPT, DROPPED):
        raise ConfigError(f"--rows {rows}: there are no such rows", mend="name kept or dropped")
    if reason is not None and (rows or form.rows) != DROPPED:
        raise ConfigError("--reason is one of rows that were left out", mend="add --rows dropped")
    for name, value in options.items():
        if value and name not in form.options:
            takes = ", ".join(_OPTIONS[option] for option in form.options)
            raise ConfigError(f"--to {to} does not take {_OPTIONS[name]}", mend=f"it takes {takes}")
    if to == "semdedup" and not options["row"]:
        raise ConfigError(
            "--to semdedup needs --row: which row of the embeddings each sample is, which no run knows",
            mend="where keys are row numbers: --row key; for readers that look at keys, clusters and "
            "distances alone: --row none, which leaves it empty",
        )
    if to == "pygtrie":
        open_pygtrie()
    return form


def _measure_keys(run: Run, spark: SparkSession) -> float:
    """About how many bytes a key has."""
    names = tuple(path.rpartition("/")[2] for path in run.list_files("assignments"))
    frame = run.assignments(spark)
    with translate_damage(run, "assignments"):  # the footers of its files are read
        return measure_key_bytes(CommittedTable(spark, run.table_path("assignments"), frame, names=names))


def _leave_out_bad(run: Run, spark: SparkSession, found: ExportedRows, reason: str | None) -> ExportedRows:
    """Bad rows have no vectors: they are not among the rows, and this is told."""
    from pyspark.sql import functions as F

    n_bad = found.by_reason.get(BAD, 0)
    if not n_bad:
        return found
    if reason is not None:
        raise InputError(
            f"--to clip_retrieval: the {n_bad:,} rows of --reason {reason} have no vectors",
            mend="write another format, such as txt",
        )
    missing = {**found.not_in_tables, BAD: found.not_in_tables.get(BAD, 0) + n_bad}
    rest = found.frame.where(F.col(REASON) != BAD)
    return ExportedRows(rest, found.n_rows - n_bad, {**found.by_reason, BAD: 0}, missing)


def _tell(run: Run, found: ExportedRows, which: str, to: str, base: str) -> None:
    """Say what will be written, what cannot be, and what the format is for."""
    log.info("export: %s %s rows of %s as %s", f"{found.n_rows:,}", which, run.path, to)
    if not found.n_rows:
        log.warning("  there are no such rows: what is written is empty")
    for reason, n_rows in found.not_in_tables.items():
        log.warning(
            "  %s rows that were left out for %s are NOT in the output: the run has no keys of them",
            f"{n_rows:,}",
            reason,
        )
    if to == "curator" and which == KEPT:
        log.warning("  what reads this folder REMOVES the ids in it, and these are the rows that were kept")
    if to == "pygtrie":
        log.warning("  the file is a pickle: whoever loads one runs what it says, so load your own only")


def _tell_size(task: Task, form: Form, draft: Path) -> None:
    """Say how much will be written, and where there must be room for it."""
    if form.row_bytes is None or not task.rows.n_rows:
        return
    a_row = form.row_bytes + (task.key_bytes if form.has_key else 0)
    if task.form == "clip_retrieval":
        a_row += 2.0 * sum(list_dimensions(task.run).values())
    megabytes = math.ceil(task.rows.n_rows * a_row / 1e6)
    log.info("  about %s MB, made in %s first", f"{megabytes:,}", draft.parent)


def _list_files(draft: Path) -> list[Path]:
    return [draft] if draft.is_file() else [path for path in draft.rglob("*") if path.is_file()]


__all__ = ["FORMATS", "ExportReport", "check_options", "export"]
