"""The keep list is a function of the data and the configuration, to the byte."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from conftest import config_of, make_embeddings, make_keys, rows_of, write_table

from spark_dbp import RunConfig, good_samples, ingest, run
from spark_dbp.stages.kmeans import assign

N = 3000
KEYS = make_keys(N)
# Rounded values in few dimensions: many equal distances, so that ties must be broken by key.
EMBEDDINGS = np.round(make_embeddings(N, 6, 8), 0) + np.float32(0.25)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("data") / "in", KEYS, EMBEDDINGS, n_files=3)


@pytest.fixture(scope="module")
def expected(spark, source, tmp_path_factory):
    done = run(RunConfig.from_dict(config_of(source, tmp_path_factory.mktemp("run"))), spark)
    return done.document["digests"], rows_of(done.keep_list(spark))


@pytest.mark.slow
def test_there_are_ties(expected):
    distances = [(row[1], row[2]) for row in expected[1]]
    assert len(set(distances)) < 0.9 * len(distances)


@pytest.mark.parametrize(
    ("partitions", "batch", "more"),
    [
        pytest.param(1, 1, {}, marks=pytest.mark.slow),
        pytest.param(
            7,
            10_000,
            {"spark.sql.ansi.enabled": "false", "spark.sql.shuffle.partitions": "1"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            200,
            10_000,
            {"spark.sql.adaptive.enabled": "false", "spark.sql.shuffle.partitions": "13"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_partitions_row_order_batches_and_settings(
    spark, source, expected, tmp_path, partitions, batch, more
):
    from pyspark.sql import functions as F

    conf = {"spark.sql.execution.arrow.maxRecordsPerBatch": str(batch), **more}
    before = {name: spark.conf.get(name) for name in conf}
    frame = spark.read.parquet(str(source))
    shuffled = frame.repartition(partitions, F.xxhash64("key", F.lit(partitions))).sortWithinPartitions(
        F.xxhash64("key", F.lit(-partitions))
    )
    shuffled.write.parquet(str(tmp_path / "in"))
    try:
        for name, value in conf.items():
            spark.conf.set(name, value)
        done = run(RunConfig.from_dict(config_of(tmp_path / "in", tmp_path / "run")), spark)
        # The run reads its committed vectors from the files; rows through Spark give the same.
        samples = good_samples(ingest(spark.read.parquet(str(tmp_path / "in"))), 6)
        assert rows_of(assign(samples, done.centroids()[1])) == rows_of(done.assignments(spark))
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)
    for table in ("centroids", "assignments", "cluster_stats", "quotas", "keep_list"):
        assert done.document["digests"][table] == expected[0][table], table
    assert rows_of(done.keep_list(spark)) == expected[1]


def half_in_one() -> np.ndarray:
    embeddings = make_embeddings(N, 6, 8)
    embeddings[: N // 2] = embeddings[0] + np.float32(0.01) * embeddings[: N // 2]
    return embeddings


@pytest.mark.slow
@pytest.mark.parametrize(
    "embeddings",
    [half_in_one(), np.tile(EMBEDDINGS[:1], (N, 1))],
    ids=["half of all rows in one cluster", "all vectors identical"],
)
def test_skew_and_identical_vectors(spark, tmp_path, embeddings):
    k = 12 if len(np.unique(embeddings, axis=0)) > 1 else 1
    source = write_table(tmp_path / "in", KEYS, embeddings, n_files=3)
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "run", cluster={"n_clusters": k})), spark)
    answer = oracle.run(KEYS, embeddings, n_clusters=k, n_iter=8, keep_ratio=0.3)
    assert answer.n_items.max() >= N // 2
    assert rows_of(done.keep_list(spark)) == answer.keep_list
