"""What one would write oneself on a single machine, for `whole_run`: scripts that do what a run does.

They make the checks that a run makes of its input (nulls, ranges, finite values, unique keys), and write a
keep list and a trie. They do not read back what they wrote, nor can they go on after a fault.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from spark_dbp.kernels.geometry import measure_distance_to_nearest, normalize_rows
from spark_dbp.stages.quota import plan_quotas

KEEP_RATIO, N_ITER, POINTS_PER_CENTROID = 0.3, 20, 256
_BLOCK = 8192


def prune_clustered(source: Path, out: Path, centroids: Path, memory_limit: str, shard_keys: int) -> None:
    """From ``key``, ``cluster_id``, ``distance_to_centroid`` and centroids: DuckDB, numpy and marisa.

    Parameters
    ----------
    source, out, centroids : Path
    memory_limit : str
        Of DuckDB; empty for its own default.
    shard_keys : int
        Keys of a trie, read and built one after the other; 0 for a single one.
    """
    import duckdb

    out.mkdir()
    settings: dict[str, Any] = {"threads": str(os.cpu_count()), "temp_directory": str(out / "spilled")}
    if memory_limit:
        settings["memory_limit"] = memory_limit
    with duckdb.connect(config=settings) as link:
        link.execute("SET preserve_insertion_order = false")
        link.execute(f"CREATE VIEW t AS SELECT * FROM '{source}/*.parquet'")
        vectors = np.load(centroids)
        _check_clustered(link, len(vectors))
        stats = link.execute(
            "SELECT cluster_id, count(*) AS n_items, avg(distance_to_centroid) AS d_intra FROM t GROUP BY ALL"
        ).fetchnumpy()
        ids = np.asarray(stats["cluster_id"])
        n_items, d_intra = np.zeros(len(vectors), np.int64), np.zeros(len(vectors))
        n_items[ids], d_intra[ids] = stats["n_items"], stats["d_intra"]
        quotas = pa.table({"cluster_id": np.arange(len(vectors)), "quota": _plan(n_items, d_intra, vectors)})
        link.register("quotas", quotas)
        link.execute(
            "COPY (SELECT key, cluster_id, distance_to_centroid, rank FROM (SELECT *, row_number() OVER "
            "(PARTITION BY cluster_id ORDER BY distance_to_centroid DESC, key) AS rank FROM t) "
            f"JOIN quotas USING (cluster_id) WHERE rank <= quota) TO '{out}/keep.parquet'"
        )
    _build_tries(out, shard_keys)


def _check_clustered(link: object, n_clusters: int) -> None:
    n_bad, n_rows, n_keys = link.execute(  # type: ignore[attr-defined]
        "SELECT count(*) FILTER (WHERE key IS NULL OR cluster_id IS NULL OR cluster_id NOT BETWEEN 0 AND "
        f"{n_clusters - 1} OR distance_to_centroid IS NULL OR NOT distance_to_centroid BETWEEN 0 AND 2), "
        "count(*), count(DISTINCT hash(key)) FROM t"
    ).fetchone()
    assert n_bad == 0
    assert n_keys == n_rows  # then no key is there twice


def _build_tries(out: Path, shard_keys: int) -> None:
    import marisa_trie

    file = pq.ParquetFile(out / "keep.parquet")
    batches = file.iter_batches(shard_keys or max(1, file.metadata.num_rows), columns=["key"])
    keys: Iterator[list[str]] = (batch.column(0).to_pylist() for batch in batches)
    for number, of_shard in enumerate(keys if shard_keys else [list(chain.from_iterable(keys))]):
        marisa_trie.Trie(of_shard).save(str(out / f"{number}.marisa"))


def prune_embeddings(source: Path, out: Path, n_clusters: int) -> None:
    """From ``key`` and ``embedding``, all in memory: pyarrow, numpy, faiss and marisa."""
    import faiss

    table = pq.read_table(source)
    assert table.column("key").null_count == 0
    assert len(table.column("key").unique()) == len(table)
    keys = table.column("key").to_numpy()
    chunks = table.column("embedding").chunks
    del table
    vectors = np.empty((len(keys), len(chunks[0][0])), np.float32)
    start = 0
    while chunks:  # what is copied is let go
        lists = chunks.pop(0)
        part = lists.flatten().to_numpy().reshape(len(lists), -1)
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        assert np.isfinite(norms).all() and (norms > 0).all()
        np.divide(part, norms, out=vectors[start : start + len(part)])
        start += len(part)
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
        block = slice(start, start + _BLOCK)
        scores = vectors[block] @ centroids.T
        cluster[block] = scores.argmax(axis=1)
        distance[block] = 1 - scores.max(axis=1)
    n_items = np.bincount(cluster, minlength=n_clusters)
    d_intra = np.bincount(cluster, distance, n_clusters) / np.maximum(n_items, 1)
    quota = _plan(n_items, d_intra, centroids)
    order = np.lexsort((-distance, cluster))
    rank = np.arange(1, len(keys) + 1) - np.repeat(np.cumsum(n_items) - n_items, n_items)
    is_kept = rank <= quota[cluster[order]]
    rows = order[is_kept]
    out.mkdir()
    kept = {"key": keys[rows], "cluster_id": cluster[rows], "distance_to_centroid": distance[rows]}
    pq.write_table(pa.table(kept | {"rank": rank[is_kept]}), out / "keep.parquet")
    _build_tries(out, 0)


def load_pairs(path: Path) -> Iterator[tuple[npt.NDArray[np.float32], pa.Table]]:
    """Arrays as float32 and the metadata beside them, a file at a time."""
    for array in sorted([*path.glob("img_emb/*.npy"), *path.glob("*.npz")]):
        if array.suffix == ".npz":
            rows, beside = np.load(array)["l14_img"], array.with_suffix(".parquet")
        else:
            beside = path / "metadata" / array.name.replace("img_emb", "metadata").replace(".npy", ".parquet")
            rows = np.load(array)
        yield rows.astype(np.float32), pq.read_table(beside, use_threads=False)


def make_table(source: Path, out: Path) -> None:
    """From arrays and the metadata beside them: ``key``, ``embedding``, and the rest, as Parquet."""
    out.mkdir()
    for number, (rows, metadata) in enumerate(load_pairs(source)):
        assert len(rows) == len(metadata)
        offsets = pa.array(np.arange(len(rows) + 1, dtype=np.int32) * rows.shape[1])
        lists = pa.ListArray.from_arrays(offsets, pa.array(rows.reshape(-1)))
        table = metadata.rename_columns(["key", *metadata.column_names[1:]]).add_column(1, "embedding", lists)
        pq.write_table(table, out / f"{number:05d}.parquet", use_dictionary=["text"])


def _plan(n_items: np.ndarray, d_intra: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    d_inter = measure_distance_to_nearest(normalize_rows(centroids)[0], 20)
    return plan_quotas(n_items, d_intra, d_inter, int(KEEP_RATIO * n_items.sum()))["quota"]


if __name__ == "__main__":
    given = json.loads(sys.argv[2])
    given |= {name: Path(given[name]) for name in ("source", "out", "centroids") if name in given}
    globals()[sys.argv[1]](**given)
