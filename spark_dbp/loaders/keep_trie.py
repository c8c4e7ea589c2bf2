"""Read the tries of the kept keys. Imports numpy and `files`; marisa_trie inside a function; never pyspark.

A key lies in shard ``crc32(key) % n_shards``, so a look-up opens one shard only. Local shards are
memory-mapped: they take memory of the page cache, not of the process.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import InputError
from spark_dbp.lake import files

MANIFEST = "manifest.json"
FORMAT = "spark-dbp keep trie"
FORMAT_VERSION = 1


def find_shards(keys: list[bytes], n_shards: int) -> npt.NDArray[np.uint32]:
    """Number of the shard of each key.

    Parameters
    ----------
    keys : list of bytes, n of them
        In UTF-8.
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


class KeepTrie:
    """The set of kept keys, on disk.

    Parameters
    ----------
    path : str
        The ``keep_trie`` directory of a run.
    manifest : dict
        Content of its ``manifest.json``.

    Examples
    --------
    >>> keep = KeepTrie.open("run")                       # doctest: +SKIP
    >>> dataset = dataset.select(lambda sample: sample["__key__"] in keep)  # doctest: +SKIP
    """

    def __init__(self, path: str, manifest: dict[str, Any]) -> None:
        self.path = path
        self._manifest = manifest
        self._n_shards = int(manifest["n_shards"])
        self._shards = {int(shard["shard"]): shard for shard in manifest["shards"]}
        self._tries: list[Any] = [None] * self._n_shards  # None: not open yet

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
        base = files.normalize(path)
        if files.exists(files.join(base, "run.json")):
            run = json.loads(files.read_bytes(files.join(base, "run.json")))
            base = files.resolve(base, run["tables"]["keep_trie"])
        try:
            manifest = json.loads(files.read_bytes(files.join(base, MANIFEST)))
        except (OSError, ValueError) as error:
            raise InputError(
                f"no keep trie at {path}: {error}",
                mend="give the directory of a finished run, or its keep_trie directory",
            ) from None
        if manifest.get("format") != FORMAT or manifest.get("version") != FORMAT_VERSION:
            raise InputError(
                f"{path} holds {manifest.get('format')!r} version {manifest.get('version')!r}, "
                f"not {FORMAT!r} version {FORMAT_VERSION}",
                mend="read it with the version of spark-dbp that wrote it",
            )
        return cls(base, manifest)

    def __len__(self) -> int:
        return int(self._manifest["n_keys"])

    def __contains__(self, key: Any) -> bool:
        try:
            text = key.encode()
        except (AttributeError, UnicodeEncodeError):
            # Integer keys are stored in decimal. Names in a tar file may be bytes that are not UTF-8.
            text = str(key).encode("utf-8", "surrogateescape")
        number = crc32(text) % self._n_shards  # the same as in `find_shards`
        trie = self._tries[number]
        if trie is None:
            trie = self._tries[number] = self._open_shard(number)
        return text in trie

    def contains_many(self, keys: Iterable[str]) -> npt.NDArray[np.bool_]:
        """Whether each of `keys` is kept.

        Parameters
        ----------
        keys : iterable of str, n of them

        Returns
        -------
        ndarray of bool, shape (n,)
        """
        return np.fromiter((key in self for key in keys), dtype=np.bool_)

    def _open_shard(self, number: int) -> Any:
        import marisa_trie

        shard = self._shards.get(number)
        if shard is None:
            return frozenset()  # no kept key is in this shard
        path = files.join(self.path, shard["file"])
        trie = marisa_trie.BinaryTrie()
        try:
            if files.is_local(path):
                return trie.mmap(path)
            return trie.frombytes(files.read_bytes(path))
        except (OSError, RuntimeError) as error:
            raise InputError(
                f"cannot read the trie shard {path}: {error}",
                mend="the run directory is damaged or incomplete: copy it again, or run the job again",
            ) from None

    def __reduce__(self) -> tuple[Any, ...]:
        # Workers of a data loader get the path only, and map the shards themselves.
        return (type(self), (self.path, self._manifest))

    def __repr__(self) -> str:
        return f"KeepTrie({self.path!r}, {len(self):,} keys, {self._n_shards} shards)"
