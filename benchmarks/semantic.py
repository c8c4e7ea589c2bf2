"""Semantic deduplication: the pairwise product against the machine's peak, the stage against plain numpy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import in_turn, report, scratch, write_vectors
from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.pairwise import MostSimilarEarlier
from spark_dbp.kernels.vectors import to_matrix

EPS = 0.05


def _cluster(n_rows: int, dim: int) -> np.ndarray:
    """One concept: a direction, noise, and a tenth near-copies."""
    rng = np.random.default_rng(0)
    raw = rng.standard_normal(dim) + rng.standard_normal((n_rows, dim))
    copies = n_rows // 10
    raw[-copies:] = raw[:copies] + 0.1 * rng.standard_normal((copies, dim))
    return normalize_rows(raw)[0]


def _plain(vectors: np.ndarray) -> np.ndarray:
    """The rule in numpy on one cluster at a time: all products, the upper part hidden, the largest."""
    similarity = vectors @ vectors.T
    similarity[np.triu_indices(len(vectors))] = -2
    return similarity.max(axis=1) > 1 - EPS


def measure_product(n_rows: int, dim: int, runs: int) -> None:
    """The kernel on one cluster against one large float32 product on as many threads.

    Parameters
    ----------
    n_rows, dim, runs : int
    """
    vectors = _cluster(n_rows, dim)
    square = np.random.default_rng(0).standard_normal((4096, 4096)).astype(np.float32)

    def kernel() -> None:
        MostSimilarEarlier(vectors, 1 - EPS).compare_itself(0)

    seconds = in_turn(runs, kernel=kernel, peak=lambda: square @ square, numpy=lambda: _plain(vectors))
    peak = 2 * 4096**3 / seconds["peak"]
    reached = n_rows * n_rows * dim / seconds["kernel"]  # half of the pairs, two operations each
    report(
        f"one cluster of {n_rows:,} x {dim}: each vector's most similar earlier one (median of {runs})",
        [
            ("float32 matrix product, 4096 x 4096", f"{peak / 1e9:.0f} GFLOP/s"),
            ("ours (half of all pairs)", f"{seconds['kernel']:.2f} s, {reached / 1e9:.0f} GFLOP/s"),
            ("share of the peak", f"{reached / peak:.0%}"),
            ("the rule in plain numpy, all pairs at once", f"{seconds['numpy']:.2f} s"),
            ("ratio of ours to plain numpy", f"{seconds['kernel'] / seconds['numpy']:.2f}"),
        ],
    )


_STAGE = """
import json, os, sys, threading, time
from pyspark.sql import functions as F
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.session import start_local_session
from spark_dbp.stages.semantic_dedup import semantic_pairs
folder, dim, eps = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
spark = start_local_session()
frame = spark.read.parquet(folder + "/vectors")
samples = CommittedTable(spark, folder + "/vectors", frame, dim, has_problems=False)
largest, done = 0, threading.Event()
def watch():
    global largest
    while not done.wait(0.5):
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                if b"pyspark" in open(f"/proc/{pid}/cmdline", "rb").read() and int(pid) != os.getpid():
                    status = open(f"/proc/{pid}/status").read()
                    if "VmHWM" in status and "java" not in status.split()[1]:
                        largest = max(largest, int(status.split("VmHWM:")[1].split()[0]))
            except OSError:
                pass
threading.Thread(target=watch, daemon=True).start()
for number in range(int(sys.argv[4])):
    started = time.perf_counter()
    pairs = semantic_pairs(samples, spark.read.parquet(folder + "/assignments"), eps=eps, dim=dim,
                           scratch=f"{folder}/scratch-{number}")
    pairs.write.parquet(f"{folder}/pairs-{number}")
    seconds = time.perf_counter() - started
done.set()
found = spark.read.parquet(f"{folder}/pairs-0").count()
print("RESULT", json.dumps({"seconds": seconds, "found": found, "worker_mib": largest / 1024}))
"""


def measure_stage(n_rows: int, n_clusters: int, dim: int) -> None:
    """The whole stage, shuffle and files included, against numpy on one cluster after the other.

    Parameters
    ----------
    n_rows, n_clusters, dim : int
        Clusters of equal size.
    """
    import time

    with scratch() as folder:
        write_vectors(folder / "vectors", n_rows, dim, n_concepts=n_clusters, copy_of=n_clusters)
        clusters = _write_assignments(folder, n_rows, n_clusters)
        # With a single run the start of the workers counts; the second is taken where it is affordable.
        runs = "1" if n_rows // n_clusters > 100_000 else "2"
        command = [sys.executable, "-c", _STAGE, str(folder), str(dim), str(EPS), runs]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ours = json.loads(done.stdout.split("RESULT ", 1)[1])
        rows = [
            ("ours", f"{ours['seconds']:.1f} s, {ours['found']:,} found"),
            ("largest Python worker", f"{ours['worker_mib']:.0f} MiB"),
        ]
        if n_rows // n_clusters <= 30_000:
            table = pq.read_table(folder / "vectors").combine_chunks()
            vectors = np.concatenate([to_matrix(chunk) for chunk in table.column("vector").chunks])
            started = time.perf_counter()
            found = sum(int(_plain(vectors[clusters == c]).sum()) for c in range(n_clusters))
            plain = time.perf_counter() - started
            rows += [
                ("numpy, one cluster at a time", f"{plain:.1f} s, {found:,} found"),
                ("ratio", f"{ours['seconds'] / plain:.2f}"),
            ]
    report(f"semantic stage, {n_rows:,} x {dim} in {n_clusters} clusters, eps {EPS}", rows)


def _write_assignments(folder: Path, n_rows: int, n_clusters: int) -> np.ndarray:
    keys = [
        key for file in sorted((folder / "vectors").iterdir())
        for key in pq.read_table(file, columns=["key"]).column("key").to_pylist()
    ]  # fmt: skip
    clusters = (np.arange(n_rows) % n_clusters).astype(np.int32)
    distances = np.random.default_rng(0).random(n_rows, dtype=np.float32)
    (folder / "assignments").mkdir()
    table = pa.table({"key": keys, "cluster_id": clusters, "distance_to_centroid": distances})
    pq.write_table(table, folder / "assignments" / "0.parquet")
    return clusters
