"""A run directory on an object store, which renames nothing, knows no directories and locks nothing.

The store is moto's S3 server. Spark reads and writes S3 with jars that its wheel lacks: without them, what the
driver and the workers do through pyarrow is tested. `make test-s3a` fetches the jars and adds a whole run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pytest
import yaml
from conftest import config_of, make_embeddings, make_keys, start_runs_at_once, write_table
from moto.server import ThreadedMotoServer
from pyarrow import fs

from spark_dbp import KeepTrie, RunConfig, open_run, run
from spark_dbp.engine.arrow import CommittedTable, map_batches
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.errors import ConfigError, InputError, SparkDbpError
from spark_dbp.io.listing import list_paths
from spark_dbp.io.passed_over import PassedOver
from spark_dbp.lake import files, lock, parquet_files
from spark_dbp.lake.store import open_run_directory
from spark_dbp.stages.keep_trie import build_keep_trie


@pytest.fixture(scope="module")
def credentials():
    """What Python needs to reach the server, as environment variables."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    values = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        fs.FileSystem.from_uri("s3://lake/?allow_bucket_creation=true")[0].create_dir("lake")
        yield values
    server.stop()


@pytest.fixture
def base(credentials, request):
    """A place of the test's own in the bucket."""
    return f"s3a://lake/{request.node.name}"


@pytest.fixture
def workers(spark, credentials):
    """The session, with the credentials in the environment of its workers."""
    spark.sparkContext.environment.update(credentials)
    yield spark
    for name in credentials:
        del spark.sparkContext.environment[name]


def count(calls):
    def build(writer):
        calls.append(1)
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), b"123")
        writer.report("numbers", rows=3)

    return build


@pytest.mark.parametrize("name", ["plain", "a b", "run#1", "pct%20x", "what?", "é", "a+b=c"])
def test_paths_are_taken_as_they_are(credentials, name):
    base = f"s3://lake/names/{name}"
    files.write_bytes(files.join(base, "_draft", "file"), name.encode())
    files.publish(files.join(base, "_draft"), ["file"], base)
    assert name in files.list_names("s3a://lake/names")
    assert files.list_names(base) == ["file"]
    assert files.read_bytes(files.join(base, "file")) == name.encode()


def test_what_lies_under_a_path_is_listed(base):
    names = ["a.parquet", "_b.parquet", "c=1/d.parquet", "x [1]/e.parquet", "_temporary/0/f.parquet", ".h/g"]
    for name in names:
        files.write_bytes(files.join(base, name), b"PAR1 and more")

    def read(*entries: str) -> list[str]:
        listing = list_paths([entry.replace("BASE", base) for entry in entries])
        assert not listing.unchecked
        read = PassedOver("", listing, None).is_read
        return sorted(path.removeprefix(f"{base}/") for path in read)

    assert read("BASE/a.parquet", "BASE/c=1") == ["a.parquet", "c=1/d.parquet"]
    assert read("BASE/[ax]*") == ["a.parquet", "x [1]/e.parquet"]
    assert read("BASE/{c=1,x*}/*.parquet", r"BASE/x \[1\]/none") == ["c=1/d.parquet", "x [1]/e.parquet"]
    listing = list_paths([f"{base}/"])
    assert [name for _, name in listing.known] == ["_temporary"]
    with pytest.raises(InputError, match=r"1 Parquet file: _b\.parquet"):
        PassedOver("input.path", listing, [f"{base}/c=1/d.parquet", f"{base}/a.parquet"]).check(list)
    with pytest.raises(InputError, match=r"is named more than once"):
        twice = [f"{base}/a.parquet", f"{base.replace('s3a', 's3')}/[!_]*.parquet"]
        PassedOver("input.path", list_paths(twice), None).check(list)
    files.write_bytes(files.join(base, "_delta_log", "00000000000000000000.json"), b"{}")
    with pytest.raises(InputError, match=r"lies in, or holds, the folder .* of a table \(Delta\)"):
        PassedOver("input.path", list_paths([f"{base}/c=1/*"]), None).check(list)
    (reason,) = list_paths(["gopher://x/y"]).unchecked.values()
    assert "cannot open 'gopher://x/'" in reason


def test_directories_are_there_while_they_hold_something(base):
    assert not files.exists(base)
    assert files.list_names(base) == []
    files.delete(base)
    names = [f"{number:04d}" for number in range(40)]
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda name: files.touch(files.join(base, "many", name)), names))
    assert files.list_names(files.join(base, "many")) == names
    files.publish(files.join(base, "many"), names[:-1], files.join(base, "other"))
    assert files.list_names(files.join(base, "other")) == names[:-1]
    assert not files.exists(files.join(base, "many"))
    files.delete(base)
    assert not files.exists(base)


def test_stages_commit_and_are_reused(base):
    calls: list = []
    for _ in range(2):
        with open_run_directory(base) as store:
            store.reuse_or_build("count", "Counting", {"rows": 1}, count(calls))
            store.commit({"summary": {}, "config": {}, "accounting": {}})
    assert len(calls) == 1
    assert open_run(base).document["reused_stages"] == ["count"]
    assert not files.exists(files.join(base, "lock.json"))
    files.delete(open_run(base).table_path("numbers"))
    with open_run_directory(base) as store:
        store.reuse_or_build("count", "Counting", {"rows": 1}, count(calls))
    assert len(calls) == 2


def test_a_failed_stage_leaves_a_directory_that_can_be_used(base):
    def fail(writer):
        files.write_bytes(files.join(writer.new_directory("numbers"), "data"), b"half")
        raise InputError("no good")

    with pytest.raises(InputError), open_run_directory(base) as store:
        store.reuse_or_build("count", "Counting", {}, fail)
    with pytest.raises(InputError, match=r"no run\.json"):
        open_run(base)
    assert files.measure_tree(base) == 0
    with open_run_directory(base) as store:
        store.reuse_or_build("count", "Counting", {}, count([]))


def test_a_directory_that_holds_something_else_is_refused(base):
    files.write_bytes(files.join(base, "thesis.tex"), b"precious")
    with pytest.raises(ConfigError, match=r"thesis\.tex"), open_run_directory(base):
        pass


def test_of_runs_that_start_at_once_one_goes_on(base, monkeypatch):
    monkeypatch.setattr(lock, "SETTLED", 0.3)
    assert start_runs_at_once(base) == [False, False, True]
    with open_run_directory(base):
        pass


def test_a_store_that_does_not_answer_is_told_with_a_mend(credentials, monkeypatch):
    with pytest.raises(SparkDbpError, match="nobucket") as caught, open_run_directory("s3://nobucket/run"):
        pass
    assert "credentials" in caught.value.mend
    with pytest.raises(FileNotFoundError):
        files.read_bytes("s3://lake/nothing")


def test_workers_write_tables_and_read_them(workers, base, tmp_path):
    def doubled(batches):
        for batch in batches:
            numbers = batch.column(0).to_numpy()
            columns = {"key": numbers.astype(str), "cluster_id": pa.array(2 * numbers, pa.int32())}
            yield pa.RecordBatch.from_pydict(columns)

    frame = workers.createDataFrame([("rest", -1)], "key STRING, cluster_id INT")
    path = files.join(base, "table")
    written = MappedRows(workers.range(0, 1000, 1, 3), doubled, frame.schema, frame).write_parquet(path)
    names = written.names
    assert files.list_names(path) == sorted(names)  # no draft
    assert len(names) == 4  # three tasks' files and the rest's
    rows = parquet_files.read_parquet(path)
    expected = [("rest", -1), *((str(i), 2 * i) for i in range(1000))]
    assert sorted(zip(*rows.to_pydict().values(), strict=True)) == sorted(expected)

    notes = files.join(base, ".progress")
    table = CommittedTable(workers, path, frame, progress=notes, names=tuple(names))
    back = map_batches(table, ["key"], lambda batches: batches, "key STRING").collect()
    assert sorted(row.key for row in back) == sorted(key for key, _ in expected)
    [one_pass] = files.list_names(notes)
    done = [int(name.rpartition("-")[2]) for name in files.list_names(files.join(notes, one_pass))]
    assert sum(done) == 1001

    manifest = build_keep_trie(table, files.join(base, "trie"), 1001, shards=3)
    assert (manifest["n_keys"], manifest["n_shards"]) == (1001, 3)
    keep = KeepTrie.open(files.join(base, "trie"))
    assert keep.contains_many(["rest", "7", "999", "1000", ""]).tolist() == [True, True, True, False, False]


def test_a_task_that_fails_leaves_no_file_in_the_table(workers, base):
    def failing(batches):
        for batch in batches:
            numbers = batch.column(0).to_numpy()
            yield pa.RecordBatch.from_pydict({"key": numbers, "cluster_id": numbers.astype("int32")})
        raise ValueError("no good")

    schema = workers.createDataFrame([], "key BIGINT, cluster_id INT").schema
    with pytest.raises(Exception, match="no good"):
        MappedRows(workers.range(0, 10, 1, 2), failing, schema).write_parquet(base)
    assert [name for name in files.list_names(base) if not name.startswith("_draft-")] == []


def test_forked_loader_workers_read_the_trie(workers, base):
    """Data loaders fork after the parent has opened the trie."""
    frame = workers.createDataFrame([(str(i),) for i in range(100)], "key STRING")
    # Workers read and write themselves here: Spark has no connector to this store.
    written = MappedRows(frame, lambda batches: batches, frame.schema).write_parquet(f"{base}/keys")
    names = tuple(written.names)
    build_keep_trie(CommittedTable(workers, f"{base}/keys", frame, names=names), base, 100, shards=4)
    program = f"""
from multiprocessing import get_context
from spark_dbp import KeepTrie
keep = KeepTrie.open({base!r})
def kept(_): return int(keep.contains_many([str(i) for i in range(200)]).sum())
with get_context("fork").Pool(3) as pool: print(pool.map(kept, range(3)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout) == [100, 100, 100]


def s3a_settings(credentials):
    """What Spark needs to reach the server, its credentials among it, without the ``spark.`` before each name."""
    return {
        "jars": os.environ["SPARK_DBP_S3A_JARS"],
        "driver.memory": "1g",
        "sql.shuffle.partitions": "4",
        "hadoop.fs.s3a.endpoint": credentials["AWS_ENDPOINT_URL"],
        "hadoop.fs.s3a.path.style.access": "true",
        "hadoop.fs.s3a.aws.credentials.provider": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
        "hadoop.fs.s3a.access.key": "testing",
        "hadoop.fs.s3a.secret.key": "testing",
        # Times without a unit, which every hadoop-aws understands.
        "hadoop.fs.s3a.threads.keepalivetime": "60",
        "hadoop.fs.s3a.connection.establish.timeout": "5000",
        "hadoop.fs.s3a.connection.timeout": "200000",
        "hadoop.fs.s3a.connection.request.timeout": "0",
        "hadoop.fs.s3a.multipart.purge.age": "86400",
    }


@pytest.mark.s3a
def test_a_whole_run_is_the_same_as_on_a_disk(spark, credentials, tmp_path):
    settings = s3a_settings(credentials)
    lines = [f"spark.{name} {value}\n" for name, value in settings.items()]
    (tmp_path / "spark-defaults.conf").write_text("".join(lines))
    source = write_table(tmp_path / "in", make_keys(2000), make_embeddings(2000, 16, 6), n_files=3)
    for file in source.iterdir():
        files.write_bytes(f"s3://lake/whole/in/{file.name}", file.read_bytes())
    there = "s3a://lake/whole/run #1 é"
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(config_of("s3a://lake/whole/in/", there)))

    def start(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "spark_dbp", *map(str, arguments)],
            capture_output=True, text=True, timeout=300, env={**os.environ, "SPARK_CONF_DIR": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        return done

    start("run", tmp_path / "conf.yaml")
    first = open_run(there)
    local = run(RunConfig.from_dict(config_of(source, tmp_path / "out")), spark)
    assert first.document["digests"] == local.document["digests"]
    kept = {row.key for row in local.keep_list(spark).collect()}
    assert {key for key in make_keys(2000) if key in first.keep_trie()} == kept
    start("verify", there)
    assert "Writing the trie: reused" in start("run", tmp_path / "conf.yaml").stderr


@pytest.mark.s3a
def test_keys_that_only_spark_has_are_enough(spark, credentials, tmp_path):
    """Neither this process nor the workers find credentials, or even the server: `AWS_*` is not set."""
    source = write_table(tmp_path / "in", make_keys(2000), make_embeddings(2000, 16, 6), n_files=3)
    for file in source.iterdir():
        files.write_bytes(f"s3://lake/keys/in/{file.name}", file.read_bytes())
    there = "s3a://lake/keys/run #1 é"
    settings = {f"spark.{name}": value for name, value in s3a_settings(credentials).items()}
    values = config_of("s3a://lake/keys/in/", there, spark=settings)
    (tmp_path / "conf.yaml").write_text(yaml.safe_dump(values))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}

    def start(*arguments):
        done = subprocess.run(
            [sys.executable, "-m", "spark_dbp", *map(str, arguments)],
            capture_output=True, text=True, timeout=600, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert "testing" not in done.stdout + done.stderr  # the key
        return done

    given = [f"{name}={value}" for name, value in settings.items()]
    first = start("run", tmp_path / "conf.yaml").stderr
    assert "s3a://lake is reached by the Hadoop file system of the Spark session (pyarrow: " in first
    made = open_run(there)  # this process has the credentials
    local = run(RunConfig.from_dict(config_of(source, tmp_path / "out")), spark)
    assert made.document["digests"] == local.document["digests"]
    assert "testing" not in json.dumps(made.document)
    assert "Writing the trie: reused" in start("run", tmp_path / "conf.yaml").stderr
    start("verify", there, "--set", *given)
    start("select", there, "--set", "prune.keep_ratio=0.2", *given, "--out", f"{there} 2")
    assert open_run(f"{there} 2").document["rows"]["keep_list"] == 400
    assert "nothing to delete" in start("clean", there, "--set", *given).stdout
