"""Check rows of the input, and turn them into samples. Imports numpy, pyarrow, `columns` and kernels.

`stages.ingest` has the same checks as Spark SQL, for rows that no worker sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from spark_dbp.columns import CLUSTER_ID, DIMENSION, DISTANCE, KEY, PROBLEM, VECTOR
from spark_dbp.kernels.row_hash import sum_hashes
from spark_dbp.kernels.vectors import normalize_embeddings, slice_rows

NULL_KEY = "null key"
NULL_CLUSTER = "null cluster_id"
BAD_CLUSTER = "cluster_id below 0 or above 2147483647"
BAD_DISTANCE = "distance_to_centroid null, NaN or outside [0, 2]"
# What is wrong with the shape of an embedding, as Spark has found.
SHAPE = "shape"

# For equal or opposite vectors, 1 - cos computed in float32 may lie outside [0, 2] by this much.
DISTANCE_SLACK = 1e-5
_MOST_CLUSTERS = 2**31 - 1


def make_samples(batches: Iterator[pa.RecordBatch], binary_type: str) -> Iterator[pa.RecordBatch]:
    """Check rows, and turn embeddings into unit vectors.

    Parameters
    ----------
    batches : iterator of RecordBatch
        ``key``; where given ``cluster_id`` of an integer type, ``distance_to_centroid`` of a float type,
        ``vector`` as `vectors.is_embedding_type` accepts it, ``shape`` STRING; and any other columns.
    binary_type : str
        What the bytes of BINARY embeddings are (see `vectors.BINARY_TYPES`).

    Yields
    ------
    RecordBatch
        Columns as `stages.ingest.ingest` returns.

    Examples
    --------
    >>> rows = pa.RecordBatch.from_pydict({"key": ["a", None], "cluster_id": [3, -1]})
    >>> next(make_samples(iter([rows]), "float32")).to_pydict()
    {'key': ['a', None], 'cluster_id': [3, None], 'problem': [None, 'null key']}
    """
    for batch in batches:
        row_bytes = batch.nbytes // max(1, batch.num_rows) if VECTOR in batch.schema.names else 0
        for rows in slice_rows(batch.num_rows, row_bytes):
            yield _make_samples(batch.slice(rows.start, rows.stop - rows.start), binary_type)


def _make_samples(rows: pa.RecordBatch, binary_type: str) -> pa.RecordBatch:
    columns = dict(zip(rows.schema.names, rows.columns, strict=True))
    problems = [_where(columns[KEY].is_null(), NULL_KEY)] if columns[KEY].null_count else []
    if CLUSTER_ID in columns:
        columns[CLUSTER_ID], found = _check_cluster_ids(columns[CLUSTER_ID])
        problems += found
    if DISTANCE in columns:
        columns[DISTANCE], found = _check_distances(columns[DISTANCE])
        problems += found
    if SHAPE in columns:
        problems.append(columns.pop(SHAPE))
    made = {}
    if VECTOR in columns:
        vectors, dimensions, found = normalize_embeddings(columns.pop(VECTOR), binary_type)
        problems.append(found)
        made = {VECTOR: vectors, DIMENSION: dimensions}
    problem = pc.coalesce(*problems) if problems else pa.nulls(rows.num_rows, pa.string())
    return pa.RecordBatch.from_pydict({**columns, PROBLEM: problem, **made})


def _where(is_bad: pa.Array, problem: str) -> pa.Array:
    return pc.if_else(is_bad, pa.scalar(problem), pa.scalar(None, pa.string()))


def _check_cluster_ids(given: pa.Array) -> tuple[pa.Array, list[pa.Array]]:
    """The cluster ids as INT, null where they are bad, and what is wrong with each, if any is."""
    ends = pc.min_max(given)
    low, high = ends["min"].as_py(), ends["max"].as_py()
    if given.null_count == 0 and (low is None or (low >= 0 and high <= _MOST_CLUSTERS)):
        return given.cast(pa.int32()), []
    is_good = pc.and_(pc.greater_equal(given, 0), pc.less_equal(given, _MOST_CLUSTERS))
    problems = [_where(given.is_null(), NULL_CLUSTER), _where(pc.invert(is_good), BAD_CLUSTER)]
    return pc.if_else(is_good, given, None).cast(pa.int32()), [pc.coalesce(*problems)]


def _check_distances(given: pa.Array) -> tuple[pa.Array, list[pa.Array]]:
    """The distances as FLOAT in [0, 2], null where they are bad, and what is wrong with each."""
    numbers: npt.NDArray[np.float64] = given.to_numpy(zero_copy_only=False).astype(np.float64)
    # Null is NaN here, and a comparison to NaN is false.
    is_good = (numbers >= -DISTANCE_SLACK) & (numbers <= 2 + DISTANCE_SLACK)
    clipped = np.clip(numbers, 0.0, 2.0).astype(np.float32) + np.float32(0)  # which makes -0.0 to 0.0
    if is_good.all():
        return pa.array(clipped), []
    return pa.array(clipped, mask=~is_good), [_where(pa.array(~is_good), BAD_DISTANCE)]


def count_samples(rows: pa.Table, hashes: npt.NDArray[np.uint64]) -> dict[str, int]:
    """Count samples by what is wrong with them, and good ones by the dimension of their vectors.

    Parameters
    ----------
    rows : Table
        From `make_samples`.
    hashes : ndarray of uint64
        Of their keys.

    Returns
    -------
    dict of str to int
        ``rows``, ``bytes``; ``problem X`` for each problem; ``dimension D`` and ``keys D`` for good rows,
        their number and the sum of the hashes of their keys. Without vectors, D is empty.
    """
    counted: Counter[str] = Counter({"rows": rows.num_rows, "bytes": rows.nbytes})
    problem = rows.column(PROBLEM)
    is_good = np.ones(rows.num_rows, dtype=np.bool_)
    if problem.null_count < rows.num_rows:
        is_good = problem.is_null().to_numpy()
        for found in pc.value_counts(problem.drop_null()):
            counted[f"problem {found['values']}"] = found["counts"].as_py()
    if DIMENSION in rows.column_names:
        dimension = rows.column(DIMENSION).to_numpy()
        for value in np.unique(dimension[is_good]):
            of_this = is_good & (dimension == value)
            counted[f"dimension {int(value)}"] = int(of_this.sum())
            counted[f"keys {int(value)}"] = sum_hashes(hashes[of_this])
    elif is_good.any():
        counted["dimension "] = int(is_good.sum())
        counted["keys "] = sum_hashes(hashes[is_good])
    return dict(counted)
