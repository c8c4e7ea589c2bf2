"""The keep ratio from which on a cluster gets some quota, against solving for every ratio."""

from __future__ import annotations

import numpy as np
import pytest

from spark_dbp.config import PruneConfig
from spark_dbp.explore.cluster_pairs import _pair_nearest_first, pair_centroids
from spark_dbp.explore.quota_curve import QuotaCurve
from spark_dbp.stages.quota import plan_quotas


def make_clusters(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, 60, 12)
    sizes[0] = 40
    return sizes, rng.uniform(0.05, 0.6, 12), rng.uniform(0.1, 0.5, 12)


@pytest.mark.parametrize(
    "settings", [{}, {"cluster_balance": 0.9}, {"min_per_cluster": 3}, {"temperature": 0.01}]
)
@pytest.mark.parametrize("seed", range(4))
def test_the_ratio_gives_the_quota_and_none_far_below_does(settings, seed):
    sizes, d_intra, d_inter = make_clusters(seed)
    n_rows = int(sizes.sum())
    prune = PruneConfig(keep_ratio=0.3, **settings)
    how = {
        name: getattr(prune, name)
        for name in ("complexity", "temperature", "min_per_cluster", "cluster_balance")
    }
    least = max(1, int(np.minimum(prune.min_per_cluster, sizes).sum()))
    plans = {n: plan_quotas(sizes, d_intra, d_inter, n, **how)["quota"] for n in range(least, n_rows + 1)}
    curve = QuotaCurve(sizes, plan_quotas(sizes, d_intra, d_inter, n_rows, **how)["weight"], prune)
    for n in (least, n_rows // 3, n_rows):
        assert curve.solve(n).tolist() == plans[n].tolist()
    for row in np.flatnonzero(sizes):
        for quota in {1, int(sizes[row]) // 2, int(sizes[row])} - {0}:
            ratio, n_keep = curve.find_ratio(int(row), quota)
            assert PruneConfig(keep_ratio=ratio).count_to_keep(n_rows) == n_keep
            assert plans[n_keep][row] >= quota
            smallest = next(n for n in sorted(plans) if plans[n][row] >= quota)
            # Quotas hardly ever fall with the ratio, and the ratio is written with few digits.
            assert n_keep - smallest <= max(2, 0.05 * n_rows)


def test_quotas_may_fall_with_the_ratio():
    """Why what is found is looked at again: with a floor that grows, some cluster gets less of more."""
    sizes, d_intra, d_inter = np.full(12, 1000), np.linspace(0.1, 0.9, 12), np.full(12, 0.5)
    quotas = [
        plan_quotas(sizes, d_intra, d_inter, n, temperature=0.05, cluster_balance=0.9)["quota"]
        for n in range(100, 4000)
    ]
    assert (np.diff(np.array(quotas), axis=0) < 0).any()


def test_clusters_are_paired_as_a_whole_and_nearest_first():
    rng = np.random.default_rng(0)
    one = rng.standard_normal((40, 16)).astype(np.float32)
    one /= np.linalg.norm(one, axis=1, keepdims=True)
    order = rng.permutation(40)
    other = one[order] + rng.normal(0, 0.02, (40, 16)).astype(np.float32)
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    for pair in (pair_centroids, _pair_nearest_first):
        rows, columns, similarity = pair(one, other[:35])
        assert order[columns].tolist() == rows.tolist()
        assert len(rows) == 35
        np.testing.assert_allclose(similarity, (one[rows] * other[columns]).sum(axis=1), atol=1e-6)
