"""The digest that workers take equals that of Spark, for values of every type that workers write."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal

import numpy as np
from pyspark.sql import functions as F

from spark_dbp.engine.compat import collect_arrow
from spark_dbp.kernels.row_hash import hash_rows

SCHEMA = (
    "text string, bytes binary, flag boolean, tiny byte, small short, whole int, long bigint, half float, "
    "wide double, day date, price decimal(9,2), sum decimal(18,0), huge decimal(38,3), "
    "vector array<float>, names array<string>, histogram array<struct<bin: int, n: bigint>>"
)
COLUMNS = [*(f"{column}".split()[0] for column in SCHEMA.split(", ")[:15]), "histogram"]
ROWS = [
    (
        "", b"", True, -1, 300, -(2**31), 2**63 - 1, -0.0, math.nan, date(1969, 12, 31), Decimal("-1.25"),
        Decimal(10**17), Decimal(-(10**34)), [0.5, -0.0, math.nan], ["a", None, "é" * 40], [(1, 2), (3, 2**40)],
    ),
    (
        "é" * 33, bytes(range(256)) * 3, False, 7, -300, 5, -1, 1.5, -0.0, date(2026, 1, 1), Decimal("99.99"),
        Decimal(-5), Decimal("0.128"), [], [], [],
    ),
    ("x", *(None,) * 12, [None], ["b"], [(None, 1), None]),
    (None,) * 16,
    ("y", b"1", True, 0, 0, 0, 0, 0.0, 0.0, date(1970, 1, 1), Decimal(0), Decimal(0), Decimal(255), None, None, None),
    ("z", b"2", True, 0, 0, 0, 0, math.inf, -math.inf, date(1, 1, 1), Decimal(1), Decimal(1), Decimal(-256), None, None, None),
]  # fmt: skip


def test_hashes_are_those_of_spark(spark):
    frame = spark.createDataFrame(ROWS, SCHEMA).select(
        "*", *[F.xxhash64(c).alias(f"of_{c}") for c in COLUMNS]
    )
    found = collect_arrow(frame.select("*", F.xxhash64(*COLUMNS).alias("of_row"))).combine_chunks()
    for name in COLUMNS:
        mine = hash_rows([found.column(name).chunk(0)]).view(np.int64)
        assert mine.tolist() == found.column(f"of_{name}").to_pylist(), name
    whole = hash_rows([found.column(name).chunk(0) for name in COLUMNS]).view(np.int64)
    assert whole.tolist() == found.column("of_row").to_pylist()
