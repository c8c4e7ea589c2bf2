"""One keep list and one digest on every lane: kinds of sessions, clusters, BLAS threads, versions of Spark.

A session is classic or Connect, and local or on a cluster, for a whole process: lanes run in processes of
their own. `make test-spark35` runs this file with pyspark 3.5, whose lanes are then the same and two more:
the newest pyspark as a classic session, and as the server of the Connect lane (pyspark 3.5 carries none).
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Timer

import numpy as np
import oracle
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table

from spark_dbp import Run, RunConfig, SphericalKMeans, good_samples, ingest, open_run, run

N, DIM = 3000, 32
KEYS = make_keys(N)
# Wide enough for BLAS to use its threads.
EMBEDDINGS = make_embeddings(N, DIM, 8)
# Every third sample is a copy of another: distances are equal, and keys decide.
EMBEDDINGS[::3] = EMBEDDINGS[np.random.default_rng(1).integers(0, N // 6, N // 3)]

IS_SPARK_35 = pyspark.__version__.startswith("3.5.")


def newest_python() -> str:
    """The interpreter with the newest pyspark, where this one has 3.5."""
    path = os.environ.get("SPARK_DBP_NEWEST_PYTHON", str(ROOT / ".venv/bin/python"))
    assert Path(path).exists(), f"no {path}: `make setup` makes it, or set SPARK_DBP_NEWEST_PYTHON"
    return path


def threads(number: int) -> dict[str, str]:
    return dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(number))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("data") / "in", KEYS, EMBEDDINGS, n_files=4)


@pytest.fixture(scope="module")
def answer():
    return oracle.run(KEYS, EMBEDDINGS, n_clusters=12, n_iter=8, keep_ratio=0.3)


@pytest.fixture(scope="module")
def classic(spark, source, tmp_path_factory):
    """The run in this process."""
    return run(RunConfig.from_dict(config_of(source, tmp_path_factory.mktemp("run"))), spark)


def check(done: Run, answer: oracle.Answer) -> None:
    """The keep list, as its files are, is the oracle's to the byte; so are the digests."""
    files = sorted(Path(done.path, done.document["tables"]["keep_list"]).glob("*.parquet"))
    kept = pa.concat_tables([pq.read_table(file) for file in files])
    assert sorted(zip(*(column.to_pylist() for column in kept.columns), strict=True)) == answer.keep_list
    assert done.document["digests"]["keep_list"] == oracle.digest(answer.keep_list)
    assignments = [(key, int(cluster), float(distance)) for key, cluster, distance in answer.assignments]
    assert done.document["digests"]["assignments"] == oracle.digest(assignments)


LANE = """
import json, os, sys
from threadpoolctl import threadpool_info
from spark_dbp import RunConfig, SphericalKMeans, check_samples, good_samples, ingest, prune_again, run
from spark_dbp.engine.session import start_local_session
from spark_dbp.errors import InputError

def threads():
    import numpy as np
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

def of_worker(batches):
    import pyarrow as pa
    for batch in batches:
        yield pa.RecordBatch.from_pydict({"daemon": [os.getppid()], "threads": [json.dumps(threads())]})

config, settings = RunConfig.from_dict(json.loads(sys.argv[1])), json.loads(sys.argv[2])
spark = start_local_session({"spark.sql.shuffle.partitions": "4", **settings})
done = run(config, spark)
lane = {"version": spark.version, "session": type(spark).__module__}
if lane["session"].startswith("pyspark.sql.connect"):
    again = prune_again(done, config.output.path + "-again", ["prune.which_to_keep=random"], spark)
    lane["kept_again"] = len(again.keep_trie())
    evenly = prune_again(done, config.output.path + "-evenly", ["prune.which_to_keep=stratified"], spark)
    lane["evenly"] = evenly.document["digests"]["keep_list"]
    dimension = done.document["stages"]["ingest"]["info"]["dimension"]
    samples = good_samples(ingest(spark.read.parquet(config.input.path)), dimension)
    model = SphericalKMeans(3, n_iter=2, train="full").fit(samples)
    bad = ingest(spark.sql("SELECT cast(unhex('636166E9') AS STRING) AS key, array(0F) AS embedding"))
    bad.write.parquet(config.output.path + "-bad")
    try:
        check_samples(spark.read.parquet(config.output.path + "-bad"))
    except InputError as error:
        lane["message"] = str(error)
    lane["refined"] = [float(x) for x in model.centroids_.sum(axis=0)]
else:
    workers = spark.range(0, 8, 1, 8).mapInArrow(of_worker, "daemon BIGINT, threads STRING").collect()
    lane["master"] = spark.conf.get("spark.master")
    lane["threads"] = [threads(), *(json.loads(worker.threads) for worker in workers)]
    lane["daemons"] = len({worker.daemon for worker in workers})
print("RESULT", json.dumps(lane))
"""

# A classic session that has a server beside it: one made with spark.remote would look for its own server at
# the usual port, which may be another's.
SERVER = """
import sys
from spark_dbp.engine.session import start_local_session
session = start_local_session({
    "spark.master": "local[2]",
    "spark.plugins": "org.apache.spark.sql.connect.SparkConnectPlugin",
    "spark.connect.grpc.binding.port": sys.argv[1],
    "spark.sql.shuffle.partitions": "4",
    "spark.driver.memory": "1g",
})
print("READY", session.version, flush=True)
sys.stdin.read()
"""


def start_lane(
    source: Path,
    out: Path,
    settings: dict[str, str],
    environment: dict[str, str] | None = None,
    python: str = sys.executable,
) -> tuple[Run, dict]:
    """Run the job in a process of its own; the run, and what the process says of itself."""
    done = subprocess.run(
        [python, "-c", LANE, json.dumps(config_of(source, out)), json.dumps(settings)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return open_run(str(out)), json.loads(done.stdout.split("RESULT ", 1)[1].splitlines()[0])


@contextmanager
def connect_server(log: Path) -> Iterator[tuple[str, str]]:
    """Address and version of a Connect server of the newest pyspark."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with log.open("w") as errors:
        server = subprocess.Popen(
            [newest_python(), "-c", SERVER, str(port)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT,
        )  # fmt: skip
    late = Timer(120, server.kill)
    late.start()
    try:
        ready = server.stdout.readline().split()
        late.cancel()
        assert ready, log.read_text()[-3000:]
        yield f"sc://localhost:{port}", ready[1]
    finally:
        server.communicate(timeout=60)  # the end of its input ends it


def test_there_are_ties(answer):
    distances = [row[1:3] for row in answer.keep_list]
    assert len(set(distances)) < 0.9 * len(distances)


def test_classic(classic, answer):
    check(classic, answer)


@pytest.mark.long
@pytest.mark.parametrize(
    ("settings", "environment", "master"),
    [
        pytest.param({"spark.master": "local[2]"}, threads(1), "local[2]", id="one BLAS thread"),
        pytest.param({"spark.master": "local[2]"}, threads(2), "local[2]", id="two BLAS threads"),
        pytest.param(
            {"spark.master": "local-cluster[2,1,1024]"}, {}, "local-cluster[2,1,1024]", id="cluster"
        ),
    ],
)
def test_classic_lanes(source, classic, answer, tmp_path, settings, environment, master):
    done, lane = start_lane(source, tmp_path / "run", settings, environment)
    check(done, answer)
    assert done.document["digests"] == classic.document["digests"]
    assert (lane["version"], lane["master"]) == (pyspark.__version__, master)
    if environment:
        number = int(environment["OPENBLAS_NUM_THREADS"])
        # Of the driver and of eight tasks.
        assert [set(pools) for pools in lane["threads"]] == 9 * [{number}]
    else:
        assert lane["daemons"] == 2  # both executors worked


@pytest.mark.slow
def test_connect(spark, source, classic, answer, tmp_path, connect_port):
    if IS_SPARK_35:
        with connect_server(tmp_path / "server.log") as (remote, version):
            done, lane = start_lane(source, tmp_path / "run", {"spark.remote": remote})
    else:
        version = pyspark.__version__
        done, lane = start_lane(source, tmp_path / "run", {"spark.remote": "local[2]"})
    check(done, answer)
    assert lane["session"].startswith("pyspark.sql.connect")
    assert lane["version"] == version
    assert done.document["digests"] == classic.document["digests"]
    assert done.document["input"]["files"] == 4
    assert lane["kept_again"] == 900
    settings = {"n_clusters": 12, "n_iter": 8, "keep_ratio": 0.3, "which_to_keep": "stratified"}
    assert lane["evenly"] == oracle.digest(oracle.run(KEYS, EMBEDDINGS, **settings).keep_list)
    assert (
        "such as key 'caf\ufffd'" in lane["message"]
    )  # bytes that are not UTF-8, which no client can collect

    samples = good_samples(ingest(spark.read.parquet(str(source))), DIM)
    model = SphericalKMeans(3, n_iter=2, train="full").fit(samples)
    assert lane["refined"] == [float(x) for x in model.centroids_.sum(axis=0)]


MANY = """
import numpy as np, pyarrow as pa
from spark_dbp import SphericalKMeans
from spark_dbp.engine.compat import create_frame
from spark_dbp.engine.session import start_local_session
from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.vectors import to_binary_rows
from spark_dbp.stages.kmeans import assign

spark = start_local_session({"spark.remote": "local[2]", "spark.driver.memory": "2g"})
centroids, _ = normalize_rows(np.random.default_rng(0).standard_normal((50_000, 768), dtype=np.float32))
chosen = np.arange(0, 50_000, 997)
rows = create_frame(spark, pa.table({"key": pa.array(chosen), "vector": to_binary_rows(centroids[chosen])}))
found = assign(rows, centroids).collect()
print("RESULT", sorted(row.key for row in found) == sorted(row.cluster_id for row in found), len(found))
"""


@pytest.mark.long
@pytest.mark.skipif(IS_SPARK_35, reason="pyspark 3.5 cannot start a Connect server")
def test_many_large_centroids_reach_the_workers_of_connect(connect_port):
    """146 MiB of them, more than a message holds."""
    done = subprocess.run([sys.executable, "-c", MANY], capture_output=True, text=True, cwd=ROOT, timeout=400)
    assert done.stdout.splitlines()[-1] == "RESULT True 51", done.stderr[-3000:]


if IS_SPARK_35:

    def test_the_newest_spark(source, classic, answer, tmp_path):
        done, lane = start_lane(source, tmp_path / "run", {}, python=newest_python())
        check(done, answer)
        assert int(lane["version"].split(".")[0]) >= 4
        assert done.document["digests"] == classic.document["digests"]

    def test_without_a_connect_server(tmp_path):
        """pyspark 3.5 cannot start one: the message says so."""
        code = (
            "from spark_dbp.engine.session import start_local_session as s; s({'spark.remote': 'local[2]'})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode != 0
        assert "this pyspark comes without a Spark Connect server" in done.stderr

else:

    def test_the_port_of_a_connect_server_is_taken(connect_port):
        code = (
            "import socket; taken = socket.create_server(('', 15002)); "
            "from spark_dbp.engine.session import start_local_session as s; s({'spark.remote': 'local[2]'})"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode != 0
        assert "ConfigError: spark.remote=local[2]: its server finds port 15002 of this" in done.stderr
