"""Unit vectors, nearest centroids and distances. Imports numpy only.

Why results do not depend on the machine
----------------------------------------
All components of vectors and centroids are multiples of ``GRID = 2**-26``: they lie on the grid. A
product of two components is then a multiple of ``2**-52``. By Cauchy-Schwarz, any partial sum of the
products of two unit vectors stays below 2 in magnitude. So float64 holds every intermediate value of a
dot product *exactly*, and a cosine has the same bits for any batch size, BLAS library, number of threads
or instruction set. Sums of up to ``2**27`` vectors are exact in float64 as well. Rounding to the grid
moves a cosine by about 4e-9, less than float32 rounding does.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatMatrix = npt.NDArray[np.floating]

GRID = 2.0**-26
FLOAT32_ROUNDING = 2.0**-24
# Bytes of scores computed at once: few enough to stay in a core's cache, enough for a fast matrix product.
SCORE_BLOCK_BYTES = 2 << 20
_NORMALIZE_BLOCK_BYTES = 256 << 10


def sum_rows(matrix: FloatMatrix) -> npt.NDArray[np.float64]:
    """Sum each row by folding it in half, in the same order on every machine. Overwrites `matrix`.

    Elementwise additions round the same everywhere. The order in which library sums add is not fixed.

    Parameters
    ----------
    matrix : ndarray of float64, shape (n, dim)
        Used as scratch space.

    Returns
    -------
    ndarray of float64, shape (n,)

    Examples
    --------
    >>> sum_rows(np.array([[1.0, 2.0, 3.0]]))
    array([6.])
    """
    width = matrix.shape[1]
    while width > 1:
        half = width // 2
        matrix[:, :half] += matrix[:, width - half : width]
        width -= half
    return np.asarray(matrix[:, 0], dtype=np.float64).copy()


def sum_runs(vectors: npt.NDArray[np.float32], firsts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Sum each run of consecutive rows.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
        Unit norm, on the grid. Sums of up to ``2**27`` of them are exact.
    firsts : ndarray of int64, shape (r,)
        First row of each run, in rising order; the first is 0.

    Returns
    -------
    ndarray of float64, shape (r, dim)

    Examples
    --------
    >>> vectors, _ = normalize_rows(np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]))
    >>> sum_runs(vectors, np.array([0, 1])).tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    wide = vectors.astype(np.float64)
    if len(wide) < 8 * len(firsts):
        return np.add.reduceat(wide, firsts, axis=0)
    # Long runs are summed one by one: that takes numpy half as long as `reduceat`.
    ends = np.append(firsts[1:], len(wide))
    return np.stack([wide[first:end].sum(axis=0) for first, end in zip(firsts, ends, strict=True)])


def normalize_rows(
    embeddings: FloatMatrix,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Scale rows to unit norm and put them on the grid.

    Parameters
    ----------
    embeddings : ndarray of float, shape (n, dim)
        Finite values of any scale.

    Returns
    -------
    vectors : ndarray of float32, shape (n, dim)
        Unit norm up to rounding to the grid; multiples of ``GRID``. A row without direction is all zero.
        A row that is a unit vector on the grid already stays as it is.
    is_zero : ndarray of bool, shape (n,)
        True where the row has no direction (norm 0).

    Examples
    --------
    >>> vectors, is_zero = normalize_rows(np.array([[3.0, 4.0], [0.0, 0.0]]))
    >>> np.round(vectors, 3).tolist(), is_zero.tolist()
    ([[0.6000000238418579, 0.800000011920929], [0.0, 0.0]], [False, True])
    """
    n, dim = embeddings.shape
    vectors = np.empty((n, dim), dtype=np.float32)
    is_zero = np.empty(n, dtype=np.bool_)
    step = max(1, _NORMALIZE_BLOCK_BYTES // (8 * dim))
    for start in range(0, n, step):
        rows = slice(start, start + step)
        vectors[rows], is_zero[rows] = _unit_block(embeddings[rows].astype(np.float64))
    return vectors, is_zero


def _unit_block(
    wide: npt.NDArray[np.float64],
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    with np.errstate(over="ignore"):
        norms = np.sqrt(sum_rows(np.square(wide)))
    extreme = ~((norms > 1e-100) & (norms < 1e100))
    if extreme.any():  # these squares overflow or underflow float64: scale the rows to about 1 first
        largest = np.abs(wide[extreme]).max(axis=1, initial=0.0)
        wide[extreme] /= np.where(largest > 0, largest, 1.0)[:, None]
        norms[extreme] = np.sqrt(sum_rows(np.square(wide[extreme])))
    norms[_is_done(wide, norms)] = 1.0
    is_zero = norms == 0
    wide /= np.where(is_zero, 1.0, norms)[:, None]
    # Round to the grid. float32 rounds values above 2**-2 to coarser steps, which lie on the grid too.
    wide *= 1 / GRID
    np.rint(wide, out=wide)
    wide *= GRID
    wide += 0.0  # turns -0.0 into 0.0, so that equal vectors have equal bytes
    return wide, is_zero


def _is_done(wide: npt.NDArray[np.float64], norms: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """Numbers of the rows that are unit vectors on the grid already. Their bytes must not change."""
    rows = np.flatnonzero(np.abs(norms - 1.0) < 2.0**-18)
    for columns in (slice(0, 8), slice(8, None)):  # the first components rule out most other rows
        steps = wide[rows, columns] * (1 / GRID)
        rows = rows[(steps == np.rint(steps)).all(axis=1)]
    return rows


def bound_undecided_gap(dim: int) -> float:
    """Largest gap between two float32 dot products of unit vectors at which rounding may swap their order.

    It is twice the error bound of one product, for any order of addition.

    Examples
    --------
    >>> bound_undecided_gap(384) < 5e-5
    True
    """
    rounding = dim * FLOAT32_ROUNDING
    return 2.01 * rounding / max(1e-3, 1 - rounding) + 1e-7


class NearestCentroid:
    """Exact nearest centroid by cosine. Computes in float32, and in float64 where float32 is too coarse.

    Parameters
    ----------
    centroids : ndarray of float32, shape (k, dim)
        Unit norm, on the grid (from `normalize_rows`).

    Notes
    -----
    O(n * k * dim) time, and ``SCORE_BLOCK_BYTES`` of scratch space beside the vectors.

    Examples
    --------
    >>> centroids, _ = normalize_rows(np.array([[1.0, 0.0], [0.0, 1.0]]))
    >>> vectors, _ = normalize_rows(np.array([[2.0, 1.0], [1.0, 1.0]]))
    >>> NearestCentroid(centroids).assign(vectors)
    (array([0, 0], dtype=int32), array([0.10557282, 0.29289323], dtype=float32))
    """

    def __init__(self, centroids: npt.NDArray[np.float32]) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self._exact_centroids = self.centroids.astype(np.float64)
        k, dim = self.centroids.shape
        self._block_rows = int(np.clip(SCORE_BLOCK_BYTES // (4 * k), 64, 8192))
        self._undecided = bound_undecided_gap(dim)
        self._scores = np.empty((self._block_rows, k), dtype=np.float32)

    def labels(self, vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
        """Find the nearest centroid of each vector. Ties go to the lowest index.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n, dim)

        Returns
        -------
        ndarray of int32, shape (n,)
        """
        n = len(vectors)
        labels = np.empty(n, dtype=np.int32)
        for start in range(0, n, self._block_rows):
            block = vectors[start : start + self._block_rows]
            scores = self._scores[: len(block)]
            np.matmul(block, self.centroids.T, out=scores)
            rows = np.arange(len(block))
            best = scores.argmax(axis=1)
            top = scores[rows, best]
            scores[rows, best] = -np.inf
            undecided = np.flatnonzero(scores.max(axis=1) >= top - self._undecided)
            if undecided.size:
                exact = block[undecided].astype(np.float64) @ self._exact_centroids.T
                best[undecided] = exact.argmax(axis=1)
            labels[start : start + len(block)] = best
        return labels

    def distances(
        self, vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int32]
    ) -> npt.NDArray[np.float64]:
        """Exact ``1 - cos(vector, centroid[label])`` for each row.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n, dim)
        labels : ndarray of int32, shape (n,)

        Returns
        -------
        ndarray of float64, shape (n,)
            In [0, 2].
        """
        out = np.empty(len(vectors), dtype=np.float64)
        step = max(1, SCORE_BLOCK_BYTES // (8 * vectors.shape[1]))
        for start in range(0, len(vectors), step):
            rows = slice(start, start + step)
            wide = vectors[rows].astype(np.float64)
            out[rows] = np.einsum("ij,ij->i", wide, self._exact_centroids[labels[rows]])
        return np.clip(1.0 - out, 0.0, 2.0)

    def assign(
        self, vectors: npt.NDArray[np.float32]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Nearest centroid of each vector, and the distance to it. Both are the same on every machine.

        Parameters
        ----------
        vectors : ndarray of float32, shape (n, dim)

        Returns
        -------
        labels : ndarray of int32, shape (n,)
        distances : ndarray of float32, shape (n,)
            ``1 - cos``, in [0, 2].
        """
        labels = self.labels(vectors)
        return labels, self.distances(vectors, labels).astype(np.float32)


def measure_distance_to_nearest(
    centroids: npt.NDArray[np.float32], n_neighbors: int
) -> npt.NDArray[np.float64]:
    """d_inter: mean ``1 - cos`` to the `n_neighbors` nearest other centroids (arXiv 2401.04578, sec. 3).

    With ``n_neighbors >= k`` all k - 1 others count. A single centroid has no others and gets 0.

    Parameters
    ----------
    centroids : ndarray of float32, shape (k, dim)
        Unit norm, on the grid.
    n_neighbors : int
        At least 1.

    Returns
    -------
    ndarray of float64, shape (k,)
        In [0, 2].

    Notes
    -----
    O(k^2 * dim) time. Works on a few rows at a time, so that memory is bounded.

    Examples
    --------
    >>> centroids, _ = normalize_rows(np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    >>> measure_distance_to_nearest(centroids, 1).tolist()
    [1.0, 1.0, 1.0]
    """
    k = len(centroids)
    count = min(n_neighbors, k - 1)
    if count < 1:
        return np.zeros(k)
    wide = centroids.astype(np.float64)
    out = np.empty(k)
    step = max(1, 16 * SCORE_BLOCK_BYTES // (8 * k))
    for start in range(0, k, step):
        distance = 1.0 - wide[start : start + step] @ wide.T
        rows = np.arange(len(distance))
        distance[rows, start + rows] = np.inf
        nearest = np.sort(np.partition(distance, count - 1, axis=1)[:, :count], axis=1)
        out[start : start + step] = sum_rows(np.clip(nearest, 0.0, 2.0)) / count
    return out
