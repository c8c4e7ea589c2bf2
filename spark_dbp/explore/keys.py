"""Keys that people name: read by the type of the run's key, written so that they are the same again.

Imports numpy's types by `loaders.key_text`, `compat` and `errors`; pyspark and pyarrow inside functions.

On the driver a key is a **token**: bytes that are the same for the same key, and from which Spark makes the
key again in its own type (`make_key_frame`). Text that is not UTF-8 and times of any zone survive that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY, describe_type
from spark_dbp.engine.compat import collect_arrow, collect_rows, create_frame
from spark_dbp.errors import ConfigError
from spark_dbp.loaders.key_text import find_key_text

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType

NUMBER, TOKEN, SHOWN = "number", "token", "shown"

_CARRIED = "carried"
_BITS = {"tinyint": 7, "smallint": 15, "int": 31, "bigint": 63}
_FLOATS = ("float", "double")
_TIMES = ("timestamp", "timestamp_ntz")
_EPOCH = datetime(1970, 1, 1)


def name_key_type(data_type: DataType) -> str:
    """Name of a key's type without its arguments: ``decimal``, ``interval``, ``string``."""
    return re.split(r"[(\s]", data_type.simpleString())[0]


def read_tokens(spark: SparkSession, keys: Sequence[Any], data_type: DataType) -> list[tuple[bytes, str]]:
    """Token, and the text for people, of each key that somebody names.

    Parameters
    ----------
    spark : SparkSession
        Whose time zone holds for times that name none.
    keys : sequence
        Texts, as on a command line; or values of Python, as `KeepTrie` takes them. BINARY is hexadecimal in
        a text; times are as SQL writes them, or microseconds since 1970.
    data_type : DataType
        Of the run's key.

    Returns
    -------
    list of (bytes, str)

    Raises
    ------
    ConfigError
        When a key cannot be one of this type.
    """
    from pyspark.sql import functions as F

    texts = [_write_text(key, data_type) for key in keys]
    carried = [_parse(text, data_type) for text in texts]
    frame = _make_frame(spark, carried, data_type).select(
        NUMBER, to_token(KEY, data_type).alias(TOKEN), F.col(KEY).isNull().alias("is_none")
    )
    found = {row[NUMBER]: row for row in collect_arrow(frame).to_pylist()}
    for number, text in enumerate(texts):
        if found[number]["is_none"]:
            raise _refuse(text, data_type)
    tokens = [found[number][TOKEN] for number in range(len(texts))]
    shown = show_tokens(spark, tokens, data_type)
    return [(token, shown[token]) for token in tokens]


def make_key_frame(
    spark: SparkSession,
    tokens: Sequence[bytes],
    data_type: DataType,
    more: Mapping[str, pa.Array] | None = None,
) -> DataFrame:
    """Keys as a small DataFrame: ``number`` INT (place in `tokens`), ``key``, and the columns of `more`."""
    return _make_frame(spark, [_take_token(token, data_type) for token in tokens], data_type, more or {})


def show_tokens(spark: SparkSession, tokens: Iterable[bytes], data_type: DataType) -> dict[bytes, str]:
    """The text for people of each token."""
    tokens = list(dict.fromkeys(tokens))
    kind = name_key_type(data_type)
    if kind == "binary":
        return {token: token.hex() for token in tokens}
    if kind not in _TIMES:
        return {token: token.decode("utf-8", "replace") for token in tokens}
    from pyspark.sql import functions as F

    frame = make_key_frame(spark, tokens, data_type).select(NUMBER, F.col(KEY).cast("string").alias(SHOWN))
    return {tokens[number]: text for number, text in collect_rows(frame)}


def to_token(name: str, data_type: DataType) -> Column:
    """The tokens of a column of keys, BINARY."""
    from pyspark.sql import functions as F

    value, kind = F.col(name), name_key_type(data_type)
    if kind == "timestamp":  # as text it would not be told from the same hour of the other side of a change
        value = F.unix_micros(value)
    return value.cast("string").cast("binary") if kind != "binary" else value


def to_text(name: str, data_type: DataType) -> Column:
    """The texts for people of a column of keys, STRING."""
    from pyspark.sql import functions as F

    return F.lower(F.hex(name)) if name_key_type(data_type) == "binary" else F.col(name).cast("string")


def to_json_value(shown: str, data_type: DataType) -> Any:
    """A key for JSON: a number or a boolean where it is one, else its text.

    Examples
    --------
    >>> from pyspark.sql.types import LongType, StringType
    >>> to_json_value("7", LongType()), to_json_value("7", StringType())
    (7, '7')
    """
    kind = name_key_type(data_type)
    if kind in _BITS:
        return int(shown)
    if kind == "boolean":
        return shown == "true"
    if kind in _FLOATS:
        number = float(shown)
        return number if abs(number) < float("inf") else shown
    return shown


def _write_text(key: Any, data_type: DataType) -> str:
    """The text of a value of Python, as a trie holds it; a text as it is."""
    if isinstance(key, str):
        return key
    form = find_key_text(data_type.simpleString())
    try:
        text = form.encode(key) if form is not None else b""
    except TypeError:
        raise _refuse(key, data_type) from None
    if not text and name_key_type(data_type) not in ("string", "binary"):  # no value of that type
        raise _refuse(key, data_type)
    return text.decode("utf-8", "surrogateescape")


def _parse(text: str, data_type: DataType) -> Any:
    """What is carried to Spark of a text that names a key."""
    kind, stripped = name_key_type(data_type), text.strip()
    try:
        if kind in ("string", "varchar", "char"):
            return text.encode("utf-8", "surrogateescape")
        if kind == "binary":
            digits = stripped[2:] if stripped[:2].lower() == "0x" else stripped
            return bytes.fromhex(digits.replace("-", "") if len(digits) == 36 else digits)
        if kind in _BITS and re.fullmatch(r"[+-]?\d+", stripped):
            number, limit = int(stripped), 2 ** _BITS[kind]
            return number if -limit <= number < limit else _fail(text)
        if kind == "boolean" and stripped.lower() in ("true", "false"):
            return stripped.lower() == "true"
        if kind in _FLOATS:
            return float(stripped)
        if kind == "decimal":
            return _parse_decimal(stripped, data_type)
        if kind in ("timestamp_ntz", "interval") and re.fullmatch(r"-?\d+", stripped):  # microseconds
            return _write_time(int(stripped), kind)
        if kind in (*_TIMES, "interval", "date"):
            return stripped.encode()
        return _fail(text)
    except (ValueError, InvalidOperation, OverflowError, UnicodeEncodeError):
        raise _refuse(text, data_type) from None


def _fail(text: str) -> Any:
    raise ValueError(text)


def _parse_decimal(text: str, data_type: Any) -> bytes:
    number, scale = Decimal(text), data_type.scale
    if not number.is_finite() or number.adjusted() > 38:
        raise ValueError(text)
    exact = Decimal(f"{number:.{scale}f}")
    if exact != number or len(exact.as_tuple().digits) > max(data_type.precision, scale + 1):
        raise ValueError(text)
    return f"{exact:.{scale}f}".encode()


def _write_time(micros: int, kind: str) -> bytes:
    """A time that is given as microseconds, as SQL writes it."""
    if kind == "interval":
        days, rest = divmod(abs(micros), 86_400_000_000)
        seconds, fraction = divmod(rest, 1_000_000)
        hours, seconds = divmod(seconds, 3600)
        sign = "-" if micros < 0 else ""
        return f"{sign}{days} {hours:02d}:{seconds // 60:02d}:{seconds % 60:02d}.{fraction:06d}".encode()
    return (_EPOCH + timedelta(microseconds=micros)).isoformat().encode()


def _take_token(token: bytes, data_type: DataType) -> Any:
    """What is carried to Spark of a token."""
    kind = name_key_type(data_type)
    if kind in _BITS:
        return int(token)
    if kind == "timestamp":
        return token
    if kind == "boolean":
        return token == b"true"
    return float(token) if kind in _FLOATS else token


def _make_frame(
    spark: SparkSession,
    carried: Sequence[Any],
    data_type: DataType,
    more: Mapping[str, pa.Array] | None = None,
) -> DataFrame:
    """``number`` and ``key``, of what is carried to Spark; null where it is no key of this type."""
    import pyarrow as pa
    from pyspark.sql import functions as F

    kind = name_key_type(data_type)
    arrow_type = pa.int64() if kind in _BITS else pa.float64() if kind in _FLOATS else pa.binary()
    arrow_type = pa.bool_() if kind == "boolean" else arrow_type
    columns = {
        NUMBER: pa.array(range(len(carried)), pa.int32()),
        _CARRIED: pa.array(list(carried), arrow_type),
        **(more or {}),
    }
    frame = create_frame(spark, pa.table(columns))
    value = F.col(_CARRIED)
    if kind in ("decimal", "date", *_TIMES, "interval"):
        sql_type = "INTERVAL DAY TO SECOND" if kind == "interval" else data_type.simpleString()
        text = f"cast({_CARRIED} AS STRING)"
        value = F.expr(f"try_cast({text} AS {sql_type})")
        if kind == "timestamp":  # tokens are microseconds
            micros = F.expr(f"timestamp_micros(try_cast({text} AS BIGINT))")
            value = F.when(F.expr(f"{text} RLIKE '^-?[0-9]+$'"), micros).otherwise(value)
    return frame.select(NUMBER, value.cast(data_type).alias(KEY), *(more or {}))


def _refuse(key: Any, data_type: DataType) -> ConfigError:
    form = find_key_text(data_type.simpleString())
    kind = name_key_type(data_type)
    ways = "hexadecimal digits" if kind == "binary" else form.values if form is not None else ""
    if kind in (*_TIMES, "interval"):
        ways = "a text as SQL writes it, or microseconds (since 1970)"
    return ConfigError(
        f"{str(key)[:80]!r} cannot be a key of this run: its keys are {describe_type(data_type)}",
        mend=f"give {ways}",
    )
