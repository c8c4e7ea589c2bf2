"""Columns of the input, in forms that workers and Parquet hold.

Imports `columns` and `compat`; pyspark inside functions.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import find_type
from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array, read_collation
from spark_dbp.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

log = logging.getLogger("spark_dbp")

# Spark's name in a column's metadata for the CHAR or VARCHAR that a table declares.
_DECLARED = "__CHAR_VARCHAR_TYPE_STRING"


def to_embedding_column(frame: DataFrame, name: str, setting: str) -> Column:
    """Column `name` in a type that `kernels.vectors` reads.

    Parameters
    ----------
    frame : DataFrame
    name : str
    setting : str
        Setting that names the column, for messages: ``input.embedding``.

    Returns
    -------
    Column
        ARRAY<FLOAT>, ARRAY<DOUBLE> or BINARY.

    Raises
    ------
    InputError
        When there is no such column, or its type is not supported.
    """
    from pyspark.sql import types as T

    data_type = find_type(frame, name, setting)
    if is_ml_vector(data_type):
        return ml_vector_to_array(name)
    is_array = isinstance(data_type, T.ArrayType) and isinstance(
        data_type.elementType, T.FloatType | T.DoubleType
    )
    if is_array or isinstance(data_type, T.BinaryType):
        return column(name)
    raise InputError(
        f"{setting}: column {name!r} is {data_type.simpleString().upper()}",
        mend="embeddings are ARRAY<FLOAT>, ARRAY<DOUBLE>, BINARY (float32, little endian) or pyspark.ml "
        "vectors; cast the column in a view",
    )


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
