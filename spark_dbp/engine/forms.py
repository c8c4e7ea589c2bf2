"""Columns of the input, in forms that workers and Parquet hold.

Imports `columns`, `compat`, `errors` and `expressions`; pyspark inside functions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import describe_type, find_path, find_type, quote_name
from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array, read_collation
from spark_dbp.engine.expressions import check_expression
from spark_dbp.errors import ConfigError, InputError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

NOT_ONE_BY_D = "embedding of several lists, or of none, where 1 x d is read"

log = logging.getLogger("spark_dbp")

# Spark's name in a column's metadata for the CHAR or VARCHAR that a table declares.
_DECLARED = "__CHAR_VARCHAR_TYPE_STRING"


def compute_columns(
    frame: DataFrame, names: Iterable[str], expressions: Iterable[tuple[str, str]]
) -> DataFrame:
    """Add the columns that the configuration computes, under the names by which it speaks of them.

    Parameters
    ----------
    frame : DataFrame
    names : iterable of str
        Columns that the run reads. One like ``features.clip`` may be a field of a struct.
    expressions : iterable of (str, str)
        Keys of the configuration, and their SQL. A column is named as its SQL.

    Returns
    -------
    DataFrame
        With all columns of `frame`.

    Raises
    ------
    ConfigError
        When an expression is not SQL on these columns, or has no fixed value for each row.
    """
    from pyspark.sql import functions as F

    added = {}
    in_lower_case = {name.lower(): name for name in frame.columns}
    for setting, sql in expressions:
        if sql in frame.columns and sql.isidentifier():
            continue  # the column itself
        if sql.lower() in in_lower_case:
            raise ConfigError(
                f"{setting} {{sql: {sql!r}}} has the name of the column {in_lower_case[sql.lower()]!r}",
                mend=f"name the column itself: {setting}: {in_lower_case[sql.lower()]!r}",
            )
        check_expression(frame, sql, setting)
        added[sql] = F.expr(sql)
    for name in names:
        if name not in frame.columns and name not in added:
            path = find_path(frame, name)
            if path is not None:
                added[name] = F.col(path)
    return frame.select("*", *[value.alias(name) for name, value in added.items()]) if added else frame


def to_embedding_column(frame: DataFrame, name: str, setting: str) -> tuple[Column, Column]:
    """Column `name` in a type that `kernels.vectors` reads, and what is wrong with a row.

    Parameters
    ----------
    frame : DataFrame
    name : str
    setting : str
        Setting that names the column, for messages: ``input.embedding``.

    Returns
    -------
    embedding : Column
        ARRAY<FLOAT>, ARRAY<DOUBLE>, ARRAY<BINARY> (half floats) or BINARY. Integers and decimals become
        DOUBLE. Of arrays of one array (1 x d), the inner one; of arrays of structs of one field, that field.
    problem : Column
        STRING; null where nothing is wrong.

    Raises
    ------
    InputError
        When there is no such column, or its type is not supported.
    """
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    data_type = check_embedding_type(frame, name, setting)
    value, problem = column(name), F.lit(None).cast("string")
    if is_ml_vector(data_type):
        return ml_vector_to_array(name), problem
    if isinstance(data_type, T.BinaryType):
        return value, problem
    while isinstance(data_type, T.ArrayType):
        inner = data_type.elementType
        if isinstance(inner, T.FloatType | T.DoubleType | T.BinaryType):
            return value, problem
        if isinstance(inner, T.IntegralType | T.DecimalType):
            return value.cast("array<double>"), problem
        if isinstance(inner, T.ArrayType):
            problem = F.when(value.isNotNull() & (F.size(value) != 1), F.lit(NOT_ONE_BY_D)).otherwise(problem)
            value = F.when(F.size(value) == 1, F.element_at(value, 1))
            data_type = inner
        elif isinstance(inner, T.StructType) and len(inner.fields) == 1:
            value = value.getField(inner.fields[0].name)
            data_type = T.ArrayType(inner.fields[0].dataType)
        else:
            break
    raise AssertionError(f"{describe_type(data_type)} is none of `check_embedding_type`")


def check_embedding_type(frame: DataFrame, name: str, setting: str) -> DataType:
    """The type of a column of embeddings. Of `frame` only the schema is asked.

    Raises
    ------
    InputError
        When there is no such column, or its type is not supported.
    """
    from pyspark.sql import types as T

    data_type = given_type = find_type(frame, name, setting)
    if is_ml_vector(data_type) or isinstance(data_type, T.BinaryType):
        return data_type
    while isinstance(data_type, T.ArrayType):
        inner = data_type.elementType
        if isinstance(inner, T.FloatType | T.DoubleType | T.BinaryType | T.IntegralType | T.DecimalType):
            return given_type
        if isinstance(inner, T.StructType) and len(inner.fields) == 1:
            inner = T.ArrayType(inner.fields[0].dataType)
        data_type = inner
    raise InputError(
        f"{setting}: column {name!r} is {describe_type(given_type)}",
        mend="embeddings are arrays of numbers, BINARY (float32, little endian) or pyspark.ml vectors; "
        + _name_mend(setting, name, given_type),
    )


def _name_mend(setting: str, name: str, data_type: DataType) -> str:
    """What to write in the configuration for a column of another type."""
    from pyspark.sql import types as T

    quoted = quote_name(name)
    if isinstance(data_type, T.StringType):
        return f"for JSON text set {setting}: {{sql: \"from_json({quoted}, 'array<float>')\"}}"
    fields = [
        f for f in getattr(data_type, "fields", []) if isinstance(f.dataType, T.ArrayType | T.BinaryType)
    ]
    if fields:
        return f"name a field of it, such as {setting}: {name}.{fields[0].name}"
    if isinstance(data_type, T.IntegerType):
        return (
            "Spark also takes a column for INT that is null in all rows of the first file: write that file "
            f"with the type of the others; or {setting}: {{sql: 'array({quoted}, ...)'}} makes one of several"
        )
    if isinstance(data_type, T.NumericType):
        return (
            f"one column for each dimension becomes an array with {setting}: {{sql: 'array({quoted}, ...)'}}"
        )
    return f"or give SQL that makes one of them: {setting}: {{sql: ...}}"


def to_key_column(frame: DataFrame, name: str) -> Column:
    """The column of keys; text as plain STRING, which Spark compares by its bytes, whatever its type.

    Raises
    ------
    InputError
        When there is no such column.
    """
    from pyspark.sql import types as T

    data_type = find_type(frame, name, "input.key")
    is_text = isinstance(data_type, T.StringType | T.CharType | T.VarcharType)
    return column(name).cast("string") if is_text else column(name)


def log_how_text_compares(frame: DataFrame, key: str, carried: Sequence[str]) -> None:
    """Say in the log where values of the input compare otherwise than its declared types would have it."""
    for name in dict.fromkeys([key, *carried]):
        collations = _find_collations(frame.schema[name].dataType)
        if collations:
            log.info(
                "  column %r has the collation %s, but is compared by value: 'A' and 'a' are two values",
                name,
                ", ".join(sorted(collations)),
            )
    field = frame.schema[key]
    declared = (field.metadata or {}).get(_DECLARED, field.dataType.simpleString())
    if declared.startswith("char("):
        log.info(
            "  input.key: column %r is %s, so Spark pads its keys with blanks: look them up with the blanks, "
            "or set trie.key: rtrim(key)",
            key,
            declared.upper(),
        )


def to_plain_column(frame: DataFrame, name: str) -> Column:
    """The column of exactly this name in types that Parquet and Arrow hold, which Spark compares by value.

    Vectors of ``pyspark.ml`` become arrays, intervals of years and months become months, and text loses its
    collation, also inside structs and arrays. Other columns stay as they are.
    """
    return _to_plain(column(name), frame.schema[name].dataType)


def _to_plain(value: Column, data_type: DataType) -> Column:
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if not _holds(data_type, _CONVERTED):
        return value
    if is_ml_vector(data_type):
        from pyspark.ml.functions import vector_to_array

        return vector_to_array(value)
    if isinstance(data_type, T.NullType):
        return F.lit(None).cast("string")
    if isinstance(data_type, T.StringType):
        return value.cast("string")
    if isinstance(data_type, T.ArrayType):
        return F.transform(value, lambda item: _to_plain(item, data_type.elementType))
    if isinstance(data_type, T.StructType):
        fields = [_to_plain(value[f.name], f.dataType).alias(f.name) for f in data_type.fields]
        return F.when(value.isNotNull(), F.struct(*fields))
    return F.extract(F.lit("YEAR"), value) * 12 + F.extract(F.lit("MONTH"), value)


# By name, for not every version of Spark has all of these types.
_COLLATED = "text with a collation"
_CONVERTED = {"VectorUDT", "NullType", "YearMonthIntervalType", _COLLATED}
_WITHOUT_ORDER = {"MapType", "VariantType", "CalendarIntervalType"}


def can_be_compared(data_type: DataType) -> bool:
    """Whether Spark compares and orders values of this type, inside structs and arrays too."""
    return not _holds(data_type, _WITHOUT_ORDER)


def _holds(data_type: DataType, names: set[str]) -> bool:
    from pyspark.sql import types as T

    if isinstance(data_type, T.ArrayType):
        return _holds(data_type.elementType, names)
    if isinstance(data_type, T.StructType):
        return any(_holds(field.dataType, names) for field in data_type.fields)
    return (_COLLATED if read_collation(data_type) else type(data_type).__name__) in names


def _find_collations(data_type: Any) -> set[str]:
    from pyspark.sql import types as T

    if isinstance(data_type, T.ArrayType):
        return _find_collations(data_type.elementType)
    if isinstance(data_type, T.StructType):
        return {name for field in data_type.fields for name in _find_collations(field.dataType)}
    collation = read_collation(data_type)
    return {collation} if collation else set()
