"""Find the integer quotas nearest to the wanted sizes. Imports numpy and `errors` only.

arXiv 2401.04578, section 3: minimise ``sum_j (x_j - P_j N)**2`` over integers x_j that add up to N, each
within its bounds.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from spark_dbp.errors import InfeasibleError

FloatVector = npt.NDArray[np.float64]
IntVector = npt.NDArray[np.int64]


def solve_quotas(target: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike, n_keep: int) -> IntVector:
    """Integer minimum of ``sum (x - target)**2`` with ``sum x = n_keep`` and ``lower <= x <= upper``.

    The objective is separable and convex. So quotas are optimal when moving one unit from a cluster to
    another never lowers it. The real-valued optimum ``clip(target + mu, lower, upper)`` is found first, from
    its sorted breakpoints. Integer quotas that start below it are then filled up, cheapest unit first. Costs
    are compared exactly; of equal costs, the lowest index goes first.

    Parameters
    ----------
    target : array_like of float, shape (k,)
        Wanted sizes (``P_j * N``), finite and below 2**52 in magnitude.
    lower, upper : array_like of int, shape (k,)
        Bounds of each quota, ``0 <= lower <= upper``.
    n_keep : int
        Sum of the quotas.

    Returns
    -------
    ndarray of int64, shape (k,)

    Raises
    ------
    InfeasibleError
        When `n_keep` lies outside ``[sum(lower), sum(upper)]``; the message names that range.
    ValueError
        When an argument is not as described above.

    Notes
    -----
    O(k log k) time, O(k) memory.

    Examples
    --------
    >>> solve_quotas([5.5, 3.2, 1.3], [1, 1, 1], [4, 9, 9], 10).tolist()
    [4, 4, 2]
    """
    wanted = np.asarray(target, dtype=np.float64)
    low, high = _as_bounds(lower, wanted), _as_bounds(upper, wanted)
    if not (np.abs(wanted) < 2.0**52).all():
        raise ValueError("solve_quotas: target holds a value that is not finite or not below 2**52")
    if (low < 0).any() or (low > high).any():
        raise ValueError("solve_quotas: bounds must satisfy 0 <= lower <= upper")
    least, most = int(low.sum()), int(high.sum())
    if not least <= n_keep <= most:
        raise InfeasibleError(
            f"cannot keep {n_keep:,} samples: the clusters' floors need at least {least:,} "
            f"and there are at most {most:,} to keep",
            mend=f"ask for between {least:,} and {most:,} samples, or lower prune.min_per_cluster "
            "and prune.cluster_balance",
        )
    if wanted.size == 0:
        return np.zeros(0, dtype=np.int64)
    shift = _continuous_shift(wanted, low, high, n_keep)
    # An optimal integer quota lies within one unit of the real-valued one. This start is one unit below, so
    # it never exceeds an optimal quota, and at most a few units a cluster are missing.
    start = _clip_to_int(np.floor(wanted + (shift - 1.0)), low, high)
    surplus = int(start.sum()) - n_keep
    while surplus > 0:  # happens only when huge targets are rounded
        shift -= 1.0 + abs(shift) * 2.0**-50
        start = _clip_to_int(np.floor(wanted + (shift - 1.0)), low, high)
        surplus = int(start.sum()) - n_keep
    return _fill_up(start, wanted, high, n_keep)


def _as_bounds(values: npt.ArrayLike, like: FloatVector) -> IntVector:
    bounds = np.asarray(values)
    if bounds.shape != like.shape:
        raise ValueError(f"solve_quotas: bounds of shape {bounds.shape}, target of shape {like.shape}")
    if bounds.size and not np.issubdtype(bounds.dtype, np.integer):
        raise ValueError(f"solve_quotas: bounds must be integers, not {bounds.dtype}")
    return bounds.astype(np.int64)


def _clip_to_int(values: FloatVector, low: IntVector, high: IntVector) -> IntVector:
    # Clip in float first, because a value outside of int64 would wrap around.
    return np.clip(np.clip(values, -1.0, 2.0**53).astype(np.int64), low, high)


def _continuous_shift(wanted: FloatVector, low: IntVector, high: IntVector, n_keep: int) -> float:
    """Solve ``sum clip(wanted + shift, low, high) = n_keep`` for shift. The sum is piecewise linear."""
    begins, ends = low - wanted, high - wanted  # shifts at which a cluster leaves `low`, and reaches `high`
    points = np.concatenate([begins, ends])
    order = np.argsort(points)  # of equal points, the last one is looked at: their order does not matter
    points = points[order]
    slopes = np.cumsum(np.where(order < len(wanted), 1, -1))
    totals = float(low.sum()) + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(points))])
    at = int(np.searchsorted(totals, n_keep, side="right")) - 1
    at = min(max(at, 0), len(points) - 1)
    if slopes[at] <= 0:
        return float(points[at])
    return float(points[at] + (n_keep - totals[at]) / slopes[at])


def _fill_up(start: IntVector, wanted: FloatVector, high: IntVector, n_keep: int) -> IntVector:
    """Add the cheapest units until the sum is `n_keep`. The unit after x costs ``2 (x - wanted) + 1``."""
    quotas = start
    while (missing := n_keep - int(quotas.sum())) > 0:
        depth = 2 + missing // len(quotas)
        room = np.minimum(high - quotas, depth)
        index = np.repeat(np.arange(len(quotas)), room)
        nth = np.arange(len(index)) - np.repeat(np.cumsum(room) - room, room)
        step = (quotas[index] + nth).astype(np.float64)
        gap, error = _exact_difference(step, wanted[index])
        # A cluster with room beyond `depth` has units that are not listed here. After its last listed unit
        # one of these may be the cheapest, so the units of this round end there.
        cut = (nth == depth - 1) & (high[index] - quotas[index] > depth)
        cheap = _list_cheapest(gap, missing)
        if len(cheap) > missing or cut[cheap].any():  # or else they are chosen in whatever order
            cheap = _sort_units(cheap, gap, error)
            stop = np.flatnonzero(cut[cheap])
            cheap = cheap[: min(missing, int(stop[0]) + 1 if stop.size else missing)]
        chosen = index[cheap]
        quotas = quotas + np.bincount(chosen, minlength=len(quotas))
    return quotas


def _list_cheapest(gap: FloatVector, n: int) -> IntVector:
    """The places of the `n` smallest, and of all that equal the largest of these; rising."""
    if n >= len(gap):
        return np.arange(len(gap))
    return np.flatnonzero(gap <= np.partition(gap, n - 1)[n - 1])


def _sort_units(units: IntVector, gap: FloatVector, error: FloatVector) -> IntVector:
    """Places of units, by exact cost; of equal costs, the first goes first."""
    gap, error = gap[units], error[units]
    order = np.argsort(gap, kind="stable")
    ties = gap[order[1:]] == gap[order[:-1]]
    if (error[order[1:]] != error[order[:-1]])[ties].any():
        order = np.lexsort((error, gap))  # which is stable
    return units[order]


def _exact_difference(a: FloatVector, b: FloatVector) -> tuple[FloatVector, FloatVector]:
    """``a - b`` as a rounded difference and its rounding error (Knuth's two-sum): pairs compare exactly."""
    difference = a - b
    b_seen = a - difference
    a_seen = difference + b_seen
    return difference, (a - a_seen) - (b - b_seen)
