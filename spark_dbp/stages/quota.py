"""Compute how many samples each cluster keeps. Imports numpy, `columns` and `quota_solver`.

Equations of arXiv 2401.04578, section 3: the complexity is ``C_j = d_intra,j * d_inter,j``, the weight is
``P_j = softmax(C_j / temperature)``. The quotas are the integers x_j that minimise
``sum_j (x_j - P_j N)**2``.
"""

from __future__ import annotations

import math
from decimal import Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import D_INTER, D_INTRA
from spark_dbp.kernels.quota_solver import FloatVector, solve_quotas

# exp of numpy and of the C library differ in the last bit between versions and processors. That of `decimal`
# does not.
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
    >>> weigh_by_softmax([0.5, 0.5], 0.1).tolist()
    [0.5, 0.5]
    """
    values = np.asarray(complexity, dtype=np.float64)
    if values.size == 0:
        return values
    with np.errstate(over="ignore"):  # a temperature near 0 makes all but the largest minus infinity
        exponents = (values - values.max()) / temperature
    powers = [float(_EXACTLY.exp(Decimal(x))) for x in exponents.tolist()]
    return np.asarray(powers, dtype=np.float64) / math.fsum(powers)


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
