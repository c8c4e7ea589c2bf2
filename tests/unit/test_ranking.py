"""Selection through the kernels alone, on thousands of random clusters, against a plain sort."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import oracle
import pyarrow as pa
import pytest

from spark_dbp.kernels import ranking
from spark_dbp.kernels.histogram import N_BINS
from spark_dbp.kernels.ranking import (
    GROUP,
    count_spread,
    cut_into_groups,
    find_places,
    find_reached,
    find_reached_bins,
    gather_groups,
    number_groups,
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
    bins = N_BINS - 1 - place if which in ("hard", "stratified") else place
    names = ("first_place", "last_place", "rows_before", "n_rows")
    found = {name: [] for name in (*names, "cluster_id", "n_items", "quota")}
    for one in sorted(quotas):
        histogram = np.unique(bins[cluster == one], return_counts=True)
        cut = cut_into_groups(*order_histogram(which, *histogram), quotas[one], group_rows, which)
        for name, column in zip(names, cut, strict=True):
            found[name] += column.tolist()
        found["cluster_id"] += [one] * len(cut[0])
        found["n_items"] += [int((cluster == one).sum())] * len(cut[0])
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
    farthest = lambda row: (-row["distance_to_centroid"], row["key"].encode())  # noqa: E731
    order = {
        "hard": farthest,
        "easy": lambda row: (row["distance_to_centroid"], row["key"].encode()),
        "random": lambda row: (row.get("score"), row["key"].encode()),
        "stratified": farthest,
    }[which]
    return [
        (row["key"], cluster, row["distance_to_centroid"], rank, row.get("score"))
        for cluster, those in members.items()
        for rank, row in enumerate(
            oracle.choose(sorted(those, key=order), quotas[cluster], which == "stratified"), 1
        )
    ]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("which", ["hard", "easy", "random", "stratified"])
def test_kernels_keep_what_a_plain_sort_keeps(monkeypatch, which, dense):
    """500 random tables each: groups and parts of any size, and bins that no worker may hold."""
    if not dense:
        monkeypatch.setattr(ranking, "_DENSE_PLACES", 0)
        monkeypatch.setattr(ranking, "_SLICE", 3)
    rng = np.random.default_rng(7)
    n_large = n_kept = 0
    for _ in range(500):
        rows = make_rows(rng, which)
        sizes = {one["values"]: one["counts"] for one in rows.column("cluster_id").value_counts().to_pylist()}
        quotas = {cluster: int(rng.integers(0, size + 1)) for cluster, size in sizes.items()}
        if rng.random() < 0.3:  # a few of many: whole bins without a kept row
            quotas = {cluster: min(quota, 2) for cluster, quota in quotas.items()}
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


def spread_exactly(rank: int, n_items: int, quota: int) -> int:
    """DESIGN's formula in whole numbers of any size."""
    return (2 * rank * quota + n_items) // (2 * n_items)


def test_spread_keeps_the_quota_evenly_and_of_one_the_median():
    for n_items in range(1, 30):
        ranks = np.arange(n_items + 1)
        for quota in range(n_items + 1):
            kept = count_spread(ranks, n_items, quota)
            assert kept.tolist() == [spread_exactly(int(r), n_items, quota) for r in ranks]
            assert set(np.diff(kept)) <= {0, 1}
            assert (kept[0], kept[-1]) == (0, quota)
        assert int(np.argmax(count_spread(ranks, n_items, 1))) == (n_items + 1) // 2


@pytest.mark.parametrize("n_items", [2**31 + 1, 10**10 - 1, 10**10, 10**10 + 7, 2**41 - 1, 2**41])
def test_spread_is_exact_where_the_product_does_not_fit_into_64_bits(n_items):
    """2 * 10^10 * 10^10 is 20 times what a long holds. All quotas and ranks near those where a row is kept."""
    rng = np.random.default_rng(n_items % 1000)
    quotas = [0, 1, 2, n_items - 1, n_items, n_items // 2, *rng.integers(0, n_items, 300).tolist()]
    for quota in quotas:
        ranks = [*rng.integers(0, n_items + 1, 50).tolist(), 0, 1, n_items - 1, n_items]
        if quota:
            for number in rng.integers(1, quota + 1, 50).tolist():
                kept = -(-(2 * number - 1) * n_items // (2 * quota))  # the row that is kept as this number
                ranks += [kept - 1, kept, min(kept + 1, n_items)]
        found = count_spread(np.array(ranks, dtype=np.int64), n_items, quota)
        assert found.tolist() == [spread_exactly(rank, n_items, quota) for rank in ranks]


def test_ranks_of_a_cluster_of_ten_thousand_million_rows():
    """One group in its middle: what a worker ranks there is exact, and needs nothing but that group."""
    n_items, quota, before, n = 10**10, 3 * 10**9 + 1, 6_999_999_990, 40
    columns = {"cluster_id": 0, "first_place": 5, "last_place": 5, "rows_before": before, "n_rows": n}
    columns |= {"n_items": n_items, "quota": quota}
    groups = gather_groups({name: np.array([value]) for name, value in columns.items()}, 100, 100)
    rows = pa.table(
        {
            "key": [f"{i:02d}" for i in range(n)],
            "cluster_id": pa.array([0] * n, pa.int32()),
            "distance_to_centroid": pa.array([0.5] * n, pa.float32()),
            GROUP: pa.array([0] * n, pa.int32()),
        }
    )
    kept = [row for batch in rank_rows(rows, groups, "stratified") for row in batch.to_pylist()]
    spread = [spread_exactly(before + i, n_items, quota) for i in range(n + 1)]
    expected = [(f"{i:02d}", spread[i + 1]) for i in range(n) if spread[i + 1] > spread[i]]
    assert [(row["key"], row["rank"]) for row in kept] == expected
    assert 11 <= len(expected) <= 13


def test_stratified_looks_only_at_bins_that_matter():
    """Of 500 bins those around the ten kept rows; where every bin has one, all, in as few groups as for hard."""
    place, n_items = np.arange(500), np.full(500, 20)
    few = cut_into_groups(place, n_items, 10, 50_000, "stratified")
    assert few[3].sum() == 10 * 20
    many = cut_into_groups(place, n_items, 4_000, 50_000, "stratified")
    assert (len(many[0]), many[3].sum()) == (1, 10_000)
    # No more gaps than a cluster may have, whatever the quota.
    rng = np.random.default_rng(0)
    for quota in (0, 1, 30, 100, 400, 2_000):
        n_items = rng.integers(1, 50, 2048)
        groups = cut_into_groups(np.arange(2048), n_items, quota, 10**6, "stratified")
        assert len(groups[0]) <= ranking._MOST_GAPS + 1
        until = np.cumsum(n_items)
        kept = [spread_exactly(int(rank), int(until[-1]), quota) for rank in [0, *until]]
        with_kept = np.diff(kept) > 0
        assert (find_reached_bins(n_items, quota, "stratified") >= with_kept).all()


@pytest.mark.parametrize("which", ["hard", "stratified"])
def test_numbered_groups_hold_every_bin_that_is_looked_at(which):
    """And tell how many rows come before them; they are as small as asked for, or single bins."""
    rng = np.random.default_rng(7)
    for _ in range(500):
        n_bins = int(rng.integers(1, 60))
        place = np.sort(rng.choice(N_BINS, n_bins, replace=False))
        n_items = rng.integers(1, 50, n_bins)
        quota, group_rows = int(rng.integers(0, n_items.sum() + 1)), int(rng.integers(1, 300))
        shift, before = number_groups(place, n_items, quota, group_rows, which)
        reached = find_reached_bins(n_items, quota, which)
        groups = place >> shift
        assert set(np.flatnonzero(before >= 0)) == set(groups[reached])
        for group in np.unique(groups[reached]):
            assert before[group] == n_items[groups < group].sum()
        if reached.any():
            n_groups = len(np.unique(groups[reached]))
            assert n_groups == 1 or n_groups * group_rows <= n_items[reached].sum()
            if shift:  # one finer would be too fine
                finer = len(np.unique(place[reached] >> (shift - 1)))
                assert finer * group_rows > n_items[reached].sum()
