"""Hadoop's FileSystem of a session behind `files`: on a view, which neither pyarrow nor fsspec opens."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest
from conftest import VIEW, config_of, start_runs_at_once

from spark_dbp import KeepTrie, RunConfig, open_run, run
from spark_dbp.cli import main
from spark_dbp.engine import storage
from spark_dbp.engine.hadoop import open_hadoop
from spark_dbp.engine.storage import reach_storage
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.io.centroids import GivenCentroids
from spark_dbp.io.listing import list_paths
from spark_dbp.lake import files, lock, mounts, parquet_files
from spark_dbp.lake.cleaning import clean
from spark_dbp.lake.store import open_run_directory
from spark_dbp.loaders.keep_trie import FORMAT, FORMAT_VERSION, find_shards


@pytest.fixture
def base(spark, viewed, request, monkeypatch):
    """A place of the test's own on the view, which the driver reaches through the session."""
    monkeypatch.setattr(lock, "SETTLED", 0.2)
    path = f"{VIEW}/{request.node.name.partition('[')[0]}"
    reach_storage(spark, path, "output.path", writes=True)
    yield path
    mounts.unmount("viewfs://tests")


def on_disk(viewed, base):
    return viewed / base.rpartition("/")[2]


@pytest.mark.parametrize(
    "name", ["plain", "a b", "run#1", "pct%20x", "what?", "é", "a+b=c", "x [v2]", "*", "{a,b}"]
)
def test_paths_are_taken_as_they_are(base, viewed, name):
    path = files.join(base, name)
    files.write_bytes(files.join(path, "_draft", "file"), name.encode())
    files.publish(files.join(path, "_draft"), ["file"], path)
    assert files.list_names(base) == [name]
    assert (on_disk(viewed, base) / name / "file").read_bytes() == name.encode()
    files.delete(path)


def test_small_files_are_written_read_listed_and_deleted(base, viewed):
    files.write_bytes(f"{base}/a/_hidden", b"1")
    files.write_bytes(f"{base}/a/file", b"22")
    files.write_bytes(f"{base}/a/file", b"333")  # over the other, in one step where the store can
    files.touch(f"{base}/a/.empty")
    assert files.list_names(f"{base}/a") == [".empty", "_hidden", "file"]
    assert files.list_kinds(base) == {"a": True}
    assert files.list_sizes(f"{base}/a") == {"file": 3}
    assert files.list_tree(base) == {"a/_hidden": 1, "a/file": 3, "a/.empty": 0}
    assert files.list_tree(f"{base}/a/file") == {"": 3}
    assert (files.measure_tree(base), files.read_start(f"{base}/a/file", 2)) == (4, b"33")
    assert (files.exists(f"{base}/a"), files.exists(f"{base}/b"), files.list_names(f"{base}/b")) == (
        True,
        False,
        [],
    )
    with pytest.raises(FileNotFoundError, match=r"/b: File .* does not exist"):
        files.read_bytes(f"{base}/b")
    with pytest.raises(NotADirectoryError, match="is a file"):
        files.list_names(f"{base}/a/file")
    drafts = list((on_disk(viewed, base) / "a").glob(".file.*"))
    assert [draft.name for draft in drafts if not draft.name.endswith(".crc")] == []
    files.delete_if_empty(f"{base}/a")
    assert files.exists(f"{base}/a/file")
    files.delete(base)
    assert not on_disk(viewed, base).exists()


@pytest.mark.parametrize("n_bytes", [0, 1, 5 << 20])
def test_bytes_come_back_as_they_were(base, tmp_path, n_bytes):
    content = os.urandom(n_bytes)
    files.write_bytes(f"{base}/x", content)
    files.copy_to_local(f"{base}/x", str(tmp_path / "x"))
    assert files.read_bytes(f"{base}/x") == (tmp_path / "x").read_bytes() == content
    assert files.read_start(f"{base}/x", 10) == content[:10]


def test_small_tables(base):
    table = pa.table({"a": list(range(1000)), "b": ["x"] * 1000})
    parquet_files.write_parquet(f"{base}/t", table)
    assert parquet_files.read_parquet(f"{base}/t").equals(table)
    assert parquet_files.open_parquet(f"{base}/t/part-00000.parquet").metadata.num_rows == 1000


def test_what_lies_under_a_path_is_listed(base):
    for name in [
        "a.parquet",
        "_b.parquet",
        "c=1/d.parquet",
        "x [1]/e.parquet",
        "_temporary/0/f.parquet",
        ".h/g",
    ]:
        files.write_bytes(files.join(base, name), b"PAR1 and more")
    listing = list_paths([base])
    assert not listing.unchecked
    found = sorted("/".join(one.names) for one in listing.found)
    assert found == [".h/g", "_b.parquet", "a.parquet", "c=1/d.parquet", "x [1]/e.parquet"]
    assert [one.names for one in list_paths([f"{base}/{{c=1,x*}}/*"]).found] == [(), ()]


def test_steps_are_committed_reused_and_cleaned(base):
    calls: list = []

    def count(writer):
        calls.append(1)
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), b"123")
        writer.report("numbers", rows=3)

    for _ in range(2):
        with open_run_directory(base) as directory:
            directory.reuse_or_build("count", "Counting", {"rows": 1}, count)
            directory.commit({"summary": {}, "config": {}, "accounting": {}})
    assert len(calls) == 1
    assert open_run(base).document["reused_stages"] == ["count"]
    assert files.list_names(base) == ["run.json", "stages", "tables"]
    files.write_bytes(f"{base}/tables/numbers/failed/part", b"12345")
    assert clean(base) == [(f"{base}/tables/numbers/failed", 5)]
    assert files.list_names(f"{base}/tables/numbers") != ["failed"]


def test_a_failed_run_leaves_nothing(base, viewed):
    def fail(writer):
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), b"half")
        raise InputError("no good")

    with pytest.raises(InputError), open_run_directory(base) as directory:
        directory.reuse_or_build("count", "Counting", {}, fail)
    assert not on_disk(viewed, base).exists()


def test_of_runs_that_start_at_once_one_goes_on(base):
    assert start_runs_at_once(base) == [False, False, True]


def test_the_lock_of_a_dead_process_is_taken_over(base):
    ended = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
    )
    holder = {**lock._find_process_space(), "pid": int(ended.stdout), "token": "theirs"}
    files.write_bytes(f"{base}/lock.json", json.dumps(holder).encode())
    with open_run_directory(base) as directory:
        directory._lock.check()
        directory._lock._renewals = 1
        files.write_bytes(directory._lock.path, directory._lock.content())  # a renewal
        directory._lock.check()
    assert not files.exists(f"{base}/lock.json")


def write_trie(path: str, keys: list[str]) -> None:
    import marisa_trie

    numbers = find_shards([key.encode() for key in keys], 2)
    shards = []
    for number in range(2):
        own = [key.encode() for key, shard in zip(keys, numbers, strict=True) if shard == number]
        files.write_bytes(f"{path}/{number}.marisa", marisa_trie.BinaryTrie(own).tobytes())
        shards.append({"shard": number, "file": f"{number}.marisa"})
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_shards": 2,
        "n_keys": len(keys),
        "shards": shards,
    }
    files.write_bytes(
        f"{path}/manifest.json", json.dumps({**manifest, "key_type": "string", "expression": None}).encode()
    )


def test_tries_are_read_from_a_copy_that_other_processes_can_read_too(base):
    write_trie(base, ["a", "b", "c", "d"])
    keep = KeepTrie.open(base)
    assert keep.contains_many(["a", "d", "x"]).tolist() == [True, True, False]
    sent = pickle.dumps(keep)
    program = f"import pickle; keep = pickle.loads({sent!r}); print('a' in keep, 'x' in keep)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_without_a_session_the_message_says_to_pass_one(base):
    files.write_bytes(f"{base}/run.json", b"{}")
    mounts.unmount("viewfs://tests")
    with pytest.raises(ConfigError, match=r"open_run\(path, spark\)"):
        open_run(base)
    with pytest.raises(InputError, match="does not reach it") as caught:
        KeepTrie.open(base)
    assert "open_run(path, spark).keep_trie()" in caught.value.mend


def test_a_run_is_opened_through_the_session_that_is_given(base, spark):
    with open_run_directory(base) as directory:
        directory.commit({"summary": {}, "config": {}, "accounting": {}})
    mounts.unmount("viewfs://tests")
    assert open_run(base, spark).path == base


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("viewfs://tests/other/run", r"File/Directory does not exist: /other"),
        ("viewfs://nowhere/run", r"Empty Mount table"),
        ("gopher://x/run", r'Unrecognized filesystem type .* No FileSystem for scheme "gopher"'),
    ],
)
def test_a_store_that_nobody_reaches_is_refused_at_the_start(spark, path, words):
    with pytest.raises(ConfigError, match=rf"output\.path {path}: .*{words}") as caught:
        run(RunConfig.from_dict(config_of("in", path)), spark)
    assert "name another store" in caught.value.mend
    assert not mounts.is_mounted(path)


class ConnectSession:
    """What `reach_storage` sees of a Connect session: it has no JVM, and says so as pyspark does."""

    @property
    def _jvm(self):
        from pyspark.errors import PySparkAttributeError

        raise PySparkAttributeError("[JVM_ATTRIBUTE_NOT_SUPPORTED]")


@pytest.mark.parametrize("path", [f"{VIEW}/run", "dbfs:/run", "hdfs://nowhere/run"])
def test_connect_is_refused_what_only_spark_reaches(path):
    with pytest.raises(ConfigError, match=r"output\.path .*pyarrow: ") as caught:
        run(RunConfig.from_dict(config_of("in", path)), ConnectSession())
    assert "/Volumes/CATALOG/SCHEMA/VOLUME" in caught.value.mend


def test_rights_that_are_missing_are_told_in_hadoops_words(spark):
    """The root of a view may not be written."""
    with pytest.raises(
        ConfigError, match=r"InternalDir of ViewFileSystem is readonly.*\(AccessControlException\)"
    ):
        reach_storage(spark, "viewfs://tests/run", "output.path", writes=True)
    with pytest.raises(PermissionError):
        open_hadoop(spark, "viewfs://tests").create_dir("/run")


def test_a_store_that_does_not_answer_costs_no_minutes(spark, monkeypatch):
    monkeypatch.setattr(storage, "_PATIENCE", 0.1)
    never = threading.Event()
    monkeypatch.setattr(storage, "_reach", lambda *_: never.wait(5))
    with pytest.raises(ConfigError, match=r"no answer within 0\.1 seconds"):
        reach_storage(spark, "s3://lake/run", "output.path", writes=True)
    never.set()


def test_input_that_only_spark_reads_is_let_through(spark, monkeypatch):
    def fails(*_):
        raise SparkDbpError("s3://KEY:SECRET@lake/: no credentials")

    monkeypatch.setattr(storage, "_reach", fails)
    reach_storage(spark, "s3://lake/in/*.parquet", "input.path", is_needed=False)
    with pytest.raises(ConfigError, match="no credentials") as caught:
        reach_storage(spark, "s3://lake/in/*.parquet", "run")
    assert "SECRET" not in str(caught.value)


def test_a_matrix_of_centroids_is_read_by_the_driver_or_else_by_spark(base, spark):
    matrix, sink = np.eye(3, dtype=np.float32), io.BytesIO()
    np.save(sink, matrix)
    files.write_bytes(f"{base}/c [1].npy", sink.getvalue())
    given = GivenCentroids(spark, f"{base}/c [1].npy")
    by_driver = given.take_snapshot()
    mounts.unmount("viewfs://tests")
    assert given.take_snapshot() == by_driver
    assert given.read()[1].tolist() == matrix.tolist()


def test_commands_on_a_run_that_only_spark_opens(base, spark, capsys):
    """The commands take the session that is there, and reach the store through it."""
    mounts.unmount("viewfs://tests")
    for command in (["verify"], ["sweep"], ["select", "--out", f"{base}-2"]):
        assert main([command[0], base, *command[1:]]) == 3
        assert f"no finished run at {base}" in capsys.readouterr().err
    assert main(["clean", base]) == 3
    assert f"no run directory at {base}" in capsys.readouterr().err
    for command in ("verify", "sweep", "clean"):
        assert main([command, base, "--set", "prune.keep_ratio=0.1"]) == 2
        assert f"{command} takes no settings but spark.*" in capsys.readouterr().err
