"""Read images where a column only says where they are: in a file, or in a shard. Imports `files`, `errors`.

Objects of this module are made in a worker, and are called from several of its threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from spark_dbp.errors import SparkDbpError
from spark_dbp.lake import files

# Bytes of a shard that are read at once, and how many such blocks are held: images follow one another.
_BLOCK_BYTES, _BLOCKS = 8 << 20, 4


def read_whole_file(path: str) -> bytes:
    """Content of a file.

    Raises
    ------
    OSError
        When it cannot be read. A store that does not answer counts as that too.
    """
    try:
        return files.read_bytes(files.normalize(path))
    except (SparkDbpError, ValueError) as error:
        raise OSError(str(error)) from error


class MemberReader:
    """Reads members of shards, by ``path``, ``offset`` and ``size``, a block of a shard at a time.

    Parameters
    ----------
    block_bytes : int
    """

    def __init__(self, block_bytes: int = _BLOCK_BYTES) -> None:
        self._block_bytes = block_bytes
        self._lock = threading.Lock()
        self._opened: tuple[str, Any] | None = None
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def __call__(self, place: Mapping[str, Any]) -> bytes:
        """The bytes of a member.

        Raises
        ------
        OSError
            When they cannot be read.
        """
        path, offset, size = place["path"], place["offset"], place["size"]
        first, last = offset // self._block_bytes, (offset + max(1, size) - 1) // self._block_bytes
        with self._lock:  # a store is read in order, as fast as by one stream
            found = b"".join(self._read_block(path, number) for number in range(first, last + 1))
        start = offset - first * self._block_bytes
        content = found[start : start + size]
        if len(content) != size:
            raise OSError(f"{path} ends before byte {offset + size:,}")
        return content

    def _read_block(self, path: str, number: int) -> bytes:
        known = self._blocks.get((path, number))
        if known is None:
            known = self._read(path, number * self._block_bytes)
            self._blocks[path, number] = known
            if len(self._blocks) > _BLOCKS:
                self._blocks.popitem(last=False)
        return known

    def _read(self, path: str, offset: int) -> bytes:
        try:
            if self._opened is None or self._opened[0] != path:
                with files.reached(path) as (filesystem, inner):
                    self._opened = path, filesystem.open_input_file(inner)
            stream = self._opened[1]
            n_bytes = min(self._block_bytes, stream.size() - offset)
            return bytes(stream.read_at(n_bytes, offset)) if n_bytes > 0 else b""
        except SparkDbpError as error:
            raise OSError(str(error)) from error
