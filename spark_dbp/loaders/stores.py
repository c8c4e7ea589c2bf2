"""Read byte ranges of files in stores. Imports `files`, `mounts`, `errors`; fsspec and pyarrow in functions.

fsspec serves a store where it is installed and knows the scheme, because its clients are made anew in a
forked process. Otherwise pyarrow does.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.lake import files, mounts

log = logging.getLogger("spark_dbp")

Options = Mapping[str, Any]

# Seconds before a request that failed is made again. Clients of S3 have tried several times by then.
_PAUSES = (0.5, 2.0)
_BUFFER_BYTES = 8 << 20
_MOST_FOUND = 512
# What another attempt does not mend.
_FINAL = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotImplementedError,
    TypeError,
    SparkDbpError,
)

# No lock: several threads that find the same file at once only do some work twice.
_found: dict[tuple[int, str, str], Any] = {}


class _FsspecFile:
    """A file that fsspec serves."""

    def __init__(self, filesystem: Any, inner: str) -> None:
        self._filesystem, self._inner = filesystem, inner

    def read(self, start: int, stop: int) -> bytes:
        return self._filesystem.cat_file(self._inner, start=start, end=stop)

    def size(self) -> int | None:
        return self._filesystem.size(self._inner)

    def open(self) -> Any:
        return self._filesystem.open(self._inner, "rb", block_size=_BUFFER_BYTES)


class _ArrowFile:
    """A file that pyarrow serves."""

    def __init__(self, filesystem: Any, inner: str) -> None:
        self._filesystem, self._inner = filesystem, inner
        self._file: Any = None

    def read(self, start: int, stop: int) -> bytes:
        if self._file is None:  # opening it is a request of its own
            self._file = self._filesystem.open_input_file(self._inner)
        return self._file.read_at(stop - start, start)

    def size(self) -> int | None:
        found = self._filesystem.get_file_info(self._inner)
        if not found.is_file:
            raise FileNotFoundError(self._inner)
        return int(found.size)

    def open(self) -> Any:
        return self._filesystem.open_input_file(self._inner)


def read_range(path: str, start: int, stop: int, options: Options | None = None) -> bytes:
    """The bytes of a file in a store from `start` to `stop`.

    Parameters
    ----------
    path : str
        A URI.
    start, stop : int
    options : mapping, optional
        Of fsspec's file system, such as ``{"anon": True}``.

    Raises
    ------
    InputError
        When there is no such file, or it ends earlier.
    SparkDbpError
        When the store answers nothing else than errors.
    """
    content = _ask(path, options, lambda file: file.read(start, stop))
    if len(content) != stop - start:
        raise InputError(
            f"{path}: {stop - start:,} bytes from byte {start:,} on were asked for, and {len(content):,} "
            "came",
            mend="the file has changed, and its index must be made again; or its server does not give byte "
            "ranges: copy the shards to a disk or to another store",
        )
    return content


def read_size(path: str, options: Options | None = None) -> int | None:
    """Bytes of a file in a store; None where the store does not say."""
    return _ask(path, options, lambda file: file.size())


def open_file(path: str, options: Options | None = None) -> Any:
    """A file in a store, open for reading; it can seek."""
    return _ask(path, options, lambda file: file.open())


def _ask(path: str, options: Options | None, question: Any) -> Any:
    found = _find(path, options)
    for pause in (*_PAUSES, None):
        try:
            return question(found)
        except FileNotFoundError:
            raise InputError(
                f"there is no file {path}", mend="check that it is still there, or make the index again"
            ) from None
        except _FINAL as error:
            if isinstance(error, SparkDbpError):
                raise
            raise SparkDbpError(f"cannot read {path}: {error}", mend=mounts.MEND) from error
        except Exception as error:  # clients have errors of their own, of which not all are OSError
            if pause is None:
                raise SparkDbpError(f"cannot read {path}: {error!r}", mend=mounts.MEND) from error
            log.debug("%s is asked for again, because of %r", path, error)
            time.sleep(pause)
    raise AssertionError("unreachable")


def _find(path: str, options: Options | None) -> Any:
    # A forked process must not share a client: hence its number.
    key = os.getpid(), path, json.dumps(dict(options or {}), sort_keys=True, default=str)
    found = _found.get(key)
    if found is None:
        if len(_found) >= _MOST_FOUND:
            _found.clear()  # their clients stay, and are found again quickly
        found = _found[key] = _open(path, options or {})
    return found


def _open(path: str, options: Options) -> Any:
    root, key = mounts.split_root(path)
    scheme, _, authority = root.partition("://")
    known = f"{mounts.ALIASES.get(scheme, scheme)}://{authority}/{key}"
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-not-found,unused-ignore]

        return _FsspecFile(*url_to_fs(known, **options))
    except (ImportError, ValueError) as error:  # no fsspec, no package for the scheme, an unknown scheme
        reason = str(error)
    except Exception as error:
        raise SparkDbpError(f"cannot open {root} with fsspec: {error}", mend=mounts.MEND) from error
    try:
        with files.reached(path) as (filesystem, inner):
            return _ArrowFile(filesystem, inner)
    except ConfigError:
        raise ConfigError(
            f"cannot open {root}: {reason}",
            mend="install fsspec with the package for that scheme: s3fs, gcsfs, aiohttp (for https)",
        ) from None
