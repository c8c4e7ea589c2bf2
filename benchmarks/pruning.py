"""Statistics, quotas, selection with ranks: against DuckDB, Polars and the research code's way.

All sides read the same Parquet files of ``key``, ``cluster_id``, ``distance_to_centroid``, take their quotas
from `plan_quotas`, and write ``key, cluster_id, distance_to_centroid, rank`` of the kept rows.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.common import peak_memory, report, scratch
from spark_dbp.kernels.geometry import measure_distance_to_nearest, normalize_rows
from spark_dbp.stages.quota import plan_quotas

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from spark_dbp.engine.arrow import CommittedTable

KEEP_RATIO = 0.3
_FILE_ROWS = 2_500_000
# Spark's heap; DuckDB is given as much in all as our processes may take.
HEAP = "2g"


def write_assignments(folder: Path, n_rows: int, n_clusters: int) -> None:
    """Files of 2.5M rows; clusters of unlike sizes, distances of unlike spread, the same at every call."""
    folder.mkdir(parents=True)
    sizes = np.random.default_rng(0).lognormal(0, 0.6, n_clusters)
    bounds = np.cumsum(sizes / sizes.sum())
    centres = np.random.default_rng(1).uniform(0.2, 0.5, n_clusters)

    def write(number: int) -> None:
        rng = np.random.default_rng([2, number])
        start = number * _FILE_ROWS
        n = min(_FILE_ROWS, n_rows - start)
        cluster = np.minimum(np.searchsorted(bounds, rng.random(n)), n_clusters - 1).astype(np.int32)
        distance = (centres[cluster] + 0.07 * rng.standard_normal(n)).clip(0, 2).astype(np.float32)
        # Keys like those of a web-scale table, in no order.
        keys = pc.utf8_lpad(
            pa.array((np.arange(start, start + n) * 7919) % 10**12).cast(pa.string()), 12, "0"
        )
        table = pa.table({"key": keys, "cluster_id": cluster, "distance_to_centroid": distance})
        pq.write_table(table, folder / f"{number:05d}.parquet", row_group_size=500_000)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(write, range(-(-n_rows // _FILE_ROWS))))


def gather_in_one_cluster(folder: Path) -> None:
    """Give half of all rows to cluster 0: those of every second cluster."""
    for file in sorted(folder.glob("*.parquet")):
        table = pq.read_table(file)
        cluster = table.column("cluster_id").to_numpy()
        half = np.where(cluster % 2 == 0, 0, cluster).astype(np.int32)
        skewed = table.set_column(table.column_names.index("cluster_id"), "cluster_id", pa.array(half))
        pq.write_table(skewed, file, row_group_size=500_000)


def quotas_of(n_items: np.ndarray, d_intra: np.ndarray) -> np.ndarray:
    """Quotas by the paper, with centroids in random directions."""
    centroids, _ = normalize_rows(np.random.default_rng(3).standard_normal((len(n_items), 64)))
    d_inter = measure_distance_to_nearest(centroids, 20)
    return plan_quotas(n_items, d_intra, d_inter, int(KEEP_RATIO * n_items.sum()))["quota"]


def arrow(folder: Path, out: Path) -> None:
    """The project's stages on a running session, with engine ``arrow``."""
    from pyspark.sql import SparkSession

    from spark_dbp.engine.arrow import CommittedTable

    session = SparkSession.active()
    _prune(CommittedTable(session, str(folder), session.read.parquet(str(folder))), out)


def sql(folder: Path, out: Path) -> None:
    """The same with engine ``sql``."""
    from pyspark.sql import SparkSession

    from spark_dbp.engine.session import guard_session

    session = SparkSession.active()
    with guard_session(session):
        _prune(session.read.parquet(str(folder)), out)


def _prune(assignments: DataFrame | CommittedTable, out: Path) -> None:
    from pyspark.sql import SparkSession

    from spark_dbp.engine.compat import collect_arrow
    from spark_dbp.engine.mapped_rows import write_rows
    from spark_dbp.stages.cluster_stats import cluster_stats
    from spark_dbp.stages.select import plan_selection

    session = SparkSession.active()
    stats = collect_arrow(cluster_stats(assignments)).sort_by("cluster_id")  # as `complete_stats` does
    quota = quotas_of(stats.column("n_items").to_numpy(), stats.column("d_intra").to_numpy())
    out.mkdir()
    pq.write_table(stats, out / "stats.parquet")
    quotas = pa.table({"cluster_id": stats.column("cluster_id"), "quota": quota})
    pq.write_table(quotas, out / "quotas.parquet")
    kept = plan_selection(
        assignments,
        session.read.parquet(str(out / "quotas.parquet")),
        stats=session.read.parquet(str(out / "stats.parquet")),
    )
    write_rows(kept, str(out / "keep"))


def trie(folder: Path, out: Path) -> None:
    """The tries of a keep list."""
    from pyspark.sql import SparkSession

    from spark_dbp.engine.arrow import CommittedTable
    from spark_dbp.stages.keep_trie import build_keep_trie

    session = SparkSession.active()
    keep_list = session.read.parquet(str(folder))
    build_keep_trie(CommittedTable(session, str(folder), keep_list), str(out), keep_list.count())


def duckdb(folder: Path, out: Path) -> None:
    """One query for the statistics and one with a window for the rest."""
    import duckdb as db

    out.mkdir()
    with db.connect(
        config={"threads": str(os.cpu_count()), "memory_limit": "4GB", "temp_directory": str(out)}
    ) as link:
        link.execute("SET preserve_insertion_order = false")
        link.execute(f"CREATE VIEW t AS SELECT * FROM '{folder}/*.parquet'")
        stats = link.execute(
            "SELECT cluster_id, count(*) AS n_items, avg(distance_to_centroid) AS d_intra "
            "FROM t GROUP BY ALL ORDER BY ALL"
        ).fetchnumpy()
        quota = pa.table(  # noqa: F841 (DuckDB finds it by its name)
            {
                "cluster_id": stats["cluster_id"],
                "quota": quotas_of(np.asarray(stats["n_items"]), np.asarray(stats["d_intra"])),
            }
        )
        link.execute(
            "COPY (SELECT key, cluster_id, distance_to_centroid, rank FROM (SELECT *, row_number() OVER "
            "(PARTITION BY cluster_id ORDER BY distance_to_centroid DESC, key) AS rank FROM t) "
            f"JOIN quota USING (cluster_id) WHERE rank <= quota) TO '{out}/keep.parquet'"
        )


def polars(folder: Path, out: Path) -> None:
    """A lazy scan, a sort and a cumulative count over clusters."""
    import polars as pl

    out.mkdir()
    rows = pl.scan_parquet(f"{folder}/*.parquet")
    stats = (
        rows.group_by("cluster_id")
        .agg(
            pl.len().cast(pl.Int64).alias("n_items"),
            pl.col("distance_to_centroid").cast(pl.Float64).mean().alias("d"),
        )
        .sort("cluster_id")
        .collect()
    )
    quota = quotas_of(stats["n_items"].to_numpy(), stats["d"].to_numpy())
    quotas = pl.DataFrame({"cluster_id": stats["cluster_id"], "quota": quota}).lazy()
    ranked = rows.sort(
        ["cluster_id", "distance_to_centroid", "key"], descending=[False, True, False]
    ).with_columns(pl.int_range(1, pl.len() + 1, dtype=pl.Int32).over("cluster_id").alias("rank"))
    kept = ranked.join(quotas, on="cluster_id").filter(pl.col("rank") <= pl.col("quota")).drop("quota")
    kept.collect().write_parquet(out / "keep.parquet")


def in_memory(folder: Path, out: Path) -> None:
    """As the research code goes about it: per-cluster arrays of strings and distances, all in memory."""
    out.mkdir()
    table = pq.read_table(folder)
    clusters: dict[int, list[tuple[float, str]]] = {}
    columns = (table.column(name).to_pylist() for name in ("cluster_id", "distance_to_centroid", "key"))
    for cluster, distance, key in zip(*columns, strict=True):
        clusters.setdefault(cluster, []).append((distance, key))
    numbers = sorted(clusters)
    held = {
        number: (np.array([key for _, key in clusters[number]]), np.array([d for d, _ in clusters[number]]))
        for number in numbers
    }
    n_items = np.array([len(held[number][0]) for number in numbers])
    d_intra = np.array([held[number][1].mean() for number in numbers])
    for number, quota in zip(numbers, quotas_of(n_items, d_intra), strict=True):
        keys, distances = held[number]
        first = np.lexsort((keys, -distances))[:quota]
        rows = {"key": keys[first], "cluster_id": np.full(quota, number, np.int32)}
        rows |= {"distance_to_centroid": distances[first], "rank": np.arange(1, quota + 1, dtype=np.int32)}
        pq.write_table(pa.table(rows), out / f"{number}.parquet")


_SIDES = {
    "ours": arrow,
    "ours, sql": sql,
    "trie": trie,
    "duckdb": duckdb,
    "polars": polars,
    "in memory": in_memory,
}


class Side:
    """One side in a process of its own, started once and told to run when its turn comes."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out, self.runs, self.peak = name, out, 0, 0.0
        command = [sys.executable, "-m", "benchmarks.pruning", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, folder: Path) -> float:
        """Seconds of one more run, over the files in `folder`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        shutil.rmtree(self.last, ignore_errors=True)
        self.runs += 1
        print(json.dumps([str(folder), str(self.last)]), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                seconds, self.peak = json.loads(line[7:])
                return float(seconds)
        raise RuntimeError(f"{self.name} ended with {self.process.wait()}")

    @property
    def last(self) -> Path:
        """What the last run wrote."""
        return self.out / f"{self.name}-{self.runs}"

    def stop(self) -> None:
        """Close the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def _serve(name: str) -> None:
    """Run a side for every pair of folders on standard input; answer with seconds and peak memory in GB."""
    session = None
    if name in ("ours", "ours, sql", "trie"):
        from spark_dbp.engine.session import start_local_session

        session = start_local_session({"spark.driver.memory": HEAP})
    with peak_memory() as peak:
        for line in sys.stdin:
            started = time.perf_counter()
            _SIDES[name](*map(Path, json.loads(line)))
            print("RESULT", json.dumps([time.perf_counter() - started, peak.total]), flush=True)
    if session is not None:
        session.stop()


def kept_rows(out: Path) -> tuple[int, int]:
    """Rows kept, and a sum over keys, clusters and ranks that agrees when the rows do."""
    rows = total = 0
    for file in (
        sorted((out / "keep").iterdir()) if (out / "keep").exists() else sorted(out.glob("*.parquet"))
    ):
        if file.suffix == ".parquet":
            for batch in pq.ParquetFile(file).iter_batches(columns=["key", "cluster_id", "rank"]):
                keys = batch.column(0).cast(pa.int64()).to_numpy().astype(np.uint64)
                more = batch.column(1).to_numpy().astype(np.uint64) * np.uint64(2**20 + 7)
                mixed = (keys + more) * (batch.column(2).to_numpy().astype(np.uint64) + np.uint64(2**33 + 1))
                total += int((mixed ^ (mixed >> np.uint64(29))).sum(dtype=np.uint64))
                rows += batch.num_rows
    return rows, total % 2**64


def measure(n_rows: int, sides: list[str], runs: int, n_clusters: int = 500) -> dict[str, float]:
    """Medians of every side, in turn, with the memory of all their processes; all must keep the same rows.

    Parameters
    ----------
    n_rows : int
    sides : list of str
        Of ``ours``, ``ours, sql``, ``duckdb``, ``polars``, ``in memory``.
    runs : int
        Counted ones; with more than one, a run before them is not counted.
    n_clusters : int

    Returns
    -------
    dict of str to float
        Seconds.
    """
    with scratch() as folder:
        write_assignments(folder / "in", n_rows, n_clusters)
        running = [Side(name, folder) for name in sides]
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(runs + (runs > 1)):
            for one in running:
                taken = one.run(folder / "in")
                if number or runs == 1:
                    seconds[one.name].append(taken)
        kept = {one.name: kept_rows(one.last) for one in running}
        for one in running:
            one.stop()
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [(one.name, f"{medians[one.name]:.1f} s, {one.peak:.1f} GB") for one in running]
    rows += [
        (f"{one} to {name}", f"{medians[one] / medians[name]:.2f}")
        for one in sides
        for name in sides
        if one.startswith("ours") and not name.startswith("ours")
    ]
    rows.append(("kept the same rows and ranks", "yes" if len(set(kept.values())) == 1 else f"NO: {kept}"))
    report(f"pruning {n_rows:,} rows in {n_clusters} clusters to {KEEP_RATIO:.0%} (median of {runs})", rows)
    return medians


def measure_growth(sizes: list[int], n_clusters: int = 500) -> None:
    """Seconds and memory of growing sizes; at the largest DuckDB's too, and those of the trie.

    Parameters
    ----------
    sizes : list of int
        Rising numbers of rows. The smallest runs once more, before the others.
    n_clusters : int
    """
    largest = sizes[-1]
    with scratch() as folder:
        for n_rows in sizes:
            write_assignments(folder / f"in-{n_rows}", n_rows, n_clusters)
        ours = Side("ours", folder)
        ours.run(folder / f"in-{sizes[0]}")
        rows = []
        for n_rows in sizes:
            seconds = ours.run(folder / f"in-{n_rows}")
            per_row = 1e9 * seconds / n_rows
            rows.append(
                (f"ours, {n_rows:,} rows", f"{seconds:.1f} s, {per_row:.0f} ns a row, {ours.peak:.1f} GB")
            )
        ours.stop()
        by_sql = Side("ours, sql", folder)
        by_sql.run(folder / f"in-{sizes[0]}")
        sql_seconds = by_sql.run(folder / f"in-{largest}")
        by_sql.stop()
        peer = Side("duckdb", folder)
        theirs = peer.run(folder / f"in-{largest}")
        peer.stop()
        same = kept_rows(ours.last) == kept_rows(peer.last) == kept_rows(by_sql.last)
        shutil.rmtree(peer.last)
        build = Side("trie", folder)
        trie_seconds = build.run(ours.last / "keep")
        build.stop()
    rows += [
        (f"duckdb, {largest:,} rows", f"{theirs:.1f} s, {peer.peak:.1f} GB"),
        ("ours to duckdb", f"{seconds / theirs:.2f}"),
        (f"ours, sql, {largest:,} rows", f"{sql_seconds:.1f} s, {by_sql.peak:.1f} GB"),
        ("ours, sql to duckdb", f"{sql_seconds / theirs:.2f}"),
        ("kept the same rows and ranks", "yes" if same else "NO"),
        (f"trie of {int(KEEP_RATIO * largest):,} keys", f"{trie_seconds:.1f} s, {build.peak:.1f} GB"),
    ]
    report(f"pruning in {n_clusters} clusters to {KEEP_RATIO:.0%}, growing", rows)


def measure_skew(n_rows: int, runs: int, n_clusters: int = 500) -> None:
    """Both engines on even clusters, and on the same rows with half of them in one cluster, in turn."""
    with scratch() as folder:
        for name in ("even", "skewed"):
            write_assignments(folder / name, n_rows, n_clusters)
        gather_in_one_cluster(folder / "skewed")
        rows = []
        for side in ("ours", "ours, sql"):
            one = Side(side, folder)
            seconds: dict[str, list[float]] = {"even": [], "skewed": []}
            for number in range(runs + 1):
                for name, taken in seconds.items():
                    value = one.run(folder / name)
                    if number:
                        taken.append(value)
            one.stop()
            even, skewed = (statistics.median(seconds[name]) for name in ("even", "skewed"))
            rows.append((f"{side}, even", f"{even:.1f} s"))
            rows.append((f"{side}, half in one cluster", f"{skewed:.1f} s, {skewed / even:.2f} times"))
    report(f"pruning {n_rows:,} rows, half of them in one cluster (median of {runs})", rows)


if __name__ == "__main__":
    _serve(sys.argv[1])
