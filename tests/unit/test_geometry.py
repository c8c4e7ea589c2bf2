"""Unit vectors, exact products, nearest centroids, k-means."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import oracle
import pytest
from conftest import make_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dbp.kernels.geometry import (
    GRID,
    NearestCentroid,
    measure_distance_to_nearest,
    normalize_rows,
    sum_rows,
)
from spark_dbp.kernels.lloyd import choose_first_centroids, fit_spherical_kmeans


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1.0, 1e30, 1e200, 1e-200]))
@settings(max_examples=100, deadline=None)
def test_unit_rows_are_unit_and_on_the_grid(dim, seed, scale):
    raw = np.random.default_rng(seed).standard_normal((7, dim)) * scale
    vectors, is_zero = normalize_rows(raw)
    assert not is_zero.any()
    assert np.allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=1e-6)
    steps = vectors.astype(np.float64) / GRID
    assert (steps == np.rint(steps)).all()
    cosine = (raw / np.abs(raw).max()) @ vectors.astype(float).T
    assert (cosine.argmax(axis=1) == np.arange(7)).all() or dim < 3


def test_unit_rows_of_unit_rows_are_themselves():
    vectors, _ = normalize_rows(make_embeddings(500, 33, 4))
    assert (normalize_rows(vectors)[0] == vectors).all()
    nearly = vectors + np.float32(GRID / 4)
    assert (normalize_rows(nearly)[0] != nearly).any(axis=1).all()


def test_zero_rows_are_found_and_negative_zero_is_zero():
    vectors, is_zero = normalize_rows(np.array([[0.0, -0.0], [-0.0, 1.0], [1e-320, 0.0]]))
    assert is_zero.tolist() == [True, False, False]
    assert not np.signbit(vectors).any()


@pytest.mark.parametrize("dim", [3, 64, 384, 1024])
def test_products_are_exact_in_any_order(dim):
    vectors, _ = normalize_rows(make_embeddings(200, dim, 5))
    wide = vectors.astype(np.float64)
    product = wide @ wide.T
    order = np.random.default_rng(0).permutation(dim)
    assert (wide[:, order] @ wide[:, order].T == product).all()
    from fractions import Fraction

    exact = sum(Fraction(float(a)) * Fraction(float(b)) for a, b in zip(wide[0], wide[1], strict=True))
    assert Fraction(float(product[0, 1])) == exact


@pytest.mark.parametrize("width", [1, 2, 3, 7, 64, 385])
def test_row_sums(width):
    values = np.random.default_rng(1).integers(-99, 99, (5, width)).astype(float)
    assert sum_rows(values.copy()).tolist() == values.sum(axis=1).tolist()


@pytest.mark.parametrize("block", [1, 13, 5000])
def test_nearest_is_exact_for_any_block(block):
    vectors, _ = normalize_rows(make_embeddings(3000, 48, 6))
    centroids, _ = normalize_rows(make_embeddings(37, 48, 6))
    labels, distances = oracle.assign(vectors, centroids)
    nearest = NearestCentroid(centroids)
    parts = [
        nearest.assign(vectors[start : start + block])
        for start in range(0, 3000 if block > 1 else 200, block)
    ]
    assert (np.concatenate([p[0] for p in parts]) == labels[: sum(len(p[0]) for p in parts)]).all()
    assert (np.concatenate([p[1] for p in parts]) == distances[: sum(len(p[1]) for p in parts)]).all()


def test_near_ties_are_decided_in_float64_and_ties_go_to_the_lowest_index():
    base, _ = normalize_rows(make_embeddings(1, 64, 1))
    centroids = np.repeat(base, 6, axis=0)
    centroids[4, 0] += GRID  # nearer or farther by less than float32 can tell
    centroids[2, 1] -= GRID
    vectors, _ = normalize_rows(base + 0.3 * np.random.default_rng(0).standard_normal((500, 64)))
    exact = vectors.astype(float) @ centroids.astype(float).T
    labels = NearestCentroid(centroids).labels(vectors)
    assert (labels == exact.argmax(axis=1)).all()
    assert set(labels.tolist()) > {0}
    same = NearestCentroid(np.repeat(base, 5, axis=0)).labels(vectors)
    assert (same == 0).all()


def test_d_inter_over_the_nearest_others():
    centroids, _ = normalize_rows(make_embeddings(30, 16, 4))
    wide = centroids.astype(float)
    for neighbors in (1, 5, 29, 100):
        expected = [
            np.mean(sorted(1 - wide[j] @ wide[i] for i in range(30) if i != j)[:neighbors]) for j in range(30)
        ]
        assert measure_distance_to_nearest(centroids, neighbors) == pytest.approx(expected, abs=1e-14)
    assert measure_distance_to_nearest(centroids[:1], 20).tolist() == [0.0]


@pytest.mark.parametrize(("n", "k", "concepts"), [(400, 9, 9), (60, 40, 3), (300, 1, 2)])
def test_kmeans_equals_the_plain_loop(n, k, concepts):
    vectors, _ = normalize_rows(make_embeddings(n, 12, concepts, seed=n))
    result = fit_spherical_kmeans(vectors, k, 15)
    assert (result.centroids == oracle.kmeans(vectors, k, 15)).all()
    objective = [iteration.objective for iteration in result.history]
    assert objective == sorted(objective, reverse=True)


@pytest.mark.parametrize(("n", "k"), [(400, 9), (30, 20)])
def test_kmeans_plus_plus_spreads_the_first_centroids(n, k):
    vectors, _ = normalize_rows(make_embeddings(n, 12, k, seed=n))
    chosen = choose_first_centroids(vectors, k, "k-means++", 7)
    assert len(np.unique(chosen, axis=0)) == k
    assert {v.tobytes() for v in chosen} <= {v.tobytes() for v in vectors}
    assert (choose_first_centroids(vectors, k, "k-means++", 7) == chosen).all()
    assert (choose_first_centroids(vectors, k, "k-means++", 8) != chosen).any()
    result = fit_spherical_kmeans(vectors, k, 15, init="k-means++", seed=7)
    assert (result.centroids == oracle.lloyd(vectors, chosen, 15)).all()


def test_kmeans_plus_plus_draws_by_distance():
    """With half of the vectors in one place, the chance to be drawn second is that of the distances."""
    base = np.array([[1, 0, 0]] * 50 + [[0, 1, 0]] * 40 + [[-1, 0, 0]] * 10, dtype=float)
    vectors, _ = normalize_rows(base)
    second = np.array([choose_first_centroids(vectors, 4, "k-means++", seed)[1, 1] for seed in range(600)])
    # Distances 1 (forty vectors) and 2 (ten): two thirds for the former.
    assert abs(second.mean() - 2 / 3) < 4 * (2 / 9 / 600) ** 0.5
    assert (
        len(np.unique(choose_first_centroids(vectors, 4, "k-means++", -1), axis=0)) == 3
    )  # there are no more


def test_iterations_stop_when_the_objective_settles():
    vectors, _ = normalize_rows(make_embeddings(2000, 12, 30, seed=5))
    long, short = (fit_spherical_kmeans(vectors, 10, 50, tol=tol) for tol in (0.0, 0.01))
    falls = [1 - b.objective / a.objective for a, b in pairwise(short.history)]
    assert len(short.history) < len(long.history)
    assert falls[-1] < 0.01 and all(fall >= 0.01 for fall in falls[:-1])
    # The means of the last iteration come out, whatever ended it.
    again = fit_spherical_kmeans(vectors, 10, len(short.history))
    assert (again.centroids == short.centroids).all()


def test_fewer_iterations_than_the_plain_ones_reach_a_better_objective():
    vectors, _ = normalize_rows(make_embeddings(6000, 32, 600, seed=6))

    def objective(centroids):
        return NearestCentroid(centroids).assign(vectors)[1].mean(dtype=float)

    plain = choose_first_centroids(vectors, 60, "random", 0)
    for _ in range(20):
        labels = NearestCentroid(plain).labels(vectors)
        plain, _ = normalize_rows(
            np.array([vectors[labels == j].sum(axis=0, dtype=float) for j in range(60)])
        )
    assert objective(fit_spherical_kmeans(vectors, 60, 10).centroids) < objective(plain)


def test_iterations_end_where_plain_ones_would():
    """Each centroid is the mean of what is nearest to it."""
    vectors, _ = normalize_rows(make_embeddings(2000, 12, 30, seed=5))
    result = fit_spherical_kmeans(vectors, 10, 500)
    assert len(result.history) < 500
    labels = NearestCentroid(result.centroids).labels(vectors)
    means, _ = normalize_rows(np.array([vectors[labels == j].sum(axis=0, dtype=float) for j in range(10)]))
    assert (means == result.centroids).all()


def test_kmeans_reseeds_empty_clusters_and_repeats_itself():
    rng = np.random.default_rng(3)
    tight = np.repeat(rng.standard_normal((2, 8)), 50, axis=0) + 1e-3 * rng.standard_normal((100, 8))
    far = rng.standard_normal((5, 8))
    vectors, _ = normalize_rows(np.concatenate([tight, far]))
    result = fit_spherical_kmeans(vectors, 7, 20)
    assert (result.centroids == oracle.kmeans(vectors, 7, 20)).all()
    labels = NearestCentroid(result.centroids).labels(vectors)
    assert len(set(labels.tolist())) == 7
    assert (fit_spherical_kmeans(vectors, 7, 20).centroids == result.centroids).all()


def test_kmeans_of_identical_vectors_ends():
    vectors, _ = normalize_rows(np.ones((50, 5)))
    result = fit_spherical_kmeans(vectors, 4, 20)
    assert len(result.history) < 20
    labels = NearestCentroid(result.centroids).labels(vectors)
    assert (labels == 0).all()
