"""Names, types and quoting of columns, of the run's tables and of the input. Imports `errors`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from spark_dbp.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType

KEY = "key"
EMBEDDING = "embedding"
VECTOR = "vector"
PROBLEM = "problem"
DIMENSION = "dimension"
CLUSTER_ID = "cluster_id"
DISTANCE = "distance_to_centroid"
CENTROID = "centroid"
N_ITEMS = "n_items"
D_INTRA = "d_intra"
D_INTER = "d_inter"
COMPLEXITY = "complexity"
HISTOGRAM = "distance_histogram"
BIN = "bin"
WEIGHT = "weight"
TARGET = "target"
QUOTA = "quota"
RANK = "rank"
DUPLICATE_OF = "duplicate_of"
METHOD = "method"
SIMILARITY = "similarity"
SHARD = "shard"
POSITION = "position"
IMAGE_OFFSET = "image_offset"
IMAGE_SIZE = "image_size"
TXT = "txt"
JSON = "json"
REASON = "reason"

# Columns and SQL types of the run's tables; the key and what refers to it have the input's own type.
KEY_TYPE = "type of the key"
TABLE_SCHEMAS = {
    "centroids": {CLUSTER_ID: "int", CENTROID: "array<float>"},
    "assignments": {KEY: KEY_TYPE, CLUSTER_ID: "int", DISTANCE: "float"},
    "duplicates": {KEY: KEY_TYPE, DUPLICATE_OF: KEY_TYPE, METHOD: "string", SIMILARITY: "float"},
    "cluster_stats": {
        CLUSTER_ID: "int",
        N_ITEMS: "bigint",
        D_INTRA: "double",
        D_INTER: "double",
        COMPLEXITY: "double",
        HISTOGRAM: f"array<struct<{BIN}:int,{N_ITEMS}:bigint>>",
    },
    "quotas": {CLUSTER_ID: "int", N_ITEMS: "bigint", WEIGHT: "double", TARGET: "double", QUOTA: "bigint"},
    "keep_list": {KEY: KEY_TYPE, CLUSTER_ID: "int", DISTANCE: "float", RANK: "int"},
}


def name_carried(number: int) -> str:
    """Name in ``samples`` of the column that was named as the `number`-th to be carried.

    Examples
    --------
    >>> name_carried(0)
    'column_0'
    """
    return f"column_{number}"


def quote_name(name: str) -> str:
    """Quote a column name for SQL and for ``col()``, dots and backticks included.

    Examples
    --------
    >>> quote_name("a.b`c")
    '`a.b``c`'
    """
    return "`" + name.replace("`", "``") + "`"


_NAME_PART = re.compile(r"`((?:[^`]|``)+)`|([^`.\s]+)")


def split_name(name: str) -> list[str]:
    """Split the name of a table into its parts. A part with a dot or a blank stands in backquotes.

    Raises
    ------
    ValueError
        When it is no such name.

    Examples
    --------
    >>> split_name("main.`my schema`.run_1")
    ['main', 'my schema', 'run_1']
    """
    parts, at = [], 0
    while found := _NAME_PART.match(name, at):
        parts.append((found[1] or "").replace("``", "`") or found[2])
        at = found.end() + 1
        if found.end() == len(name):
            return parts
        if name[found.end()] != ".":
            break
    raise ValueError(
        f"{name!r} is no name of a table: its parts are joined by dots, and a part with a dot or a blank "
        "stands in backquotes"
    )


def join_name(parts: Iterable[str]) -> str:
    """Name of a table, with every part quoted.

    Examples
    --------
    >>> join_name(["main", "my schema", "run_1"])
    '`main`.`my schema`.`run_1`'
    """
    return ".".join(map(quote_name, parts))


def show_name(parts: Iterable[str]) -> str:
    """Name of a table for people: only parts that need backquotes have them.

    Examples
    --------
    >>> show_name(["main", "my schema", "run_1"])
    'main.`my schema`.run_1'
    """
    return ".".join(part if re.fullmatch(r"\w+", part, re.ASCII) else quote_name(part) for part in parts)


def describe_type(data_type: DataType) -> str:
    """The type as SQL writes it, names of fields in their own case.

    Examples
    --------
    >>> from pyspark.sql.types import ArrayType, FloatType, StructType
    >>> describe_type(StructType().add("Clip", ArrayType(FloatType())))
    'STRUCT<Clip: ARRAY<FLOAT>>'
    """
    fields = getattr(data_type, "fields", None)
    if fields is not None:
        return f"STRUCT<{', '.join(f'{field.name}: {describe_type(field.dataType)}' for field in fields)}>"
    inner = [getattr(data_type, name, None) for name in ("elementType", "keyType", "valueType")]
    if any(inner):
        name = "MAP" if inner[1] else "ARRAY"
        return f"{name}<{', '.join(describe_type(part) for part in inner if part is not None)}>"
    return data_type.simpleString().upper()


def find_path(frame: DataFrame, name: str) -> str | None:
    """Quoted path of a field inside structs, such as ``features.clip``; None where there is no such field.

    Names of fields may hold dots themselves. A field of structs in an array is an array too.
    """

    def search(data_type: Any, rest: str) -> list[str] | None:
        data_type = getattr(data_type, "elementType", data_type)
        for field in getattr(data_type, "fields", ()):
            if field.name == rest:
                return [field.name]
            if rest.startswith(f"{field.name}."):
                below = search(field.dataType, rest[len(field.name) + 1 :])
                if below is not None:
                    return [field.name, *below]
        return None

    found = search(frame.schema, name)
    return None if found is None or len(found) < 2 else ".".join(map(quote_name, found))


def find_type(frame: DataFrame, name: str, setting: str) -> DataType:
    """Type of the column of exactly this name.

    Parameters
    ----------
    frame : DataFrame
    name : str
    setting : str
        What names the column, for messages: ``input.key``.

    Returns
    -------
    DataType

    Raises
    ------
    InputError
        When there is no such column, or several.
    """
    if name not in frame.columns:
        known = [*frame.columns, *_list_fields(frame)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        numbers = [column for column in frame.columns if column.isdigit()]
        if (
            setting == "input.embedding" and len(numbers) > 1
        ):  # one column a dimension, as pandas writes arrays
            listed = ", ".join(map(quote_name, numbers if len(numbers) <= 12 else numbers[:2]))
            more = "" if len(numbers) <= 12 else ", and so on"
            hint = f"columns of numbers become one with input.embedding: {{sql: 'array({listed}{more})'}}; "
        raise InputError(
            f"{setting}: there is no column {name!r}",
            mend=f"{hint}the table has: {', '.join(frame.columns[:30])}",
        )
    if frame.columns.count(name) > 1:
        raise InputError(f"{setting}: {name!r} names several columns", mend="rename one of them")
    return frame.schema[name].dataType


def _list_fields(frame: DataFrame) -> list[str]:
    """Names of fields of struct columns, as the configuration may name them."""
    of_columns = ((field.name, getattr(field.dataType, "fields", ())) for field in frame.schema.fields)
    return [f"{name}.{inner.name}" for name, fields in of_columns for inner in fields]
