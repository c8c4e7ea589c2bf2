"""Which file system serves a store: one that was mounted, pyarrow's, or fsspec's.

Imports `errors`; pyarrow and fsspec inside functions.

A root is the scheme and the authority of a URI: ``s3://bucket``, ``hdfs://cluster``, ``viewfs://``. Where
pyarrow cannot open it, or has no credentials, `engine.storage` mounts the file system of the Spark session.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

from spark_dbp.errors import ConfigError, SparkDbpError

MEND = "check the URI and this machine's credentials for that store"
# Schemes that only Spark's connectors know, and pyarrow's name for the same store.
ALIASES = {"s3a": "s3", "s3n": "s3", "abfss": "abfs"}

# A mounted file system belongs to the process that mounted it: it may hold a connection.
_mounted: dict[tuple[int, str], Any] = {}


def split_root(uri: str) -> tuple[str, str]:
    """The root of a URI, and what follows it.

    Examples
    --------
    >>> split_root("s3a://bucket/run/x"), split_root("hdfs:///run")
    (('s3a://bucket', 'run/x'), ('hdfs://', 'run'))
    """
    scheme, _, rest = uri.partition("://")
    authority, _, key = rest.partition("/")
    return f"{scheme}://{authority}", key


def mount(root: str, filesystem: Any) -> None:
    """Let `filesystem` serve all paths of a root, for this process.

    Parameters
    ----------
    root : str
        As from `split_root`.
    filesystem : pyarrow.fs.FileSystem
        Its paths begin with ``/``.
    """
    _mounted[os.getpid(), root] = filesystem


def unmount(root: str) -> None:
    """Undo `mount`; nothing when nothing was mounted."""
    _mounted.pop((os.getpid(), root), None)


def is_mounted(uri: str) -> bool:
    """Whether a mounted file system serves this path, in this process. It never serves a local one."""
    return (os.getpid(), split_root(uri)[0]) in _mounted


def open_root(root: str) -> tuple[Any, str]:
    """The file system of a root, and the path that the root has in it.

    Parameters
    ----------
    root : str
        As from `split_root`.

    Returns
    -------
    filesystem : pyarrow.fs.FileSystem
    path : str

    Raises
    ------
    ConfigError
        When nobody here knows the scheme.
    SparkDbpError
        When the store cannot be opened.
    """
    mounted = _mounted.get((os.getpid(), root))
    if mounted is not None:
        return mounted, "/"
    scheme, _, authority = root.partition("://")
    # Only the root goes through pyarrow's URI parser. In the rest it would decode %20, refuse spaces and cut
    # off what follows a #, while Spark takes all characters as they are.
    return _open_uri(f"{ALIASES.get(scheme, scheme)}://{authority}/", os.getpid())


@lru_cache
def _open_uri(uri: str, pid: int) -> tuple[Any, str]:
    """The client of a store, kept for further requests. A forked process must not share it, hence `pid`."""
    from pyarrow import fs

    try:
        return fs.FileSystem.from_uri(uri)
    except ValueError as error:
        found = _open_by_fsspec(uri)
        if found is not None:
            return found
        raise ConfigError(
            f"cannot open {uri!r}: {error}", mend="give a path, or a URI of a known store"
        ) from None
    except Exception as error:
        reason = str(error).split("\n")[0]  # without libhdfs, dozens of lines say where it was looked for
        raise SparkDbpError(f"cannot open {uri!r}: {reason}", mend=MEND) from error


def forget_clients() -> None:
    """Open stores anew from now on: the user may have corrected the settings."""
    _open_uri.cache_clear()


def _open_by_fsspec(uri: str) -> tuple[Any, str] | None:
    """The same from fsspec; None where it is not installed, or does not know the scheme either."""
    from pyarrow import fs

    try:
        from fsspec.core import url_to_fs  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return None
    try:
        filesystem, path = url_to_fs(uri)
    except (ValueError, ImportError):  # an unknown scheme; one whose package is missing
        return None
    except Exception as error:
        raise SparkDbpError(f"cannot open {uri!r} with fsspec: {error}", mend=MEND) from error
    return fs.PyFileSystem(fs.FSSpecHandler(filesystem)), path
