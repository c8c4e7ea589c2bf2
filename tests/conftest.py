"""Shared by all tests: one Spark session a process, and small real-looking inputs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

sys.path.insert(0, str(Path(__file__).parent))
# Workers import encoders of tests from here.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.path[0], os.environ.get("PYTHONPATH")]))

# Commands of tests are short: their Java ends before its second compiler and parallel collector pay.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

ROOT = Path(__file__).parent.parent


# A store that only Spark opens: Hadoop's view of a directory of this machine.
VIEW = "viewfs://tests/lake"


@pytest.fixture(scope="session")
def viewed(tmp_path_factory) -> Path:
    """The directory that VIEW shows, in the session `spark`."""
    return tmp_path_factory.mktemp("viewed")


def view_settings(folder: Path) -> dict[str, str]:
    """Settings of a session that show `folder` as VIEW."""
    return {"spark.hadoop.fs.viewfs.mounttable.tests.link./lake": folder.as_uri()}


@pytest.fixture(scope="session")
def whole_files_only(tmp_path_factory) -> dict[str, str]:
    """Environment of a process in which a directory, WHOLE_FILES_ONLY, renames, links and appends nothing."""
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs a C compiler and LD_PRELOAD, for a directory that renames nothing")
    folder = tmp_path_factory.mktemp("shim")
    source, library = Path(__file__).parent / "whole_files_only.c", folder / "whole_files_only.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    (folder / "volume").mkdir()
    return {"LD_PRELOAD": str(library), "WHOLE_FILES_ONLY": str(folder / "volume")}


# What may be set in the session `spark` at any time, and is set back after each module.
SETTINGS = {
    "spark.sql.shuffle.partitions": "4",
    # To compile a query takes longer than to interpret it, for so few rows. Commands, lanes and faults compile.
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
_shared: list = []  # the session, once a test has asked for it


@pytest.fixture(scope="session")
def spark(viewed, tmp_path_factory) -> Iterator[object]:
    """A classic local session; few tasks and a JVM that is quick to start with, since the data is small."""
    from spark_dbp.engine import session as sessions

    options = " ".join(sessions.list_java_options())
    conf = {
        **SETTINGS,
        "spark.driver.memory": "1g",
        "spark.driver.extraJavaOptions": options,
        **view_settings(viewed),
    }
    conf |= iceberg_catalog(tmp_path_factory.mktemp("iceberg"))
    if "PYTEST_XDIST_WORKER" in os.environ:  # another one runs beside it
        conf["spark.master"] = "local[1]"
    session = sessions.start_local_session(conf)
    _shared.append(session)
    yield session
    _shared.clear()
    session.stop()


@pytest.fixture(autouse=True, scope="module")
def _settings_of_one_module() -> Iterator[None]:
    """A run in the shared session sets what its configuration says; the next module starts without it."""
    yield
    for session in _shared:
        for name, value in SETTINGS.items():
            session.conf.set(name, value)


@pytest.fixture
def connect_port() -> Iterator[None]:
    """A local Connect server takes port 15002, whatever it is told: one test at a time has one."""
    with (Path(tempfile.gettempdir()) / "spark-dbp-tests-15002.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# `make test-spark35` has it.
ICEBERG_JAR = os.environ.get("SPARK_DBP_ICEBERG_JAR")


def iceberg_catalog(warehouse: Path) -> dict[str, str]:
    """Settings of a session with a catalog `lake` of Iceberg tables; none without the jar."""
    if not ICEBERG_JAR:
        return {}
    return {
        "spark.jars": ICEBERG_JAR,
        "spark.sql.catalog.lake": "org.apache.iceberg.spark.SparkCatalog",
        "spark.sql.catalog.lake.type": "hadoop",
        "spark.sql.catalog.lake.warehouse": str(warehouse),
    }


def make_embeddings(n: int, dim: int, n_concepts: int, seed: int = 0) -> np.ndarray:
    """Embeddings around a few directions, of uneven number and spread, not of unit norm."""
    rng = np.random.default_rng(seed)
    concepts = rng.standard_normal((n_concepts, dim))
    share = rng.dirichlet(np.full(n_concepts, 0.7))
    of = rng.choice(n_concepts, size=n, p=share)
    spread = rng.uniform(0.1, 1.0, n_concepts)
    points = concepts[of] + spread[of, None] * rng.standard_normal((n, dim))
    return (points * rng.uniform(0.5, 3.0, (n, 1))).astype(np.float32)


def make_keys(n: int) -> list[str]:
    return [f"part/{i * 7919 % 1_000_003:07d}.jpg" for i in range(n)]


def write_table(path: Path, keys: object, embeddings: object, n_files: int = 1, **more: object) -> Path:
    """Write (key, embedding, ...) as `n_files` Parquet files of uneven size."""
    path.mkdir(parents=True, exist_ok=True)
    if isinstance(embeddings, np.ndarray):
        embeddings = pa.array(list(embeddings), pa.list_(pa.from_numpy_dtype(embeddings.dtype)))
    table = pa.table({"key": keys, "embedding": embeddings, **more})
    cuts = np.unique((np.linspace(0, 1, n_files + 1) ** 1.5 * len(table)).astype(int))
    for number, (start, stop) in enumerate(pairwise(cuts)):
        pq.write_table(table.slice(start, stop - start), path / f"{number:05d}.parquet")
    return path


def config_of(source: Path | str, out: Path | str, **sections: object) -> dict:
    """A configuration with small defaults."""
    values = {
        "input": {"path": str(source)},
        "output": {"path": str(out)},
        "cluster": {"n_clusters": 12, "n_iter": 8},
        "prune": {"keep_ratio": 0.3},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return values


def rows_of(frame: object) -> list[tuple]:
    """All rows of a DataFrame, sorted."""
    return sorted(tuple(row) for row in frame.collect())


def start_runs_at_once(base: str) -> list[bool]:
    """Of three runs that start in a directory at the same moment, which ones go on; sorted."""
    from spark_dbp.errors import ConflictError
    from spark_dbp.lake.store import open_run_directory

    at_once, ended = threading.Barrier(3), threading.Barrier(3)

    def start(_: int) -> bool:
        at_once.wait()
        try:
            with open_run_directory(base):
                ended.wait()
                return True
        except ConflictError:
            ended.wait()
            return False

    with ThreadPoolExecutor(3) as threads:
        return sorted(threads.map(start, range(3)))
