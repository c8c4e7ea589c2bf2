"""Spherical k-means on Spark, and the assignment of every sample to its nearest centroid.

Imports numpy, `arrow`, `compat`, `vector_sums`, `geometry`, `histogram`, `lloyd`, `row_hash` and `progress`;
pyspark, pyarrow and `vectors` inside functions.

The driver fits on a sample of at most ``max_points_per_centroid * n_clusters`` vectors, as faiss does. With
``train="full"`` further iterations go over all rows, and workers return sums of vectors. The sums are exact
(see `geometry`), so the centroids are the same in any order of addition.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, DISTANCE, KEY, VECTOR
from spark_dbp.engine.arrow import CommittedTable, map_batches, plan_scan, reads_alike
from spark_dbp.engine.compat import collect_arrow, share_array
from spark_dbp.engine.mapped_rows import MappedRows, to_frame
from spark_dbp.engine.vector_sums import sum_vectors
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.kernels.geometry import NearestCentroid, normalize_rows
from spark_dbp.kernels.histogram import DISTANCE_UNIT
from spark_dbp.kernels.lloyd import INITS, Iteration, fit_spherical_kmeans, has_settled, step_ahead
from spark_dbp.kernels.row_hash import hash_rows
from spark_dbp.lake.progress import report_rounds

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

log = logging.getLogger("spark_dbp")

# How progress names iterations that go over all rows.
_PASSES = "passes over all rows"


class SphericalKMeans:
    """Spherical k-means: centroids of unit vectors by cosine.

    Parameters
    ----------
    n_clusters : int
        k, at most the number of samples.
    n_iter : int
        Largest number of iterations (see `lloyd`). There are fewer when the means stop moving.
    train : {"sample", "full"}
        ``sample`` fits on a sample. ``full`` goes on from there with at most `n_iter` passes over all rows.
    init : {"random", "k-means++"}
        First centroids: random samples, or samples that tend to be far from those chosen before
        (`choose_first_centroids`).
    tol : float
        Iterations stop when the objective falls by less than this share of itself.
    max_points_per_centroid : int
        The sample has at most this many rows for each cluster: those whose keys have the smallest hashes.
    seed : int
        For the choice of the sample and of the first centroids.
    name : str
        Key of the configuration that gave `n_clusters`, for messages.

    Attributes
    ----------
    centroids_ : ndarray of float32, shape (k, dim)
        Unit norm; the row number is the cluster id.
    history_ : list of Iteration
        Objective of every iteration: on the sample, then with ``full`` on all rows.
    n_train_ : int
        Number of vectors in the sample.

    Examples
    --------
    ``samples = ingest(df, key="uid", embedding="clip")`` prepares any DataFrame of embeddings. Then
    ``SphericalKMeans(100).fit(samples).transform(samples)`` is the assignments table.
    """

    def __init__(
        self,
        n_clusters: int,
        *,
        n_iter: int = 20,
        train: str = "sample",
        init: str = "random",
        tol: float = 0.0,
        max_points_per_centroid: int = 256,
        seed: int = 0,
        name: str = "cluster.n_clusters",
    ) -> None:
        if init not in INITS:
            raise ConfigError(f"init {init!r} is unknown", mend=f"give one of {', '.join(INITS)}")
        self.n_clusters = n_clusters
        self.n_iter = n_iter
        self.train = train
        self.init = init
        self.tol = tol
        self.max_points_per_centroid = max_points_per_centroid
        self.seed = seed
        self.name = name

    def fit(self, samples: DataFrame | CommittedTable, n_rows: int | None = None) -> SphericalKMeans:
        """Fit the centroids.

        Parameters
        ----------
        samples : DataFrame or CommittedTable
            ``key`` and ``vector`` from `ingest`, without bad rows and duplicate keys.
        n_rows : int, optional
            Number of rows, if known. Otherwise they are counted.

        Returns
        -------
        SphericalKMeans
            Itself.

        Raises
        ------
        InputError
            When there are fewer rows than clusters.
        """
        n_rows = to_frame(samples).count() if n_rows is None else n_rows
        check_n_clusters(self.n_clusters, n_rows, self.name)
        n_points = min(n_rows, self.n_clusters * self.max_points_per_centroid)
        vectors = draw_training_sample(samples, n_points, n_rows, self.seed)
        self.n_train_ = len(vectors)
        report_rounds("iterations", 0, self.n_iter)
        result = fit_spherical_kmeans(
            vectors,
            self.n_clusters,
            self.n_iter,
            init=self.init,
            tol=self.tol,
            seed=self.seed,
            on_iteration=self._tell_iteration,
        )
        self.centroids_, self.history_ = result.centroids, result.history
        if self.train == "full":
            self._refine(samples)
        return self

    def _tell_iteration(self, number: int, iteration: Iteration) -> None:
        _log_iteration(number, iteration)
        report_rounds("iterations", number, self.n_iter)

    def _refine(self, samples: DataFrame | CommittedTable) -> None:
        means = centroids = self.centroids_
        before = None
        report_rounds(_PASSES, 0, self.n_iter)
        for number in range(1, self.n_iter + 1):
            sums = sum_vectors(samples, centroids)
            # A cluster without rows keeps its mean.
            means_before, means = means, means.copy()
            updated, is_zero = normalize_rows(sums.sums)
            means[sums.cluster_ids[~is_zero]] = updated[~is_zero]
            objective = float(sums.distance_sum) * DISTANCE_UNIT / int(sums.n_items.sum())
            self.history_.append(Iteration(objective, n_moved=-1, n_reseeded=0))
            log.info("  all rows, iteration %d: mean distance %.6f", number, objective)
            report_rounds(_PASSES, number, self.n_iter)
            if np.array_equal(means, centroids) or has_settled(before, objective, self.tol):
                break
            centroids = step_ahead(means, means_before, before, objective)
            before = objective
        self.centroids_ = means

    def transform(self, samples: DataFrame | CommittedTable) -> DataFrame:
        """Assign every sample to its nearest centroid.

        Parameters
        ----------
        samples : DataFrame or CommittedTable
            ``key`` and ``vector`` from `ingest`, without bad rows.

        Returns
        -------
        DataFrame
            ``key``, ``cluster_id`` INT, ``distance_to_centroid`` FLOAT (``1 - cos``).
        """
        return assign(samples, self.centroids_)


def check_n_clusters(n_clusters: int, n_rows: int, name: str = "cluster.n_clusters") -> None:
    """Refuse more clusters than rows.

    Raises
    ------
    InputError
    """
    if n_clusters > n_rows:
        raise InputError(
            f"{name} is {n_clusters:,} but there are only {n_rows:,} rows to cluster",
            mend=f"set {name} to at most {n_rows:,} (the paper has 500 for 280M rows)",
        )


def check_training_sample(
    n_points: int, dim: int, memory: float, collected: float, section: str = "cluster"
) -> None:
    """Refuse a training sample that the driver cannot hold.

    Collecting and sorting it takes three times its own bytes, 12 for each number.

    Parameters
    ----------
    n_points, dim : int
    memory : float
        Bytes that this process may take.
    collected : float
        Bytes that Spark may send to it (``spark.driver.maxResultSize``).
    section : str
        Of the configuration, for messages.

    Raises
    ------
    InputError

    Examples
    --------
    >>> check_training_sample(128_000, 384, memory=2**32, collected=2**30)
    >>> check_training_sample(12_800_000, 768, memory=2**34, collected=float("inf"))
    Traceback (most recent call last):
    ...
    spark_dbp.errors.InputError: the training sample of 12,800,000 x 768 takes 110 GiB of the driver's 16
      to mend it: lower cluster.max_points_per_centroid to 14 % of it, or give the driver more memory
    """
    n_bytes = 4 * n_points * dim
    share = min(memory / (3 * n_bytes), collected / n_bytes)
    if share >= 1:
        return
    lower = f"lower {section}.max_points_per_centroid to {math.floor(100 * share)} % of it"
    if memory < 3 * n_bytes:
        takes = f"takes {3 * n_bytes / 2**30:.3g} GiB of the driver's {memory / 2**30:.3g}"
        more = "give the driver more memory"
    else:
        takes = (
            f"is {n_bytes / 2**30:.3g} GiB, and Spark sends {collected / 2**30:.3g} GiB to the driver at most"
        )
        more = "raise spark.driver.maxResultSize"
    raise InputError(f"the training sample of {n_points:,} x {dim} {takes}", mend=f"{lower}, or {more}")


def _log_iteration(number: int, iteration: Iteration) -> None:
    log.info(
        "  iteration %d: mean distance %.6f, %s moved%s",
        number,
        iteration.objective,
        f"{iteration.n_moved:,}",
        f", {iteration.n_reseeded} empty clusters reseeded" if iteration.n_reseeded else "",
    )


def draw_training_sample(
    samples: DataFrame | CommittedTable, n_points: int, n_rows: int, seed: int
) -> npt.NDArray[np.float32]:
    """Vectors of the `n_points` samples with the smallest ``xxhash64(key, seed)``, in that order.

    Parameters
    ----------
    samples : DataFrame or CommittedTable
        ``key`` and ``vector``; `n_rows` rows.
    n_points, n_rows, seed : int

    Returns
    -------
    ndarray of float32, shape (n_points, dim)
    """
    from spark_dbp.kernels.vectors import to_matrix

    wanted = n_points
    while True:
        # Hashes are spread evenly. So take the rows below a limit that should let `wanted` rows through, with
        # six standard deviations to spare. The driver sorts only these.
        share = (wanted + 6 * math.sqrt(wanted) + 10) / n_rows
        most = -(2**63) + int(share * 2**64) if share < 1 else 2**63 - 1
        table = collect_arrow(_choose_by_hash(samples, most, seed)).combine_chunks()
        if table.num_rows >= n_points or share >= 1:
            break
        wanted *= 2
    hashes = table.column("hash").to_numpy()
    order = np.argsort(hashes, kind="stable")
    repeated = hashes[order][1:] == hashes[order][:-1]
    vectors = _joined_matrix(table.column(VECTOR), to_matrix)
    if repeated.any():  # different keys with equal hashes: the bytes of their vectors decide
        order = np.array(sorted(range(len(hashes)), key=lambda row: (hashes[row], vectors[row].tobytes())))
    return np.asarray(vectors[order[:n_points]], dtype=np.float32)


def _choose_by_hash(samples: DataFrame | CommittedTable, most: int, seed: int) -> DataFrame:
    """``hash`` BIGINT and ``vector`` of the rows whose ``xxhash64(key, seed)`` is at most `most`."""
    from pyspark.sql import functions as F

    if not isinstance(samples, CommittedTable) or not reads_alike(samples.frame.schema[KEY].dataType):
        hashed = to_frame(samples).select(F.xxhash64(KEY, F.lit(seed).cast("bigint")).alias("hash"), VECTOR)
        return hashed.where(F.col("hash") <= most)

    def choose(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            seeds = pa.array(np.full(batch.num_rows, seed, dtype=np.int64))
            hashes = hash_rows([batch.column(0), seeds]).astype(np.int64)
            chosen = pa.RecordBatch.from_arrays([pa.array(hashes), batch.column(1)], ["hash", VECTOR])
            yield chosen.filter(pa.array(hashes <= most))

    return map_batches(samples, [KEY, VECTOR], choose, f"hash BIGINT, {VECTOR} BINARY")


def _joined_matrix(chunks: pa.ChunkedArray, to_matrix: object) -> npt.NDArray[np.float32]:
    parts = [to_matrix(chunk) for chunk in chunks.chunks if len(chunk)]  # type: ignore[operator]
    return np.concatenate(parts)


def assign(samples: DataFrame | CommittedTable, centroids: npt.NDArray[np.float32]) -> DataFrame:
    """Nearest centroid of every sample; see `SphericalKMeans.transform`.

    Parameters
    ----------
    samples : DataFrame or CommittedTable
    centroids : ndarray of float32, shape (k, dim)
        Unit norm, on the grid.
    """
    return to_frame(plan_assignment(samples, centroids))


def plan_assignment(samples: DataFrame | CommittedTable, centroids: npt.NDArray[np.float32]) -> MappedRows:
    """Like `assign`, but returns rows that workers can write themselves."""
    read_centroids = share_array(to_frame(samples).sparkSession, centroids)

    def nearest_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from spark_dbp.kernels.vectors import to_matrix

        nearest = NearestCentroid(read_centroids())
        for batch in batches:
            labels, distances = nearest.assign(to_matrix(batch.column(1)))
            yield pa.RecordBatch.from_arrays(
                [batch.column(0), pa.array(labels), pa.array(distances)], [KEY, CLUSTER_ID, DISTANCE]
            )

    return MappedRows(*plan_scan(samples, [KEY, VECTOR], nearest_of), _assignments_type(samples))


def assign_given(
    samples: DataFrame | CommittedTable,
    cluster_ids: npt.NDArray[np.int32],
    centroids: npt.NDArray[np.float32],
) -> DataFrame:
    """Distances of samples that have a ``cluster_id`` already.

    Parameters
    ----------
    samples : DataFrame or CommittedTable
        ``key``, ``vector`` and ``cluster_id``.
    cluster_ids : ndarray of int32, shape (k,)
        Id of each row of `centroids`, rising.
    centroids : ndarray of float32, shape (k, dim)

    Returns
    -------
    DataFrame
        ``key``, ``cluster_id`` INT, ``distance_to_centroid`` FLOAT.
    """
    read_centroids = share_array(to_frame(samples).sparkSession, centroids)

    def distances_of(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        from spark_dbp.kernels.vectors import to_matrix

        nearest = NearestCentroid(read_centroids())
        for batch in batches:
            labels = np.searchsorted(cluster_ids, batch.column(2).to_numpy()).astype(np.int32)
            distances = nearest.distances(to_matrix(batch.column(1)), labels).astype(np.float32)
            yield pa.RecordBatch.from_arrays(
                [batch.column(0), batch.column(2), pa.array(distances)], [KEY, CLUSTER_ID, DISTANCE]
            )

    columns = [KEY, VECTOR, CLUSTER_ID]
    return map_batches(samples, columns, distances_of, _assignments_type(samples))


def _assignments_type(samples: DataFrame | CommittedTable) -> StructType:
    from pyspark.sql import types as T

    return T.StructType(
        [
            to_frame(samples).schema[KEY],
            T.StructField(CLUSTER_ID, T.IntegerType()),
            T.StructField(DISTANCE, T.FloatType()),
        ]
    )


def compute_mean_centroids(
    samples: DataFrame | CommittedTable,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Normalized mean of each cluster, for samples that have a ``cluster_id`` already.

    Parameters
    ----------
    samples : DataFrame or CommittedTable
        ``vector`` and ``cluster_id``.

    Returns
    -------
    cluster_ids : ndarray of int32, shape (k,), rising
    centroids : ndarray of float32, shape (k, dim)

    Raises
    ------
    InputError
        When the vectors of a cluster cancel out.
    """
    sums = sum_vectors(samples)
    centroids, is_zero = normalize_rows(sums.sums)
    if is_zero.any():
        raise InputError(
            f"cluster {sums.cluster_ids[is_zero][0]}: its vectors cancel out, so it has no mean direction",
            mend="give centroids with input.centroids",
        )
    return sums.cluster_ids, centroids
