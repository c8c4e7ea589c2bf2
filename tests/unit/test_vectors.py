"""Arrow columns to matrices: every accepted form, slices, nulls, and what ails a row."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from spark_dbp.kernels import vectors as v

RAW = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)


def forms():
    rows = RAW.tolist()
    return {
        "list<float>": pa.array(rows, pa.list_(pa.float32())),
        "list<double>": pa.array(rows, pa.list_(pa.float64())),
        "large_list<float>": pa.array(rows, pa.large_list(pa.float32())),
        "fixed_size_list<float>": pa.array(rows, pa.list_(pa.float32(), 4)),
        "binary": pa.array([row.tobytes() for row in RAW], pa.binary()),
        "large_binary": pa.array([row.tobytes() for row in RAW], pa.large_binary()),
    }


@pytest.mark.parametrize("form", forms())
@pytest.mark.parametrize("cut", [(0, 9), (2, 5), (8, 1), (4, 0)])
def test_every_form_reads_the_same_also_as_a_slice(form, cut):
    array = forms()[form]
    assert v.is_embedding_type(array.type)
    part = array.slice(*cut)
    groups, problems = v.group_by_dimension(part)
    assert problems.tolist() == [None] * cut[1]
    if cut[1] == 0:
        assert groups == []
        return
    ((rows, matrix),) = groups
    assert rows.tolist() == list(range(cut[1]))
    assert matrix.astype(np.float32).tolist() == RAW[cut[0] : cut[0] + cut[1]].tolist()


@pytest.mark.parametrize("form", forms())
def test_null_rows_between_good_ones(form):
    array = forms()[form]
    mask = pa.array([i % 3 != 1 for i in range(9)])
    import pyarrow.compute as pc

    with_nulls = (
        pc.if_else(mask, array, pa.scalar(None, array.type))
        if "fixed" not in form
        else pa.array([row if i % 3 != 1 else None for i, row in enumerate(RAW.tolist())], array.type)
    )
    vectors, dimensions, problems = v.normalize_embeddings(with_nulls.slice(1))
    good = [i for i in range(1, 9) if i % 3 != 1]
    assert problems.to_pylist() == [None if i in good else v.NULL_EMBEDDING for i in range(1, 9)]
    assert dimensions.to_pylist() == [4 if i in good else None for i in range(1, 9)]
    kept = v.to_matrix(vectors.drop_null())
    expected = RAW[good] / np.linalg.norm(RAW[good].astype(float), axis=1, keepdims=True)
    assert np.allclose(kept, expected, atol=1e-7)


def test_each_problem_is_told_apart():
    array = pa.array(
        [
            [1.0, 2.0],
            None,
            [1.0, None],
            [np.nan, 1.0],
            [np.inf, 1.0],
            [0.0, 0.0],
            [],
            [1.0, 2.0, 3.0],
            [3.0, 4.0],
        ]
    )
    vectors, dimensions, problems = v.normalize_embeddings(array)
    assert problems.to_pylist() == [
        None,
        v.NULL_EMBEDDING,
        v.NULL_ELEMENT,
        v.NOT_FINITE,
        v.NOT_FINITE,
        v.ZERO_VECTOR,
        v.EMPTY_EMBEDDING,
        None,
        None,
    ]
    assert dimensions.to_pylist() == [2, None, None, None, None, None, None, 3, 2]
    assert [None if x is None else len(x) for x in vectors.to_pylist()] == [8, *[None] * 6, 12, 8]


def test_broken_bytes():
    _, _, problems = v.normalize_embeddings(pa.array([b"12345", b"", RAW[0].tobytes()], pa.binary()))
    assert problems.to_pylist() == [v.BROKEN_BINARY.format("float32"), v.EMPTY_EMBEDDING, None]


def test_doubles_beyond_float32_keep_their_direction():
    vectors, _, problems = v.normalize_embeddings(pa.array([[3e300, 4e300], [3e-300, 4e-300]]))
    assert problems.to_pylist() == [None, None]
    assert v.to_matrix(vectors).round(6).tolist() == np.float32([[0.6, 0.8], [0.6, 0.8]]).tolist()


@pytest.mark.parametrize("bad", [[None, b"1234"], [b"1234", b"12345678"], [b"123"]])
def test_matrix_of_refuses_what_is_no_matrix(bad):
    with pytest.raises(ValueError, match="null or of different lengths"):
        v.to_matrix(pa.array(bad, pa.binary()))


def test_a_tile_is_bounded():
    sizes = [s.stop - s.start for s in v.slice_rows(10_000, 65_536)]
    assert sum(sizes) == 10_000
    assert max(sizes) * 65_536 <= 16 << 20
    assert [s.stop for s in v.slice_rows(3, 1 << 30)] == [1, 2, 3]


def test_half_floats_are_read_from_lists_of_two_bytes():
    """As Spark hands them on: also of a slice, with nulls and values of other lengths among them."""
    halves = np.float16([[1.5, -2], [3, 4], [0.5, 65504], [7, 8]])
    items = [[value.tobytes() for value in row] for row in halves]
    rows = [items[0], None, [items[1][0], None], [b"abc", b"ab"], [], items[1], items[2], items[3]]
    for type_ in (pa.list_(pa.binary()), pa.list_(pa.large_binary()), pa.large_list(pa.binary())):
        groups, problems = v.group_by_dimension(pa.array(rows, type_).slice(1, 6))
        assert problems.tolist() == [
            v.NULL_EMBEDDING,
            v.NULL_ELEMENT,
            v.BROKEN_HALVES,
            v.EMPTY_EMBEDDING,
            None,
            None,
        ]
        ((numbers, matrix),) = groups
        assert numbers.tolist() == [4, 5]
        assert matrix.dtype == np.float32
        assert matrix.tolist() == halves[1:3].tolist()


def test_half_floats_of_fixed_size_lists_and_of_no_rows():
    array = pa.array([[b"\0\x3c", b"\0\xc0"]], pa.list_(pa.binary(), 2))
    assert v.group_by_dimension(array)[0][0][1].tolist() == [[1.0, -2.0]]
    assert v.group_by_dimension(array[:0])[0] == []
    assert v.is_embedding_type(array.type)
