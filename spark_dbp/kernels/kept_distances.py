"""What histograms tell of the distances of kept samples, for any quotas.

Imports numpy, `histogram` and `ranking`. A bin is 1/1024 of distance, so the mean of what is kept is known
within half of that, and closer where most of a cluster is kept: the mean of all its samples (d_intra) is
known exactly, so what is left out bounds it too.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import numpy.typing as npt

from spark_dbp.kernels.histogram import BINS_PER_UNIT, DISTANCE_UNIT, N_BINS
from spark_dbp.kernels.ranking import FARTHEST_FIRST, count_spread

IntVector = npt.NDArray[np.int64]
FloatVector = npt.NDArray[np.float64]

# With more bins of all clusters together, neighbouring ones are counted as one: `stratified` goes over all of
# them for every quota.
MOST_BINS = 2**20
# What `random` keeps is a sample: of its mean, so many standard errors are given.
STANDARD_ERRORS = 3.0


class KeptDistances:
    """The histograms of all clusters of a run, in the order in which samples are kept.

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
        self._ends = np.cumsum(n_bins)
        self._starts = self._ends - n_bins
        self._cluster = np.repeat(np.arange(len(n_bins)), n_bins)
        if which_to_keep in FARTHEST_FIRST:  # turn the order of the bins around, in each cluster
            at = (self._starts + self._ends - 1)[self._cluster] - np.arange(len(bins))
            bins, n_items = bins[at], n_items[at]
        self.bins, self.n_items = bins, n_items
        # Sums over all earlier bins of all clusters: samples, and samples times the number of their bin.
        self._rows = np.concatenate(([0], np.cumsum(n_items)))
        self._steps = np.concatenate(([0], np.cumsum(n_items * bins)))
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
        bins, n_items = self.bins[part], self.n_items[part]
        until = np.cumsum(n_items)
        kept: FloatVector
        if self.which_to_keep == "random":
            kept = n_items.astype(np.float64) * (quota / max(1, int(n_items.sum())))
        elif self.which_to_keep == "stratified":
            spread = count_spread(until, max(1, int(n_items.sum())), quota)
            kept = np.diff(spread, prepend=0).astype(np.float64)
        else:
            kept = np.clip(quota - (until - n_items), 0, n_items).astype(np.float64)
        order = np.argsort(bins)
        return bins[order], n_items[order], kept[order]

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
        find_bounds = self._bound_spread if self.which_to_keep == "stratified" else self._bound_first
        low, high = find_bounds(quota)
        middle = float((low + high).sum()) / 2
        # The sums of distances that are known are those of distances rounded to a unit.
        error = float(np.maximum(high - low, 0.0).sum()) / 2 / n_keep + DISTANCE_UNIT
        return middle / n_keep, error

    def _bound_first(self, quota: IntVector) -> tuple[FloatVector, FloatVector]:
        """Least and largest sum of the first `quota` distances of each cluster."""
        rows = self._rows[self._starts] + quota
        cut = np.searchsorted(self._rows, rows, side="right") - 1  # the bin that the cut lies in
        steps = self._steps[cut] - self._steps[self._starts]
        steps = steps + (rows - self._rows[cut]) * self.bins[np.minimum(cut, len(self.bins) - 1)]
        low = steps / BINS_PER_UNIT
        # What is left out bounds the sum as well. Of a cluster that is kept whole it tells it exactly.
        left = (self._steps[self._ends] - self._steps[self._starts]) / BINS_PER_UNIT - low
        left_high = left + (self.sizes - quota) / BINS_PER_UNIT
        return np.maximum(low, self._sums - left_high), np.minimum(
            low + quota / BINS_PER_UNIT, self._sums - left
        )

    def _bound_spread(self, quota: IntVector) -> tuple[FloatVector, FloatVector]:
        """Least and largest sum of the distances that ``stratified`` keeps."""
        cluster, first, n_items, until, width = self._wide_bins
        of_cluster = self.sizes[cluster], quota[cluster]
        kept = count_spread(until, *of_cluster) - count_spread(until - n_items, *of_cluster)
        low = np.bincount(cluster, kept * first, len(self.sizes)) / BINS_PER_UNIT
        is_whole = quota == self.sizes
        return np.where(is_whole, self._sums, low), np.where(
            is_whole, self._sums, low + quota * (width / BINS_PER_UNIT)
        )

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
