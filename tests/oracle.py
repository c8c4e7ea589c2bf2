"""The whole job in plain numpy and Python, written from the method: what the Spark job must equal.

Nothing here is shared with the package: hashes come from the xxhash library, k-means is a float64
loop, quotas are filled one unit at a time, samples are sorted as Python tuples.
"""

from __future__ import annotations

import heapq
import math
import struct
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import xxhash


def spark_xxhash64(key: str | int, seed: int) -> int:
    """Spark's ``xxhash64(key, seed)``: the hash of a column seeds that of the next, the first with 42."""
    raw = key.encode() if isinstance(key, str) else key.to_bytes(8, "little", signed=True)
    first = xxhash.xxh64_intdigest(raw, seed=42)
    both = xxhash.xxh64_intdigest(seed.to_bytes(8, "little", signed=True), seed=first)
    return both - 2**64 if both >= 2**63 else both


def digest(rows: list[tuple]) -> str:
    """Digest in run.json of a table of these rows: strings, INTs and FLOATs."""
    total = 0
    for row in rows:
        row_hash = 42
        for value in row:
            raw = (
                value.encode()
                if isinstance(value, str)
                else struct.pack("<f" if isinstance(value, float) else "<i", value)
            )
            row_hash = xxhash.xxh64_intdigest(raw, seed=row_hash)
        total += row_hash
    return f"{total % 2**64:016x}"


def unit(embeddings: np.ndarray) -> np.ndarray:
    """Unit rows, rounded to multiples of 2**-26; rows that are such vectors already stay."""
    wide = embeddings.astype(np.float64)
    norms = np.sqrt((wide**2).sum(axis=1))
    done = (np.abs(norms - 1) < 2**-18) & (wide * 2**26 % 1 == 0).all(axis=1)
    wide /= np.where(done, 1, norms)[:, None]
    return (np.rint(wide * 2**26) / 2**26).astype(np.float32)


def kmeans(vectors: np.ndarray, k: int, n_iter: int) -> np.ndarray:
    """Lloyd from the first k distinct vectors; where there are fewer, the first of them again and again."""
    _, firsts = np.unique(vectors, axis=0, return_index=True)
    chosen = np.sort(firsts)[:k].tolist()
    return lloyd(vectors, vectors[chosen + [0] * (k - len(chosen))], n_iter)


def lloyd(
    vectors: np.ndarray, centroids: np.ndarray, n_iter: int, tol: float = 0.0, reseed: bool = True
) -> np.ndarray:
    """Iterations one step ahead of the means; empty clusters get the farthest samples in turn."""
    k = len(centroids)
    wide = vectors.astype(np.float64)
    means, last = centroids, np.inf
    for _ in range(n_iter):
        cosine = wide @ centroids.astype(np.float64).T
        labels = cosine.argmax(axis=1)
        distance = 1 - cosine[np.arange(len(wide)), labels]
        objective, reseeded = distance.mean(), False
        empty = [j for j in range(k) if reseed and not (labels == j).any()]
        taken = []
        for row in np.argsort(-distance, kind="stable"):
            if not empty or distance[row] <= 2**-20:
                break
            if (labels == labels[row]).sum() > 1 and not any((vectors[row] == t).all() for t in taken):
                taken.append(vectors[row])
                labels[row] = empty.pop(0)
                reseeded = True
        sums = np.array([wide[labels == j].sum(axis=0) for j in range(k)])
        known = np.abs(sums).max(axis=1) > 0
        before, means = means, means.copy()
        means[known] = unit(sums[known])
        if not reseeded and ((means == centroids).all() or 0 <= last - objective < tol * last):
            break
        rose = objective > last + 1e-12
        centroids = means if reseeded or rose else unit(2 * means.astype(np.float64) - before)
        last = objective
    return means


def assign(vectors: np.ndarray, centroids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    cosine = vectors.astype(np.float64) @ centroids.astype(np.float64).T
    labels = cosine.argmax(axis=1)
    distances = np.clip(1 - cosine[np.arange(len(vectors)), labels], 0, 2)
    return labels, distances.astype(np.float32)


def similarities(vectors: np.ndarray) -> np.ndarray:
    """Of all pairs: 1 for identical vectors, whatever rounding makes of their product, and below 1 for others."""
    wide = vectors.astype(np.float64)
    _, number = np.unique(vectors, axis=0, return_inverse=True)
    identical = number.reshape(-1, 1) == number.reshape(1, -1)
    return np.where(identical, 1.0, np.minimum(wide @ wide.T, np.nextafter(1.0, 0.0)))


def semantic_duplicates(
    keys: list,
    vectors: np.ndarray,
    labels: np.ndarray,
    distances: np.ndarray,
    eps: float,
    which_to_keep: str = "hard",
    groups: str = "earlier",
    seed: int = 0,
) -> list[tuple]:
    """The published rule (SemDeDup): (key, duplicate_of, similarity) of what is removed, sorted.

    One cluster at a time: sort by distance, remove what is too similar to an earlier one. With ``connected``
    keep the first of all that pairs connect; the similarity is then None.
    """
    order = {
        "hard": lambda i: (-float(distances[i]), keys[i]),
        "easy": lambda i: (float(distances[i]), keys[i]),
        "random": lambda i: (spark_xxhash64(keys[i], seed), keys[i]),
    }[which_to_keep]
    found = []
    for cluster in np.unique(labels):
        members = sorted(np.flatnonzero(labels == cluster), key=order)
        similarity = similarities(vectors[members])
        near = (similarity > 1 - eps) | (similarity == 1)
        first = list(range(len(members)))
        for place in range(1, len(members)):
            best = int(similarity[place, :place].argmax())
            if groups == "earlier" and near[place, best]:
                found.append((keys[members[place]], keys[members[best]], float(similarity[place, best])))
            for other in np.flatnonzero(near[place, :place]):
                low, high = sorted((first[place], first[other]))
                first = [low if of == high else of for of in first]
        if groups == "connected":
            found += [(keys[members[i]], keys[members[of]], None) for i, of in enumerate(first) if of != i]
    return sorted(found)


def quotas(target: list[float], lower: list[int], upper: list[int], n_keep: int) -> list[int]:
    """One unit at a time to where it costs least (exact arithmetic; ties to the lowest index)."""
    wanted = [Fraction(float(t)) for t in target]
    x = list(lower)
    heap = [(x[j] - wanted[j], j) for j in range(len(x)) if x[j] < upper[j]]
    heapq.heapify(heap)
    for _ in range(n_keep - sum(x)):
        _, j = heapq.heappop(heap)
        x[j] += 1
        if x[j] < upper[j]:
            heapq.heappush(heap, (x[j] - wanted[j], j))
    return x


def choose(ordered: list, quota: int, evenly: bool) -> list:
    """The first `quota` of them; or as many, evenly over all (DESIGN's rule of ``stratified``)."""
    if not evenly:
        return ordered[:quota]
    m = len(ordered)
    return [
        row
        for r, row in enumerate(ordered, start=1)
        if (2 * r * quota + m) // (2 * m) > (2 * (r - 1) * quota + m) // (2 * m)
    ]


@dataclass
class Answer:
    centroids: np.ndarray
    assignments: list[tuple]  # key, cluster_id, distance
    n_items: np.ndarray
    d_intra: np.ndarray
    d_inter: np.ndarray
    quotas: list[int]
    keep_list: list[tuple]  # key, cluster_id, distance, rank; sorted


def prune(
    keys: list,
    labels: np.ndarray,
    distances: np.ndarray,
    centroids: np.ndarray,
    *,
    keep_ratio: float,
    temperature: float = 0.1,
    n_neighbors: int = 20,
    complexity: str = "d_intra*d_inter",
    which_to_keep: str = "hard",
    min_per_cluster: int = 1,
    cluster_balance: float = 0.0,
    seed: int = 0,
) -> Answer:
    k = len(centroids)
    n_keep = math.floor(Fraction(str(keep_ratio)) * len(keys))
    n_items = np.bincount(labels, minlength=k)
    used = np.flatnonzero(n_items)
    d_intra, d_inter = np.full(k, np.nan), np.full(k, np.nan)
    wide = centroids.astype(np.float64)
    for j in used:
        whole = np.rint(distances[labels == j].astype(np.float64) * 2**28)
        d_intra[j] = sum(int(d) for d in whole) * 2.0**-28 / n_items[j]
        others = sorted(1 - wide[j] @ wide[i] for i in used if i != j)[:n_neighbors]
        d_inter[j] = sum(others) / len(others) if others else 0.0
    if complexity == "cluster_size":
        weight = n_items / n_items.sum()
    elif complexity == "uniform":
        weight = np.where(n_items > 0, 1 / len(used), 0)
    else:
        value = {"d_intra*d_inter": d_intra * d_inter, "d_intra": d_intra, "d_inter": d_inter}[complexity]
        with np.errstate(over="ignore"):
            power = np.where(n_items > 0, np.exp((value - np.nanmax(value)) / temperature), 0)
        weight = power / power.sum()
    floor = max(min_per_cluster, int(cluster_balance * n_keep / len(used)))
    quota = quotas(list(weight * n_keep), [min(floor, int(m)) for m in n_items], list(n_items), n_keep)
    order = {
        "hard": lambda row: (-float(row[2]), row[0]),
        "easy": lambda row: (float(row[2]), row[0]),
        "random": lambda row: (spark_xxhash64(row[0], seed), row[0]),
        "stratified": lambda row: (-float(row[2]), row[0]),
    }[which_to_keep]
    rows = [(key, int(c), float(d)) for key, c, d in zip(keys, labels, distances, strict=True)]
    kept = []
    for j in range(k):
        members = sorted((row for row in rows if row[1] == j), key=order)
        chosen = choose(members, quota[j], which_to_keep == "stratified")
        kept += [(*row, rank) for rank, row in enumerate(chosen, start=1)]
    return Answer(centroids, sorted(rows), n_items, d_intra, d_inter, quota, sorted(kept))


def run(
    keys: list,
    embeddings: np.ndarray,
    *,
    n_clusters: int,
    n_iter: int,
    max_points_per_centroid: int = 256,
    kmeans_seed: int = 0,
    **prune_settings: object,
) -> Answer:
    """The whole job: keys and embeddings in, keep list out."""
    vectors = unit(embeddings)
    hashes = [spark_xxhash64(key, kmeans_seed) for key in keys]
    n_train = min(len(keys), n_clusters * max_points_per_centroid)
    train = vectors[np.argsort(hashes, kind="stable")[:n_train]]
    centroids = kmeans(train, n_clusters, n_iter)
    labels, distances = assign(vectors, centroids)
    return prune(keys, labels, distances, centroids, **prune_settings)
