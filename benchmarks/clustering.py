"""Fitting k-means: on a sample against faiss, scikit-learn and MLlib; on all rows against a pass of numpy."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import in_turn, peak_memory, report, scratch, write_vectors
from spark_dbp.engine.arrow import CommittedTable
from spark_dbp.engine.session import start_local_session
from spark_dbp.engine.vector_sums import sum_vectors
from spark_dbp.kernels.geometry import NearestCentroid, normalize_rows
from spark_dbp.kernels.lloyd import fit_spherical_kmeans
from spark_dbp.kernels.vectors import to_matrix
from spark_dbp.stages.kmeans import SphericalKMeans, assign


def _read(folder: Path) -> np.ndarray:
    columns = [pq.read_table(file, columns=["vector"]).column("vector") for file in sorted(folder.iterdir())]
    return np.concatenate([to_matrix(chunk) for column in columns for chunk in column.chunks])


def _objective(vectors: np.ndarray, centroids: np.ndarray) -> float:
    return float(NearestCentroid(normalize_rows(centroids)[0]).assign(vectors)[1].mean(dtype=np.float64))


def measure_fit(n_rows: int, dim: int, n_clusters: int, n_iter: int, runs: int, mllib: bool = True) -> None:
    """Print seconds and objectives of `n_iter` iterations on vectors in memory; MLlib's on Spark, once.

    Parameters
    ----------
    n_rows, dim, n_clusters, n_iter, runs : int
    mllib : bool
        Minutes at full size.
    """
    import faiss
    from sklearn.cluster import KMeans

    with scratch() as folder:
        # As many directions as a real set has: with fewer than clusters every side is done at once.
        write_vectors(folder / "in", n_rows, dim, n_concepts=n_rows // 20)
        vectors = _read(folder / "in")
        found: dict[str, np.ndarray] = {}
        # As far as the others come in n_iter.
        n_sooner = max(1, round(0.35 * n_iter))

        def ours() -> None:
            found["ours"] = fit_spherical_kmeans(vectors, n_clusters, n_iter).centroids

        def ours_sooner() -> None:
            found["ours_sooner"] = fit_spherical_kmeans(vectors, n_clusters, n_sooner).centroids

        def by_faiss() -> None:
            model = faiss.Kmeans(
                dim, n_clusters, niter=n_iter, spherical=True, seed=1, max_points_per_centroid=10**9
            )
            model.train(vectors)
            found["faiss"] = np.asarray(model.centroids)

        def by_sklearn() -> None:
            # Not spherical, which on unit vectors costs it about one more percent of the objective.
            model = KMeans(n_clusters, init="random", n_init=1, max_iter=n_iter, tol=0, random_state=1).fit(
                vectors
            )
            centres = model.cluster_centers_
            found["sklearn"] = (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)

        seconds = in_turn(runs, ours=ours, ours_sooner=ours_sooner, faiss=by_faiss, sklearn=by_sklearn)
        if mllib:
            seconds["MLlib"], found["MLlib"] = _by_mllib(folder, n_clusters, n_iter)
    objectives = {name: _objective(vectors, centroids) for name, centroids in found.items()}
    rows = [(name, f"{value:.1f} s, objective {objectives[name]:.5f}") for name, value in seconds.items()]
    mine, reached = seconds["ours_sooner"], objectives["ours_sooner"]
    rows += [
        (f"{name} to ours_sooner", f"{value / mine:.1f}; objective {reached / objectives[name] - 1:+.2%}")
        for name, value in seconds.items()
        if name != "ours_sooner"
    ]
    report(
        f"k-means of {n_rows:,} x {dim}, k {n_clusters}, up to {n_iter} iterations; ours_sooner {n_sooner} "
        f"(median of {runs})",
        rows,
    )


def _by_mllib(folder: Path, n_clusters: int, n_iter: int) -> tuple[float, np.ndarray]:
    import pyarrow as pa
    from pyspark.ml.clustering import KMeans
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import functions as F

    (folder / "arrays").mkdir()
    for file in sorted((folder / "in").iterdir()):
        matrix = np.concatenate([to_matrix(c) for c in pq.read_table(file).column("vector").chunks])
        lists = pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
        pq.write_table(
            pa.table({"features": lists.cast(pa.list_(pa.float32()))}), folder / "arrays" / file.name
        )
    spark = start_local_session()
    frame = spark.read.parquet(str(folder / "arrays")).select(
        array_to_vector(F.col("features")).alias("features")
    )
    frame = frame.cache()
    frame.count()
    started = time.perf_counter()
    model = KMeans(
        k=n_clusters, maxIter=n_iter, tol=0.0, initMode="random", distanceMeasure="cosine", seed=1
    ).fit(frame)
    seconds = time.perf_counter() - started
    centres = np.array(model.clusterCenters())
    spark.stop()
    return seconds, (centres / np.linalg.norm(centres, axis=1, keepdims=True)).astype(np.float32)


def measure_full(n_rows: int, dim: int, n_clusters: int, runs: int) -> None:
    """Print seconds of one iteration on all rows, and of one pass of numpy over the same files.

    Parameters
    ----------
    n_rows, dim, n_clusters, runs : int
    """
    with scratch() as folder:
        write_vectors(folder / "in", n_rows, dim)
        centroids = _read_some(folder / "in", n_clusters)
        spark = start_local_session()
        table = CommittedTable(spark, str(folder / "in"), spark.read.parquet(str(folder / "in")), dim)

        def plain() -> None:
            sums = np.zeros((n_clusters, dim))
            for file in sorted((folder / "in").iterdir()):
                for chunk in pq.read_table(file, columns=["vector"]).column("vector").chunks:
                    matrix = to_matrix(chunk)
                    for start in range(0, len(matrix), 8192):
                        block = matrix[start : start + 8192]
                        labels = (block @ centroids.T).argmax(axis=1)
                        order = np.argsort(labels, kind="stable")
                        firsts = np.flatnonzero(np.diff(labels[order], prepend=-1))
                        sums[labels[order][firsts]] += np.add.reduceat(
                            block[order].astype(np.float64), firsts, axis=0
                        )

        seconds = in_turn(runs, ours=lambda: sum_vectors(table, centroids), plain=plain)
        spark.stop()
    report(
        f"one iteration on all rows, {n_rows:,} x {dim}, k {n_clusters} (median of {runs}, in turn)",
        [
            ("ours, exact sums", f"{seconds['ours']:.2f} s"),
            ("numpy, one pass over the same files", f"{seconds['plain']:.2f} s"),
            ("ratio", f"{seconds['ours'] / seconds['plain']:.2f}"),
        ],
    )


def _read_some(folder: Path, n: int) -> np.ndarray:
    first = sorted(folder.iterdir())[0]
    return np.concatenate([to_matrix(c) for c in pq.read_table(first).column("vector").chunks])[:n].copy()


def measure_many(n_rows: int, dim: int, n_clusters: int) -> None:
    """Print rows a second of an assignment to very many centroids, and the memory of all processes.

    Parameters
    ----------
    n_rows, dim, n_clusters : int
    """
    with scratch() as folder, peak_memory() as peak:
        write_vectors(folder / "in", n_rows, dim)
        spark = start_local_session()
        table = CommittedTable(spark, str(folder / "in"), spark.read.parquet(str(folder / "in")), dim)
        started = time.perf_counter()
        model = SphericalKMeans(n_clusters, n_iter=1, max_points_per_centroid=4).fit(table, n_rows)
        fitted = time.perf_counter()
        assign(table, model.centroids_).write.format("noop").mode("overwrite").save()
        assigned = time.perf_counter()
        spark.stop()
    report(
        f"{n_clusters:,} clusters of {n_rows:,} x {dim}",
        [
            (f"fit on {model.n_train_:,} vectors, one iteration", f"{fitted - started:.0f} s"),
            ("assignment", f"{assigned - fitted:.0f} s, {n_rows / (assigned - fitted):,.0f} rows/s"),
            ("all processes at most", f"{peak.total:.1f} GB; largest Python worker {peak.worker:.1f} GB"),
        ],
    )
