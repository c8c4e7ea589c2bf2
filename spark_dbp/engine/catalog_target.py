"""Where a run is to be published: what is there now, and what the session may make there.

Imports `catalog`, `catalog_writer`, `session`, `spark_errors`, `columns`, `lake` and `errors`; pyspark inside
functions.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING
from uuid import uuid4

from spark_dbp.columns import KEY, describe_type, join_name, show_name, split_name
from spark_dbp.engine.catalog import TableInfo, describe_table, pass_over
from spark_dbp.engine.catalog_writer import RUN_ID, create_external_table, drop_ours, replace_table
from spark_dbp.engine.compat import read_setting
from spark_dbp.engine.spark_errors import is_from_spark, is_unknown_catalog, read_reason
from spark_dbp.errors import ConfigError
from spark_dbp.lake import files, paths

if TYPE_CHECKING:
    from pyspark.sql import SparkSession
    from pyspark.sql.types import DataType

log = logging.getLogger("spark_dbp")

# In this order: who sees a new keep list sees the rest of its run too. A run without deduplication has no
# duplicates.
TABLES = ("duplicates", "cluster_stats", "quotas", "keep_list")
VIEW = "kept"
# Published on demand: what became of every row.
VERDICTS = "verdicts"
_PROBE = "spark_dbp_probe"


@dataclass(frozen=True)
class Target:
    """Where a run is published.

    Attributes
    ----------
    spark : SparkSession
    table : str
        ``output.table``: catalog, schema, and how the names of the tables begin.
    table_format : {"parquet", "delta", "iceberg"}
    path : str
        The run directory.
    """

    spark: SparkSession
    table: str
    table_format: str
    path: str

    def name(self, table: str) -> str:
        """Name of a published table, with its parts quoted."""
        return join_name(self._list_parts(table))

    def show(self, table: str) -> str:
        """Name of a published table, for people."""
        return show_name(self._list_parts(table))

    def _list_parts(self, table: str) -> list[str]:
        *schema, prefix = split_name(self.table)
        return [*schema, f"{prefix}_{table}"]

    @property
    def schema(self) -> str:
        """Name of the schema, with its parts quoted."""
        return join_name(split_name(self.table)[:-1])

    def find(self, table: str) -> TableInfo | None:
        """What is there under the name of a published table, unless it is not ours.

        Raises
        ------
        ConfigError
            When something else has that name.
        """
        info, name = describe_table(self.spark, self.name(table)), self.show(table)
        if info is None:
            return None
        if RUN_ID not in info.properties:
            raise ConfigError(
                f"output.table: {name} is there, and is not replaced, for this program did not publish it "
                f"(it has no property {RUN_ID})",
                mend="name another prefix in output.table, or drop or rename that table",
            )
        found, wanted = info.provider or "a view", "a view" if table == VIEW else self.table_format
        if found != wanted:
            raise ConfigError(
                f"output.table: {name} is {found} now, and {wanted} is to be published",
                mend="set output.table_format to what it was, name another prefix, or drop that table",
            )
        if found == "parquet" and info.kind != "EXTERNAL":
            raise ConfigError(
                f"output.table: {name} is a managed table, which cannot be pointed to the run directory",
                mend="name another prefix in output.table, or drop that table",
            )
        return info


def open_target(spark: SparkSession, table: str | None, table_format: str, path: str) -> Target | None:
    """See that a run could be published, before it computes anything; None where it need not be.

    Parameters
    ----------
    spark : SparkSession
    table, table_format : str
        ``output.table`` and ``output.table_format``.
    path : str
        The run directory.

    Returns
    -------
    Target or None

    Raises
    ------
    ConfigError
        When there is no such catalog or schema, when tables of others have these names, or when this session
        may not, or cannot, make tables of this format there.
    """
    if table is None:
        return None
    target = Target(spark, table, table_format, files.normalize(path))
    refuse_glob(table_format, target.path)
    try:
        spark.sql(f"DESCRIBE SCHEMA {target.schema}").collect()
    except Exception as error:
        if not is_from_spark(error):
            raise
        if is_unknown_catalog(error):
            raise ConfigError(
                f"output.table {table}: the session knows no catalog {show_name(split_name(table)[:1])}",
                mend="docs/catalog.md says how a session gets to know one; Spark's own is spark_catalog",
            ) from None
        shown = show_name(split_name(table)[:-1])
        raise ConfigError(
            f"output.table {table}: the session finds no schema {shown}: {read_reason(error)}",
            mend=f"CREATE SCHEMA {shown} first, or name another",
        ) from None
    if split_name(table)[0] == "spark_catalog" and _is_in_memory(spark):
        log.warning(
            "output.table %s: the session keeps its catalog in memory, so the tables are gone when it ends; "
            "spark.sql.catalogImplementation: hive keeps them", table,
        )  # fmt: skip
    with _refuse(target):
        found = {name: target.find(name) for name in (*TABLES, VIEW)}
        if found["keep_list"] is None:  # the first time
            _try_to_create(target)
    return target


def refuse_glob(table_format: str, path: str) -> None:
    """Refuse a run directory that no Parquet table of a catalog can point to.

    Raises
    ------
    ConfigError
    """
    if table_format == "parquet" and paths.has_glob(path):
        raise ConfigError(
            f"output.path {path} has characters of a glob, and a Parquet table cannot point there",
            mend="name a directory without [ ] { } * ? \\, or set output.table_format: delta or iceberg",
        )


def _is_in_memory(spark: SparkSession) -> bool:
    replaced = read_setting(spark, "spark.sql.catalog.spark_catalog") or "builtin"
    return replaced == "builtin" and read_setting(spark, "spark.sql.catalogImplementation") == "in-memory"


def check_input(target: Target | None, table: str | None) -> None:
    """Refuse to replace the table that the run reads.

    Raises
    ------
    ConfigError
    """
    if target is None or table is None:
        return
    session = [target.spark.catalog.currentCatalog(), target.spark.catalog.currentDatabase()]
    parts = split_name(table)
    parts = [*session[: 3 - len(parts)], *parts] if len(parts) < 3 else parts
    for name in (*TABLES, VIEW):
        if join_name(parts).lower() == target.name(name).lower():
            raise ConfigError(
                f"input.table {table} is one of the tables that output.table {target.table} would replace",
                mend="name another prefix in output.table",
            )


def check_key_type(target: Target | None, data_type: DataType) -> None:
    """Refuse keys of a type that the format of the tables does not have.

    Raises
    ------
    ConfigError
    """
    from pyspark.sql import types as T

    if (
        target is not None
        and target.table_format != "parquet"
        and isinstance(data_type, T.DayTimeIntervalType)
    ):
        raise ConfigError(
            f"input.key is {describe_type(data_type)}, a type that {target.table_format} tables do not have",
            mend="set output.table_format: parquet, or make another key with input.key: {sql: ...}",
        )


def _try_to_create(target: Target) -> None:
    """Make a table of this format beside those to come, and drop it again."""
    name = target.name(_PROBE)
    target.find(_PROBE)
    drop_ours(target.spark, name)  # a run was killed right here
    place = files.join(target.path, f".probe-{uuid4().hex[:8]}")
    columns, properties = [(KEY, "string")], {RUN_ID: "none"}
    try:
        if target.table_format == "parquet":
            create_external_table(target.spark, name, place, columns, properties, "")
        else:
            empty = target.spark.range(0).selectExpr(f"CAST(id AS STRING) AS {KEY}")
            replace_table(name, empty, target.table_format, properties, "")
        target.find(_PROBE)  # a catalog may have made a table of another format
    finally:
        with pass_over(f"cannot drop {target.show(_PROBE)}", logging.WARNING):
            drop_ours(target.spark, name)
        files.delete(place)


@contextmanager
def _refuse(target: Target) -> Iterator[None]:
    """Say of what the catalog refuses that it concerns ``output.table``, and what would mend it."""
    try:
        yield
    except Exception as error:
        if not is_from_spark(error):
            raise
        raise _explain(target, error) from error


def _explain(target: Target, error: Exception) -> ConfigError:
    text, at = str(error), f"output.table {target.table}"
    if "DATA_SOURCE_NOT_FOUND" in text or "Failed to find the data source" in text:
        return ConfigError(
            f"{at}: this session does not know the format {target.table_format}", mend=_mend_format(target)
        )
    if "REPLACE TABLE AS SELECT" in text:
        return ConfigError(
            f"{at}: this catalog has no {target.table_format} tables that can be replaced as a whole: "
            f"{read_reason(error)}",
            mend=_mend_format(target),
        )
    may_not = re.search("INSUFFICIENT_PERMISSIONS|PERMISSION_DENIED|denied|not authorized", text, re.I)
    mend = "the right to make tables in that schema must be granted" if may_not else _mend_format(target)
    return ConfigError(f"{at}: a table cannot be made there: {read_reason(error)}", mend=mend)


def _mend_format(target: Target) -> str:
    if target.table_format == "parquet":
        return (
            "Parquet tables point to the run directory, as Spark's own catalog, Hive and Glue allow, and "
            "Unity Catalog for an external location: elsewhere set output.table_format: delta or iceberg"
        )
    return (
        f"start the session with the jar and a catalog of {target.table_format.capitalize()} "
        "(docs/catalog.md) and name that catalog, or set output.table_format"
    )
