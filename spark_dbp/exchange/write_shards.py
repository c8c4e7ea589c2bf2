"""Write new shards in a worker: ranges of old ones, one after the other.

Imports `plan_shards`, `loaders`, `files`, `tar_samples` and `errors`. Nothing is unpacked: members keep their
headers, to the byte.
"""

from __future__ import annotations

import errno
import json
import os
import posixpath
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import InputError
from spark_dbp.exchange.plan_shards import Piece, measure_tar
from spark_dbp.lake import files
from spark_dbp.lake.tar_samples import read_tar_samples
from spark_dbp.loaders import stores
from spark_dbp.loaders.index import ShardIndex

# Of stores: requests at once, bytes between two ranges that are read with them, and bytes of a request.
_REQUESTS, _GAP_BYTES, _MOST_BYTES = 8, 256 << 10, 8 << 20
_COPY_BYTES = 8 << 20
# Of disks: ranges that the kernel is told of in advance, for it sees no order in them.
_AHEAD = 16
# What the kernel answers where it does not copy between these two files itself.
_NOT_COPIED = {errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
STATS = "_stats.json"


@dataclass(frozen=True)
class NewShard:
    """A shard that is to be written.

    Attributes
    ----------
    name : str
        Without ``.tar``.
    pieces : list of Piece
    samples, bytes : int
        Its samples, and bytes of their members.
    """

    name: str
    pieces: list[Piece]
    samples: int
    bytes: int


def write_shard(index: ShardIndex, new: NewShard, out: str, *, renames: bool) -> None:
    """Write a shard, and then its ``_stats.json``.

    Parameters
    ----------
    index : ShardIndex
        Of the old shards.
    new : NewShard
    out : str
        The directory.
    renames : bool
        Whether it is a local one in which files can be renamed. Elsewhere the shard is written to a temporary
        file on the local disk first, and put as a whole.

    Raises
    ------
    InputError
        When an old shard has changed since it was indexed.
    """
    started = time.time()
    target = files.join(out, f"{new.name}.tar")
    if renames:
        draft = Path(files.join(out, f".{new.name}.tar.{uuid4().hex[:8]}"))
        try:
            _write_draft(index, new, draft, keeps=True)
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="spark-dbp-reshard-") as folder:
            draft = Path(folder, "shard.tar")
            _write_draft(index, new, draft, keeps=False)
            _put(draft, target)
    stats = make_stats(new.samples, started, time.time())
    files.write_bytes(files.join(out, f"{new.name}{STATS}"), stats)


def make_stats(n_samples: int, started: float, ended: float) -> bytes:
    """What img2dataset writes of a shard: counts, and times as seconds since 1970."""
    stats = {
        "count": n_samples,
        "successes": n_samples,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": ended - started,
        "start_time": started,
        "end_time": ended,
        "status_dict": {"success": n_samples},
    }
    return json.dumps(stats, indent=4).encode()


def _write_draft(index: ShardIndex, new: NewShard, draft: Path, *, keeps: bool) -> None:
    with draft.open("wb", buffering=0) as sink:
        for piece in new.pieces:
            _append(index, piece, sink)
        written = sink.tell()
        if written == new.bytes:
            sink.write(bytes(measure_tar(written) - written))
        sink.flush()
        if keeps:
            os.fsync(sink.fileno())
    with draft.open("rb") as content:
        size = draft.stat().st_size
        n_samples = sum(1 for _ in read_tar_samples(content, new.name, size=size, with_texts=False))
    if (written, n_samples) != (new.bytes, new.samples):
        raise InputError(
            f"new shard {new.name}.tar has {n_samples:,} samples of {written:,} bytes, where {new.samples:,} "
            f"of {new.bytes:,} were planned: an old shard has changed since it was indexed",
            mend="see that nobody writes there meanwhile; then reshard to another directory",
        )


def _append(index: ShardIndex, piece: Piece, sink: IO[bytes]) -> None:
    """Append kept samples of an old shard."""
    rows = index.read_columns(piece.shard, ["start", "stop"]).slice(piece.start, piece.stop - piece.start)
    ranges = join_neighbours(rows.column("start").to_numpy(), rows.column("stop").to_numpy())
    path, expected = index.shard_path(piece.shard), int(index.bytes[piece.shard])
    if not files.is_local(path):
        _check_size(path, stores.read_size(path, index.storage_options), expected)
        for content in _read_store(index, path, ranges):
            sink.write(content)
        return
    try:
        with Path(path).open("rb", buffering=0) as source:
            _check_size(path, os.fstat(source.fileno()).st_size, expected)
            for number, (start, stop) in enumerate(ranges):
                first = number + _AHEAD if number else 0
                _read_ahead(source, ranges[first : number + _AHEAD + 1])
                _copy_range(source, sink, start, stop)
    except FileNotFoundError:
        raise InputError(
            f"shard {path} is gone", mend="bring it back, then run the same command again"
        ) from None


def join_neighbours(
    starts: npt.NDArray[np.int64], stops: npt.NDArray[np.int64], gap: int = 0
) -> list[tuple[int, int]]:
    """Ranges of bytes, neighbours joined where at most `gap` bytes lie between them.

    Examples
    --------
    >>> join_neighbours(np.array([0, 10, 30]), np.array([10, 20, 40]))
    [(0, 20), (30, 40)]
    """
    if not len(starts):
        return []
    cuts = np.flatnonzero(starts[1:] - stops[:-1] > gap) + 1
    firsts, lasts = np.concatenate([[0], cuts]), np.concatenate([cuts, [len(starts)]]) - 1
    return list(zip(starts[firsts].tolist(), stops[lasts].tolist(), strict=True))


def _check_size(path: str, size: int | None, expected: int) -> None:
    if size is not None and size != expected:
        raise InputError(
            f"shard {path} had {expected:,} bytes when it was indexed, and has {size:,} now",
            mend="see that nobody writes there meanwhile; then reshard to another directory",
        )


def _read_ahead(source: IO[bytes], ranges: Sequence[tuple[int, int]]) -> None:
    """Let the kernel fetch ranges of a file before they are copied, where it can be told so."""
    if not hasattr(os, "posix_fadvise"):
        return
    for start, stop in ranges:
        n_bytes = min(stop - start, _COPY_BYTES)
        with suppress(OSError):  # a mount that takes no advice
            os.posix_fadvise(source.fileno(), start, n_bytes, os.POSIX_FADV_WILLNEED)


def _copy_range(source: IO[bytes], sink: IO[bytes], start: int, stop: int) -> None:
    """Copy a range of a local file: within the kernel where it does that."""
    while start < stop:
        try:
            done = os.copy_file_range(source.fileno(), sink.fileno(), stop - start, start)
        except AttributeError:  # no Linux
            break
        except OSError as error:
            if error.errno not in _NOT_COPIED:
                raise
            break
        if not done:
            break
        start += done
    source.seek(start)
    while start < stop:
        content = source.read(min(_COPY_BYTES, stop - start))
        if not content:
            return  # it ends early, which the sum of bytes will show
        sink.write(content)
        start += len(content)


def _read_store(index: ShardIndex, path: str, ranges: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
    """Bytes of ranges of a file in a store, in their order. Some requests are under way at once."""
    waiting: deque[tuple[Future[bytes], list[tuple[int, int]]]] = deque()

    def take() -> Iterator[memoryview]:
        request, wanted = waiting.popleft()
        content = memoryview(request.result())
        begin = wanted[0][0]
        yield from (content[start - begin : stop - begin] for start, stop in wanted)

    with ThreadPoolExecutor(_REQUESTS) as threads:
        for wanted in gather_ranges(ranges, _GAP_BYTES, _MOST_BYTES):
            start, stop = wanted[0][0], wanted[-1][1]
            request = threads.submit(stores.read_range, path, start, stop, index.storage_options)
            waiting.append((request, wanted))
            if len(waiting) > _REQUESTS:
                yield from take()
        while waiting:
            yield from take()


def gather_ranges(ranges: Sequence[tuple[int, int]], gap: int, most: int) -> Iterator[list[tuple[int, int]]]:
    """Ranges that one request reads: near ones together, long ones cut.

    Examples
    --------
    >>> list(gather_ranges([(0, 5), (6, 9), (30, 55)], gap=2, most=20))
    [[(0, 5), (6, 9)], [(30, 50)], [(50, 55)]]
    """
    held: list[tuple[int, int]] = []
    for start, stop in ranges:
        for begin in range(start, stop, most):
            end = min(stop, begin + most)
            if held and (begin - held[-1][1] > gap or end - held[0][0] > most):
                yield held
                held = []
            held.append((begin, end))
    if held:
        yield held


def _put(draft: Path, target: str) -> None:
    """Write a file, which is complete, to a store or a mount as a whole."""
    if files.is_local(target):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        with draft.open("rb") as source, Path(target).open("wb") as sink:
            shutil.copyfileobj(source, sink, _COPY_BYTES)
        return
    with (
        files.reached(target) as (filesystem, inner),
        draft.open("rb") as source,
        filesystem.open_output_stream(inner) as sink,
    ):
        shutil.copyfileobj(source, sink, _COPY_BYTES)


def find_draft_of(name: str) -> str | None:
    """The shard of which a file with this name is a draft; None for other files.

    Examples
    --------
    >>> find_draft_of(".00001.tar.0123abcd"), find_draft_of(".profile")
    ('00001.tar', None)
    """
    stem, extension = posixpath.splitext(name)
    is_ours = stem.startswith(".") and stem.endswith(".tar") and len(extension) == 9
    return stem[1:] if is_ours else None
