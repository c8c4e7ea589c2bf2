"""The exponential function, and what histograms tell of kept distances, against plain ways."""

from __future__ import annotations

from decimal import Context, Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dbp.kernels import kept_distances
from spark_dbp.kernels.exponential import compute_exponential
from spark_dbp.kernels.histogram import find_bins
from spark_dbp.kernels.kept_distances import KeptDistances
from spark_dbp.kernels.ranking import count_spread


def exp_of_decimal(values):
    context = Context(prec=25)
    return [float(context.exp(Decimal(float(x)))) for x in values]


def test_the_exponential_is_that_of_decimal_to_the_bit():
    rng = np.random.default_rng(0)
    steps = np.arange(0, 1074)
    odd = [
        0.0,
        -0.0,
        5e-324,
        2.0**-53,
        2.0**-54,
        2.0**-55,
        699.99999,
        700.0,
        708.5,
        744.9,
        745.2,
        746.1,
        1e300,
    ]
    values = -np.concatenate(
        [
            rng.uniform(0, 1, 3000),
            rng.uniform(0, 750, 3000),
            10.0 ** rng.uniform(-320, 3, 3000),
            odd,
            steps * np.log(2),
        ]
    )
    assert compute_exponential(values).tolist() == exp_of_decimal(values)
    assert compute_exponential([-np.inf]).tolist() == [0.0]
    assert compute_exponential([]).tolist() == []


@given(st.lists(st.floats(-800, 0), min_size=1, max_size=50))
@settings(max_examples=100, deadline=None)
def test_the_exponential_of_any_numbers(values):
    assert compute_exponential(values).tolist() == exp_of_decimal(values)


def test_what_is_too_close_to_call_is_left_to_decimal(monkeypatch):
    """With a margin that calls all of them doubtful, the answer is the same."""
    monkeypatch.setattr("spark_dbp.kernels.exponential._SURE", 1.0)
    values = -np.linspace(0, 50, 500)
    assert compute_exponential(values).tolist() == exp_of_decimal(values)


def make_clusters(rng, sizes, spread=0.15):
    """Distances of each cluster, and the columns of their histograms."""
    distances = [
        np.clip(rng.normal(rng.uniform(0.1, 1.9), spread, n), 0, 2).astype(np.float32) for n in sizes
    ]
    counted = [np.unique(find_bins(d), return_counts=True) for d in distances]
    n_bins = np.array([len(bins) for bins, _ in counted])
    means = np.array([d.astype(float).mean() if len(d) else np.nan for d in distances])
    return distances, (n_bins, *(np.concatenate(column) for column in zip(*counted, strict=True)), means)


def keep(distances, quota, which_to_keep):
    """Distances that are kept of a cluster."""
    if which_to_keep == "easy":
        return np.sort(distances)[:quota]
    falling = np.sort(distances)[::-1]
    if which_to_keep == "hard" or not len(falling):
        return falling[:quota]
    kept = count_spread(np.arange(len(falling) + 1), len(falling), quota)
    return falling[kept[1:] > kept[:-1]]


@pytest.mark.parametrize("which_to_keep", ["hard", "easy", "stratified"])
@pytest.mark.parametrize("most_bins", [2**18, 60])
def test_the_mean_lies_within_its_error(which_to_keep, most_bins, monkeypatch):
    monkeypatch.setattr(kept_distances, "MOST_BINS", most_bins)
    rng = np.random.default_rng(1)
    for _ in range(60):
        sizes = rng.integers(0, 400, 7)
        sizes[rng.integers(7)] = 200
        distances, columns = make_clusters(rng, sizes, rng.choice([1e-5, 0.01, 0.3]))
        quota = np.minimum(sizes, rng.integers(0, 500, 7))
        if not quota.sum():
            continue
        known = KeptDistances(*columns, which_to_keep)
        mean, error = known.bound_mean(quota)
        kept = [keep(d, n, which_to_keep).astype(float) for d, n in zip(distances, quota, strict=True)]
        assert abs(np.concatenate(kept).mean() - mean) <= error
        assert error < 0.00049 or most_bins < 2**18
        for cluster, of_cluster in enumerate(kept):
            bins, n_items, counts = known.count_kept(cluster, int(quota[cluster]))
            assert (np.diff(bins) > 0).all()
            assert n_items.sum() == sizes[cluster]
            expected = np.zeros(2048)
            np.add.at(expected, find_bins(of_cluster), 1)
            assert counts.tolist() == expected[bins].tolist()


def test_clusters_that_are_kept_whole_are_known_exactly():
    rng = np.random.default_rng(2)
    distances, columns = make_clusters(rng, [50, 0, 80])
    for which_to_keep in ("hard", "easy", "stratified", "random"):
        mean, error = KeptDistances(*columns, which_to_keep).bound_mean(np.array([50, 0, 80]))
        assert error < 1e-8
        assert mean == pytest.approx(np.concatenate(distances).astype(float).mean(), abs=1e-8)


def test_random_is_within_three_standard_errors_nearly_always():
    rng = np.random.default_rng(3)
    distances, columns = make_clusters(rng, [300, 40, 800])
    quota = np.array([20, 30, 100])
    mean, error = KeptDistances(*columns, "random").bound_mean(quota)
    drawn = [
        np.concatenate(
            [rng.choice(d, n, replace=False) for d, n in zip(distances, quota, strict=True)]
        ).mean()
        for _ in range(1000)
    ]
    missed = (np.abs(np.array(drawn) - mean) > error).mean()
    assert missed < 0.02
    assert np.std(drawn) * 3 == pytest.approx(error, rel=0.2)
    _, n_items, kept = KeptDistances(*columns, "random").count_kept(1, 30)
    assert kept.tolist() == pytest.approx((n_items * 0.75).tolist())
