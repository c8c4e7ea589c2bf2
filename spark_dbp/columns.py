"""Names, types and quoting of columns: of the run's tables and of the input. Imports `errors`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from spark_dbp.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame
    from pyspark.sql.types import DataType

KEY = "key"
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
        near = difflib.get_close_matches(name, frame.columns, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"{setting}: there is no column {name!r}",
            mend=f"{hint}the table has: {', '.join(frame.columns[:30])}",
        )
    if frame.columns.count(name) > 1:
        raise InputError(f"{setting}: {name!r} names several columns", mend="rename one of them")
    return frame.schema[name].dataType
