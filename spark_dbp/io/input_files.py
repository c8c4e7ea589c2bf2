"""Read the files of the input, and see that nothing of them is lost.

Imports `listing`, `passed_over`, `compat`, `spark_errors`, `lake` and `errors`; pyspark inside functions.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from spark_dbp.engine.compat import collect_arrow, open_reader, read_setting
from spark_dbp.engine.file_scan import NotPlainError, list_plain_files
from spark_dbp.engine.spark_errors import read_condition, translate_errors
from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.io.listing import Listing, add_files, below_root, expand_glob, find_key, list_paths
from spark_dbp.io.passed_over import PassedOver, empty_files_error
from spark_dbp.lake import files, parquet_files
from spark_dbp.lake.paths import take_literally
from spark_dbp.lake.table_files import map_in_threads

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

log = logging.getLogger("spark_dbp")


def read_checked(
    setting: str, paths: list[str], read: Callable[[], DataFrame]
) -> tuple[DataFrame, pa.Table | None]:
    """Read files, and refuse what lies among them that Spark passes over or reads twice.

    Parameters
    ----------
    setting : str
        For messages: ``input.path``.
    paths : list of str
        Paths and globs, as Spark takes them.
    read : callable
        Opens them.

    Returns
    -------
    frame : DataFrame
    files : pyarrow.Table or None
        As from `list_read_files`.

    Raises
    ------
    InputError
        Also where Spark cannot open the paths, by the better of both reasons.
    """
    listing = list_paths(paths)
    try:
        frame = read()
    except SparkDbpError:
        PassedOver(setting, listing, None).check(list)
        raise
    with translate_errors(f"{setting} {', '.join(paths)}"):
        found = list_read_files(frame, is_whole=True)
        if found is not None:
            _list_by_spark(setting, frame, listing)
            PassedOver(setting, listing, found.column("file_path").to_pylist()).check(frame.inputFiles)
    return frame, found


def _list_by_spark(setting: str, frame: DataFrame, listing: Listing) -> None:
    """Let Spark list what this program cannot; it tells of subfolders, but not of hidden files."""
    if not listing.unchecked:
        return
    filled = set()
    for entry in listing.unchecked:
        rows = frame.sparkSession.read.format("binaryFile").option("recursiveFileLookup", True).load(entry)
        listed = [(row.path, row.length) for row in rows.select("path", "length").collect()]
        add_files(listing, entry, listed)
        filled |= {find_key(path) for path, _ in listed}
    # It leaves files of 0 bytes out. Object stores mark directories with such, so only names of
    # Parquet files count.
    all_filled = filled | {find_key(one.path) for one in listing.found if one.size}
    seen = [unquote(uri) for uri in frame.inputFiles()]
    empty = [
        path for path in seen if find_key(path) not in all_filled and path.endswith((".parquet", ".parq"))
    ]
    if empty:
        raise empty_files_error(setting, sorted(empty))


def name_literally(paths: list[str]) -> list[str]:
    """Paths as Spark needs them: with brackets escaped where a local path exists as it is written."""
    taken = []
    for path in paths:
        literal = take_literally(path)
        if literal != path:
            others = [
                root for root, _ in expand_glob(path) if root != os.path.normpath(files.normalize(path))
            ]
            if others:
                raise InputError(
                    f"input.path {path} is the name of a path and a glob that names {others[0]}",
                    mend=f"write {literal} for the former; a glob that does not name it for the latter",
                )
            log.info("input.path %s: taken as the path of this name, not as a glob", path)
        taken.append(literal)
    return taken


def read_folders_as_text(
    frame: DataFrame, paths: list[str], uris: Iterable[str], columns: Collection[str]
) -> DataFrame:
    """Read `columns` that come from the names of partition folders as texts, as the folders are named.

    Spark takes ``uid=00007`` for the number 7, and ``day=2024-01-01`` for a date.

    Parameters
    ----------
    frame : DataFrame
        What Spark has read from `paths`.
    paths : list of str
    uris : iterable of str
        Of files that it has read.
    columns : collection of str
        Columns whose values must be told apart as they are written.

    Returns
    -------
    DataFrame
        `frame` where no column is concerned.
    """
    from pyspark.sql import types as T

    first = next(iter(uris), "")
    folders = below_root(unquote(first), paths) or below_root(first, paths) or []
    ignore_case = (read_setting(frame.sparkSession, "spark.sql.caseSensitive") or "false").lower() != "true"
    named = {unquote(folder.split("=")[0]) for folder in folders if "=" in folder}
    named = {name.lower() for name in named} if ignore_case else named
    fields = [
        field
        for field in frame.schema.fields
        if field.name in columns
        and (field.name.lower() if ignore_case else field.name) in named
        and not isinstance(field.dataType, T.StringType)
    ]
    if not fields:
        return frame
    for field in fields:
        log.info(
            "column %s comes from names of folders: read as text, not as %s",
            field.name, field.dataType.simpleString().upper(),
        )  # fmt: skip
    texts = {field.name for field in fields}
    schema = T.StructType(
        [
            T.StructField(field.name, T.StringType() if field.name in texts else field.dataType, True)
            for field in frame.schema.fields
        ]
    )
    return open_reader(frame.sparkSession).schema(schema).parquet(*paths)


def list_read_files(frame: DataFrame, *, is_whole: bool = False) -> pa.Table | None:
    """Files of which Spark reads rows: ``file_path``, ``file_size``, ``changed`` (in microseconds), ``rows``.

    None for a view, which does not list its files.

    Parameters
    ----------
    frame : DataFrame
    is_whole : bool
        Whether it is just what Spark reads from paths: then footers tell the number of rows.
    """
    from pyspark.sql import functions as F

    found = _look_at_footers(frame) if is_whole else None
    if found is not None:
        return found
    try:
        files = frame.groupBy(
            F.col("_metadata.file_path").alias("file_path"),
            F.col("_metadata.file_size").alias("file_size"),
            F.unix_micros("_metadata.file_modification_time").alias("changed"),
        ).agg(F.count(F.lit(1)).alias("rows"))
        _ = files.schema
    except Exception as error:
        if not read_condition(error):
            raise
        return None
    return collect_arrow(files)


def _look_at_footers(frame: DataFrame) -> pa.Table | None:
    """The same, from the footers; None where this process does not read them all, or they are too many."""
    import pyarrow as pa

    def look(uri: str) -> tuple[str, int, int, int]:
        path = unquote(uri)
        rows = parquet_files.open_parquet(path).metadata.num_rows
        return re.sub("^file:/+", "file:/", uri), *files.look_up(path), rows

    try:
        looked_at = [row for row in map_in_threads(look, list_plain_files(frame)) if row[3]]
    except (NotPlainError, OSError, SparkDbpError, pa.ArrowException) as error:
        log.debug("Spark looks at the input, for this process does not: %s", error)
        return None
    names = ["file_path", "file_size", "changed", "rows"]
    columns = zip(*looked_at, strict=True) if looked_at else [[], [], [], []]
    types = [pa.string(), pa.int64(), pa.int64(), pa.int64()]
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names)
