"""Unit vectors, exact products, nearest centroids, k-means."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from conftest import make_embeddings
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dbp.geometry import GRID, NearestCentroid, mean_distance_to_nearest, row_sums, unit_rows
from spark_dbp.stages.lloyd import spherical_kmeans


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from([1e-30, 1.0, 1e30, 1e200, 1e-200]))
@settings(max_examples=100, deadline=None)
def test_unit_rows_are_unit_and_on_the_grid(dim, seed, scale):
    raw = np.random.default_rng(seed).standard_normal((7, dim)) * scale
    vectors, is_zero = unit_rows(raw)
    assert not is_zero.any()
    assert np.allclose(np.linalg.norm(vectors.astype(float), axis=1), 1, atol=1e-6)
    steps = vectors.astype(np.float64) / GRID
    assert (steps == np.rint(steps)).all()
    cosine = (raw / np.abs(raw).max()) @ vectors.astype(float).T
    assert (cosine.argmax(axis=1) == np.arange(7)).all() or dim < 3


def test_unit_rows_of_unit_rows_are_themselves():
    vectors, _ = unit_rows(make_embeddings(500, 33, 4))
    assert (unit_rows(vectors)[0] == vectors).all()
    nearly = vectors + np.float32(GRID / 4)
    assert (unit_rows(nearly)[0] != nearly).any(axis=1).all()


def test_zero_rows_are_found_and_negative_zero_is_zero():
    vectors, is_zero = unit_rows(np.array([[0.0, -0.0], [-0.0, 1.0], [1e-320, 0.0]]))
    assert is_zero.tolist() == [True, False, False]
    assert not np.signbit(vectors).any()


@pytest.mark.parametrize("dim", [3, 64, 384, 1024])
def test_products_are_exact_in_any_order(dim):
    vectors, _ = unit_rows(make_embeddings(200, dim, 5))
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
    assert row_sums(values.copy()).tolist() == values.sum(axis=1).tolist()


@pytest.mark.parametrize("block", [1, 13, 5000])
def test_nearest_is_exact_for_any_block(block):
    vectors, _ = unit_rows(make_embeddings(3000, 48, 6))
    centroids, _ = unit_rows(make_embeddings(37, 48, 6))
    labels, distances = oracle.assign(vectors, centroids)
    nearest = NearestCentroid(centroids)
    parts = [
        nearest.assign(vectors[start : start + block])
        for start in range(0, 3000 if block > 1 else 200, block)
    ]
    assert (np.concatenate([p[0] for p in parts]) == labels[: sum(len(p[0]) for p in parts)]).all()
    assert (np.concatenate([p[1] for p in parts]) == distances[: sum(len(p[1]) for p in parts)]).all()


def test_near_ties_are_decided_in_float64_and_ties_go_to_the_lowest_index():
    base, _ = unit_rows(make_embeddings(1, 64, 1))
    centroids = np.repeat(base, 6, axis=0)
    centroids[4, 0] += GRID  # nearer or farther by less than float32 can tell
    centroids[2, 1] -= GRID
    vectors, _ = unit_rows(base + 0.3 * np.random.default_rng(0).standard_normal((500, 64)))
    exact = vectors.astype(float) @ centroids.astype(float).T
    labels, _ = NearestCentroid(centroids).labels(vectors)
    assert (labels == exact.argmax(axis=1)).all()
    assert set(labels.tolist()) > {0}
    same, _ = NearestCentroid(np.repeat(base, 5, axis=0)).labels(vectors)
    assert (same == 0).all()


def test_d_inter_over_the_nearest_others():
    centroids, _ = unit_rows(make_embeddings(30, 16, 4))
    wide = centroids.astype(float)
    for neighbors in (1, 5, 29, 100):
        expected = [
            np.mean(sorted(1 - wide[j] @ wide[i] for i in range(30) if i != j)[:neighbors]) for j in range(30)
        ]
        assert mean_distance_to_nearest(centroids, neighbors) == pytest.approx(expected, abs=1e-14)
    assert mean_distance_to_nearest(centroids[:1], 20).tolist() == [0.0]


@pytest.mark.parametrize(("n", "k", "concepts"), [(400, 9, 9), (60, 40, 3), (300, 1, 2)])
def test_kmeans_equals_the_plain_loop(n, k, concepts):
    vectors, _ = unit_rows(make_embeddings(n, 12, concepts, seed=n))
    result = spherical_kmeans(vectors, k, 15)
    assert (result.centroids == oracle.kmeans(vectors, k, 15)).all()
    objective = [iteration.objective for iteration in result.history]
    assert objective == sorted(objective, reverse=True)


def test_kmeans_reseeds_empty_clusters_and_repeats_itself():
    rng = np.random.default_rng(3)
    tight = np.repeat(rng.standard_normal((2, 8)), 50, axis=0) + 1e-3 * rng.standard_normal((100, 8))
    far = rng.standard_normal((5, 8))
    vectors, _ = unit_rows(np.concatenate([tight, far]))
    result = spherical_kmeans(vectors, 7, 20)
    assert (result.centroids == oracle.kmeans(vectors, 7, 20)).all()
    labels, _ = NearestCentroid(result.centroids).labels(vectors)
    assert len(set(labels.tolist())) == 7
    assert (spherical_kmeans(vectors, 7, 20).centroids == result.centroids).all()


def test_kmeans_of_identical_vectors_ends():
    vectors, _ = unit_rows(np.ones((50, 5)))
    result = spherical_kmeans(vectors, 4, 20)
    assert len(result.history) < 20
    labels, _ = NearestCentroid(result.centroids).labels(vectors)
    assert (labels == 0).all()
