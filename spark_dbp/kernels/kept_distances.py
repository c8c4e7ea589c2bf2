"""What histograms tell of the distances of kept samples, for any quotas.

Imports numpy, `histogram` and `ranking`. A bin is 1/1024 of distance, so the mean of what is kept is known
within half of that, and closer where most of a cluster is kept: the mean of all its samples (d_intra) is
known exactly, so what is left out bounds it too.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.kernels.histogram import BINS_PER_UNIT, DISTANCE_UNIT, N_BINS
from spark_dbp.kernels.ranking import FARTHEST_FIRST, count_spread

IntVector = npt.NDArray[np.int64]
FloatVector = npt.NDArray[np.float64]

# With more bins of all clusters together, neighbouring ones are counted as one: `stratified` goes over all of
# them for every quota.
MOST_BINS = 2**18
# What `random` keeps is a sample: of its mean, so many standard errors are given.
STANDARD_ERRORS = 3.0


class KeptDistances:
    """The histograms of all clusters of a run.

    Parameters
    ----------
    n_bins : ndarray of int64, shape (k,)
        Number of bins of each cluster that are not empty.
    bins, n_items : ndarray of int64, shape (sum of n_bins,)
        The bins of all clusters, by cluster and rising bin, and the samples in each.
    d_intra : ndarray of float64, shape (k,)
        Mean distance of each cluster; anything where it has no samples.
    which_to_keep : {"hard", "easy", "random", "stratified"}

    Examples
    --------
    >>> two_bins = np.array([2]), np.array([100, 300]), np.array([8, 2]), np.array([0.1372])
    >>> mean, error = KeptDistances(*two_bins, "hard").bound_mean(np.array([4]))
    >>> round(mean, 4), round(error, 5)  # two of bin 300, and two of bin 100
    (0.1958, 0.00049)
    """

    def __init__(
        self, n_bins: IntVector, bins: IntVector, n_items: IntVector, d_intra: FloatVector, which_to_keep: str
    ) -> None:
        self.which_to_keep = which_to_keep
        self.bins, self.n_items = bins, n_items
        self._ends = np.cumsum(n_bins)
        self._starts = self._ends - n_bins
        # Sums over all earlier bins of all clusters: samples, and samples times the number of their bin.
        self._rows, self._steps = np.zeros((2, len(bins) + 1), dtype=np.int64)
        np.cumsum(n_items, out=self._rows[1:])
        np.cumsum(n_items * bins, out=self._steps[1:])
        self.sizes = self._rows[self._ends] - self._rows[self._starts]
        self._sums = np.where(self.sizes > 0, d_intra, 0.0) * self.sizes

    def count_kept(self, cluster: int, quota: int) -> tuple[IntVector, IntVector, FloatVector]:
        """The bins of one cluster, and how many samples of each are kept.

        Parameters
        ----------
        cluster : int
            Its row.
        quota : int

        Returns
        -------
        bins, n_items : ndarray of int64, shape (m,)
            By rising bin.
        kept : ndarray of float64, shape (m,)
            Whole numbers, but for ``random``: what is expected.
        """
        part = slice(int(self._starts[cluster]), int(self._ends[cluster]))
        bins, n_items = self.bins[part].astype(np.int64), self.n_items[part]
        n_rows, given = (np.full(len(bins), number) for number in (int(n_items.sum()), quota))
        return bins, n_items, self._count(np.cumsum(n_items), n_items, n_rows, given)

    def count_all_kept(self, quota: IntVector) -> FloatVector:
        """The same of all clusters at once.

        Parameters
        ----------
        quota : ndarray of int64, shape (k,)

        Returns
        -------
        ndarray of float64, shape (sum of n_bins,)
            Kept samples of each of `bins`.

        Examples
        --------
        >>> two = np.array([2, 1]), np.array([100, 300, 50]), np.array([8, 2, 5]), np.array([0.14, 0.05])
        >>> KeptDistances(*two, "hard").count_all_kept(np.array([4, 1])).tolist()
        [2.0, 2.0, 1.0]
        """
        cluster = self._cluster
        until = self._rows[1:] - self._rows[self._starts][cluster]
        return self._count(until, self.n_items, self.sizes[cluster], quota[cluster])

    def count_before(self, cluster: int, bin_: int) -> int:
        """Samples of a cluster in bins that come before one, in the order in which samples are kept.

        For ``stratified`` that is the order of ``hard``; ``random`` has another order than bins.

        Examples
        --------
        >>> known = KeptDistances(np.array([2]), np.array([100, 200]), np.array([6, 4]), np.zeros(1), "hard")
        >>> known.count_before(0, 100), known.count_before(0, 200)
        (4, 0)
        """
        part = slice(int(self._starts[cluster]), int(self._ends[cluster]))
        bins, n_items = self.bins[part], self.n_items[part]
        is_before = bins > bin_ if self.which_to_keep in FARTHEST_FIRST else bins < bin_
        return int(n_items[is_before].sum())

    def find_cut(self, cluster: int, quota: int) -> float | None:
        """The distance at which ``hard`` and ``easy`` stop keeping, exact to a bin.

        Within the bin it is taken that its samples lie evenly. None for other orders, and where all samples
        of the cluster are kept, or none.

        Examples
        --------
        >>> known = KeptDistances(np.array([2]), np.array([100, 200]), np.array([6, 4]), np.zeros(1), "hard")
        >>> known.find_cut(0, 2) == 200.5 / 1024, known.find_cut(0, 10)
        (True, None)
        """
        if self.which_to_keep not in ("hard", "easy") or not 0 < quota < self.sizes[cluster]:
            return None
        bins, n_items, kept = self.count_kept(cluster, quota)
        is_hard = self.which_to_keep == "hard"
        at = np.flatnonzero(kept > 0)[0 if is_hard else -1]  # the bin that the cut lies in
        share = float(kept[at] / n_items[at])
        return float(bins[at] + (1 - share if is_hard else share)) / BINS_PER_UNIT

    def _count(
        self, until: IntVector, n_items: IntVector, n_rows: IntVector, quota: IntVector
    ) -> FloatVector:
        """Kept samples of bins: `until` counts those of the cluster to the end of the bin, `n_rows` all."""
        kept: npt.NDArray[Any]
        if self.which_to_keep == "random":
            kept = n_items * (quota / np.maximum(1, n_rows))
        elif self.which_to_keep == "stratified":
            kept = _spread(until, n_items, n_rows, quota)
        elif self.which_to_keep == "hard":
            kept = np.clip(until - (n_rows - quota), 0, n_items)
        else:
            kept = np.clip(quota - (until - n_items), 0, n_items)
        return kept.astype(np.float64)

    def bound_mean(self, quota: IntVector) -> tuple[float, float]:
        """Mean distance of all samples that these quotas keep, and by how much it may be off.

        Parameters
        ----------
        quota : ndarray of int64, shape (k,)
            At most the size of each cluster; not all 0.

        Returns
        -------
        mean, error : float
            The mean lies in ``mean - error`` to ``mean + error``. For ``random`` this is no bound: it is the
            mean expected, and three standard errors.

        Notes
        -----
        O(k log m) for m bins, but O(m) for ``stratified``.
        """
        n_keep = int(quota.sum())
        if self.which_to_keep == "random":
            return self._expect_mean(quota, n_keep)
        if self.which_to_keep == "stratified":
            low, high = self._bound_spread(quota)
        elif self.which_to_keep == "easy":
            low, high = self._bound_nearest(quota)
        else:  # what is left out are the nearest
            left_low, left_high = self._bound_nearest(self.sizes - quota)
            low, high = self._sums - left_high, self._sums - left_low
        middle = float((low + high).sum()) / 2
        # The sums of distances that are known are those of distances rounded to a unit.
        error = float(np.maximum(high - low, 0.0).sum()) / 2 / n_keep + DISTANCE_UNIT
        return middle / n_keep, error

    def _bound_nearest(self, n: IntVector) -> tuple[FloatVector, FloatVector]:
        """Least and largest sum of the `n` smallest distances of each cluster."""
        rows = self._rows[self._starts] + n
        cut = self._find_bin(rows)
        steps = self._steps[cut] - self._steps[self._starts]
        steps = steps + (rows - self._rows[cut]) * self.bins[np.minimum(cut, len(self.bins) - 1)]
        low = steps / BINS_PER_UNIT
        # The sum of the others bounds it as well. Where there are none, it is known exactly.
        others = (self._steps[self._ends] - self._steps[self._starts]) / BINS_PER_UNIT - low
        others_high = others + (self.sizes - n) / BINS_PER_UNIT
        low, high = np.maximum(low, self._sums - others_high), low + n / BINS_PER_UNIT
        return low, np.minimum(high, self._sums - others)

    def _find_bin(self, rows: IntVector) -> IntVector:
        """The bin of each cluster before whose end so many rows lie, of all clusters up to it.

        One search over all bins at once would look at places far apart; this one stays within each cluster.
        """
        low, high = self._starts, self._ends
        for _ in range(int((high - low).max(initial=0)).bit_length()):
            middle = (low + high + 1) // 2
            fits = self._rows[middle] <= rows
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        return low

    def _bound_spread(self, quota: IntVector) -> tuple[FloatVector, FloatVector]:
        """Least and largest sum of the distances that ``stratified`` keeps."""
        cluster, first, n_items, until, width = self._wide_bins
        kept = _spread(until, n_items, self.sizes[cluster], quota[cluster])
        low = np.bincount(cluster, kept * first, len(self.sizes)) / BINS_PER_UNIT
        high = low + quota * (width / BINS_PER_UNIT)
        # Of the first r rows r N / M are kept, but for at most a half. So (summing by parts) the sum of the
        # kept differs from N / M of the sum of all by at most half the gap between farthest and nearest.
        even, ends = self._sums * (quota / np.maximum(self.sizes, 1)), np.maximum(self._ends - 1, 0)
        range_ = self.bins[ends] + 1 - self.bins[np.minimum(self._starts, ends)]
        off = np.where(quota == self.sizes, 0.0, range_ / (2 * BINS_PER_UNIT))
        return np.maximum(low, even - off), np.minimum(high, even + off)

    @cached_property
    def _cluster(self) -> IntVector:
        """The row of the cluster of each bin."""
        return np.repeat(np.arange(len(self._starts)), self._ends - self._starts)

    @cached_property
    def _wide_bins(self) -> tuple[IntVector, IntVector, IntVector, IntVector, int]:
        """Cluster, first bin, samples and samples until the end of joined bins; their width in bins."""
        cluster, bins, n_items, width = self._cluster, self.bins, self.n_items, 1
        while len(bins) > MOST_BINS and width < N_BINS:
            width *= 2
            first = bins // width * width
            begins = np.flatnonzero((np.diff(cluster, prepend=-1) != 0) | (np.diff(first, prepend=-1) != 0))
            cluster, bins, n_items = cluster[begins], first[begins], np.add.reduceat(n_items, begins)
        until = np.cumsum(n_items) - self._rows[self._starts][cluster]
        return cluster, bins, n_items, until, width

    def _expect_mean(self, quota: IntVector, n_keep: int) -> tuple[float, float]:
        sizes = np.maximum(self.sizes, 1)
        middle = (self.bins + 0.5) / BINS_PER_UNIT
        square = np.bincount(self._cluster, self.n_items * middle**2, len(sizes)) / sizes
        mean = np.bincount(self._cluster, self.n_items * middle, len(sizes)) / sizes
        # Of distances; the spread within a bin is that of a whole bin.
        variance = np.maximum(square - mean**2, 0) + 1 / 12 / BINS_PER_UNIT**2
        of_sums = quota * variance * (sizes - quota) / np.maximum(sizes - 1, 1)
        error = STANDARD_ERRORS * float(np.sqrt(of_sums.sum())) / n_keep
        return float((quota * (self._sums / sizes)).sum()) / n_keep, error + DISTANCE_UNIT


def _spread(until: IntVector, n_items: IntVector, n_rows: npt.ArrayLike, quota: npt.ArrayLike) -> IntVector:
    """How many rows of each bin ``stratified`` keeps.

    `until` counts the rows of the cluster from the nearest to the end of the bin. The rule counts from the
    farthest.
    """
    n_rows = np.asarray(n_rows, dtype=np.int64)
    farther = n_rows - until
    return count_spread(farther + n_items, n_rows, quota) - count_spread(farther, n_rows, quota)
