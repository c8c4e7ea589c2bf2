"""Columns of the input, in forms that workers and Parquet hold.

Imports `columns` and `compat`; pyspark inside functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dbp.columns import find_type
from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array
from spark_dbp.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType


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
        ARRAY<FLOAT>, ARRAY<DOUBLE>, ARRAY<BINARY> (half floats) or BINARY.

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
        data_type.elementType, T.FloatType | T.DoubleType | T.BinaryType
    )
    if is_array or isinstance(data_type, T.BinaryType):
        return column(name)
    if isinstance(data_type, T.IntegerType):
        raise InputError(
            f"{setting}: column {name!r} is INT, which Spark takes also a column for that is null in all "
            "rows of the first file",
            mend="write that file with the type of the others, leave it out, or name another column",
        )
    raise InputError(
        f"{setting}: column {name!r} is {data_type.simpleString().upper()}",
        mend="embeddings are ARRAY<FLOAT>, ARRAY<DOUBLE>, BINARY (float32, little endian) or pyspark.ml "
        "vectors; cast the column in a view",
    )


def to_plain_column(frame: DataFrame, name: str) -> Column:
    """The column of exactly this name in types that Parquet and Arrow hold; equal and ordered as before.

    Vectors of ``pyspark.ml`` become arrays, and intervals of years and months become months, also inside
    structs and arrays. Other columns stay as they are.
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
    if isinstance(data_type, T.ArrayType):
        return F.transform(value, lambda item: _to_plain(item, data_type.elementType))
    if isinstance(data_type, T.StructType):
        fields = [_to_plain(value[f.name], f.dataType).alias(f.name) for f in data_type.fields]
        return F.when(value.isNotNull(), F.struct(*fields))
    return F.extract(F.lit("YEAR"), value) * 12 + F.extract(F.lit("MONTH"), value)


# By name, for not every version of Spark has all of these types.
_CONVERTED = {"VectorUDT", "NullType", "YearMonthIntervalType"}
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
    return type(data_type).__name__ in names
