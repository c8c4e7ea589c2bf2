"""Accept a column of embeddings in any supported type. Imports `columns`, `compat`; pyspark in functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spark_dbp.columns import find_type
from spark_dbp.engine.compat import column, is_ml_vector, ml_vector_to_array
from spark_dbp.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame


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
