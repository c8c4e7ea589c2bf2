"""Rows that workers write themselves."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.mapped_rows import MappedRows


def doubling(error=None):
    """A function that workers get by value: they cannot import this module."""

    def doubled(batches):
        for batch in batches:
            ids = batch.column(0).to_numpy()
            columns = {"key": ids.astype(str), "cluster_id": pa.array(2 * ids, pa.int64())}
            yield pa.RecordBatch.from_pydict(columns)
        if error is not None:
            raise ValueError(error)

    return doubled


def mapped(spark, n, rest=None, key="STRING", function=None):
    schema = spark.createDataFrame([], f"key {key}, cluster_id INT").schema
    return MappedRows(spark.range(0, n, 1, 3), function or doubling(), schema, rest)


def rows_of(frame):
    return sorted(map(tuple, frame.collect()))


def test_written_as_the_frame_has_it(spark, tmp_path):
    rest = spark.createDataFrame([("rest", -1)], "key STRING, cluster_id INT")
    mapped(spark, 1000, rest).write_parquet(str(tmp_path / "out"))
    back = spark.read.parquet(str(tmp_path / "out"))
    assert back.schema == mapped(spark, 1).schema
    assert rows_of(back) == sorted([("rest", -1), *((str(i), 2 * i) for i in range(1000))])
    assert len(list((tmp_path / "out").iterdir())) == 4  # three tasks' files and the rest's; no draft


def test_no_rows_leave_the_columns(spark, tmp_path):
    mapped(spark, 0).write_parquet(str(tmp_path / "out"))
    back = spark.read.parquet(str(tmp_path / "out"))
    assert (back.columns, back.count()) == (["key", "cluster_id"], 0)


def test_the_session_says_how_files_are_compressed(spark, tmp_path):
    name = "spark.sql.parquet.compression.codec"
    for codec, expected in [("zstd", "ZSTD"), ("uncompressed", "UNCOMPRESSED"), ("lz4_raw", "LZ4")]:
        spark.conf.set(name, codec)
        try:
            mapped(spark, 10).write_parquet(str(tmp_path / codec))
        finally:
            spark.conf.unset(name)
        file = next((tmp_path / codec).glob("*.parquet"))
        assert pq.read_metadata(file).row_group(0).column(0).compression == expected
        assert spark.read.parquet(str(tmp_path / codec)).count() == 10


def test_types_that_are_not_read_alike_go_through_spark(spark, tmp_path):
    def timed(batches):
        for batch in batches:
            times = batch.column(0).cast(pa.timestamp("us", "UTC"))
            yield pa.RecordBatch.from_arrays([times, batch.column(0).cast(pa.int32())], ["key", "cluster_id"])

    made = mapped(spark, 5, key="TIMESTAMP", function=timed)
    made.write_parquet(str(tmp_path / "out"))
    assert rows_of(spark.read.parquet(str(tmp_path / "out"))) == rows_of(made.to_frame())
    assert made.to_frame().count() == 5


def test_what_a_failed_task_left_is_not_in_the_table(spark, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(Exception, match="no more"):
        mapped(spark, 1_700_000, function=doubling("no more")).write_parquet(str(out))
    assert not list(out.glob("*.parquet"))
    assert list(out.iterdir()) and all(path.name.startswith("_draft-") for path in Path(out).iterdir())


def test_workers_leave_their_imports_out_of_collections(spark):
    def frozen(batches):
        import gc

        import pyarrow as pa

        for _ in batches:
            yield pa.RecordBatch.from_pydict({"n": [gc.get_freeze_count()]})

    counts = [row.n for row in map_in_arrow(spark.range(0, 4, 1, 4), frozen, "n BIGINT").collect()]
    assert len(counts) == 4
    assert all(count > 10_000 for count in counts)
