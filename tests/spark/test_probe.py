"""What tasks reach decides on the engine. A path that is another directory on each machine is refused.

`/proc/self/cwd` stands for such a path: every process has its own there, as every machine has its own disk.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from conftest import ROOT, config_of, make_embeddings, make_keys, write_table

from spark_dbp import RunConfig, prune_again, run
from spark_dbp.engine import probe
from spark_dbp.engine.probe import EngineChoice
from spark_dbp.errors import ConfigError
from spark_dbp.lake import files
from spark_dbp.lake.cleaning import clean

OWN = "/proc/self/cwd/run"
HOST = socket.gethostname()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Nobody waits long."""
    monkeypatch.setattr(probe, "_PATIENCE", 0.2)


@pytest.fixture
def own(monkeypatch, tmp_path):
    """The driver's directory is not that of the workers, which were started elsewhere."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "run"


def test_a_shared_directory_takes_arrow_and_nothing_is_left(spark, tmp_path):
    choice = probe.choose_engine(spark, str(tmp_path / "run"))
    assert choice == EngineChoice("arrow", "driver and workers reach the run directory themselves")
    assert list((tmp_path / "run").iterdir()) == []


def test_sql_where_it_is_asked_for(spark, tmp_path):
    choice = probe.choose_engine(spark, str(tmp_path / "run"), "sql")
    assert choice == EngineChoice("sql", "the configuration asks for it")
    assert list((tmp_path / "run").iterdir()) == []


def test_sql_where_workers_do_not_reach_what_the_driver_and_spark_do(spark, tmp_path, monkeypatch):
    """A run whose tables are shared, and which workers do not see."""
    given = str(tmp_path / "elsewhere")
    choice = probe.choose_engine(spark, str(tmp_path / "run"), reads=[given])
    assert choice == EngineChoice("sql", f"a task on {HOST} does not see {given}")
    with pytest.raises(ConfigError, match=r"engine: arrow cannot work with output\.path") as caught:
        probe.choose_engine(spark, str(tmp_path / "run"), "arrow", reads=[given])
    assert f"a task on {HOST} does not see {given}" in caught.value.what
    assert "set engine: auto" in caught.value.mend


def test_what_spark_wrote_must_be_seen_by_the_driver(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "list_sizes", lambda path: {})
    assert probe.find_problem_of_spark(spark, str(tmp_path)) == (
        "the driver does not see there what Spark's tasks wrote"
    )
    assert list(tmp_path.iterdir()) == []


def test_spark_says_why_it_cannot_write(spark, tmp_path, monkeypatch):
    """Its tasks would write below a file."""
    (tmp_path / "file").touch()
    original = files.join
    monkeypatch.setattr(
        probe.files, "join",
        lambda base, *parts: str(tmp_path / "file/x") if parts == ("written",) else original(base, *parts),
    )  # fmt: skip
    assert probe.find_problem_of_spark(spark, str(tmp_path)).startswith("Spark cannot read and write there: ")


def test_a_directory_of_each_machine_is_refused(spark, own):
    with pytest.raises(ConfigError) as caught:
        probe.choose_engine(spark, OWN)
    assert caught.value.what == (
        f"output.path {OWN} cannot be used on this cluster: a task on {HOST} does not see what the driver on "
        f"{HOST} wrote there"
    )
    assert "hdfs://" in caught.value.mend
    assert list(own.iterdir()) == []


def test_a_run_is_refused_before_it_reads_anything(spark, own, tmp_path):
    source = write_table(tmp_path / "in", make_keys(60), make_embeddings(60, 4, 3))
    config = config_of(source, OWN, cluster={"n_clusters": 3})
    config["input"]["path"] = "/no/such/input"
    with pytest.raises(ConfigError, match="does not see what the driver"):
        run(RunConfig.from_dict(config), spark)
    assert not own.exists()


@pytest.mark.slow
def test_so_is_pruning_again(spark, own, tmp_path, monkeypatch):
    source = write_table(tmp_path / "in", make_keys(60), make_embeddings(60, 4, 3))
    done = run(RunConfig.from_dict(config_of(source, tmp_path / "shared", cluster={"n_clusters": 3})), spark)
    with pytest.raises(ConfigError, match="does not see what the driver"):
        prune_again(done, OWN, ["prune.keep_ratio=0.5"], spark)
    assert not own.exists()
    assert not (tmp_path / "shared/derived").exists()


def test_what_a_task_wrote_must_be_seen_by_the_driver(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "exists", lambda path: False)
    choice = probe.choose_engine(spark, str(tmp_path / "run"))
    why = f"the driver on {HOST} does not see what a task on {HOST} wrote there"
    assert choice == EngineChoice("sql", why)
    assert list((tmp_path / "run").iterdir()) == []


def look(folder: Path, n_rows: int = 3) -> list[dict]:
    batches = iter([pa.RecordBatch.from_pydict({"id": list(range(n_rows))})])
    return [
        row for batch in probe.look_from_task(str(folder), HOST, 0.1)(batches) for row in batch.to_pylist()
    ]


def test_a_task_that_sees_nothing_writes_nothing(tmp_path):
    [found] = look(tmp_path / "probe")
    assert "does not see" in found["problem"]
    assert not (tmp_path / "probe").exists()


def test_a_task_that_may_not_write_says_so(tmp_path, monkeypatch):
    """As on YARN, where tasks may run as another user."""
    files.touch(str(tmp_path / "probe/driver"))

    def refuse(path):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(files, "touch", refuse)
    [found] = look(tmp_path / "probe")
    assert found["problem"] == f"a task on {HOST} cannot read and write there: Permission denied"


def test_a_task_without_rows_does_nothing(tmp_path):
    files.touch(str(tmp_path / "probe/driver"))
    assert look(tmp_path / "probe", n_rows=0) == []
    assert len(look(tmp_path / "probe")) == 1
    assert len(list((tmp_path / "probe").iterdir())) == 2


def test_what_a_killed_probe_left_is_cleaned(tmp_path):
    (tmp_path / "run/tables").mkdir(parents=True)
    (tmp_path / "run/.probe-01234567").mkdir()
    assert [Path(path).name for path, _ in clean(str(tmp_path / "run"))] == [".probe-01234567"]


@pytest.mark.slow
def test_a_real_cluster(tmp_path):
    """Its executors have directories of their own. `test_command.py` runs a job on one that shares its path."""
    spark = {"spark.master": "local-cluster[2,1,1024]", "spark.sql.shuffle.partitions": 2}
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of("/no/such/input", OWN, spark=spark)))
    done = subprocess.run(
        [sys.executable, "-m", "spark_dbp", "run", "conf.yaml"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    assert f"output.path {OWN} cannot be used on this cluster: a task on " in done.stderr
    assert not (tmp_path / "run").exists()
