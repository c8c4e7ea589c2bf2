"""Read and write files, wherever they are. Imports `mounts`, `local_files`, `errors`; pyarrow in functions.

Paths are plain local paths or URIs (``s3://``, ``gs://``, ``hdfs://``, ``abfs://``, ``file://``). `mounts`
says which file system serves a URI, `local_files` what a local directory may lack.
"""

from __future__ import annotations

import os
import posixpath
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import local_files, mounts
from spark_dbp.lake.local_files import is_unsupported

_URI = re.compile(r"^[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
# File systems, by pyarrow's names, that rename a file without copying it, or copy it better than we could.
_RENAMING = ("local", "hdfs", "py::hadoop")
_COPIES_AT_ONCE = 16
_CHUNK_BYTES = 8 << 20


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


def is_store_mount(path: str) -> bool:
    """Whether a path is a local one below a mount of a store.

    Examples
    --------
    >>> is_store_mount("/Volumes/main/lake/runs/run"), is_store_mount("/data/run")
    (True, False)
    """
    return is_local(path) and local_files.is_store_mount(normalize(path))


def _open_filesystem(path: str) -> tuple[Any, str]:
    from pyarrow import fs

    if is_local(path):
        return fs.LocalFileSystem(), normalize(path)
    root, key = mounts.split_root(path)
    filesystem, inner = mounts.open_root(root)
    return filesystem, posixpath.join(inner, key) if key else inner


@contextmanager
def reached(path: str) -> Iterator[tuple[Any, str]]:
    """The file system of `path`, and the path in it. Errors of a store become a `SparkDbpError`."""
    try:
        yield _open_filesystem(path)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except Exception as error:
        # pyarrow's Azure client raises the base class of Arrow's errors. Others speak of a file's content.
        if is_local(path) or not (isinstance(error, OSError) or type(error).__name__ == "ArrowException"):
            raise
        mounts.forget_clients()
        raise SparkDbpError(str(error), mend=mounts.MEND) from error


def exists(path: str) -> bool:
    """Whether there is a file or a directory at `path`."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        return bool(filesystem.get_file_info(inner).type != fs.FileType.NotFound)


def list_names(path: str) -> list[str]:
    """Sorted names of all files and directories in the directory `path`; empty when it does not exist."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return sorted(info.base_name for info in found)


def list_sizes(path: str) -> dict[str, int]:
    """Sizes in bytes of the files in the directory `path`, without those that Spark treats as hidden."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    shown = [info for info in found if info.is_file and not info.base_name.startswith(("_", "."))]
    return {info.base_name: int(info.size) for info in sorted(shown, key=lambda info: info.base_name)}


def look_up(path: str) -> tuple[int, int]:
    """Size of a file in bytes, and when it was changed: in microseconds, exact to milliseconds."""
    with reached(path) as (filesystem, inner):
        info = filesystem.get_file_info(inner)
    if not info.is_file:
        raise FileNotFoundError(f"there is no file {path}")
    return int(info.size), (info.mtime_ns or 0) // 1_000_000 * 1000


def list_changes(path: str) -> dict[str, tuple[int, int]]:
    """Size of each file in the directory `path`, and when it was changed, as `look_up` says them."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    shown = (info for info in found if info.is_file)
    return {info.base_name: (int(info.size), (info.mtime_ns or 0) // 1_000_000 * 1000) for info in shown}


def list_kinds(path: str) -> dict[str, bool]:
    """Names of all files and directories in the directory `path`, and whether each is a directory."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        found = filesystem.get_file_info(fs.FileSelector(inner, allow_not_found=True))
    return {info.base_name: info.type == fs.FileType.Directory for info in found}


def list_tree(path: str) -> dict[str, int]:
    """Relative paths and sizes of all files below a directory; of a file its size, under an empty name."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        info = filesystem.get_file_info(inner)
        if info.is_file:
            return {"": int(info.size)}
        found = filesystem.get_file_info(fs.FileSelector(inner, recursive=True, allow_not_found=True))
    return {posixpath.relpath(item.path, inner): int(item.size) for item in found if item.is_file}


def read_start(path: str, n_bytes: int) -> bytes:
    """The first `n_bytes` bytes of a file, or all where it is shorter."""
    with reached(path) as (filesystem, inner), filesystem.open_input_file(inner) as stream:
        return bytes(stream.read(n_bytes))


def measure_tree(path: str) -> int:
    """Bytes of all files in a directory, or of one file."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        info = filesystem.get_file_info(inner)
        if info.type != fs.FileType.Directory:
            return int(info.size or 0)
        found = filesystem.get_file_info(fs.FileSelector(inner, recursive=True))
    return sum(int(item.size or 0) for item in found)


def read_bytes(path: str) -> bytes:
    """Whole content of a small file."""
    with reached(path) as (filesystem, inner), filesystem.open_input_stream(inner) as stream:
        return bytes(stream.read())


def write_bytes(path: str, content: bytes) -> None:
    """Write a file so that readers see all of it or nothing. Directories are made as needed.

    An object store shows an object only when its upload has ended. Elsewhere a file is written under another
    name and then renamed. Where a local mount renames nothing, the file itself is written from beginning to
    end, and a reader may see a part of it for a moment.
    """
    if is_local(path):
        local_files.write_file(Path(normalize(path)), content)
        return
    with reached(path) as (filesystem, inner):
        if filesystem.type_name == "hdfs":
            _write_and_move(filesystem, inner, content)
        else:
            _write_stream(filesystem, inner, content)


def _write_stream(filesystem: Any, inner: str, content: bytes) -> None:
    with filesystem.open_output_stream(inner) as stream:
        stream.write(content)


def _write_and_move(filesystem: Any, inner: str, content: bytes) -> None:
    """For pyarrow's HDFS, which shows a file before its end, and does not rename over another."""
    folder, _, name = inner.rpartition("/")
    draft = f"{folder}/.{name}.{uuid4().hex[:8]}"
    _write_stream(filesystem, draft, content)
    try:
        filesystem.move(draft, inner)
    except OSError:
        filesystem.delete_file(inner)
        filesystem.move(draft, inner)


def create_file(path: str, content: bytes) -> tuple[bool, bool]:
    """Write a file where there is none yet. Directories are made as needed.

    Parameters
    ----------
    path : str
    content : bytes

    Returns
    -------
    is_created : bool
        False where there is a file already; it is left as it is.
    is_certain : bool
        Whether of several processes that try at once only one creates it. Where that is False, look a moment
        later whose content is there.
    """
    if not is_local(path):
        with reached(path) as (filesystem, inner):
            create_new = getattr(getattr(filesystem, "handler", None), "create_new", None)
            if create_new is not None:
                return create_new(inner, content), False
    elif not is_store_mount(path):
        try:
            return local_files.create_file(Path(normalize(path)), content), True
        except OSError as error:
            if not is_unsupported(error):
                raise
    if exists(path):
        return False, False
    write_bytes(path, content)
    return True, False


def touch(path: str) -> None:
    """Make an empty file. Directories are made as needed."""
    with reached(path) as (filesystem, inner):
        if is_local(path):
            Path(inner).parent.mkdir(parents=True, exist_ok=True)
        filesystem.open_output_stream(inner).close()


def delete(path: str) -> None:
    """Delete a file, or a directory with all it holds. Does nothing when there is none."""
    from pyarrow import fs

    with reached(path) as (filesystem, inner):
        kind = filesystem.get_file_info(inner).type
        if kind == fs.FileType.Directory:
            filesystem.delete_dir(inner)
        elif kind != fs.FileType.NotFound:
            filesystem.delete_file(inner)


def publish(draft: str, names: list[str], to: str) -> None:
    """Move the files `names` from the directory `draft` to `to` in the same store, and delete `draft`.

    An object store, and some mounts, can only copy a file, with a request for each. Many requests are under
    way at once, because each takes a while.
    """
    with reached(draft) as (filesystem, source), ThreadPoolExecutor(_COPIES_AT_ONCE) as threads:
        target = _open_filesystem(to)[1]
        renames = filesystem.type_name in _RENAMING and not is_store_mount(draft)

        def give(name: str) -> None:
            places = f"{source}/{name}", f"{target}/{name}"
            if renames:
                try:
                    filesystem.move(*places)
                    return
                except OSError as error:
                    if not is_local(draft) or not is_unsupported(error):
                        raise
            filesystem.copy_file(*places)

        list(threads.map(give, names))  # waits for all, and raises the first error
    delete(draft)


def copy_to_local(path: str, target: str) -> None:
    """Copy a file of any store to a local path, a part at a time."""
    with reached(path) as (filesystem, inner):
        fetch = getattr(getattr(filesystem, "handler", None), "copy_to_local", None)
        if fetch is not None:
            fetch(inner, target)
            return
        with filesystem.open_input_stream(inner) as source, Path(target).open("wb") as sink:
            shutil.copyfileobj(source, sink, _CHUNK_BYTES)


def copy_from_local(source: str, path: str) -> None:
    """Copy a local file to a path of any store, a part at a time. Directories are made as needed.

    Other than `write_bytes` it may show a part of the file for a moment, where a store is no object store.
    """
    with reached(path) as (filesystem, inner), Path(source).open("rb") as content:
        if is_local(path):
            Path(inner).parent.mkdir(parents=True, exist_ok=True)
        with filesystem.open_output_stream(inner) as sink:
            shutil.copyfileobj(content, sink, _CHUNK_BYTES)


def move_within(source: str, target: str) -> bool:
    """Rename a file or a directory of a store; False where this store could only copy it."""
    with reached(source) as (filesystem, inner):
        if filesystem.type_name not in _RENAMING:
            return False
        filesystem.move(inner, _open_filesystem(target)[1])
    return True


def renames(path: str) -> bool:
    """Whether the store of a path renames without copying."""
    with reached(path) as (filesystem, _):
        return filesystem.type_name in _RENAMING


def delete_if_empty(path: str) -> None:
    """Delete an empty directory. Most object stores have none."""
    if is_local(path):
        with suppress(OSError):  # it is not empty, or does not exist
            Path(path).rmdir()
    elif mounts.is_mounted(path):
        with reached(path) as (filesystem, inner):
            delete_empty = getattr(filesystem.handler, "delete_if_empty", None)
            if delete_empty is not None:
                delete_empty(inner)
