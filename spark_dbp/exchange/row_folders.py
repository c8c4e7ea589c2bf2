"""Write folders of Parquet files and arrays: NeMo Curator's duplicates, clip-retrieval's embeddings.

Imports `columns`, `sorted_rows`, `parquet_files` and `key_files`; pyarrow inside functions.

::

    duplicates/part-00000.parquet                            id
    img_emb/img_emb_0.npy    metadata/metadata_0.parquet     image_path, cluster_id, distance_to_centroid
    text_emb/text_emb_0.npy                                  where there are vectors of texts too
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import CLUSTER_ID, DISTANCE
from spark_dbp.engine.sorted_rows import regroup_rows
from spark_dbp.exchange.key_files import KeySink, make_header
from spark_dbp.exchange.written_keys import WRITTEN
from spark_dbp.lake import parquet_files

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger("spark_dbp")

# Rows of a row group of ids; of one of metadata, whose vectors are held too; and of a file of embeddings, as
# many as clip-retrieval writes in one.
_IDS, _METADATA, FILE_ROWS = 131_072, 10_000, 1_000_000
_HALF = np.dtype("<f2")
IMAGES, TEXTS = "img_emb", "text_emb"


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
    batches: Iterable[pa.RecordBatch],
    folder: Path,
    n_rows: int,
    dimensions: Mapping[str, int],
    schema: pa.Schema,
) -> int:
    """Write arrays of float16 and metadata, row by row of the same samples, a million in a file.

    Parameters
    ----------
    batches : iterable of RecordBatch
        ``written``, ``cluster_id``, ``distance_to_centroid``, and a column for each of `dimensions`: vectors
        as bytes of float16; sorted.
    folder : Path
    n_rows : int
        How many rows there will be.
    dimensions : mapping of str to int
        Of the vectors, by `IMAGES` and perhaps `TEXTS`. A row without a vector is NaN.
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
    for array in dimensions:
        (folder / array).mkdir()
    tables, n_none = regroup_rows(batches, _METADATA), Counter[str]()
    for number in range(n_files):
        name = f"{number:0{width}d}"
        n_here = min(FILE_ROWS, n_rows - number * FILE_ROWS)
        path = folder / "metadata" / f"metadata_{name}.parquet"
        sink = parquet_files.ParquetSink(str(path), schema, compression="snappy")
        with closing(sink), ExitStack() as opened:
            arrays: dict[str, IO[bytes]] = {}
            for array, dimension in dimensions.items():
                place = folder / array / f"{array}_{name}.npy"
                arrays[array] = opened.enter_context(place.open("wb"))
                arrays[array].write(make_header(_HALF, n_here, dimension))
            # More rows than there should be go to the last file: their number is compared later.
            for rows in tables if number == n_files - 1 else islice(tables, FILE_ROWS // _METADATA):
                _write_table(rows, checks, sink, schema)
                if not checks.refusals:
                    for array, stream in arrays.items():
                        n_none[array] += rows.column(array).null_count
                        none = np.full(dimensions[array], np.nan, _HALF).tobytes()
                        stream.write(b"".join(v or none for v in rows.column(array).to_pylist()))
    for array, n in n_none.items():
        if n:
            log.warning("  %s rows of %s are NaN: these samples have no such vector", f"{n:,}", array)
    return checks.finish()


def _write_table(rows: pa.Table, checks: KeySink, sink: Any, schema: pa.Schema) -> None:
    for keys in rows.column(WRITTEN).chunks:
        checks.add(keys)
    if not checks.refusals:
        columns = [rows.column(name) for name in (WRITTEN, CLUSTER_ID, DISTANCE)]
        sink.write(type(rows).from_arrays(columns, names=schema.names).cast(schema))


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
        [v and np.frombuffer(v, "<f4").astype(_HALF).tobytes() for v in vectors.to_pylist()], pa.binary()
    )
