"""Read rows of the tables of a run, and order them as ``random`` does. Imports numpy, `lake`, `row_hash`,
`run_clusters` and `runs`; pyarrow inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from spark_dbp.explore.run_clusters import check_columns, translate_damage
from spark_dbp.kernels.row_hash import hash_rows
from spark_dbp.lake import parquet_files

if TYPE_CHECKING:
    import pyarrow as pa

    from spark_dbp.runs import Run

_BATCH_ROWS, _BATCH_BYTES = 1 << 17, 64 << 20


def iter_table(run: Run, table: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Columns of a table of a run, in batches, without Spark.

    Raises
    ------
    DamagedRunError
        When a file is not there, cannot be read, or lacks a column.

    Examples
    --------
    >>> next(iter_table(open_run("run"), "keep_list", ["key"])).num_rows  # doctest: +SKIP
    """
    for path in run.list_files(table):
        with translate_damage(run, table, path):
            for batch in parquet_files.iter_parquet(path, columns, _BATCH_ROWS, _BATCH_BYTES):
                check_columns(batch.schema.names, columns)
                yield batch


def hash_keys(keys: pa.Array, seed: int) -> npt.NDArray[np.int64]:
    """Spark's ``xxhash64(key, seed)``, by which ``random`` orders, of keys as Parquet holds them.

    Examples
    --------
    >>> import pyarrow as pa
    >>> numbers = pa.array([5, -7])
    >>> hash_keys(numbers.cast(pa.timestamp("us", "UTC")), 3).tolist() == hash_keys(numbers, 3).tolist()
    True
    """
    import pyarrow as pa

    # Spark hashes times as whole microseconds, and bytes of any length as bytes.
    if pa.types.is_timestamp(keys.type):
        keys = keys.cast(pa.timestamp("us", keys.type.tz)).cast(pa.int64())
    elif pa.types.is_duration(keys.type):
        keys = keys.cast(pa.duration("us")).cast(pa.int64())
    elif pa.types.is_fixed_size_binary(keys.type):
        keys = keys.cast(pa.binary())
    return hash_rows([keys, pa.array(np.full(len(keys), seed, np.int64))]).astype(np.int64)
