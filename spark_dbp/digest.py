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
    from pyspark.sql import functions as F

    hashed = frame.select(F.xxhash64(*[column(name) for name in frame.columns]).alias("h"))
    pieces = [
        F.coalesce(F.sum(F.shiftrightunsigned("h", shift).bitwiseAND(F.lit(_PIECE))), F.lit(0))
        for shift in _SHIFTS
    ]
    rows, *sums = hashed.agg(F.count(F.lit(1)), *pieces).collect()[0]
    total = reduce(add, (int(value) << shift for value, shift in zip(sums, _SHIFTS, strict=True)), 0)
    return int(rows), f"{total % 2**64:016x}"
