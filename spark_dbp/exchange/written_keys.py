"""The keys that are written of rows, as text, as whole numbers, or as they are.

Imports `columns`, `compat`, `expressions`, `key_text` and `errors`; pyspark inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spark_dbp.columns import KEY, describe_type
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.expressions import check_expression
from spark_dbp.errors import InputError
from spark_dbp.loaders.key_text import find_key_text, write_key_texts

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

WRITTEN = "written"


def make_value(rows: DataFrame, expression: str | None, option: str) -> tuple[Column, Any]:
    """The value of an expression on the columns of `rows`, and its type; without one, the key.

    Parameters
    ----------
    rows : DataFrame
    expression : str or None
    option : str
        What gives it, for messages: ``--key``.

    Raises
    ------
    ConfigError
        When it is no expression with one value a row, always the same.
    """
    from pyspark.sql import functions as F

    if expression is None:
        return F.col(KEY), rows.schema[KEY].dataType
    check_expression(rows, expression, option)
    value = F.expr(f"(\n{expression}\n)")
    return value, rows.select(value.alias(WRITTEN)).schema[WRITTEN].dataType


def write_texts(rows: DataFrame, key: str | None, form: str, **others: Column) -> DataFrame:
    """The keys as bytes of text, in a column ``written``, beside other columns.

    Text is itself, and so are the bytes of BINARY. Keys of other types have the text that the trie of the
    run stores.

    Raises
    ------
    InputError
        When keys of this type have no text.
    """
    from pyspark.sql import types as T

    value, kind = make_value(rows, key, "--key")
    rest = [other.alias(name) for name, other in others.items()]
    if isinstance(kind, T.StringType | T.BinaryType):
        return rows.select(value.cast("binary").alias(WRITTEN), *rest)
    if isinstance(kind, T.IntegralType | T.BooleanType):
        return rows.select(value.cast("string").cast("binary").alias(WRITTEN), *rest)
    name = kind.simpleString()
    if find_key_text(name) is None:
        raise InputError(
            f"--to {form}: keys of type {describe_type(kind)} have no text",
            mend="give --key a SQL expression that is text, such as \"to_json(key)\"",
        )  # fmt: skip
    given = rows.select(value.alias(WRITTEN), *rest)
    fields = [T.StructField(WRITTEN, T.BinaryType()), *given.schema.fields[1:]]

    def to_texts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            keys = batch.column(0)
            texts = write_key_texts(keys.drop_null(), name).to_pylist()
            if keys.null_count:
                found = iter(texts)
                texts = [next(found) if is_there else None for is_there in keys.is_valid().to_pylist()]
            columns = [pa.array(texts, pa.binary()), *batch.columns[1:]]
            yield pa.RecordBatch.from_arrays(columns, batch.schema.names)

    return map_in_arrow(given, to_texts, T.StructType(fields))


def write_numbers(rows: DataFrame, key: str | None, form: str) -> DataFrame:
    """The keys as BIGINT, in a column ``written``.

    Raises
    ------
    InputError
        When they are no whole numbers.
    """
    value, kind = make_value(rows, key, "--key")
    refuse_other_than_whole(kind, form, "--key" if key is not None else "")
    return rows.select(value.cast("bigint").alias(WRITTEN))


def refuse_other_than_whole(kind: Any, form: str, option: str) -> None:
    """Refuse a type that is not one of whole numbers.

    Raises
    ------
    InputError
    """
    from pyspark.sql import types as T

    if not isinstance(kind, T.IntegralType):
        what = f"what {option} gives" if option else "keys"
        raise InputError(
            f"--to {form} takes whole numbers; {what} is of type {describe_type(kind)}"
            if option
            else f"--to {form} takes whole numbers; the {what} of this run are of type {describe_type(kind)}",
            mend=f'give {option or "--key"} a SQL expression that is one, such as "cast(key AS BIGINT)"',
        )


def write_values(rows: DataFrame, key: str | None, form: str) -> tuple[Column, Any]:
    """The keys as they are, and their type.

    Raises
    ------
    InputError
        When pyarrow and Spark do not write values of this type alike.
    """
    from spark_dbp.engine.arrow import reads_alike

    value, kind = make_value(rows, key, "--key")
    if not reads_alike(kind) and not kind.simpleString().startswith("timestamp"):
        raise InputError(
            f"--to {form} takes no keys of type {describe_type(kind)}",
            mend="give --key a SQL expression of another type, such as \"cast(key AS STRING)\"",
        )  # fmt: skip
    return value, kind
