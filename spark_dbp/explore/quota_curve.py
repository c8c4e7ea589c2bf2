"""From which keep ratio on a cluster gets some quota. Imports numpy, `config`, kernels and `quota`.

Quotas need not grow with the ratio: they are whole numbers that add up to N, and with `cluster_balance` the
floors of other clusters grow too. So what is found is checked by solving for exactly that ratio.
"""

from __future__ import annotations

from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.config import PruneConfig
from spark_dbp.kernels.quota_solver import solve_quotas
from spark_dbp.stages.quota import find_floors

# The ratios that are solved for first; the smallest that serves lies between two of them.
_GRID = 64
# A written ratio may keep at most this share more than the smallest that serves.
_SLACK = Fraction(1, 200)
# Numbers to keep are found exactly up to this one, larger ones to about so many parts of themselves.
_EXACT = 2000


class QuotaCurve:
    """The quotas of all clusters for any number of samples to keep.

    Parameters
    ----------
    n_items : ndarray of int64, shape (k,)
    weight : ndarray of float64, shape (k,)
        Of the run: they depend on no ratio.
    prune : PruneConfig
        Of the run; its ratio does not count.

    Examples
    --------
    >>> curve = QuotaCurve(np.array([10, 10]), np.array([0.25, 0.75]), PruneConfig(keep_ratio=0.5))
    >>> curve.solve(8).tolist(), curve.find_ratio(0, 3)
    ([2, 6], (0.5, 10))
    """

    def __init__(
        self, n_items: npt.NDArray[np.int64], weight: npt.NDArray[np.float64], prune: PruneConfig
    ) -> None:
        self._sizes = n_items.astype(np.int64)
        self._weight, self._prune = weight, prune
        self._known: dict[int, Any] = {}
        self.n_rows = int(self._sizes.sum())
        least = np.minimum(prune.min_per_cluster, self._sizes).sum()
        self._least = max(1, int(least))

    def solve(self, n_keep: int) -> npt.NDArray[np.int64]:
        """The quotas for so many samples to keep, shape (k,)."""
        prune = self._prune
        floors = find_floors(self._sizes, n_keep, prune.min_per_cluster, prune.cluster_balance)
        return solve_quotas(self._weight * n_keep, floors, self._sizes, n_keep)

    def find_ratio(self, row: int, quota: int) -> tuple[float, int] | None:
        """About the smallest keep ratio that gives a cluster at least some quota, and N at that ratio.

        Parameters
        ----------
        row : int
            The cluster's place among the others.
        quota : int
            At most the size of the cluster.

        Returns
        -------
        (float, int) or None
            The quota with just this ratio was looked at. None where no ratio with few digits serves.
        """
        n_keep = self._find_n_keep(row, quota)
        for digits in range(2, 16):
            ratio = Fraction(ceil(Fraction(n_keep, self.n_rows) * 10**digits), 10**digits)
            found = floor(ratio * self.n_rows)
            is_near = found - n_keep <= n_keep * _SLACK
            if is_near and ratio <= 1 and int(self.solve(found)[row]) >= quota:
                return float(ratio), found
        return None

    def _find_n_keep(self, row: int, quota: int) -> int:
        """The number to keep: by the grid, then by halving between the last too few and the first enough."""
        grid = self._solve_grid()
        first = next(place for place, (_, quotas) in enumerate(grid) if int(quotas[row]) >= quota)
        enough = grid[first][0]
        if first == 0:
            return enough
        too_small = grid[first - 1][0]
        while enough - too_small > max(1, enough // _EXACT):
            middle = (too_small + enough) // 2
            if int(self.solve(middle)[row]) >= quota:
                enough = middle
            else:
                too_small = middle
        return enough

    def _solve_grid(self) -> list[tuple[int, npt.NDArray[np.int64]]]:
        """Rising numbers to keep, up to all rows, with their quotas; solved once."""
        if not self._known:
            steps = np.linspace(self._least, self.n_rows, _GRID + 1)
            self._known = {int(n): self.solve(int(n)) for n in steps}
        return sorted(self._known.items(), key=lambda item: item[0])
