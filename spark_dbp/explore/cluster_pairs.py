"""Which cluster of one run is which of another, by their centroids. Imports numpy (scipy lazily)."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import numpy.typing as npt

log = logging.getLogger("spark_dbp")

# With so many clusters in either run, the best pairs are found as a whole; with more, the nearest pair first.
_MOST_AS_A_WHOLE = 3000
# With more, of each cluster only so many of the nearest are candidates.
_CANDIDATES = 8
_ROWS = 1024


def pair_centroids(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Pair the centroids of two clusterings, each at most once, so that pairs are alike.

    Parameters
    ----------
    one : ndarray of float32, shape (k, dim)
        Of unit norm.
    other : ndarray of float32, shape (m, dim)

    Returns
    -------
    rows, other_rows : ndarray of int64, shape (p,)
        Pairs, by rising row of `one`. Up to 3,000 clusters p is the smaller of k and m, and the sum of all
        cosines is the largest there is. Beyond, the nearest pair comes first, then the nearest of the
        others; of each centroid the 8 nearest are looked at.
    similarity : ndarray of float64, shape (p,)
        Cosine of each pair.

    Notes
    -----
    O(k m dim) time. O(k m) memory up to 3,000 clusters, else O(k + m).

    Examples
    --------
    >>> one = np.array([[1, 0], [0, 1]], dtype=np.float32)
    >>> [column.tolist() for column in pair_centroids(one, one[::-1].copy())]
    [[0, 1], [1, 0], [1.0, 1.0]]
    """
    if max(len(one), len(other)) <= _MOST_AS_A_WHOLE:
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            log.debug("without scipy, clusters are paired with the nearest pair first")
        else:
            cosines = one.astype(np.float64) @ other.astype(np.float64).T
            rows, columns = linear_sum_assignment(-cosines)
            return rows.astype(np.int64), columns.astype(np.int64), cosines[rows, columns]
    return _pair_nearest_first(one, other)


def _pair_nearest_first(one: Any, other: Any) -> tuple[Any, Any, Any]:
    n_near = min(_CANDIDATES, len(other))
    found = []
    for start in range(0, len(one), _ROWS):
        cosines = one[start : start + _ROWS] @ other.T
        near = np.argpartition(-cosines, n_near - 1, axis=1)[:, :n_near]
        rows = np.repeat(np.arange(start, start + len(cosines)), n_near)
        found.append((np.take_along_axis(cosines, near, axis=1).ravel(), rows, near.ravel()))
    cosine, rows, columns = (np.concatenate(values) for values in zip(*found, strict=True))
    left, right, pairs = set(range(len(one))), set(range(len(other))), []
    for place in np.lexsort((columns, rows, -cosine)):
        row, column = int(rows[place]), int(columns[place])
        if row in left and column in right:
            left.discard(row)
            right.discard(column)
            pairs.append((row, column, float(cosine[place])))
    pairs.sort()
    of_one, of_other, similarity = (np.array(values) for values in zip(*pairs, strict=True))
    return of_one.astype(np.int64), of_other.astype(np.int64), similarity.astype(np.float64)
