"""Write the tries of the kept keys in the workers, one shard at a time.

Imports numpy, `arrow`, `blocks`, `compat`, `spark_errors`, `files` and the names of `loaders.keep_trie`;
pyspark and pyarrow inside functions; marisa_trie in the workers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4
from zlib import crc32

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import CLUSTER_ID, DISTANCE, KEY, RANK
from spark_dbp.engine.arrow import CommittedTable, map_batches, measure_key_bytes, to_frame
from spark_dbp.engine.blocks import BLOCKS, number_tasks, read_parts, shuffle_blocks, split_into_blocks
from spark_dbp.engine.compat import BatchFunction, count_shuffle_partitions, map_in_arrow
from spark_dbp.engine.spark_errors import read_condition, read_first_line
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.lake import files
from spark_dbp.loaders.keep_trie import FORMAT, FORMAT_VERSION, MANIFEST, find_shards

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType

# Small shards are built a third faster than large ones, and take 1.5 % more bytes. Once there are
# `_MANY_SHARDS` of them, shards grow instead, up to `_MANY_KEYS` keys or `_SHARD_BYTES` bytes. Building one
# takes a worker about 200 bytes a key, and eight times the keys' bytes (marisa alone five times).
_FEW_KEYS, _MANY_SHARDS, _MANY_KEYS = 250_000, 1000, 1_000_000
_SHARD_BYTES = 32 << 20

_SHARD_SCHEMA = "shard INT, n_keys BIGINT, file STRING, bytes BIGINT, crc32 BIGINT"


def write_key_text(keep_list: DataFrame) -> Column:
    """The key as text: BINARY in hexadecimal, TIMESTAMP as microseconds since 1970, other types cast."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    data_type = keep_list.schema[KEY].dataType
    if isinstance(data_type, T.BinaryType):
        return F.lower(F.hex(KEY))
    if isinstance(data_type, T.TimestampType):
        return F.unix_micros(KEY).cast("string")
    return F.col(KEY).cast("string")


def build_keep_trie(
    keep_list: DataFrame | CommittedTable,
    path: str,
    n_keep: int,
    *,
    key: str | None = None,
    shards: int | None = None,
) -> dict[str, Any]:
    """Write the keys of `keep_list` as tries that `KeepTrie` opens.

    Parameters
    ----------
    keep_list : DataFrame or CommittedTable
        The keep list, read back from its committed table.
    path : str
        New directory, reachable from the workers.
    n_keep : int
        Number of rows of `keep_list`.
    key : str, optional
        SQL expression for the text to store, on the columns of the keep list (``concat(key, '.jpg')``).
    shards : int, optional
        Number of shards. By default that of `count_shards`.

    Returns
    -------
    dict
        The manifest: ``n_keys``, ``n_shards`` and a ``shards`` list.

    Raises
    ------
    ConfigError
        When `key` is no valid expression.
    InputError
        When `key` is null for a kept row, or the same for two rows.
    """
    key_bytes = measure_key_bytes(keep_list)
    n_shards = shards or count_shards(n_keep, key_bytes)
    # A task builds several shards, one after the other. A task for each small shard would cost more than it
    # saves.
    n_partitions = count_shuffle_partitions(to_frame(keep_list).sparkSession)
    n_tasks = min(n_shards, max(_fewest_shards(n_keep, key_bytes), n_partitions))

    tasks = number_tasks(to_frame(keep_list), n_tasks)

    def to_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return split_into_blocks(as_bytes(batches), n_shards, shard_numbers, tasks)

    def as_bytes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            texts = batch.column(0).cast(pa.string()).cast(pa.binary())
            yield pa.RecordBatch.from_arrays([texts], ["text"])

    def shard_numbers(rows: pa.Table) -> npt.NDArray[np.uint32]:
        return find_shards(rows.column("text").to_pylist(), n_shards)

    def write_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for number, rows in read_parts(batches):
            keys = rows.column("text").to_pylist()
            yield pa.RecordBatch.from_pylist([_write_shard(path, number, keys)], _arrow_schema())

    blocks = shuffle_blocks(_map_texts(keep_list, key, to_shards), n_tasks)
    written = map_in_arrow(blocks, write_shards, _SHARD_SCHEMA).collect()
    # A task that ran twice wrote two files. Only the one that the manifest names belongs to the trie.
    named = sorted((row.asDict() for row in written), key=lambda row: row["shard"])
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_keys": sum(row["n_keys"] for row in named),
        "n_shards": n_shards,
        "shard_function": "crc32(utf8(key)) % n_shards",
        "shards": named,
    }
    if manifest["n_keys"] != n_keep:
        raise InputError(
            f"trie.key {key!r} makes {manifest['n_keys']:,} different texts of {n_keep:,} kept keys",
            mend="use an expression that is another text for every key",
        )
    files.write_bytes(files.join(path, MANIFEST), json.dumps(manifest, indent=1).encode())
    return manifest


def count_shards(n_keys: int, key_bytes: float = 0.0) -> int:
    """Number of shards for `n_keys` keys of about `key_bytes` bytes each.

    Examples
    --------
    >>> count_shards(0), count_shards(10_000_000), count_shards(10**9), count_shards(10**10)
    (1, 40, 1000, 10000)
    >>> count_shards(100_000, key_bytes=10_000)
    30
    """
    return max(1, min(-(-n_keys // _FEW_KEYS), _MANY_SHARDS), _fewest_shards(n_keys, key_bytes))


def _fewest_shards(n_keys: int, key_bytes: float) -> int:
    """Fewest shards with which a worker can build each in memory."""
    return max(-(-n_keys // _MANY_KEYS), math.ceil(n_keys * key_bytes / _SHARD_BYTES))


def _map_texts(keep_list: DataFrame | CommittedTable, key: str | None, function: BatchFunction) -> DataFrame:
    """Apply `function`, which makes blocks, to the texts to store."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    frame = to_frame(keep_list)
    if key is None and isinstance(frame.schema[KEY].dataType, T.StringType | T.IntegralType):
        return map_batches(keep_list, [KEY], function, BLOCKS)
    texts = frame.select(to_key_text(frame, key).alias("text"))
    n_null = 0 if key is None else texts.where(F.col("text").isNull()).count()
    if n_null:
        raise InputError(
            f"trie.key {key!r} is null for {n_null:,} kept rows", mend="use coalesce() in the expression"
        )
    return map_in_arrow(texts, function, BLOCKS)


def check_key_expression(spark: SparkSession, key_type: DataType, key: str | None) -> None:
    """Refuse a `key` expression that is not valid SQL on the keep list. Works before there is a keep list.

    Raises
    ------
    ConfigError
    """
    from pyspark.sql import types as T

    if key is not None:
        columns = [
            (KEY, key_type),
            (CLUSTER_ID, T.IntegerType()),
            (DISTANCE, T.FloatType()),
            (RANK, T.IntegerType()),
        ]
        schema = T.StructType([T.StructField(*column) for column in columns])
        to_key_text(spark.createDataFrame([], schema), key)


def _arrow_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("shard", pa.int32()),
            ("n_keys", pa.int64()),
            ("file", pa.string()),
            ("bytes", pa.int64()),
            ("crc32", pa.int64()),
        ]
    )


def to_key_text(keep_list: DataFrame, key: str | None) -> Column:
    """The text that the trie stores for a row: `write_key_text`, or the expression `key`."""
    from pyspark.sql import functions as F

    if key is None:
        return write_key_text(keep_list)
    try:
        text = F.expr(key).cast("string")  # Spark 3.5 parses here, later versions below
        _ = keep_list.select(text).schema
    except Exception as error:
        if not read_condition(error):
            raise
        raise ConfigError(
            f"trie.key {key!r}: {read_first_line(error)}",
            mend=f"use a SQL expression on the columns {', '.join(keep_list.columns)}",
        ) from error
    return text


def _write_shard(path: str, number: int, keys: list[bytes]) -> dict[str, Any]:
    import marisa_trie

    # This writes the same file as marisa_trie.Trie does for strings, in half the time.
    trie = marisa_trie.BinaryTrie(keys)
    content = trie.tobytes()
    name = f"{number:05d}-{uuid4().hex[:8]}.marisa"
    files.write_bytes(files.join(path, name), content)
    size, check = len(content), crc32(content)
    return {"shard": number, "n_keys": len(trie), "file": name, "bytes": size, "crc32": check}
