"""A finished run without Spark: made of arrays, as far as reading commands look at it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from spark_dbp.config import RunConfig
from spark_dbp.kernels.histogram import find_bins
from spark_dbp.kernels.ranking import count_spread
from spark_dbp.kernels.row_hash import hash_rows
from spark_dbp.runs import Run, open_run
from spark_dbp.stages.quota import describe_quotas, plan_quotas


def order_rows(which: str, seed: int, keys: list, distances: np.ndarray) -> list[int]:
    """Rows of one cluster in the order of keeping."""
    if which == "random":
        seeds = pa.array(np.full(len(keys), seed, np.int64))
        score = hash_rows([pa.array(keys), seeds]).astype(np.int64)
    else:
        score = distances if which == "easy" else -distances
    return sorted(range(len(keys)), key=lambda row: (score[row], keys[row]))


def make_run(
    path: Path,
    keys: list,
    cluster: np.ndarray,
    distances: np.ndarray,
    *,
    prune: dict | None = None,
    **more: object,
) -> Run:
    """Write the tables and run.json of a run on rows that are clustered already.

    Parameters
    ----------
    path : Path
    keys : list of str
    cluster : ndarray of int, shape (n,)
        From 0 on; a number may be missing.
    distances : ndarray, shape (n,)
    prune : dict, optional
    **more
        ``duplicates``: a pyarrow table; ``dropped``: dict of reasons; other sections of the configuration.
    """
    rng = np.random.default_rng(0)
    k, distances = int(cluster.max()) + 1, distances.astype(np.float32)
    duplicates, dropped = more.pop("duplicates", None), dict(more.pop("dropped", {}))
    config = RunConfig.from_dict({
        "input": {"path": str(path.parent / "input")},
        "output": {"path": str(path)},
        "cluster": {"n_clusters": k},
        "prune": {"keep_ratio": 0.3, **(prune or {})},
        **more,
    })  # fmt: skip
    n_items = np.bincount(cluster, minlength=k)
    with np.errstate(invalid="ignore"):
        d_intra = np.bincount(cluster, distances, k) / n_items
    d_inter = rng.uniform(0.2, 0.9, k)
    settings = config.prune
    n_keep = settings.count_to_keep(len(keys))
    plan = plan_quotas(
        n_items, np.nan_to_num(d_intra), d_inter, n_keep, complexity=settings.complexity,
        temperature=settings.temperature, min_per_cluster=settings.min_per_cluster,
        cluster_balance=settings.cluster_balance,
    )  # fmt: skip
    kept: list[tuple] = []
    histograms = []
    by_cluster = np.split(np.argsort(cluster, kind="stable"), np.cumsum(n_items)[:-1])
    for number, rows in enumerate(by_cluster):
        bins, n = np.unique(find_bins(distances[rows]), return_counts=True)
        histograms.append([{"bin": int(b), "n_items": int(c)} for b, c in zip(bins, n, strict=True)])
        order = order_rows(
            settings.which_to_keep, settings.seed, [keys[row] for row in rows], distances[rows]
        )
        quota = int(plan["quota"][number])
        chosen = order[:quota]
        if settings.which_to_keep == "stratified" and len(order):
            ranks = count_spread(np.arange(len(order) + 1), len(order), quota)
            chosen = [order[i] for i in np.flatnonzero(np.diff(ranks))]
        kept += [
            (keys[rows[i]], number, float(distances[rows[i]]), rank + 1) for rank, i in enumerate(chosen)
        ]
    ids = pa.array(np.arange(k, dtype=np.int32))
    histogram_type = pa.list_(pa.struct([("bin", pa.int32()), ("n_items", pa.int64())]))
    tables = {
        "assignments": pa.table({
            "key": keys, "cluster_id": pa.array(cluster.astype(np.int32)), "distance_to_centroid": distances,
        }),
        "cluster_stats": pa.table({
            "cluster_id": ids, "n_items": n_items, "d_intra": d_intra, "d_inter": d_inter,
            "complexity": plan["complexity"], "distance_histogram": pa.array(histograms, histogram_type),
        }),
        "quotas": pa.table({
            "cluster_id": ids, "n_items": n_items, "weight": plan["weight"], "target": plan["target"],
            "quota": plan["quota"],
        }),
        "keep_list": pa.table({
            "key": [row[0] for row in kept],
            "cluster_id": pa.array([row[1] for row in kept], pa.int32()),
            "distance_to_centroid": pa.array([row[2] for row in kept], pa.float32()),
            "rank": pa.array([row[3] for row in kept], pa.int32()),
        }),
    }  # fmt: skip
    if duplicates is not None:
        tables["duplicates"] = duplicates
    files = {}
    for name, table in tables.items():
        folder = path / "tables" / name
        folder.mkdir(parents=True)
        half = table.num_rows // 2
        for number, part in enumerate([table.slice(0, half), table.slice(half)]):
            pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=5000)
        files[name] = {one.name: one.stat().st_size for one in sorted(folder.iterdir())}
    summary = describe_quotas(n_items, plan, settings.complexity)
    document = {
        "spark_dbp": "0.1.0", "format_version": 2, "run_id": "made", "committed_at": "2026-01-01T00:00:00+00:00",
        "tables": {name: f"tables/{name}" for name in tables},
        "rows": {name: table.num_rows for name, table in tables.items()},
        "digests": dict.fromkeys(tables, "0" * 16),
        "config": config.to_redacted_dict(),
        "versions": {"spark": "4.3.0", "python": "3.11.7", "numpy": "2.4.6"},
        "engine": {"name": "arrow", "why": ""},
        "input": {"rows": len(keys), "files": 1, "bytes": 1, "digest": "0" * 16, "version": None},
        "accounting": {
            "rows_in": len(keys) + sum(dropped.values()),
            "dropped": {**dropped, "pruned": len(keys) - n_keep}, "kept": n_keep,
        },
        "kmeans": {"n_train": len(keys), "history": [
            {"objective": 0.5 / (i + 1), "n_moved": 100 // (i + 1), "n_reseeded": 0} for i in range(6)
        ]},
        "summary": {
            "rows_to_prune": len(keys), "which_to_keep": settings.which_to_keep, **summary,
            "mean_distance": float(distances.mean()),
            "mean_distance_kept": float(np.mean([row[2] for row in kept])),
        },
        "stages": {"all": {
            "tables": {name: f"tables/{name}" for name in tables}, "files": files, "info": {}, "seconds": 1.5,
        }},
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(document).replace("NaN", "null"))
    return open_run(path)


def make_rows(n: int, k: int, seed: int = 0) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Keys, clusters of uneven size and distances with ties, of which many lie at cuts."""
    rng = np.random.default_rng(seed)
    cluster = np.concatenate([np.arange(k), (k * rng.random(n - k) ** 2).astype(int)])
    spread = rng.uniform(0.05, 0.6, k)
    distances = np.round(rng.beta(3, 5, n) * spread[cluster], 3)
    return [f"part/{i * 7919 % 1_000_003:07d}" for i in range(n)], cluster, distances
