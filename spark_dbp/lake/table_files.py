"""Which files make up a table, and whether they are as they were written. Imports `errors` and `files`.

A listing of a table's directory may show files that are no part of it: those of failed attempts, where the
platform's way to commit a table leaves them visible. So the files of a table are those that Spark reads, or
those that workers say they wrote. A listing tells only their sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files, parquet_files

Item = TypeVar("Item")
Result = TypeVar("Result")

# Requests to a store at once.
_THREADS = 16


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """What `function` returns for each item; some at a time, for stores answer slowly."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(function, items))


def read_footers(path: str, names: Iterable[str]) -> list[tuple[int, Any]]:
    """Rows and Arrow schema of each of the Parquet files `names` of the directory `path`, by their footers.

    Raises
    ------
    OSError, pyarrow.ArrowException
        When a file is not there, or is no Parquet.
    """

    def read(name: str) -> tuple[int, Any]:
        file = parquet_files.open_parquet(files.join(path, name))
        return file.metadata.num_rows, file.schema_arrow

    return map_in_threads(read, names)


def list_table_files(path: str, names: Collection[str] = ()) -> tuple[dict[str, int], list[str]]:
    """The files of the table at `path`, and other files beside them.

    Parameters
    ----------
    path : str
        Directory of the table.
    names : collection of str, optional
        Names of the table's files. Without any, all files of the directory are taken for the table's.

    Returns
    -------
    sizes : dict of str to int
        Bytes of each file of the table.
    others : list of str
        Names of files that are no part of it.

    Raises
    ------
    SparkDbpError
        When a file of the table is not listed.
    """
    shown = files.list_sizes(path)
    names = names or list(shown)
    missing = sorted(set(names) - set(shown))
    if missing:
        raise SparkDbpError(
            f"{path}: file {missing[0]!r} was written and is not there",
            mend="something else deletes files of the run directory, or its store lists late: run again",
        )
    return {name: shown[name] for name in sorted(names)}, sorted(set(shown) - set(names))


def compare_files(found: Mapping[str, int], written: Mapping[str, int], ignored: Collection[str] = ()) -> str:
    """How the files of a table, name to size, differ from those that were written; empty when they do not.

    Parameters
    ----------
    found, written : mapping of str to int
    ignored : collection of str
        Names of files that lay beside the table's when it was written.

    Examples
    --------
    >>> compare_files({"a": 3}, {"a": 4})
    "file 'a' has 3 bytes where 4 were written"
    >>> compare_files({"a": 3, "b": 1, "c": 1}, {"a": 3}, ignored=["b"])
    "file 'c' does not belong to it"
    """
    for name, size in written.items():
        if name not in found:
            return f"file {name!r} is missing"
        if found[name] != size:
            return f"file {name!r} has {found[name]:,} bytes where {size:,} were written"
    alien = sorted(set(found) - set(written) - set(ignored))
    return f"file {alien[0]!r} does not belong to it" if alien else ""
