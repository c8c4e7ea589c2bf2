"""Shuffling rows as blocks."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from spark_dbp.engine import blocks, compat
from spark_dbp.engine.blocks import (
    BLOCKS,
    invert_hash,
    number_tasks,
    read_parts,
    shuffle_blocks,
    split_into_blocks,
)


@pytest.mark.parametrize("n_parts", [1, 2, 7, 200, 1000])
def test_every_part_has_a_partition_of_its_own(spark, n_parts):
    from pyspark.sql import functions as F

    numbers = spark.createDataFrame([(int(number),) for number in invert_hash(n_parts)], "number INT")
    partition = F.expr(f"pmod(hash(number), {n_parts})")
    assert numbers.select(partition).distinct().count() == n_parts


@pytest.mark.parametrize(("at_a_time", "n_parts", "n_tasks"), [(3, 5, None), (1000, 5, None), (1000, 20, 4)])
def test_parts_arrive_whole_and_once(spark, at_a_time, n_parts, n_tasks):
    tasks = number_tasks(spark.range(1), n_tasks or n_parts)

    def split(batches):
        import spark_dbp.engine.blocks as parts

        before, parts._GATHERED = parts._GATHERED, at_a_time  # the worker's, which other tests use too
        try:
            pieces = (b.slice(i, 2) for b in batches for i in range(0, len(b), 2))
            yield from split_into_blocks(pieces, n_parts, part_of, tasks)
        finally:
            parts._GATHERED = before

    def part_of(table):
        return table.column("id").to_numpy() % n_parts

    def name(batches):
        from pyspark import TaskContext

        task = TaskContext.get().partitionId()
        for part, rows in read_parts(batches):
            ids = rows.column("id").combine_chunks()
            same = [pa.array([number] * len(ids)) for number in (task, part)]
            yield pa.RecordBatch.from_arrays([*same, ids], ["task", "part", "id"])

    rows = spark.range(0, 1000, 1, 4).mapInArrow(split, BLOCKS)
    schema = "task BIGINT, part BIGINT, id BIGINT"
    found = shuffle_blocks(rows, n_tasks or n_parts).mapInArrow(name, schema).toPandas()
    assert sorted(found["id"]) == list(range(1000))
    assert (found["id"] % n_parts == found["part"]).all()
    # One run of rows a part: none came in two pieces.
    assert int(np.count_nonzero(np.diff(found["part"], prepend=-1))) == n_parts
    parts_of_task = found.groupby("task")["part"].nunique()
    assert parts_of_task.tolist() == [n_parts // (n_tasks or n_parts)] * (n_tasks or n_parts)


def test_the_inverted_hash_serves_where_partitions_cannot_be_chosen(spark, monkeypatch):
    """As before Spark 4.1: every task gets its parts by the hash."""
    monkeypatch.setattr(compat, "can_choose_partitions", lambda frame: False)
    monkeypatch.setattr(blocks, "can_choose_partitions", lambda frame: False)
    test_parts_arrive_whole_and_once(spark, 1000, 20, 4)


def test_gathering_stops_at_bytes_too():
    from spark_dbp.engine.arrow import gather_batches

    batches = [pa.RecordBatch.from_pydict({"x": np.zeros(1000)}) for _ in range(10)]
    assert [table.num_rows for table in gather_batches(iter(batches), 10**6, 16_000)] == [2000] * 5
