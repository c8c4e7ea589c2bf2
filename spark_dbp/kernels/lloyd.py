"""Spherical k-means on an array that fits in memory. Imports numpy and `geometry` only.

The stage `kmeans` draws the training sample; this module fits centroids to it. Sums of vectors are exact
(see `geometry`), so the centroids do not depend on the order of addition, threads or machine.

Lloyd's iterations are slow, because most means keep moving in the direction they moved last. So each
iteration assigns samples to centroids that are one more such step ahead of the means (`step_ahead`). Six to
eight of these iterations reach the objective of twenty plain ones (docs/performance.md). The fixed points are
the same. This is overrelaxation as in Salakhutdinov and Roweis, ICML 2003.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spark_dbp.kernels.geometry import NearestCentroid, normalize_rows, sum_rows, sum_runs

_GATHER_BYTES = 1 << 20
# A sample this near its centroid is the centroid itself, up to rounding. It is not used to fill an empty
# cluster, because a second cluster at the same point would stay empty.
_COINCIDENT = 2.0**-20
INITS = ("random", "k-means++")
# k-means++ chooses among this many vectors a cluster.
_POINTS_TO_CHOOSE_FROM = 32


@dataclass(frozen=True)
class Iteration:
    """What one pass over the training vectors found.

    Attributes
    ----------
    objective : float
        Mean ``1 - cos`` to the nearest centroid, before the centroids are updated. The same bits on every
        machine.
    n_moved : int
        Number of vectors whose cluster changed.
    n_reseeded : int
        Number of empty clusters that were given a new centroid.
    """

    objective: float
    n_moved: int
    n_reseeded: int


@dataclass
class LloydResult:
    """Centroids (k, dim) float32 and the history of the fit."""

    centroids: npt.NDArray[np.float32]
    history: list[Iteration] = field(default_factory=list)


def fit_spherical_kmeans(
    vectors: npt.NDArray[np.float32],
    n_clusters: int,
    n_iter: int,
    *,
    init: str = "random",
    tol: float = 0.0,
    seed: int = 0,
    on_iteration: Callable[[int, Iteration], None] | None = None,
) -> LloydResult:
    """Fit spherical k-means with Lloyd's iterations, each one step ahead of the means.

    Stops early when the means no longer move, or when the objective hardly falls (see `tol`).

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
        Unit norm, on the grid.
    n_clusters : int
        At most n.
    n_iter : int
        Largest number of iterations.
    init, seed
        See `choose_first_centroids`.
    tol : float
        Iterations stop when the objective falls by less than this share of itself. 0: they never stop for
        that reason.
    on_iteration : callable, optional
        Called with the number of the iteration (from 1) and its `Iteration`.

    Returns
    -------
    LloydResult
        The means of the last iteration. With fewer distinct vectors than clusters, the last centroids
        repeat the first one. Their clusters stay empty, since ties go to the lowest index.

    Examples
    --------
    >>> vectors, _ = normalize_rows(np.array([[1.0, 0.1], [1.0, 0.0], [0.0, 1.0], [0.1, 1.0]]))
    >>> np.round(fit_spherical_kmeans(vectors, 2, 10).centroids, 2).tolist()
    [[0.05000000074505806, 1.0], [1.0, 0.05000000074505806]]
    """
    means = choose_first_centroids(vectors, n_clusters, init, seed)
    result = LloydResult(means)
    labels = np.full(len(vectors), -1, dtype=np.int32)
    sums = np.zeros((n_clusters, vectors.shape[1]))
    counts = np.zeros(n_clusters, dtype=np.int64)
    centroids = means
    for number in range(1, n_iter + 1):
        nearest = NearestCentroid(centroids)
        new_labels = nearest.labels(vectors)
        moved = np.flatnonzero(new_labels != labels)
        # Only the vectors that moved change the sums. The sums are exact, so they do not drift.
        left, joined = moved[labels[moved] >= 0], moved
        _add_rows(sums, counts, vectors, left, labels[left], sign=-1)
        _add_rows(sums, counts, vectors, joined, new_labels[joined], sign=1)
        labels = new_labels
        objective = _objective(sums, centroids, len(vectors))
        n_reseeded = _reseed_empty(sums, counts, vectors, labels, nearest)
        means_before, means = means, means.copy()
        has_direction = (counts > 0) & (np.abs(sums).max(axis=1) > 0)
        means[has_direction] = normalize_rows(sums[has_direction])[0]
        before = result.history[-1].objective if result.history else None
        result.history.append(Iteration(objective, len(moved), n_reseeded))
        if on_iteration is not None:
            on_iteration(number, result.history[-1])
        if n_reseeded > 0:
            centroids = means  # a reseeded mean has no earlier step to repeat
        elif np.array_equal(means, centroids) or has_settled(before, objective, tol):
            break
        else:
            centroids = step_ahead(means, means_before, before, objective)
    result.centroids = means
    return result


def step_ahead(
    means: npt.NDArray[np.float32],
    means_before: npt.NDArray[np.float32],
    before: float | None,
    objective: float,
) -> npt.NDArray[np.float32]:
    """The centroids to assign to next: the means, moved on by their last step once more.

    A mean that did not move stays where it is. If the objective rose, the centroids are the means themselves.

    Parameters
    ----------
    means, means_before : ndarray of float32, shape (k, dim)
        Means of this iteration and of the one before. Unit norm, on the grid.
    before : float or None
        Objective of the iteration before; None in the first one.
    objective : float
        Objective of this iteration.

    Returns
    -------
    ndarray of float32, shape (k, dim)
        Unit norm, on the grid.

    Examples
    --------
    >>> means, _ = normalize_rows(np.array([[0.8, 0.6], [0.0, 1.0]]))
    >>> means_before, _ = normalize_rows(np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> np.round(step_ahead(means, means_before, None, 0.1), 2).tolist()
    [[0.44999998807907104, 0.8899999856948853], [0.0, 1.0]]
    """
    if before is not None and objective > before:
        return means
    # Twice a unit vector minus a unit vector is never zero, so every row has a direction.
    return normalize_rows(2 * means.astype(np.float64) - means_before)[0]


def has_settled(before: float | None, objective: float, tol: float) -> bool:
    """Whether the objective fell by less than the share `tol` of itself. Never true for a `tol` of 0.

    Examples
    --------
    >>> has_settled(0.5, 0.4999, 0.001), has_settled(0.5, 0.4, 0.001), has_settled(0.5, 0.5, 0.0)
    (True, False, False)
    """
    return tol > 0 and before is not None and 0 <= before - objective < tol * before


def _objective(sums: npt.NDArray[np.float64], centroids: npt.NDArray[np.float32], n_rows: int) -> float:
    # The cosines of a cluster's samples add up to the dot product of their sum and the centroid.
    total = sum_rows(sum_rows(sums * centroids)[None, :])[0]
    return 1.0 - float(total) / n_rows


def choose_first_centroids(
    vectors: npt.NDArray[np.float32], n_clusters: int, init: str, seed: int
) -> npt.NDArray[np.float32]:
    """Choose the centroids that the iterations start from.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
        In the order of a hash of their keys, so the first ones are a random sample.
    n_clusters : int
    init : {"random", "k-means++"}
        ``random`` takes the first distinct vectors. ``k-means++`` (Arthur and Vassilvitskii, SODA 2007)
        looks at the first 32 vectors a cluster and chooses one after the other. The probability of a
        vector grows with its distance to the nearest one chosen before. This takes k more passes over
        these vectors.
    seed : int
        For ``k-means++`` only.

    Returns
    -------
    ndarray of float32, shape (n_clusters, dim)

    Examples
    --------
    >>> vectors, _ = normalize_rows(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> choose_first_centroids(vectors, 2, "k-means++", 0).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if init == "random":
        return vectors[_first_distinct(vectors, n_clusters)].copy()
    wide = vectors[: _POINTS_TO_CHOOSE_FROM * n_clusters].astype(np.float64)
    # Drawn from raw bits with whole numbers, so that no library's rounding can change the choice.
    bits = np.random.PCG64(seed % 2**64)
    chosen = [0]
    distance = np.full(len(wide), np.inf)
    while len(chosen) < n_clusters:
        distance = np.minimum(distance, 1.0 - wide @ wide[chosen[-1]])
        weight = np.rint(np.maximum(distance, 0.0) / _COINCIDENT).astype(np.int64)
        ends = np.cumsum(weight)
        if ends[-1] == 0:  # every vector equals a chosen one
            break
        drawn = int(bits.random_raw()) * int(ends[-1]) >> 64
        chosen.append(int(np.searchsorted(ends, drawn, side="right")))
    return vectors[chosen + [chosen[0]] * (n_clusters - len(chosen))].copy()


def _first_distinct(vectors: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.int64]:
    seen: set[bytes] = set()
    chosen: list[int] = []
    for row in range(len(vectors)):
        raw = vectors[row].tobytes()
        if raw not in seen:
            seen.add(raw)
            chosen.append(row)
            if len(chosen) == count:
                break
    return np.array(chosen + [chosen[0]] * (count - len(chosen)), dtype=np.int64)


def _add_rows(
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    clusters: npt.NDArray[np.int32],
    sign: int,
) -> None:
    order = np.argsort(clusters, kind="stable")
    rows, clusters = rows[order], clusters[order]
    step = max(1, _GATHER_BYTES // (8 * vectors.shape[1]))
    for start in range(0, len(rows), step):
        part = clusters[start : start + step]
        firsts = np.flatnonzero(np.diff(part, prepend=-1))
        sums[part[firsts]] += sign * sum_runs(vectors[rows[start : start + step]], firsts)
        counts[part[firsts]] += sign * np.diff(firsts, append=len(part))


def _reseed_empty(
    sums: npt.NDArray[np.float64],
    counts: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int32],
    nearest: NearestCentroid,
) -> int:
    """Give each empty cluster the sample farthest from its centroid (ties: first row). Returns how many."""
    empty = np.flatnonzero(counts == 0)
    if empty.size == 0:
        return 0
    distances = nearest.distances(vectors, labels)
    taken: set[bytes] = set()
    todo = iter(empty)
    cluster = next(todo)
    n_reseeded = 0
    for row in np.argsort(-distances, kind="stable"):
        raw = vectors[row].tobytes()
        if distances[row] <= _COINCIDENT:
            break
        if counts[labels[row]] < 2 or raw in taken:
            continue
        taken.add(raw)
        one = np.array([row])
        _add_rows(sums, counts, vectors, one, labels[one], sign=-1)
        labels[row] = cluster
        _add_rows(sums, counts, vectors, one, labels[one], sign=1)
        n_reseeded += 1
        following = next(todo, None)
        if following is None:
            break
        cluster = following
    return n_reseeded
