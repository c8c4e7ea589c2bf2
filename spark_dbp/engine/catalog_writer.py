"""Make, replace and drop tables of the session's catalog, each so that readers always see a whole one.

Imports `catalog`, `columns` and `lake`; pyspark inside functions. The parts of all names are quoted already.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from spark_dbp.columns import join_name, quote_name, split_name
from spark_dbp.engine.catalog import TableInfo, describe_table
from spark_dbp.lake import files

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

# The property by which a table, or a view, is known as ours.
RUN_ID = "spark_dbp.run_id"

Columns = list[tuple[str, str]]


def find_ours(spark: SparkSession, name: str) -> TableInfo | None:
    """What the catalog says of a table; None where there is none, or it is not ours."""
    info = describe_table(spark, name)
    return info if info is not None and RUN_ID in info.properties else None


def drop_ours(spark: SparkSession, name: str) -> None:
    """Drop a table or a view, if it is ours. The files of an external table stay."""
    info = find_ours(spark, name)
    if info is not None:
        kind = "VIEW" if info.kind == "VIEW" else "TABLE"
        purge = " PURGE" if info.provider == "iceberg" else ""  # else Iceberg leaves the files behind
        spark.sql(f"DROP {kind} IF EXISTS {name}{purge}").collect()


def create_external_table(
    spark: SparkSession, name: str, path: str, columns: Columns, properties: Mapping[str, str], comment: str
) -> None:
    """Make a table of the Parquet files in a directory.

    Parameters
    ----------
    spark : SparkSession
    name : str
    path : str
        The directory; it need not be there.
    columns : list of (str, str)
        Names and SQL types.
    properties : mapping of str to str
    comment : str
    """
    declared = ", ".join(f"{quote_name(column)} {sql_type}" for column, sql_type in columns)
    spark.sql(
        f"CREATE TABLE {name} ({declared}) USING parquet LOCATION {_quote_path(path)} "
        f"COMMENT {quote_text(comment)} TBLPROPERTIES {_list_properties(properties)}"
    ).collect()


def point_external_table(
    spark: SparkSession, name: str, path: str, columns: Columns, properties: Mapping[str, str], comment: str
) -> None:
    """Point a table of Parquet files to another directory, or make it.

    Where columns differ, the table is away for the time of two statements; else never.

    Parameters
    ----------
    spark, name, path, columns, properties, comment
        As for `create_external_table`.
    """
    info = describe_table(spark, name)
    if info is None:
        create_external_table(spark, name, path, columns, properties, comment)
        return
    if list(info.columns) != columns:
        # Such a table cannot change the type of a column. What takes its place is tried under another name
        # first, so that what can fail fails while the old one is there. It goes again, because Unity Catalog
        # lets no two tables point to one directory.
        *schema, last = split_name(name)
        beside = join_name([*schema, f"{last}_next"])
        drop_ours(spark, beside)
        create_external_table(spark, beside, path, columns, properties, comment)
        drop_ours(spark, beside)
        drop_ours(spark, name)
        create_external_table(spark, name, path, columns, properties, comment)
        return
    spark.sql(f"ALTER TABLE {name} SET LOCATION {_quote_path(path)}").collect()
    spark.sql(f"COMMENT ON TABLE {name} IS {quote_text(comment)}").collect()
    # Last, for by these a rerun knows that the table is done.
    spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES {_list_properties(properties)}").collect()


def replace_table(
    name: str, rows: DataFrame, table_format: str, properties: Mapping[str, str], comment: str
) -> None:
    """Replace a Delta or Iceberg table, or make it: rows, columns and properties in one commit.

    Parameters
    ----------
    name : str
    rows : DataFrame
    table_format : {"delta", "iceberg"}
    properties : mapping of str to str
    comment : str
    """
    writer = rows.writeTo(name).using(table_format)
    for key, value in {**properties, "comment": comment}.items():
        writer = writer.tableProperty(key, value)
    writer.createOrReplace()


def replace_view(
    spark: SparkSession, name: str, query: str, properties: Mapping[str, str], comment: str
) -> None:
    """Replace a view, or make it."""
    spark.sql(
        f"CREATE OR REPLACE VIEW {name} COMMENT {quote_text(comment)} "
        f"TBLPROPERTIES {_list_properties(properties)} AS {query}"
    ).collect()


def quote_text(text: str) -> str:
    r"""A text as a literal of SQL.

    Examples
    --------
    >>> print(quote_text("it's ${x} \\ y"))
    'it\'s \u0024{x} \\ y'
    """
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return "'" + escaped.replace("$", "\\u0024") + "'"  # Spark would put a setting in the place of ${name}


def _quote_path(path: str) -> str:
    return quote_text(files.to_spark_path(path))


def _list_properties(properties: Mapping[str, str]) -> str:
    return "(" + ", ".join(f"{quote_text(k)} = {quote_text(v)}" for k, v in properties.items()) + ")"
