"""Workers under a limit of their memory: enough at the documented budget, a message that names the knob below."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from conftest import config_of, make_keys, write_table

from faults.conftest import Job
from spark_dbp import open_run

N, DIM = 60_000, 64


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """Half of all rows in one cluster, all of them equal; the rest spread."""
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((N, DIM)).astype(np.float32)
    embeddings[: N // 2] = embeddings[0]
    return write_table(tmp_path_factory.mktemp("skewed") / "in", make_keys(N), embeddings, n_files=4)


def limited(job: Job, skewed, limit: str) -> Job:
    # The setting is what the workers of an executor share: two of them here.
    spark = {"spark.master": "local[2]", "spark.executor.pyspark.memory": limit, "spark.driver.memory": "1g"}
    values = config_of(skewed, job.out, spark=spark, cluster={"n_clusters": 20, "n_iter": 3})
    (job.folder / "conf.yaml").write_text(yaml.safe_dump(values))
    return job


@pytest.mark.slow
def test_half_of_all_rows_in_one_cluster_fit_the_budget(job, skewed):
    done = limited(job, skewed, "2g").start()
    assert done.returncode == 0, done.stderr[-3000:]
    sizes = open_run(job.out).cluster_stats()["n_items"]
    assert sizes.max() >= N // 2


@pytest.mark.long
@pytest.mark.parametrize("limit", ["360m", "200m"])
def test_less_than_the_budget_names_the_knob(job, skewed, limit):
    done = limited(job, skewed, limit).start()
    assert done.returncode == 1
    assert "a Python worker ran out of memory" in done.stderr
    assert "raise spark.executor.pyspark.memory" in done.stderr
    assert not job.has_committed()
    assert not (job.out / "lock.json").exists()
