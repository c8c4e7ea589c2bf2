"""Read and write Parquet files, wherever they are. Imports `files`; pyarrow in functions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spark_dbp.lake import files


def read_parquet(path: str, columns: list[str] | None = None) -> Any:
    """Read a small Parquet file, or a directory of them, as a pyarrow Table; some columns of it, or all.

    Names of directories such as ``a=1`` make no columns.
    """
    import pyarrow.parquet as pq

    with files.reached(path) as (filesystem, inner):
        return pq.read_table(inner, columns=columns, filesystem=filesystem, partitioning=None)


def write_parquet(path: str, table: Any) -> str:
    """Write a small pyarrow Table as the only file of the new directory `path`. Returns the file's name."""
    name = "part-00000.parquet"
    write_parquet_file(files.join(path, name), table)
    return name


def write_parquet_file(path: str, table: Any) -> None:
    """Write a small pyarrow Table to a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    files.write_bytes(path, sink.getvalue().to_pybytes())


def iter_parquet(
    path: str, columns: list[str], batch_rows: int, batch_bytes: int, groups: list[int] | None = None
) -> Iterator[Any]:
    """Record batches of a Parquet file, or of some row groups, of so many rows and about so many bytes."""
    with files.reached(path) as (filesystem, inner), filesystem.open_input_file(inner) as source:
        yield from iter_open_parquet(source, columns, batch_rows, batch_bytes, groups, files.is_local(path))


def iter_open_parquet(
    source: Any,
    columns: list[str],
    batch_rows: int,
    batch_bytes: int,
    groups: list[int] | None = None,
    is_local: bool = True,
) -> Iterator[Any]:
    """The same of a file that is open for reading."""
    import pyarrow.parquet as pq

    # Read a local disk through a small buffer, which stays in the cache. Read a store in few large requests.
    how = {"buffer_size": 1 << 20, "pre_buffer": False} if is_local else {"pre_buffer": True}
    file = pq.ParquetFile(source, page_checksum_verification=True, **how)
    rows = min(batch_rows, max(1, int(batch_bytes / max(1.0, measure_row_bytes(file.metadata, columns)))))
    yield from file.iter_batches(rows, groups, columns, use_threads=False)


def measure_row_bytes(footer: Any, columns: list[str]) -> float:
    """Uncompressed bytes of `columns` in a row, on average, from the footer of a Parquet file."""
    names = [footer.schema.column(number).path.split(".")[0] for number in range(footer.num_columns)]
    wanted = [number for number, name in enumerate(names) if name in columns]
    total = sum(
        footer.row_group(group).column(number).total_uncompressed_size
        for group in range(footer.num_row_groups)
        for number in wanted
    )
    return total / max(1, footer.num_rows)


def open_parquet(path: str) -> Any:
    """Open a pyarrow ParquetFile, to read single row groups."""
    import pyarrow.parquet as pq

    with files.reached(path) as (filesystem, inner):
        return pq.ParquetFile(filesystem.open_input_file(inner))


def open_unencrypted(path: str) -> Any:
    """The same for a file that somebody else wrote.

    Asked for the size of an encrypted column, pyarrow ends the process. Such a file may have a footer that
    anyone can read; a signature follows it.

    Raises
    ------
    OSError
        For such a file, and as `open_parquet`.
    """
    import pyarrow.parquet as pq

    with files.reached(path) as (filesystem, inner):
        stream = filesystem.open_input_file(inner)
        file = pq.ParquetFile(stream)
        length = int.from_bytes(stream.read_at(8, stream.size() - 8)[:4], "little")
        if length != file.metadata.serialized_size:
            raise OSError(f"{path}: something follows its footer, such as a signature; it may be encrypted")
        return file


def list_leaves(schema: Any) -> list[str]:
    """Names of the columns that Parquet makes of these, nested ones by their paths.

    Examples
    --------
    >>> import pyarrow as pa
    >>> list_leaves(pa.schema([("key", pa.string()), ("embedding", pa.list_(pa.float32()))]))
    ['key', 'embedding.list.element']
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema).close()
    columns = pq.read_metadata(pa.BufferReader(sink.getvalue())).schema
    return [columns.column(number).path for number in range(len(columns))]


class ParquetSink:
    """Write a Parquet file one row group at a time. By default values are stored as they are.

    Parameters
    ----------
    path : str
    schema : pyarrow.Schema
    compression : str or dict of str to str
        pyarrow's name of the codec; or one for each column.
    use_dictionary : bool or list of str
        Columns to store with a dictionary, which helps those with few different values.
    write_statistics : bool
        Whether to store the least and the largest value of each column.
    """

    def __init__(
        self,
        path: str,
        schema: Any,
        *,
        compression: str | dict[str, str] = "none",
        use_dictionary: bool | list[str] = False,
        write_statistics: bool = False,
    ) -> None:
        import pyarrow.parquet as pq

        with files.reached(path) as (filesystem, inner):
            if files.is_local(path):
                Path(inner).parent.mkdir(parents=True, exist_ok=True)
            self._stream = filesystem.open_output_stream(inner)
        self._writer = pq.ParquetWriter(
            self._stream,
            schema,
            compression=compression,
            use_dictionary=use_dictionary,
            write_statistics=write_statistics,
        )

    def write(self, table: Any) -> None:
        """Write `table` as one row group."""
        self._writer.write_table(table, row_group_size=max(1, table.num_rows))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()
        self._stream.close()
