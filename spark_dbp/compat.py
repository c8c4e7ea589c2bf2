"""Everything that depends on the Spark version or on classic against Connect.

Imports pyspark inside functions only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spark_dbp.errors import InputError, SparkDbpError

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import StructType

_FILE = re.compile(r"\b(?:file|s3a?|s3n|gs|hdfs|abfss?|wasbs?|dbfs):/[^\s,'\"]+")
_COLUMN_CONDITIONS = ("UNRESOLVED_COLUMN", "FIELD_NOT_FOUND")


def sql_name(name: str) -> str:
    """Quote a column name for SQL and for ``col()``, dots and backticks included.

    Examples
    --------
    >>> sql_name("a.b`c")
    '`a.b``c`'
    """
    return "`" + name.replace("`", "``") + "`"


def column(name: str) -> Column:
    """The column of exactly this name, whatever characters it has."""
    from pyspark.sql import functions as F

    return F.col(sql_name(name))


def ml_vector_to_array(name: str) -> Column:
    """A ``pyspark.ml`` vector column as ARRAY<DOUBLE>."""
    from pyspark.ml.functions import vector_to_array

    return vector_to_array(column(name))


def is_ml_vector(data_type: Any) -> bool:
    """Whether a column's type is the vector type of ``pyspark.ml`` or ``pyspark.mllib``."""
    return type(data_type).__name__ == "VectorUDT"


def condition_of(error: BaseException) -> str:
    """Spark's error condition (``PATH_NOT_FOUND`` ...), or an empty text."""
    for method in ("getCondition", "getErrorClass"):
        get = getattr(error, method, None)
        if get is not None:
            try:
                return get() or ""
            except Exception:
                return ""
    return ""


def first_line(error: BaseException) -> str:
    """The sentence of a Spark error without condition codes, plans or stack traces."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else type(error).__name__
    return re.sub(r"\s*SQLSTATE: \w+", "", re.sub(r"^\[[\w.]+\]\s*", "", text))[:500]


@contextmanager
def readable_errors(reading: str = "") -> Iterator[None]:
    """Turn Spark's errors into ours: a file by its name, never a stack trace.

    Parameters
    ----------
    reading : str
        What is being read, for messages ("input.path /data/x").
    """
    from pyspark.errors import PySparkException

    try:
        yield
    except SparkDbpError:
        raise
    except Exception as error:
        translated = _translate(error, reading, PySparkException)
        if translated is None:
            raise
        raise translated from error


def _translate(error: Exception, reading: str, spark_exception: type) -> SparkDbpError | None:
    text = str(error)
    condition = condition_of(error)
    at = f" ({reading})" if reading else ""
    if "PATH_NOT_FOUND" in (condition, text[1:15]):
        return InputError(f"no such path{at}: {first_line(error)}", mend="check input.path")
    if condition == "TABLE_OR_VIEW_NOT_FOUND":
        return InputError(f"no such table{at}: {first_line(error)}", mend="check input.table")
    if condition.startswith("UNABLE_TO_INFER_SCHEMA"):
        return InputError(f"no Parquet files{at}", mend="check input.path")
    if condition.startswith(_COLUMN_CONDITIONS):
        return InputError(f"no such column{at}: {first_line(error)}", mend="check the column names")
    broken = re.search(r"FAILED_READ_FILE|CANNOT_READ_FILE|is not a Parquet file|Could not read footer", text)
    if broken:
        found = _FILE.search(text)
        name = found[0].rstrip(".)]") if found else "a file of the input"
        return InputError(
            f"cannot read {name}{at}: it is truncated, damaged or not Parquet",
            mend="write the file again, or move it away and check input.path",
        )
    if "maxResultSize" in text:
        return SparkDbpError(
            f"the training sample is larger than the driver may collect{at}: {first_line(error)}",
            mend="raise spark.driver.maxResultSize or lower cluster.max_points_per_centroid",
        )
    if "MemoryError" in text:
        return SparkDbpError(
            f"a Python worker ran out of memory{at}: {first_line(error)}",
            mend="raise spark.executor.pyspark.memory or lower spark.sql.execution.arrow.maxRecordsPerBatch",
        )
    if isinstance(error, spark_exception) or type(error).__module__.startswith("py4j"):
        return SparkDbpError(
            f"Spark failed{at}: {_cause(text) or first_line(error)}",
            mend="run with --debug for the whole trace",
        )
    return None


def _cause(text: str) -> str:
    causes = re.findall(r"^(?:Caused by|\w+Error|ValueError): ?(.*)$", text, flags=re.MULTILINE)
    return causes[-1][:500] if causes else ""


def collect_arrow(frame: DataFrame) -> pa.Table:
    """A small DataFrame as a pyarrow Table on the driver."""
    if hasattr(frame, "toArrow"):  # Spark 4.0 and later, classic and Connect
        return frame.toArrow()
    import pyarrow as pa

    return pa.Table.from_pandas(frame.toPandas(), preserve_index=False)


def shuffle_partitions(spark: SparkSession) -> int:
    """Partitions of a shuffle, as the session is set; Spark's default where that is no number."""
    setting = spark.conf.get("spark.sql.shuffle.partitions") or ""
    return int(setting) if setting.isdigit() else 200  # Databricks takes "auto" too


def arrow_schema(schema: StructType) -> pa.Schema:
    """The Arrow types in which Spark hands these columns to a worker."""
    from pyspark.sql.pandas.types import to_arrow_schema

    return to_arrow_schema(schema)


def parquet_codec(spark: SparkSession) -> str:
    """The name in pyarrow of the compression in which the session writes Parquet."""
    codec = (spark.conf.get("spark.sql.parquet.compression.codec") or "snappy").lower()
    return {"uncompressed": "none", "lz4raw": "lz4", "lz4_raw": "lz4"}.get(codec, codec)
