"""SQL of the configuration: evaluate once what depends on the moment, refuse what has no fixed value.

Imports `columns`, `errors` and `spark_errors`; pyspark inside functions.

A run must give the same answer when a task is repeated. So ``current_date()`` and the like are replaced by
their values when the run starts, and what differs from one evaluation to the next (``rand()``, ``uuid()``) is
refused.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from itertools import pairwise
from typing import TYPE_CHECKING

from spark_dbp.engine.spark_errors import read_condition, read_first_line
from spark_dbp.errors import ConfigError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

# Functions whose value depends on when, where or by whom they are called, and how Spark says that value as a
# SQL literal which means the same in every session.
_AS_DATE = "concat('DATE ''', cast({0} as string), '''')"
_AS_TIMESTAMP = "concat('timestamp_micros(', unix_micros({0}), 'L)')"
_AS_LOCAL_TIMESTAMP = "concat('TIMESTAMP_NTZ ''', cast({0} as string), '''')"
_AS_TIME = "concat('TIME ''', cast({0} as string), '''')"
_AS_TEXT = r"concat('''', replace(replace({0}, '\\', '\\\\'), '''', '\\\''), '''')"
_AS_NUMBER = "concat(cast({0} as string), 'L')"
_FUNCTIONS = {
    "current_date": _AS_DATE,
    "curdate": _AS_DATE,
    "current_timestamp": _AS_TIMESTAMP,
    "now": _AS_TIMESTAMP,
    "localtimestamp": _AS_LOCAL_TIMESTAMP,
    "current_time": _AS_TIME,
    "unix_timestamp": _AS_NUMBER,
    "current_timezone": _AS_TEXT,
    "current_user": _AS_TEXT,
    "session_user": _AS_TEXT,
    "user": _AS_TEXT,
    "current_catalog": _AS_TEXT,
    "current_database": _AS_TEXT,
    "current_schema": _AS_TEXT,
}
# These are functions without parentheses too, unless there is a column of that name.
_BARE = {"current_date", "current_timestamp", "current_time", "current_user", "session_user", "user"}
# DATE 'today' and the like.
_SPECIAL = {
    "date": _AS_DATE,
    "timestamp": _AS_TIMESTAMP,
    "timestamp_ltz": _AS_TIMESTAMP,
    "timestamp_ntz": _AS_LOCAL_TIMESTAMP,
}
_SPECIAL_VALUE = re.compile(r"\s*(now|today|tomorrow|yesterday)\b", re.IGNORECASE)

# The column of a file source that says of which file a row is.
_FILE_COLUMNS = "_metadata"
_TOKEN = re.compile(
    r"""(?P<space>\s+|--[^\n]*|/\*.*?\*/)
      | (?P<text>[rR]'[^']*'|[rR]"[^"]*"|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*")
      | (?P<quoted>`(?:[^`]|``)*`)
      | (?P<word>[^\W\d]\w*)
      | (?P<other>.)""",
    re.VERBOSE | re.DOTALL,
)


class _Call:
    """A place in SQL whose value is fixed once: its span, its own SQL, and how to say its value."""

    def __init__(self, start: int, stop: int, sql: str, form: str, bare: str = "") -> None:
        self.start, self.stop, self.sql, self.form, self.bare = start, stop, sql, form, bare


def find_calls(sql: str) -> list[str]:
    """What in an expression depends on the moment, on the session or on its user, in order.

    Parameters
    ----------
    sql : str

    Returns
    -------
    list of str

    Examples
    --------
    >>> find_calls("day > current_date() - 30 AND name <> 'now()' AND a.user = DATE 'today'")
    ['current_date()', "DATE 'today'"]
    """
    return [call.sql for call in _find_calls(sql)]


def find_bare_names(sql: str) -> list[str]:
    """Names in an expression that are functions without parentheses, unless they are columns.

    Examples
    --------
    >>> find_bare_names("current_date > day AND user() = 'me'")
    ['current_date']
    """
    return [call.bare for call in _find_calls(sql) if call.bare]


def find_names(sql: str) -> list[str]:
    """Names in an expression that may be columns of the input.

    Examples
    --------
    >>> find_names("concat(shard, '/', `file name`)")
    ['concat', 'shard', 'file name']
    """
    names = [text for kind, text, _, _ in _tokenize(sql) if kind in ("word", "quoted")]
    return [name[1:-1].replace("``", "`") if name.startswith("`") else name for name in names]


def has_subquery(sql: str) -> bool:
    """Whether an expression reads other tables.

    Examples
    --------
    >>> has_subquery("key IN (SELECT key FROM allowed)"), has_subquery("word = 'select'")
    (True, False)
    """
    words = [text for kind, text, _, _ in _tokenize(sql) if kind in ("word", "other")]
    return any(a == "(" and b.lower() in ("select", "with", "table") for a, b in pairwise(words))


def _tokenize(sql: str) -> list[tuple[str, str, int, int]]:
    found = ((m.lastgroup or "", m[0], m.start(), m.end()) for m in _TOKEN.finditer(sql))
    return [token for token in found if token[0] != "space"]


def _find_calls(sql: str) -> list[_Call]:
    tokens = [*_tokenize(sql), ("", "", len(sql), len(sql)), ("", "", len(sql), len(sql))]
    calls = []
    before = ""
    for number, (kind, text, start, stop) in enumerate(tokens[:-2]):
        (_, following, _, _), (_, second, _, end) = tokens[number + 1], tokens[number + 2]
        name = text.lower().strip("`")
        if before != ".":  # a field of a struct may have any name
            if kind in ("word", "quoted") and name in _FUNCTIONS and (following, second) == ("(", ")"):
                calls.append(_Call(start, end, f"{name}()", _FUNCTIONS[name]))
            elif kind != "word":
                pass
            elif name in _BARE and following not in ("(", "."):
                calls.append(_Call(start, stop, f"{name}()", _FUNCTIONS[name], bare=name))
            elif name in _SPECIAL and tokens[number + 1][0] == "text" and _SPECIAL_VALUE.match(following[1:]):
                span = tokens[number + 1]
                calls.append(_Call(start, span[3], f"{text} {following}", _SPECIAL[name]))
        before = text
    return calls


def evaluate_calls(spark: SparkSession, texts: Iterable[str]) -> dict[str, str]:
    """Replace what depends on the moment in SQL expressions by its value now, the same in all of them.

    Parameters
    ----------
    spark : SparkSession
    texts : iterable of str
        Expressions.

    Returns
    -------
    dict of str to str
        What each expression becomes. Those that depend on nothing stay as they are.
    """
    calls = {text: _find_calls(text) for text in texts}
    wanted = list(dict.fromkeys((call.sql, call.form) for found in calls.values() for call in found))
    if not wanted:
        return {text: text for text in calls}
    try:  # in one query, so that all see the same instant
        row = spark.sql("SELECT " + ", ".join(form.format(sql) for sql, form in wanted)).collect()[0]
    except Exception as error:
        if not read_condition(error):
            raise
        return {
            text: text for text in calls
        }  # this Spark lacks one of them: the check of the SQL will say so
    values = dict(zip(wanted, row, strict=True))
    for (sql, _), value in values.items():
        log.info("%s is taken as %s throughout this run", sql, value)
    return {text: _replace(text, found, values) for text, found in calls.items()}


def _replace(text: str, calls: list[_Call], values: dict[tuple[str, str], str]) -> str:
    for call in reversed(calls):
        text = text[: call.start] + values[call.sql, call.form] + text[call.stop :]
    return text


def check_expression(frame: DataFrame, sql: str, setting: str) -> None:
    """Refuse SQL that is not an expression on the columns of `frame` with one value a row, always the same.

    Parameters
    ----------
    frame : DataFrame
    sql : str
    setting : str
        Key of the configuration that has it, for messages.

    Raises
    ------
    ConfigError
    """
    from pyspark.sql import functions as F

    if has_subquery(sql):
        raise ConfigError(
            f"{setting} {sql!r} reads another table, and a run cannot notice when that one changes",
            mend="join the tables in a view, and give that as input.table",
        )
    try:
        # In the condition of a join, Spark takes only what has one value a row, always the same: nothing
        # random, no aggregates or windows, nothing that makes several rows.
        other = frame.sparkSession.range(1).select(F.col("id").alias("spark_dbp_other"))
        is_null = F.expr(f"(\n{sql}\n) IS NULL")
        _ = _show_file_columns(frame, sql).join(other, is_null).schema  # Connect checks when asked for it
    except Exception as error:
        condition = read_condition(error)
        if not condition:
            raise
        if condition == "INVALID_NON_DETERMINISTIC_EXPRESSIONS":
            raise ConfigError(
                f"{setting} {sql!r} can have another value each time that it is evaluated",
                mend="use no rand(), uuid() or the like: xxhash64(key) is as good as random; instead of "
                "input_file_name() use _metadata.file_path",
            ) from None
        if condition.startswith(("UNSUPPORTED_EXPR_FOR_OPERATOR", "UNSUPPORTED_GENERATOR")):
            raise ConfigError(
                f"{setting} {sql!r} does not have one value for each row",
                mend="use no aggregates, window functions or explode(); compute them in a view",
            ) from None
        raise refuse_expression(error, sql, setting, frame.columns) from error


def _show_file_columns(frame: DataFrame, sql: str) -> DataFrame:
    """`frame` with `_metadata` shown where SQL names it: Spark 3.5 fails on a hidden column in a join."""
    is_hidden = _FILE_COLUMNS not in (name.lower() for name in frame.columns)
    is_named = _FILE_COLUMNS in (name.lower() for name in find_names(sql))
    return frame.select("*", _FILE_COLUMNS) if is_hidden and is_named else frame


def refuse_ambiguous_names(sql: Iterable[tuple[str, str]], columns: list[str]) -> None:
    """Refuse names that are functions without parentheses where the input has a column of that name.

    Parameters
    ----------
    sql : iterable of (str, str)
        Keys of the configuration and their SQL, before `evaluate_calls`.
    columns : list of str
        Columns of the input.

    Raises
    ------
    ConfigError
    """
    known = {name.lower() for name in columns}
    for setting, text in sql:
        for name in find_bare_names(text):
            if name in known:
                raise ConfigError(
                    f"{setting} {text!r}: {name} is a column of the input, and a function of Spark",
                    mend=f"write `{name}` in backquotes for the column, or {name}() for the function",
                )


def refuse_expression(error: Exception, sql: str, setting: str, columns: list[str]) -> ConfigError:
    """The error for SQL that Spark does not take."""
    return ConfigError(
        f"{setting} {sql!r}: {read_first_line(error)}",
        mend=f"use SQL on the columns {', '.join(columns[:20])}",
    )
