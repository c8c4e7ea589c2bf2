"""Selection through the kernels alone, on thousands of random clusters, against a plain sort."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pyarrow as pa
import pytest

from spark_dbp.kernels import ranking
from spark_dbp.kernels.histogram import N_BINS
from spark_dbp.kernels.ranking import (
    GROUP,
    cut_into_groups,
    find_places,
    find_reached,
    gather_groups,
    order_histogram,
    rank_rows,
)

# Distances with many ties, both ends of the range, and neighbours that share a bin.
DISTANCES = np.float32([0.0, 2.0, 0.25, 0.5, 0.5 + 2**-12, 0.5 + 2**-11, 1.9999999])


def make_rows(rng: np.random.Generator, which_to_keep: str) -> pa.Table:
    """Keys, clusters and distances of up to 60 rows; for ``random`` hashes, some of them equal."""
    n = int(rng.integers(1, 60))
    ids = rng.choice([-(2**31), -3, 0, 1, 2, 10**6, 2**31 - 1], size=int(rng.integers(1, 5)), replace=False)
    distance = np.where(rng.random(n) < 0.6, rng.choice(DISTANCES, n), rng.random(n) * 2).astype(np.float32)
    columns = {
        "key": pa.array([f"k{number * 37 % 61:02d}é" for number in range(n)]),
        "cluster_id": pa.array(rng.choice(ids, n), pa.int32()),
        "distance_to_centroid": pa.array(distance),
    }
    if which_to_keep == "random":
        hashes = rng.integers(-(2**63), 2**63 - 1, n)
        columns["score"] = pa.array(np.where(rng.random(n) < 0.5, rng.choice(hashes, n), hashes))
    return pa.table(columns)


def select_by_kernels(rows: pa.Table, quotas: dict[int, int], which: str, limits: tuple) -> tuple[list, set]:
    """The kept rows, and the clusters and places of groups that no worker holds."""
    group_rows, part_rows, most_rows = limits
    score = rows.column("score" if which == "random" else "distance_to_centroid").to_numpy()
    place, cluster = find_places(which, score), rows.column("cluster_id").to_numpy()
    bins = N_BINS - 1 - place if which == "hard" else place
    names = ("first_place", "last_place", "rows_before", "n_rows")
    found = {name: [] for name in (*names, "cluster_id", "quota")}
    for one in sorted(quotas):
        histogram = np.unique(bins[cluster == one], return_counts=True)
        cut = cut_into_groups(*order_histogram(which, *histogram), quotas[one], group_rows)
        for name, column in zip(names, cut, strict=True):
            found[name] += column.tolist()
        found["cluster_id"] += [one] * len(cut[0])
        found["quota"] += [quotas[one]] * len(cut[0])
    columns = {name: np.array(column, dtype=np.int64) for name, column in found.items()}
    groups = gather_groups(columns, part_rows, most_rows)
    reached = list(find_reached(iter(rows.to_batches(max_chunksize=7)), groups, which))
    kept = []
    if reached:
        table = pa.Table.from_batches(reached)
        part = groups.part[table.column(GROUP).to_numpy()]
        assert (part >= 0).all()
        for number in np.unique(part):
            of_part = table.take(pa.array(np.flatnonzero(part == number))).combine_chunks()
            for batch in rank_rows(of_part, groups, which):
                kept += zip(*(column.to_pylist() for column in batch.columns), strict=True)
    too_large = set()
    for i in np.flatnonzero(groups.part < 0):
        assert groups.first_place[i] == groups.last_place[i] or groups.n_rows[i] > most_rows
        too_large |= {
            (int(groups.cluster_id[i]), p) for p in range(groups.first_place[i], groups.last_place[i] + 1)
        }
    return kept, too_large


def select_plainly(rows: pa.Table, quotas: dict[int, int], which: str) -> list:
    members = defaultdict(list)
    for row in rows.to_pylist():
        members[row["cluster_id"]].append(row)
    order = {
        "hard": lambda row: (-row["distance_to_centroid"], row["key"].encode()),
        "easy": lambda row: (row["distance_to_centroid"], row["key"].encode()),
        "random": lambda row: (row.get("score"), row["key"].encode()),
    }[which]
    return [
        (row["key"], cluster, row["distance_to_centroid"], rank, row.get("score"))
        for cluster, those in members.items()
        for rank, row in enumerate(sorted(those, key=order)[: quotas[cluster]], 1)
    ]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("which", ["hard", "easy", "random"])
def test_kernels_keep_what_a_plain_sort_keeps(monkeypatch, which, dense):
    """500 random tables each: groups and parts of any size, and bins that no worker may hold."""
    if not dense:
        monkeypatch.setattr(ranking, "_DENSE_PLACES", 0)
    rng = np.random.default_rng(7)
    n_large = n_kept = 0
    for _ in range(500):
        rows = make_rows(rng, which)
        sizes = {one["values"]: one["counts"] for one in rows.column("cluster_id").value_counts().to_pylist()}
        quotas = {cluster: int(rng.integers(0, size + 1)) for cluster, size in sizes.items()}
        group_rows = int(rng.integers(1, 20))
        limits = (group_rows, int(rng.integers(1, 40)), int(rng.choice([0, group_rows, 10**6])))
        kept, too_large = select_by_kernels(rows, quotas, which, limits)
        expected = []
        for key, cluster, distance, rank, hash_ in select_plainly(rows, quotas, which):
            score = np.array([distance], np.float32) if which != "random" else np.array([hash_], np.int64)
            if (cluster, int(find_places(which, score)[0])) not in too_large:
                expected.append((key, cluster, distance, rank))
        assert sorted(kept) == sorted(expected)
        n_large, n_kept = n_large + len(too_large), n_kept + len(kept)
    assert n_large > 100  # what goes through Spark's sort is left out here, and there is some
    assert n_kept > 1000
