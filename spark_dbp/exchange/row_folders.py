"""Write folders of Parquet files and arrays: NeMo Curator's duplicates, clip-retrieval's embeddings.

Imports `columns`, `sorted_rows`, `parquet_files` and `key_files`; pyarrow inside functions.

::

    duplicates/part-00000.parquet                            id
    img_emb/img_emb_0.npy    metadata/metadata_0.parquet     image_path, cluster_id, distance_to_centroid
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import CLUSTER_ID, DISTANCE, VECTOR
from spark_dbp.engine.sorted_rows import regroup_rows
from spark_dbp.exchange.key_files import KeySink, make_header
from spark_dbp.exchange.written_keys import WRITTEN
from spark_dbp.lake import parquet_files

if TYPE_CHECKING:
    import pyarrow as pa

# Rows of a row group of ids; of one of metadata, whose vectors are held too; and of a file of embeddings, as
# many as clip-retrieval writes in one.
_IDS, _METADATA, FILE_ROWS = 131_072, 10_000, 1_000_000
_HALF = np.dtype("<f2")


class _Checks(KeySink):
    """Notes keys that are null, or written twice; what else there is to write, others write."""

    def find_bad(self, keys: pa.Array) -> dict[str, pa.Array]:
        return {}

    def write(self, keys: pa.Array) -> None:
        pass

    def end(self) -> None:
        pass


def write_ids(batches: Iterable[pa.RecordBatch], folder: Path, schema: pa.Schema) -> int:
    """Write one Parquet file with the column ``id``.

    Parameters
    ----------
    batches : iterable of RecordBatch
        ``id``, sorted.
    folder : Path
    schema : pyarrow.Schema

    Returns
    -------
    int
        Number of rows.
    """
    checks = _Checks("curator")
    path = folder / "duplicates" / "part-00000.parquet"
    sink = parquet_files.ParquetSink(str(path), schema, compression="snappy", write_statistics=True)
    try:
        for rows in regroup_rows(batches, _IDS):
            for keys in rows.column(0).chunks:
                checks.add(keys)
            if not checks.refusals:
                sink.write(rows.cast(schema))
    finally:
        sink.close()
    return checks.finish()


def write_embeddings(
    batches: Iterable[pa.RecordBatch], folder: Path, n_rows: int, dimension: int, schema: pa.Schema
) -> int:
    """Write arrays of float16 and metadata, row by row of the same samples, a million in a file.

    Parameters
    ----------
    batches : iterable of RecordBatch
        ``written``, ``cluster_id``, ``distance_to_centroid``, and ``vector`` as bytes of float16; sorted.
    folder : Path
    n_rows : int
        How many rows there will be.
    dimension : int
    schema : pyarrow.Schema
        Of the metadata.

    Returns
    -------
    int
        Number of rows.
    """
    checks = _Checks("clip_retrieval")
    n_files = max(1, math.ceil(n_rows / FILE_ROWS))
    width = int(math.log10(n_files)) + 1
    (folder / "img_emb").mkdir()
    tables = regroup_rows(batches, _METADATA)
    for number in range(n_files):
        name = f"{number:0{width}d}"
        n_here = min(FILE_ROWS, n_rows - number * FILE_ROWS)
        path = folder / "metadata" / f"metadata_{name}.parquet"
        sink = parquet_files.ParquetSink(str(path), schema, compression="snappy")
        with closing(sink), (folder / "img_emb" / f"img_emb_{name}.npy").open("wb") as stream:
            stream.write(make_header(_HALF, n_here, dimension))
            # More rows than there should be go to the last file: their number is compared later.
            for rows in tables if number == n_files - 1 else islice(tables, FILE_ROWS // _METADATA):
                _write_table(rows, checks, sink, stream, schema)
    return checks.finish()


def _write_table(rows: pa.Table, checks: KeySink, sink: Any, stream: Any, schema: pa.Schema) -> None:
    for keys in rows.column(WRITTEN).chunks:
        checks.add(keys)
    if checks.refusals:
        return
    columns = [rows.column(name) for name in (WRITTEN, CLUSTER_ID, DISTANCE)]
    sink.write(type(rows).from_arrays(columns, names=schema.names).cast(schema))
    stream.write(b"".join(rows.column(VECTOR).to_pylist()))


def to_halves(vectors: pa.Array) -> pa.Array:
    """Bytes of float32, little endian, as those of float16.

    Examples
    --------
    >>> import pyarrow as pa
    >>> np.frombuffer(to_halves(pa.array([np.float32([0.5, 1]).tobytes()]))[0].as_py(), "<f2").tolist()
    [0.5, 1.0]
    """
    import pyarrow as pa

    return pa.array(
        [np.frombuffer(vector, "<f4").astype(_HALF).tobytes() for vector in vectors.to_pylist()], pa.binary()
    )
