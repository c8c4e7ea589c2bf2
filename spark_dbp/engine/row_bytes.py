"""How many bytes rows take in memory, as an expression that Spark adds up in a pass it makes anyway.

Imports `compat`; pyspark inside functions.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame
    from pyspark.sql.types import DataType

# Bytes of a value by its type's name; of an entry of a map, and of other types.
_WIDTHS = {"byte": 1, "boolean": 1, "short": 2, "integer": 4, "float": 4, "date": 4, "void": 0}
_ENTRY, _OTHER = 64, 8


def count_row_bytes(frame: DataFrame) -> Column:
    """About how many bytes the values of each row of `frame` take as Arrow: BIGINT.

    Parameters
    ----------
    frame : DataFrame
        Its columns have different names.

    Returns
    -------
    Column
        Strings, bytes and arrays count as long as they are; other values by their type.
    """
    from pyspark.sql import functions as F

    sizes = [
        _measure(ml_vector_to_array(field.name), _doubles())
        if is_ml_vector(field.dataType)
        else _measure(column(field.name), field.dataType)
        for field in frame.schema.fields
    ]
    return reduce(add, sizes, F.lit(0)).cast("bigint")


def _doubles() -> DataType:
    from pyspark.sql import types as T

    return T.ArrayType(T.DoubleType())


def _measure(value: Column, data_type: DataType) -> Column:
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    if isinstance(data_type, T.StringType | T.BinaryType):
        size = F.octet_length(value)
    elif isinstance(data_type, T.ArrayType):
        item = data_type.elementType
        if isinstance(item, T.StringType | T.BinaryType | T.ArrayType | T.StructType | T.MapType):
            size = F.aggregate(value, F.lit(0), lambda total, one: total + _measure(one, item))
        else:
            size = F.size(value) * _width(item)
    elif isinstance(data_type, T.StructType):
        size = reduce(add, [_measure(value[f.name], f.dataType) for f in data_type.fields], F.lit(0))
    elif isinstance(data_type, T.MapType):
        size = F.size(value) * _ENTRY
    else:
        return F.lit(_width(data_type))
    return F.greatest(F.coalesce(size, F.lit(0)), F.lit(0))  # `size` of a null may be -1


def _width(data_type: DataType) -> int:
    return _WIDTHS.get(data_type.typeName(), _OTHER)
