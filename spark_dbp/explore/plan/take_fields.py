"""Make of columns as files have them what Spark makes of them: fields of structs, lists of vectors.

Imports `engine.forms`, `kernels` and numpy; pyarrow in functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.engine.forms import NOT_ONE_BY_D

if TYPE_CHECKING:
    import pyarrow as pa

# Of sparse vectors so many bytes are written out at most.
_MOST_BYTES = 64 << 20


def find_top(names: list[str], name: str) -> str | None:
    """The column of a file that has a column, or a field, of this name; None without one.

    Examples
    --------
    >>> find_top(["a", "a.b"], "a.b"), find_top(["a"], "a.b.c"), find_top(["a"], "b")
    ('a.b', 'a', None)
    """
    if name in names:
        return name
    return next((one for one in names if name.startswith(f"{one}.")), None)


def take_field(column: pa.ChunkedArray, rest: str) -> pa.ChunkedArray | None:
    """A field inside structs, on the way of `columns.find_path`; of structs in a list, a list.

    Parameters
    ----------
    column : pyarrow.ChunkedArray
    rest : str
        Names of the fields on the way, with dots between them, which they may have themselves.

    Returns
    -------
    pyarrow.ChunkedArray or None
        None where there is no such field.

    Examples
    --------
    >>> import pyarrow as pa
    >>> take_field(pa.chunked_array([[{"b": {"c": 1}}, None]]), "b.c").to_pylist()
    [1, None]
    """
    import pyarrow as pa

    array = column.combine_chunks()
    found = _take(array, rest)
    return None if found is None else pa.chunked_array([found])


def _take(array: Any, rest: str) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    if _is_list(array.type):
        lists = _to_lists(array)
        found = _take(lists.values, rest)
        return None if found is None else _with_values(lists, found)
    if not pa.types.is_struct(array.type):
        return None
    for number, item in enumerate(array.type):
        if item.name == rest:
            return pc.struct_field(array, [number])
        if rest.startswith(f"{item.name}."):
            found = _take(pc.struct_field(array, [number]), rest[len(item.name) + 1 :])
            if found is not None:
                return found
    return None


def take_vectors(array: pa.Array) -> tuple[pa.Array, pa.Array]:
    """Vectors as `engine.forms.to_embedding_column` makes them, and what is wrong with the shape of each.

    Of arrays of one array the inner one, of arrays of structs of one field that field, of vectors of
    pyspark.ml their values. What is left has a type that `kernels.vectors.is_embedding_type` may know.

    Examples
    --------
    >>> import pyarrow as pa
    >>> vectors, problems = take_vectors(pa.array([[[1.0, 2.0]], [[3.0], [4.0]], None]))
    >>> vectors.to_pylist(), problems.is_valid().to_pylist()
    ([[1.0, 2.0], None, None], [False, True, False])
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    problems = pa.nulls(len(array), pa.string())
    if pa.types.is_struct(array.type) and {"size", "indices", "values"} <= {one.name for one in array.type}:
        return _write_out(array), problems
    while _is_list(array.type):
        inner = array.type.value_type
        if pa.types.is_struct(inner) and inner.num_fields == 1:
            lists = _to_lists(array)
            array = _with_values(lists, pc.struct_field(lists.values, [0]))
        elif _is_list(inner):
            lists = _to_lists(array)
            is_one = pc.equal(lists.value_lengths(), 1).fill_null(False)
            is_odd = pc.and_(lists.is_valid(), pc.invert(is_one))
            problems = pc.if_else(is_odd, pa.scalar(NOT_ONE_BY_D), problems)
            starts = pc.if_else(is_one, lists.offsets[:-1], pa.scalar(None, pa.int64()))
            array = lists.values.take(starts)
        else:
            kind = pa.float32() if pa.types.is_float16(inner) else pa.float64()
            if pa.types.is_integer(inner) or pa.types.is_decimal(inner) or pa.types.is_float16(inner):
                array = array.cast(pa.list_(kind))  # as Spark hands on numbers of other types
            break
    return array, problems


def _write_out(array: Any) -> Any:
    """The values of vectors of pyspark.ml; sparse ones are null after some bytes, so look at few."""
    import pyarrow as pa

    values, left = [], _MOST_BYTES
    for one in array.to_pylist():
        if one is None or one["indices"] is None:
            values.append(None if one is None else one["values"])
        elif left < 0:
            values.append(values[-1])
        else:
            dense = np.zeros(one["size"])
            dense[one["indices"]] = one["values"]
            values.append(dense)
            left -= dense.nbytes
    return pa.array(values, pa.list_(pa.float64()))


def _is_list(kind: Any) -> bool:
    import pyarrow as pa

    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _to_lists(array: Any) -> Any:
    """A list of any kind, sliced or not, as a list with offsets of 64 bits."""
    import pyarrow as pa

    whole = array.take(pa.array(np.arange(len(array))))  # a slice has offsets that pyarrow takes no mask for
    return whole.cast(pa.large_list(array.type.value_type))


def _with_values(lists: Any, values: Any) -> Any:
    import pyarrow as pa

    mask = lists.is_null()
    return pa.LargeListArray.from_arrays(lists.offsets, values, mask=mask)
