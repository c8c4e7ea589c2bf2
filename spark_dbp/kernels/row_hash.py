"""Spark's ``xxhash64`` of rows, in numpy, so that workers digest what they write. Imports numpy; pyarrow by
what it is given.

XXH64 is specified at https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md. Spark hashes the columns
of a row one after the other, each with the hash so far as its seed, the first with 42. The steps of the
algorithm are carried out for many rows at a time; calls of a library for each value of each row would take
five times as long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

U64 = np.uint64
Hashes = npt.NDArray[np.uint64]

_SEED = 42
_P1, _P2, _P3, _P4, _P5 = (
    U64(prime)
    for prime in (
        0x9E3779B185EBCA87,
        0xC2B2AE3D27D4EB4F,
        0x165667B19E3779F9,
        0x85EBCA77C2B2AE63,
        0x27D4EB2F165667C5,
    )
)
# Rows hashed at a time: what is held of them stays in the processor's cache.
_ROWS = 8192
# The same, of values that are read piece by piece where they lie.
_STRIPE_ROWS = 2048


def hash_rows(columns: Sequence[pa.Array], seeds: Hashes | None = None) -> Hashes:
    """Spark's ``xxhash64`` of each row.

    Parameters
    ----------
    columns : sequence of Array, m of them, each of length n
        Of numbers, text, bytes, booleans, dates or decimals; or lists or structs of these. Null values leave
        the hash as it is.
    seeds : ndarray of uint64, shape (n,), optional
        The hash of columns that come before these.

    Returns
    -------
    ndarray of uint64, shape (n,)

    Raises
    ------
    TypeError
        For other types.

    Examples
    --------
    >>> import pyarrow as pa
    >>> hash_rows([pa.array(["a", "b"]), pa.array([1, None], pa.int32())]).astype(np.int64).tolist()
    [-4810547614043336770, -6391946315847899181]
    """
    n_rows = len(columns[0]) if seeds is None else len(seeds)
    hashes = np.full(n_rows, _SEED, dtype=U64) if seeds is None else seeds.copy()
    with np.errstate(over="ignore"):
        for start in range(0, n_rows, _ROWS):
            rows = slice(start, start + _ROWS)
            for column in columns:
                hashes[rows] = _fold(column.slice(start, _ROWS), hashes[rows])
    return hashes


def sum_hashes(hashes: Hashes) -> int:
    """Sum of hashes modulo 2**64.

    Examples
    --------
    >>> sum_hashes(np.array([2**64 - 1, 3], dtype=np.uint64))
    2
    """
    return int(hashes.sum(dtype=U64))


def digest_rows(rows: pa.Table) -> str:
    """Digest of a small table, as `lake.digest` takes it with Spark.

    Examples
    --------
    >>> import pyarrow as pa
    >>> digest_rows(pa.table({"a": ["x", "y"]})) == digest_rows(pa.table({"a": ["y", "x"]}))
    True
    """
    return write_digest(sum(sum_hashes(hash_rows(batch.columns)) for batch in rows.to_batches()))


def write_digest(total: int) -> str:
    """A sum of hashes as 16 hexadecimal digits."""
    return f"{total % 2**64:016x}"


def _fold(values: pa.Array, seeds: Hashes) -> Hashes:
    """The hash of each value, with the seed of its row."""
    import pyarrow as pa

    if values.null_count:
        found = seeds.copy()
        rows = np.flatnonzero(values.is_valid().to_numpy(zero_copy_only=False))
        if len(rows):
            found[rows] = _fold(values.take(pa.array(rows)), seeds[rows])
        return found
    kind = values.type
    if pa.types.is_dictionary(kind):
        return _fold(values.dictionary_decode(), seeds)
    if pa.types.is_struct(kind):
        for field in values.flatten():
            seeds = _fold(field, seeds)
        return seeds
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _fold_lists(values, seeds)
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return _hash_texts(values, np.int32, seeds)
    if pa.types.is_large_string(kind) or pa.types.is_large_binary(kind):
        return _hash_texts(values, np.int64, seeds)
    if pa.types.is_decimal128(kind):
        return _hash_decimals(values, seeds)
    if pa.types.is_boolean(kind) or pa.types.is_date32(kind):
        values = values.cast(pa.int32())
    elif not (pa.types.is_signed_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind)):
        raise TypeError(f"a column of type {kind} cannot be hashed")
    numbers = values.to_numpy()
    if numbers.dtype.kind == "f":
        whole = np.uint32 if numbers.dtype.itemsize == 4 else U64
        # -0.0 is hashed as 0.0, and every NaN as the same one.
        numbers = np.where(np.isnan(numbers), numbers.dtype.type(np.nan), numbers + 0).view(whole)
    if numbers.dtype.itemsize == 8:
        return _hash_longs(numbers.view(U64), seeds)
    return _hash_ints(numbers.astype(np.int64) if numbers.dtype.kind == "i" else numbers, seeds)


def _fold_lists(values: pa.Array, seeds: Hashes) -> Hashes:
    """The hash over all items of each list; that of an empty list is its seed."""
    import pyarrow as pa

    lengths = values.value_lengths().to_numpy(zero_copy_only=False)
    order = np.argsort(-lengths, kind="stable")  # so the lists that have an item `i` come first
    starts = (np.cumsum(lengths) - lengths)[order]
    items, found = values.flatten(), seeds[order]
    counts = np.bincount(lengths)
    active = np.cumsum(counts[::-1])[::-1]  # how many lists are at least so long
    for i in range(1, len(counts)):
        rows = slice(0, active[i])
        found[rows] = _fold(items.take(pa.array(starts[rows] + (i - 1))), found[rows])
    seeds = seeds.copy()
    seeds[order] = found
    return seeds


def _hash_decimals(values: pa.Array, seeds: Hashes) -> Hashes:
    """Decimals of up to 18 digits are hashed as whole numbers, others as the bytes of theirs."""
    import pyarrow as pa

    if values.type.precision <= 18:
        halves = np.frombuffer(values.buffers()[1], dtype=U64)
        low = halves[2 * values.offset : 2 * (values.offset + len(values)) : 2]
        return _hash_longs(low, seeds)
    scale = values.type.scale
    whole = [int(value.scaleb(scale)) for value in _with_all_digits(values)]
    texts = [x.to_bytes((x if x >= 0 else ~x).bit_length() // 8 + 1, "big", signed=True) for x in whole]
    return _hash_texts(pa.array(texts, pa.binary()), np.int32, seeds)


def _with_all_digits(values: pa.Array) -> Iterable[Any]:
    import decimal

    with decimal.localcontext() as context:
        context.prec = 76
        yield from values.to_pylist()


def _hash_texts(values: pa.Array, offset_type: type[Any], seeds: Hashes) -> Hashes:
    """XXH64 of the bytes of each value."""
    _, offsets, content = values.buffers()
    ends = np.frombuffer(offsets, offset_type)[values.offset : values.offset + len(values) + 1]
    at, lengths = ends[:-1].astype(np.int64), np.diff(ends).astype(np.int64)
    if content is None or not len(content):
        content = b"\0"
    hashes = seeds + _P5
    long = np.flatnonzero(lengths >= 32)
    if len(long):
        hashes[long] = _hash_stripes(content, at[long], lengths[long], seeds[long])
    hashes += lengths.astype(U64)
    at += lengths // 32 * 32
    left = lengths % 32
    for i in range(3):
        rows = _select(left >= 8 * (i + 1))
        lanes = _round(U64(0), _read(content, "<u8", at[rows] + 8 * i))
        hashes[rows] = _rotate(hashes[rows] ^ lanes, 27) * _P1 + _P4
    at += left // 8 * 8
    left %= 8
    rows = _select(left >= 4)
    words = _read(content, "<u4", at[rows])
    hashes[rows] = _rotate(hashes[rows] ^ (words * _P1), 23) * _P2 + _P3
    at += left // 4 * 4
    left %= 4
    for i in range(3):
        rows = _select(left > i)
        ends = _read(content, "u1", at[rows] + i)
        hashes[rows] = _rotate(hashes[rows] ^ (ends * _P5), 11) * _P1
    return _mix(hashes)


def _hash_stripes(content: Any, at: Any, lengths: Any, seeds: Hashes) -> Hashes:
    """The part of XXH64 that goes over pieces of 32 bytes."""
    n_stripes = lengths // 32
    if not lengths[0] % 8 and (lengths == lengths[0]).all() and (np.diff(at) == lengths[0]).all():
        return _hash_even_stripes(content, int(at[0]), int(lengths[0]), int(n_stripes[0]), seeds)
    order = np.argsort(-n_stripes, kind="stable")  # so the values that have a stripe `i` come first
    at, seeds = at[order], seeds[order]
    active = np.cumsum(np.bincount(n_stripes)[::-1])[::-1]
    sums = [seeds + _P1 + _P2, seeds + _P2, seeds.copy(), seeds - _P1]
    for i in range(1, len(active)):
        rows = slice(0, active[i])
        for lane, held in enumerate(sums):
            held[rows] = _round(held[rows], _read(content, "<u8", at[rows] + (32 * (i - 1) + 8 * lane)))
    mixed = _merge_lanes(sums)
    found = np.empty_like(mixed)
    found[order] = mixed
    return found


def _hash_even_stripes(content: Any, at: int, length: int, n_stripes: int, seeds: Hashes) -> Hashes:
    """The same for values of one length that lie one after the other, such as vectors: in half the time."""
    found = np.empty_like(seeds)
    words = np.ndarray((len(seeds), length // 8), "<u8", content, at)
    for start in range(0, len(seeds), _STRIPE_ROWS):
        rows = slice(start, start + _STRIPE_ROWS)
        of_row = seeds[rows]
        held = np.stack([of_row + _P1 + _P2, of_row + _P2, of_row, of_row - _P1], axis=1)
        upper = np.empty_like(held)
        for i in range(n_stripes):
            np.multiply(words[rows, 4 * i : 4 * i + 4], _P2, out=upper)
            held += upper
            np.right_shift(held, U64(33), out=upper)
            held <<= U64(31)
            held |= upper
            held *= _P1
        found[rows] = _merge_lanes(list(held.T))
    return found


def _merge_lanes(sums: list[Hashes]) -> Hashes:
    mixed = np.zeros_like(sums[0])
    for held, bits in zip(sums, (1, 7, 12, 18), strict=True):
        mixed += _rotate(held, bits)
    for held in sums:
        mixed = (mixed ^ _round(U64(0), held)) * _P1 + _P4
    return mixed


def _select(wanted: npt.NDArray[np.bool_]) -> Any:
    """Index of the rows that are wanted; a slice where these are all, which is quicker."""
    return slice(None) if wanted.all() else np.flatnonzero(wanted)


def _read(content: Any, number: str, at: npt.NDArray[np.int64]) -> Hashes:
    """The numbers that begin at bytes `at`, wherever these lie."""
    size = np.dtype(number).itemsize
    everywhere: npt.NDArray[Any] = np.ndarray((max(0, len(content) - size + 1),), number, content, 0, (1,))
    return everywhere[at].astype(U64)


def _hash_longs(numbers: Hashes, seeds: Hashes) -> Hashes:
    lanes = _round(U64(0), numbers)
    return _mix(_rotate((seeds + _P5 + U64(8)) ^ lanes, 27) * _P1 + _P4)


def _hash_ints(numbers: npt.NDArray[Any], seeds: Hashes) -> Hashes:
    words = numbers.astype(U64) & U64(0xFFFFFFFF)
    return _mix(_rotate((seeds + _P5 + U64(4)) ^ (words * _P1), 23) * _P2 + _P3)


def _round(held: Hashes | np.uint64, lanes: Hashes) -> Hashes:
    return _rotate(held + lanes * _P2, 31) * _P1


def _rotate(hashes: Hashes, bits: int) -> Hashes:
    return (hashes << U64(bits)) | (hashes >> U64(64 - bits))


def _mix(hashes: Hashes) -> Hashes:
    hashes = (hashes ^ (hashes >> U64(33))) * _P2
    hashes = (hashes ^ (hashes >> U64(29))) * _P3
    return hashes ^ (hashes >> U64(32))
