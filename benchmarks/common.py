"""Data, timing and the table of results that the benchmarks share."""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.vectors import to_binary_rows


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


def in_turn(runs: int, warm_ups: int = 1, **sides: Callable[[], object]) -> dict[str, float]:
    """Median seconds of each side, A B A B ..., after one warm-up each.

    Parameters
    ----------
    runs : int
        Counted runs of each side.
    warm_ups : int
        Runs before these; none for sides that start a process.
    **sides : callable

    Returns
    -------
    dict of str to float
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_ups + runs):
        for name, side in sides.items():
            started = time.perf_counter()
            side()
            if number >= warm_ups:
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
        vectors, _ = normalize_rows(rows)
        keys = pa.array([f"{i:012d}.jpg" for i in range(start, stop)])
        table = pa.table({"key": keys, "vector": to_binary_rows(vectors)})
        pq.write_table(table, path / f"{number:05d}.parquet", row_group_size=20_000)


@dataclass
class Peak:
    """Most memory seen, in GB: of this process with all that it started, and of the largest Python worker.

    Of the workers, and of all others but this process, also the seconds of CPU that they took.
    """

    total: float = 0.0
    worker: float = 0.0
    worker_seconds: float = 0.0
    other_seconds: float = 0.0


@contextmanager
def peak_memory(until: Path | None = None) -> Iterator[Peak]:
    """Watch the resident memory of this process and its children; shared pages count for each of them.

    With `until`, only as long as there is no such file.
    """
    peak, done = Peak(), threading.Event()
    seconds: dict[tuple[bool, int], float] = {}

    def watch() -> None:
        while not done.wait(0.25) and (until is None or not until.exists()):
            seen = _look_at_processes()
            peak.total = max(peak.total, sum(process.gigabytes for process in seen))
            peak.worker = max([peak.worker, *(process.gigabytes for process in seen if process.is_worker)])
            seconds.update({(process.is_worker, process.number): process.seconds for process in seen})
            peak.worker_seconds = sum(took for (is_worker, _), took in seconds.items() if is_worker)
            own = seconds.get((False, os.getpid()), 0.0)
            peak.other_seconds = sum(seconds.values()) - peak.worker_seconds - own

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield peak
    finally:
        done.set()
        watching.join()


@dataclass(frozen=True)
class _Process:
    number: int
    is_worker: bool
    gigabytes: float
    seconds: float


def _look_at_processes() -> list[_Process]:
    """The own process and those below it."""
    parents: dict[int, int] = {}
    seen: dict[int, _Process] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                pages = int((entry / "statm").read_text().split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:  # it has ended
                continue
            number = int(entry.name)
            seconds = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
            gigabytes = pages * os.sysconf("SC_PAGE_SIZE") / 1e9
            seen[number] = _Process(number, b"pyspark.daemon" in command, gigabytes, seconds)
            parents[number] = int(stat[1])

    def is_below(process: int) -> bool:
        while process not in (0, 1, os.getpid()):
            process = parents.get(process, 0)
        return process == os.getpid()

    return [process for number, process in seen.items() if is_below(number)]


def report(title: str, rows: list[tuple[str, str]]) -> None:
    """Print a small table."""
    print(f"\n{title}")
    for label, value in rows:
        print(f"  {label:<50}{value}")
    sys.stdout.flush()
