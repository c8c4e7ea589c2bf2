"""Compare the vectors of each cluster with each other, in tiles of bounded size.

Imports `columns`, `blocks`, `compat`, `files` and numpy; pyspark, pyarrow and `vectors` inside functions.

A **tile** is consecutive ranks of one cluster with their vectors. Many tasks can work on one cluster,
whatever its size, and none holds more than two tiles. Where workers read files, keys and matrix of a tile are
one row of a Parquet file, and tasks read the tiles that they compare. Where they do not, Spark sends the rows
of every two tiles that are compared to one task.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, DUPLICATE_OF, KEY, RANK, SIMILARITY, VECTOR
from spark_dbp.engine.blocks import number_tasks
from spark_dbp.engine.compat import map_in_arrow, send_to_partitions
from spark_dbp.lake import files, parquet_files

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame
    from pyspark.sql.types import StructType

# About how many bytes the matrix of a full tile takes, and at most its keys. Its most rows.
TILE_BYTES, _TILE_ROWS = 12 << 20, 1 << 16
# Most bytes of a Parquet row group that small tiles share. Reading one tile reads its whole row group.
_GROUP_BYTES = 16 << 20

# Dot products in the share of one task: few enough to spread the work, enough to be worth starting a task.
_PRODUCTS_A_TASK = 2**28

_INDEX_SCHEMA = f"{CLUSTER_ID} INT, tile INT, n_items INT, file STRING, row_group INT, position INT"


@dataclass(frozen=True, eq=False)
class Tile:
    """A tile in the memory of a worker.

    Attributes
    ----------
    number : int
        0 for the first ranks of its cluster.
    matrix : ndarray of float32, shape (n, dim)
    keys : Array
        n of them.
    """

    number: int
    matrix: npt.NDArray[np.float32]
    keys: pa.Array


# Takes a tile, and one after the other those before it in its cluster.
Comparison = Callable[[Tile, Iterator[Tile]], Iterator["pa.RecordBatch"]]


@dataclass(frozen=True)
class TileRef:
    """Which tile it is, how many rows it has, and where it lies.

    ``tile`` 0 of a cluster has the first ranks. The tile is row ``position`` in the row group ``row_group``
    of ``file``.
    """

    cluster_id: int
    tile: int
    n_items: int
    file: str
    row_group: int
    position: int


def count_tile_rows(dim: int, key_bytes: float = 0.0) -> int:
    """Rows of a full tile of vectors of dimension `dim`, with keys of about `key_bytes` bytes.

    Examples
    --------
    >>> count_tile_rows(384), count_tile_rows(1024), count_tile_rows(2)
    (8192, 3072, 65536)
    >>> count_tile_rows(384, key_bytes=10_000)
    1258
    """
    return max(1, min(_TILE_ROWS, TILE_BYTES // max(4 * dim, math.ceil(key_bytes))))


def write_tiles(ranked: DataFrame, path: str, rows: int) -> list[TileRef]:
    """Write the tiles of all clusters.

    Parameters
    ----------
    ranked : DataFrame
        ``cluster_id``, ``rank`` (1, 2, ... in each cluster), ``key``, ``vector``.
    path : str
        New directory, reachable from the workers.
    rows : int
        Rows of a full tile.

    Returns
    -------
    list of TileRef
        By cluster and tile. The driver holds one for every `rows` rows, and one more a cluster at most.
    """
    from pyspark.sql import functions as F

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        references = _write_file(batches, path)
        if references:
            columns = list(zip(*references, strict=True))
            types = [pa.int32(), pa.int32(), pa.int32(), pa.string(), pa.int32(), pa.int32()]
            names = [CLUSTER_ID, "tile", "n_items", "file", "row_group", "position"]
            arrays = [pa.array(values, type_) for values, type_ in zip(columns, types, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, names)

    tile = F.floor((F.col(RANK) - 1) / rows).cast("int")
    ordered = (
        ranked.select(CLUSTER_ID, tile.alias("tile"), RANK, KEY, VECTOR)
        .repartition(CLUSTER_ID, "tile")
        .sortWithinPartitions(CLUSTER_ID, "tile", RANK)
    )
    written = map_in_arrow(ordered, write, _INDEX_SCHEMA).collect()
    # A task that ran twice wrote two files. Only one of them is named here, the other is never read.
    return sorted((TileRef(*row) for row in written), key=lambda ref: (ref.cluster_id, ref.tile))


def _write_file(batches: Iterator[pa.RecordBatch], path: str) -> list[tuple[Any, ...]]:
    import pyarrow as pa

    name = f"{uuid4().hex}.parquet"
    references: list[tuple[Any, ...]] = []
    group: list[pa.Table] = []
    group_bytes = row_group = 0
    writer = None
    for (cluster_id, tile), keys, matrix in _tiles_of(batches):
        if writer is None:
            schema = pa.schema([(KEY, pa.list_(keys.type)), (VECTOR, pa.large_binary())])
            writer = parquet_files.ParquetSink(files.join(path, name), schema)
        n_bytes = matrix.nbytes + keys.nbytes
        if group and group_bytes + n_bytes > _GROUP_BYTES:
            writer.write(pa.concat_tables(group))
            group, group_bytes, row_group = [], 0, row_group + 1
        references.append((cluster_id, tile, len(keys), name, row_group, len(group)))
        # Keys never become Python values: bytes that are not UTF-8, and dates after 9999, have none.
        keys = pa.ListArray.from_arrays([0, len(keys)], keys)
        matrix_bytes = pa.array([matrix.tobytes()], pa.large_binary())
        group.append(pa.Table.from_arrays([keys, matrix_bytes], schema=schema))
        group_bytes += n_bytes
    if writer is not None:
        writer.write(pa.concat_tables(group))
        writer.close()
    return references


def _tiles_of(
    batches: Iterator[pa.RecordBatch],
) -> Iterator[tuple[tuple[int, int], pa.Array, npt.NDArray[np.float32]]]:
    """Gather sorted rows into tiles, holding one tile at a time."""
    import pyarrow as pa

    from spark_dbp.kernels.vectors import to_matrix

    def pieces() -> Iterator[tuple[tuple[int, int], pa.RecordBatch]]:
        for batch in batches:
            clusters, tiles = batch.column(0).to_numpy(), batch.column(1).to_numpy()
            changes = np.flatnonzero((np.diff(clusters) != 0) | (np.diff(tiles) != 0)) + 1
            bounds = [0, *changes.tolist(), batch.num_rows]
            for start, stop in pairwise(bounds):
                if stop > start:
                    yield (int(clusters[start]), int(tiles[start])), batch.slice(start, stop - start)

    for name, group in groupby(pieces(), key=lambda piece: piece[0]):
        parts = [part for _, part in group]
        keys = pa.concat_arrays([part.column(3) for part in parts])
        yield name, keys, np.concatenate([to_matrix(part.column(4)) for part in parts])


class TileReader:
    """Read tiles in a worker. It keeps the row group that was read last.

    Parameters
    ----------
    path : str
        Directory that `write_tiles` wrote.
    dim : int
        Dimension of the vectors.
    """

    def __init__(self, path: str, dim: int) -> None:
        self._path, self._dim = path, dim
        self._sources: dict[str, Any] = {}
        self._last: tuple[tuple[str, int], Any] | None = None

    def matrix(self, ref: TileRef) -> npt.NDArray[np.float32]:
        """Vectors of a tile, shape (n_items, dim)."""
        raw = self._row_group(ref).column(VECTOR)[ref.position].as_buffer()
        return np.frombuffer(raw, dtype="<f4").reshape(ref.n_items, self._dim)

    def keys(self, ref: TileRef) -> pa.Array:
        """Keys of a tile."""
        return self._row_group(ref).column(KEY)[ref.position].values

    def _row_group(self, ref: TileRef) -> Any:
        place = (ref.file, ref.row_group)
        if self._last is None or self._last[0] != place:
            if ref.file not in self._sources:
                self._sources[ref.file] = parquet_files.open_parquet(files.join(self._path, ref.file))
            self._last = (place, self._sources[ref.file].read_row_group(ref.row_group))
        return self._last[1]

    def read(self, ref: TileRef) -> Tile:
        """A tile with its vectors and keys."""
        return Tile(ref.tile, self.matrix(ref), self.keys(ref))


def compare_tiles_in_files(
    refs: list[TileRef], path: str, dim: int, ranked: DataFrame, compare: Comparison
) -> DataFrame:
    """Compare each tile with itself and the earlier ones of its cluster; workers read them from files.

    Parameters
    ----------
    refs, path
        From `write_tiles`.
    dim : int
        Dimension of the vectors.
    ranked : DataFrame
        What the tiles were made of.
    compare : callable
        Returns batches of ``key``, ``duplicate_of``, ``similarity``.

    Returns
    -------
    DataFrame
        ``key``, ``duplicate_of``, ``similarity`` DOUBLE.
    """
    shares = share_tiles([(ref.cluster_id, ref.n_items) for ref in refs])

    def compare_shares(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        reader = TileReader(path, dim)
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for first, place in shares[number]:
                    yield from compare(reader.read(refs[place]), map(reader.read, refs[first:place]))

    numbers = ranked.sparkSession.range(0, len(shares), 1, max(1, len(shares)))
    return map_in_arrow(numbers, compare_shares, _pair_type(ranked))


def compare_tiles_of_rows(ranked: DataFrame, sizes: DataFrame, rows: int, compare: Comparison) -> DataFrame:
    """Like `compare_tiles_in_files`, but Spark brings the rows of the tiles to the tasks.

    Parameters
    ----------
    ranked : DataFrame
        ``cluster_id``, ``rank`` (1, 2, ... in each cluster), ``key``, ``vector``.
    sizes : DataFrame
        ``cluster_id`` and the number of its rows. One row for each cluster is collected.
    rows : int
        Rows of a full tile.
    compare : callable

    Returns
    -------
    DataFrame

    Notes
    -----
    A row is sent once for each tile that its own is compared with: once in a cluster of a single tile.
    """
    from pyspark.sql import functions as F

    found = sorted((row[0], row[1]) for row in sizes.collect() if row[1] > 1)
    counted = [(cluster, start, min(rows, n - start)) for cluster, n in found for start in range(0, n, rows)]
    shares = share_tiles([(cluster, n_items) for cluster, _, n_items in counted])
    n_tasks = max(1, len(shares))
    tasks = number_tasks(ranked, n_tasks)
    # Each tile is an item of work: for the task that compares it with those before it.
    work = [
        (counted[place][0], place, counted[place][1] // rows, int(tasks[number]))
        for number, share in enumerate(shares)
        for _, place in share
    ]
    schema = f"{CLUSTER_ID} INT, item INT, compared INT, task INT"
    items = F.broadcast(ranked.sparkSession.createDataFrame(work, schema))
    tile = F.floor((F.col(RANK) - 1) / rows).cast("int").alias("tile")
    sent = (
        ranked.select(CLUSTER_ID, tile, RANK, KEY, VECTOR)
        .join(items, CLUSTER_ID)
        .where("tile <= compared")
        .withColumn("is_earlier", F.col("tile") < F.col("compared"))
    )
    ordered = send_to_partitions(sent, n_tasks, "task").sortWithinPartitions(
        "item", "is_earlier", "tile", RANK
    )

    def compare_items(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _, of_item in groupby(_tiles_of(batches), key=lambda found: found[0][0]):
            tiles = (Tile(number, matrix, keys) for (_, number), keys, matrix in of_item)
            yield from compare(next(tiles), tiles)

    return map_in_arrow(ordered.select("item", "tile", RANK, KEY, VECTOR), compare_items, _pair_type(ranked))


def share_tiles(sizes: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Split the comparison of tiles into shares of about equal size, one for each task.

    Parameters
    ----------
    sizes : list of (int, int)
        Cluster and rows of each tile, by cluster and number.

    Returns
    -------
    list of list of (int, int)
        Positions in `sizes`: the first tile of the cluster, and the tile to compare with those from there on.

    Examples
    --------
    >>> share_tiles([(0, 5), (0, 5), (1, 3)])
    [[(0, 0), (0, 1), (2, 2)]]
    """
    shares: list[tuple[int, list[tuple[int, int]]]] = []
    first = rows_before = 0
    for place, (cluster, n_items) in enumerate(sizes):
        if sizes[first][0] != cluster:
            first, rows_before = place, 0
        products = n_items * (rows_before + n_items)
        rows_before += n_items
        if not shares or shares[-1][0] + products > _PRODUCTS_A_TASK:
            shares.append((0, []))
        work, places = shares[-1]
        places.append((first, place))
        shares[-1] = (work + products, places)
    # Later tiles of a large cluster are compared with the most tiles, so they start first.
    return [places for _, places in sorted(shares, key=lambda share: -share[0])]


def _pair_type(ranked: DataFrame) -> StructType:
    from pyspark.sql import types as T

    key_type = ranked.schema[KEY].dataType
    types = {KEY: key_type, DUPLICATE_OF: key_type, SIMILARITY: T.DoubleType()}
    return T.StructType([T.StructField(name, data_type) for name, data_type in types.items()])
