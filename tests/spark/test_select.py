"""Statistics and selection on DataFrames and committed tables, against a plain sort."""

from __future__ import annotations

import random
from collections import defaultdict
from fractions import Fraction
from itertools import product

import oracle
import pytest
import xxhash
from conftest import rows_of
from pyspark.sql import functions as F

from spark_dbp.engine import sql
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.sql import COUNT_SPREAD_SQL
from spark_dbp.errors import ConfigError
from spark_dbp.kernels import ranking
from spark_dbp.kernels.histogram import BIN_SQL, WHOLE_DISTANCE_SQL, find_bins, to_whole_distances
from spark_dbp.stages import cluster_stats as stats_module
from spark_dbp.stages import select as select_module
from spark_dbp.stages.cluster_stats import cluster_stats
from spark_dbp.stages.select import select

SEED = 5


def make_rows(cluster_ids: list[int]) -> list[tuple[str, int, float]]:
    """Many ties, both ends of the range, clusters of unlike sizes."""
    rng = random.Random(1)
    rows = []
    for number in range(4000):
        cluster = cluster_ids[min(int(rng.expovariate(0.7)), len(cluster_ids) - 1)]
        distance = rng.choice([0.0, 2.0, 0.25, 0.5, 0.5 + 2**-12, rng.randrange(2**12) / 2**11])
        rows.append((f"k{number * 7919 % 4001:05d}é", cluster, distance))
    return rows


def by_cluster(rows) -> dict[int, list[tuple[str, float]]]:
    members = defaultdict(list)
    for key, cluster, distance in rows:
        members[cluster].append((key, distance))
    return members


def expected(rows, quotas, which_to_keep):
    def hash_of(key: str) -> int:
        value = xxhash.xxh64_intdigest(key.encode(), seed=42)  # Spark hashes the columns one after the other
        value = xxhash.xxh64_intdigest(SEED.to_bytes(8, "little"), seed=value)
        return value - 2**64 if value >= 2**63 else value

    order = {
        "hard": lambda row: (-row[1], row[0].encode()),
        "easy": lambda row: (row[1], row[0].encode()),
        "random": lambda row: (hash_of(row[0]), row[0].encode()),
        "stratified": lambda row: (-row[1], row[0].encode()),
    }[which_to_keep]
    return sorted(
        (key, cluster, distance, rank)
        for cluster, members in by_cluster(rows).items()
        for rank, (key, distance) in enumerate(
            oracle.choose(sorted(members, key=order), quotas[cluster], which_to_keep == "stratified"), 1
        )
    )


@pytest.fixture(scope="module", params=["near", pytest.param("far apart", marks=pytest.mark.slow)])
def case(request, spark, tmp_path_factory):
    """Rows, quotas, the table as a DataFrame and as a committed one."""
    ids = list(range(9)) if request.param == "near" else [-(2**31), -7, 0, 3, 10**6, 2**31 - 1]
    rows = make_rows(ids)
    sizes = {cluster: len(members) for cluster, members in by_cluster(rows).items()}
    shares = [0, 1, 0.3, 0.5, 0.99]
    quotas = {cluster: int(size * shares[i % 5]) for i, (cluster, size) in enumerate(sorted(sizes.items()))}
    path = str(tmp_path_factory.mktemp("assignments") / "table")
    frame = spark.createDataFrame(rows, "key string, cluster_id int, distance_to_centroid float")
    frame.repartition(5).write.parquet(path)
    read = spark.read.parquet(path)
    return rows, quotas, {"frame": read, "committed": CommittedTable(spark, path, read)}


CASES = list(
    product(
        ["hard", "easy", "random", "stratified"],
        ["frame", "committed"],
        [None, (40, 100, 10**6), (40, 100, 60), (1, 1, 0)],
    )
)
# tests/unit/test_ranking.py has the same through the kernels, for thousands of tables.
QUICK = [
    ("hard", "committed", None),
    ("hard", "committed", (40, 100, 60)),
    ("easy", "frame", (40, 100, 60)),
    ("random", "frame", (1, 1, 0)),
    ("stratified", "committed", (40, 100, 60)),
]


@pytest.mark.parametrize(
    ("which_to_keep", "kind", "limits"),
    [*QUICK, *(pytest.param(*c, marks=pytest.mark.slow) for c in CASES if c not in QUICK)],
)
def test_equals_a_plain_sort(spark, case, monkeypatch, which_to_keep, kind, limits):
    """Also in groups and parts of a few rows, and with bins, some or all, that no worker may hold."""
    rows, quotas, tables = case
    if limits is not None:
        for name, value in zip(("_GROUP_ROWS", "_PART_ROWS", "_MOST_ROWS"), limits, strict=True):
            monkeypatch.setattr(select_module, name, value)
        monkeypatch.setattr(ranking, "_DENSE_PLACES", 0)
        monkeypatch.setattr(select_module, "_WINDOW_ROWS", limits[0])
        monkeypatch.setattr(sql, "_TASK_ROWS", 100)
    given = spark.createDataFrame(list(quotas.items()), "cluster_id int, quota bigint")
    kept = select(tables[kind], given, which_to_keep=which_to_keep, seed=SEED)
    assert rows_of(kept) == expected(rows, quotas, which_to_keep)


@pytest.mark.parametrize("kind", ["frame", "committed"])
def test_statistics_are_exact(case, kind):
    rows, _, tables = case
    found = {row["cluster_id"]: row for row in cluster_stats(tables[kind]).collect()}
    members = by_cluster(rows)
    assert set(found) == set(members)
    for cluster, those in members.items():
        row = found[cluster]
        assert row["n_items"] == len(those)
        assert row["d_intra"] == float(sum(Fraction(d) for _, d in those) / len(those))
        bins = defaultdict(int)
        for _, distance in those:
            bins[min(int(distance * 1024), 2047)] += 1
        assert [tuple(entry) for entry in row["distance_histogram"]] == sorted(bins.items())


def test_counting_bins_adds_up(monkeypatch):
    """In the worker's own code: many partial sums, dense and sparse."""
    import numpy as np
    import pyarrow as pa

    monkeypatch.setattr(stats_module, "_COUNTED", 50)
    monkeypatch.setattr(stats_module, "_HELD_BINS", 100)
    rng = np.random.default_rng(0)
    for top in (3, 2**31 - 1):
        cluster = rng.integers(0, top, 1000).astype(np.int32) % 5 * (top // 4)
        distance = (rng.integers(0, 2**10, 1000) / 2**9).astype(np.float32)
        batches = [
            pa.RecordBatch.from_arrays(
                [pa.array(cluster[i : i + 7]), pa.array(distance[i : i + 7])], ["c", "d"]
            )
            for i in range(0, 1000, 7)
        ]
        (found,) = stats_module._count_bins(iter(batches))
        sums = defaultdict(lambda: [0, 0])
        for c, d in zip(cluster.tolist(), distance.tolist(), strict=True):
            entry = sums[(c, min(int(d * 1024), 2047))]
            entry[0] += 1
            entry[1] += int(d * 2**28)
        assert list(zip(*(column.to_pylist() for column in found.columns), strict=True)) == [
            (*place, *values) for place, values in sorted(sums.items())
        ]


def test_nothing_to_keep(spark):
    frame = spark.createDataFrame([("a", 0, 0.5)], "key string, cluster_id int, distance_to_centroid float")
    quotas = spark.createDataFrame([(0, 0)], "cluster_id int, quota bigint")
    assert rows_of(select(frame, quotas)) == []
    assert rows_of(select(frame.where("false"), quotas)) == []


def test_bins_and_whole_distances_are_the_same_in_sql_and_in_numpy(spark):
    """Also at the edges of bins, and of the range."""
    import numpy as np
    from pyspark.sql import functions as F

    edges = np.arange(0, 2049, 64) / np.float32(1024)
    near = [np.nextafter(edges, np.float32(d)).clip(0, 2) for d in (-1, 3)]
    rng = np.random.default_rng(3)
    values = np.concatenate([edges, *near, rng.random(2000) * 2]).astype(np.float32)
    frame = spark.createDataFrame([(float(v),) for v in values], "distance_to_centroid float")
    found = frame.select("distance_to_centroid", F.expr(BIN_SQL), F.expr(WHOLE_DISTANCE_SQL)).collect()
    given = np.array([row[0] for row in found], dtype=np.float32)
    assert [row[1] for row in found] == find_bins(given).tolist()
    assert [row[2] for row in found] == to_whole_distances(given).tolist()
    assert [field.dataType.simpleString() for field in frame.select(F.expr(BIN_SQL), F.expr(WHOLE_DISTANCE_SQL)).schema] == ["int", "bigint"]  # fmt: skip


def test_spread_in_sql_is_exact_where_the_product_does_not_fit_into_a_long(spark):
    rng = random.Random(4)
    cases = [(1, 1, 1), (5, 5, 0), (10**10, 10**10, 10**10), (2**41, 2**41, 2**41 - 1)]
    for n_items in (7, 1000, 2**30 - 1, 2**30, 10**10, 10**10 + 7, 2**41):
        cases += [(rng.randint(0, n_items), n_items, rng.randint(0, n_items)) for _ in range(40)]
    frame = spark.createDataFrame(cases, "rank bigint, n_items bigint, quota bigint")
    found = frame.select("*", F.expr(COUNT_SPREAD_SQL.format(rank="rank"))).collect()
    assert {tuple(row) for row in found} == {(r, m, n, (2 * r * n + m) // (2 * m)) for r, m, n in cases}


def test_other_columns_and_unknown_choices(spark, monkeypatch):
    """Columns of the user's that have names which the selection uses, where Spark sorts a bin."""
    monkeypatch.setattr(select_module, "_MOST_ROWS", 0)
    rows = [(f"{i}", 0, 0.5, 9, 9, 9, 9, 9, 9) for i in range(9)]
    frame = spark.createDataFrame(
        rows,
        "key string, cluster_id int, distance_to_centroid float, quota int, n_items int, rank int, place int, "
        "rows_before int, earlier int",
    )
    quotas = spark.createDataFrame([(0, 3)], "cluster_id int, quota bigint")
    kept = select(frame, quotas, which_to_keep="stratified")
    assert [(row[0], row[3]) for row in rows_of(kept)] == [("1", 1), ("4", 2), ("7", 3)]
    with pytest.raises(ConfigError, match=r"'stratfied' is unknown\n.*stratified"):
        select(frame, quotas, which_to_keep="stratfied")
