"""Ask the session's catalog about tables: what they are, and the version that a reader would get.

Imports `columns` and `spark_errors`; pyspark inside functions. Plain SQL only, so that it works on classic
sessions and on Connect.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from spark_dbp.columns import join_name, split_name
from spark_dbp.engine.spark_errors import is_from_spark, is_unknown_catalog, read_condition, read_reason

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

# Below this row `DESCRIBE TABLE EXTENDED` tells of the table; above it, of its columns, of whatever name.
_DETAILS = "# Detailed Table Information"
_NOT_FOUND = ("TABLE_OR_VIEW_NOT_FOUND", "SCHEMA_NOT_FOUND")


@dataclass(frozen=True)
class TableInfo:
    """What the catalog says of a table or a view.

    Attributes
    ----------
    kind : str
        ``MANAGED``, ``EXTERNAL``, ``VIEW`` ...; empty for a temporary view.
    provider : str
        ``parquet``, ``delta``, ``iceberg`` ...; empty for a view.
    columns : tuple of (str, str)
        Names and types, as SQL writes them.
    properties : dict of str to str
    """

    kind: str = ""
    provider: str = ""
    columns: tuple[tuple[str, str], ...] = ()
    properties: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TableVersion:
    """A version of a Delta table, or a snapshot of an Iceberg table.

    Attributes
    ----------
    format : str
        ``delta`` or ``iceberg``.
    number : int
        The version, or the id of the snapshot.
    table_id : str
        Of a Delta table, because a table that is dropped and made again begins at version 0 again. Ids of
        snapshots are unique.
    files, bytes : int or None
        Of its data; None where the catalog does not say.
    """

    format: str
    number: int
    table_id: str = ""
    files: int | None = None
    bytes: int | None = None

    def __str__(self) -> str:
        return f"{'Delta version' if self.format == 'delta' else 'Iceberg snapshot'} {self.number}"


def describe_table(spark: SparkSession, name: str) -> TableInfo | None:
    """What the catalog says of a table or a view; None when there is none of this name.

    Parameters
    ----------
    spark : SparkSession
    name : str
        With its parts quoted as SQL needs it.

    Returns
    -------
    TableInfo or None
    """
    try:
        rows = [tuple(row)[:2] for row in spark.sql(f"DESCRIBE TABLE EXTENDED {name}").collect()]
        properties = {row[0]: row[1] for row in spark.sql(f"SHOW TBLPROPERTIES {name}").collect()}
    except Exception as error:
        if read_condition(error).startswith(_NOT_FOUND) or is_unknown_catalog(error):
            return None
        raise
    names = [row[0] for row in rows]
    details = dict(rows[names.index(_DETAILS) + 1 :]) if _DETAILS in names else {}
    n_columns = names.index("") if "" in names else len(names)
    return TableInfo(
        kind=(details.get("Type") or "").upper(),
        provider=(details.get("Provider") or "").lower(),
        columns=tuple(rows[:n_columns]),
        properties=properties,
    )


def refresh_table(spark: SparkSession, name: str) -> None:
    """Forget what the session remembers of a table: its files, or the version that it read last."""
    try:
        spark.sql(f"REFRESH TABLE {_quote(name)}").collect()
    except Exception as error:
        if not is_from_spark(error):
            raise
        log.debug("cannot refresh %s: %s", name, error)  # who reads it says what is wrong with it


def find_version(spark: SparkSession, name: str) -> TableVersion | None:
    """The newest version of a Delta or Iceberg table; None for other tables and views.

    None also where the catalog does not tell it. The log then says why.

    Parameters
    ----------
    spark : SparkSession
    name : str
        As the user wrote it.

    Returns
    -------
    TableVersion or None
    """
    with pass_over(f"the version of {name} is not known"):
        quoted = _quote(name)
        info = describe_table(spark, quoted)
        if info is not None and info.provider == "delta":
            return _find_delta_version(spark, quoted)
        if info is not None and info.provider == "iceberg":
            return _find_iceberg_snapshot(spark, quoted, info)
    return None


def read_version(spark: SparkSession, name: str, version: TableVersion) -> DataFrame | None:
    """The table as it was at `version`, whatever is written meanwhile; None where that cannot be read."""
    frame = None
    with pass_over(f"cannot read {name} at {version}"):
        frame = spark.sql(f"SELECT * FROM {_quote(name)} VERSION AS OF {version.number}")
        _ = frame.schema  # Connect looks at the SQL only when asked for the schema
    return frame


def _find_delta_version(spark: SparkSession, name: str) -> TableVersion:
    # The history first: what is committed in between is in neither the version nor, by its id, another table.
    history = spark.sql(f"DESCRIBE HISTORY {name} LIMIT 1").select("version").collect()
    detail = spark.sql(f"DESCRIBE DETAIL {name}").select("id", "numFiles", "sizeInBytes").collect()[0]
    return TableVersion("delta", int(history[0][0]), detail[0], int(detail[1]), int(detail[2]))


def _find_iceberg_snapshot(spark: SparkSession, name: str, info: TableInfo) -> TableVersion | None:
    current = info.properties.get("current-snapshot-id")
    if current is None:  # a catalog need not pass this property on
        found = spark.sql(f"SELECT snapshot_id FROM {name}.refs WHERE name = 'main'").collect()
        current = str(found[0][0]) if found else "none"
    if current == "none":  # nothing was written to it yet
        return None
    files: list[tuple[int | None, ...]] = [(None, None)]
    with pass_over(f"the sizes of the files of {name} are not known"):
        # `content` 0 are files of rows; the others list rows that were deleted.
        sizes = f"FROM {name}.files VERSION AS OF {current} WHERE content = 0"
        files = [
            tuple(row) for row in spark.sql(f"SELECT count(*), sum(file_size_in_bytes) {sizes}").collect()
        ]
    return TableVersion("iceberg", int(current), files=files[0][0], bytes=files[0][1])


def _quote(name: str) -> str:
    return join_name(split_name(name))


@contextmanager
def pass_over(what: str, level: int = logging.INFO) -> Iterator[None]:
    """Go on where the catalog refuses something, and say so in the log."""
    try:
        yield
    except Exception as error:
        if not is_from_spark(error):
            raise
        log.log(level, "%s: %s", what, read_reason(error))
