"""Memory of workers: the documented budget is enough, and below it a message names the setting."""

from __future__ import annotations

import threading
from pathlib import Path

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
    assert "ran out of memory" in done.stderr  # as Python says it, or by the death of the worker
    assert "spark.executor.pyspark.memory" in done.stderr
    assert not job.has_committed()
    assert not (job.out / "lock.json").exists()


def find_workers(pid: int) -> list[int]:
    """Python processes that this process started, directly or through others."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):  # it has ended
            continue
        children.setdefault(parent, []).append(int(process.name))
    found, left = [], [pid]
    while left:
        left += (below := children.get(left.pop(), []))
        found += below
    return [worker for worker in found if b"pyspark.daemon" in read_of(worker, "cmdline")]


def read_of(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def run_and_watch(job: Job) -> tuple[int, str, int]:
    """Exit code and messages of the job, and the most MB that a Python worker of it held."""
    done, most = threading.Event(), [0]
    process = job.popen()

    def watch() -> None:
        while not done.wait(0.1):
            for worker in find_workers(process.pid):
                for line in read_of(worker, "status").splitlines():
                    if line.startswith(b"VmHWM:"):
                        most[0] = max(most[0], int(line.split()[1]) // 1024)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, messages = process.communicate(timeout=900)
    done.set()
    watcher.join()
    return process.returncode, messages, most[0]


def long_keys(n: int, length: int) -> list[str]:
    rest = np.random.default_rng(1).bytes(length // 2).hex()
    return [f"{i * 7919 % 10_000_019:08d}{rest[i % 7 : length - 8]}" for i in range(n)]


# The largest part that one worker sorts, to the row or to the byte; what Spark sorts; keys for several tiles.
WORST = {
    "rows": (1_440_000, 60, 1),
    "bytes": (15_500, 10_000, 1),
    "more than a part": (45_000, 10_000, 1),
    "keys in tiles": (30_000, 6_000, 4),
}


@pytest.mark.long
@pytest.mark.parametrize("worst", WORST)
def test_the_largest_part_fits_1_gb_a_task(job, tmp_path, worst):
    """A third of one cluster's rows are spread, the others share one bin and one distance, so that keys decide."""
    n, key_bytes, dim = WORST[worst]
    distances = np.full(n, 0.5, np.float32)
    distances[: n // 3] = np.random.default_rng(2).uniform(0.6, 0.7, n // 3)
    np.save(tmp_path / "c.npy", np.eye(1, dim))
    embeddings = np.random.default_rng(3).standard_normal((n, dim)).astype(np.float32)
    source = write_table(
        tmp_path / "in",
        long_keys(n, key_bytes),
        embeddings,
        n_files=4,
        cid=np.zeros(n, np.int32),
        d=distances,
    )
    given = {"cluster_id": "cid", "distance_to_centroid": "d", "centroids": str(tmp_path / "c.npy")}
    sections = {"dedup": {"semantic": {"eps": 1e-9}}} if worst == "keys in tiles" else {}
    spark = {"spark.master": "local[2]", "spark.executor.pyspark.memory": "2g", "spark.driver.memory": "2g"}
    values = config_of(source, job.out, spark=spark, input=given, prune={"keep_ratio": 1.0}, **sections)
    del values["cluster"]
    (job.folder / "conf.yaml").write_text(yaml.safe_dump(values))
    code, messages, most = run_and_watch(job)
    assert code == 0, messages[-3000:]
    assert 200 < most < 800, f"the largest worker held {most} MB"
    print(f"the largest worker held {most} MB")
