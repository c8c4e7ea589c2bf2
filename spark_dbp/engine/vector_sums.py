"""Sum the vectors of each cluster exactly; centroids are computed from these sums.

Imports numpy, `arrow`, `compat`, `geometry` and `histogram`; pyarrow and `vectors` inside functions.

Workers add up integer multiples of the grid (see `geometry`), so the sums are the same in any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, N_ITEMS, VECTOR
from spark_dbp.engine.arrow import CommittedTable, map_batches
from spark_dbp.engine.compat import collect_arrow, map_in_arrow, share_array
from spark_dbp.engine.mapped_rows import to_frame
from spark_dbp.kernels.geometry import GRID, NearestCentroid, sum_runs
from spark_dbp.kernels.histogram import to_whole_distances

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

_SUM = "vector_sum"
_OBJECTIVE = "distance_sum"
_PARTIAL_SCHEMA = f"{CLUSTER_ID} INT, {N_ITEMS} BIGINT, {_OBJECTIVE} BIGINT, {_SUM} BINARY"
# A worker passes its sums on when they take this many bytes, so that it never holds k * dim of them.
_PARTIAL_BYTES = 128 << 20


class VectorSums:
    """Sums of the vectors of each cluster.

    Attributes
    ----------
    cluster_ids : ndarray of int32, shape (m,)
        Clusters that have samples, rising.
    n_items : ndarray of int64, shape (m,)
    sums : ndarray of float64, shape (m, dim)
    distance_sum : int
        Sum of the distances of all samples to their nearest centroids, in units of ``DISTANCE_UNIT``. 0 when
        the samples brought their clusters.
    """

    def __init__(self, table: pa.Table) -> None:
        from spark_dbp.kernels.vectors import to_matrix

        order = np.argsort(table.column(CLUSTER_ID).to_numpy())
        self.cluster_ids = table.column(CLUSTER_ID).to_numpy()[order].astype(np.int32)
        self.n_items = table.column(N_ITEMS).to_numpy()[order]
        self.distance_sum = int(table.column(_OBJECTIVE).to_numpy().sum())
        whole = np.concatenate([to_matrix(c, "<i8") for c in table.column(_SUM).chunks if len(c)])
        self.sums = whole[order].astype(np.float64) * GRID


def sum_vectors(
    samples: DataFrame | CommittedTable, centroids: npt.NDArray[np.float32] | None = None
) -> VectorSums:
    """Add up the vectors of each cluster, exactly.

    Parameters
    ----------
    samples : DataFrame or CommittedTable
        ``vector``; without `centroids` also ``cluster_id``.
    centroids : ndarray of float32, shape (k, dim), optional
        If given, the cluster of a sample is that of its nearest centroid.

    Returns
    -------
    VectorSums

    Notes
    -----
    A worker holds about `_PARTIAL_BYTES` of sums, the driver O(k * dim).
    """
    read_centroids = None if centroids is None else share_array(to_frame(samples).sparkSession, centroids)

    def partial(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from spark_dbp.kernels.vectors import to_matrix

        nearest = None if read_centroids is None else NearestCentroid(read_centroids())
        collected = _Partial()
        for batch in batches:
            vectors = to_matrix(batch.column(0))
            if nearest is None:
                collected.add(vectors, batch.column(1).to_numpy().astype(np.int32), None)
            else:
                labels = nearest.labels(vectors)
                collected.add(vectors, labels, nearest.distances(vectors, labels))
            if collected.nbytes > _PARTIAL_BYTES:
                yield collected.flush()
        if collected.nbytes:
            yield collected.flush()

    def combined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        from spark_dbp.kernels.vectors import to_matrix

        collected = _Partial()
        for batch in batches:
            collected.merge(
                batch.column(0).to_numpy(),
                batch.column(1).to_numpy(),
                batch.column(2).to_numpy(),
                to_matrix(batch.column(3), "<i8"),
            )
        if collected.nbytes:
            yield collected.flush()

    wanted = [VECTOR] if centroids is not None else [VECTOR, CLUSTER_ID]
    parts = map_batches(samples, wanted, partial, _PARTIAL_SCHEMA)
    return VectorSums(collect_arrow(map_in_arrow(parts.repartition(CLUSTER_ID), combined, _PARTIAL_SCHEMA)))


class _Partial:
    """Sums by cluster, as integer multiples of the grid. Longs hold 2**37 unit vectors without overflow."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[int, int, npt.NDArray[np.int64]]] = {}

    @property
    def nbytes(self) -> int:
        return sum(total.nbytes for _, _, total in self._of.values())

    def add(
        self,
        vectors: npt.NDArray[np.float32],
        labels: npt.NDArray[np.int32],
        distances: npt.NDArray[np.float64] | None,
    ) -> None:
        from spark_dbp.kernels.vectors import slice_rows

        order = np.argsort(labels, kind="stable")
        for rows in slice_rows(len(order), 8 * vectors.shape[1]):
            part = order[rows]
            firsts = np.flatnonzero(np.diff(labels[part], prepend=-1))
            sums = sum_runs(vectors[part], firsts)
            counts = np.diff(firsts, append=len(part))
            objective = np.zeros(len(firsts), dtype=np.int64)
            if distances is not None:
                whole = to_whole_distances(distances[part])
                objective = np.add.reduceat(whole, firsts)
            self.merge(labels[part][firsts], counts, objective, (sums / GRID).astype(np.int64))

    def merge(
        self,
        clusters: npt.NDArray[np.int32],
        counts: npt.NDArray[np.int64],
        objectives: npt.NDArray[np.int64],
        sums: npt.NDArray[np.int64],
    ) -> None:
        for row, cluster in enumerate(clusters.tolist()):
            known = self._of.get(cluster)
            if known is None:
                self._of[cluster] = (int(counts[row]), int(objectives[row]), sums[row].copy())
            else:
                known[2][:] += sums[row]
                self._of[cluster] = (known[0] + int(counts[row]), known[1] + int(objectives[row]), known[2])

    def flush(self) -> pa.RecordBatch:
        import pyarrow as pa

        from spark_dbp.kernels.vectors import to_binary_rows

        items, self._of = self._of, {}
        counts, objectives, sums = zip(*items.values(), strict=True)
        return pa.RecordBatch.from_arrays(
            [
                pa.array(list(items), pa.int32()),
                pa.array(counts, pa.int64()),
                pa.array(objectives, pa.int64()),
                to_binary_rows(np.stack(sums)),
            ],
            [CLUSTER_ID, N_ITEMS, _OBJECTIVE, _SUM],
        )
