"""Read the tries of the kept keys. Imports numpy, `files`, `mounts`, `key_text`; marisa_trie in functions.

A key lies in shard ``crc32(its text) % n_shards``, so a look-up opens one shard only. Local shards are
memory-mapped: they take memory of the page cache, not of the process.
"""

from __future__ import annotations

import atexit
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.lake import files, mounts
from spark_dbp.loaders.key_text import VERSION_1, open_key_text

MANIFEST = "manifest.json"
FORMAT = "spark-dbp keep trie"
# Version 1 does not say of which type its keys are.
FORMAT_VERSION = 2


def find_shards(keys: list[bytes], n_shards: int) -> npt.NDArray[np.uint32]:
    """Number of the shard of each key.

    Parameters
    ----------
    keys : list of bytes, n of them
        Their texts.
    n_shards : int

    Returns
    -------
    ndarray of shape (n,), uint32

    Examples
    --------
    >>> find_shards([b"a", b"b"], 4).tolist()
    [3, 1]
    """
    return np.fromiter(map(crc32, keys), np.uint32, len(keys)) % np.uint32(n_shards)


def read_manifest(path: str) -> tuple[str, dict[str, Any]]:
    """Where the tries of a run lie, and their manifest.

    Takes and raises what `KeepTrie.open` does, and opens no shard.
    """
    base = files.normalize(path)
    try:
        if files.exists(files.join(base, "run.json")):
            run = json.loads(files.read_bytes(files.join(base, "run.json")))
            base = files.resolve(base, run["tables"]["keep_trie"])
        manifest = json.loads(files.read_bytes(files.join(base, MANIFEST)))
        if not isinstance(manifest, dict):
            raise ValueError(f"{MANIFEST} holds no names and values")
    except SparkDbpError as error:
        raise InputError(
            f"no keep trie at {path}: this process does not reach it: {error.what}",
            mend="copy its directory to a disk or a store that this process reaches; or, with a Spark "
            "session that reads it, take spark_dbp.open_run(path, spark).keep_trie()",
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"no keep trie at {path}: {error}",
            mend="give the directory of a finished run, or its keep_trie directory",
        ) from None
    if manifest.get("format") != FORMAT or manifest.get("version") not in range(1, FORMAT_VERSION + 1):
        raise InputError(
            f"{path} holds {manifest.get('format')!r} version {manifest.get('version')!r}, "
            f"not {FORMAT!r} version {FORMAT_VERSION}",
            mend="read it with the version of spark-dbp that wrote it",
        )
    return base, manifest


class KeepTrie:
    """The set of kept keys, on disk.

    Look up values of the key column: ``str`` or ``bytes`` for STRING, ``bytes`` or ``uuid.UUID`` for BINARY,
    else ``int``, ``float``, ``Decimal``, ``bool``, ``date`` or ``datetime``. A ``str`` is the stored text of
    a key of any type. Where ``trie.key`` was set, look up the text that it makes.

    Parameters
    ----------
    path : str
        The ``keep_trie`` directory of a run.
    manifest : dict
        Content of its ``manifest.json``.

    Raises
    ------
    TypeError
        By a look-up of a value that cannot be a key of that column. The message says what to pass.

    Examples
    --------
    >>> keep = KeepTrie.open("run")                       # doctest: +SKIP
    >>> dataset = dataset.select(lambda sample: sample["__key__"] in keep)  # doctest: +SKIP
    """

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path = path
        self._manifest = manifest
        self.n_shards = int(manifest["n_shards"])
        self._shards = {int(shard["shard"]): shard for shard in manifest["shards"]}
        self._tries: list[Any] = [None] * self.n_shards  # None: not open yet
        self.version = int(manifest["version"])
        text = VERSION_1 if self.version == 1 else open_key_text(manifest["key_type"], manifest["expression"])
        self._encode_str, self._encode = text.encode_str, text.encode

    @classmethod
    def open(cls, path: str) -> KeepTrie:
        """Open the tries of a run.

        Parameters
        ----------
        path : str
            A run directory, or its ``keep_trie`` directory; local or a URI.

        Returns
        -------
        KeepTrie

        Raises
        ------
        InputError
            When there is no trie at `path`, or another program or version wrote it.
        """
        base, manifest = read_manifest(path)
        return cls(_copy_where_mounted(base, manifest), manifest)

    def __len__(self) -> int:
        return int(self._manifest["n_keys"])

    def __contains__(self, key: Any) -> bool:
        try:  # the shortest way for a str: `_encode_str` is `str.encode`, but for few types of keys
            text = self._encode_str(key)
        except (TypeError, UnicodeEncodeError):
            text = self._encode(key)
        number = crc32(text) % self.n_shards  # the same as in `find_shards`
        trie = self._tries[number]
        if trie is None:
            trie = self._tries[number] = self._open_shard(number)
        return text in trie

    def contains_many(self, keys: Iterable[Any]) -> npt.NDArray[np.bool_]:
        """Whether each of `keys` is kept.

        Parameters
        ----------
        keys : iterable, n of them
            Of what ``in`` takes: a list, a column of pyarrow or pandas, a numpy array.

        Returns
        -------
        ndarray of bool, shape (n,)

        Raises
        ------
        TypeError
            For a value that cannot be a key of this column.
        """
        return np.fromiter((key in self for key in keys), dtype=np.bool_)

    @property
    def shard_files(self) -> dict[str, int]:
        """Name of the file of each shard that has keys, and the shard's number."""
        return {shard["file"]: number for number, shard in self._shards.items()}

    def list_texts(self, keys: Iterable[Any]) -> list[bytes]:
        """The text under which each of `keys` would be stored.

        Raises
        ------
        TypeError
            For a value that cannot be a key of this column.
        """
        return [self._write_text(key) for key in keys]

    def iter_texts(self) -> Iterator[bytes]:
        """The texts of all keys, shard by shard.

        Yields
        ------
        bytes
        """
        for number in sorted(self._shards):
            yield from self._open_shard(number).keys()

    def find_places(self, keys: Sequence[Any]) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
        """Of keys that are all kept, the shard of each and its number in that shard, from 0.

        Raises
        ------
        KeyError
            When one is not kept.
        """
        texts = self.list_texts(keys)
        shards = find_shards(texts, self.n_shards)
        numbers = (self._find_shard(n).key_id(text) for n, text in zip(shards.tolist(), texts, strict=True))
        return shards, np.fromiter(numbers, np.uint32, len(texts))

    def count_in_shard(self, shard: int) -> int:
        """Keys in a shard."""
        return len(self._find_shard(shard))

    def restore_text(self, shard: int, number: int) -> bytes:
        """The text of the key that has this number in this shard, as `find_places` says it."""
        return self._find_shard(shard).restore_key(number)

    def _find_shard(self, number: int) -> Any:
        trie = self._tries[number]
        if trie is None:
            trie = self._tries[number] = self._open_shard(number)
        return trie

    @classmethod
    def from_bytes(cls, manifest: dict[str, Any], contents: Mapping[int, bytes]) -> KeepTrie:
        """Tries that somebody else has read.

        Parameters
        ----------
        manifest : dict
        contents : mapping of int to bytes
            Content of the file of each shard that has keys.
        """
        import marisa_trie

        trie = cls("", manifest)
        for number, content in contents.items():
            trie._tries[number] = marisa_trie.BinaryTrie().frombytes(content)
        return trie

    @property
    def manifest(self) -> dict[str, Any]:
        """Content of ``manifest.json``."""
        return self._manifest

    def _write_text(self, key: Any) -> bytes:
        try:  # the shortest way for a str: `_encode_str` is `str.encode`, but for few types of keys
            return self._encode_str(key)
        except (TypeError, UnicodeEncodeError):
            return self._encode(key)

    def _open_shard(self, number: int) -> Any:
        import marisa_trie

        shard = self._shards.get(number)
        if shard is None:
            return frozenset()  # no kept key is in this shard
        path = files.join(self.path, shard["file"])
        trie = marisa_trie.BinaryTrie()
        try:
            if not files.is_local(path):
                return trie.frombytes(files.read_bytes(path))
            if files.is_store_mount(path):
                return _map_copy(path)
            try:
                return trie.mmap(path)
            except (OSError, RuntimeError):  # a mount that maps no files
                return _map_copy(path)
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cannot read the trie shard {path}: {error}",
                mend="the run directory is damaged or incomplete: copy it again, or run the job again",
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers of a data loader get the path only, and map the shards themselves.
        return (type(self), (self.path, self._manifest))

    def __repr__(self) -> str:
        return f"KeepTrie({self.path!r}, {len(self):,} keys, {self.n_shards} shards)"


def _map_copy(path: str) -> Any:
    """Map a copy of a shard on a local disk. The copy has no name, so it goes with the process."""
    import marisa_trie

    with tempfile.TemporaryDirectory(prefix="spark-dbp-trie-") as folder:
        copy = f"{folder}/{posixpath.basename(path)}"
        files.copy_to_local(path, copy)
        return marisa_trie.BinaryTrie().mmap(copy)


def _copy_where_mounted(base: str, manifest: dict[str, Any]) -> str:
    """Where the shards lie: for a store that only the Spark session of this process reaches, in a copy.

    So other processes of this machine can read them too. The copy is deleted at the end of this one.
    """
    if files.is_local(base) or not mounts.is_mounted(base):
        return base
    folder = tempfile.mkdtemp(prefix="spark-dbp-trie-")
    atexit.register(_delete_copy, folder, os.getpid())
    for shard in manifest["shards"]:
        files.copy_to_local(files.join(base, shard["file"]), f"{folder}/{shard['file']}")
    return folder


def _delete_copy(folder: str, pid: int) -> None:
    if os.getpid() == pid:  # a forked process inherits the call, and must not carry it out
        shutil.rmtree(folder, ignore_errors=True)
