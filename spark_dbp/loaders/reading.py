"""Read kept samples out of shards. Imports numpy, `index`, `shard_cache`, `stores`, `files` and `errors`.

A sample is one range of bytes of its shard. On a local disk it is read as such. In a store, the samples of a
batch are read at once, neighbours in one request; and the next batch is read while this one is used. Where
most of a shard is kept, the whole shard is fetched into a cache on the local disk.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.lake import files
from spark_dbp.loaders import stores
from spark_dbp.loaders.index import KeptRows, ShardIndex
from spark_dbp.loaders.order import Numbers
from spark_dbp.loaders.shard_cache import ShardCache, refuse_changed

log = logging.getLogger("spark_dbp")

Sample = dict[str, Any]

# The share of a shard's bytes above which it is fetched whole (`benchmarks/loaders.py` measures where it
# lies).
WHOLE_SHARD_ABOVE = 0.25
CACHE_BYTES = 20 << 30
# Requests at once. Bytes between two samples that are read with them rather than asked for apart, and bytes
# of such a request at most. Batches that are read ahead.
_REQUESTS, _GAP_BYTES, _MOST_BYTES, _BATCHES_AHEAD = 16, 128 << 10, 8 << 20, 2
_FETCHES, _MOST_OPEN = 8, 256
# Where the header before the data says its size, counted from the data. Larger sizes may be written
# elsewhere.
_SIZE_FIELD, _LARGE = (-388, -376), 8**11


class _Wanted(NamedTuple):
    """A sample of a batch that is to be read."""

    place: int  # in the batch
    rows: KeptRows
    row: int


class SampleReader:
    """Reads samples of an index, in one process.

    Parameters
    ----------
    index : ShardIndex
    cache_dir : str, optional
        Where whole shards of a store are held; without it, byte ranges are read always.
    cache_bytes : int
    whole_shard_above : float
        Shards of which this machine reads a larger share of the bytes are fetched whole.
    share : float
        The part of the kept samples that this machine reads.
    """

    def __init__(
        self,
        index: ShardIndex,
        *,
        cache_dir: str | None = None,
        cache_bytes: int = CACHE_BYTES,
        whole_shard_above: float = WHOLE_SHARD_ABOVE,
        share: float = 1.0,
    ) -> None:
        if not isinstance(whole_shard_above, (int, float)) or not whole_shard_above >= 0:
            raise ConfigError(
                f"whole_shard_above is {whole_shard_above!r}", mend="give a share of the bytes, such as 0.25"
            )
        self._index = index
        self._whole_above, self._share = whole_shard_above, share
        self._cache = ShardCache(cache_dir, cache_bytes, index.storage_options) if cache_dir else None
        self._open: OrderedDict[int, IO[bytes]] = OrderedDict()
        self._requests: ThreadPoolExecutor | None = None
        self._fetches: ThreadPoolExecutor | None = None
        self._ahead: threading.Thread | None = None
        self._wanted: list[tuple[str, int]] = []
        self._has_hinted = False

    def read_batches(self, batches: Iterable[tuple[Numbers, Numbers]]) -> Iterator[list[Sample]]:
        """The samples of batches, in order.

        Parameters
        ----------
        batches : iterable of (shards, rows)
            Of each sample its shard, and its number among the kept ones of it.
        """
        batches = iter(batches)
        first = next(batches, None)
        if first is None:
            return
        if all(files.is_local(self._index.shard_path(shard)) for shard in set(first[0].tolist())):
            yield self.read(*first)
            for batch in batches:
                yield self.read(*batch)
            return
        with _one_thread() as thread:
            waiting: deque[Future[list[Sample]]] = deque([thread.submit(self.read, *first)])
            waiting.extend(thread.submit(self.read, *batch) for batch in islice(batches, _BATCHES_AHEAD))
            while waiting:
                samples = waiting.popleft().result()
                waiting.extend(thread.submit(self.read, *batch) for batch in islice(batches, 1))
                yield samples

    def read(self, shards: Numbers, rows: Numbers) -> list[Sample]:
        """The samples of a batch.

        Raises
        ------
        InputError
            When a shard is not there, or has changed since it was indexed.
        """
        of_shards: dict[int, list[_Wanted]] = {}
        for place, (shard, row) in enumerate(zip(shards.tolist(), rows.tolist(), strict=True)):
            of_shards.setdefault(shard, []).append(_Wanted(place, self._index.read_rows(shard), row))
        found: list[Any] = [None] * len(shards)
        requests: list[tuple[str, list[_Wanted]]] = []
        for shard, wanted in of_shards.items():
            path = self._index.shard_path(shard)
            if files.is_local(path):
                self._read_local(shard, path, wanted, found)
            elif self._is_whole(shard, path):
                self._read_whole(shard, path, wanted, found)
            else:
                requests += [(path, group) for group in _merge(wanted)]
        if requests:
            # Raises the first error; which is of the shard that it names.
            if self._requests is None:
                self._requests = ThreadPoolExecutor(_REQUESTS, "spark-dbp-requests")
            list(self._requests.map(lambda one: self._read_request(one[0], one[1], found), requests))
        return found

    def fetch_ahead(self, shards: list[int]) -> None:
        """Fetch those of the shards that will be held whole, in the background.

        Where several processes of a machine do so, each takes others.
        """
        if self._cache is None:
            return
        chosen, room = [], self._cache.max_bytes // 2
        for shard in shards:
            path, size = self._index.shard_path(shard), int(self._index.bytes[shard])
            if not files.is_local(path) and self._is_whole(shard, path):
                room -= size
                if room < 0:
                    break
                chosen.append((path, size))
        self._wanted = chosen
        if chosen and (self._ahead is None or not self._ahead.is_alive()):
            self._ahead = threading.Thread(target=self._fetch_all, args=(self._cache,), daemon=True)
            self._ahead.start()

    def _fetch_all(self, cache: ShardCache) -> None:
        while self._wanted:  # the list may be replaced by one that goes further
            path, size = self._wanted.pop(0)
            try:
                cache.fetch_ahead(path, size, self._fetchers())
            except (SparkDbpError, RuntimeError) as error:  # who needs the shard says so
                log.debug("%s could not be fetched ahead: %s", path, error)

    def _is_whole(self, shard: int, path: str) -> bool:
        share = self._share * self._index.kept_bytes[shard] / max(1, self._index.bytes[shard])
        if share < self._whole_above:
            return False
        if self._cache is not None:
            return self._cache.fits(int(self._index.bytes[shard]))
        if not self._has_hinted:
            self._has_hinted = True
            log.warning(
                "%.0f %% of the bytes of %s are read, sample by sample: with cache_dir=DIRECTORY such shards "
                "are fetched whole",
                100 * share,
                path,
            )
        return False

    def _fetchers(self) -> ThreadPoolExecutor:
        if self._fetches is None:
            self._fetches = ThreadPoolExecutor(_FETCHES, "spark-dbp-fetches")
        return self._fetches

    def _read_local(self, shard: int, path: str, wanted: list[_Wanted], found: list[Any]) -> None:
        stream = self._open.get(shard)
        if stream is None:
            stream = self._open[shard] = self._open_shard(shard, path)
            if len(self._open) > _MOST_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(shard)
        _read_from(stream, path, wanted, found)

    def _read_whole(self, shard: int, path: str, wanted: list[_Wanted], found: list[Any]) -> None:
        assert self._cache is not None
        # It is not left open: its bytes would stay on the disk when it has gone from the cache.
        with self._cache.open(path, int(self._index.bytes[shard]), self._fetchers()) as stream:
            _read_from(stream, path, wanted, found)

    def _open_shard(self, shard: int, path: str) -> IO[bytes]:
        size = int(self._index.bytes[shard])
        try:
            stream = Path(path).open("rb", buffering=0)  # noqa: SIM115  (held open)
        except OSError as error:
            raise InputError(
                f"cannot read shard {path}: {error.strerror}",
                mend="check that it is there; of shards that were moved, say from where to where with moved=",
            ) from None
        found = os.fstat(stream.fileno()).st_size
        if found != size:
            stream.close()
            raise refuse_changed(path, found, size)
        return stream

    def _read_request(self, path: str, wanted: list[_Wanted], found: list[Any]) -> None:
        start = min(int(rows.start[row]) for _, rows, row in wanted)
        stop = max(int(rows.stop[row]) for _, rows, row in wanted)
        content = stores.read_range(path, start, stop, self._index.storage_options)
        for place, rows, row in wanted:
            found[place] = _cut(content, start, rows, row, path)


@contextmanager
def _one_thread() -> Iterator[ThreadPoolExecutor]:
    """A thread beside this one; at the end nobody waits for what it still does."""
    threads = ThreadPoolExecutor(1, "spark-dbp-batches")
    try:
        yield threads
    finally:
        threads.shutdown(wait=False, cancel_futures=True)


def _merge(wanted: list[_Wanted]) -> list[list[_Wanted]]:
    """Samples of a shard in groups that are read with one request each."""
    ordered = sorted(wanted, key=lambda one: int(one.rows.start[one.row]))
    groups: list[list[_Wanted]] = []
    start = stop = 0
    for one in ordered:
        first, last = int(one.rows.start[one.row]), int(one.rows.stop[one.row])
        if groups and first - stop <= _GAP_BYTES and last - start <= _MOST_BYTES:
            groups[-1].append(one)
        else:
            groups.append([one])
            start = first
        stop = max(stop, last)
    return groups


def _read_from(stream: IO[bytes], path: str, wanted: list[_Wanted], found: list[Any]) -> None:
    for place, rows, row in wanted:
        start, stop = int(rows.start[row]), int(rows.stop[row])
        content = _read_at(stream, start, stop - start)
        if len(content) < stop - start:
            raise InputError(
                f"shard {path} ends at byte {start + len(content):,}, in the sample {rows.samples[row]}",
                mend="fetch it again, or make the index again",
            )
        found[place] = _cut(content, start, rows, row, path)


def _read_at(stream: IO[bytes], start: int, n_bytes: int) -> bytes:
    """Bytes of an open file. Its own position is not used where that is possible: others may share it."""
    if not hasattr(os, "pread"):  # Windows
        stream.seek(start)
        return stream.read(n_bytes)
    content = os.pread(stream.fileno(), n_bytes, start)
    while 0 < len(content) < n_bytes:
        more = os.pread(stream.fileno(), n_bytes - len(content), start + len(content))
        if not more:
            break
        content += more
    return content


def _cut(content: bytes, begin: int, rows: KeptRows, row: int, path: str) -> Sample:
    """A sample as webdataset gives it, from bytes of its shard that begin at `begin`."""
    key = rows.samples[row].as_py()
    sample: Sample = {"__key__": key, "__url__": path}
    first, last = rows.cuts[row : row + 2].tolist()
    offsets, sizes = rows.offsets[first:last].tolist(), rows.sizes[first:last].tolist()
    for suffix, offset, size in zip(rows.suffixes[first:last], offsets, sizes, strict=True):
        at = offset - begin
        field = content[at + _SIZE_FIELD[0] : at + _SIZE_FIELD[1]]
        if size < _LARGE and not _says(field, size):
            raise InputError(
                f"shard {path} has changed since it was indexed: sample {key!r} is not at byte "
                f"{begin + at:,}",
                mend="make the index again, or bring the old shard back",
            )
        sample[suffix] = content[at : at + size]
    return sample


def _says(field: bytes, size: int) -> bool:
    try:
        return int(field.partition(b"\0")[0].strip() or b"0", 8) == size
    except ValueError:
        return field[:1] == b"\x80" and int.from_bytes(field[1:], "big") == size
