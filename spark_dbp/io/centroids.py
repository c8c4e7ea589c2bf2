"""Read the centroids that the user gives with clustered data.

Imports numpy, `compat`, `embeddings`, `spark_errors`, `input_files`, `sources`, `geometry`, `vectors` and
`lake`; pyspark inside functions.

They come as Parquet (``cluster_id``, ``centroid``), or as a ``.npy`` matrix whose row number is the cluster
id.
"""

from __future__ import annotations

import hashlib
import io
import logging
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CENTROID, CLUSTER_ID, PROBLEM, find_type
from spark_dbp.engine.compat import collect_arrow
from spark_dbp.engine.forms import to_embedding_column
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import InputError, SparkDbpError
from spark_dbp.io.footers import read_parquet
from spark_dbp.io.input_files import read_checked
from spark_dbp.io.sources import take_snapshot
from spark_dbp.kernels.geometry import normalize_rows
from spark_dbp.kernels.vectors import group_by_dimension
from spark_dbp.lake import files
from spark_dbp.lake.paths import take_literally, to_spark_source

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

log = logging.getLogger("spark_dbp")

IntVector = npt.NDArray[np.int32]
Matrix = npt.NDArray[np.float32]
Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]


@dataclass(frozen=True)
class GivenCentroids:
    """The file or table that ``input.centroids`` names.

    Attributes
    ----------
    spark : SparkSession or None
        None where only ``.npy`` is read, and this process reaches it.
    path : str
        Parquet, or ``.npy`` (never with pickled objects).
    """

    spark: SparkSession | None
    path: str

    def take_snapshot(self) -> Any:
        """A value that changes when the content does. It can be written as JSON."""
        if self.path.endswith(".npy"):
            return hashlib.sha256(_read_npy_bytes(self.spark, self.path)).hexdigest()
        return asdict(take_snapshot(_read_parquet(self.spark, self.path), is_whole=True))

    def read(self) -> tuple[IntVector, Matrix]:
        """Read the centroids and bring them to unit norm, on the grid.

        Returns
        -------
        cluster_ids : ndarray of int32, shape (k,), rising
        centroids : ndarray of float32, shape (k, dim)

        Raises
        ------
        InputError
            When the file is missing or malformed, or a centroid is not finite, is zero, or comes twice.
        """
        path = self.path
        ids, matrix = (_read_npy if path.endswith(".npy") else _read_rows)(self.spark, path)
        if len(ids) == 0:
            raise InputError(f"input.centroids {path} has no rows", mend="give one centroid a cluster")
        order = np.argsort(ids, kind="stable")
        ids, matrix = ids[order], matrix[order]
        repeated = ids[1:][ids[1:] == ids[:-1]]
        if repeated.size:
            raise _refused(path, f"cluster_id {repeated[0]} occurs more than once")
        if ids[0] < 0 or ids[-1] > 2**31 - 1:
            raise _refused(path, "cluster ids must lie between 0 and 2147483647")
        finite = np.isfinite(matrix).all(axis=1)
        if not finite.all():
            raise _refused(path, f"the centroid of cluster {ids[~finite][0]} has NaN or Inf")
        centroids, is_zero = normalize_rows(matrix)
        if is_zero.any():
            raise _refused(path, f"the centroid of cluster {ids[is_zero][0]} is zero")
        return ids.astype(np.int32), centroids


def _refused(path: str, what: str) -> InputError:
    return InputError(
        f"input.centroids {path}: {what}",
        mend="give every cluster one centroid, finite, not zero, of one dimension; ids are integers from 0",
    )


def _read_npy_bytes(spark: SparkSession | None, path: str) -> bytes:
    try:
        return files.read_bytes(files.normalize(path))
    except SparkDbpError as error:  # a store that this process does not reach; Spark may
        if spark is None:
            raise
        log.debug("input.centroids: %s", error)
        with translate_errors(f"input.centroids {path}", opening=True):
            rows = spark.read.format("binaryFile").load(to_spark_source(path)).select("content").collect()
        return b"".join(bytes(row.content) for row in rows)
    except OSError as error:
        raise InputError(
            f"input.centroids {path} cannot be read: {error.strerror or error}", mend="check the path"
        ) from None


def _read_npy(
    spark: SparkSession | None, path: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]:
    try:
        matrix = np.load(io.BytesIO(_read_npy_bytes(spark, path)), allow_pickle=False)
    except (ValueError, EOFError, MemoryError) as error:  # a damaged header may ask for too much memory
        raise InputError(
            f"input.centroids {path} is no plain .npy matrix: {error}",
            mend="save it with np.save as a float matrix of shape (k, dim); pickled objects are never read",
        ) from None
    if not isinstance(matrix, np.ndarray) or matrix.ndim != 2 or matrix.dtype.kind != "f" or not matrix.size:
        shape = getattr(matrix, "shape", "?")
        raise InputError(
            f"input.centroids {path} has shape {shape} and type {getattr(matrix, 'dtype', '?')}",
            mend="save a float matrix of shape (k, dim)",
        )
    return np.arange(len(matrix)), matrix


def _read_parquet(spark: SparkSession | None, path: str) -> DataFrame:
    assert spark is not None
    with translate_errors(f"input.centroids {path}", opening=True):
        return read_parquet(spark, [take_literally(path)], [CLUSTER_ID, CENTROID], setting="input.centroids")


def _read_rows(
    spark: SparkSession | None, path: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.floating]]:
    from pyspark.sql import functions as F

    frame, _ = read_checked("input.centroids", [take_literally(path)], lambda: _read_parquet(spark, path))
    find_type(frame, CLUSTER_ID, f"input.centroids {path}")
    centroid, problem = to_embedding_column(frame, CENTROID, f"input.centroids {path}")
    chosen = frame.select(F.col(CLUSTER_ID).cast("bigint"), centroid.alias(CENTROID), problem.alias(PROBLEM))
    with translate_errors(f"input.centroids {path}"):
        table = collect_arrow(chosen).combine_chunks()
    ids = table.column(CLUSTER_ID)
    if ids.null_count:
        raise _refused(path, "there is a null cluster_id")
    if table.num_rows == 0:
        return np.zeros(0, np.int64), np.zeros((0, 1))
    groups, problems = group_by_dimension(table.column(CENTROID).combine_chunks())
    found = table.column(PROBLEM).to_pylist()
    problems = np.array([a or b for a, b in zip(found, problems, strict=True)], dtype=object)
    for row in np.flatnonzero([problem is not None for problem in problems]):
        raise _refused(path, f"cluster {ids[row]}: {problems[row]}".replace("embedding", "centroid"))
    if len(groups) > 1:
        found = sorted(matrix.shape[1] for _, matrix in groups)
        raise _refused(path, f"centroids of several dimensions: {found}")
    return ids.to_numpy(), groups[0][1]


def check_centroids(
    samples: DataFrame, cluster_ids: IntVector, centroids: Matrix, dimension: int | None, path: str
) -> None:
    """Check that the given centroids fit the samples.

    Raises
    ------
    InputError
        When their dimension differs from that of the samples, or the cluster of a sample has no centroid.
    """
    if dimension is not None and dimension != centroids.shape[1]:
        raise InputError(
            f"input.centroids {path} has dimension {centroids.shape[1]}, the embeddings have {dimension}",
            mend="give the centroids that these embeddings were clustered with",
        )
    used = collect_arrow(samples.select(CLUSTER_ID).distinct()).column(CLUSTER_ID).to_numpy()
    missing = np.setdiff1d(used, cluster_ids)
    if missing.size:
        raise InputError(
            f"input.centroids {path} lacks {missing.size:,} clusters that samples belong to, "
            f"such as cluster_id {missing[0]}",
            mend="give a centroid for every cluster_id",
        )
