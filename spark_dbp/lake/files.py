"""Read and write files on a local disk or an object store. Imports `errors`; pyarrow inside functions.

Paths are plain local paths or URIs (``s3://``, ``gs://``, ``hdfs://``, ``abfs://``, ``file://``).
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

from spark_dbp.errors import ConfigError, SparkDbpError

_URI = re.compile(r"^[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
# Schemes that only Spark's connectors know, and pyarrow's name for the same store.
_ALIASES = {"s3a": "s3", "s3n": "s3", "abfss": "abfs"}
# File systems, by pyarrow's names, that rename a file without copying it.
_RENAMING = ("local", "hdfs")
_COPIES_AT_ONCE = 16
_MEND = "check the URI and this machine's credentials for that store"


def is_local(path: str) -> bool:
    """Whether `path` is on this machine's file system.

    Examples
    --------
    >>> is_local("/data/run"), is_local("s3://bucket/run")
    (True, False)
    """
    return not _URI.match(path) or path.startswith("file:")


def normalize(path: str | os.PathLike[str]) -> str:
    """Absolute local path, or the URI without a trailing slash.

    Examples
    --------
    >>> normalize("s3://bucket/run/"), normalize("file:///data/run")
    ('s3://bucket/run', '/data/run')
    """
    text = os.fspath(path)
    if not is_local(text):
        return re.sub(r"^([^:/]+):/(?!/)", r"\1:///", text).rstrip("/")  # hdfs:/x is hdfs:///x
    if text.startswith("file:"):
        text = "/" + text[len("file:") :].lstrip("/")
    return str(Path(os.path.expanduser(text)).absolute())  # noqa: PTH111  (leaves ./~x as it is)


def to_spark_path(path: str) -> str:
    """`path` as Spark needs it. Local paths get a scheme, because Spark's default may be another store."""
    if not is_local(path) or path.startswith(("file:", "/Volumes/", "/Workspace/")):
        return path  # Databricks knows the last two by their plain paths
    return "file://" + normalize(path)


def join(base: str, *parts: str) -> str:
    """Path below `base`.

    Examples
    --------
    >>> join("s3://bucket/run", "tables", "../other")
    's3://bucket/run/other'
    """
    if is_local(base):
        return os.path.normpath(Path(base).joinpath(*parts))
    scheme, rest = base.split("://", 1)
    return f"{scheme}://{posixpath.normpath(posixpath.join(rest, *parts))}"


def make_relative(path: str, base: str) -> str:
    """`path` relative to the directory `base`; `path` itself where they share no root.

    Examples
    --------
    >>> make_relative("s3://b/runs/one/tables/x", "s3://b/runs/two"), make_relative("s3://b/x", "/data")
    ('../one/tables/x', 's3://b/x')
    """
    if is_local(path) != is_local(base):
        return path
    if is_local(path):
        return os.path.relpath(path, base)
    (scheme, rest), (base_scheme, base_rest) = path.split("://", 1), base.split("://", 1)
    if scheme != base_scheme or rest.split("/")[0] != base_rest.split("/")[0]:
        return path
    return posixpath.relpath(rest, base_rest)


def resolve(base: str, reference: str) -> str:
    """Undo `make_relative`."""
    return reference if _URI.match(reference) or reference.startswith("/") else join(base, reference)


def _open_filesystem(path: str) -> tuple[Any, str]:
    from pyarrow import fs

    if is_local(path):
        return fs.LocalFileSystem(), normalize(path)
    scheme, _, rest = path.partition("://")
    authority, _, key = rest.partition("/")
    # Only the root goes through pyarrow's URI parser. In the rest it would decode %20, refuse spaces and cut
    # off what follows a #, while Spark takes all characters as they are.
    filesystem, root = _filesystem_of(f"{_ALIASES.get(scheme, scheme)}://{authority}/", os.getpid())
    return filesystem, posixpath.join(root, key) if key else root


@lru_cache
def _filesystem_of(root: str, pid: int) -> tuple[Any, str]:
    """The client of a store, kept for further requests. A forked process must not share it, hence `pid`."""
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(root)
    except ValueError as error:
        raise ConfigError(
            f"cannot open {root!r}: {error}", mend="give a path, or a URI of a known store"
        ) from None
    except Exception as error:
        raise SparkDbpError(f"cannot open {root!r}: {error}", mend=_MEND) from error


@contextmanager
def _reached(path: str) -> Iterator[tuple[Any, str]]:
    """The file system of `path`, and the path in it. Errors of a store become a `SparkDbpError`."""
    try:
        yield _open_filesystem(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        if is_local(path):
            raise
        _filesystem_of.cache_clear()  # the user may correct the settings before the next try
        raise SparkDbpError(str(error), mend=_MEND) from error


def exists(path: str) -> bool:
    """Whether there is a file or a directory at `path`."""
    from pyarrow import fs

    with _reached(path) as (filesystem, inner):
        return bool(filesystem.get_file_info(inner).type != fs.FileType.NotFound)


def list_names(path: str) -> list[str]:
    """Sorted names of all files and directories in the directory `path`; empty when it does not exist."""
    from pyarrow import fs

    with _reached(path) as (filesystem, inner):
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in found)


def list_sizes(path: str) -> dict[str, int]:
    """Sizes in bytes of the files in the directory `path`, without those that Spark treats as hidden."""
    from pyarrow import fs

    with _reached(path) as (filesystem, inner):
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    shown = [info for info in found if info.is_file and not info.base_name.startswith(("_", "."))]
    return {info.base_name: int(info.size) for info in sorted(shown, key=lambda info: info.base_name)}


def list_kinds(path: str) -> dict[str, bool]:
    """Names of all files and directories in the directory `path`, and whether each is a directory."""
    from pyarrow import fs

    with _reached(path) as (filesystem, inner):
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return {info.base_name: info.type == fs.FileType.Directory for info in found}


def list_tree(path: str) -> dict[str, int]:
    """Relative paths and sizes of all files below a directory; of a file its size, under an empty name."""
    from pyarrow import fs

    with _reached(path) as (filesystem, inner):
        info = filesystem.get_file_info(inner)
        if info.is_file:
            return {"": int(info.size)}
        found = filesystem.get_file_info(fs.FileSelector(inner, recursive=True, allow_not_found=True))
    return {posixpath.relpath(item.path, inner): int(item.size) for item in found if item.is_file}


def read_start(path: str, n_bytes: int) -> bytes:
    """The first bytes of a file."""
    with _reached(path) as (filesystem, inner), filesystem.open_input_file(inner) as stream:
        return bytes(stream.read(n_bytes))


def measure_tree(path: str) -> int:
    """Bytes of all files in a directory, or of one file."""
    from pyarrow import fs

    with _reached(path) as (filesystem, inner):
        info = filesystem.get_file_info(inner)
        if info.type != fs.FileType.Directory:
            return int(info.size or 0)
        found = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
    return sum(int(item.size or 0) for item in found)


def read_bytes(path: str) -> bytes:
    """Whole content of a small file."""
    with _reached(path) as (filesystem, inner), filesystem.open_input_stream(inner) as stream:
        return bytes(stream.read())


def read_head(path: str, length: int) -> bytes:
    """The first `length` bytes of a file, or all where it is shorter."""
    with _reached(path) as (filesystem, inner), filesystem.open_input_file(inner) as file:
        return bytes(file.read(length))


def write_bytes(path: str, content: bytes) -> None:
    """Write a file so that readers see all of it or nothing. Directories are made as needed.

    An object store shows an object only when its upload has ended. A local file is written under another
    name and then renamed.
    """
    if is_local(path):
        target = Path(normalize(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        draft = target.with_name(f".{target.name}.{uuid4().hex[:8]}")
        with draft.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        draft.replace(target)
        return
    with _reached(path) as (filesystem, inner), filesystem.open_output_stream(inner) as stream:
        stream.write(content)


def touch(path: str) -> None:
    """Make an empty file. Directories are made as needed."""
    with _reached(path) as (filesystem, inner):
        if is_local(path):
            Path(inner).parent.mkdir(parents=True, exist_ok=True)
        filesystem.open_output_stream(inner).close()


def delete(path: str) -> None:
    """Delete a file, or a directory with all it holds. Does nothing when there is none."""
    from pyarrow import fs

    with _reached(path) as (filesystem, inner):
        kind = filesystem.get_file_info(inner).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(inner)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(inner)


def publish(draft: str, names: list[str], to: str) -> None:
    """Move the files `names` from the directory `draft` to `to` in the same store, and delete `draft`.

    An object store can only copy a file, with a request for each. Many requests are under way at once,
    because each takes a while.
    """
    with _reached(draft) as (filesystem, source), ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        target = _open_filesystem(to)[1]
        give = filesystem.move if filesystem.type_name in _RENAMING else filesystem.copy_file
        moved = threads.map(lambda name: give(f"{source}/{name}", f"{target}/{name}"), names)
        list(moved)  # waits for all, and raises the first error
    delete(draft)


def read_parquet(path: str) -> Any:
    """Read a small Parquet file, or a directory of them, as a pyarrow Table.

    Names of directories such as ``a=1`` make no columns.
    """
    import pyarrow.parquet as pq

    with _reached(path) as (filesystem, inner):
        return pq.read_table(inner, filesystem=filesystem, partitioning=None)


def write_parquet(path: str, table: Any) -> None:
    """Write a small pyarrow Table as the only file of the new directory `path`."""
    write_parquet_file(join(path, "part-00000.parquet"), table)


def write_parquet_file(path: str, table: Any) -> None:
    """Write a small pyarrow Table to a file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(path, sink.getvalue().to_pybytes())


def iter_parquet(path: str, columns: list[str], batch_rows: int, batch_bytes: int) -> Iterator[Any]:
    """Record batches of one Parquet file, of at most `batch_rows` rows and about `batch_bytes` bytes."""
    import pyarrow.parquet as pq

    # Read a local disk through a small buffer, which stays in the cache. Read a store in few large requests.
    how = {"buffer_size": 1 << 20, "pre_buffer": False} if is_local(path) else {"pre_buffer": True}
    with _reached(path) as (filesystem, inner), filesystem.open_input_file(inner) as source:
        file = pq.ParquetFile(source, **how)
        rows = min(batch_rows, max(1, int(batch_bytes / max(1.0, measure_row_bytes(file.metadata, columns)))))
        yield from file.iter_batches(rows, columns=columns, use_threads=False)


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

    with _reached(path) as (filesystem, inner):
        return pq.ParquetFile(filesystem.open_input_file(inner))


class ParquetSink:
    """Write a Parquet file one row group at a time. By default values are stored as they are.

    Parameters
    ----------
    path : str
    schema : pyarrow.Schema
    compression : str
        pyarrow's name of the codec.
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
        compression: str = "none",
        use_dictionary: bool | list[str] = False,
        write_statistics: bool = False,
    ) -> None:
        import pyarrow.parquet as pq

        with _reached(path) as (filesystem, inner):
            if is_local(path):
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
