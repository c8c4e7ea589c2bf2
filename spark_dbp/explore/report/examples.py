"""Find rows of a finished run to look at: of a few clusters those just kept, just left out and nearest to
the centroid; and pairs of duplicates.

Imports numpy, `columns`, `lake`, `key_text`, `run_rows`, `run_clusters` and `runs`; pyarrow inside functions.

The tables are read once, in batches, without Spark. What is held is a few rows of each cluster, however
large it is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, DISTANCE, DUPLICATE_OF, KEY, METHOD, RANK, SIMILARITY
from spark_dbp.explore.report.run_rows import hash_keys, iter_table
from spark_dbp.explore.run_clusters import translate_damage
from spark_dbp.lake import parquet_files
from spark_dbp.loaders.key_text import find_key_text, write_key_texts

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_dbp.runs import Run

# Rows of each kind that are shown of a cluster; pairs of each method and bar, and of each method.
EXAMPLES, _PAIRS_A_BAR, _PAIRS = 6, 2, 12
# Bars of the similarities of a method.
_BARS = 40
_SLOT, _SCORE = "slot", "score"


@dataclass(frozen=True)
class Example:
    """A row of a cluster.

    Attributes
    ----------
    key : Any
        A pyarrow scalar.
    distance : float
    is_kept : bool
    rank : int or None
        In its cluster in the order of keeping, 1 for the first; None where that was not counted.
    """

    key: Any
    distance: float
    is_kept: bool
    rank: int | None = None


@dataclass
class ClusterExamples:
    """Rows of one cluster: the last that are kept, the first that are not, those nearest to the centroid."""

    kept: list[Example] = field(default_factory=list)
    dropped: list[Example] = field(default_factory=list)
    nearest: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Pair:
    """A duplicate and the row that stands for it."""

    key: Any
    duplicate_of: Any
    similarity: float


@dataclass
class Duplicates:
    """Of one method: how many duplicates have which similarity, and some pairs by rising similarity.

    Attributes
    ----------
    low : float
        Where the first of the bars begins; the last one ends at 1.
    counts : list of int
    pairs : list of Pair
    """

    low: float
    counts: list[int]
    pairs: list[Pair]


def find_key_type(run: Run) -> str:
    """Type of the keys as Spark writes it."""
    for step in run.document["stages"].values():
        schema = step.get("schemas", {}).get("assignments")
        if schema:
            found = next(item["type"] for item in json.loads(schema)["fields"] if item["name"] == KEY)
            return str(found) if find_key_text(str(found)) else "string"
    names = {"int64": "bigint", "int32": "int", "binary": "binary", "double": "double"}  # runs of format 1
    with translate_damage(run, "assignments"):
        file = parquet_files.open_parquet(run.list_files("assignments")[0])
        return names.get(str(file.schema_arrow.field(KEY).type), "string")


def write_keys(keys: Any, key_type: str) -> list[str]:
    """Keys as the page shows them: BINARY in hexadecimal, times in microseconds, as tries store them."""
    import pyarrow as pa

    array = pa.array([], pa.string()) if not len(keys) else keys
    try:
        texts = write_key_texts(array, key_type).to_pylist()
    except Exception:  # types that no trie stores
        texts = [str(key).encode("utf-8", "replace") for key in array.to_pylist()]
    # Not "replace": images and texts are found by these, so two keys must not become the same one.
    return [text.decode("utf-8", "backslashreplace") for text in texts]


def write_key(key: Any, key_type: str) -> str:
    """One key, a pyarrow scalar, in the same way."""
    import pyarrow as pa

    return write_keys(pa.repeat(key, 1), key_type)[0]


def find_examples(
    run: Run, clusters: Sequence[int], quotas: Sequence[int], sizes: Sequence[int], n: int = EXAMPLES
) -> dict[int, ClusterExamples]:
    """Rows of some clusters to look at.

    Parameters
    ----------
    run : Run
        This process must reach it.
    clusters, quotas, sizes : sequence of int, shape (m,)
        Ids of the clusters, rising, with their quotas and sizes.
    n : int
        How many rows of each kind.

    Returns
    -------
    dict of int to ClusterExamples
        For ``hard``, ``easy`` and ``random``, ``kept`` are the last ranks within the quota, and ``dropped``
        the first beyond it. ``stratified`` keeps rows at all distances: ``kept`` are spread evenly over
        them, and ``dropped`` follow right after these.

    Notes
    -----
    Reads the tables `keep_list` (twice) and `assignments` once, in batches; memory O(m n).
    """
    prune = run.config().prune
    search = _Search(
        np.asarray(clusters, np.int64), np.asarray(quotas, np.int64), np.asarray(sizes, np.int64),
        prune.which_to_keep, prune.seed, n,
    )  # fmt: skip
    kept = search.find_kept(iter_table(run, "keep_list", [KEY, CLUSTER_ID, DISTANCE, RANK]))
    near, after = search.find_others(iter_table(run, "assignments", [KEY, CLUSTER_ID, DISTANCE]), kept)
    seen = _find_which_are_kept(run, search.clusters, near, after)
    return search.put_together(kept, near, after, seen)


@dataclass
class _Search:
    """Looks for rows of `clusters` while tables go by."""

    clusters: npt.NDArray[np.int64]
    quotas: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    which: str
    seed: int
    n: int

    def find_kept(self, batches: Iterator[pa.RecordBatch]) -> pa.Table:
        """The kept rows that are shown, with their slot (number of the cluster), by slot and rank."""
        import pyarrow as pa

        wanted = np.zeros((len(self.clusters), 0), np.int64)
        if self.which == "stratified":
            at = (2 * np.arange(self.n) + 1) / (2 * self.n)
            wanted = np.minimum((at * self.quotas[:, None]).astype(np.int64), self.quotas[:, None] - 1) + 1
        found = []
        for batch in batches:
            slot, rows = self._find_slots(batch)
            rank = batch.column(RANK).to_numpy()[rows]
            if self.which == "stratified":
                hit = (wanted[slot] == rank[:, None]).any(axis=1)
            else:
                hit = rank > self.quotas[slot] - self.n
            found.append(_take(batch, rows[hit], {_SLOT: slot[hit]}))
        empty = [table for table in found if table.num_rows] or found[:1]
        return pa.concat_tables(empty).sort_by([(_SLOT, "ascending"), (RANK, "ascending")])

    def find_others(self, batches: Iterator[pa.RecordBatch], kept: pa.Table) -> tuple[pa.Table, pa.Table]:
        """The rows nearest to the centroid, and those that follow the kept ones in their order."""
        near = _Best(len(self.clusters), self.n, None)
        after = _Best(self._n_anchors, self.n if self.which != "stratified" else 4, self._find_anchors(kept))
        per = self._anchors_each
        for batch in batches:
            slot, rows = self._find_slots(batch)
            if not len(rows):
                continue
            distance = batch.column(DISTANCE).to_numpy()[rows].astype(np.float64)
            near.offer(batch, rows, slot, distance)
            score = self._score(batch, rows, distance)
            for number in range(per):
                after.offer(batch, rows, slot * per + number, score)
        return near.rows, after.rows

    def put_together(
        self, kept: pa.Table, near: pa.Table, after: pa.Table, seen: pa.Array | None
    ) -> dict[int, ClusterExamples]:
        found = {int(cluster): ClusterExamples() for cluster in self.clusters}
        is_ranked = self.which != "stratified"
        for slot, key, distance, rank, _ in _list_rows(kept, RANK):
            example = Example(key, distance, True, rank if is_ranked else None)
            found[int(self.clusters[slot])].kept.append(example)
        done: set[int] = set()
        for slot, key, distance, _, is_kept in _list_rows(after, _SCORE, seen):
            of = found[int(self.clusters[slot // self._anchors_each])].dropped
            if is_kept or slot in done or any(one.key.equals(key) for one in of):
                continue
            if self.which == "stratified":
                done.add(slot)
            rank = int(self.quotas[slot]) + len(of) + 1 if is_ranked else None
            of.append(Example(key, distance, False, rank))
        for slot, key, distance, _, is_kept in _list_rows(near, _SCORE, seen):
            found[int(self.clusters[slot])].nearest.append(Example(key, distance, is_kept))
        return found

    @property
    def _anchors_each(self) -> int:
        return self.n if self.which == "stratified" else 1

    @property
    def _n_anchors(self) -> int:
        return len(self.clusters) * self._anchors_each

    def _find_anchors(self, kept: pa.Table) -> list[tuple[float | int, Any] | None]:
        """Score and key after which rows are looked for, of each anchor; None: from the first row on."""
        anchors: list[tuple[float | int, Any] | None] = [None] * self._n_anchors
        slots = kept.column(_SLOT).to_numpy()
        scores = self._score(kept, np.arange(kept.num_rows), kept.column(DISTANCE).to_numpy().astype(float))
        number = 0
        for row, slot in enumerate(slots.tolist()):
            number = number + 1 if row and slots[row - 1] == slot else 0
            at = slot if self.which != "stratified" else slot * self._anchors_each + number
            anchors[at] = scores[row].item(), kept.column(KEY)[row]
        return anchors

    def _score(self, batch: Any, rows: npt.NDArray[np.int64], distance: npt.NDArray[np.float64]) -> Any:
        """What rows are ordered by, rising, before their keys."""
        import pyarrow as pa

        if self.which == "random":
            keys = batch.column(KEY).take(pa.array(rows))
            keys = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
            return hash_keys(keys, self.seed)
        return distance if self.which == "easy" else -distance

    def _find_slots(self, batch: pa.RecordBatch) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        of = batch.column(CLUSTER_ID).to_numpy()
        slot = np.minimum(np.searchsorted(self.clusters, of), len(self.clusters) - 1)
        rows = np.flatnonzero(self.clusters[slot] == of)
        return slot[rows], rows


class _Best:
    """Holds the first `n` rows of each slot, by score and key, of all that are offered.

    Parameters
    ----------
    n_slots, n : int
    anchors : list of (score, key) or None, optional
        Only rows after that of their slot count.
    """

    def __init__(self, n_slots: int, n: int, anchors: list[tuple[float | int, Any] | None] | None) -> None:
        self._n, self._anchors = n, anchors or [None] * n_slots
        self._low: Any = None
        self._high: Any = None
        self.rows: Any = None

    def offer(self, batch: Any, rows: npt.NDArray[np.int64], slot: npt.NDArray[np.int64], score: Any) -> None:
        import pyarrow as pa

        if self._low is None:
            least, most = (np.iinfo if score.dtype.kind == "i" else np.finfo)(score.dtype).min, None
            most = (np.iinfo if score.dtype.kind == "i" else np.finfo)(score.dtype).max
            self._low = np.array([least if one is None else one[0] for one in self._anchors], score.dtype)
            self._high = np.full(len(self._anchors), most, score.dtype)
        hit = (score >= self._low[slot]) & (score <= self._high[slot])
        if not hit.any():
            if self.rows is None:
                self.rows = _take(batch, rows[:0], {_SLOT: slot[:0], _SCORE: score[:0]})
            return
        found = _take(batch, rows[hit], {_SLOT: slot[hit], _SCORE: score[hit]})
        found = self._leave_out_up_to_anchors(found)
        held = found if self.rows is None else pa.concat_tables([self.rows, found])
        held = held.sort_by([(name, "ascending") for name in (_SLOT, _SCORE, KEY)])
        slots = held.column(_SLOT).to_numpy()
        starts = np.searchsorted(slots, slots)
        first = np.flatnonzero(np.arange(len(slots)) - starts < self._n)
        self.rows = held.take(pa.array(first))
        slots, scores = (self.rows.column(name).to_numpy() for name in (_SLOT, _SCORE))
        full, at = np.unique(slots[::-1], return_index=True)
        counts = np.bincount(slots, minlength=len(self._high))
        last = scores[::-1][at]
        is_full = counts[full] >= self._n
        self._high[full[is_full]] = last[is_full]

    def _leave_out_up_to_anchors(self, found: pa.Table) -> pa.Table:
        """Without rows of the score of an anchor that come before it by key, and the anchor itself."""
        import pyarrow as pa
        import pyarrow.compute as pc

        slots, scores = (found.column(name).to_numpy() for name in (_SLOT, _SCORE))
        keep = np.ones(len(slots), np.bool_)
        tied = np.flatnonzero(scores == self._low[slots])
        for slot in np.unique(slots[tied]).tolist():
            anchor, rows = self._anchors[slot], tied[slots[tied] == slot]
            if anchor is not None:
                keys = found.column(KEY).take(pa.array(rows))
                keep[rows] = pc.greater(keys, anchor[1]).to_numpy(zero_copy_only=False)
        return found.filter(pa.array(keep))


def _take(batch: Any, rows: npt.NDArray[np.int64], more: dict[str, Any]) -> pa.Table:
    import pyarrow as pa

    table = pa.Table.from_batches([batch]).take(pa.array(rows))
    for name, values in more.items():
        table = table.append_column(name, pa.array(values))
    return table


def _list_rows(
    rows: pa.Table | None, last: str, seen: pa.Array | None = None
) -> Iterator[tuple[int, Any, float, Any, bool]]:
    """Slot, key, distance, the column `last`, and whether the key is among `seen`, of each row."""
    import pyarrow.compute as pc

    if rows is None:
        return
    slots, distances, others = (rows.column(name).to_pylist() for name in (_SLOT, DISTANCE, last))
    keys, is_seen = rows.column(KEY), [False] * rows.num_rows
    if seen is not None:
        is_seen = pc.is_in(keys, value_set=seen).to_pylist()
    for row, values in enumerate(zip(slots, distances, others, is_seen, strict=True)):
        slot, distance, other, is_one = values
        yield slot, keys[row], distance, other, is_one


def _find_which_are_kept(
    run: Run, clusters: npt.NDArray[np.int64], near: pa.Table | None, after: pa.Table | None
) -> pa.Array | None:
    """Of rows that were found, the keys that are in the keep list. Never as Python's values: text need not be
    UTF-8, and dates may lie after the year 9999.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    given = [table.column(KEY) for table in (near, after) if table is not None]
    if not given:
        return None
    keys = pa.chunked_array([chunk for column in given for chunk in column.chunks], given[0].type)
    keys = keys.combine_chunks()
    seen: list[pa.Array] = []
    for batch in iter_table(run, "keep_list", [KEY, CLUSTER_ID]):
        here = batch.filter(pa.array(np.isin(batch.column(CLUSTER_ID).to_numpy(), clusters)))
        column = here.column(KEY)
        seen.append(column.filter(pc.is_in(column, value_set=keys)))
    return pa.concat_arrays([keys[:0], *seen])


def find_duplicates(run: Run) -> dict[str, Duplicates]:
    """Similarities and some pairs of the duplicates of a run, by method; empty where there are none.

    The table is read once, in batches.
    """
    if "duplicates" not in run.document["tables"]:
        return {}
    lows = _find_lows(run)
    counts = {method: np.zeros(_BARS, np.int64) for method in lows}
    pairs: dict[str, dict[int, list[Pair]]] = {method: {} for method in lows}
    for batch in iter_table(run, "duplicates", [KEY, DUPLICATE_OF, METHOD, SIMILARITY]):
        similarity = batch.column(SIMILARITY).to_numpy().astype(np.float64)
        methods = np.asarray(batch.column(METHOD).to_pylist(), dtype=object)
        for method, low in lows.items():
            rows = np.flatnonzero(methods == method)
            span = max(1 - low, 1e-9)
            bars = np.clip(((similarity[rows] - low) / span * _BARS).astype(np.int64), 0, _BARS - 1)
            counts[method] += np.bincount(bars, minlength=_BARS)
            for bar in np.unique(bars).tolist():
                held = pairs[method].setdefault(bar, [])
                for row in rows[bars == bar][: _PAIRS_A_BAR - len(held)].tolist():
                    held.append(
                        Pair(batch.column(KEY)[row], batch.column(DUPLICATE_OF)[row], similarity[row])
                    )
    return {
        method: Duplicates(low, counts[method].tolist(), _choose_pairs(pairs[method]))
        for method, low in lows.items()
        if counts[method].any()
    }


def _find_lows(run: Run) -> dict[str, float]:
    """The least similarity of a duplicate, by method."""
    dedup = run.config().dedup
    lows: dict[str, float] = {}
    if dedup.exact is not None:
        lows["exact"] = 1.0
    if dedup.minhash is not None:
        lows["minhash"] = dedup.minhash.threshold
    if dedup.semantic is not None:
        lows["semantic"] = 1 - dedup.semantic.all_eps[0]
    return lows


def _choose_pairs(by_bar: dict[int, list[Pair]]) -> list[Pair]:
    """At most `_PAIRS`, of bars spread over all that have any."""
    bars = sorted(by_bar)
    most = _PAIRS // _PAIRS_A_BAR
    if len(bars) > most:
        bars = [bars[number * (len(bars) - 1) // (most - 1)] for number in range(most)]
    return sorted((pair for bar in bars for pair in by_bar[bar]), key=lambda pair: pair.similarity)
