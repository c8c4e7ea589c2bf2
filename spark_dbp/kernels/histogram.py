"""Bins of distances, and distances as whole numbers, in SQL and in numpy. Imports numpy and column names.

Distances lie in [0, 2]. A **bin** is 1/1024 of distance. Its number is found by multiplying with a power of
two, which is exact. Distances are summed as longs in units of ``DISTANCE_UNIT``, so the sums are exact in any
order of addition. A sum overflows only beyond 1.7e10 rows of the largest distance in one cluster. The unit is
far finer than a float32 distance resolves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import DISTANCE

BINS_PER_UNIT = 1024
N_BINS = 2 * BINS_PER_UNIT
# A bin's number has so many bits.
BIN_BITS = 11
DISTANCE_UNIT = 2.0**-28

# `find_bins` and `to_whole_distances` in SQL, for the column ``distance_to_centroid``.
BIN_SQL = f"least(cast(cast({DISTANCE} as double) * {BINS_PER_UNIT} as int), {N_BINS - 1})"
WHOLE_DISTANCE_SQL = f"cast(rint(cast({DISTANCE} as double) * {int(1 / DISTANCE_UNIT)}) as bigint)"

# The upper 11 bits of a 64-bit hash give 2048 bins in the order of the hash, about equally full.
HASH_BIN_SHIFT = 53

# For each bin of each cluster: its number (see `count_bins`), its rows, the sum of their whole distances.
BinCounts = tuple["npt.NDArray[np.int64]", "npt.NDArray[np.int64]", "npt.NDArray[np.int64]"]


def find_bins(distances: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """Bin of every distance: floor(1024 d). Distance 2 belongs to the last bin.

    Parameters
    ----------
    distances : ndarray of float, shape (n,)
        In [0, 2].

    Returns
    -------
    ndarray of int64, shape (n,)
        In [0, N_BINS).

    Examples
    --------
    >>> find_bins(np.array([0.0, 0.001, 2.0])).tolist()
    [0, 1, 2047]
    """
    return np.minimum((distances.astype(np.float64) * BINS_PER_UNIT).astype(np.int64), N_BINS - 1)


def to_whole_distances(distances: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.int64]:
    """Distances as whole multiples of ``DISTANCE_UNIT``.

    Examples
    --------
    >>> to_whole_distances(np.array([0.5])).tolist()
    [134217728]
    """
    return np.rint(distances.astype(np.float64) / DISTANCE_UNIT).astype(np.int64)


def count_bins(bins: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> BinCounts:
    """Number of rows, and sum of distances, of every bin that occurs.

    Parameters
    ----------
    bins : ndarray of int64, shape (n,), n > 0
        ``cluster_id * N_BINS + bin``.
    whole : ndarray of int64, shape (n,), n at most 2**21
        From `to_whole_distances`.

    Returns
    -------
    bins, n_items, total : ndarray of int64
        By rising bin.

    Examples
    --------
    >>> [column.tolist() for column in count_bins(np.array([7, 3, 7]), np.array([1, 2, 4]))]
    [[3, 7], [1, 2], [2, 5]]
    """
    first = bins.min()
    span = int(bins.max() - first) + 1
    if span > 4 * len(bins):  # many clusters, few samples: a counter for every bin would take too much memory
        return merge_bins([(bins, np.ones_like(whole), whole)])
    n_items = np.bincount(bins - first, minlength=span)
    # Exact in float64: 2**21 values of at most 2**29.
    total = np.bincount(bins - first, weights=whole, minlength=span).astype(np.int64)
    used = np.flatnonzero(n_items)
    return used + first, n_items[used], total[used]


def merge_bins(found: list[BinCounts]) -> BinCounts:
    """Add up several results of `count_bins`. The bins of the sum are rising."""
    bins, n_items, total = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.argsort(bins)
    bins = bins[order]
    starts = np.flatnonzero(np.diff(bins, prepend=bins[0] - 1))
    return bins[starts], np.add.reduceat(n_items[order], starts), np.add.reduceat(total[order], starts)
