"""How much memory the driver may take, and how much Spark may send to it. Imports `compat`; no pyspark."""

from __future__ import annotations

import contextlib
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from spark_dbp.engine.compat import read_setting

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

# Of a container, by the first and the second version of control groups.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNITS = {"b": 0, "": 0, "k": 10, "kb": 10, "m": 20, "mb": 20, "g": 30, "gb": 30, "t": 40, "tb": 40}


def read_memory_limit() -> float:
    """Bytes that this process may take: of the machine or of its container; infinity where not known."""
    found = [math.inf]
    with contextlib.suppress(ValueError, OSError, AttributeError):
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            found.append(int(Path(path).read_text()))
    return min(found)


def read_collect_limit(spark: SparkSession) -> float:
    """Bytes that Spark sends to the driver at most: ``spark.driver.maxResultSize``; infinity for 0."""
    size = parse_size(read_setting(spark, "spark.driver.maxResultSize") or "1g")
    return size or math.inf


def parse_size(text: str) -> float:
    """Bytes of a size as Spark writes it; infinity for what is none.

    Examples
    --------
    >>> parse_size("1g") == 2**30, parse_size("512m") == 2**29, parse_size("0")
    (True, True, 0.0)
    """
    found = re.fullmatch(r"\s*(\d+)\s*([a-z]*)\s*", text.lower())
    return float(int(found[1]) << _UNITS[found[2]]) if found and found[2] in _UNITS else math.inf
