"""Hashes of rows against the xxhash library. `tests/spark/test_digest.py` has them against Spark."""

from __future__ import annotations

import struct

import pyarrow as pa
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_dbp.kernels.row_hash import hash_rows, sum_hashes


def fold(raws: list[bytes | None]) -> int:
    row_hash = 42
    for raw in raws:
        row_hash = row_hash if raw is None else xxhash.xxh64_intdigest(raw, seed=row_hash)
    return row_hash


ROWS = st.lists(
    st.tuples(
        st.none() | st.binary(max_size=150),
        st.none() | st.integers(-(2**31), 2**31 - 1),
        st.none() | st.floats(width=32, allow_nan=False).map(lambda x: x or 0.0),
        st.none() | st.integers(-(2**63), 2**63 - 1),
    ),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(ROWS, st.integers(0, 20))
def test_equals_the_library(rows, start):
    """Also of arrays that begin in the middle of their buffers."""
    types = [pa.binary(), pa.int32(), pa.float32(), pa.int64()]
    columns = [pa.array(column, kind) for column, kind in zip(zip(*rows, strict=True), types, strict=True)]
    start = min(start, len(rows) - 1)
    packed = [
        [None if value is None else pack(value) for value, pack in zip(row, PACK, strict=True)]
        for row in rows
    ]
    found = hash_rows([column.slice(start) for column in columns])
    assert found.tolist() == [fold(row) for row in packed[start:]]


PACK = (bytes, struct.Struct("<i").pack, struct.Struct("<f").pack, struct.Struct("<q").pack)


def test_many_rows_of_one_length_and_of_every_length():
    for texts in ([f"{i:012d}" for i in range(20_000)], ["é" * (i % 90) for i in range(20_000)]):
        found = hash_rows([pa.array(texts)])
        assert found[::777].tolist() == [fold([text.encode()]) for text in texts[::777]]
        assert sum_hashes(found) == sum(found.tolist()) % 2**64


@pytest.mark.parametrize(
    "lengths", [[n] * 50 for n in (32, 40, 44, 64, 96)] + [[40, 48, 56], [48, 40], [64, 88, 72]]
)
@pytest.mark.parametrize("start", [0, 1])
def test_values_that_lie_side_by_side(lengths, start):
    """Those of one length are read where they lie; others of as many pieces of 32 bytes are not."""
    values = [bytes(range(i, i + length)) for i, length in enumerate(lengths)]
    found = hash_rows([pa.array(values, pa.binary()).slice(start)])
    assert found.tolist() == [fold([value]) for value in values[start:]]


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="timestamp"):
        hash_rows([pa.array([1], pa.timestamp("us"))])


def test_no_rows():
    assert sum_hashes(hash_rows([pa.array([], pa.string())])) == 0
