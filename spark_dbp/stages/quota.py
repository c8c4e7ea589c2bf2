"""Compute how many samples each cluster keeps. Imports numpy, `columns`, `exponential` and `quota_solver`.

Equations of arXiv 2401.04578, section 3: the complexity is ``C_j = d_intra,j * d_inter,j``, the weight is
``P_j = softmax(C_j / temperature)``. The quotas are the integers x_j that minimise
``sum_j (x_j - P_j N)**2``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import D_INTER, D_INTRA
from spark_dbp.kernels.exponential import compute_exponential
from spark_dbp.kernels.quota_solver import FloatVector, solve_quotas

# Complexities whose weights are no softmax.
WITHOUT_TEMPERATURE = ("cluster_size", "uniform")
# What `propose_temperature` aims at: the largest weight over the smallest, before the temperature is rounded.
SPREAD = 10.0
# With a largest weight below this many times the smallest, the quotas look equal.
NEARLY_EQUAL = 1.5
# Complexities that differ by a smaller share than this are equal: the rest may be rounding.
_SAME_COMPLEXITY = 1e-6


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
    >>> weigh_by_softmax([0.5, 0.5], 0.1).tolist()
    [0.5, 0.5]
    """
    values = np.asarray(complexity, dtype=np.float64)
    if values.size == 0:
        return values
    with np.errstate(over="ignore"):  # a temperature near 0 makes all but the largest minus infinity
        exponents = (values - values.max()) / temperature
    powers = compute_exponential(exponents)
    return powers / math.fsum(powers)


def weigh_by_size(sizes: npt.ArrayLike) -> FloatVector:
    """Weights proportional to `sizes`, shape (k,); they sum to 1.

    Examples
    --------
    >>> weigh_by_size([1, 3]).tolist()
    [0.25, 0.75]
    """
    values = np.asarray(sizes, dtype=np.float64)
    return np.asarray(values / values.sum() if values.size else values, dtype=np.float64)


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

    Clusters without samples are left out: their complexity is nan, their weight, target and quota are 0.

    Parameters
    ----------
    n_items : array_like of int, shape (k,)
        Cluster sizes M_j.
    d_intra, d_inter : array_like of float, shape (k,)
        In [0, 2]; ignored where n_items is 0.
    n_keep : int
        N: how many samples to keep in all.
    complexity : str
        ``d_intra*d_inter``, ``d_intra`` or ``d_inter``: the weight is the softmax of that measure.
        ``cluster_size``: the weight is proportional to the size. ``uniform``: all weights are equal. The last
        two do not use the temperature.
    temperature : float
        Temperature of the softmax; above 0.
    min_per_cluster : int
        Floor of every quota; 1 in the paper. A cluster with fewer samples keeps all of them.
    cluster_balance : float
        b in [0, 1]: raises the floor to ``int(b * N / k)``, where k is the number of clusters with samples.

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
    values, weight = weigh_clusters(n_items, d_intra, d_inter, complexity=complexity, temperature=temperature)
    return share_out(n_items, values, weight, n_keep, min_per_cluster, cluster_balance)


def weigh_clusters(
    n_items: npt.ArrayLike,
    d_intra: npt.ArrayLike,
    d_inter: npt.ArrayLike,
    *,
    complexity: str,
    temperature: float,
) -> tuple[FloatVector, FloatVector]:
    """Complexity and weight of every cluster: nan and 0 where it has no samples. See `plan_quotas`.

    Examples
    --------
    >>> zeros = [0, 0, 0]
    >>> weigh_clusters([1, 3, 0], zeros, zeros, complexity="cluster_size", temperature=1)[1].tolist()
    [0.25, 0.75, 0.0]
    """
    sizes = np.asarray(n_items, dtype=np.int64)
    used = sizes > 0
    weight = np.zeros(len(sizes))
    if complexity in WITHOUT_TEMPERATURE:
        values = sizes.astype(np.float64) if complexity == "cluster_size" else np.ones(len(sizes))
        weight[used] = weigh_by_size(values[used])
    else:
        measures = {D_INTRA: np.asarray(d_intra, float), D_INTER: np.asarray(d_inter, float)}
        values = np.prod([measures[name] for name in complexity.split("*")], axis=0)
        weight[used] = weigh_by_softmax(values[used], temperature)
    return np.where(used, values, np.nan), weight


def share_out(
    n_items: npt.ArrayLike,
    complexity: FloatVector,
    weight: FloatVector,
    n_keep: int,
    min_per_cluster: int = 1,
    cluster_balance: float = 0.0,
) -> dict[str, Any]:
    """Share `n_keep` samples out by weights, within floors and sizes: what `plan_quotas` returns.

    Parameters
    ----------
    n_items : array_like of int, shape (k,)
    complexity, weight : ndarray of float64, shape (k,)
        From `weigh_clusters`. Several `n_keep` need them only once.
    n_keep, min_per_cluster, cluster_balance
        As for `plan_quotas`.

    Raises
    ------
    InfeasibleError
        When no quotas add up to `n_keep`.
    """
    sizes = np.asarray(n_items, dtype=np.int64)
    target = weight * n_keep
    lower = find_floors(sizes, n_keep, min_per_cluster, cluster_balance)
    quota = solve_quotas(target, lower, sizes, n_keep)
    return {"complexity": complexity, "weight": weight, "target": target, "floor": lower, "quota": quota}


def find_floors(
    n_items: npt.NDArray[np.int64], n_keep: int, min_per_cluster: int, cluster_balance: float
) -> npt.NDArray[np.int64]:
    """The least quota of every cluster, shape (k,): never above its size.

    Parameters
    ----------
    n_items, n_keep, min_per_cluster, cluster_balance
        As for `plan_quotas`.

    Examples
    --------
    >>> find_floors(np.array([2, 50, 0]), 20, 1, 0.3).tolist()
    [2, 3, 0]
    """
    floor, n_used = min_per_cluster, int((n_items > 0).sum())
    if n_used:
        floor = max(floor, int(cluster_balance * n_keep / n_used))
    return np.minimum(floor, n_items)


def propose_temperature(complexity: npt.ArrayLike, spread: float = SPREAD) -> float | None:
    """The temperature at which the largest weight is about `spread` times the smallest.

    Parameters
    ----------
    complexity : array_like of float, shape (k,)
        nan for clusters without samples, which do not count.
    spread : float
        Above 1.

    Returns
    -------
    float or None
        With one significant digit, so for 10 the ratio of the weights is between 5 and 32. None where there
        are not two clusters of different complexity.

    Examples
    --------
    >>> propose_temperature([0.010, 0.013, 0.021]), propose_temperature([0.5, 0.5])
    (0.005, None)
    """
    values = np.asarray(complexity, dtype=np.float64)
    values = values[~np.isnan(values)]
    if not values.size:
        return None
    range_ = float(values.max() - values.min())
    if not range_ > _SAME_COMPLEXITY * float(values.max()):
        return None
    temperature = float(f"{range_ / math.log(spread):.0e}")
    return temperature if 0 < temperature < math.inf else None


def describe_quotas(n_items: npt.ArrayLike, plan: dict[str, Any], complexity: str) -> dict[str, Any]:
    """What the summary of a run says of its quotas.

    Parameters
    ----------
    n_items : array_like of int, shape (k,)
        Cluster sizes.
    plan : dict of ndarray
        From `plan_quotas`.
    complexity : str
        As `plan_quotas` was given it.

    Returns
    -------
    dict
        Of JSON values. ``clusters``, ``empty_clusters``; ``cluster_sizes``, ``quotas``: smallest and largest;
        ``saturated``: clusters that are kept whole; ``at_floor``: others whose quota is the floor;
        ``weight_ratio``: largest weight over smallest, None where the smallest is 0;
        ``nearly_equal``: whether a softmax made weights of a ratio below `NEARLY_EQUAL`; ``mostly_bound``:
        whether most clusters are saturated or at their floor; both False for a single cluster, or where all
        samples are kept;
        ``proposed_temperature``, ``proposed_weight_ratio``: where one of the two is so, that of
        `propose_temperature`, if at most half of the clusters are saturated or at their floor with it; else
        None.

    Examples
    --------
    >>> sizes = [100, 100, 100]
    >>> plan = plan_quotas(sizes, [0.1, 0.105, 0.12], [0.2, 0.2, 0.2], 90)
    >>> found = describe_quotas(sizes, plan, "d_intra*d_inter")
    >>> found["quotas"], round(found["weight_ratio"], 2), found["proposed_temperature"]
    ([29, 31], 1.04, 0.002)
    """
    sizes = np.asarray(n_items, dtype=np.int64)
    used, quota, floor = sizes > 0, plan["quota"], plan["floor"]
    saturated = int((used & (quota == sizes)).sum())
    at_floor = int((used & (quota == floor) & (quota < sizes)).sum())
    n_used, n_keep = int(used.sum()), int(quota.sum())
    has_choice = n_used > 1 and n_keep < int(sizes.sum())
    has_temperature = complexity not in WITHOUT_TEMPERATURE
    ratio = _divide_weights(plan["weight"][used])
    nearly_equal = has_choice and has_temperature and ratio is not None and ratio < NEARLY_EQUAL
    mostly_bound = has_choice and 2 * (saturated + at_floor) > n_used
    temperature = proposed_ratio = None
    if (nearly_equal or mostly_bound) and has_temperature:
        temperature = propose_temperature(plan["complexity"][used])
    if temperature is not None:
        weight = weigh_by_softmax(plan["complexity"][used], temperature)
        other = solve_quotas(weight * n_keep, floor[used], sizes[used], n_keep)
        bound = int(((other == sizes[used]) | (other == floor[used])).sum())
        proposed_ratio = _divide_weights(weight)
        if 2 * bound > n_used:
            temperature = proposed_ratio = None
    return {
        "clusters": n_used,
        "empty_clusters": int((~used).sum()),
        "cluster_sizes": [int(sizes[used].min()), int(sizes[used].max())],
        "quotas": [int(quota[used].min()), int(quota[used].max())],
        "saturated": saturated,
        "at_floor": at_floor,
        "weight_ratio": ratio,
        "nearly_equal": nearly_equal,
        "mostly_bound": mostly_bound,
        "proposed_temperature": temperature,
        "proposed_weight_ratio": proposed_ratio,
    }


def _divide_weights(weight: FloatVector) -> float | None:
    """Largest over smallest; None where that is no number."""
    smallest = float(weight.min())
    ratio = float(weight.max()) / smallest if smallest > 0 else math.inf
    return ratio if math.isfinite(ratio) else None
