"""Rows of the input checked in a worker, against the same in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dbp.kernels.row_hash import hash_rows
from spark_dbp.kernels.samples import (
    BAD_CLUSTER,
    BAD_DISTANCE,
    NULL_CLUSTER,
    NULL_KEY,
    count_samples,
    make_samples,
)

DISTANCES = (
    st.none() | st.floats(width=32) | st.floats(-1e-4, 2.0001) | st.sampled_from([-0.0, 2 + 1e-6, -1e-6])
)
ROWS = st.lists(
    st.tuples(
        st.none() | st.text(max_size=3),
        st.none()
        | st.integers(-(2**63), 2**63 - 1)
        | st.integers(-2, 5)
        | st.sampled_from([2**31 - 1, 2**31]),
        DISTANCES,
    ),
    min_size=1,
    max_size=30,
)


def check(key, cluster, distance):
    """Cluster and distance as they are written, and what is wrong."""
    good_cluster = cluster is not None and 0 <= cluster < 2**31
    good_distance = distance is not None and -1e-5 <= distance <= 2 + 1e-5
    problem = (
        NULL_KEY
        if key is None
        else NULL_CLUSTER
        if cluster is None
        else BAD_CLUSTER
        if not good_cluster
        else None
        if good_distance
        else BAD_DISTANCE
    )
    clipped = float(np.float32(min(2.0, max(0.0, distance)))) if good_distance else None
    return cluster if good_cluster else None, clipped, problem


@settings(deadline=None)
@given(ROWS)
def test_rows_of_clustered_data(rows):
    keys, clusters, distances = zip(*rows, strict=True)
    batch = pa.RecordBatch.from_pydict(
        {
            "key": pa.array(keys, pa.string()),
            "cluster_id": pa.array(clusters, pa.int64()),
            "distance_to_centroid": pa.array(distances, pa.float64()),
            "column_0": list(range(len(rows))),
        }
    )
    [made] = make_samples(iter([batch]), "float32")
    assert made.schema.field("cluster_id").type == pa.int32()
    assert made.schema.field("distance_to_centroid").type == pa.float32()
    found = zip(
        *(made.column(n).to_pylist() for n in ("cluster_id", "distance_to_centroid", "problem")), strict=True
    )
    assert list(found) == [check(*row) for row in rows]
    assert not any(
        math.copysign(1, d) < 0 for d in made.column("distance_to_centroid").drop_null().to_pylist()
    )
    assert made.column("column_0").to_pylist() == list(range(len(rows)))
    counted = count_samples(pa.Table.from_batches([made]), hash_rows([made.column("key")]))
    problems = [check(*row)[2] for row in rows]
    assert counted["rows"] == len(rows)
    assert counted.get("dimension ", 0) == problems.count(None)
    for problem in (NULL_KEY, NULL_CLUSTER, BAD_CLUSTER, BAD_DISTANCE):
        assert counted.get(f"problem {problem}", 0) == problems.count(problem)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int16(), pa.int32(), pa.int64()])
def test_cluster_ids_of_every_type(kind):
    batch = pa.RecordBatch.from_pydict({"key": ["a", "b"], "cluster_id": pa.array([5, 0], kind)})
    [made] = make_samples(iter([batch]), "float32")
    assert made.to_pydict() == {"key": ["a", "b"], "cluster_id": [5, 0], "problem": [None, None]}


def test_vectors_are_counted_by_dimension():
    embeddings = [[3.0, 4.0], None, [0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0]]
    shape = [None, None, None, None, "of another shape"]
    batch = pa.RecordBatch.from_pydict(
        {"key": list("abcde"), "vector": embeddings, "shape": pa.array(shape, pa.string())}
    )
    [made] = make_samples(iter([batch]), "float32")
    hashes = hash_rows([made.column("key")])
    counted = count_samples(pa.Table.from_batches([made]), hashes)
    del counted["bytes"]
    assert counted == {
        "rows": 5,
        "problem null embedding": 1,
        "problem zero vector": 1,
        "problem of another shape": 1,
        "dimension 2": 1,
        "keys 2": int(hashes[0]),
        "dimension 3": 1,
        "keys 3": int(hashes[3]),
    }
