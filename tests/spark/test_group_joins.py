"""Rows joined to groups of which one may have most of the rows: the same as a join, and no task gets all of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import rows_of
from pyspark.sql import functions as F

from spark_dbp.engine import group_joins
from spark_dbp.engine.group_joins import join_groups
from spark_dbp.stages import minhash_dedup
from spark_dbp.stages.exact_dedup import exact_dedup


@contextmanager
def settings(spark, **values: str) -> Iterator[None]:
    names = {"adaptive": "spark.sql.adaptive.enabled", "broadcast": "spark.sql.autoBroadcastJoinThreshold"}
    before = {names[name]: spark.conf.get(names[name]) for name in values}
    for name, value in values.items():
        spark.conf.set(names[name], value)
    try:
        yield
    finally:
        for name, value in before.items():
            spark.conf.set(name, value)


def count_in_partitions(frame) -> list[int]:
    def count(batches):
        import pyarrow as pa

        yield pa.RecordBatch.from_arrays([pa.array([sum(batch.num_rows for batch in batches)])], ["n"])

    return [row.n for row in frame.mapInArrow(count, "n BIGINT").collect()]


@pytest.mark.parametrize("same_hash", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_is_a_join(spark, monkeypatch, same_hash):
    """For groups of any size, also where the hashes of different groups are equal."""
    monkeypatch.setattr(group_joins, "_SLICE_ROWS", 10)
    rows = spark.range(400).selectExpr(
        "concat('k', id) AS key", "if(id < 150, 0, id % (id % 37 + 1)) AS a", "if(id % 3 = 0, 'x', 'y') AS b"
    )
    groups = rows.groupBy("a", "b").agg(F.min("key").alias("first"), F.count(F.lit(1)).alias("times"))
    assert groups.where("times > 10").count() > 2
    expected = rows_of(rows.join(groups, ["a", "b"]))
    if same_hash:
        monkeypatch.setattr(F, "xxhash64", lambda *columns: F.lit(7).cast("bigint"))
    joined = join_groups(rows, groups, ["a", "b"])
    assert joined.columns == ["a", "b", "key", "first", "times"]
    with settings(spark, broadcast="-1"):
        assert rows_of(joined) == expected
    few = groups.where("times > 1 AND a <> 3")
    assert rows_of(join_groups(rows, few, ["a", "b"])) == rows_of(rows.join(few, ["a", "b"]))


@pytest.mark.parametrize(
    ("n_rows", "slice_rows"), [(40_000, 200), pytest.param(500_000, 2_500, marks=pytest.mark.slow)]
)
def test_a_value_that_half_of_all_rows_share_is_spread_over_the_tasks(
    spark, tmp_path, monkeypatch, capsys, n_rows, slice_rows
):
    monkeypatch.setattr(group_joins, "_SLICE_ROWS", slice_rows)
    popular = "concat('url', if(id % 2 = 0, 0, if(id % 5 = 0, 1, id div 3)))"
    spark.range(0, n_rows, 1, 4).selectExpr("concat('k', id) AS key", f"{popular} AS url").write.parquet(
        str(tmp_path / "in")
    )
    frame = spark.read.parquet(str(tmp_path / "in"))
    with settings(spark, adaptive="false", broadcast="-1"):
        found = exact_dedup(frame, columns=["url"])
        rows = count_in_partitions(found)
        found.explain()
    assert sum(rows) == n_rows - frame.select("url").distinct().count()
    assert max(rows) < 1.8 * sum(rows) / len(rows), rows
    # The rows are read once to group them and once to join them, though the groups are used three times.
    plan = capsys.readouterr().out
    assert plan.count("FileScan parquet") == 2, plan
    assert plan.count("ReusedExchange") == 2, plan


@pytest.mark.slow
def test_a_text_that_half_of_all_rows_share_is_spread_over_the_tasks(spark, tmp_path, monkeypatch):
    monkeypatch.setattr(group_joins, "_SLICE_ROWS", 100)
    text = "if(id % 2 = 0, 'one and the same caption', concat('caption ', sha2(string(id div 4), 256)))"
    frame = spark.range(0, 20_000, 1, 4).selectExpr("concat('k', id) AS key", f"{text} AS caption")
    with settings(spark, adaptive="false", broadcast="-1"):
        found = minhash_dedup.minhash_dedup(frame, column="caption", scratch=str(tmp_path))
        rows = count_in_partitions(found)
    assert sum(rows) == 20_000 - 5001
    assert max(rows) < 0.5 * sum(rows), rows
    firsts = {row.duplicate_of for row in found.select("duplicate_of").distinct().collect()}
    assert "k0" in firsts and len(firsts) == 5001
