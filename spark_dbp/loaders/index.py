"""Read an index of shards. Imports numpy, `index_shard`, `index_writer`, `stores`, `files`, `errors`.

pyarrow is imported inside functions. What writes an index can be imported from here too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.lake import files
from spark_dbp.loaders import stores
from spark_dbp.loaders.index_shard import (
    SAMPLES,
    IndexedShard,
    SampleWriter,
    ShardRow,
    index_shard,
    shards_schema,
)
from spark_dbp.loaders.index_writer import (
    FORMAT,
    MANIFEST,
    SHARDS,
    VERSION,
    IndexReport,
    finish_index,
    write_index,
)

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = [
    "IndexReport",
    "IndexedShard",
    "KeptRows",
    "SampleWriter",
    "ShardIndex",
    "ShardRow",
    "finish_index",
    "index_shard",
    "open_index",
    "write_index",
]

# Open files of samples, and samples whose places are in memory, at most; beyond, those of one shard.
_MOST_FILES, _MOST_ROWS = 16, 50_000
_MEND = "make the index again with spark-dbp index, or copy all of it again"
_ELEMENT = "suffixes.list.element"


@dataclass(frozen=True)
class KeptRows:
    """Where the kept samples of a shard lie.

    Attributes
    ----------
    samples : pyarrow.Array of str, n of them
        Keys as webdataset forms them, in the order of the shard.
    start, stop : ndarray of shape (n,), int64
        The bytes of each.
    cuts : ndarray of shape (n + 1,), int64
        The members of sample i are those from ``cuts[i]`` to ``cuts[i + 1]``.
    suffixes : list of str
        Of all members, one after the other; equal ones are the same object.
    offsets, sizes : ndarray, int64
        Where the data of each member begins in the shard, and its bytes.
    """

    samples: Any
    start: npt.NDArray[np.int64]
    stop: npt.NDArray[np.int64]
    cuts: npt.NDArray[np.int64]
    suffixes: list[str]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.start)


class ShardIndex:
    """An index of shards. `open_index` opens one.

    The table of shards is in memory, about 150 bytes of each; the samples of a shard are read when needed. It
    can be pickled: workers get the path, and open it anew.

    Attributes
    ----------
    path : str
    info : dict
        Content of ``index.json``.
    samples, kept, bytes, kept_bytes : ndarray of shape (n_shards,), int64
        Samples of each shard, kept ones, bytes of it, and of its kept samples.
    """

    def __init__(
        self,
        path: str,
        info: dict[str, Any],
        shards: Any,
        moved: tuple[str, str] | None = None,
        storage_options: stores.Options | None = None,
    ) -> None:
        self.path, self.info = path, info
        self.moved, self.storage_options = moved, storage_options
        self.samples, self.kept, self.bytes, self.kept_bytes = (
            shards.column(name).to_numpy() for name in ("samples", "kept", "bytes", "kept_bytes")
        )
        self._paths = shards.column("path").combine_chunks()
        self._files = shards.column("file").combine_chunks().dictionary_encode()
        self._groups = shards.column("row_group").fill_null(-1).to_numpy()
        self._rows: OrderedDict[int, KeptRows] = OrderedDict()
        self._n_rows = 0
        self._open: OrderedDict[str, Any] = OrderedDict()
        self._pid = os.getpid()
        self.most_rows = _MOST_ROWS

    def __len__(self) -> int:
        return int(self.info["n_kept"])

    @property
    def n_shards(self) -> int:
        """Shards, with those that keep nothing."""
        return len(self.kept)

    @cached_property
    def digest(self) -> str:
        """What the order of its samples depends on: equal for shards that were moved, not for other ones."""
        known = hashlib.sha256(str(self.info.get("keep_list_digest", "")).encode())
        for column in (self.samples, self.kept, self.bytes, self.kept_bytes):
            known.update(np.ascontiguousarray(column, "<i8").tobytes())
        return known.hexdigest()[:16]

    def shard_path(self, shard: int) -> str:
        """Path of a shard, with the beginning that `moved` replaces."""
        path = self._paths[shard].as_py()
        if self.moved is None:
            return path
        before, after = self.moved
        if not path.startswith(before):
            raise ConfigError(
                f"shard {path} does not begin with {before!r}, which moved= replaces",
                mend="give the beginning of all paths in the index, and what stands in its place now",
            )
        return after + path[len(before) :]

    def read_rows(self, shard: int) -> KeptRows:
        """The kept samples of a shard. The last ones asked for are held in memory.

        Raises
        ------
        InputError
            When the index is damaged.
        """
        rows = self._rows.get(shard)
        if rows is not None:
            self._rows.move_to_end(shard)
            return rows
        rows = self._read_group(shard)
        self._rows[shard] = rows
        self._n_rows += len(rows)
        while self._n_rows > self.most_rows and len(self._rows) > 1:
            self._n_rows -= len(self._rows.popitem(last=False)[1])
        return rows

    def _read_group(self, shard: int) -> KeptRows:
        if not self.kept[shard]:
            none = np.zeros(0, np.int64)
            return KeptRows([], none, none, np.zeros(1, np.int64), [], none, none)
        columns = ["sample", "start", "stop", "suffixes", "offsets", "sizes"]
        return _to_rows(self.read_columns(shard, columns))

    def read_columns(self, shard: int, columns: Sequence[str]) -> pa.Table:
        """Columns of ``samples/*.parquet`` for a shard of which something is kept. They are not held.

        Raises
        ------
        InputError
            When the index is damaged.
        """
        if self._pid != os.getpid():  # a forked process shares no open file
            self._open, self._pid = OrderedDict(), os.getpid()
        name = self._files[shard].as_py()
        path = files.join(self.path, SAMPLES, str(name))
        try:
            file = self._open_samples(path)
            wanted = [*columns, "shard"]
            table = file.read_row_group(int(self._groups[shard]), wanted, use_threads=False).combine_chunks()
        except SparkDbpError:
            raise
        except Exception as error:  # errors of Arrow have several bases
            raise InputError(f"cannot read {path} of the index: {error}", mend=_MEND) from None
        found = table.column("shard")
        if len(table) != self.kept[shard] or (len(table) and found[0].as_py() != shard):
            raise InputError(
                f"the index {self.path} contradicts itself: row group {self._groups[shard]} of {name} holds "
                f"{len(table)} samples of shard {found[0].as_py() if len(table) else None}, where shard "
                f"{shard} has {self.kept[shard]}",
                mend=_MEND,
            )
        return table.select(list(columns))

    def _open_samples(self, path: str) -> Any:
        import pyarrow.parquet as pq

        file = self._open.get(path)
        if file is None:
            how = {"read_dictionary": [_ELEMENT], "pre_buffer": False}
            if files.is_local(path):
                file = pq.ParquetFile(path, memory_map=True, **how)
            else:
                file = pq.ParquetFile(stores.open_file(path, self.storage_options), **how)
            self._open[path] = file
            if len(self._open) > _MOST_FILES:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        return open_index, (self.path, self.moved, self.storage_options)

    def __repr__(self) -> str:
        return f"ShardIndex({self.path!r}, {len(self):,} of {self.info['n_samples']:,} samples kept)"


def open_index(
    path: str | os.PathLike[str] | ShardIndex,
    moved: tuple[str, str] | None = None,
    storage_options: stores.Options | None = None,
) -> ShardIndex:
    """Open an index that ``spark-dbp index`` or `write_index` wrote.

    Parameters
    ----------
    path : str
        Its directory; local or a URI.
    moved : tuple of (str, str), optional
        The beginning of the shards' paths in the index, and what stands in its place here:
        ``("s3://lake/shards/", "/data/shards/")``.
    storage_options : mapping, optional
        Of fsspec, for an index and shards in a store.

    Returns
    -------
    ShardIndex

    Raises
    ------
    InputError
        When there is no index, or it is damaged, or another program or version wrote it.

    Examples
    --------
    >>> index = open_index("index")  # doctest: +SKIP
    >>> len(index), index.n_shards  # doctest: +SKIP
    (3000, 5)
    """
    if isinstance(path, ShardIndex):
        return path
    import pyarrow as pa
    import pyarrow.parquet as pq

    base = files.normalize(os.fspath(path))
    try:
        info = json.loads(_read_file(files.join(base, MANIFEST), storage_options))
        if not isinstance(info, dict):
            raise ValueError(f"{MANIFEST} holds no names and values")
    except (OSError, ValueError) as error:
        raise InputError(
            f"no index of shards at {base}: {error}",
            mend="give the directory that spark-dbp index or write_index wrote",
        ) from None
    if info.get("format") != FORMAT or info.get("version") != VERSION:
        raise InputError(
            f"{base} holds {info.get('format')!r} version {info.get('version')!r}, "
            f"not {FORMAT!r} version {VERSION}",
            mend="read it with the version of spark-dbp that wrote it, or make the index again",
        )
    file = files.join(base, SHARDS)
    try:
        shards = pq.read_table(pa.BufferReader(_read_file(file, storage_options)))
    except (OSError, ValueError) as error:  # errors of Arrow are among them
        raise InputError(f"cannot read {file} of the index: {error}", mend=_MEND) from None
    _check_shards(base, info, shards)
    return ShardIndex(base, info, shards, moved, storage_options)


def _read_file(path: str, options: stores.Options | None) -> bytes:
    if files.is_local(path):
        return files.read_bytes(path)
    with stores.open_file(path, options) as stream:
        return bytes(stream.read())


def _check_shards(base: str, info: dict[str, Any], shards: Any) -> None:
    expected = shards_schema()
    wrong = [name for name in expected.names if name not in shards.schema.names]
    wrong += [
        name
        for name in expected.names
        if name not in wrong and shards.schema.field(name).type != expected.field(name).type
    ]
    if wrong:
        raise InputError(f"{SHARDS} of the index {base} has no columns {wrong} as they should be", mend=_MEND)
    numbers = shards.column("shard").to_numpy()
    n_kept = int(shards.column("kept").to_numpy().sum())
    if len(shards) != info.get("n_shards") or n_kept != info.get("n_kept"):
        raise InputError(
            f"the index {base} contradicts itself: {SHARDS} has {len(shards)} shards with {n_kept} kept "
            f"samples, {MANIFEST} says {info.get('n_shards')} and {info.get('n_kept')}",
            mend=_MEND,
        )
    if not np.array_equal(numbers, np.arange(len(shards))):
        raise InputError(f"{SHARDS} of the index {base} does not number its shards from 0 on", mend=_MEND)


def _to_rows(table: Any) -> KeptRows:
    import pyarrow as pa

    def flat(name: str) -> tuple[Any, Any]:
        column = table.column(name)
        whole = column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(column.chunks)
        return whole.offsets, whole.flatten()

    cuts, suffixes = flat("suffixes")
    words = suffixes.dictionary.to_pylist()
    codes = suffixes.indices.to_numpy(zero_copy_only=False)
    return KeptRows(
        table.column("sample").combine_chunks(),
        table.column("start").to_numpy(),
        table.column("stop").to_numpy(),
        np.asarray(cuts.to_numpy(), np.int64),
        [words[code] for code in codes.tolist()],
        flat("offsets")[1].to_numpy(),
        flat("sizes")[1].to_numpy(),
    )
