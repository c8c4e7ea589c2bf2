"""``spark-dbp run`` on embeddings, from the command to its end, against a script that holds all in memory.

The script does the same with the libraries that one would take on a single machine: pyarrow, numpy, faiss,
marisa. It neither checks its input nor reads back what it wrote, cannot go on after a fault, and its memory
grows with the rows.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import in_turn, peak_memory, report, scratch, write_vectors
from spark_dbp.kernels.geometry import measure_distance_to_nearest, normalize_rows
from spark_dbp.kernels.vectors import to_matrix
from spark_dbp.stages.quota import plan_quotas

KEEP_RATIO, N_ITER, POINTS_PER_CENTROID = 0.3, 20, 256
_BLOCK = 8192


def measure(n_rows: int, dim: int, n_clusters: int, runs: int) -> None:
    """Print seconds and memory of both sides, and the seconds of our stages.

    Parameters
    ----------
    n_rows, dim, n_clusters, runs : int
    """
    with scratch() as folder:
        source = folder / "in"
        write_vectors(source, n_rows, dim)
        for file in source.iterdir():
            _as_lists(file)
        peaks = {"ours": 0.0, "script": 0.0}

        def side(name: str, *command: str) -> None:
            out = folder / name
            shutil.rmtree(out, ignore_errors=True)
            with peak_memory() as peak:
                subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
            peaks[name] = max(peaks[name], peak.total)

        settings = {
            "input": {"path": str(source)},
            "output": {"path": str(folder / "ours")},
            "cluster": {"n_clusters": n_clusters},
            "prune": {"keep_ratio": KEEP_RATIO},
        }
        (folder / "conf.yaml").write_text(json.dumps(settings))
        script = ("benchmarks.whole_run", str(source), str(folder / "script"), str(n_clusters))
        seconds = in_turn(
            runs,
            0,
            ours=lambda: side("ours", "spark_dbp", "run", str(folder / "conf.yaml")),
            script=lambda: side("script", *script),
        )
        run = json.loads((folder / "ours/run.json").read_text())
        n_kept = pq.read_metadata(folder / "script/keep.parquet").num_rows
    stages = run["stages"].values()
    report(
        f"the whole run, {n_rows:,} x {dim}, k {n_clusters}, {KEEP_RATIO:.0%} kept (median of {runs})",
        [
            *((name, f"{seconds[name]:.1f} s, {peaks[name]:.1f} GB") for name in seconds),
            ("ours to script", f"{seconds['ours'] / seconds['script']:.2f}"),
            ("rows kept by ours and by the script", f"{run['rows']['keep_list']:,}, {n_kept:,}"),
            *((f"  {stage['name']}", f"{stage['seconds']:.1f} s") for stage in stages),
            ("  start, end and all else", f"{seconds['ours'] - sum(s['seconds'] for s in stages):.1f} s"),
        ],
    )


def _as_lists(file: Path) -> None:
    """The vectors as a lake has them: ARRAY<FLOAT>, of no particular length."""
    table = pq.read_table(file)
    vectors = np.concatenate([to_matrix(chunk) for chunk in table.column("vector").chunks])
    vectors *= np.random.default_rng(4).uniform(5, 50, (len(vectors), 1)).astype(np.float32)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
    lists = lists.cast(pa.list_(pa.float32()))
    pq.write_table(pa.table({"key": table.column("key"), "embedding": lists}), file, row_group_size=20_000)


def _script(source: Path, out: Path, n_clusters: int) -> None:
    import faiss
    import marisa_trie

    table = pq.read_table(source)
    keys = table.column("key").to_numpy()
    lists = table.column("embedding").combine_chunks()
    vectors = lists.flatten().to_numpy().reshape(len(keys), -1)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    model = faiss.Kmeans(
        vectors.shape[1],
        n_clusters,
        niter=N_ITER,
        spherical=True,
        seed=1,
        max_points_per_centroid=POINTS_PER_CENTROID,
    )
    model.train(vectors)
    centroids = np.asarray(model.centroids)
    cluster = np.empty(len(keys), np.int32)
    distance = np.empty(len(keys), np.float32)
    for start in range(0, len(keys), _BLOCK):
        rows = slice(start, start + _BLOCK)
        scores = vectors[rows] @ centroids.T
        cluster[rows] = scores.argmax(axis=1)
        distance[rows] = 1 - scores.max(axis=1)
    n_items = np.bincount(cluster, minlength=n_clusters)
    d_intra = np.bincount(cluster, distance, n_clusters) / np.maximum(n_items, 1)
    d_inter = measure_distance_to_nearest(normalize_rows(centroids)[0], 20)
    quota = plan_quotas(n_items, d_intra, d_inter, int(KEEP_RATIO * len(keys)))["quota"]
    order = np.lexsort((-distance, cluster))
    rank = np.arange(1, len(keys) + 1) - np.repeat(np.cumsum(n_items) - n_items, n_items)
    is_kept = rank <= quota[cluster[order]]
    rows = order[is_kept]
    out.mkdir()
    kept = {"key": keys[rows], "cluster_id": cluster[rows], "distance_to_centroid": distance[rows]}
    pq.write_table(pa.table(kept | {"rank": rank[is_kept]}), out / "keep.parquet")
    marisa_trie.Trie(keys[rows].tolist()).save(str(out / "keep.marisa"))


if __name__ == "__main__":
    _script(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
