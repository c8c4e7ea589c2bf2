"""The real command on inputs with types that Spark does not know: it goes through, and says what it left out."""

from __future__ import annotations

import uuid

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
import pytest
from bad_inputs import DIM, Case, N, in_files, prepare
from conftest import make_embeddings, rows_of

from spark_dbp import open_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(pyspark.__version__.startswith("3.5."), reason="Spark 3.5 cannot read half floats"),
]


def test_uuids_as_keys_half_floats_and_an_unused_column(command, spark, tmp_path):
    """Cases 22, 24 and 31 in one, with an empty part in front; the answer is that of float32 rows."""
    rows = make_embeddings(N, DIM, 3).astype(np.float16)
    ids = [uuid.UUID(int=1_000_003 * number).bytes for number in range(N)]
    more = {"created": pa.array(np.arange(N), pa.timestamp("ns"))}
    halves = pa.array(list(rows), pa.list_(pa.float16()))
    floats = pa.array(rows.astype(np.float32).tolist(), pa.list_(pa.float32()))
    kept = []
    for name, key, embedding in (
        ("in", pa.array(ids, pa.uuid()), halves),
        ("plain", pa.array(ids, pa.binary()), floats),
    ):
        case = Case(
            0,
            [],
            lambda path, k=key, e=embedding: in_files(path, pa.table({"key": k, "embedding": e, **more})),
        )
        (tmp_path / name).mkdir()
        prepare(tmp_path / name, case)
        empty = pa.table({"key": pa.nulls(0), "embedding": pa.nulls(0)})
        pq.write_table(empty, tmp_path / name / "in/0.parquet")
        done = command(["run", tmp_path / name / "conf.yaml"])
        assert done.code == 0, done.err
        for word in ("0.parquet has no rows", "left out", "'created' (TIMESTAMP(NANOS)", "nanosAsLong=true"):
            assert word in done.err
        kept.append(rows_of(open_run(tmp_path / name / "run").keep_list(spark)))
    assert kept[0] == kept[1]
    assert {bytes(row[0]) for row in kept[0]} < set(ids)
    assert len(kept[0]) == 18
