"""Find the most similar earlier vector of each vector of a cluster. Imports numpy and `geometry` only.

Products are computed in float32. A product near the threshold, or near the best one so far, is computed again
in float64, which is exact (see `geometry`). So the answer does not depend on the sizes of the matrices.

The **similarity** of two vectors is 1 when they are identical, and below 1 otherwise. Their product alone
does not say that: components are rounded, so the product of a vector with itself is a little more or less
than 1. For other vectors the similarity is the product, or `BELOW_ONE` where the product is 1 or more.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from spark_dbp.kernels.geometry import bound_undecided_gap

Matrix = npt.NDArray[np.float32]
IntVector = npt.NDArray[np.int64]

# Size of one matrix product: 512 x 2048 scores take 4 MiB, and a core computes them at nearly its top speed.
_ROWS, _COLUMNS = 512, 2048
# With more candidate pairs a row than this, one whole product in float64 is cheaper than pair by pair.
_PAIRS_A_ROW = 8
# Bytes of float64 vectors for products pair by pair. So a worker's memory does not grow with the dimension.
_PAIR_BYTES = 16 << 20

BELOW_ONE = float(np.nextafter(1.0, 0.0))


def find_threshold(eps: float) -> float:
    """The similarity above which two samples are duplicates: ``1 - eps``, but always below 1.

    So identical vectors are duplicates for every eps, also where ``1 - eps`` is 1 in float64.

    Examples
    --------
    >>> find_threshold(0.25), find_threshold(1e-20) < 1
    (0.75, True)
    """
    return min(1 - eps, BELOW_ONE)


class MostSimilarEarlier:
    """For every vector of a tile, the most similar of the vectors that come before it.

    Parameters
    ----------
    block : ndarray of float32, shape (n, dim)
        The vectors of the tile, in order. Unit norm, on the grid.
    threshold : float
        Only similarities above it are looked for. From `find_threshold`.

    Attributes
    ----------
    similarity : ndarray of float64, shape (n,)
        Exact; 1 for identical vectors only. Minus infinity where no vector above the threshold was found.
    tile, row : ndarray of int64, shape (n,)
        Number of the tile that holds the most similar vector, as given to `compare`, and the row in it. -1
        where none was found. Of equally similar vectors, the first one compared.

    Examples
    --------
    >>> from spark_dbp.kernels.geometry import normalize_rows
    >>> block, _ = normalize_rows(np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1]]))
    >>> found = MostSimilarEarlier(block, threshold=0.9)
    >>> found.compare_itself(0)
    >>> found.row.tolist(), found.similarity.round(3).tolist()
    ([-1, -1, 0], [-inf, -inf, 0.995])
    """

    def __init__(self, block: Matrix, threshold: float) -> None:
        self.block = block
        self.threshold = threshold
        self.similarity = np.full(len(block), -np.inf)
        self.tile = np.full(len(block), -1, dtype=np.int64)
        self.row = np.full(len(block), -1, dtype=np.int64)
        self._gap = bound_undecided_gap(block.shape[1])
        self._squares = compute_squares(block)

    def compare(self, others: Matrix, tile: int) -> None:
        """Compare with the vectors of an earlier tile.

        Call this for one tile after the other, in the order of the vectors, so that ties go to the earliest.

        Parameters
        ----------
        others : ndarray of float32, shape (m, dim)
            Vectors of the earlier tile. Unit norm, on the grid.
        tile : int
            Its number.
        """
        for rows, columns, scores in iterate_scores(self.block, others):
            self._update(rows, columns, scores, others, tile, first_later=None)

    def compare_itself(self, tile: int) -> None:
        """Compare each vector with the earlier ones of its own tile, number `tile`. Call this last."""
        for rows, columns, scores in iterate_scores(self.block, self.block, triangular=True):
            self._update(rows, columns, scores, self.block, tile, first_later=rows.start)

    def _update(
        self,
        rows: slice,
        columns: slice,
        scores: Matrix,
        others: Matrix,
        tile: int,
        first_later: int | None,
    ) -> None:
        best = self.similarity[rows]
        top = scores.max(axis=1)
        # An identical vector counts as 1, though its product may be below the threshold and other products.
        whole = np.minimum(self._squares[rows], 1.0)
        wanted = np.minimum(np.maximum(self.threshold, best), whole)
        hot = np.flatnonzero((top > wanted - self._gap) & (best < 1.0))
        if hot.size == 0:
            return
        near = scores[hot] >= (np.minimum(top, whole)[hot] - self._gap)[:, None]
        if np.count_nonzero(near) <= _PAIRS_A_ROW * hot.size:
            index, column = np.nonzero(near)
            exact = _compare_pairs(
                self.block, others, self._squares, rows.start + hot[index], columns.start + column
            )
        else:
            wide = others[columns].astype(np.float64)
            product = self.block[rows.start + hot].astype(np.float64) @ wide.T
            squares = np.einsum("ij,ij->i", wide, wide)
            exact = _find_similarity(product, self._squares[rows][hot][:, None], squares)
            if first_later is not None:
                hide_later(exact, first_later + hot, columns.start)
            column = exact.argmax(axis=1)
            index = np.arange(len(hot))
            exact = exact[index, column]
        # Take the largest similarity of each row; of equal ones that of the first column.
        order = np.lexsort((column, -exact, index))
        firsts = order[np.flatnonzero(np.diff(index[order], prepend=-1))]
        row = rows.start + hot[index[firsts]]
        better = (exact[firsts] > self.threshold) & (exact[firsts] > self.similarity[row])
        self.similarity[row[better]] = exact[firsts][better]
        self.tile[row[better]] = tile
        self.row[row[better]] = columns.start + column[firsts][better]


def compute_squares(vectors: Matrix) -> npt.NDArray[np.float64]:
    """Exact product of each vector with itself. It differs from 1 by what rounding to the grid does.

    Parameters
    ----------
    vectors : ndarray of float32, shape (n, dim)
        Unit norm, on the grid.

    Returns
    -------
    ndarray of float64, shape (n,)
    """
    out = np.empty(len(vectors))
    step = max(1, _PAIR_BYTES // (8 * vectors.shape[1]))
    for start in range(0, len(vectors), step):
        wide = vectors[start : start + step].astype(np.float64)
        out[start : start + step] = np.einsum("ij,ij->i", wide, wide)
    return out


def _find_similarity(
    product: npt.NDArray[np.float64], left: npt.NDArray[np.float64], right: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Similarity from exact products of two vectors, of the left with itself, of the right with itself.

    Where all three are equal, the squared distance ``x.x - 2 x.y + y.y`` is 0: the vectors are identical.
    """
    return np.where((product == left) & (product == right), 1.0, np.minimum(product, BELOW_ONE))


def _compare_pairs(
    left: Matrix, right: Matrix, squares: npt.NDArray[np.float64], rows: IntVector, columns: IntVector
) -> npt.NDArray[np.float64]:
    """Exact similarity of each pair of a row of `left`, with their `squares`, and a row of `right`."""
    out = np.empty(len(rows))
    step = max(1, _PAIR_BYTES // (16 * left.shape[1]))
    for start in range(0, len(rows), step):
        pairs = slice(start, start + step)
        a, b = left[rows[pairs]].astype(np.float64), right[columns[pairs]].astype(np.float64)
        product, square = np.einsum("ij,ij->i", a, b), squares[rows[pairs]]
        # Most pairs are not identical, so the squares of the right side are computed for few.
        right_square = np.full(len(product), np.nan)
        maybe = np.flatnonzero(product == square)
        right_square[maybe] = np.einsum("ij,ij->i", b[maybe], b[maybe])
        out[pairs] = _find_similarity(product, square, right_square)
    return out


def iterate_scores(
    left: Matrix, right: Matrix, triangular: bool = False
) -> Iterator[tuple[slice, slice, Matrix]]:
    """float32 products of `left` and `right`, in pieces that fit the cache.

    Parameters
    ----------
    left : ndarray of float32, shape (n, dim)
    right : ndarray of float32, shape (m, dim)
    triangular : bool
        Set it when `right` is `left`. Scores of columns that are not earlier than their row are then -2.

    Yields
    ------
    rows, columns : slice
        Which rows of `left` and of `right` the piece covers.
    scores : ndarray of float32
        Overwritten by the next piece.
    """
    buffer = np.empty((_ROWS, _COLUMNS), dtype=np.float32)
    for start in range(0, len(left), _ROWS):
        rows = slice(start, min(start + _ROWS, len(left)))
        n_columns = rows.stop if triangular else len(right)
        for column in range(0, n_columns, _COLUMNS):
            columns = slice(column, min(column + _COLUMNS, n_columns))
            scores = buffer[: rows.stop - rows.start, : columns.stop - columns.start]
            np.matmul(left[rows], right[columns].T, out=scores)
            if triangular and columns.stop > rows.start:
                hide_later(scores, np.arange(rows.start, rows.stop), columns.start)
            yield rows, columns, scores


def hide_later(scores: npt.NDArray[np.floating], rows: IntVector, first_column: int) -> None:
    """Set the scores of columns that are not earlier than their row to -2, which is below any cosine."""
    columns = first_column + np.arange(scores.shape[1])
    scores[columns[None, :] >= rows[:, None]] = -2.0


def find_spanning_pairs(
    left: Matrix, right: Matrix, threshold: float, itself: bool
) -> Iterator[tuple[IntVector, IntVector]]:
    """Pairs (row of left, row of right) that connect the same vectors as all pairs above `threshold`.

    Vectors that many pairs connect need only a spanning tree of these pairs.

    Parameters
    ----------
    left : ndarray of float32, shape (n, dim)
    right : ndarray of float32, shape (m, dim)
    threshold : float
        A pair counts when its exact similarity is above it. From `find_threshold`.
    itself : bool
        Whether `right` is `left`. Then only pairs of different rows count.

    Yields
    ------
    rows, columns : ndarray of int64
        For each piece of `iterate_scores`, fewer pairs than it has rows and columns together.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import breadth_first_order, connected_components

    gap = bound_undecided_gap(left.shape[1])
    squares = compute_squares(left)
    # The product of identical vectors may be below the threshold.
    least = np.minimum(threshold, squares) - gap
    # float32 tells that a product is above the threshold, but not that it is below 1.
    sure = threshold + gap if threshold < BELOW_ONE else np.inf
    for rows, columns, scores in iterate_scores(left, right, triangular=itself):
        row, column = np.nonzero(scores > least[rows, None])
        if row.size == 0:
            continue
        open_ = np.flatnonzero(scores[row, column] <= sure)
        keep = np.ones(len(row), dtype=np.bool_)
        similarity = _compare_pairs(
            left, right, squares, rows.start + row[open_], columns.start + column[open_]
        )
        keep[open_] = similarity > threshold
        row, column = row[keep], column[keep]
        if row.size == 0:
            continue
        n, m = scores.shape
        if itself:  # rows and columns are the same vectors, so a vector has one number
            nodes_r, nodes_c = rows.start + row, columns.start + column
            size, offset = max(rows.stop, columns.stop), 0
        else:
            nodes_r, nodes_c, size, offset = row, n + column, n + m, n
        graph = coo_array((np.ones(len(row), np.int8), (nodes_r, nodes_c)), shape=(size, size)).tocsr()
        _, label = connected_components(graph, directed=False)
        used = np.unique(np.concatenate([nodes_r, nodes_c]))
        _, roots = np.unique(label[used], return_index=True)
        for root in used[roots]:
            order, before = breadth_first_order(graph, root, directed=False)
            children = order[1:]
            parents = before[children]
            if itself:
                yield children.astype(np.int64), parents.astype(np.int64)
            else:
                child_is_row = children < offset
                in_left = np.where(child_is_row, children, parents) + rows.start
                in_right = np.where(child_is_row, parents, children) - offset + columns.start
                yield in_left.astype(np.int64), in_right.astype(np.int64)
