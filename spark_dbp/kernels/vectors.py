"""Convert between Arrow columns and float32 matrices. Imports pyarrow, numpy and `geometry`.

Embeddings come as lists (of variable or fixed size) of float, of double or of BINARY (half floats, 2 bytes
each), or as BINARY (float32, float64 or float16, little endian). Vectors are stored as BINARY (float32,
little endian), which is read without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from spark_dbp.columns import CENTROID, CLUSTER_ID
from spark_dbp.kernels.geometry import FloatMatrix, normalize_rows

NULL_EMBEDDING = "null embedding"
NULL_ELEMENT = "null inside the embedding"
NOT_FINITE = "NaN or Inf in the embedding"
ZERO_VECTOR = "zero vector"
EMPTY_EMBEDDING = "empty embedding"
BROKEN_BINARY = "embedding bytes are not a whole number of {} values"
BROKEN_HALVES = "embedding elements are not half floats of 2 bytes"
NPY_BYTES = "embedding bytes are an .npy file, not bare numbers"

# Bytes of a column that are decoded at once, so that a worker's memory does not grow with Spark's batch size.
_TILE_BYTES = 16 << 20

FLOAT32 = np.dtype("<f4")
# Types that BINARY embeddings may hold, little endian.
BINARY_TYPES: dict[str, np.dtype[Any]] = {
    "float32": FLOAT32,
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
}
_NPY_MAGIC = np.frombuffer(b"\x93NUMPY", np.uint8)


def slice_rows(n_rows: int, row_bytes: int) -> Iterator[slice]:
    """Slices of `n_rows` rows that hold at most `_TILE_BYTES` each, but at least one row."""
    step = max(1, _TILE_BYTES // max(1, row_bytes))
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _validity(array: pa.Array) -> npt.NDArray[np.bool_]:
    if array.null_count == 0:
        return np.ones(len(array), dtype=np.bool_)
    return np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)


def _flat_values(array: pa.Array) -> tuple[pa.Array, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All values, and where each row starts and how long it is, in elements. Allows for slices and nulls."""
    n = len(array)
    if pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        starts = (np.arange(n, dtype=np.int64) + array.offset) * width
        return array.values, starts, np.full(n, width, dtype=np.int64)
    offsets = np.asarray(array.offsets.to_numpy(zero_copy_only=False), dtype=np.int64)
    return array.values, offsets[:-1], np.diff(offsets)


def _binary_values(
    array: pa.Array,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """All values as bytes, and where each row starts and how long it is, in bytes."""
    n = len(array)
    _, offset_buffer, data = array.buffers()
    offset_type = np.int64 if pa.types.is_large_binary(array.type) else np.int32
    if n == 0 or offset_buffer is None:
        return np.zeros(0, np.uint8), np.zeros(n, np.int64), np.zeros(n, np.int64)
    offsets = np.frombuffer(offset_buffer, dtype=offset_type, count=array.offset + n + 1)
    offsets = offsets[array.offset :]
    raw: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)
    if data is not None:
        raw = np.frombuffer(data, dtype=np.uint8)
    starts: npt.NDArray[np.int64] = offsets.astype(np.int64)
    return raw, starts[:-1], np.diff(starts)


def _gather(values: npt.NDArray[Any], starts: npt.NDArray[np.int64], width: int) -> npt.NDArray[Any]:
    """Rows of `width` elements from the flat `values`. A view where the rows follow one another."""
    if len(starts) == 0:
        return values[:0].reshape(0, width)
    if (np.diff(starts) == width).all():
        return values[starts[0] : starts[0] + len(starts) * width].reshape(-1, width)
    return values[starts[:, None] + np.arange(width)]


def is_embedding_type(arrow_type: pa.DataType) -> bool:
    """Whether `group_by_dimension` reads arrays of this type."""
    if pa.types.is_binary(arrow_type) or pa.types.is_large_binary(arrow_type):
        return True
    is_list = (
        pa.types.is_list(arrow_type)
        or pa.types.is_large_list(arrow_type)
        or pa.types.is_fixed_size_list(arrow_type)
    )
    return is_list and arrow_type.value_type in (pa.float32(), pa.float64(), pa.binary(), pa.large_binary())


def group_by_dimension(
    array: pa.Array, binary_type: str = "float32"
) -> tuple[list[tuple[npt.NDArray[np.int64], FloatMatrix]], npt.NDArray[np.object_]]:
    """One matrix for each dimension that occurs in `array`, and what is wrong with the other rows.

    Parameters
    ----------
    array : pyarrow.Array
        Of a type that `is_embedding_type` accepts.
    binary_type : str
        What the bytes of BINARY are, one of `BINARY_TYPES`.

    Returns
    -------
    groups : list of (rows, matrix)
        Row numbers (m,), and their values (m, dim), of a float type. The values may be a view of `array`.
    problems : ndarray of object, shape (n,)
        None for a good row, else one of this module's texts.

    Examples
    --------
    >>> groups, problems = group_by_dimension(pa.array([[1.0, 2.0], None, [3.0, 4.0]]))
    >>> groups[0][0].tolist(), groups[0][1].tolist(), problems.tolist()
    ([0, 2], [[1.0, 2.0], [3.0, 4.0]], [None, 'null embedding', None])
    """
    problems = np.full(len(array), None, dtype=object)
    problems[~_validity(array)] = NULL_EMBEDDING
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        item = BINARY_TYPES[binary_type]
        raw, starts, lengths = _binary_values(array)
        problems[_is_npy(raw, starts, lengths) & (problems == None)] = NPY_BYTES  # noqa: E711
        broken = (lengths % item.itemsize != 0) & (problems == None)  # noqa: E711
        problems[broken] = BROKEN_BINARY.format(binary_type)
        groups = _group(raw, starts, lengths, problems)
        return [(r, np.ascontiguousarray(m).view(item)) for r, m in groups], problems
    values, starts, lengths = _flat_values(array)
    if pa.types.is_binary(values.type) or pa.types.is_large_binary(values.type):
        values, starts = _cut_to_rows(values, starts, lengths)
        flat, is_half = _read_halves(values)
        is_broken = np.concatenate([[0], np.cumsum(~is_half)])
        has_broken = is_broken[starts + lengths] > is_broken[starts]
        problems[has_broken & (problems == None)] = BROKEN_HALVES  # noqa: E711
    else:
        flat = values.to_numpy(zero_copy_only=False)  # nulls become NaN
    if values.null_count:
        is_null = np.concatenate([[0], np.cumsum(~_validity(values))])
        has_null = is_null[starts + lengths] > is_null[starts]
        problems[has_null & (problems == None)] = NULL_ELEMENT  # noqa: E711
    return _group(flat, starts, lengths, problems), problems


def _is_npy(
    raw: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    found = lengths >= len(_NPY_MAGIC)
    for number, byte in enumerate(_NPY_MAGIC):  # the first byte rules out nearly all rows
        rows = np.flatnonzero(found)
        found[rows] = raw[starts[rows] + number] == byte
    return found


@dataclass(frozen=True)
class Sizes:
    """How large the numbers are that bytes hold, if they are of one type.

    Attributes
    ----------
    low, high : float
        Nine tenths of the values that are finite and not 0 lie between these, by magnitude.
    spread : float
        Standard deviation of the binary logarithm of the magnitudes: 1.6 for a normal distribution.
    zeros : float
        Share of zeros.
    """

    low: float
    high: float
    spread: float
    zeros: float

    @property
    def is_likely(self) -> bool:
        """Whether these can be the components of embeddings, which differ by a few powers of ten."""
        return self.spread <= 4 and self.zeros <= 0.2


def measure_sizes(array: pa.BinaryArray) -> dict[str, Sizes]:
    """How large the numbers would be, for each type that the bytes of BINARY embeddings may have.

    Bytes of one type that are read as another give numbers of any size.

    Parameters
    ----------
    array : pyarrow.BinaryArray

    Returns
    -------
    dict of str to Sizes
        By name in `BINARY_TYPES`, without those of which some bytes are not a whole number of values.

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(50, 3))
    >>> {name: round(sizes.spread, 1) for name, sizes in measure_sizes(to_binary_rows(rows)).items()}
    {'float32': 48.6, 'float64': 1.5, 'float16': 7.7}
    """
    found = {}
    for name in BINARY_TYPES:
        groups, problems = group_by_dimension(array, name)
        if not (problems == BROKEN_BINARY.format(name)).any():
            with np.errstate(invalid="ignore"):  # NaN of another kind
                values = [np.abs(matrix.astype(np.float64)).ravel() for _, matrix in groups]
            found[name] = _measure_sizes(np.concatenate([np.zeros(0), *values]))
    return found


def _measure_sizes(sizes: npt.NDArray[np.float64]) -> Sizes:
    used = sizes[np.isfinite(sizes) & (sizes > 0)]
    if not len(used):
        return Sizes(0.0, 0.0, 0.0, float(len(sizes) > 0))
    low, high = np.quantile(used, [0.05, 0.95])
    return Sizes(float(low), float(high), float(np.log2(used).std()), float((sizes == 0).mean()))


def _cut_to_rows(
    values: pa.Array, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]
) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """Of the values of a longer array those of these rows, and where each row starts in them."""
    if len(starts) == 0:
        return values[:0], starts
    first = int(starts.min())
    return values.slice(first, int((starts + lengths).max()) - first), starts - first


def _read_halves(values: pa.Array) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Half floats of 2 bytes each as float32, and which values are such; nulls are NaN, and count as such."""
    raw, starts, lengths = _binary_values(values)
    is_valid = _validity(values)
    flat = np.full(len(values), np.nan, dtype=np.float32)
    rows = np.flatnonzero(is_valid & (lengths == BINARY_TYPES["float16"].itemsize))
    flat[rows] = np.ascontiguousarray(_gather(raw, starts[rows], BINARY_TYPES["float16"].itemsize)).view(
        BINARY_TYPES["float16"]
    )[:, 0]
    return flat, ~is_valid | (lengths == BINARY_TYPES["float16"].itemsize)


def _group(
    flat: npt.NDArray[Any],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int64],
    problems: npt.NDArray[np.object_],
) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[Any]]]:
    good = problems == None  # noqa: E711
    problems[good & (lengths == 0)] = EMPTY_EMBEDDING
    good &= lengths > 0
    groups = []
    for width in np.unique(lengths[good]):
        rows = np.flatnonzero(good & (lengths == width))
        groups.append((rows, _gather(flat, starts[rows], int(width))))
    return groups


def normalize_embeddings(
    array: pa.Array, binary_type: str = "float32"
) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Turn an embedding column into unit vectors.

    Parameters
    ----------
    array : pyarrow.Array
        Of a type that `is_embedding_type` accepts, n rows.
    binary_type : str
        What the bytes of BINARY are, one of `BINARY_TYPES`.

    Returns
    -------
    vectors : pyarrow.BinaryArray
        float32 little endian, unit norm, on the grid; null for a row with a problem.
    dimensions : pyarrow.Int32Array
        Null for a row with a problem.
    problems : pyarrow.StringArray
        What is wrong with the row; null for a good one.

    Examples
    --------
    >>> vectors, dimensions, problems = normalize_embeddings(pa.array([[3.0, 4.0], [0.0, 0.0]]))
    >>> to_matrix(vectors[:1]).round(1).tolist(), dimensions.to_pylist(), problems.to_pylist()
    ([[0.6000000238418579, 0.800000011920929]], [2, None], [None, 'zero vector'])
    """
    groups, problems = group_by_dimension(array, binary_type)
    dimensions = np.zeros(len(array), dtype=np.int32)
    parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]] = []
    for rows, matrix in groups:
        finite = np.isfinite(matrix).all(axis=1)
        if not finite.all():
            problems[rows[~finite]] = NOT_FINITE
            rows, matrix = rows[finite], matrix[finite]
        vectors, is_zero = normalize_rows(matrix)
        if is_zero.any():
            problems[rows[is_zero]] = ZERO_VECTOR
            rows, vectors = rows[~is_zero], vectors[~is_zero]
        dimensions[rows] = matrix.shape[1]
        parts.append((rows, vectors))
    return (
        _binary_array(parts, len(array)),
        pa.array(dimensions, pa.int32(), mask=dimensions == 0),
        pa.array(problems, pa.string()),
    )


def _binary_array(
    parts: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]], n_rows: int
) -> pa.BinaryArray:
    if len(parts) == 1 and len(parts[0][0]) == n_rows:
        return to_binary_rows(parts[0][1])
    items: list[bytes | None] = [None] * n_rows
    for rows, vectors in parts:
        for row, vector in zip(rows, vectors, strict=True):
            items[row] = vector.tobytes()
    return pa.array(items, pa.binary())


def to_binary_rows(matrix: npt.NDArray[Any]) -> pa.BinaryArray:
    """One BINARY value for each row of `matrix`, without a copy.

    Examples
    --------
    >>> to_binary_rows(np.array([[1.0]], dtype="<f4")).to_pylist()
    [b'\\x00\\x00\\x80?']
    """
    matrix = np.ascontiguousarray(matrix)
    n, width = matrix.shape
    offsets = np.arange(n + 1, dtype=np.int32) * (width * matrix.itemsize)
    return pa.Array.from_buffers(pa.binary(), n, [None, pa.py_buffer(offsets), pa.py_buffer(matrix)])


def to_matrix(array: pa.Array, dtype: npt.DTypeLike = FLOAT32) -> npt.NDArray[Any]:
    """Matrix from a BINARY column whose rows all hold the same number of values.

    Parameters
    ----------
    array : pyarrow.BinaryArray
        n rows, none null.
    dtype : dtype, default float32 little endian

    Returns
    -------
    ndarray, shape (n, dim)
        A view of the array where possible.

    Raises
    ------
    ValueError
        For null rows or rows of different lengths.

    Examples
    --------
    >>> to_matrix(to_binary_rows(np.array([[1.0, 2.0]], dtype="<f4"))).tolist()
    [[1.0, 2.0]]
    """
    item = np.dtype(dtype)
    raw, starts, lengths = _binary_values(array)
    if len(array) == 0:
        return np.zeros((0, 0), dtype=item)
    width = int(lengths[0])
    if array.null_count or (lengths != width).any() or width % item.itemsize:
        raise ValueError(
            "vectors are null or of different lengths; use the rows that ingest found no problem in"
        )
    return np.ascontiguousarray(_gather(raw, starts, width)).view(item)


def make_centroids_table(cluster_ids: npt.NDArray[np.int32], centroids: npt.NDArray[np.float32]) -> pa.Table:
    """The centroids table: ``cluster_id`` INT, ``centroid`` ARRAY<FLOAT>.

    Parameters
    ----------
    cluster_ids : ndarray of int32, shape (k,)
    centroids : ndarray of float32, shape (k, dim)

    Returns
    -------
    pyarrow.Table
        `split_centroids_table` undoes it.
    """
    k, dim = centroids.shape
    offsets = pa.array(np.arange(k + 1, dtype=np.int32) * dim)
    values = pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(centroids).ravel()))
    return pa.table({CLUSTER_ID: pa.array(cluster_ids, pa.int32()), CENTROID: values})


def split_centroids_table(table: pa.Table) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Cluster ids, shape (k,), and centroids, shape (k, dim), from a centroids table.

    Examples
    --------
    >>> ids, centroids = split_centroids_table(make_centroids_table(np.array([3]), np.array([[1.0, 0.0]])))
    >>> ids.tolist(), centroids.tolist()
    ([3], [[1.0, 0.0]])
    """
    table = table.combine_chunks()
    values = table.column(CENTROID).combine_chunks().flatten().to_numpy()
    return table.column(CLUSTER_ID).to_numpy(), values.reshape(table.num_rows, -1)
