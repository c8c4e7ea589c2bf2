"""Workers and executors that die, fail, hang or write twice: the same keep list, and no row too many."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.conftest import Job
from spark_dbp import open_run
from spark_dbp.cli import main
from spark_dbp.engine.java import find_java_home
from spark_dbp.explore.verify import verify

CLUSTER = {"spark.master": "local-cluster[2,1,1024]", "spark.executor.memory": "1g"}
# A slow task gets a copy while it runs.
SPECULATION = {
    "spark.speculation": True,
    "spark.speculation.interval": "100ms",
    "spark.speculation.quantile": 0.1,
    "spark.speculation.multiplier": 1.1,
    "spark.speculation.minTaskRuntime": "200ms",
    "spark.speculation.task.duration.threshold": "1s",  # the only task of a stage gets one too
}


@pytest.mark.parametrize(
    ("what", "times", "stages"),
    [
        pytest.param("kill worker", 1, ["select"], id="worker", marks=pytest.mark.long),
        pytest.param(
            "kill worker", 2, ["ingest", "assign", "keep_trie"], id="workers", marks=pytest.mark.long
        ),
        pytest.param("raise", 2, ["assign", "cluster_stats"], id="twice", marks=pytest.mark.long),
    ],
)
def test_workers_that_fail_and_are_tried_again(spark, source, digest_of, tmp_path, what, times, stages):
    for stage in stages:
        folder = tmp_path / stage
        folder.mkdir()
        job = Job(folder, source)
        done = job.start(stage, "working", what, times=times)
        assert done.returncode == 0, (stage, done.stderr[-3000:])
        assert job.faults.count("fault-0") == 1
        assert len([note for note in job.faults if note.startswith("fault-")]) == times
        assert any(note.startswith("attempt-") for note in job.faults)  # it was tried again
        assert job.digest() == digest_of(False)
    assert len(verify(open_run(job.out), spark)) == 9


@pytest.mark.long
def test_a_worker_that_never_succeeds(source, tmp_path):
    """Four attempts fail: a message with the cause, nothing committed; the same command then goes on."""
    job = Job(tmp_path, source)
    done = job.start("assign", "working", "raise", times=100)
    assert done.returncode == 1
    assert "Spark failed" in done.stderr
    assert "the disk of this worker is gone" in done.stderr
    assert "Traceback" not in done.stderr.split("spark-dbp: ")[-1]
    assert not job.has_committed()
    assert job.marks() == ["cluster", "ingest"]
    assert not (job.out / "tables/assignments").exists()  # what the attempts wrote is gone
    assert not (job.out / "lock.json").exists()


@pytest.mark.long
@pytest.mark.parametrize("stage", ["assign", "select"])
def test_an_executor_is_killed(spark, source, digest_of, tmp_path, stage):
    job = Job(tmp_path, source, **CLUSTER)
    done = job.start(stage, "working", "kill executor")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fault-0" in job.faults
    assert job.digest() == digest_of(False)
    assert len(verify(open_run(job.out), spark)) == 9


@contextmanager
def start_cluster(folder):
    """A standalone cluster of two workers on hosts of different names: on one Spark starts no copy of a task."""
    import pyspark

    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "JAVA_HOME": find_java_home() or ""}
    environment = {name: value for name, value in environment.items() if value}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def start(role, *arguments):
        command = [Path(pyspark.__file__).parent / "bin/spark-class", f"org.apache.spark.deploy.{role}"]
        log = (folder / f"{role}-{len(started)}.log").open("w")
        more = {"stdout": log, "stderr": log, "cwd": folder, "env": environment}
        started.append(subprocess.Popen([*map(str, command), *arguments], **more))

    started: list[subprocess.Popen] = []
    master = f"spark://127.0.0.1:{port}"
    try:
        start("master.Master", "--host", "127.0.0.1", "--port", str(port), "--webui-port", "0")
        for host in ("127.0.0.2", "127.0.0.3"):
            work = ["--host", host, "--cores", "1", "--memory", "1g", "--webui-port", "0"]
            start("worker.Worker", *work, "--work-dir", str(folder / host), master)
        yield master
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    with start_cluster(tmp_path_factory.mktemp("cluster")) as master:
        yield master


@pytest.mark.long
def test_a_host_is_lost(spark, source, digest_of, tmp_path):
    """Of a standalone cluster with two workers, one is killed in the middle of a step, with all that it runs."""
    with start_cluster(tmp_path) as master:
        job = Job(tmp_path, source, **{"spark.master": master, "spark.executor.memory": "800m"})
        done = job.start("assign", "working", "kill host")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fault-0" in job.faults
    assert job.digest() == digest_of(False)
    assert len(verify(open_run(job.out), spark)) == 9


@pytest.mark.long
@pytest.mark.parametrize("stage", ["assign", "select"])
def test_speculation(spark, source, digest_of, tmp_path, two_hosts, stage):
    """A task sleeps, its copy finishes first; the sleeper goes on writing for as long as it lives."""
    cluster = {"spark.master": two_hosts, "spark.executor.memory": "800m", "spark.executor.cores": 1}
    job = Job(tmp_path, source, **cluster, **SPECULATION)
    done = job.start(stage, "working", "slow")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "fault-0" in job.faults
    assert "copied" in job.faults, "no copy of the slow task was started"
    assert job.digest() == digest_of(False)
    assert len(verify(open_run(job.out), spark)) == 9


@pytest.mark.slow
def test_two_runs_at_once(spark, source, digest_of, tmp_path, capsys):
    """The second is refused and names the first, which goes on undisturbed."""
    job = Job(tmp_path, source)
    first = job.popen("cluster", "written", "hang")
    go = job.notes / "1" / "go"
    deadline = time.monotonic() + 120
    while not (job.notes / "1" / "fault-0").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    code = main(["run", str(job.folder / "conf.yaml")])
    go.touch()
    _, errors = first.communicate(timeout=120)
    assert code == 4
    assert f"in use by process {first.pid}" in capsys.readouterr().err
    assert first.returncode == 0, errors[-2000:]
    assert job.digest() == digest_of(False)


@pytest.mark.long
def test_sigterm_gives_the_lock_back(source, tmp_path):
    """A scheduler that takes the machine back: exit at once, no lock left, finished steps kept."""
    job = Job(tmp_path, source)
    run = job.popen("assign", "written", "hang")
    deadline = time.monotonic() + 120
    while not (job.notes / "1" / "fault-0").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    run.terminate()
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "interrupted; the same command goes on after the last finished step" in errors
    assert not (job.out / "lock.json").exists()
    assert job.marks() == ["cluster", "ingest"]
    assert not (job.out / "tables/assignments").exists()


# A full disk: a small file system of its own, in a namespace of its own.

FULL_DISK = """
set -e
mount -t tmpfs -o size={size} tmpfs {disk}
set +e
{job}
echo "exit code $?"
ls {disk}/run/run.json {disk}/run/lock.json
find {disk}/run/tables -name '*.parquet' | wc -l
mount -o remount,size=200m {disk}
{job} && cat {disk}/run/run.json > {copy}
"""


@pytest.mark.long
@pytest.mark.parametrize(("size", "stage"), [("88k", "assign"), ("140k", "select")])
def test_a_full_disk(source, digest_of, tmp_path, size, stage):
    """The job says so and commits nothing; with room again the same command goes on."""
    import json
    import shlex

    job = Job(tmp_path, source)
    disk, copy = tmp_path / "disk", tmp_path / "run.json"
    disk.mkdir()
    command = [*job.command(), "--set", f"output.path={disk}/run"]
    script = FULL_DISK.format(size=size, disk=disk, copy=copy, job=shlex.join(command))
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert "exit code 1" in done.stdout, done.stderr[-3000:]
    assert "no space left" in done.stderr
    assert "to mend it: make room" in done.stderr
    assert done.stderr.count("No such file") == 2  # neither run.json nor a lock
    assert done.returncode == 0, done.stderr[-3000:]
    assert "reused from the earlier run" in done.stderr
    assert json.loads(copy.read_text())["digests"]["keep_list"] == digest_of(False)
