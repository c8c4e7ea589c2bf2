"""Peak memory of the driver's Python process for the whole job, at growing numbers of rows."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import report, scratch, write_vectors

_JOB = """
import re, sys
from spark_dbp import RunConfig, run
source, out, k = sys.argv[1:]
run(RunConfig.from_dict({
    "input": {"path": source, "embedding": "vector"}, "output": {"path": out},
    "cluster": {"n_clusters": int(k), "n_iter": 5, "max_points_per_centroid": 64},
    "prune": {"keep_ratio": 0.3},
}))
# Not ru_maxrss: a child starts with its parent's.
print("PEAK", int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024)
"""


def measure(sizes: list[int], dim: int, n_clusters: int) -> None:
    """Print the peak of each size.

    Parameters
    ----------
    sizes : list of int
        Numbers of rows.
    dim, n_clusters : int
    """
    rows = []
    for n_rows in sizes:
        with scratch() as folder:
            write_vectors(folder / "in", n_rows, dim)
            command = [sys.executable, "-c", _JOB, str(folder / "in"), str(folder / "run"), str(n_clusters)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peak = float(done.stdout.split("PEAK ")[1])
            rows.append((f"{n_rows:,} rows", f"{peak:.0f} MiB"))
    report(f"driver's Python process, whole job, dim {dim}, k {n_clusters}: peak memory", rows)
