"""What belongs to a table is what Spark reads or workers wrote, whatever a listing shows beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from conftest import config_of, make_embeddings, make_keys, write_table
from pyspark.sql import DataFrameReader, DataFrameWriter

from spark_dbp import RunConfig, open_run, prune_again, run
from spark_dbp.engine.arrow import CommittedTable, list_file_names, map_batches
from spark_dbp.engine.mapped_rows import MappedRows, WrittenFile, WrittenRows
from spark_dbp.errors import DamagedRunError, SparkDbpError
from spark_dbp.explore.verify import verify
from spark_dbp.lake import files
from spark_dbp.stages import keep_trie

N = 300


@pytest.fixture
def uncommitted(monkeypatch):
    """A platform on which a failed attempt's files stay visible in the tables that Spark writes.

    Spark does not read them there, as its own notes say which files are committed. Here a filter does that.
    """
    write, read = DataFrameWriter.parquet, DataFrameReader.parquet
    planted = []

    def write_and_plant(self, path, *rest, **more):
        write(self, path, *rest, **more)
        folder = Path(path.removeprefix("file://"))
        planted.append(folder / "uncommitted-0.parquet")
        shutil.copy(next(folder.glob("part-*.parquet")), planted[-1])

    def read_committed(self, *paths, **more):
        return read(self.option("pathGlobFilter", "[!u]*"), *paths, **more)

    monkeypatch.setattr(DataFrameWriter, "parquet", write_and_plant)
    monkeypatch.setattr(DataFrameReader, "parquet", read_committed)
    return planted


@pytest.mark.slow
def test_files_of_a_failed_attempt_are_no_part_of_a_table(spark, uncommitted, tmp_path):
    source = write_table(tmp_path / "in", make_keys(N), make_embeddings(N, 8, 5), n_files=2)
    config = RunConfig.from_dict({**config_of(source, tmp_path / "run"), "engine": "sql"})
    done = run(config, spark)
    leftovers = {path.parent.parent.name: path for path in uncommitted if path.exists()}
    assert leftovers.keys() == {"samples", "assignments", "keep_list"}
    for stage, table in (("ingest", "samples"), ("assign", "assignments"), ("select", "keep_list")):
        assert done.document["stages"][stage]["ignored"] == {table: [leftovers[table].name]}
        assert leftovers[table].name not in done.document["stages"][stage]["files"][table]
    leftover = leftovers["samples"]
    assert done.document["rows"]["samples"] == N
    assert len(verify(done, spark)) == 9  # the answer is that of the rows once
    assert "ingest" in run(config, spark).document["reused_stages"]
    again = prune_again(done, str(tmp_path / "again"), ["prune.keep_ratio=0.5"], spark)
    assert again.document["rows"]["keep_list"] == N // 2

    # What comes later is damage, whether Spark reads it or not.
    later = leftover.with_name("uncommitted-1.parquet")
    shutil.copy(leftover, later)
    with pytest.raises(DamagedRunError, match=rf"table samples .*'{later.name}' does not belong to it"):
        verify(open_run(done.path), spark)
    assert "ingest" not in run(config, spark).document["reused_stages"]


def test_workers_read_the_named_files_only(spark, tmp_path):
    path = str(tmp_path / "table")
    spark.range(0, 100, 1, 4).selectExpr("cast(id as string) key").write.parquet(path)
    frame = spark.read.parquet(path)
    names = list_file_names(frame)
    assert names == sorted(files.list_sizes(path))
    assert len(names) == 4

    def count(table):
        return map_batches(table, ["key"], lambda batches: batches, "key STRING").count()

    shutil.copy(tmp_path / "table" / names[0], tmp_path / "table/part-planted.parquet")
    assert count(CommittedTable(spark, path, frame, names=tuple(names))) == 100
    assert count(CommittedTable(spark, path, frame)) == 100  # those that `frame` reads
    assert count(CommittedTable(spark, path, frame, names=tuple(names[:3]))) == 75


@pytest.mark.parametrize("what", ["one more", "one less"])
def test_spark_must_read_what_workers_wrote(spark, tmp_path, monkeypatch, what):
    source = write_table(tmp_path / "in", make_keys(N), make_embeddings(N, 8, 5))
    original = MappedRows.write_parquet

    def write_parquet(self, path, *more):
        written = original(self, path, *more)
        if "/assignments/" not in path:
            return written
        if what == "one less":
            return WrittenRows([*written.files, WrittenFile("part-lost.parquet")])
        shutil.copy(Path(path) / written.names[0], Path(path) / "part-planted.parquet")
        return written

    monkeypatch.setattr(MappedRows, "write_parquet", write_parquet)
    told = {
        "one more": "'part-planted.parquet' was not written, and lies there",
        "one less": "'part-lost.parquet' was written, and is not there",
    }
    with pytest.raises(SparkDbpError, match=f"table assignments: file {told[what]}"):
        run(RunConfig.from_dict(config_of(source, tmp_path / "run")), spark)


def test_shards_of_a_repeated_task_never_lie_in_the_trie(spark, tmp_path, monkeypatch):
    """Neither one from before the driver heard of all shards, nor one that comes after."""
    drafts = []
    original = files.publish

    def publish(draft, names, to):
        drafts.append(draft)
        keep_trie._write_shard(draft, 0, 1, b"of another attempt")
        original(draft, names, to)
        keep_trie._write_shard(draft, 0, 1, b"too late")

    monkeypatch.setattr(files, "publish", publish)
    keys = spark.range(0, 1000, 1, 4).selectExpr("cast(id as string) key", "1 cluster_id")
    path = str(tmp_path / "trie")
    manifest = keep_trie.build_keep_trie(keys, path, 1000, shards=3)
    assert len(drafts) == 1
    assert sorted(files.list_sizes(path)) == sorted(
        ["manifest.json", *(shard["file"] for shard in manifest["shards"])]
    )
