"""Digest of a table that does not depend on the order of its rows. Imports `columns`; pyspark in functions.

It is the sum of the 64-bit hashes of all rows, modulo 2**64. Two tables have the same digest when they have
the same rows, each equally often. It finds damage and changes by mistake, but not a forgery.
"""

from __future__ import annotations

from collections.abc import Iterable
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
    pieces = [
        F.coalesce(F.sum(F.shiftrightunsigned(name, shift).bitwiseAND(F.lit(_PIECE))), F.lit(0))
        for name in names
        for shift in _SHIFTS
    ]
    whole = [F.coalesce(F.sum(name), F.lit(0)) for name in hashed.columns[len(names) :]]
    rows, *sums = hashed.agg(F.count(F.lit(1)), *pieces, *whole).collect()[0]
    of_each = (sums[first : first + len(_SHIFTS)] for first in range(0, len(pieces), len(_SHIFTS)))
    return int(rows), [_digest(pieces) for pieces in of_each], [int(total) for total in sums[len(pieces) :]]


def _digest(sums: list[int]) -> str:
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
