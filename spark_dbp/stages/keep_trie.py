"""Write the tries of the kept keys in the workers, one shard at a time.

Imports numpy, `arrow`, `blocks`, `compat`, `spark_errors`, `files`, `loaders`; pyspark and pyarrow inside
functions; marisa_trie in the workers.
"""

from __future__ import annotations

import json
import logging
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
from spark_dbp.engine.compat import count_shuffle_partitions, map_in_arrow
from spark_dbp.engine.spark_errors import read_condition, read_first_line
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.lake import files
from spark_dbp.loaders.keep_trie import FORMAT, FORMAT_VERSION, MANIFEST, KeepTrie, find_shards
from spark_dbp.loaders.key_text import find_key_text, list_key_values, write_key_texts

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame, SparkSession
    from pyspark.sql.types import DataType

log = logging.getLogger("spark_dbp")

# Small shards are built a third faster than large ones, and take 1.5 % more bytes. Once there are
# `_MANY_SHARDS` of them, shards grow instead, up to `_MANY_KEYS` keys or `_SHARD_BYTES` bytes. Building one
# takes a worker about 200 bytes a key, and eight times the keys' bytes (marisa alone five times).
_FEW_KEYS, _MANY_SHARDS, _MANY_KEYS = 250_000, 1000, 1_000_000
_SHARD_BYTES = 32 << 20

_SHARD_SCHEMA = "shard INT, n_keys BIGINT, file STRING, bytes BIGINT, crc32 BIGINT"


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
    key_type = to_frame(keep_list).schema[KEY].dataType.simpleString()
    if key is None:
        _log_what_is_stored(key_type)
    key_bytes = measure_key_bytes(keep_list)
    n_shards = shards or count_shards(n_keep, key_bytes)
    # A task builds several shards, one after the other. A task for each small shard would cost more than it
    # saves.
    n_partitions = count_shuffle_partitions(to_frame(keep_list).sparkSession)
    n_tasks = min(n_shards, max(_fewest_shards(n_keep, key_bytes), n_partitions))

    tasks = number_tasks(to_frame(keep_list), n_tasks)
    # A task that runs twice writes two files, the second perhaps after the end of this step. So shards are
    # drafts until the driver has heard of them.
    draft = files.join(path, f"_draft-{uuid4().hex[:8]}")

    text_type = key_type if key is None else "string"

    def to_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return split_into_blocks(as_bytes(batches), n_shards, shard_numbers, tasks)

    def as_bytes(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            yield pa.RecordBatch.from_arrays([write_key_texts(batch.column(0), text_type)], ["text"])

    def shard_numbers(rows: pa.Table) -> npt.NDArray[np.uint32]:
        return find_shards(rows.column("text").to_pylist(), n_shards)

    def write_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for number, rows in read_parts(batches):
            keys = rows.column("text").to_pylist()
            yield pa.RecordBatch.from_pylist([_write_shard(draft, number, keys)], _arrow_schema())

    texts = keep_list if key is None else _write_expression(to_frame(keep_list), key)
    blocks = shuffle_blocks(map_batches(texts, [KEY], to_shards, BLOCKS), n_tasks)
    written = map_in_arrow(blocks, write_shards, _SHARD_SCHEMA).collect()
    named = sorted((row.asDict() for row in written), key=lambda row: row["shard"])
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_keys": sum(row["n_keys"] for row in named),
        "n_shards": n_shards,
        "shard_function": "crc32(text) % n_shards",
        "key_type": key_type,
        "expression": key,
        "shards": named,
    }
    if manifest["n_keys"] != n_keep:
        raise InputError(
            f"trie.key {key!r} makes {manifest['n_keys']:,} different texts of {n_keep:,} kept keys",
            mend="use an expression that is another text for every key",
        )
    files.publish(draft, [shard["file"] for shard in named], path)
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


def _log_what_is_stored(key_type: str) -> None:
    form = find_key_text(key_type)
    if form is None or not form.stored:
        return
    log.info("  keys of type %s are stored as %s; look up %s", key_type.upper(), form.stored, form.values)
    if key_type == "binary":
        log.info(
            "  where these keys are text, set trie.key: decode(key, 'utf-8'), or let Spark read them as text "
            "(spark.sql.parquet.binaryAsString)"
        )


def _write_expression(keep_list: DataFrame, key: str) -> DataFrame:
    """The texts that the expression `key` makes, as ``key``. None is null."""
    from pyspark.sql import functions as F

    texts = keep_list.select(to_key_text(keep_list, key).alias(KEY))
    n_null = texts.where(F.col(KEY).isNull()).count()
    if n_null:
        raise InputError(
            f"trie.key {key!r} is null for {n_null:,} kept rows", mend="use coalesce() in the expression"
        )
    return texts


def find_missing_keys(keep_list: DataFrame | CommittedTable, trie: KeepTrie, key: str | None) -> DataFrame:
    """Look every kept key up in its trie, by its value as training code has it.

    Parameters
    ----------
    keep_list : DataFrame or CommittedTable
    trie : KeepTrie
    key : str or None
        The expression that the trie was built with.

    Returns
    -------
    DataFrame
        ``key`` BINARY: the texts of the keys that are not found.
    """
    frame = to_frame(keep_list)
    looked_up: DataFrame | CommittedTable = keep_list
    if key is not None:
        looked_up = frame.select(to_key_text(frame, key).alias(KEY))
    elif trie.version == 1:
        looked_up = frame.select(_write_key_as_version_1(frame).alias(KEY))
    text_type = to_frame(looked_up).schema[KEY].dataType.simpleString()

    def look_up(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            keys = batch.column(0)
            missing = ~trie.contains_many(list_key_values(keys, text_type))
            texts = write_key_texts(keys.filter(pa.array(missing)), text_type)
            yield pa.RecordBatch.from_arrays([texts], [KEY])

    return map_batches(looked_up, [KEY], look_up, f"{KEY} BINARY")


def _write_key_as_version_1(keep_list: DataFrame) -> Column:
    """The text of a key in tries of version 1."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    data_type = keep_list.schema[KEY].dataType
    if isinstance(data_type, T.BinaryType):
        return F.lower(F.hex(KEY))
    if isinstance(data_type, T.TimestampType):
        return F.unix_micros(KEY).cast("string")
    return F.col(KEY).cast("string")


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


def to_key_text(keep_list: DataFrame, key: str) -> Column:
    """The text that the expression `key` makes of a row."""
    from pyspark.sql import functions as F

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
