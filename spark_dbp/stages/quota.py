"""How many samples each cluster keeps. Imports numpy, names and errors only.

Equations of arXiv 2401.04578, section 3: complexity ``C_j = d_intra,j * d_inter,j``, weight
``P_j = softmax(C_j / temperature)``, quotas the integer minimum of ``sum_j (x_j - P_j N)**2``.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import D_INTER, D_INTRA
from spark_dbp.errors import InfeasibleError

FloatVector = npt.NDArray[np.float64]
IntVector = npt.NDArray[np.int64]

# numpy's and the C library's exp differ in the last bit between versions and processors; this one does not.
_EXACTLY = Context(prec=25)


def weigh_by_softmax(complexity: npt.ArrayLike, temperature: float) -> FloatVector:
    """Weights ``P_j = exp(C_j / temperature) / sum_i exp(C_i / temperature)``, without overflow.

    Parameters
    ----------
    complexity : array_like of float, shape (k,)
    temperature : float
        Above 0.

    Returns
    -------
    ndarray of float64, shape (k,)
        Sums to 1.

    Examples
    --------
    >>> softmax_weights([0.5, 0.5], 0.1).tolist()
    [0.5, 0.5]
    """
    values = np.asarray(complexity, dtype=np.float64)
    if values.size == 0:
        return values
    with np.errstate(over="ignore"):  # a temperature near 0 sends all but the largest to minus infinity
        exponents = (values - values.max()) / temperature
    powers = [float(_EXACTLY.exp(Decimal(x))) for x in exponents.tolist()]
    return np.asarray(powers, dtype=np.float64) / math.fsum(powers)


def weigh_by_size(sizes: npt.ArrayLike) -> FloatVector:
    """Weights proportional to `sizes`, shape (k,); they sum to 1.

    Examples
    --------
    >>> proportional_weights([1, 3]).tolist()
    [0.25, 0.75]
    """
    values = np.asarray(sizes, dtype=np.float64)
    return np.asarray(values / values.sum() if values.size else values, dtype=np.float64)


def solve_quotas(target: npt.ArrayLike, lower: npt.ArrayLike, upper: npt.ArrayLike, n_keep: int) -> IntVector:
    """Integer minimum of ``sum (x - target)**2`` with ``sum x = n_keep`` and ``lower <= x <= upper``.

    The objective is separable and convex, so an allocation is optimal when no unit can move from one
    cluster to another at a gain. The real-valued optimum ``clip(target + mu, lower, upper)`` is found
    from its sorted breakpoints; a start below it is then filled up with the cheapest single units.
    Costs are compared exactly, and equal costs go to the lowest index.

    Parameters
    ----------
    target : array_like of float, shape (k,)
        Finite wanted sizes (``P_j * N``), below 2**52 in magnitude.
    lower, upper : array_like of int, shape (k,)
        Bounds of each quota, ``0 <= lower <= upper``.
    n_keep : int
        What the quotas add up to.

    Returns
    -------
    ndarray of int64, shape (k,)

    Raises
    ------
    InfeasibleError
        When `n_keep` lies outside ``[sum(lower), sum(upper)]``; the message names that range.
    ValueError
        When the arguments are not what is described above.

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
    # Rounding moves no quota by more than a unit, so below this start nothing optimal is lost
    # and at most a few units a cluster are missing.
    start = _clip_to_int(np.floor(wanted + (shift - 1.0)), low, high)
    surplus = int(start.sum()) - n_keep
    while surplus > 0:  # only float rounding of huge targets gets here
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
    # Clip in float first: a value far outside int64 would wrap.
    return np.clip(np.clip(values, -1.0, 2.0**53).astype(np.int64), low, high)


def _continuous_shift(wanted: FloatVector, low: IntVector, high: IntVector, n_keep: int) -> float:
    """Solve ``sum clip(wanted + shift, low, high) = n_keep`` for shift (piecewise linear, rising)."""
    begins, ends = low - wanted, high - wanted  # where a cluster leaves its floor, meets its size
    points = np.concatenate([begins, ends])
    order = np.argsort(points, kind="stable")
    points = points[order]
    slopes = np.cumsum(np.where(order < len(wanted), 1, -1))
    totals = float(low.sum()) + np.concatenate([[0.0], np.cumsum(slopes[:-1] * np.diff(points))])
    at = int(np.searchsorted(totals, n_keep, side="right")) - 1
    at = min(max(at, 0), len(points) - 1)
    if slopes[at] <= 0:
        return float(points[at])
    return float(points[at] + (n_keep - totals[at]) / slopes[at])


def _fill_up(start: IntVector, wanted: FloatVector, high: IntVector, n_keep: int) -> IntVector:
    """Add the cheapest units until the sum is met; the unit after x costs ``2 (x - wanted) + 1``."""
    quotas = start
    while (missing := n_keep - int(quotas.sum())) > 0:
        depth = 2 + missing // len(quotas)
        room = np.minimum(high - quotas, depth)
        index = np.repeat(np.arange(len(quotas)), room)
        nth = np.arange(len(index)) - np.repeat(np.cumsum(room) - room, room)
        step = (quotas[index] + nth).astype(np.float64)
        gap, error = _exact_difference(step, wanted[index])
        order = np.lexsort((index, error, gap))
        # A cluster cut off at `depth` may have cheaper units left: take no unit beyond its last one.
        cut = (nth == depth - 1) & (high[index] - quotas[index] > depth)
        stop = np.flatnonzero(cut[order])
        n_sure = int(stop[0]) + 1 if stop.size else len(order)
        chosen = index[order[: min(missing, n_sure)]]
        quotas = quotas + np.bincount(chosen, minlength=len(quotas))
    return quotas


def _exact_difference(a: FloatVector, b: FloatVector) -> tuple[FloatVector, FloatVector]:
    """``a - b`` as a rounded difference and its rounding error (Knuth's two-sum): compares exactly."""
    difference = a - b
    b_seen = a - difference
    a_seen = difference + b_seen
    return difference, (a - a_seen) - (b - b_seen)


def plan_quotas(
    n_items: npt.ArrayLike,
    d_intra: npt.ArrayLike,
    d_inter: npt.ArrayLike,
    n_keep: int,
    *,
    complexity: str = "d_intra*d_inter",
    temperature: float = 0.1,
    min_per_cluster: int = 1,
    cluster_balance: float = 0.0,
) -> dict[str, Any]:
    """Complexity, weight, target and quota of every cluster.

    Clusters without samples take no part: complexity nan, weight, target and quota 0.

    Parameters
    ----------
    n_items : array_like of int, shape (k,)
        Cluster sizes M_j.
    d_intra, d_inter : array_like of float, shape (k,)
        In [0, 2]; ignored where n_items is 0.
    n_keep : int
        N, how many samples to keep in all.
    complexity : str
        ``d_intra*d_inter``, ``d_intra`` or ``d_inter`` (softmax over that product);
        ``cluster_size`` (weight proportional to the size) or ``uniform`` (equal weights), which do
        not use the temperature.
    temperature : float
        Of the softmax; above 0.
    min_per_cluster : int
        Floor of every quota; the paper's is 1.
    cluster_balance : float
        b in [0, 1]: raises the floor to ``int(b * N / k)``, k counting clusters with samples.

    Returns
    -------
    dict of ndarray
        ``complexity``, ``weight``, ``target`` (float64), ``floor`` and ``quota`` (int64), each of
        shape (k,).

    Raises
    ------
    InfeasibleError
        When no quotas add up to `n_keep`.

    Examples
    --------
    >>> plan = plan_quotas([10, 10], [0.2, 0.4], [0.5, 0.5], 10, temperature=0.1)
    >>> plan["quota"].tolist(), plan["target"].round(2).tolist()
    ([3, 7], [2.69, 7.31])
    """
    sizes = np.asarray(n_items, dtype=np.int64)
    used = sizes > 0
    weight = np.zeros(len(sizes))
    if complexity in ("cluster_size", "uniform"):
        values = sizes.astype(np.float64) if complexity == "cluster_size" else np.ones(len(sizes))
        weight[used] = weigh_by_size(values[used])
    else:
        measures = {D_INTRA: np.asarray(d_intra, float), D_INTER: np.asarray(d_inter, float)}
        values = np.prod([measures[name] for name in complexity.split("*")], axis=0)
        weight[used] = weigh_by_softmax(values[used], temperature)
    values = np.where(used, values, np.nan)
    floor = min_per_cluster
    if used.any():
        floor = max(floor, int(cluster_balance * n_keep / int(used.sum())))
    target = weight * n_keep
    lower = np.minimum(floor, sizes)
    quota = solve_quotas(target, lower, sizes, n_keep)
    return {"complexity": values, "weight": weight, "target": target, "floor": lower, "quota": quota}
