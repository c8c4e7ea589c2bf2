"""Find out whether a job could run here, and what would mend it. Nothing is left behind.

Imports `diagnosis`, `workers`, `engine`, `io`, `lake`, `columns` and `errors`; pyspark by what it is given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from spark_dbp._version import __version__
from spark_dbp.config_embed import EmbedConfig
from spark_dbp.encoders import EncoderSettings
from spark_dbp.engine.catalog_target import open_target
from spark_dbp.engine.compat import open_reader
from spark_dbp.engine.patience import finish_within
from spark_dbp.engine.probe import (
    can_workers_read,
    choose_engine,
    find_problem_of_spark,
    find_problem_of_workers,
)
from spark_dbp.engine.session import describe_jobs, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import SparkDbpError
from spark_dbp.explore.diagnosis import (
    BOTH,
    DEDUP,
    DRIVER,
    SHOWN,
    Finding,
    check_driver_packages,
    check_spark,
    check_workers,
    explain_failed_task,
    take_error,
)
from spark_dbp.explore.workers import ask_workers, look_around
from spark_dbp.io.footers import read_parquet
from spark_dbp.io.formats.dataset import open_dataset
from spark_dbp.io.input_files import name_literally
from spark_dbp.io.shards import list_shards
from spark_dbp.lake import files
from spark_dbp.stages.embed import identify, probe

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Seconds that a cluster may take to start executors.
_PATIENCE = 300.0


@dataclass(frozen=True)
class Wishes:
    """What a job would need, as far as a configuration says.

    Attributes
    ----------
    output : str or None
        ``output.path``.
    engine : {"auto", "arrow", "sql"}
    paths : list of str
        ``input.path``.
    table : str or None
        ``input.table``.
    format, options : str, dict
        ``input.format`` and ``input.options``.
    published, table_format : str or None
        ``output.table`` and ``output.table_format``.
    deduplicates : bool
        Whether MinHash or semantic deduplication is asked for.
    shards : list of str
        ``embed.images.webdataset``.
    embed : list of EmbedConfig
        Sections with encoders.
    """

    output: str | None = None
    engine: str = "auto"
    paths: list[str] = field(default_factory=list)
    table: str | None = None
    format: str = "parquet"
    options: dict[str, Any] = field(default_factory=dict)
    published: str | None = None
    table_format: str = "parquet"
    deduplicates: bool = False
    shards: list[str] = field(default_factory=list)
    embed: list[EmbedConfig] = field(default_factory=list)

    @property
    def modules(self) -> dict[str, str]:
        """Modules that workers need, and the distributions that have them."""
        return BOTH | (DEDUP if self.deduplicates else {})


def examine(open_session: Callable[[], SparkSession], wishes: Wishes) -> list[Finding]:
    """Look at everything that a job needs of its platform.

    Parameters
    ----------
    open_session : callable
        Gives the session. That it cannot be opened is a finding too.
    wishes : Wishes

    Returns
    -------
    list of Finding

    Examples
    --------
    >>> def fail():
    ...     raise SparkDbpError("no Java 17 or 21 found", mend="set JAVA_HOME")
    >>> print(format_findings(examine(fail, Wishes())))
    problem  session      no Java 17 or 21 found
             to mend it:  set JAVA_HOME
    A job cannot run here: 1 problem, 0 warnings.
    """
    try:
        spark = open_session()
    except SparkDbpError as error:
        return [take_error("session", error)]
    with describe_jobs(spark, "spark-dbp doctor"):
        return list(_examine_session(spark, wishes))


def format_findings(findings: Iterable[Finding]) -> str:
    """Findings as lines of text, with a last line that says whether a job could run."""
    lines, counts = [], {"ok": 0, "warning": 0, "problem": 0}
    for found in findings:
        counts[found.status] += 1
        lines.append(f"{found.status:<7}  {found.about:<11}  {found.what}")
        if found.mend:
            lines.append(f"{'':<7}  {'to mend it:':<11}  {found.mend}")
    problems, warnings = (
        f"{counts[status]} {status}{'' if counts[status] == 1 else 's'}" for status in ("problem", "warning")
    )
    can = "cannot" if counts["problem"] else "can"
    return "\n".join([*lines, f"A job {can} run here: {problems}, {warnings}."])


def to_document(findings: list[Finding]) -> dict[str, Any]:
    """Findings as JSON: ``{"spark_dbp": version, "can_run": bool, "findings": [...]}``."""
    return {
        "spark_dbp": __version__,
        "can_run": can_run(findings),
        "findings": [asdict(found) for found in findings],
    }


def can_run(findings: Iterable[Finding]) -> bool:
    """Whether no finding is a problem."""
    return all(found.status != "problem" for found in findings)


def _examine_session(spark: SparkSession, wishes: Wishes) -> Iterator[Finding]:
    driver = look_around(DRIVER | wishes.modules | SHOWN | {"pyspark": "pyspark"})
    yield from check_spark(spark.version, driver["packages"]["pyspark"])
    yield from check_driver_packages(driver["packages"], wishes.modules)
    try:
        with guard_session(spark):
            yield Finding("settings", "ok", "the session takes the settings that a run rests on, or has them")
    except SparkDbpError as error:
        yield take_error("settings", error)
    try:
        with translate_errors():
            asked = finish_within(_PATIENCE, lambda: ask_workers(spark, wishes.modules | SHOWN))
    except TimeoutError:
        yield Finding(
            "workers",
            "problem",
            f"no task has ended within {_PATIENCE:.0f} seconds",
            "see that the cluster has free cores and memory for an executor (spark.executor.cores, "
            "spark.executor.memory), and that executors reach the driver (spark.driver.host)",
        )
        return
    except Exception as error:
        yield explain_failed_task(error)
        return
    yield from check_workers(driver, asked, wishes.modules)
    if wishes.output is not None:
        yield from _check_output(spark, wishes.output, wishes.engine)
    yield from _check_input(spark, wishes)
    for section in wishes.embed:
        yield _check_encoder(spark, section)
    if wishes.published is not None:
        yield from _check_published(spark, wishes.published, wishes.table_format, wishes.output or "")


def _check_output(spark: SparkSession, output: str, engine: str) -> Iterator[Finding]:
    with _leave_nothing(output) as path:
        folder = files.join(path, f".probe-{uuid4().hex[:8]}")
        try:
            reach_storage(spark, path, "output.path", writes=True)
            files.write_bytes(files.join(folder, "driver"), b"")
            if files.list_names(folder) != ["driver"]:
                raise OSError(f"what was written to {folder} is not listed")
        except (OSError, SparkDbpError) as error:
            reason = error.what if isinstance(error, SparkDbpError) else error.strerror or str(error)
            yield Finding(
                "storage",
                "problem",
                f"the driver cannot write below output.path {path}: {reason}",
                getattr(error, "mend", "") or "name a directory or a store that this user may write to",
            )
            return
        finally:
            _delete(folder)
        yield Finding("storage", "ok", f"the driver writes, lists and deletes below {path}")
        yield from _check_tasks_write(spark, path)
        try:
            with guard_session(spark), translate_errors():
                chosen = choose_engine(spark, path, engine)
            yield Finding("engine", "ok", f"{chosen.name}: {chosen.why}")
        except SparkDbpError as error:
            yield take_error("engine", error)


def _check_tasks_write(spark: SparkSession, path: str) -> Iterator[Finding]:
    """What tasks may do; which of both an engine needs, `choose_engine` judges."""
    try:
        with translate_errors():
            of_workers, of_spark = find_problem_of_workers(spark, path), find_problem_of_spark(spark, path)
    except (SparkDbpError, OSError) as error:
        yield Finding(
            "storage",
            "warning",
            f"no task could be tried below {path}: {error}",
            "see the finding on the engine",
        )
        return
    for who, problem in (("Python workers", of_workers), ("Spark's own tasks", of_spark)):
        if problem:
            mend = f"give {who} rights there, or name a place that they share with the driver"
            yield Finding("storage", "warning", f"{who} cannot work below {path}: {problem}", mend)
        else:
            yield Finding("storage", "ok", f"{who} read and write below {path}")


@contextmanager
def _leave_nothing(output: str) -> Iterator[str]:
    """The normal form of a directory. Where it, or a parent, is made inside, it is deleted at the end."""
    path = files.normalize(output)
    made = []
    if files.is_local(path):
        made = [path, *map(str, Path(path).parents)]
        made = [folder for folder in made if not Path(folder).exists()]
    try:
        yield path
    finally:
        for folder in made:
            files.delete_if_empty(folder)


def _delete(folder: str) -> None:
    with suppress(OSError, SparkDbpError):  # where it could not be written either
        files.delete(folder)


def _check_encoder(spark: SparkSession, section: EmbedConfig) -> Finding:
    name = f"embed {section.name}: {section.encoder_name}"
    try:
        with translate_errors():
            settings = EncoderSettings.from_config(section)
            identify(spark, settings)
            found = probe(spark, settings)
    except SparkDbpError as error:
        return take_error("encoder", error)
    what = f"{found['dimension']:,} dimensions, {found['dtype']} on {found['device']}"
    return Finding("encoder", "ok", f"{name} works in a worker: {what}")


def _check_shards(spark: SparkSession, patterns: list[str]) -> Finding:
    try:
        shards = list_shards(spark, patterns)
    except SparkDbpError as error:
        return take_error("input", error)
    who = "workers read" if can_workers_read(spark, shards[0].path) else "Spark reads"
    return Finding("input", "ok", f"{len(shards):,} shards, such as {shards[0].path}; {who} them")


def _check_input(spark: SparkSession, wishes: Wishes) -> Iterator[Finding]:
    if wishes.shards:
        yield _check_shards(spark, wishes.shards)
    if not wishes.paths and wishes.table is None:
        return
    name = f"input.table {wishes.table}" if wishes.table else f"input.path {', '.join(wishes.paths)}"
    try:
        with translate_errors(name, opening=True):
            if wishes.format != "parquet":
                frame = open_dataset(wishes.format, wishes.paths, wishes.options).plan_rows(spark).to_frame()
            elif wishes.table:
                frame = open_reader(spark).table(wishes.table)
            else:
                frame = read_parquet(spark, name_literally(wishes.paths))
            n_columns = len(frame.schema.fields)
        with translate_errors(name):
            frame.limit(1).count()
        yield Finding("input", "ok", f"{name} can be read ({n_columns} columns)")
    except SparkDbpError as error:
        yield take_error("input", error)


def _check_published(spark: SparkSession, table: str, table_format: str, path: str) -> Iterator[Finding]:
    try:
        with translate_errors():
            open_target(spark, table, table_format, path)
        yield Finding("catalog", "ok", f"output.table {table}: tables can be made there")
    except SparkDbpError as error:
        yield take_error("catalog", error)
