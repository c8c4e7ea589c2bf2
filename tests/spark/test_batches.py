"""Workers get Arrow batches of bounded size, whatever the input says about the width of its rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from conftest import config_of, make_keys, write_table

from spark_dbp import RunConfig, prune_again, run, verify
from spark_dbp.engine import session
from spark_dbp.engine.row_bytes import count_row_bytes

try:
    from pyspark.sql.classic.dataframe import DataFrame
except ImportError:  # before Spark 4 there was one class
    from pyspark.sql import DataFrame

DIM, N = 16_384, 120


@pytest.fixture
def largest_batch(tmp_path, monkeypatch):
    """Most bytes of a batch that a worker got from Spark since the last call."""
    folder = tmp_path / "batches"
    folder.mkdir()
    original = DataFrame.mapInArrow

    def map_in_arrow(frame, function, *rest, **more):
        def noted(batches):
            def seen():
                for batch in batches:
                    (folder / f"{batch.nbytes}").touch()
                    yield batch

            yield from function(seen())

        return original(frame, noted, *rest, **more)

    def ask() -> int:
        sizes = [int(note.name) for note in folder.iterdir()]
        for note in folder.iterdir():
            note.unlink()
        return max(sizes)

    monkeypatch.setattr(DataFrame, "mapInArrow", map_in_arrow)
    return ask


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["a view", "files that compress well"])
def test_batches_of_wide_embeddings_are_bounded(spark, tmp_path, monkeypatch, largest_batch, kind):
    bound = 1 << 20
    monkeypatch.setattr(session, "_BATCH_BYTES", bound)
    given = {"cluster_id": "cid"}
    if kind == "a view":
        spark.sql(
            f"SELECT concat('k', id) AS key, transform(sequence(1, {DIM}), i -> float(i % (id + 2))) AS embedding, "
            f"int(id % 3) AS cid, 'unused' AS other FROM range(0, {N}, 1, 2)"
        ).createOrReplaceTempView("wide_view")
        config = config_of("", tmp_path / "run", dedup={"semantic": {"eps": 0.01}})
        config["input"] = {"table": "wide_view", **given}
    else:
        rows = np.repeat(np.eye(N, 1, dtype=np.float32) + 1, DIM, axis=1)
        ids = np.arange(N, dtype=np.int32) % 3
        source = write_table(tmp_path / "in", make_keys(N), rows, cid=ids)
        config = config_of(source, tmp_path / "run", input=given, dedup={"exact": {"columns": ["key"]}})
    del config["cluster"]
    done = run(RunConfig.from_dict(config), spark)
    info = done.document["stages"]["ingest"]["info"]
    assert 4 * DIM < info["row_bytes"] < 4.1 * DIM
    if kind == "a view":
        assert 4 * DIM < done.document["input"]["bytes"] / N < 4.1 * DIM
        assert bound / 4 < largest_batch() <= bound  # of all steps, ingest's with the embeddings too
    else:
        largest_batch()
    again = prune_again(done, str(tmp_path / "again"), ["prune.which_to_keep=random"], spark)
    assert largest_batch() <= bound
    assert len(verify(again, spark)) == 9
    assert largest_batch() <= bound
    assert spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") == "10000"


def test_bytes_of_a_row(spark):
    frame = spark.sql(
        "SELECT 'äb' AS `a.b`, cast('xyz' AS BINARY) AS b, array(1F, 2F, null) AS c, array('ab', 'c') AS d, "
        "named_struct('x y', 1, 'z', array(1D)) AS e, map('k', 1) AS f, cast(null AS STRING) AS g, "
        "cast(null AS ARRAY<FLOAT>) AS h, array(array(1F, 2F), array(3F)) AS i, 1L AS j, DATE'2020-01-01' AS k"
    )
    parts = {"a.b": 3, "b": 3, "c": 12, "d": 3, "e": 12, "f": 64, "g": 0, "h": 0, "i": 12, "j": 8, "k": 4}
    for ansi in ("true", "false"):
        before = spark.conf.get("spark.sql.ansi.enabled")
        spark.conf.set("spark.sql.ansi.enabled", ansi)
        try:
            assert frame.select(count_row_bytes(frame)).collect()[0][0] == sum(parts.values())
        finally:
            spark.conf.set("spark.sql.ansi.enabled", before)
    floats = spark.createDataFrame(pa.table({"v": [[1.0] * 100]}).to_pandas())
    assert floats.select(count_row_bytes(floats)).collect()[0][0] == 800
