"""Read Parquet where Spark refuses a whole table for the types of columns that a run may not even use.

Imports `compat`, `file_errors`, `file_kinds`, `paths` and `errors`; pyspark and pyarrow inside functions.

Spark takes the types of all columns from one file, and refuses the table when it does not know one of them,
or two names differ only in case. It does not look at columns that it was not asked for. So the footer of that
file is read here, the types of the columns that Spark can read are worked out as Spark would, and the table
is read with these. On the usual path no footer is read.
"""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from spark_dbp.engine.compat import open_reader, read_setting
from spark_dbp.engine.file_errors import is_about_types
from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.lake.file_kinds import iter_leaves, name_type, open_footer
from spark_dbp.lake.paths import escape_glob

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType, StructType

log = logging.getLogger("spark_dbp")

_LOCAL = "^file:/+"
_ROW_METADATA = b"org.apache.spark.sql.parquet.row.metadata"
# Footers that are read until one has rows.
_FOOTERS = 20
# Spark's types, by the names that `file_kinds.name_type` gives those of Parquet.
_PLAIN = {
    "BOOLEAN": "BooleanType",
    "FLOAT": "FloatType",
    "DOUBLE": "DoubleType",
    "DATE": "DateType",
    "INT8": "ByteType",
    "INT16": "ShortType",
    "INT32": "IntegerType",
    "INT64": "LongType",
    "UINT8": "ShortType",
    "UINT16": "IntegerType",
    "UINT32": "LongType",
    "STRING": "StringType",
    "ENUM": "StringType",
    "JSON": "StringType",
    "BSON": "BinaryType",
    "UUID": "BinaryType",
    "null": "IntegerType",
}
_MENDS = {
    "TIMESTAMP": "--set spark.sql.legacy.parquet.nanosAsLong=true (it is then a BIGINT), "
    "or write it in microseconds",
    "TIME": "write it as a timestamp, a number or text",
    "DECIMAL": "write it with at most 38 digits, or as text",
    "FLOAT16": "write it as float32",
    "INT96": "--set spark.sql.parquet.int96AsTimestamp=true",
    "same name": "rename one of them",
    "name in another case": "set spark.sql.caseSensitive: true, or rename one of them",
}


@dataclass(frozen=True)
class Unread:
    """A column that Spark does not read: its type, or what is wrong with its name; in what it is nested."""

    why: str
    within: str = ""

    def __str__(self) -> str:
        return self.why + self.within

    @property
    def mend(self) -> str:
        return _MENDS.get(self.why.split("(")[0], "write it as text, or as another type that Spark reads")


@dataclass
class Columns:
    """Columns of a Parquet file.

    Attributes
    ----------
    schema : StructType
        Those that Spark reads.
    unread : dict of tuple of str to Unread
        The others, by name; fields of structs by the names on the way to them.
    as_bytes : list of str
        Columns of `schema` that are UUIDs, which are read as their 16 bytes.
    """

    schema: StructType
    unread: dict[tuple[str, ...], Unread] = field(default_factory=dict)
    as_bytes: list[str] = field(default_factory=list)


def read_parquet(
    spark: SparkSession,
    paths: Sequence[str],
    columns: Sequence[str] = (),
    predicate: str | None = None,
    setting: str = "input.path",
) -> DataFrame:
    """Read Parquet files, without columns that Spark does not know where the run does not need them.

    Parameters
    ----------
    spark : SparkSession
    paths : sequence of str
        As Spark takes them.
    columns : sequence of str
        Names of columns that the run reads. What is left out is told in the log only where some are given.
    predicate : str, optional
        SQL, which may name further columns.
    setting : str
        What names the paths, for messages.

    Returns
    -------
    DataFrame

    Raises
    ------
    InputError
        When a needed column has such a type; it names column, file, type and what mends it.
    """
    try:
        frame = open_reader(spark).parquet(*paths)
        _ = frame.schema  # Connect opens the table only when asked for its schema
        return frame
    except Exception as error:
        if not is_about_types(error):
            raise
        found = _read_first_footer(spark, paths)
        if found is None:
            raise
        file, readable = found
    file = f"{file} ({setting})"
    refuse_unread(readable, file, columns)
    frame = open_reader(spark).schema(readable.schema).parquet(*paths)
    if predicate is not None:
        _refuse_unread_in(predicate, frame, readable, file)
    if columns:
        _log_unread(readable, columns)
    return frame


def list_parquet(spark: SparkSession, paths: Sequence[str]) -> DataFrame:
    """The files of `paths` as a table without columns: Spark lists them, and starts no job to see types."""
    from pyspark.sql import types as T

    return open_reader(spark).schema(T.StructType([])).parquet(*paths)


def _read_first_footer(spark: SparkSession, paths: Sequence[str]) -> tuple[str, Columns] | None:
    """The file from which Spark takes the types, and its columns; None where this process cannot read it."""
    import pyarrow as pa

    listed = list_parquet(spark, paths).inputFiles()
    file, footer = "", None
    try:
        for file in sorted(listed, key=unquote)[:_FOOTERS]:
            footer = open_footer(file)
            if footer.metadata.num_rows:  # a file without rows often has other types
                break
        return None if footer is None else (file, read_columns(footer, partial(read_setting, spark)))
    except (OSError, SparkDbpError, pa.ArrowException) as error:
        log.info("  %s cannot be looked into by this program itself: %s", file, error)
        return None


def read_columns(footer: Any, read: Callable[[str], str | None]) -> Columns:
    """Work out the columns of a Parquet file as Spark would, and which of them it does not read.

    Parameters
    ----------
    footer : pyarrow.parquet.ParquetFile
    read : callable
        Takes the name of a setting of the session, which decides on some types, and gives its value; None
        for the default.
    """
    from pyspark.sql import types as T

    rules = _Rules(read)
    written = _read_row_metadata(footer)
    leaves = iter_leaves(footer)
    uuids = {leaf.path for leaf in iter_leaves(footer) if name_type(leaf) == "UUID"}
    found = Columns(T.StructType([]))
    names = footer.schema_arrow.names
    same = Counter(names)
    alike = Counter(name if rules.case_sensitive else name.lower() for name in names)
    for item in footer.schema_arrow:
        rules.unread = {}
        data_type = rules.convert(item.type, leaves, (item.name,))
        if same[item.name] > 1:
            data_type = Unread("same name")
        elif alike[item.name if rules.case_sensitive else item.name.lower()] > 1:
            data_type = Unread("name in another case")
        if isinstance(data_type, Unread):
            found.unread[(item.name,)] = data_type
            continue
        found.unread |= rules.unread
        if item.name in uuids:
            found.as_bytes.append(item.name)
        exact = written.get(item.name) if not rules.unread else None
        found.schema.add(exact or T.StructField(item.name, data_type, True))
    return found


def _read_row_metadata(footer: Any) -> dict[str, Any]:
    """Columns as Spark itself described them when it wrote the file."""
    from pyspark.sql import types as T

    text = (footer.metadata.metadata or {}).get(_ROW_METADATA)
    if text is None:
        return {}
    try:
        return {item.name: item for item in T.StructType.fromJson(json.loads(text)).fields}
    except Exception:  # written by a version with other types
        return {}


class _Rules:
    """Types as Spark's `ParquetToSparkSchemaConverter` has them, in this session."""

    def __init__(self, read: Callable[[str], str | None]) -> None:
        def is_set(name: str, default: str) -> bool:
            return (read(name) or default).lower() == "true"

        self.case_sensitive = is_set("spark.sql.caseSensitive", "false")
        self.nanos_as_long = is_set("spark.sql.legacy.parquet.nanosAsLong", "false")
        self.binary_as_string = is_set("spark.sql.parquet.binaryAsString", "false")
        self.int96_as_timestamp = is_set("spark.sql.parquet.int96AsTimestamp", "true")
        self.infer_ntz = is_set("spark.sql.parquet.inferTimestampNTZ.enabled", "true")
        self.unread: dict[tuple[str, ...], Unread] = {}

    def convert(self, arrow_type: Any, leaves: Iterator[Any], path: tuple[str, ...]) -> DataType | Unread:
        """Spark's type of a column of `arrow_type`, whose leaves are the next of `leaves`."""
        import pyarrow as pa
        from pyspark.sql import types as T

        if isinstance(arrow_type, pa.BaseExtensionType):
            arrow_type = arrow_type.storage_type
        if pa.types.is_map(arrow_type):
            key = self.convert(arrow_type.key_type, leaves, (*path, "key"))
            value = self.convert(arrow_type.item_type, leaves, (*path, "value"))
            if isinstance(key, Unread) or isinstance(value, Unread):
                return _inside(key if isinstance(key, Unread) else value, "a map")
            return T.MapType(key, value)
        if pa.types.is_struct(arrow_type):
            return self._convert_struct(arrow_type, leaves, path)
        if _is_list(arrow_type):
            element_type = arrow_type.value_type
            if pa.types.is_float16(element_type):
                next(leaves)
                return T.ArrayType(T.BinaryType())  # of two bytes each, for `kernels.vectors`
            element = self.convert(element_type, leaves, (*path, "element"))
            return _inside(element, "a list") if isinstance(element, Unread) else T.ArrayType(element)
        return self._convert_leaf(next(leaves))

    def _convert_struct(
        self, arrow_type: Any, leaves: Iterator[Any], path: tuple[str, ...]
    ) -> DataType | Unread:
        from pyspark.sql import types as T

        fields, unread = [], {}
        for item in arrow_type:
            inner = self.convert(item.type, leaves, (*path, item.name))
            if isinstance(inner, Unread):
                unread[(*path, item.name)] = inner
            else:
                fields.append(T.StructField(item.name, inner, True))
        if not fields:
            return _inside(next(iter(unread.values()), Unread("no field")), "a struct")
        self.unread |= unread
        return T.StructType(fields)

    def _convert_leaf(self, leaf: Any) -> DataType | Unread:
        from pyspark.sql import types as T

        kind = name_type(leaf)
        if kind in _PLAIN:
            return getattr(T, _PLAIN[kind])()
        if kind == "UINT64":
            return T.DecimalType(20, 0)
        if kind == "BYTE_ARRAY":
            return T.StringType() if self.binary_as_string else T.BinaryType()
        if kind in ("TIMESTAMP(MILLIS)", "TIMESTAMP(MICROS)"):
            is_utc = json.loads(leaf.logical_type.to_json())["isAdjustedToUTC"]
            return T.TimestampType() if is_utc or not self.infer_ntz else T.TimestampNTZType()
        if kind == "TIMESTAMP(NANOS)" and self.nanos_as_long:
            return T.LongType()
        if kind == "INT96" and self.int96_as_timestamp:
            return T.TimestampType()
        if kind.startswith("DECIMAL") and leaf.precision <= 38:
            return T.DecimalType(leaf.precision, leaf.scale)
        if kind.startswith("FIXED_LEN_BYTE_ARRAY"):
            return T.BinaryType()
        return Unread(kind)


def _is_list(arrow_type: Any) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_list(arrow_type)
        or pa.types.is_large_list(arrow_type)
        or pa.types.is_fixed_size_list(arrow_type)
    )


def _inside(unread: Any, what: str) -> Unread:
    return Unread(unread.why, f"{unread.within} in {what}")


def refuse_unread(readable: Columns, file: str, columns: Sequence[str]) -> None:
    """Refuse a file where a column that is needed is none that Spark reads.

    Raises
    ------
    InputError
    """
    for path, unread in readable.unread.items():
        # A whole struct, the field itself, or a field within it. Other fields of the struct are read.
        name = ".".join(path)
        if path[0] in columns or any(f"{column}.".startswith(f"{name}.") for column in columns):
            raise _unread_error(path, unread, file)


def _unread_error(path: tuple[str, ...], unread: Unread, file: str) -> InputError:
    name = ".".join(path)
    if unread.why == "same name":
        what = f"{file} has several columns {name!r}"
    elif unread.why == "name in another case":
        what = f"{file} has columns whose names differ from {name!r} only in case"
    else:
        what = f"column {name!r} of {file} is {unread}, which this Spark does not read"
    return InputError(what, mend=unread.mend)


def _refuse_unread_in(predicate: str, frame: DataFrame, readable: Columns, file: str) -> None:
    """Refuse a filter that names a column that was left out, and cannot be evaluated without."""
    named = [
        path
        for path in readable.unread
        if re.search(rf"(?<!\w){re.escape(path[-1])}(?!\w)", predicate, re.IGNORECASE)
    ]
    if not named:
        return
    try:
        _ = frame.where(predicate).schema
    except Exception:
        error = _unread_error(named[0], readable.unread[named[0]], file)
        raise InputError(f"input.filter {predicate!r}: {error.what}", mend=error.mend) from None


def _log_unread(readable: Columns, columns: Sequence[str]) -> None:
    for name in readable.as_bytes:
        if name in columns:
            log.info("  column %r is a UUID: read as its 16 bytes (BINARY)", name)
    shown = [f"{'.'.join(path)!r} ({it}; {it.mend})" for path, it in readable.unread.items()]
    if shown:
        more = f" and {len(shown) - 10:,} more" if len(shown) > 10 else ""
        log.info("  left out, because Spark does not read them: %s%s", ", ".join(shown[:10]), more)


def take_types_from_rows(
    frame: DataFrame, paths: Sequence[str], n_files: int, columns: Sequence[str], predicate: str | None = None
) -> DataFrame:
    """Read with the types of the first file that has rows, where Spark took them from one that has none.

    pandas writes an empty frame without types, or with others than it would have with rows.

    Parameters
    ----------
    frame : DataFrame
        What Spark reads from `paths`.
    paths : sequence of str
    n_files : int
        Number of its files with rows.
    columns : sequence of str
        As in `read_parquet`.
    predicate : str, optional

    Returns
    -------
    DataFrame
        `frame` where its types come from a file with rows.
    """
    from pyspark.sql import functions as F

    listed = frame.inputFiles()
    if n_files in (0, len(listed)):
        return frame
    first = min(listed, key=unquote)
    path = F.col("_metadata.file_path")
    is_first = F.regexp_replace(path, _LOCAL, "/") == re.sub(
        _LOCAL, "/", first
    )  # Spark spells it in two ways
    row = frame.agg(F.max(is_first).alias("has_rows"), F.min(path).alias("file")).collect()[0]
    if row.has_rows:
        return frame
    typed = read_parquet(frame.sparkSession, [escape_glob(unquote(row.file))], columns, predicate)
    if typed.schema.fields == frame.schema.fields[: len(typed.schema.fields)]:
        return frame
    log.info("  %s has no rows: types are taken from %s", first, row.file)
    return open_reader(frame.sparkSession).schema(typed.schema).parquet(*paths)
