"""Write the vectors of each cluster to files, in tiles of bounded size, and read them back.

Imports `columns`, `compat`, `files` and numpy; pyspark, pyarrow and `vectors` inside functions.

A **tile** is consecutive ranks of one cluster with their vectors. Its keys and its matrix are one row of a
Parquet file. Tasks that compare tiles read them from the files. So many tasks can work on one cluster,
whatever its size, and none holds more than two tiles.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, KEY, RANK, VECTOR
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.lake import files

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

# About how many bytes the matrix of a full tile takes, and at most its keys. Its most rows.
TILE_BYTES, _TILE_ROWS = 12 << 20, 1 << 16
# Most bytes of a Parquet row group that small tiles share. Reading one tile reads its whole row group.
_GROUP_BYTES = 16 << 20

_INDEX_SCHEMA = f"{CLUSTER_ID} INT, tile INT, n_items INT, file STRING, row_group INT, position INT"


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
    group: list[dict[str, Any]] = []
    group_bytes = row_group = 0
    writer = None
    for (cluster_id, tile), keys, matrix in _tiles_of(batches):
        if writer is None:
            schema = pa.schema([(KEY, pa.list_(keys.type)), (VECTOR, pa.large_binary())])
            writer = files.ParquetSink(files.join(path, name), schema)
        n_bytes = matrix.nbytes + keys.nbytes
        if group and group_bytes + n_bytes > _GROUP_BYTES:
            writer.write(pa.Table.from_pylist(group, schema))
            group, group_bytes, row_group = [], 0, row_group + 1
        references.append((cluster_id, tile, len(keys), name, row_group, len(group)))
        group.append({KEY: keys.to_pylist(), VECTOR: matrix.tobytes()})
        group_bytes += n_bytes
    if writer is not None:
        writer.write(pa.Table.from_pylist(group, schema))
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
                self._sources[ref.file] = files.open_parquet(files.join(self._path, ref.file))
            self._last = (place, self._sources[ref.file].read_row_group(ref.row_group))
        return self._last[1]
