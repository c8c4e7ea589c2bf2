"""Find the kept samples of a shard, and write their rows.

Imports numpy, `keys`, `stores`, `tar_samples`, `files` and `errors`. `index_writer` says what an index
consists of. pyarrow is imported inside functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spark_dbp.errors import ConfigError, InputError
from spark_dbp.lake import files
from spark_dbp.lake.tar_samples import TarSample, read_tar_samples
from spark_dbp.loaders import stores
from spark_dbp.loaders.keys import KeyForm, KeyFunction, NoKeyError, find_kept, open_keep, open_key_form

if TYPE_CHECKING:
    import pyarrow as pa

SAMPLES = "samples"

# Keys that are looked up at once. Bytes of rows in memory before they are written to a file.
_BATCH_KEYS, _FILE_BYTES = 4096, 32 << 20


def samples_schema() -> pa.Schema:
    """Columns of ``samples/*.parquet``."""
    import pyarrow as pa

    texts, numbers = pa.list_(pa.string()), pa.list_(pa.int64())
    return pa.schema(
        {
            "key": pa.string(),
            "sample": pa.string(),
            "shard": pa.int32(),
            "position": pa.int32(),
            "start": pa.int64(),
            "stop": pa.int64(),
            "suffixes": texts,
            "offsets": numbers,
            "sizes": numbers,
        }
    )


def shards_schema() -> pa.Schema:
    """Columns of ``shards.parquet``."""
    import pyarrow as pa

    long, text = pa.int64(), pa.string()
    return pa.schema(
        {
            "shard": pa.int32(),
            "path": text,
            "samples": long,
            "kept": long,
            "bytes": long,
            "kept_bytes": long,
            "file": text,
            "row_group": pa.int32(),
        }
    )


class ShardRow(NamedTuple):
    """A row of ``shards.parquet``. `file` and `row_group` are None where nothing is kept."""

    shard: int
    path: str
    samples: int
    kept: int
    bytes: int
    kept_bytes: int
    file: str | None
    row_group: int | None


@dataclass(frozen=True)
class IndexedShard:
    """What an index says of a shard.

    Attributes
    ----------
    path : str
    samples, bytes, kept_bytes : int
        Samples of the tar; bytes of it, and of its kept samples.
    rows : pyarrow.RecordBatch
        Of ``samples/*.parquet``, in the order of the tar.
    without_key : int
        Samples from which no key can be made. They are not kept.
    without_key_example : str
        One of them, and why; empty when there is none.
    """

    path: str
    samples: int
    bytes: int
    kept_bytes: int
    rows: pa.RecordBatch
    without_key: int = 0
    without_key_example: str = ""

    @property
    def found(self) -> list[str]:
        """The texts of the kept keys, in the order of the tar; one twice when two samples have it."""
        return self.rows.column("key").to_pylist()


def index_shard(
    path: str,
    keep: Any,
    key: str | KeyFunction | KeyForm = "webdataset",
    *,
    number: int = 0,
    content: IO[bytes] | None = None,
    size: int | None = None,
    storage_options: stores.Options | None = None,
) -> IndexedShard:
    """Find the kept samples of a shard, in the headers of the tar.

    Parameters
    ----------
    path : str
        A tar; local or a URI.
    keep : KeepTrie, set, or path of a run
        The kept keys. What has `contains_many` is asked for many at once.
    key : str or callable
        How a key is made: ``webdataset``, ``json:FIELD``, ``shard/key``, or a function.
    number : int
        Of the shard.
    content, size : optional
        The tar, open for reading, and how many bytes it has, where somebody else opens it.
    storage_options : mapping, optional
        Of fsspec.

    Returns
    -------
    IndexedShard

    Raises
    ------
    InputError
        When there is no shard, it is no whole tar, or compressed.
    ConfigError
        When `keep` or `key` is not what it should be.
    """
    form, keep = open_key_form(key), open_keep(keep)
    path = files.normalize(path)
    kept: list[tuple[str, TarSample]] = []
    asked: list[tuple[str, TarSample]] = []
    n_samples = without = 0
    example = ""

    def look_up() -> None:
        chosen = find_kept(keep, [text for text, _ in asked]) if asked else ()
        kept.extend(pair for pair, is_kept in zip(asked, chosen, strict=True) if is_kept)
        asked.clear()

    if content is None:
        content, size = _open_shard(path, storage_options)
    if size is None:
        raise ConfigError(f"the size of shard {path} is not given", mend="give content and size together")
    with content:
        texts = ["json"] if form.needs_json else False
        seeks = size if content.seekable() else None
        for sample in read_tar_samples(content, path, size=seeks, with_texts=texts):
            n_samples += 1
            try:
                asked.append((form.make_key(sample.key, sample.json, path), sample))
            except NoKeyError as error:
                without += 1
                example = example or f"sample {sample.key!r} of {path}: {error}"
            sample.json = None
            if len(asked) >= _BATCH_KEYS:
                look_up()
    look_up()
    rows = _to_batch(kept, number, path)
    kept_bytes = sum(sample.stop - sample.start for _, sample in kept)
    return IndexedShard(path, n_samples, size, kept_bytes, rows, without, example)


class SampleWriter:
    """Writes the rows of shards below ``samples``. To be used in a ``with`` statement.

    Parameters
    ----------
    out : str
        The directory of the index.
    name : str
        Begin of the names of its files; another one for each writer of an index.

    Examples
    --------
    >>> with SampleWriter("index", "part-00000") as writer:  # doctest: +SKIP
    ...     rows = [writer.add(index_shard(path, keep, number=n), n) for n, path in enumerate(paths)]
    """

    def __init__(self, out: str, name: str) -> None:
        self._folder, self._name = files.join(files.normalize(out), SAMPLES), name
        self._n_files = self._n_groups = 0
        self._sink: Any = None
        self._writer: Any = None

    def add(self, indexed: IndexedShard, number: int) -> ShardRow:
        """Write the rows of a shard as one row group.

        Parameters
        ----------
        indexed : IndexedShard
        number : int
            Of the shard.

        Returns
        -------
        ShardRow
            For `finish_index`.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        n_kept = indexed.rows.num_rows
        counts = (n_kept, indexed.bytes, indexed.kept_bytes)
        if not n_kept:
            return ShardRow(number, indexed.path, indexed.samples, *counts, None, None)
        if self._writer is None:
            self._sink = pa.BufferOutputStream()
            self._writer = pq.ParquetWriter(self._sink, samples_schema(), compression="zstd")
        self._writer.write_table(pa.Table.from_batches([indexed.rows]), row_group_size=n_kept)
        group, file = self._n_groups, f"{self._name}-{self._n_files:05d}.parquet"
        self._n_groups += 1
        if self._sink.tell() > _FILE_BYTES:
            self._flush()
        return ShardRow(number, indexed.path, indexed.samples, *counts, file, group)

    def _flush(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        file = files.join(self._folder, f"{self._name}-{self._n_files:05d}.parquet")
        files.write_bytes(file, self._sink.getvalue().to_pybytes())
        self._writer = self._sink = None
        self._n_files, self._n_groups = self._n_files + 1, 0

    def __enter__(self) -> SampleWriter:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        if kind is None:
            self._flush()


def _open_shard(path: str, options: stores.Options | None) -> tuple[Any, int]:
    if not files.is_local(path):
        size = stores.read_size(path, options)
        if size is None:
            raise InputError(
                f"the store does not say how large shard {path} is",
                mend="copy it to a disk, or another store",
            )
        return stores.open_file(path, options), size
    try:
        return Path(path).open("rb"), Path(path).stat().st_size
    except OSError as error:
        raise InputError(f"cannot read shard {path}: {error.strerror}", mend="check the path") from None


def _to_batch(kept: list[tuple[str, TarSample]], number: int, path: str) -> pa.RecordBatch:
    import pyarrow as pa

    samples = [sample for _, sample in kept]
    members = [member for sample in samples for member in sample.members]
    cuts = pa.array(np.cumsum([0, *(len(sample.members) for sample in samples)]), pa.int32())
    schema = samples_schema()
    try:
        suffixes = pa.array([suffix for suffix, _, _ in members], pa.string())
    except UnicodeEncodeError:
        raise InputError(
            f"shard {path}: the name of a member is not UTF-8",
            mend="write the shard again with names in UTF-8",
        ) from None
    columns = [
        pa.array([key for key, _ in kept], pa.string()),
        pa.array([sample.key for sample in samples], pa.string()),
        pa.array(np.full(len(kept), number, np.int32)),
        pa.array([sample.position for sample in samples], pa.int32()),
        pa.array([sample.start for sample in samples], pa.int64()),
        pa.array([sample.stop for sample in samples], pa.int64()),
        pa.ListArray.from_arrays(cuts, suffixes),
        pa.ListArray.from_arrays(cuts, pa.array([offset for _, offset, _ in members], pa.int64())),
        pa.ListArray.from_arrays(cuts, pa.array([size for _, _, size in members], pa.int64())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
