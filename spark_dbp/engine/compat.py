"""Everything that depends on the version of Spark, or on whether the session is classic or Connect.

Imports `columns`; pyspark and pyarrow inside functions.
"""

from __future__ import annotations

import gc
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from inspect import signature
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from spark_dbp.columns import quote_name
from spark_dbp.engine.spark_errors import is_from_spark
from spark_dbp.errors import ConfigError

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession
    from pyspark.sql.types import StructType

# Largest array that travels with a plan.
_CLOSURE_BYTES = 4 << 20

BatchFunction = Callable[[Iterator["pa.RecordBatch"]], Iterator["pa.RecordBatch"]]

_CODECS = ("zstd", "snappy", "gzip", "lz4", "none")


def list_supported_java() -> tuple[int, ...]:
    """Versions of Java that the installed pyspark runs on."""
    import pyspark

    # The version of Arrow in Spark 3.5 needs a constructor that Java 21 no longer has.
    return (11, 17) if pyspark.__version__.startswith("3.") else (17, 21)


def column(name: str) -> Column:
    """The column of exactly this name, whatever characters it has."""
    from pyspark.sql import functions as F

    return F.col(quote_name(name))


def ml_vector_to_array(name: str) -> Column:
    """A ``pyspark.ml`` vector column as ARRAY<DOUBLE>."""
    from pyspark.ml.functions import vector_to_array

    return vector_to_array(column(name))


def is_ml_vector(data_type: Any) -> bool:
    """Whether a column's type is the vector type of ``pyspark.ml`` or ``pyspark.mllib``."""
    return type(data_type).__name__ == "VectorUDT"


def read_collation(data_type: Any) -> str | None:
    """Name of the collation by which Spark 4 compares a text column; None where it compares bytes."""
    collation = getattr(data_type, "collation", None)
    return None if collation == "UTF8_BINARY" else collation


def can_choose_partitions(frame: DataFrame) -> bool:
    """Whether rows can be sent to a partition by its number: Spark 4.1 and later."""
    return hasattr(frame, "repartitionById")


def send_to_partitions(frame: DataFrame, n_partitions: int, number: str) -> DataFrame:
    """Shuffle rows by the column `number`: to the partition of that number, or by its hash before Spark 4.1.

    Parameters
    ----------
    frame : DataFrame
    n_partitions : int
    number : str
        Name of a column of INT.

    Returns
    -------
    DataFrame
    """
    if can_choose_partitions(frame):
        return frame.repartitionById(n_partitions, number)
    return frame.repartition(n_partitions, number)


def map_in_arrow(frame: DataFrame, function: BatchFunction, schema: StructType | str) -> DataFrame:
    """``frame.mapInArrow(function, schema)``, with less cost for each task.

    Parameters
    ----------
    frame : DataFrame
    function : callable
        Takes an iterator of record batches with the columns of `frame`, returns one with those of `schema`.
    schema : StructType or str

    Returns
    -------
    DataFrame
    """

    def mapped(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        _freeze_imports()
        _be_quiet_when_given_up()
        return function(batches)

    return frame.mapInArrow(mapped, schema)


@cache
def _freeze_imports() -> None:
    """Exclude what a worker has imported from garbage collection. Done once in its life.

    Spark collects garbage after each task. With the imported modules that takes 20 ms, without them nothing.
    """
    gc.freeze()


@cache
def _be_quiet_when_given_up() -> None:
    """Keep Spark's daemon from printing a trace where the JVM no longer listens. Done once in a worker.

    When a task fails, Spark gives up those beside it. The error that counts is the first one, which is told.
    """
    print_exc = traceback.print_exc

    def print_others(*given: Any, **named: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            print_exc(*given, **named)

    traceback.print_exc = print_others


def collect_arrow(frame: DataFrame) -> pa.Table:
    """A small DataFrame as a pyarrow Table on the driver."""
    if hasattr(frame, "toArrow"):  # Spark 4.0 and later, classic and Connect
        return frame.toArrow()
    # Spark 3.5 has only `toPandas`, which loses types: structs become lists, integers with nulls become
    # floats. So the workers send their batches as bytes.
    import pyarrow as pa

    def to_bytes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema) as stream:
                stream.write_batch(batch)
            yield pa.RecordBatch.from_pydict({"stream": [sink.getvalue().to_pybytes()]})

    streams = [row.stream for row in map_in_arrow(frame, to_bytes, "stream BINARY").collect()]
    tables = [pa.ipc.open_stream(stream).read_all() for stream in streams]
    return pa.concat_tables(tables) if tables else to_arrow_schema(frame.schema).empty_table()


def create_frame(spark: SparkSession, table: pa.Table) -> DataFrame:
    """A small pyarrow Table as a DataFrame."""
    if hasattr(type(spark), "addTag") and not spark.version.startswith("3."):
        return spark.createDataFrame(table)
    columns = (column.to_pylist() for column in table.columns)
    return spark.createDataFrame(list(zip(*columns, strict=True)), from_arrow_schema(table.schema))


def collect_rows(frame: DataFrame) -> list[tuple[Any, ...]]:
    """The rows of a small DataFrame, to show them: bytes of text that are not UTF-8 become U+FFFD.

    A Connect client fails on such text.
    """
    from pyspark.sql import types as T

    texts = [isinstance(field.dataType, T.StringType) for field in frame.schema.fields]
    columns = [
        column(name).cast("binary").alias(name) if is_text else column(name)
        for name, is_text in zip(frame.columns, texts, strict=True)
    ]
    return [
        tuple(
            bytes(value).decode("utf-8", "replace") if is_text and value is not None else value
            for value, is_text in zip(row, texts, strict=True)
        )
        for row in frame.select(*columns).collect()
    ]


def share_array(spark: SparkSession, array: npt.NDArray[Any]) -> Callable[[], npt.NDArray[Any]]:
    """A function for workers that returns `array`. It may be part of what a worker is told to do.

    A classic session takes an array of any size there. A Connect client sends it to the server in a message
    of at most 128 MiB, with every plan that it is part of. So a large array travels as a file of the session,
    once.
    """
    if array.nbytes <= _CLOSURE_BYTES or not type(spark).__module__.startswith("pyspark.sql.connect"):
        return lambda: array
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        name = f"spark-dbp-{uuid4().hex}.npy"
        path = os.path.join(folder, name)  # noqa: PTH118  (Spark takes a text)
        np.save(path, array, allow_pickle=False)
        spark.addArtifacts(path, file=True)

    def read() -> npt.NDArray[Any]:
        import numpy as np
        from pyspark import SparkFiles

        return np.load(SparkFiles.get(name), allow_pickle=False)

    return read


@contextmanager
def tag_jobs(spark: SparkSession, tag: str) -> Iterator[None]:
    """Give the jobs that this thread starts a tag, by which `cancel_jobs` finds them."""
    can_tag = _can_cancel(spark)
    if can_tag:
        spark.addTag(tag)
    try:
        yield
    finally:
        if can_tag:
            spark.removeTag(tag)


def cancel_jobs(spark: SparkSession, tag: str) -> None:
    """Cancel the jobs with a tag that are under way; a classic session of Spark 3.5 lets them end."""
    if _can_cancel(spark):
        spark.interruptTag(tag)


def _can_cancel(spark: SparkSession) -> bool:
    is_connect = type(spark).__module__.startswith("pyspark.sql.connect")
    return is_connect or not spark.version.startswith("3.")


def count_shuffle_partitions(spark: SparkSession) -> int:
    """Partitions of a shuffle, as set in the session; Spark's default where the setting is not a number."""
    setting = read_setting(spark, "spark.sql.shuffle.partitions") or ""
    return int(setting) if setting.isdigit() else 200  # Databricks takes "auto" too


def count_cores(spark: SparkSession) -> int:
    """About how many tasks run at once: Spark makes so many of rows that are to have no certain number."""
    from pyspark.sql import functions as F

    return max(1, int(spark.range(0, 1024).select(F.spark_partition_id()).distinct().count()))


def from_arrow_schema(schema: pa.Schema) -> StructType:
    """The types as which Spark reads columns that pyarrow writes with these."""
    from pyspark.sql.pandas.types import from_arrow_schema

    return from_arrow_schema(schema)


def to_arrow_schema(schema: StructType) -> pa.Schema:
    """The Arrow types in which Spark hands these columns to a worker."""
    from pyspark.sql.pandas.types import to_arrow_schema

    zone: dict[str, Any] = (
        {"timezone": "UTC"} if "timezone" in signature(to_arrow_schema).parameters else {}
    )  # from 4.1 on
    return to_arrow_schema(schema, **zone)


def open_reader(spark: SparkSession) -> DataFrameReader:
    """``spark.read`` which fails on a file that it cannot read, whatever the session says, and names it.

    `session` sets the same for the whole session, but some platforms refuse that, and these options go first.
    A table must be refreshed before it is read so: Spark 3.5 remembers the options of an earlier read.
    """
    return spark.read.options(
        **{
            "ignoreCorruptFiles": "false",
            "ignoreMissingFiles": "false",
            "parquet.page.verify-checksum.enabled": "true",
        }
    )


def read_setting(session: SparkSession, name: str, *, own: bool = False) -> str | None:
    """The value of a setting in the session, or its default; None where this Spark does not show it.

    Parameters
    ----------
    session : SparkSession
    name : str
    own : bool
        Whether the default does not count: None then means that the session has no value of its own.

    Returns
    -------
    str or None
    """
    try:
        return session.conf.get(name, None) if own else session.conf.get(name)
    except Exception as error:
        if not is_from_spark(error):
            raise
        return None


def is_fixed(error: Exception) -> bool:
    """Whether a setting was refused because it can no longer change, not because of its value."""
    from pyspark.errors import IllegalArgumentException

    return not isinstance(error, IllegalArgumentException)


def read_parquet_codec(spark: SparkSession) -> str:
    """Name, as pyarrow has it, of the compression with which the session writes Parquet.

    Raises
    ------
    ConfigError
        When Spark and workers do not both have that codec.
    """
    return name_codec(read_setting(spark, "spark.sql.parquet.compression.codec"))


def name_codec(setting: str | None) -> str:
    """Name, as pyarrow has it, of a codec as Spark's setting has it; that of its default for None.

    Raises
    ------
    ConfigError
        When Spark and workers do not both have that codec.

    Examples
    --------
    >>> name_codec(None), name_codec("LZ4_RAW"), name_codec("uncompressed")
    ('snappy', 'lz4', 'none')
    """
    given = (setting or "snappy").lower()
    codec = {"uncompressed": "none", "lz4raw": "lz4", "lz4_raw": "lz4"}.get(given, given)
    if codec not in _CODECS:
        raise ConfigError(
            f"spark.sql.parquet.compression.codec: workers and Spark do not both have {given}",
            mend="set it to zstd, snappy, gzip, lz4 or none",
        )
    return codec
