"""The most similar earlier vector: exact, for any cut into tiles, ties and duplicates everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_embeddings

from spark_dbp.kernels import pairwise
from spark_dbp.kernels.geometry import GRID, normalize_rows
from spark_dbp.kernels.pairwise import MostSimilarEarlier, find_spanning_pairs, find_threshold

BELOW_ONE = float(np.nextafter(1.0, 0.0))


def similarities(vectors: np.ndarray) -> np.ndarray:
    """Of all pairs: 1 for identical vectors, whatever rounding makes of their product, and below 1 for others."""
    wide = vectors.astype(np.float64)
    _, number = np.unique(vectors, axis=0, return_inverse=True)
    identical = number.reshape(-1, 1) == number.reshape(1, -1)
    return np.where(identical, 1.0, np.minimum(wide @ wide.T, BELOW_ONE))


def plain(vectors: np.ndarray, eps: float) -> list[tuple[int, float]]:
    out = []
    for i, scores in enumerate(similarities(vectors)):
        best = int(scores[:i].argmax()) if i else -1
        is_duplicate = i and (scores[best] > 1 - eps or scores[best] == 1)
        out.append((best, float(scores[best])) if is_duplicate else (-1, -np.inf))
    return out


KINDS = [
    "random",
    "near-duplicates",
    "identical",
    "few distinct",
    "copies",
    "hardly different",
    "other norms",
]


def samples(kind: str) -> np.ndarray:
    rng = np.random.default_rng(2)
    raw = make_embeddings(1500, 24, 6)
    if kind == "near-duplicates":
        raw[500:1000] = raw[:500] * (1 + 1e-3 * np.random.default_rng(1).standard_normal((500, 24)))
    if kind == "identical":
        raw[:] = raw[0]
    if kind == "few distinct":
        raw = raw[rng.integers(0, 40, 1500)]
    if kind == "copies":
        raw[900:] = raw[rng.integers(0, 900, 600)]
    if kind == "hardly different":  # by one step of the grid in one component, or by none
        vectors = normalize_rows(raw[rng.integers(0, 60, 1500)])[0]
        vectors[np.arange(1500), rng.integers(0, 24, 1500)] += (rng.integers(-1, 2, 1500) * GRID).astype(
            np.float32
        )
        return vectors
    if kind == "other norms":  # as unit vectors on the grid may be that a user brings: by up to 2**-18
        few = normalize_rows(raw[:8, :5])[0].astype(np.float64)
        scale = 1 + rng.integers(-3, 4, (1500, 1)) * 2.0**-20
        return (np.rint(few[rng.integers(0, 8, 1500)] * scale / GRID) * GRID).astype(np.float32)
    return normalize_rows(raw)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [1500, 700, 64])
@pytest.mark.parametrize("eps", [0.5, 0.01, 1e-9, 1e-16, 1e-300])
def test_equals_the_plain_loop_for_any_tiles(kind, tile, eps):
    vectors = samples(kind)
    expected = plain(vectors, eps)
    tiles = [vectors[start : start + tile] for start in range(0, len(vectors), tile)]
    for number, block in enumerate(tiles):
        found = MostSimilarEarlier(block, find_threshold(eps))
        for earlier in range(number):
            found.compare(tiles[earlier], earlier)
        found.compare_itself(number)
        rows = np.where(found.tile >= 0, found.tile * tile + found.row, -1)
        assert (
            list(zip(rows.tolist(), found.similarity.tolist(), strict=True))
            == expected[number * tile : (number + 1) * tile]
        )


def components(n: int, pairs: set[tuple[int, int]]) -> list[int]:
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    for a, b in pairs:
        parent[max(root(a), root(b))] = min(root(a), root(b))
    return [root(i) for i in range(n)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tile", [pytest.param(1500, marks=pytest.mark.slow), 400])
@pytest.mark.parametrize("eps", [0.07, 1e-9, 1e-300])
def test_spanning_pairs_connect_what_all_pairs_connect(kind, tile, eps):
    vectors = samples(kind)
    similarity = similarities(vectors)
    near = (similarity > 1 - eps) | (similarity == 1)
    a, b = np.nonzero(np.triu(near, 1))
    expected = components(len(vectors), set(zip(a.tolist(), b.tolist(), strict=True)))
    tiles = [vectors[start : start + tile] for start in range(0, len(vectors), tile)]
    found = set()
    for number, block in enumerate(tiles):
        for other in range(number + 1):
            for rows, columns in find_spanning_pairs(
                block, tiles[other], find_threshold(eps), other == number
            ):
                found |= set(
                    zip((rows + number * tile).tolist(), (columns + other * tile).tolist(), strict=True)
                )
    assert all(near[i, j] for i, j in found)
    assert components(len(vectors), found) == expected


def test_identical_vectors_are_duplicates_for_every_eps_though_rounding_makes_their_product_less():
    vectors = np.repeat(normalize_rows(np.random.default_rng(5).standard_normal((40, 384)))[0], 2, axis=0)
    squares = pairwise.compute_squares(vectors)
    assert (squares < 1 - 1e-9).any() and (
        squares > 1
    ).any()  # what a comparison of products takes for the answer
    for eps in (1e-9, 1e-6):
        found = MostSimilarEarlier(vectors, find_threshold(eps))
        found.compare_itself(0)
        assert found.row.tolist() == [place - 1 if place % 2 else -1 for place in range(80)]
        assert set(found.similarity.tolist()) == {1.0, -np.inf}


def test_pairs_are_compared_in_slices_of_bounded_memory(monkeypatch):
    vectors = samples("copies")
    expected = plain(vectors, 0.01)
    monkeypatch.setattr(pairwise, "_PAIR_BYTES", 5000)
    found = MostSimilarEarlier(vectors, find_threshold(0.01))
    found.compare_itself(0)
    assert list(zip(found.row.tolist(), found.similarity.tolist(), strict=True)) == expected
