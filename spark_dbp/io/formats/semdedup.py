"""What the research code of SemDeDup writes: memmaps, and its clusters. Imports what is beside it, `columns`.

::

    embeddings, paths                    bare memmaps: float32 of n x dim, and texts of n (S24); no header
    kmeans_centroids.npy                 k x dim
    nearest_cent.npy, dist_to_cent.npy   n: cluster, and similarity to its centroid (or squared L2 distance)
    sorted_clusters/cluster_7.npy        m x 4 texts: path, row, cosine distance to the centroid, cluster

Centroids of spherical k-means have norm 1, and then ``dist_to_cent.npy`` has similarities. What other
programs wrote in this form may have similarities in the third column of a cluster too. Where there are
embeddings, some rows show which it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, DISTANCE, EMBEDDING
from spark_dbp.errors import InputError
from spark_dbp.io.formats.arrays import ArrayPlace, RowReader, find_npy, find_raw, to_arrow
from spark_dbp.io.formats.parts import Part
from spark_dbp.io.formats.row_files import ArrayFile, Columns, Opened, PlacedFile, RowFile
from spark_dbp.lake import files
from spark_dbp.lake.table_files import map_in_threads

if TYPE_CHECKING:
    import pyarrow as pa

_KEY = "key"
_CENTROIDS, _NEAREST, _DISTANCES = "kmeans_centroids.npy", "nearest_cent.npy", "dist_to_cent.npy"
# Rows whose vectors show what the distances are, and by how much those in float32 may differ.
_TOLD_ROWS, _TOLERANCE = 1000, 1e-2
_ASK = "say it with input.options.distances: distance (1 - cos), similarity (cos) or squared_l2"


@dataclass(frozen=True)
class DistanceFile(PlacedFile):
    """Distances to centroids, 1 - cos, of what is written as `kind`.

    Attributes
    ----------
    place : ArrayPlace
    kind : {"distance", "similarity", "squared_l2"}
    nearest : ArrayPlace
        The cluster of each row.
    norms : tuple of float
        Of the centroids; of squared distances they are needed.
    """

    kind: str
    nearest: ArrayPlace
    norms: tuple[float, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """As `RowFile` says."""
        return self.place.path, self.nearest.path

    @property
    def columns(self) -> dict[str, pa.DataType]:  # type: ignore[override]
        """The column, and its type."""
        import pyarrow as pa

        return {DISTANCE: pa.float32()}

    @contextmanager
    def open(self, start: int, stop: int, names: Sequence[str]) -> Iterator[Columns]:
        """As `RowFile` says."""
        import pyarrow as pa

        norms = np.asarray(self.norms)
        with RowReader(self.place, start) as rows, RowReader(self.nearest, start) as nearest:

            def read(n_rows: int) -> dict[str, pa.Array]:
                norm = norms[nearest.read(n_rows)] if len(norms) else 1.0
                found = to_distances(rows.read(n_rows), self.kind, norm)
                return {DISTANCE: pa.array(found.astype(np.float32))}

            yield Opened(read)


def to_distances(values: npt.NDArray[Any], kind: str, norm: Any = 1.0) -> npt.NDArray[np.float64]:
    """1 - cos to the centroid.

    Parameters
    ----------
    values : ndarray of shape (n,)
    kind : {"distance", "similarity", "squared_l2"}
        What they are, of vectors of norm 1.
    norm : float or ndarray of shape (n,)
        Of the centroids.

    Examples
    --------
    >>> to_distances(np.array([0.75]), "similarity"), to_distances(np.array([0.5]), "squared_l2")
    (array([0.25]), array([0.25]))
    """
    values = values.astype(np.float64)
    if kind == "similarity":
        return np.asarray(1.0 - values / norm)
    if kind == "squared_l2":  # |x - c|^2 = 1 + |c|^2 - 2 x.c
        return np.asarray(1.0 - (1.0 + norm * norm - values) / (2.0 * norm))
    return values


@dataclass(frozen=True)
class ClusterFile(PlacedFile):
    """The rows of a cluster: texts of path, row, distance and cluster.

    Attributes
    ----------
    place : ArrayPlace
        Of shape (m, 4).
    kind : {"distance", "similarity", "squared_l2"}
    embeddings : ArrayPlace, optional
        The memmap in which the rows are.
    """

    kind: str
    embeddings: ArrayPlace | None = None

    @property
    def paths(self) -> tuple[str, ...]:
        """As `RowFile` says."""
        return (self.place.path, *([self.embeddings.path] if self.embeddings is not None else []))

    @property
    def row_bytes(self) -> int:
        """As `RowFile` says."""
        return self.place.row_bytes + (self.embeddings.row_bytes if self.embeddings is not None else 0)

    @property
    def columns(self) -> dict[str, pa.DataType]:  # type: ignore[override]
        """Its columns, and their types."""
        import pyarrow as pa

        found: dict[str, pa.DataType] = {_KEY: pa.string(), CLUSTER_ID: pa.int32(), DISTANCE: pa.float32()}
        return {**found, EMBEDDING: pa.list_(pa.float32())} if self.embeddings is not None else found

    @contextmanager
    def open(self, start: int, stop: int, names: Sequence[str]) -> Iterator[Columns]:
        """As `RowFile` says."""
        import pyarrow as pa

        with ExitStack() as opened:
            rows = opened.enter_context(RowReader(self.place, start))
            vectors = None
            if self.embeddings is not None and EMBEDDING in names:
                vectors = opened.enter_context(RowReader(self.embeddings))

            def read(n_rows: int) -> dict[str, pa.Array]:
                values = rows.read(n_rows)
                found = {
                    _KEY: to_arrow(np.ascontiguousarray(values[:, 0]), self.name),
                    CLUSTER_ID: pa.array(self._to_numbers(values[:, 3], np.int32)),
                    DISTANCE: pa.array(
                        to_distances(self._to_numbers(values[:, 2], np.float64), self.kind).astype(np.float32)
                    ),
                }
                if vectors is not None:
                    numbers = self._to_numbers(values[:, 1], np.int64)
                    found[EMBEDDING] = to_arrow(self._gather(vectors, numbers), self.name)
                return {name: found[name] for name in names}

            yield Opened(read)

    def _to_numbers(self, texts: npt.NDArray[Any], dtype: Any) -> npt.NDArray[Any]:
        try:
            return texts.astype(dtype)
        except ValueError as error:
            raise InputError(
                f"{self.name} is no cluster of SemDeDup: {error}",
                mend="its columns are path, row, distance to the centroid, cluster",
            ) from None

    def _gather(self, vectors: RowReader, numbers: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        assert self.embeddings is not None
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < self.embeddings.n_rows:
            raise InputError(
                f"{self.name} names row {int(numbers.max()):,}; {self.embeddings.name} has "
                f"{self.embeddings.n_rows:,}",
                mend="give the memmap from which the clusters were made, and its shape",
            )
        found = np.empty((len(numbers), self.embeddings.shape[1]), np.float32)
        for at in np.argsort(numbers, kind="stable"):  # in the order of the file
            found[at] = vectors.read_at(int(numbers[at]), 1)[0]
        return found


def find_parts(
    path: str,
    *,
    embeddings: str | None = None,
    keys: str | None = None,
    shape: Sequence[int] | None = None,
    key_type: str = "S24",
    clusters: str | None = None,
    distances: str = "auto",
) -> list[Part]:
    """Find memmaps, the clusters that were made of them, or both.

    Parameters
    ----------
    path : str
        Folder below which the others are named.
    embeddings, keys : str, optional
        Memmaps.
    shape : (int, int), optional
        Of `embeddings`.
    key_type : str
        Of a value of `keys`.
    clusters : str, optional
        Folder with ``nearest_cent.npy``, or with files of clusters.
    distances : {"auto", "distance", "similarity", "squared_l2"}
        What the clusters say of a row.

    Returns
    -------
    list of Part

    Raises
    ------
    InputError
    """
    vectors, named = None, None
    if embeddings is not None:
        assert shape is not None
        n_rows, dim = shape
        vectors = find_raw(files.resolve(path, embeddings), "<f4", (n_rows, dim))
        if keys is not None:
            named = find_raw(files.resolve(path, keys), key_type, (n_rows,))
    folder = None if clusters is None else files.resolve(path, clusters)
    if folder is not None and not files.exists(files.join(folder, _NEAREST)):
        return _find_clusters(folder, vectors, distances)
    found: list[RowFile] = []
    if vectors is not None and named is not None:
        found = [ArrayFile(named, _KEY), ArrayFile(vectors, EMBEDDING)]
    if folder is not None:
        found += _find_assignments(folder, vectors, distances)
    return [Part(tuple(found))]


def _find_assignments(folder: str, vectors: ArrayPlace | None, distances: str) -> list[RowFile]:
    nearest = find_npy(files.join(folder, _NEAREST))
    values = find_npy(files.join(folder, _DISTANCES))
    centroids = None
    if files.exists(files.join(folder, _CENTROIDS)):
        place = find_npy(files.join(folder, _CENTROIDS))
        with RowReader(place) as rows:
            centroids = rows.read(place.n_rows).astype(np.float64)
    norms = () if centroids is None else tuple(np.linalg.norm(centroids, axis=1).tolist())
    kind = distances
    if kind == "auto":
        kind = _tell_apart(values, nearest, vectors, centroids)
    if kind == "squared_l2" and centroids is None:
        raise InputError(
            f"{folder} has no {_CENTROIDS}, without which squared distances say nothing of angles",
            mend="add it, or leave input.options.clusters out and measure the distances anew",
        )
    return [ArrayFile(nearest, CLUSTER_ID), DistanceFile(values, kind, nearest, norms)]


def _tell_apart(
    values: ArrayPlace,
    nearest: ArrayPlace,
    vectors: ArrayPlace | None,
    centroids: npt.NDArray[np.float64] | None,
) -> str:
    """What ``dist_to_cent.npy`` has: as some vectors show, or else the norms of the centroids.

    Raises
    ------
    InputError
        When neither shows it.
    """
    if centroids is None:
        raise InputError(
            f"{values.name}: similarities or distances? Without {_CENTROIDS} it cannot be told", mend=_ASK
        )
    if vectors is None:
        norms = np.linalg.norm(centroids, axis=1)
        return "similarity" if np.abs(norms - 1).max() < _TOLERANCE else "squared_l2"
    n_rows = min(_TOLD_ROWS, values.n_rows)
    with RowReader(values) as a, RowReader(nearest) as b, RowReader(vectors) as c:
        given, numbers, rows = a.read(n_rows), b.read(n_rows), c.read(n_rows)
    return tell_kind(given, rows, centroids[numbers], values.name)


def tell_kind(
    given: npt.NDArray[Any], vectors: npt.NDArray[Any], centroids: npt.NDArray[Any], name: str
) -> str:
    """What numbers say of vectors and their centroids.

    Parameters
    ----------
    given : ndarray of shape (n,)
    vectors, centroids : ndarray of shape (n, dim)
    name : str
        Of the file, for messages.

    Returns
    -------
    {"distance", "similarity", "squared_l2"}

    Raises
    ------
    InputError
        When they are none of these.

    Examples
    --------
    >>> tell_kind(np.array([0.6]), np.array([[0.6, 0.8]]), np.array([[1.0, 0.0]]), "dist_to_cent.npy")
    'similarity'
    """
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    product = (vectors * centroids).sum(axis=1)
    expected = {
        "similarity": product,
        "distance": 1 - product / np.linalg.norm(centroids, axis=1),
        "squared_l2": ((vectors - centroids) ** 2).sum(axis=1),
    }
    errors = {kind: float(np.abs(given - values).max()) for kind, values in expected.items()}
    kind = min(errors, key=lambda name: errors[name])
    if not errors[kind] < _TOLERANCE:
        raise InputError(
            f"{name}: neither similarities nor distances to the centroids of these embeddings",
            mend="see that memmap, shape and clusters belong together",
        )
    return kind


def _find_clusters(folder: str, vectors: ArrayPlace | None, distances: str) -> list[Part]:
    """The files of clusters in a folder."""
    inner = files.join(folder, "sorted_clusters")
    base = inner if files.exists(inner) else folder
    found = {}
    for name in files.list_sizes(base):
        number = re.fullmatch(r"cluster_(\d+)\.npy", name)
        if number:
            found[int(number[1])] = files.join(base, name)
    if not found:
        raise InputError(
            f"{folder} has neither {_NEAREST} nor files of clusters",
            mend="give the folder that SemDeDup's clustering wrote, or sorted_clusters in it",
        )
    places = map_in_threads(_find_cluster, [found[number] for number in sorted(found)])
    clusters = [place for place in places if place.n_rows]
    if not clusters:
        raise InputError(f"{base}: there are no rows", mend="check the path")
    if distances == "auto":
        distances = _tell_from_clusters(folder, clusters, vectors)
    if distances == "squared_l2":
        raise InputError(
            f"{base}: squared distances say nothing of angles without the norms of the centroids",
            mend=f"give the folder with {_NEAREST}, {_DISTANCES} and {_CENTROIDS}",
        )
    return [Part((ClusterFile(place, distances, vectors),)) for place in clusters]


def _find_cluster(path: str) -> ArrayPlace:
    place = find_npy(path)
    is_empty = place.n_rows == 0
    if not is_empty and (len(place.shape) != 2 or place.shape[1] != 4 or place.dtype[1] not in "SU"):
        raise InputError(
            f"{path} is no cluster of SemDeDup: {place.dtype} of shape {place.shape}",
            mend="its rows are four texts: path, row, distance to the centroid, cluster",
        )
    return place


def _tell_from_clusters(folder: str, clusters: Sequence[ArrayPlace], vectors: ArrayPlace | None) -> str:
    centroids = files.join(folder, _CENTROIDS)
    if vectors is None or not files.exists(centroids):
        raise InputError(
            f"{clusters[0].name}: is the third column a distance or a similarity? Without embeddings and "
            f"{_CENTROIDS} it cannot be told",
            mend=f"{_ASK}; the research code of SemDeDup writes distances",
        )
    file = ClusterFile(clusters[0], "distance", vectors)
    n_rows = min(_TOLD_ROWS, file.n_rows)
    with file.open(0, n_rows, list(file.columns)) as rows:
        found = rows.read(n_rows)
    given = found[DISTANCE].to_numpy()
    of_rows = found[EMBEDDING].values.to_numpy().reshape(n_rows, -1)
    place = find_npy(centroids)
    with RowReader(place) as reader:
        all_centroids = reader.read(place.n_rows).astype(np.float64)
    return tell_kind(given, of_rows, all_centroids[found[CLUSTER_ID].to_numpy()], file.name)
