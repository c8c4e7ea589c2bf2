"""``spark-dbp run`` from the prompt to keep list and trie, Spark's start and end included.

Against `scripts`, which do the same work with the libraries that one would take on a single machine, and for
small inputs against an empty session of Spark. The memory is that of all processes of a side.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import peak_memory, report, scratch, write_vectors
from benchmarks.minhash import make_texts
from benchmarks.pruning import kept_rows, write_assignments
from benchmarks.scripts import KEEP_RATIO
from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.vectors import to_matrix

_EMPTY = (
    "from pyspark.sql import SparkSession\nSparkSession.builder.master('local[*]').getOrCreate().stop()\n"
)


@dataclass
class Side:
    """What is run in turn with others, and what was seen of it."""

    run: Callable[[], Any]
    seconds: list[float] = field(default_factory=list)
    gigabytes: float = 0.0

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def __str__(self) -> str:
        return f"{self.median:.1f} s, {self.gigabytes:.1f} GB"


def measure_sides(sides: dict[str, Side], runs: int) -> None:
    """Run the sides in turn. What each writes is deleted before it runs again."""
    for _ in range(runs):
        for side in sides.values():
            with peak_memory() as peak:
                started = time.perf_counter()
                side.run()
                side.seconds.append(time.perf_counter() - started)
            side.gigabytes = max(side.gigabytes, peak.total)


def _command(folder: Path, name: str, settings: dict[str, Any]) -> Callable[[], None]:
    """The command of a user with this configuration; it says which jobs Spark starts."""
    events = folder / f"{name}-events"
    events.mkdir()
    spark = {"spark.eventLog.enabled": True, "spark.eventLog.dir": str(events)}
    spark |= {"spark.eventLog.compress": False, **settings.pop("spark", {})}
    output = {"path": str(folder / name)}
    (folder / f"{name}.yaml").write_text(json.dumps({**settings, "output": output, "spark": spark}))

    def run() -> None:
        shutil.rmtree(folder / name, ignore_errors=True)
        call_module("spark_dbp", "run", str(folder / f"{name}.yaml"))

    return run


def make_script(folder: Path, function: str, **given: Any) -> Callable[[], None]:
    """A process that calls one of `scripts`."""
    out = folder / function

    def run() -> None:
        shutil.rmtree(out, ignore_errors=True)
        call_module("benchmarks.scripts", function, json.dumps({**given, "out": str(out)}))

    return run


def call_module(module: str, *arguments: str) -> None:
    """Run ``python -m``, and fail where it does."""
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{module} {arguments} failed: {done.stderr[-2000:]}")


def _describe(folder: Path, name: str, side: Side, source: Path) -> list[tuple[str, str]]:
    """What a run did: its jobs, bytes and steps."""
    document = json.loads((folder / name / "run.json").read_text())
    steps = {step["name"]: step["seconds"] for step in document["stages"].values()}
    newest = max((folder / f"{name}-events").iterdir(), key=lambda events: events.stat().st_mtime)
    lines = (line for file in newest.glob("events_*") for line in file.open())
    n_jobs = sum('"Event":"SparkListenerJobStart"' in line for line in lines)
    written, read = (
        sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
        for place in (folder / name, source)
    )
    longest = sorted(steps.items(), key=lambda step: -step[1])[:5]
    shown = ", ".join(f"{step} {seconds:.1f}" for step, seconds in longest)
    rest = side.median - sum(steps.values())
    return [
        ("  jobs of Spark; bytes written to bytes read", f"{n_jobs}; {written / read:.2f}"),
        ("  seconds of the longest steps, and around them", f"{shown}; {rest:.1f}"),
    ]


def measure_clustered(
    n_rows: int, runs: int, n_clusters: int = 500, memory_limit: str = "", with_sql: bool = True
) -> None:
    """Data that has clusters, distances and centroids, against DuckDB and marisa.

    Parameters
    ----------
    n_rows, runs, n_clusters : int
    memory_limit : str
        Of DuckDB. With one, marisa builds shards of a million keys.
    with_sql : bool
        Whether engine ``sql`` is measured too.
    """
    with scratch() as folder:
        source, centroids = folder / "in", folder / "centroids.npy"
        write_assignments(source, n_rows, n_clusters)
        np.save(centroids, normalize_rows(np.random.default_rng(3).standard_normal((n_clusters, 64)))[0])
        given = {"path": str(source), "cluster_id": "cluster_id", "centroids": str(centroids)}
        given |= {"distance_to_centroid": "distance_to_centroid"}
        settings = {"input": given, "prune": {"keep_ratio": KEEP_RATIO}}
        peer = {"source": str(source), "centroids": str(centroids), "memory_limit": memory_limit}
        sides = {
            "ours": Side(_command(folder, "ours", settings | {"engine": "arrow"})),
            "script": Side(
                make_script(folder, "prune_clustered", **peer, shard_keys=1_000_000 if memory_limit else 0)
            ),
        }
        if with_sql:
            sides["ours, sql"] = Side(_command(folder, "ours-sql", settings | {"engine": "sql"}))
        measure_sides(sides, runs)
        same = kept_rows(folder / "prune_clustered")
        rows = [(name, str(side)) for name, side in sides.items()]
        for name in sorted(sides.keys() - {"script"}):
            out = name.replace(", ", "-")
            rows += [
                (f"{name}, to the script", f"{sides[name].median / sides['script'].median:.2f}"),
                *_describe(folder, out, sides[name], source),
                ("  the same rows and ranks", "yes" if kept_rows(_keep_list(folder / out)) == same else "NO"),
            ]
    report(f"the whole command, {n_rows:,} clustered rows (median of {runs})", rows)


def _keep_list(run: Path) -> Path:
    return run / json.loads((run / "run.json").read_text())["tables"]["keep_list"]


def _cluster_and_prune(source: Path, n_clusters: int) -> dict[str, Any]:
    return {
        "input": {"path": str(source)},
        "cluster": {"n_clusters": n_clusters},
        "prune": {"keep_ratio": KEEP_RATIO},
    }


def measure_embeddings(n_rows: int, runs: int, dim: int = 384, n_clusters: int = 500) -> None:
    """Embeddings as ARRAY<FLOAT>, against a script with pyarrow, numpy, faiss and marisa."""
    with scratch() as folder:
        source = folder / "in"
        write_embeddings(source, n_rows, dim)
        settings = _cluster_and_prune(source, n_clusters)
        sides = {
            "ours": Side(_command(folder, "ours", settings)),
            "script": Side(
                make_script(folder, "prune_embeddings", source=str(source), n_clusters=n_clusters)
            ),
        }
        measure_sides(sides, runs)
        rows = [(name, str(side)) for name, side in sides.items()]
        rows.append(("ours to the script", f"{sides['ours'].median / sides['script'].median:.2f}"))
        rows += _describe(folder, "ours", sides["ours"], source)
        n_kept = [
            sum(pq.read_metadata(file).num_rows for file in out.glob("*.parquet"))
            for out in (_keep_list(folder / "ours"), folder / "prune_embeddings")
        ]
        rows.append(("  rows kept by ours and by the script", f"{n_kept[0]:,}, {n_kept[1]:,}"))
    report(f"the whole command, {n_rows:,} x {dim}, k {n_clusters} (median of {runs})", rows)


def measure_small(runs: int, n_rows: int = 63_666, dim: int = 384, n_clusters: int = 100) -> None:
    """What small data takes, on a classic session and over Spark Connect, and the demo: to an empty session.

    Each starts Java with the archive of its classes, which a run before the counted ones records (see
    docs/performance.md); a single run is not preceded by one.
    """
    with scratch() as folder:
        source = folder / "in"
        write_embeddings(source, n_rows, dim)
        settings = _cluster_and_prune(source, n_clusters)
        connect = settings | {"spark": {"spark.remote": "local[2]"}}

        def demo() -> None:
            shutil.rmtree(folder / "demo", ignore_errors=True)
            call_module("spark_dbp", "demo", str(folder / "demo"))

        def empty() -> None:
            subprocess.run([sys.executable, "-c", _EMPTY], check=True, capture_output=True)

        sides = {
            "an empty session of Spark, started and stopped": Side(empty),
            f"{n_rows:,} x {dim}, k {n_clusters}": Side(_command(folder, "classic", settings)),
            "the same over Spark Connect": Side(_command(folder, "connect", connect)),
            "the demo": Side(demo),
        }
        if runs > 1:
            measure_sides(sides, 1)
        for side in sides.values():
            side.seconds.clear()
        measure_sides(sides, runs)
        nothing, classic, over_connect, _ = sides.values()
        rows = [
            (name, f"{side.median:.1f} s, {side.median / nothing.median:.2f} of the empty session")
            for name, side in sides.items()
        ]
        rows.append(("Connect to classic", f"{over_connect.median / classic.median:.2f}"))
        rows += _describe(folder, "classic", classic, source)
    report(f"the whole command on small data (median of {runs})", rows)


def measure_dedup(n_rows: int, runs: int, dim: int = 384, n_clusters: int = 500) -> None:
    """Exact, MinHash and semantic deduplication before the clustering, of texts and embeddings."""
    with scratch() as folder:
        source = folder / "in"
        write_embeddings(source, n_rows, dim, texts=make_texts(n_rows, alike=False))
        dedup = {
            "exact": {"columns": ["text"]},
            "minhash": {"column": "text"},
            "semantic": {"n_clusters": n_clusters, "eps": 0.05},
        }
        settings = _cluster_and_prune(source, n_clusters) | {"dedup": dedup}
        side = Side(_command(folder, "ours", settings))
        measure_sides({"ours": side}, runs)
        rows = [("ours", str(side)), *_describe(folder, "ours", side, source)]
    report(f"the whole command with exact, MinHash and semantic deduplication, {n_rows:,} x {dim}", rows)


def write_embeddings(folder: Path, n_rows: int, dim: int, texts: list[str] | None = None) -> None:
    """Vectors as a lake has them: ARRAY<FLOAT>, of no particular length; with texts beside them."""
    write_vectors(folder, n_rows, dim, n_files=max(8, n_rows // 500_000))
    start = 0
    for file in sorted(folder.iterdir()):
        table = pq.read_table(file)
        vectors = np.concatenate([to_matrix(chunk) for chunk in table.column("vector").chunks])
        vectors *= np.random.default_rng(4).uniform(5, 50, (len(vectors), 1)).astype(np.float32)
        lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
        columns = {"key": table.column("key"), "embedding": lists.cast(pa.list_(pa.float32()))}
        if texts is not None:
            columns["text"] = pa.array(texts[start : start + len(table)])
        start += len(table)
        pq.write_table(pa.table(columns), file, row_group_size=20_000)
