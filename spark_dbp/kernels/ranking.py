"""Rank samples within clusters, in the workers.

Imports numpy and `histogram`; pyarrow inside functions.

The **place** of a bin is its number in the order of keeping: place 0 is kept first. A **group** is the
samples of one cluster in neighbouring bins. Groups have a bounded size. The histogram tells how many samples
of the cluster come before a group, so each group is sorted on its own. A few groups make a part (see
`engine.blocks`), and a worker holds one part at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, DISTANCE, KEY, RANK
from spark_dbp.kernels.histogram import BIN_BITS, HASH_BIN_SHIFT, N_BINS, find_bins

if TYPE_CHECKING:
    import pyarrow as pa

# With up to this many places of all clusters, the group of each place is looked up in an array. A binary
# search takes ten times as long.
_DENSE_PLACES = 2**24
# ``stratified`` leaves neighbouring bins without a kept row out where they hold at least this share of their
# cluster. So a cluster gets at most this many more groups.
_MOST_GAPS = 64
# Half of the bits of a factor: products of numbers below 2**41 are divided in two steps of 64 bits.
_HALF_BITS = 20
_SLICE = 2**18
GROUP, _SCORE = "group", "score"
# What keeps by rank from the farthest row on.
FARTHEST_FIRST = ("hard", "stratified")


@dataclass(frozen=True)
class Groups:
    """All groups, by cluster and then in the order of keeping.

    Attributes
    ----------
    cluster_id, first_place, last_place : ndarray of int64, shape (g,)
        The cluster of a group, and its first and last place. A large bin is a group of its own.
    rows_before : ndarray of int64, shape (g,)
        Samples of the cluster in earlier groups.
    n_rows : ndarray of int64, shape (g,)
        Samples in the group.
    n_items, quota : ndarray of int64, shape (g,)
        Samples in the cluster, and its quota.
    part : ndarray of int32, shape (g,)
        Number of the part that holds the group. -1 for a group that is too large for a worker, which is
        always a single bin.
    """

    cluster_id: npt.NDArray[np.int64]
    first_place: npt.NDArray[np.int64]
    last_place: npt.NDArray[np.int64]
    rows_before: npt.NDArray[np.int64]
    n_rows: npt.NDArray[np.int64]
    n_items: npt.NDArray[np.int64]
    quota: npt.NDArray[np.int64]
    part: npt.NDArray[np.int32]

    def of(self, cluster_id: npt.NDArray[np.int64], place: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Number of the group of every row; -1 for a row in no group, which is not kept."""
        bounds, group = self._bounds
        found = cluster_id * N_BINS + place
        if self._dense is not None:
            inside = (found >= bounds[1]) & (found < bounds[-1])
            return np.where(inside, self._dense.take(found - bounds[1], mode="clip"), -1)
        return group[np.searchsorted(bounds, found, side="right") - 1]

    @cached_property
    def _bounds(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Rising bounds, cluster and place as one number, and the group that begins at each (-1: none)."""
        first = self.cluster_id * N_BINS + self.first_place
        end = self.cluster_id * N_BINS + self.last_place + 1
        bounds = np.concatenate(([np.iinfo(np.int64).min], end, first))
        group = np.concatenate(([-1], np.full(len(end), -1), np.arange(len(first)))).astype(np.int32)
        order = np.argsort(bounds, kind="stable")  # where a group ends and the next begins, the next counts
        return bounds[order], group[order]

    @cached_property
    def _dense(self) -> npt.NDArray[np.int32] | None:
        """The group of every place from the first bound on; None where that array would be large."""
        bounds, group = self._bounds
        if len(bounds) < 2 or bounds[-1] - bounds[1] > _DENSE_PLACES:
            return None
        return np.repeat(group[1:-1], np.diff(bounds[1:]))


def count_spread(
    rank: npt.NDArray[np.int64], n_items: npt.ArrayLike, quota: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """How many of the first ``rank`` rows of a cluster ``stratified`` keeps.

    That is ``floor((2 * rank * quota + n_items) / (2 * n_items))``. A row is kept where this is more than for
    the rank before, and is then its number among the kept. So exactly `quota` rows are kept, evenly over the
    ranks; a quota of 1 keeps the median.

    Parameters
    ----------
    rank : ndarray of int64, shape (n,)
        In [0, n_items].
    n_items : array_like of int64, shape (n,) or ()
        Rows of the cluster, from 1 to 2**41.
    quota : array_like of int64, shape (n,) or ()
        In [0, n_items].

    Returns
    -------
    ndarray of int64, shape (n,)

    Examples
    --------
    >>> count_spread(np.arange(6), 5, 2).tolist()
    [0, 0, 1, 1, 2, 2]
    """
    # rank * quota may not fit into 64 bits: long division, the upper bits of the rank first.
    n_items, quota = np.asarray(n_items, dtype=np.int64), np.asarray(quota, dtype=np.int64)
    upper, rest = np.divmod((rank >> _HALF_BITS) * quota, n_items)
    lower, rest = np.divmod((rest << _HALF_BITS) + (rank & (1 << _HALF_BITS) - 1) * quota, n_items)
    return (upper << _HALF_BITS) + lower + (2 * rest >= n_items)


def find_reached_bins(
    n_items: npt.NDArray[np.int64], quota: int, which_to_keep: str
) -> npt.NDArray[np.bool_]:
    """Which bins of a cluster are looked at: those that hold a kept row, for ``stratified`` a few others too.

    Parameters
    ----------
    n_items : ndarray of int64, shape (m,)
        Samples in each bin, in the order of keeping.
    quota : int
    which_to_keep : str

    Returns
    -------
    ndarray of bool, shape (m,)

    Examples
    --------
    >>> find_reached_bins(np.array([10, 10, 10]), 11, "hard").tolist()
    [True, True, False]
    >>> find_reached_bins(np.array([10, 10, 10]), 1, "stratified").tolist()
    [False, True, False]
    """
    until = np.cumsum(n_items)
    if which_to_keep != "stratified":
        return until - n_items < quota
    if not len(until):
        return np.zeros(0, dtype=np.bool_)
    kept = count_spread(np.concatenate(([0], until)), until[-1], quota)
    reached = kept[1:] > kept[:-1]
    starts = np.flatnonzero(np.diff(reached, prepend=~reached[0]))
    run_rows = np.add.reduceat(n_items, starts)  # of neighbouring bins that are all reached, or all not
    small = _MOST_GAPS * run_rows < until[-1]
    return reached | np.repeat(small, np.diff(starts, append=len(reached)))


def cut_into_groups(
    place: npt.NDArray[np.int64],
    n_items: npt.NDArray[np.int64],
    quota: int,
    group_rows: int,
    which_to_keep: str = "hard",
) -> tuple[npt.NDArray[np.int64], ...]:
    """Cut the histogram of one cluster into groups of the bins that `find_reached_bins` names.

    Parameters
    ----------
    place : ndarray of int64, shape (m,)
        Places of the bins, rising.
    n_items : ndarray of int64, shape (m,)
        Samples in each bin.
    quota : int
    group_rows : int
        About how many rows a group has. A bin with more rows is a group of its own.
    which_to_keep : str

    Returns
    -------
    first_place, last_place, rows_before, n_rows : ndarray of int64, shape (g,)

    Examples
    --------
    >>> place, n_items = np.array([0, 3, 4, 9]), np.array([30_000, 30_000, 9_000_000, 1])
    >>> [column.tolist() for column in cut_into_groups(place, n_items, 100_000, 50_000)]
    [[0, 4], [3, 4], [0, 60000], [60000, 9000000]]
    """
    before = np.cumsum(n_items) - n_items
    reached = find_reached_bins(n_items, quota, which_to_keep)
    place, n_items, before = place[reached], n_items[reached], before[reached]
    alone = n_items > group_rows
    number = before // group_rows
    begins = np.ones(len(place), dtype=np.bool_)
    begins[1:] = (number[1:] != number[:-1]) | alone[1:] | alone[:-1]
    begins[1:] |= before[1:] > before[:-1] + n_items[:-1]  # bins between the two are left out
    starts = np.flatnonzero(begins)
    if not len(starts):
        return place, place, before, n_items
    ends = np.append(starts[1:], len(place)) - 1
    return place[starts], place[ends], before[starts], np.add.reduceat(n_items, starts)


def number_groups(
    place: npt.NDArray[np.int64],
    n_items: npt.NDArray[np.int64],
    quota: int,
    group_rows: float,
    which_to_keep: str = "hard",
) -> tuple[int, npt.NDArray[np.int64]]:
    """Cut the histogram of one cluster into groups of equally many places, for a window.

    Group ``g`` has the places p with ``p >> shift == g``. So its number is found without a search.

    Parameters
    ----------
    place, n_items, quota, which_to_keep
        As for `cut_into_groups`.
    group_rows : float
        Least number of rows that groups have on average.

    Returns
    -------
    shift : int
        From 0 (each bin is a group) to 11 (the cluster is one).
    rows_before : ndarray of int64, shape (last group + 1,)
        Samples of the cluster before each group; -1 for a group from which nothing is kept.

    Examples
    --------
    >>> shift, before = number_groups(np.array([0, 3, 4, 9]), np.array([300, 300, 900, 1]), 700, 600)
    >>> shift, before.tolist()
    (2, [0, 600])
    """
    reached = find_reached_bins(n_items, quota, which_to_keep)
    wanted = place[reached]
    if not len(wanted):
        return BIN_BITS, np.zeros(0, dtype=np.int64)
    most = max(1.0, n_items[reached].sum() / group_rows)
    shift = next(s for s in range(BIN_BITS + 1) if s == BIN_BITS or len(np.unique(wanted >> s)) <= most)
    groups, firsts = np.unique(place >> shift, return_index=True)
    before = (np.cumsum(n_items) - n_items)[firsts]
    rows_before = np.full((wanted[-1] >> shift) + 1, -1, dtype=np.int64)
    is_reached = np.isin(groups, wanted >> shift)
    rows_before[groups[is_reached]] = before[is_reached]
    return shift, rows_before


def order_histogram(
    which_to_keep: str, bins: npt.NDArray[np.int64], n_items: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Turn the bins of a cluster's histogram into places: rising places, and the samples in each.

    Examples
    --------
    >>> [column.tolist() for column in order_histogram("hard", np.array([0, 2047]), np.array([5, 6]))]
    [[0, 2047], [6, 5]]
    """
    places = N_BINS - 1 - bins if which_to_keep in FARTHEST_FIRST else bins
    order = np.argsort(places)
    return places[order], n_items[order]


def gather_groups(columns: dict[str, npt.NDArray[np.int64]], part_rows: int, most_rows: int) -> Groups:
    """Gather the groups of all clusters into parts.

    Parameters
    ----------
    columns : dict of str to ndarray of shape (g,)
        The attributes of `Groups` except ``part``, sorted by cluster and place.
    part_rows : int
        About how many rows a part has.
    most_rows : int
        A group with more rows is in no part.

    Returns
    -------
    Groups
    """
    too_large = columns["n_rows"] > most_rows
    held = np.where(too_large, 0, columns["n_rows"])
    _, part = np.unique((np.cumsum(held) - held) // part_rows, return_inverse=True)
    return Groups(**columns, part=np.where(too_large, -1, part).astype(np.int32))


def find_places(which_to_keep: str, scores: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Place of every score: the number of its bin in the order of keeping.

    Parameters
    ----------
    which_to_keep : {"hard", "easy", "random", "stratified"}
    scores : ndarray of shape (n,)
        Distances to the centroid, or 64-bit hashes for ``random``.

    Returns
    -------
    ndarray of int64, shape (n,)
        In [0, N_BINS).

    Examples
    --------
    >>> find_places("hard", np.array([2.0, 0.0], dtype=np.float32)).tolist()
    [0, 2047]
    """
    if which_to_keep == "random":
        return (scores.astype(np.int64) >> HASH_BIN_SHIFT) + N_BINS // 2
    bins = find_bins(scores)
    return N_BINS - 1 - bins if which_to_keep in FARTHEST_FIRST else bins


def find_reached(
    batches: Iterator[pa.RecordBatch], groups: Groups, which_to_keep: str
) -> Iterator[pa.RecordBatch]:
    """The samples that may be kept: those in a group that is in a part.

    Parameters
    ----------
    batches : iterator of RecordBatch
        ``key``, ``cluster_id``, ``distance_to_centroid`` and, for ``random``, ``score``.
    groups : Groups
    which_to_keep : str

    Yields
    ------
    RecordBatch
        The same columns, and ``group``, the number of the group.
    """
    import pyarrow as pa

    part_of = np.append(groups.part, -1)  # the last entry makes group -1 belong to no part
    score_column = _SCORE if which_to_keep == "random" else DISTANCE
    for batch in batches:
        cluster = batch.column(CLUSTER_ID).to_numpy(zero_copy_only=False).astype(np.int64)
        place = find_places(which_to_keep, batch.column(score_column).to_numpy(zero_copy_only=False))
        group = groups.of(cluster, place)
        wanted = np.flatnonzero(part_of[group] >= 0)
        if len(wanted):
            taken = batch.take(pa.array(wanted))
            columns = [*taken.columns, pa.array(group[wanted])]
            yield pa.RecordBatch.from_arrays(columns, [*taken.schema.names, GROUP])


def rank_rows(rows: pa.Table, groups: Groups, which_to_keep: str) -> Iterator[pa.RecordBatch]:
    """The rows of a part that are kept, with their ranks.

    Parameters
    ----------
    rows : Table
        All rows of some groups, from `find_reached`.
    groups : Groups
    which_to_keep : str

    Yields
    ------
    RecordBatch
        ``key``, ``cluster_id``, ``distance_to_centroid``, ``rank`` INT (1 = first kept in its cluster).
    """
    import pyarrow as pa

    group = rows.column(GROUP).to_numpy()
    score = rows.column(_SCORE if which_to_keep == "random" else DISTANCE).to_numpy()
    order = _order(group, score, rows.column(KEY), descending=which_to_keep in FARTHEST_FIRST)
    group = group[order]
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    place = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
    rank = groups.rows_before[group] + place + 1
    kept = _spread(rank, group, groups) if which_to_keep == "stratified" else rank <= groups.quota[group]
    table = rows.select([KEY, CLUSTER_ID, DISTANCE]).take(pa.array(order[kept]))
    yield from table.append_column(RANK, pa.array(rank[kept].astype(np.int32))).to_batches()


def _spread(
    rank: npt.NDArray[np.int64], group: npt.NDArray[np.int32], groups: Groups
) -> npt.NDArray[np.bool_]:
    """Which of the rows ``stratified`` keeps; makes their ranks those among the kept."""
    kept = np.empty(len(rank), dtype=np.bool_)
    for start in range(0, len(rank), _SLICE):  # what is computed on the way takes ten times the memory
        rows = slice(start, start + _SLICE)
        of_cluster = groups.n_items[group[rows]], groups.quota[group[rows]]
        earlier = count_spread(rank[rows] - 1, *of_cluster)
        rank[rows] = count_spread(rank[rows], *of_cluster)
        kept[rows] = rank[rows] > earlier
    return kept


def _order(
    group: npt.NDArray[np.int32],
    score: npt.NDArray[Any],
    keys: pa.ChunkedArray,
    descending: bool,
) -> npt.NDArray[np.int64]:
    """Sort by group, then score, then key. Keys are compared only where group and score are equal."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if score.dtype == np.float32:
        # A distance is not negative, so its bits as an integer sort as it does. Group and score packed into
        # one long need one sort, which takes half as long as two.
        bits = np.abs(score).view(np.int32).astype(np.int64)
        by = [(group.astype(np.int64) << 32) | (2**31 - 1 - bits if descending else bits)]
    else:
        by = [group, -score if descending else score]
    order = np.argsort(by[0]) if len(by) == 1 else np.lexsort(by[::-1])
    by = [column[order] for column in by]
    same = np.logical_and.reduce([column[1:] == column[:-1] for column in by])
    tied = np.flatnonzero(np.concatenate(([False], same)) | np.concatenate((same, [False])))
    if len(tied):
        rows = pa.table(
            [*(column[tied] for column in by), keys.take(pa.array(order[tied]))], [*"ab"[: len(by)], KEY]
        )
        rising = [(name, "ascending") for name in rows.column_names]
        order[tied] = order[tied][pc.sort_indices(rows, sort_keys=rising).to_numpy()]
    return order
