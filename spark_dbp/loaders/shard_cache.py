"""Whole shards of a store, in a directory that a machine's processes share. Imports `stores`, `errors`."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.loaders import stores
from spark_dbp.loaders.order import check_whole

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows: then two processes may fetch the same shard
    fcntl = None

_PART_BYTES = 8 << 20
_LOCKS = 1024
# A draft that nobody has written to for so long is of a process that was killed.
_STALE_SECONDS = 3600.0


class ShardCache:
    """Shards that were fetched, up to so many bytes; the ones that were opened longest ago go first.

    Parameters
    ----------
    folder : str
        A local directory. It is made as needed, and may be kept for the next job.
    max_bytes : int
        Of all shards in it.
    options : mapping, optional
        Of fsspec.
    """

    def __init__(self, folder: str, max_bytes: int, options: stores.Options | None = None) -> None:
        check_whole("cache_bytes", max_bytes, 1)
        self.folder, self.max_bytes, self._options = Path(folder).expanduser().absolute(), max_bytes, options
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"cache_dir {folder} cannot be made: {error.strerror}", mend="name a local directory"
            ) from None

    def fits(self, size: int) -> bool:
        """Whether a shard of so many bytes can be held."""
        return size <= self.max_bytes

    def open(self, path: str, size: int, threads: Executor) -> IO[bytes]:
        """A shard, open for reading; fetched first where it is not here.

        Parameters
        ----------
        path : str
            Of the shard in its store.
        size : int
            Its bytes.
        threads : Executor
            They fetch its parts.

        Raises
        ------
        InputError
            When the shard in the store has another size.
        """
        found = self._open_held(path, size)
        if found is not None:
            return found
        with self._locked(self._lock_of(path)):
            return self._open_held(path, size) or self._fetch(path, size, threads)

    def fetch_ahead(self, path: str, size: int, threads: Executor) -> None:
        """Fetch a shard that will be needed, unless it is here, or somebody is fetching it."""
        with self._locked(self._lock_of(path), wait=False) as has_lock:
            if has_lock and not self._file_of(path, size).exists():
                self._fetch(path, size, threads).close()

    def _file_of(self, path: str, size: int) -> Path:
        return self.folder / f"{hashlib.sha256(path.encode()).hexdigest()[:24]}-{size}.tar"

    def _lock_of(self, path: str) -> str:
        return f"{int(hashlib.sha256(path.encode()).hexdigest(), 16) % _LOCKS:04d}"

    def _open_held(self, path: str, size: int) -> IO[bytes] | None:
        file = self._file_of(path, size)
        try:
            stream = file.open("rb", buffering=0)
        except FileNotFoundError:
            return None
        with suppress(OSError):
            os.utime(file)
        return stream

    def _fetch(self, path: str, size: int, threads: Executor) -> IO[bytes]:
        file = self._file_of(path, size)
        found = stores.read_size(path, self._options)
        if found is not None and found != size:
            raise refuse_changed(path, found, size)
        draft = file.with_name(f".{uuid4().hex}.part")
        try:
            with self._locked("room"):
                self._make_room(size)
                with draft.open("wb") as target:
                    target.truncate(size)  # so that others count it
            with draft.open("r+b", buffering=0) as target:
                parts = range(0, size, _PART_BYTES)
                list(threads.map(self._fetch_part(path, size, target), parts))  # raises the first error
            stream = draft.open("rb", buffering=0)  # while it is ours: then others may delete it
            draft.replace(file)
            return stream
        except OSError as error:
            raise SparkDbpError(
                f"cannot write {size:,} bytes to cache_dir {self.folder}: {error.strerror or error}",
                mend="make room there, name another cache_dir, or less cache_bytes",
            ) from error
        finally:
            draft.unlink(missing_ok=True)

    def _fetch_part(self, path: str, size: int, target: Any) -> Callable[[int], None]:
        def fetch(start: int) -> None:
            content = stores.read_range(path, start, min(size, start + _PART_BYTES), self._options)
            while content:
                written = os.pwrite(target.fileno(), content, start)
                content, start = content[written:], start + written

        return fetch

    def _make_room(self, size: int) -> None:
        held, total = [], size
        for file in self.folder.iterdir():
            if file.suffix not in (".tar", ".part"):
                continue
            with suppress(FileNotFoundError):
                look = file.stat()
                if file.suffix == ".tar":
                    held.append((look.st_mtime, look.st_size, file))
                elif look.st_mtime < time.time() - _STALE_SECONDS:
                    file.unlink()
                    continue
                total += look.st_size
        for _, n_bytes, file in sorted(held):
            if total <= self.max_bytes:
                return
            file.unlink(missing_ok=True)  # who has it open goes on reading it
            total -= n_bytes

    @contextmanager
    def _locked(self, name: str, wait: bool = True) -> Iterator[bool]:
        if fcntl is None:
            yield True
            return
        with (self.folder / f".{name}.lock").open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True  # closing the file gives the lock back


def refuse_changed(path: str, found: int, expected: int) -> InputError:
    """What to say of a shard whose size is not that of the index."""
    return InputError(
        f"shard {path} has {found:,} bytes; when it was indexed it had {expected:,}",
        mend="make the index again, or bring the old shard back",
    )
