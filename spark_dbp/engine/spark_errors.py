"""Turn errors of any version of Spark into ours: what is wrong, where, and what mends it.

Imports `file_errors` and `errors`; pyspark inside functions only.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

from spark_dbp.engine.file_errors import Place, is_about_types, translate_file_error
from spark_dbp.errors import ConfigError, InputError, SparkDbpError

_DATA_EXCEPTION = r"\bSpark(?:Arithmetic|ArrayIndexOutOfBounds|DateTime|NumberFormat)Exception: \["
_NO_ANSWER = (
    "Call From .* failed on|UnknownHostException|Unable to execute HTTP request|SocketTimeoutException"
)
_COLUMN_CONDITIONS = ("UNRESOLVED_COLUMN", "FIELD_NOT_FOUND")


def read_condition(error: BaseException) -> str:
    """Spark's name for the kind of error (``PATH_NOT_FOUND`` ...); empty when it has none."""
    for method in ("getCondition", "getErrorClass"):
        get = getattr(error, method, None)
        if get is not None:
            try:
                return get() or ""
            except Exception:
                return ""
    return ""


def read_first_line(error: BaseException) -> str:
    """First line of a Spark error, without codes, plans or stack traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return _without_codes(lines[0] if lines else type(error).__name__)


def read_reason(error: BaseException) -> str:
    """Why Spark failed, in a line: the innermost cause that it names, or else the first line."""
    return _without_codes(_cause(str(error))) or read_first_line(error)


def is_from_spark(error: BaseException) -> bool:
    """Whether an error was raised by Spark, here or in its JVM or server, and not by our own code."""
    return type(error).__module__.split(".")[0] in ("pyspark", "py4j")


def is_unknown_catalog(error: BaseException) -> bool:
    """Whether the session does not know the first part of a name, and takes it for a schema of schemas."""
    return bool(
        re.search("single-part namespace|Nested databases are not supported|CATALOG_NOT_FOUND", str(error))
    )


def _without_codes(text: str) -> str:
    text = re.sub(r"^(?:[\w.]+(?:Exception|Error): )?\[[\w.]+\]\s*", "", text)
    return re.sub(r"\s*SQLSTATE: \w+", "", text)[:500]


# How a worker says an error of ours in the text of its exception, which Spark cuts and quotes nowhere.
_OURS = re.compile(r"spark-dbp refuses ([0-9A-Za-z+/=]{8,})\.")


@contextmanager
def refuse_in_worker() -> Iterator[None]:
    """In a worker, raise errors of ours so that `translate_errors` finds them again on the driver."""
    try:
        yield
    except SparkDbpError as error:
        said = {"class": type(error).__name__, "what": error.what, "mend": error.mend}
        text = base64.b64encode(json.dumps(said).encode()).decode()
        raise RuntimeError(f"spark-dbp refuses {text}.") from None


def _find_refusal(text: str) -> SparkDbpError | None:
    found = _OURS.search(text)
    if found is None:
        return None
    said = json.loads(base64.b64decode(found[1]))
    kinds = {kind.__name__: kind for kind in (ConfigError, InputError)}
    return kinds.get(said["class"], SparkDbpError)(said["what"], mend=said["mend"])


@contextmanager
def translate_errors(reading: str = "", *, opening: bool = False, own: str = "") -> Iterator[None]:
    """Turn Spark's errors into ours, which name the file and show no stack trace.

    Parameters
    ----------
    reading : str
        What is being read, for messages ("input.path /data/x").
    opening : bool
        Whether the code inside only opens a source. Then any error that Spark finds in a plan is an
        `InputError`.
    own : str
        The run directory, where the run's own tables are read too: their faults are not the input's.
    """
    from pyspark.errors import AnalysisException, PySparkException

    try:
        yield
    except SparkDbpError:
        raise
    except Exception as error:
        translated = _translate(error, Place(reading, own), PySparkException)
        in_plan = isinstance(error, AnalysisException) and not isinstance(translated, InputError)
        if opening and (in_plan or is_about_types(error)):
            why = _cause(str(error)) or read_first_line(error)
            translated = InputError(f"cannot read {reading}: {_without_codes(why)}", mend=_mend_of(error))
        if translated is None:
            raise
        raise translated from error


def _translate(error: Exception, place: Place, spark_exception: type) -> SparkDbpError | None:
    text = str(error)
    refusal = _find_refusal(text)
    if refusal is not None:
        return refusal
    condition = read_condition(error)
    at, setting = str(place), place.setting
    if "PATH_NOT_FOUND" in (condition, text[1:15]):
        mend = f"check {setting}, and that Spark may read it"
        if not place.is_input:
            mend = "the run directory is incomplete: run the job again"
        return InputError(f"no such path{at}: {read_first_line(error)}", mend=mend)
    if condition == "TABLE_OR_VIEW_NOT_FOUND":
        return InputError(f"no such table{at}: {read_first_line(error)}", mend="check input.table")
    if setting == "input.table" and is_unknown_catalog(error):
        return InputError(
            f"no such table{at}: the session knows no catalog of that name",
            mend="check input.table; docs/catalog.md says how a session gets to know a catalog",
        )
    if setting == "input.table" and "INSUFFICIENT_PERMISSIONS" in f"{condition} {text[:60]}":
        return InputError(
            f"no right to read{at}: {read_first_line(error)}",
            mend="grant SELECT on that table, and USE on its catalog and schema, to who runs the job",
        )
    if condition.startswith("UNABLE_TO_INFER_SCHEMA"):
        return place.refuse(
            f"no Parquet files{at} that Spark reads",
            f"check {setting}: Spark passes over empty files, names that begin with _ or ., and subfolders "
            "without a = in their name",
        )
    if condition.startswith(_COLUMN_CONDITIONS):
        return InputError(f"no such column{at}: {read_first_line(error)}", mend="check the column names")
    of_a_file = translate_file_error(text, place)
    if of_a_file is not None:
        return of_a_file
    if re.search(
        r"No FileSystem for scheme|FileSystem not found|PatternSyntaxException|URISyntaxException", text
    ):
        return InputError(
            f"cannot open{at or ' a path'}: {_cause(text) or read_first_line(error)}",
            mend="check the path: Spark needs the connector of its store, brackets of a glob must be closed, "
            "and Hadoop takes no colon in a name",
        )
    if place.is_input and re.search(_NO_ANSWER, text):
        return SparkDbpError(
            f"cannot open{at}: its store does not answer: {_cause(text) or read_first_line(error)}",
            mend=f"check the host in {setting} and the network, then run the same command again",
        )
    # A cast, a division or an overflow failed on a value. Spark 3.5 gives the SQL state in the text only.
    if _sql_state(error).startswith("22") or re.search(_DATA_EXCEPTION, text):
        found = re.search(r"^== SQL .*==\n(.*)$", text, flags=re.MULTILINE)
        expression = repr(found[1]) if found else "an expression"
        return InputError(
            f"{expression} fails on a row{at}: {read_first_line(error)}",
            mend="use try_cast, try_divide or coalesce in the SQL that was given",
        )
    codec = re.search(r"Class(?:NotFoundException:)? (\S*[cC]odec\S*)", text)
    if codec:
        return ConfigError(
            f"spark.sql.parquet.compression.codec: this Spark has no {codec[1]}",
            mend="set it to zstd, snappy, gzip, lz4 or none",
        )
    if "maxResultSize" in text:
        return SparkDbpError(
            f"the training sample is larger than the driver may collect{at}: {read_first_line(error)}",
            mend="raise spark.driver.maxResultSize or lower cluster.max_points_per_centroid",
        )
    return _no_resources(error, text, at) or _unknown(error, text, at, spark_exception)


def _no_resources(error: Exception, text: str, at: str) -> SparkDbpError | None:
    """An error that says which disk or memory ran out, and the setting that gives more; None for others."""
    if re.search(r"No space left on device|Disk quota exceeded|ENOSPC|EDQUOT", text):
        return SparkDbpError(
            f"no space left on a disk{at}: {_cause(text) or read_first_line(error)}",
            mend="make room where output.path lies and where Spark spills (spark.local.dir); the same "
            "command then goes on after the last finished step",
        )
    if re.search(
        r"MemoryError|Cannot allocate memory|malloc of size|Unable to allocate|failed to map segment", text
    ):
        return SparkDbpError(
            f"a Python worker ran out of memory{at}: {_cause(text) or read_first_line(error)}",
            mend="raise spark.executor.pyspark.memory (it is shared by the tasks of an executor, each needs "
            "about 1 GB), or lower spark.executor.cores",
        )
    if re.search(r"Python worker exited unexpectedly|Python worker crashed", text):
        return SparkDbpError(
            f"a Python worker was killed{at}, most often because the machine ran out of memory",
            mend="raise spark.executor.memoryOverhead or spark.executor.pyspark.memory, or lower "
            "spark.executor.cores",
        )
    if "OutOfMemoryError" in text:
        return SparkDbpError(
            f"the JVM ran out of memory{at}: {_cause(text) or read_first_line(error)}",
            mend="raise spark.executor.memory; in a local session spark.driver.memory",
        )
    return None


def _unknown(error: Exception, text: str, at: str, spark_exception: type) -> SparkDbpError | None:
    if isinstance(error, spark_exception) or type(error).__module__.startswith("py4j"):
        return SparkDbpError(
            f"Spark failed{at}: {_cause(text) or read_first_line(error)}",
            mend="run with --debug for the whole trace",
        )
    return None


def _mend_of(error: Exception) -> str:
    text = str(error)
    if "COLUMN_ALREADY_EXISTS" in text:
        return "rename one of the columns; or, where they differ in case, set spark.sql.caseSensitive: true"
    if "TIMESTAMP(NANOS" in text:
        return "--set spark.sql.legacy.parquet.nanosAsLong=true, or write that column in microseconds"
    if is_about_types(error):
        return (
            "write that column as another type, or name the others in a table for input.table; where this "
            "program can read the files too, it leaves such a column out by itself"
        )
    return "check input.path or input.table, and that Spark can read all columns of the table"


def _sql_state(error: Exception) -> str:
    try:
        return error.getSqlState() or ""  # type: ignore[attr-defined]
    except Exception:
        return ""  # not an error of Spark


def _cause(text: str) -> str:
    """The innermost cause in a stack trace of Java ("Caused by"), Py4J or Python; empty where it has none."""
    causes = re.findall(
        # Connect gives the class of Java's error alone on a line: that is no cause.
        r"^(?:(?:Caused by)?: (?P<java>.+)|(?P<python>(?!org\.|java\.)[\w.]*(?:Error|Exception)(?:: .*)?))$",
        text,
        flags=re.MULTILINE,
    )
    return "".join(causes[-1])[:500] if causes else ""
