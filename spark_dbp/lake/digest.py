"""Digest of a table that does not depend on the order of its rows. Imports `columns`; pyspark in functions.

It is the sum of the 64-bit hashes of all rows, modulo 2**64. Two tables have the same digest when they have
the same rows, each equally often. It finds damage and changes by mistake, but not a forgery.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from spark_dbp.columns import quote_name

if TYPE_CHECKING:
    from pyspark.sql import Column, DataFrame

# The hash is summed in three pieces of at most 22 bits. So a sum of longs overflows only after 2**41 rows.
_SHIFTS = (0, 22, 44)
_PIECE = (1 << 22) - 1


def digest_table(frame: DataFrame) -> tuple[int, str]:
    """Number of rows and digest of `frame`, in one pass.

    Parameters
    ----------
    frame : DataFrame
        Its columns are of atomic types, arrays or structs.

    Returns
    -------
    rows : int
    digest : str
        16 hexadecimal digits.
    """
    rows, (digest,) = digest_columns(frame, frame.columns)
    return rows, digest


def digest_columns(frame: DataFrame, *column_lists: list[str]) -> tuple[int, list[str]]:
    """Number of rows, and the digest of each list of columns, in one pass."""
    rows, digests, _ = digest_and_sum(frame, column_lists, ())
    return rows, digests


def digest_and_sum(
    frame: DataFrame, column_lists: Iterable[list[str]], totals: Iterable[Column]
) -> tuple[int, list[str], list[int]]:
    """Like `digest_columns`, and also the sum of each column of integers in `totals`."""
    from pyspark.sql import functions as F

    hashes = [F.xxhash64(*[F.col(quote_name(name)) for name in names]) for names in column_lists]
    names = [f"h{number}" for number in range(len(hashes))]
    summed = [total.alias(f"t{number}") for number, total in enumerate(totals)]
    hashed = frame.select(*[h.alias(name) for h, name in zip(hashes, names, strict=True)], *summed)
    pieces = _sum_pieces(names)
    whole = [F.coalesce(F.sum(name), F.lit(0)) for name in hashed.columns[len(names) :]]
    rows, *sums = hashed.agg(F.count(F.lit(1)), *pieces, *whole).collect()[0]
    return int(rows), _to_digests(sums[: len(pieces)]), [int(total) for total in sums[len(pieces) :]]


def digest_tables(tables: Sequence[tuple[DataFrame, Sequence[list[str]]]]) -> list[tuple[int, list[str]]]:
    """What `digest_columns` gives for each of several tables, in one job for all.

    Parameters
    ----------
    tables : sequence of (DataFrame, sequence of list of str)
        Each with its lists of columns.

    Returns
    -------
    list of (int, list of str)
    """
    from pyspark.sql import functions as F

    if not tables:
        return []
    most = max(len(lists) for _, lists in tables)
    names = [f"h{number}" for number in range(most)]
    hashed = []
    for number, (frame, lists) in enumerate(tables):
        hashes = [F.xxhash64(*[F.col(quote_name(name)) for name in columns]) for columns in lists]
        hashes += [F.lit(None).cast("bigint")] * (most - len(lists))
        named = [value.alias(name) for value, name in zip(hashes, names, strict=True)]
        hashed.append(frame.select(F.lit(number).alias("number"), *named))
    rows = reduce(lambda a, b: a.unionByName(b), hashed)
    counted = rows.groupBy("number").agg(F.count(F.lit(1)), *_sum_pieces(names)).collect()
    empty = (0, *[0] * (most * len(_SHIFTS)))
    found = {number: tuple(map(int, sums)) for number, *sums in counted}  # a table without rows is not in it
    return [
        (of_table[0], _to_digests(of_table[1:])[: len(lists)])
        for (_, lists), of_table in zip(
            tables, (found.get(number, empty) for number in range(len(tables))), strict=True
        )
    ]


def _sum_pieces(names: Iterable[str]) -> list[Column]:
    """Sums of the pieces of columns of hashes, three for each."""
    from pyspark.sql import functions as F

    return [
        F.coalesce(F.sum(F.shiftrightunsigned(name, shift).bitwiseAND(F.lit(_PIECE))), F.lit(0))
        for name in names
        for shift in _SHIFTS
    ]


def _to_digests(sums: Sequence[int]) -> list[str]:
    size = len(_SHIFTS)
    return [_digest(sums[first : first + size]) for first in range(0, len(sums), size)]


def _digest(sums: Sequence[int]) -> str:
    total = reduce(add, (int(value) << shift for value, shift in zip(sums, _SHIFTS, strict=True)), 0)
    return f"{total % 2**64:016x}"


def add_digests(*digests: str) -> str:
    """Digest of the union of tables, from their digests.

    Examples
    --------
    >>> add_digests("ffffffffffffffff", "0000000000000003")
    '0000000000000002'
    """
    return f"{sum(int(digest, 16) for digest in digests) % 2**64:016x}"
