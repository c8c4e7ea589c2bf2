"""The most similar earlier vector: exact, for any cut into tiles, ties and duplicates everywhere."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_embeddings

from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.pairwise import MostSimilarEarlier, find_spanning_pairs


def plain(vectors: np.ndarray, threshold: float) -> list[tuple[int, float]]:
    wide = vectors.astype(np.float64)
    out = []
    for i in range(len(wide)):
        scores = wide[:i] @ wide[i] if i else np.zeros(0)
        best = int(scores.argmax()) if i else -1
        out.append((best, float(scores[best])) if i and scores[best] > threshold else (-1, -np.inf))
    return out


def samples(kind: str) -> np.ndarray:
    raw = make_embeddings(1500, 24, 6)
    if kind == "near-duplicates":
        raw[500:1000] = raw[:500] * (1 + 1e-3 * np.random.default_rng(1).standard_normal((500, 24)))
    if kind == "identical":
        raw[:] = raw[0]
    if kind == "few distinct":
        raw = raw[np.random.default_rng(2).integers(0, 40, 1500)]
    return normalize_rows(raw)[0]


@pytest.mark.parametrize("kind", ["random", "near-duplicates", "identical", "few distinct"])
@pytest.mark.parametrize("tile", [1500, 700, 64])
@pytest.mark.parametrize("threshold", [0.5, 0.99])
def test_equals_the_plain_loop_for_any_tiles(kind, tile, threshold):
    vectors = samples(kind)
    expected = plain(vectors, threshold)
    tiles = [vectors[start : start + tile] for start in range(0, len(vectors), tile)]
    for number, block in enumerate(tiles):
        found = MostSimilarEarlier(block, threshold)
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


@pytest.mark.parametrize("kind", ["random", "near-duplicates", "identical", "few distinct"])
@pytest.mark.parametrize("tile", [1500, 400])
def test_spanning_pairs_connect_what_all_pairs_connect(kind, tile):
    vectors = samples(kind)
    threshold = 0.93
    wide = vectors.astype(np.float64)
    a, b = np.nonzero(np.triu(wide @ wide.T > threshold, 1))
    expected = components(len(vectors), set(zip(a.tolist(), b.tolist(), strict=True)))
    tiles = [vectors[start : start + tile] for start in range(0, len(vectors), tile)]
    found = set()
    for number, block in enumerate(tiles):
        for other in range(number + 1):
            for rows, columns in find_spanning_pairs(block, tiles[other], threshold, other == number):
                found |= set(
                    zip((rows + number * tile).tolist(), (columns + other * tile).tolist(), strict=True)
                )
    assert all(wide[i] @ wide[j] > threshold for i, j in found)
    assert components(len(vectors), found) == expected
