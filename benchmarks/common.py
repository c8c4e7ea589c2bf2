"""Data, timing and the table of results that the benchmarks share."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_dbp.geometry import unit_rows
from spark_dbp.vectors import binary_rows


def machine() -> str:
    """One line on what this was measured on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, {platform.machine()}, "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes away; SPARK_DBP_BENCH_DIR says where."""
    path = Path(tempfile.mkdtemp(prefix="spark-dbp-bench-", dir=os.environ.get("SPARK_DBP_BENCH_DIR")))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def in_turn(runs: int, **sides: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each side, A B A B ..., after one warm-up each.

    Parameters
    ----------
    runs : int
        Counted runs of each side.
    **sides : callable

    Returns
    -------
    dict of str to float
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(runs + 1):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def write_vectors(
    path: Path, n_rows: int, dim: int, n_concepts: int = 800, n_files: int = 8, copy_of: int = 0
) -> None:
    """Unit vectors around a few hundred directions, as a run stages them: ``key``, ``vector`` BINARY.

    With `copy_of`, every twentieth row or fewer is a near-copy of the one so many rows before it.
    """
    rng = np.random.default_rng(0)
    concepts = rng.standard_normal((n_concepts, dim)).astype(np.float32)
    path.mkdir(parents=True)
    bounds = np.linspace(0, n_rows, n_files + 1).astype(int)
    for number, (start, stop) in enumerate(pairwise(bounds)):
        of = rng.integers(0, n_concepts, stop - start)
        noise = rng.standard_normal((stop - start, dim), dtype=np.float32)
        rows = concepts[of] + noise
        if copy_of:
            copies = np.arange(copy_of, len(rows), max(20, 2 * copy_of))  # none is copied again
            rows[copies] = rows[copies - copy_of] + np.float32(0.05) * noise[copies]
        vectors, _ = unit_rows(rows)
        keys = pa.array([f"{i:012d}.jpg" for i in range(start, stop)])
        table = pa.table({"key": keys, "vector": binary_rows(vectors)})
        pq.write_table(table, path / f"{number:05d}.parquet", row_group_size=20_000)


def report(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a small table."""
    print(f"\n{title}")
    for label, value in rows:
        print(f"  {label:<46}{value}")
    sys.stdout.flush()
