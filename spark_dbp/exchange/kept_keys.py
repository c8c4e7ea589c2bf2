"""Bring the kept keys of a run to Spark's workers, and count which of them were found.

Imports `blocks`, `compat`, `probe`, `keep_trie`, `files` and `errors`; pyspark inside functions.

A found key travels as its number in its shard of the trie, which takes 4 bytes. Who gets all numbers of a
shard knows which keys were found, which twice and which never, with a bit for each.
"""

from __future__ import annotations

import heapq
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.engine.blocks import make_block
from spark_dbp.engine.compat import share_array
from spark_dbp.engine.probe import find_problem_of_readers
from spark_dbp.errors import ConfigError
from spark_dbp.lake import files
from spark_dbp.loaders.keep_trie import KeepTrie

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

log = logging.getLogger("spark_dbp")

EXAMPLES = 5
# Numbers that a worker gathers before it sends them. Missing keys that are looked at for examples.
_GATHERED, _LOOKED_AT = 1_000_000, 100_000
# Largest tries that travel with the job: each task holds them.
_MOST_SHIPPED = 256 << 20


def share_trie(spark: SparkSession, trie: KeepTrie) -> Callable[[], KeepTrie]:
    """A function with which workers open the tries of a run.

    They open the files, a shard at a time, mapped where they are local. Where workers do not reach these, the
    tries travel with the job.

    Raises
    ------
    ConfigError
        When they are too large for that.
    """
    names = sorted(trie.shard_files)
    ends = [files.join(trie.path, name) for name in names[:1] + names[-1:]]
    problem = find_problem_of_readers(spark, ends)
    if not problem:
        return lambda: trie
    sizes = files.list_sizes(trie.path)
    n_bytes = sum(sizes[name] for name in trie.shard_files)
    if n_bytes > _MOST_SHIPPED:
        raise ConfigError(
            f"the tries of the run have {n_bytes:,} bytes, and workers do not reach them: {problem}",
            mend="copy the run to a store or a mount that workers read; up to "
            f"{_MOST_SHIPPED >> 20} MiB travel with the job",
        )
    contents = {
        number: files.read_bytes(files.join(trie.path, name)) for name, number in trie.shard_files.items()
    }
    log.info("  the tries (%s bytes) travel with the job: %s", f"{n_bytes:,}", problem)
    read = share_array(spark, np.frombuffer(b"".join(contents.values()), np.uint8))
    cuts = np.cumsum([0, *map(len, contents.values())]).tolist()
    places = list(zip(contents, cuts[:-1], cuts[1:], strict=True))
    manifest = trie.manifest

    def open_shipped() -> KeepTrie:
        content = read()
        return KeepTrie.from_bytes(manifest, {n: content[start:stop].tobytes() for n, start, stop in places})

    return open_shipped


class FoundKeys:
    """Gathers found keys in a worker, and hands them on as blocks, one for each shard of the trie.

    Parameters
    ----------
    trie : KeepTrie
    tasks : ndarray of int32
        From `number_tasks`.
    """

    def __init__(self, trie: KeepTrie, tasks: npt.NDArray[np.int32]) -> None:
        self._trie, self._tasks = trie, tasks
        self._held: list[tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]] = []
        self._n_held = 0

    def add(self, keys: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Take keys, and yield blocks when there are many."""
        if keys:
            self._held.append(self._trie.find_places(keys))
            self._n_held += len(keys)
        if self._n_held >= _GATHERED:
            yield from self.flush()

    def name_all(self) -> Iterator[pa.RecordBatch]:
        """An empty block for each shard of the trie: so also those are counted of which nothing is found."""
        for shard in range(self._trie.n_shards):
            yield self._make_block(shard, b"")

    def flush(self) -> Iterator[pa.RecordBatch]:
        """Yield blocks of what is held."""
        if not self._held:
            return
        shards, numbers = (np.concatenate(arrays) for arrays in zip(*self._held, strict=True))
        self._held, self._n_held = [], 0
        order = np.argsort(shards, kind="stable")
        shards, numbers = shards[order], numbers[order]
        starts = np.flatnonzero(np.diff(shards.astype(np.int64), prepend=-1)).tolist()
        for start, stop in zip(starts, [*starts[1:], len(shards)], strict=True):
            yield self._make_block(int(shards[start]), numbers[start:stop].astype("<u4").tobytes())

    def _make_block(self, shard: int, content: bytes) -> pa.RecordBatch:
        return make_block(int(self._tasks[shard % len(self._tasks)]), shard, content)


class FoundCounter:
    """Counts, in a worker, the found keys of one shard of the trie after the other."""

    def __init__(self, trie: KeepTrie) -> None:
        self._trie = trie
        self._shard = -1
        self._once = self._twice = np.zeros(0, np.bool_)

    def add(self, shard: int, content: bytes) -> Iterator[str]:
        """Take a block; blocks of a shard come one after the other. Yields the report of the one before."""
        if shard != self._shard:
            yield from self.report()
            self._shard = shard
            self._once, self._twice = (np.zeros(self._trie.count_in_shard(shard), np.bool_) for _ in range(2))
        numbers, counts = np.unique(np.frombuffer(content, "<u4"), return_counts=True)
        self._twice[numbers] |= self._once[numbers] | (counts > 1)
        self._once[numbers] = True

    def report(self) -> Iterator[str]:
        """What was found of the shard: a JSON document for `add_reports`."""
        if self._shard < 0:
            return
        missing = np.flatnonzero(~self._once)
        twice = np.flatnonzero(self._twice)
        yield json.dumps(
            {
                "missing": len(missing),
                "missing_examples": self._restore(missing),
                "twice": len(twice),
                "twice_examples": self._restore(twice),
            }
        )
        self._shard = -1

    def _restore(self, numbers: npt.NDArray[np.intp]) -> list[str]:
        some = numbers[:_LOOKED_AT].tolist()
        texts = heapq.nsmallest(EXAMPLES, (self._trie.restore_text(self._shard, number) for number in some))
        return [text.decode("utf-8", "replace") for text in texts]


def add_reports(reports: Iterator[str] | Sequence[str]) -> dict[str, Any]:
    """Add up what `FoundCounter` says of the shards of a trie.

    Examples
    --------
    >>> one = {"missing": 2, "missing_examples": ["d", "b"], "twice": 0, "twice_examples": []}
    >>> add_reports([json.dumps(one), json.dumps(one | {"missing_examples": ["c"], "twice": 1})])
    {'missing': 4, 'missing_examples': ['b', 'c', 'd'], 'twice': 1, 'twice_examples': []}
    """
    total: dict[str, Any] = {"missing": 0, "missing_examples": [], "twice": 0, "twice_examples": []}
    for text in reports:
        for name, value in json.loads(text).items():
            total[name] += value
            if isinstance(value, list):
                total[name] = heapq.nsmallest(EXAMPLES, total[name])
    return total
