"""Let workers read plain Parquet files of the input themselves, as Spark would read them.

Imports `compat`, `files`, `file_kinds`, `progress` and `table_files`; pyspark and pyarrow inside functions.

Spark would decode embeddings into rows, encode them as Arrow, and send them through a socket before a worker
sees them. Files are plain where pyarrow reads just what Spark reads: the same columns, of the same types, in
every file, and none of them from the name of a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from spark_dbp.engine.compat import BatchFunction, count_shuffle_partitions
from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import parquet_files
from spark_dbp.lake.progress import name_pass, report_progress
from spark_dbp.lake.table_files import map_in_threads

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession
    from pyspark.sql.types import DataType

# Most and fewest bytes, uncompressed, that a task reads.
_TASK_BYTES, _FEW_BYTES = 64 << 20, 4 << 20
# More files than this take the driver too long to look into.
_MOST_FILES = 20_000
# Rows and bytes in a batch.
_BATCH_ROWS, _BATCH_BYTES = 65_536, 32 << 20


class NotPlainError(Exception):
    """Why workers do not read files themselves."""


@dataclass(frozen=True)
class FileScan:
    """Files that workers read themselves.

    Attributes
    ----------
    spark : SparkSession
    tasks : list
        What each task reads.
    n_rows : int
    progress : str
        Directory in which workers note how many rows they have read; empty for none.
    read : callable
        Takes one of `tasks`, and the names of columns in the files by those that they get; returns batches.
    """

    spark: SparkSession
    tasks: list[Any]
    n_rows: int
    progress: str
    read: Callable[[Any, Mapping[str, str]], Iterator[pa.RecordBatch]]

    def plan(self, names: Mapping[str, str], function: BatchFunction) -> tuple[DataFrame, BatchFunction]:
        """What `mapInArrow` takes, so that `function` gets columns of the files under other names."""
        tasks, read, notes = self.tasks, self.read, self.progress and name_pass(self.progress)

        def over_files(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            numbers = (number for batch in batches for number in batch.column(0).to_pylist())
            found = (batch for number in numbers for batch in read(tasks[number], names))
            yield from function(report_progress(found, notes) if notes else found)

        return self.spark.range(0, len(tasks), 1, len(tasks)), over_files


def list_plain_files(frame: DataFrame) -> list[str]:
    """URIs of the files that Spark reads for `frame`.

    Raises
    ------
    NotPlainError
        When they are too many to look into, or Spark may list more than it reads: beside folders like
        ``day=1`` it passes files over, and those whose names it takes for hidden.
    """
    uris = frame.inputFiles()
    if not uris:
        raise NotPlainError("there are no files")
    if len(uris) > _MOST_FILES:
        raise NotPlainError(f"{len(uris):,} files are too many to look into")
    if any(uri.rpartition("/")[2].startswith(("_", ".")) for uri in uris):
        raise NotPlainError("among the files are some with names of hidden ones")
    if len({tuple(_list_folder_columns(uri)) for uri in uris}) > 1:
        raise NotPlainError("some files lie beside folders that name a column")
    return uris


def _list_folder_columns(uri: str) -> list[str]:
    """Columns that the folders of a file name: ``day`` for ``/in/day=1/a.parquet``."""
    return [folder.split("=")[0] for folder in unquote(uri).split("/")[:-1] if "=" in folder]


def plan_file_scan(frame: DataFrame, columns: Collection[str], n_rows: int, progress: str) -> FileScan:
    """Look into the footers of the files of `frame`, and share their row groups among tasks.

    Parameters
    ----------
    frame : DataFrame
        As Spark reads the files.
    columns : collection of str
        Columns that are needed.
    n_rows : int
        Rows of `frame`.
    progress : str

    Returns
    -------
    FileScan

    Raises
    ------
    NotPlainError
        When the files are not plain, or this process cannot read them.
    """
    import pyarrow as pa

    uris = frame.inputFiles()
    if not uris or len(uris) > _MOST_FILES:
        raise NotPlainError(
            f"{len(uris):,} files are too many to look into" if uris else "there are no files"
        )
    for name in columns:
        if name not in frame.columns:
            raise NotPlainError(f"{name!r} is no column of its own")
        if name in _list_folder_columns(uris[0]):
            raise NotPlainError(f"column {name!r} comes from names of folders")
        if any(f"/{name}=" in unquote(uri) for uri in uris):
            raise NotPlainError(f"column {name!r} comes from names of folders")
    types = {name: frame.schema[name].dataType for name in columns}

    def look(uri: str) -> tuple[str, list[tuple[int, int]]]:
        path = unquote(uri)
        footer = parquet_files.open_unencrypted(path)
        fields = footer.schema_arrow
        for name, data_type in types.items():
            if len(fields.get_all_field_indices(name)) != 1 or not reads_alike(
                fields.field(name).type, data_type
            ):
                raise NotPlainError(f"column {name!r} of {uri} has another type than Spark reads")
        found = footer.metadata
        return path, [measure_group(found.row_group(i), columns) for i in range(found.num_row_groups)]

    try:
        looked_at = map_in_threads(look, uris)
    except (OSError, SparkDbpError, pa.ArrowException) as error:
        raise NotPlainError(f"this process cannot look into them: {error}") from error
    if sum(rows for _, groups in looked_at for rows, _ in groups) != n_rows:
        raise NotPlainError("they changed since they were counted")
    return FileScan(
        frame.sparkSession,
        share_groups(looked_at, count_shuffle_partitions(frame.sparkSession)),
        n_rows,
        progress,
        _read_task,
    )


def share_groups(
    found: list[tuple[str, list[tuple[int, int]]]], n_partitions: int
) -> list[list[tuple[str, list[int]]]]:
    """Row groups for each task of a scan: evenly, but neither few bytes nor many.

    Parameters
    ----------
    found : list of (str, list of (int, int))
        Files, and rows and uncompressed bytes of their row groups (`measure_group`).
    n_partitions : int
        Of a shuffle.

    Returns
    -------
    list of list of (str, list of int)
        For each task files and numbers of row groups.
    """
    total = sum(size for _, groups in found for _, size in groups)
    return _share(found, max(_FEW_BYTES, min(_TASK_BYTES, total // n_partitions)))


def measure_group(group: Any, columns: Collection[str]) -> tuple[int, int]:
    """Rows of a row group, and the uncompressed bytes of `columns`."""
    sizes = (group.column(number) for number in range(group.num_columns))
    return group.num_rows, sum(
        one.total_uncompressed_size for one in sizes if one.path_in_schema.split(".")[0] in columns
    )


def _share(
    found: list[tuple[str, list[tuple[int, int]]]], task_bytes: int
) -> list[list[tuple[str, list[int]]]]:
    """Row groups for each task: neighbours, up to `task_bytes`.

    Examples
    --------
    >>> group = (5, 10)  # rows and bytes
    >>> _share([("a", [group, group, group]), ("b", [group]), ("c", [])], 20)
    [[('a', [0, 1])], [('a', [2]), ('b', [0])]]
    """
    tasks: list[list[tuple[str, list[int]]]] = []
    held = task_bytes
    for path, groups in found:
        for number, (_, size) in enumerate(groups):
            if held + size > task_bytes or not tasks:
                tasks.append([])
                held = 0
            if not tasks[-1] or tasks[-1][-1][0] != path:
                tasks[-1].append((path, []))
            tasks[-1][-1][1].append(number)
            held += size
    return tasks


def reads_alike(arrow_type: pa.DataType, data_type: DataType) -> bool:
    """Whether pyarrow reads from a file of the input, as `arrow_type`, the values that Spark reads.

    Left out are types that depend on settings of the session, such as times and dates, and all that Spark
    converts.
    """
    import pyarrow as pa
    from pyspark.sql import types as T

    plain: dict[type[DataType], pa.DataType] = {
        T.BooleanType: pa.bool_(),
        T.ByteType: pa.int8(),
        T.ShortType: pa.int16(),
        T.IntegerType: pa.int32(),
        T.LongType: pa.int64(),
        T.FloatType: pa.float32(),
        T.DoubleType: pa.float64(),
    }
    if isinstance(data_type, T.StringType):
        return arrow_type in (pa.string(), pa.large_string())
    if isinstance(data_type, T.BinaryType):
        return arrow_type in (pa.binary(), pa.large_binary())
    if isinstance(data_type, T.DecimalType):
        return arrow_type == pa.decimal128(data_type.precision, data_type.scale)
    if isinstance(data_type, T.ArrayType) and isinstance(data_type.elementType, T.FloatType | T.DoubleType):
        is_list = (
            pa.types.is_list(arrow_type)
            or pa.types.is_large_list(arrow_type)
            or pa.types.is_fixed_size_list(arrow_type)
        )
        return is_list and arrow_type.value_type == plain[type(data_type.elementType)]
    return arrow_type == plain.get(type(data_type))


def _read_task(places: list[tuple[str, list[int]]], names: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Batches of some row groups of some files."""
    for path, groups in places:
        yield from _read_groups(path, groups, names)


def _read_groups(path: str, groups: list[int], names: Mapping[str, str]) -> Iterator[pa.RecordBatch]:
    """Batches of some row groups of a file, with its columns renamed."""
    import pyarrow as pa

    columns = list(dict.fromkeys(names.values()))
    try:
        for batch in parquet_files.iter_parquet(path, columns, _BATCH_ROWS, _BATCH_BYTES, groups):
            columns_read = {new: _as_plain_text(batch.column(name)) for new, name in names.items()}
            yield pa.RecordBatch.from_pydict(columns_read)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _as_plain_text(column: pa.Array) -> pa.Array:
    """Texts and bytes in the one type of both: files of a table may have either, and batches are joined."""
    import pyarrow as pa

    plain = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
    return column.cast(plain[column.type]) if column.type in plain else column
