"""Spherical k-means on an array that fits in memory. Imports numpy and `geometry` only.

The Spark stage (`kmeans`) draws the training sample; this module fits it. Sums of vectors are exact
(see `geometry`), so the centroids do not depend on the order of addition, threads or machine.

Lloyd's iterations creep: the means of most clusters go on in the direction they went. Each iteration
therefore assigns to centroids that are one such step ahead of the means (`step_ahead`), which reaches
the objective of twenty plain iterations in six to eight (docs/performance.md) and has the same fixed
points. Overrelaxation of this kind is from Salakhutdinov and Roweis, ICML 2003.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from spark_dbp.kernels.geometry import NearestCentroid, normalize_rows, sum_rows, sum_runs

_GATHER_BYTES = 1 << 20
# A sample this near its centroid is that centroid up to rounding: a second cluster there stays empty.
_COINCIDENT = 2.0**-20
INITS = ("random", "k-means++")
# k-means++ chooses among so many vectors a cluster.
_POINTS_TO_CHOOSE_FROM = 32


@dataclass(frozen=True)
class Iteration:
    """What one pass over the training vectors found.

    Attributes
    ----------
    objective : float
        Mean ``1 - cos`` to the nearest centroid before the update, the same bits on every machine.
    n_moved : int
        Vectors whose cluster changed.
    n_reseeded : int
        Empty clusters that were given a new centroid.
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

    Stops early when the means do not move any more, or the objective hardly changes.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
        Unit norm, on the grid.
    n_clusters : int
        At most n.
    n_iter : int
        At most this many iterations.
    init, seed
        See `choose_first_centroids`.
    tol : float
        Iterations stop when the objective falls by less than this share of it.
    on_iteration : callable, optional
        Called with the iteration number (from 1) and its `Iteration`.

    Returns
    -------
    LloydResult
        The means of the last iteration. With fewer distinct vectors than clusters, the last of them
        repeat the first vector; since ties go to the lowest index their clusters stay empty.

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
        # Only what moved changes the sums; being exact they do not drift.
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
            centroids = means  # the new ones have no direction yet
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
    """The centroids to assign to next: the means, moved on by as much as they moved last.

    A mean that stands still is its own centroid. After an objective that rose they are the means themselves.

    Parameters
    ----------
    means, means_before : ndarray of float32, shape (k, dim)
        Unit norm, on the grid: of this iteration and of the one before.
    before : float or None
        Objective of the iteration before.
    objective : float
        Of this one.

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
    # Twice a unit vector less another is never zero.
    return normalize_rows(2 * means.astype(np.float64) - means_before)[0]


def has_settled(before: float | None, objective: float, tol: float) -> bool:
    """Whether the objective fell, by less than the share `tol` of it; never with a `tol` of 0.

    Examples
    --------
    >>> has_settled(0.5, 0.4999, 0.001), has_settled(0.5, 0.4, 0.001), has_settled(0.5, 0.5, 0.0)
    (True, False, False)
    """
    return tol > 0 and before is not None and 0 <= before - objective < tol * before


def _objective(sums: npt.NDArray[np.float64], centroids: npt.NDArray[np.float32], n_rows: int) -> float:
    # The cosines of a cluster add up to the product of its sum and its centroid.
    total = sum_rows(sum_rows(sums * centroids)[None, :])[0]
    return 1.0 - float(total) / n_rows


def choose_first_centroids(
    vectors: npt.NDArray[np.float32], n_clusters: int, init: str, seed: int
) -> npt.NDArray[np.float32]:
    """The centroids that iterations start from.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
        In the order of a hash.
    n_clusters : int
    init : {"random", "k-means++"}
        The first distinct vectors, which are a random sample; or, of the first 32 vectors a cluster, one
        after the other with a probability that grows with the distance to the nearest of those chosen
        before (Arthur and Vassilvitskii, SODA 2007), which takes k more passes over these.
    seed : int
        For ``k-means++``.

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
    # Raw bits and whole numbers: no library's rounding has a say.
    bits = np.random.PCG64(seed % 2**64)
    chosen = [0]
    distance = np.full(len(wide), np.inf)
    while len(chosen) < n_clusters:
        distance = np.minimum(distance, 1.0 - wide @ wide[chosen[-1]])
        weight = np.rint(np.maximum(distance, 0.0) / _COINCIDENT).astype(np.int64)
        ends = np.cumsum(weight)
        if ends[-1] == 0:  # every vector is one of those chosen
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
    """Give each empty cluster the sample farthest from its centroid (ties: first row); returns how many."""
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
