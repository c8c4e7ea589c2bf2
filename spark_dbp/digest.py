"""Digest of a table that does not depend on the order of its rows. Imports pyspark inside functions.

It is the sum of every row's 64-bit hash, modulo 2**64: two tables with the same rows, each as often,
agree. It finds damage and drift; it is no defence against forgery.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import TYPE_CHECKING

from spark_dbp.compat import column

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

# The hash is summed in three pieces, so that a sum of longs holds 2**41 rows before it overflows.
_SHIFTS = (0, 22, 44)
_PIECE = (1 << 22) - 1


def table_digest(frame: DataFrame) -> tuple[int, str]:
    """Number of rows and digest of `frame`, in one pass.

    Parameters
    ----------
    frame : DataFrame
        Of atomic columns, arrays and structs.

    Returns
    -------
    rows : int
    digest : str
        16 hexadecimal digits.
    """
    rows, (digest,) = table_digests(frame, frame.columns)
    return rows, digest


def table_digests(frame: DataFrame, *column_lists: list[str]) -> tuple[int, list[str]]:
    """Number of rows, and the digest of each list of columns, in one pass."""
    from pyspark.sql import functions as F

    hashes = [F.xxhash64(*[column(name) for name in names]) for names in column_lists]
    hashed = frame.select(*[h.alias(f"h{number}") for number, h in enumerate(hashes)])
    pieces = [
        F.coalesce(F.sum(F.shiftrightunsigned(name, shift).bitwiseAND(F.lit(_PIECE))), F.lit(0))
        for name in hashed.columns
        for shift in _SHIFTS
    ]
    rows, *sums = hashed.agg(F.count(F.lit(1)), *pieces).collect()[0]
    of_each = (sums[first : first + len(_SHIFTS)] for first in range(0, len(sums), len(_SHIFTS)))
    return int(rows), [_digest(pieces) for pieces in of_each]


def _digest(sums: list[int]) -> str:
    total = reduce(add, (int(value) << shift for value, shift in zip(sums, _SHIFTS, strict=True)), 0)
    return f"{total % 2**64:016x}"


def added(*digests: str) -> str:
    """Digest of tables put together.

    Examples
    --------
    >>> added("ffffffffffffffff", "0000000000000003")
    '0000000000000002'
    """
    return f"{sum(int(digest, 16) for digest in digests) % 2**64:016x}"
