"""Kept samples for webdataset's pipelines.

Imports `kept`, `keys`, `stores`, `tar_headers`, `tar_samples` and `errors`. Neither webdataset nor torch is
imported here: the functions and classes fit into their pipelines.
"""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from spark_dbp.errors import ConfigError, InputError
from spark_dbp.lake import files
from spark_dbp.lake.tar_headers import TarMember, TarWalker
from spark_dbp.lake.tar_samples import refuse_tar, refuse_two_members, split_member
from spark_dbp.loaders import stores
from spark_dbp.loaders.kept import KeptSamples
from spark_dbp.loaders.keys import KeyForm, KeyFunction, NoKeyError, open_keep, open_key_form

log = logging.getLogger("spark_dbp")

__all__ = ["KeptShards", "kept", "read_kept"]

Sample = dict[str, Any]
Handler = Callable[[Exception], bool]

_DECOMPRESSORS: list[tuple[bytes, Callable[[Any], Any]]] = [
    (b"\x1f\x8b", lambda stream: gzip.GzipFile(fileobj=stream)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ", lzma.LZMAFile),
]
# What the decompressors say of damaged streams.
_DAMAGED = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


class KeptShards(KeptSamples):
    """The kept samples of an index, as the first stage of a webdataset pipeline.

    It reads their bytes and no others. It stands in place of the list of shards, the splits by node and
    worker, the shuffles, and the expansion of tars. Samples are dicts of bytes, as webdataset makes them:
    decode and map them as usual. `len` is exact.

    Parameters
    ----------
    index, batch_size, ...
        As of `KeptSamples`.

    Examples
    --------
    >>> shards = KeptShards("index", batch_size=256, seed=1)  # doctest: +SKIP
    >>> pipeline = wds.DataPipeline(  # doctest: +SKIP
    ...     shards, wds.decode("pil"), wds.to_tuple("jpg", "txt"), wds.batched(256)
    ... )
    >>> loader = wds.WebLoader(pipeline, batch_size=None, num_workers=4)  # doctest: +SKIP
    >>> for epoch in range(10):  # doctest: +SKIP
    ...     shards.set_epoch(epoch)
    ...     for images, texts in loader:
    ...         ...
    """

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        data = sys.modules.get("torch.utils.data")
        if data is not None:  # so that a DataLoader takes it for what it is
            data.IterableDataset.register(KeptShards)

    def __call__(self) -> Iterator[Sample]:
        """An iterator through an epoch, as webdataset asks a first stage for it."""
        return iter(self)

    def __getitem__(self, number: int) -> Sample:
        raise ConfigError(
            "KeptShards gives samples one after the other, not by number",
            mend="import torch before KeptShards is made, or put it into wds.DataPipeline(KeptShards(...))",
        )


class kept:
    """A predicate for webdataset's `select`: whether the key of a sample is kept.

    The bytes of the samples that it drops have been read by then; `KeptShards` reads none of them. Put it
    before anything is decoded.

    Parameters
    ----------
    keep : KeepTrie, set, or path of a run
        The kept keys.
    key : str or callable
        ``__key__``, ``json:FIELD``, ``shard/key``, or a function of (sample's key, its json as a dict or
        None, path of the shard). A sample without a key is dropped, and the first one is logged.

    Examples
    --------
    >>> is_kept = kept({"a"})
    >>> is_kept({"__key__": "a", "jpg": b""}), is_kept({"__key__": "b", "jpg": b""})
    (True, False)
    >>> dataset = wds.WebDataset(urls).select(kept("run", key="json:uid"))  # doctest: +SKIP
    """

    def __init__(self, keep: Any, key: str | KeyFunction | KeyForm = "__key__") -> None:
        self.keep, self.form = open_keep(keep), open_key_form(key)
        self._told = False

    def __call__(self, sample: Sample) -> bool:
        shard = str(sample.get("__url__", ""))
        return self.has(str(sample["__key__"]), sample.get("json"), shard)

    def has(self, sample: str, content: Any, shard: str) -> bool:
        """Whether the sample of that key, json and shard is kept."""
        try:
            return self.form.make_key(sample, content, shard) in self.keep
        except NoKeyError as error:
            if not self._told:
                self._told = True
                log.warning("samples without a key are dropped, first %r of %s: %s", sample, shard, error)
            return False


class read_kept:
    """A stage that reads the kept samples of tars, where there is no index.

    It stands in place of webdataset's expansion of tars. What is not kept is passed over: by seeking, where
    the stream can, else without looking at it.

    Parameters
    ----------
    keep, key
        As of `kept`. Where a key is made of json, members that come before it in the tar are held until it is
        known.
    handler : callable, optional
        As of webdataset: gets an exception and returns whether to go on with the next shard. By default it is
        raised.

    Examples
    --------
    >>> pipeline = wds.DataPipeline(  # doctest: +SKIP
    ...     wds.SimpleShardList(urls),
    ...     wds.split_by_node,
    ...     wds.split_by_worker,
    ...     read_kept("run", key="json:uid"),
    ...     wds.decode("pil"),
    ... )
    """

    def __init__(
        self, keep: Any, key: str | KeyFunction | KeyForm = "__key__", *, handler: Handler | None = None
    ) -> None:
        self._kept = kept(keep, key)
        self._handler = handler

    def __call__(self, source: Iterable[Sample]) -> Iterator[Sample]:
        """Kept samples of shards, of which each is a dict of ``url`` and perhaps ``stream``."""
        for shard in source:
            try:
                yield from self._read_shard(shard)
            except Exception as error:
                if self._handler is None:
                    raise
                if not self._handler(error):
                    return

    def _read_shard(self, shard: Sample) -> Iterator[Sample]:
        url = shard["url"]
        common = {"__url__": url}
        if shard.get("local_path") is not None:
            common["__local_path__"] = shard["local_path"]
        stream = shard.get("stream")
        with _open(url) if stream is None else stream as opened:
            content, size = _measure(_decompress(opened))
            walker = TarWalker(content, size)
            sample: _Reading | None = None
            try:
                for member in walker:
                    parts = split_member(member, url)
                    if parts is None:
                        continue
                    if sample is None or parts[0] != sample.key:
                        if sample is not None and sample.is_kept():
                            yield {**sample.read(), **common}
                        sample = _Reading(parts[0], url, self._kept, walker, size is not None)
                    sample.add(parts[1], member)
                if sample is not None and sample.is_kept():
                    yield {**sample.read(), **common}
            except (tarfile.TarError, *_DAMAGED) as error:
                raise refuse_tar(url, content, error) from None


class _Reading:
    """A sample of which members come one by one. They are read once it is known that it is kept.

    Where the tar cannot seek, they are read as long as it is not known whether it is.
    """

    def __init__(self, key: str, url: str, is_kept: kept, walker: TarWalker, seeks: bool) -> None:
        self.key, self._url, self._kept, self._walker, self._seeks = key, url, is_kept, walker, seeks
        self._members: dict[str, TarMember | bytes] = {}
        self._decided = None if is_kept.form.needs_json else is_kept.has(key, None, url)

    def add(self, suffix: str, member: TarMember) -> None:
        if suffix in self._members:
            raise refuse_two_members(self._url, self.key, suffix)
        content: TarMember | bytes = member
        if self._decided is None and suffix == "json":
            content = self._walker.read(member)
            self._decided = self._kept.has(self.key, content, self._url)
        elif self._decided is not False and not self._seeks:
            content = self._walker.read(member)
        self._members[suffix] = content

    def is_kept(self) -> bool:
        if self._decided is None:  # no json came
            self._decided = self._kept.has(self.key, None, self._url)
        return self._decided

    def read(self) -> Sample:
        sample: Sample = {"__key__": self.key}
        for suffix, content in self._members.items():
            sample[suffix] = content if isinstance(content, bytes) else self._walker.read(content)
        return sample


def _open(url: str) -> Any:
    if not files.is_local(url):
        return stores.open_file(url)
    path = files.normalize(url)
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise InputError(f"cannot read shard {url}: {error.strerror}", mend="check the path") from None


def _decompress(stream: Any) -> Any:
    start = stream.read(6)
    for magic, opened in _DECOMPRESSORS:
        if start.startswith(magic):
            return opened(_Rewound(start, stream))
    if _can_seek(stream):
        stream.seek(-len(start), os.SEEK_CUR)
        return stream
    return _Rewound(start, stream)


def _measure(stream: Any) -> tuple[Any, int | None]:
    """The stream, and its bytes where it can seek cheaply."""
    if isinstance(stream, (gzip.GzipFile, bz2.BZ2File, lzma.LZMAFile)) or not _can_seek(stream):
        return stream, None
    if stream.tell() != 0:
        return stream, None
    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    return stream, size


def _can_seek(stream: Any) -> bool:
    return hasattr(stream, "seekable") and stream.seekable()


class _Rewound(io.RawIOBase):
    """A stream with the bytes before it that were read already."""

    def __init__(self, start: bytes, stream: Any) -> None:
        self._start, self._stream = start, stream

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if self._start:
            given, self._start = (self._start, b"") if size < 0 else (self._start[:size], self._start[size:])
            return given if size >= 0 else given + self._stream.read()
        return self._stream.read(size)
