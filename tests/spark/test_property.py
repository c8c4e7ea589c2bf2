"""The job against the oracle over random tables, layouts and configurations."""

from __future__ import annotations

import math
import shutil
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import oracle
import pyarrow as pa
import pytest
from conftest import config_of, rows_of, write_table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from spark_dbp import RunConfig, run
from spark_dbp.explore.verify import verify

# Keys that sort, hash and print in their own ways; no lone surrogates, which are no text in UTF-8.
TEXT_KEYS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12), unique=True, min_size=4, max_size=40
)
INTEGER_KEYS = st.lists(st.integers(-(2**63), 2**63 - 1), unique=True, min_size=4, max_size=40)


@st.composite
def jobs(draw) -> dict:
    keys = draw(st.one_of(TEXT_KEYS, INTEGER_KEYS))
    n, dim = len(keys), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # Few different values: equal vectors, equal distances, equal cosines to two centroids.
    levels = draw(st.sampled_from([1, 2, 4, 1000]))
    embeddings = (rng.integers(1, levels + 1, (n, dim)) * rng.choice([-1, 1], (n, dim))).astype(np.float32)
    prune = {
        "keep_ratio": draw(st.sampled_from([0.26, 0.5, 0.731, 1.0])),
        "temperature": draw(st.sampled_from([0.001, 0.1, 10.0])),
        "n_neighbors": draw(st.integers(1, 20)),
        "complexity": draw(
            st.sampled_from(["d_intra*d_inter", "d_intra", "d_inter", "cluster_size", "uniform"])
        ),
        "which_to_keep": draw(st.sampled_from(["hard", "easy", "random", "stratified"])),
        "min_per_cluster": draw(st.integers(0, 1)),
        "cluster_balance": draw(st.sampled_from([0.0, 0.5])),
        "seed": draw(st.integers(-(2**31), 2**31)),
    }
    k = draw(st.integers(1, max(1, math.floor(Fraction(str(prune["keep_ratio"])) * n))))
    return {
        "keys": keys,
        "embeddings": embeddings,
        "prune": prune,
        "cluster": {
            "n_clusters": k,
            "n_iter": draw(st.integers(1, 5)),
            "max_points_per_centroid": draw(st.integers(1, 20)),
            "seed": draw(st.integers(0, 9)),
        },
        "n_files": draw(st.integers(1, 4)),
        "partitions": draw(st.sampled_from([1, 3])),
        "batch": draw(st.sampled_from([1, 3, 10_000])),
        "shards": draw(st.integers(1, 3)),
    }


def check(spark, job) -> None:
    folder = Path(tempfile.mkdtemp())
    conf = {
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(job["batch"]),
        "spark.sql.shuffle.partitions": str(job["partitions"]),
    }
    before = {name: spark.conf.get(name) for name in conf}
    try:
        for name, value in conf.items():
            spark.conf.set(name, value)
        kind = pa.string() if isinstance(job["keys"][0], str) else pa.int64()
        source = write_table(folder / "in", pa.array(job["keys"], kind), job["embeddings"], job["n_files"])
        sections = {"prune": job["prune"], "cluster": job["cluster"], "trie": {"shards": job["shards"]}}
        done = run(RunConfig.from_dict(config_of(source, folder / "run", **sections)), spark)
        cluster = dict(job["cluster"])
        answer = oracle.run(
            job["keys"], job["embeddings"], kmeans_seed=cluster.pop("seed"), **cluster, **job["prune"]
        )
        assert rows_of(done.assignments(spark)) == answer.assignments
        assert done.quotas()["quota"].tolist() == answer.quotas
        assert rows_of(done.keep_list(spark)) == answer.keep_list
        kept = {row[0] for row in answer.keep_list}
        assert done.keep_trie().contains_many(map(str, job["keys"])).tolist() == [
            k in kept for k in job["keys"]
        ]
        assert len(verify(done, spark)) == 9
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)
        shutil.rmtree(folder)


# No shrinking in the short run: an example takes seconds.
UNHURRIED = {"deadline": None, "suppress_health_check": list(HealthCheck), "database": None}


@pytest.mark.slow
@settings(max_examples=3, derandomize=True, **UNHURRIED)
@given(job=jobs())
def test_some_jobs_equal_the_oracle(spark, job):
    check(spark, job)


@pytest.mark.long
@settings(max_examples=12, derandomize=True, print_blob=True, **UNHURRIED)
@given(job=jobs())
def test_many_jobs_equal_the_oracle(spark, job):
    check(spark, job)
