"""Stage 6: write the tries of the kept keys, one shard at a time, in the workers.

Imports `parts`; pyspark inside functions; marisa_trie and `files` in the workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from spark_dbp import files
from spark_dbp.columns import KEY
from spark_dbp.compat import condition_of, first_line
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.keep.trie import FORMAT, FORMAT_VERSION, MANIFEST, shard_of
from spark_dbp.parts import BLOCKS, in_blocks, together, whole_parts

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import Column, DataFrame

# A worker builds a shard in memory: about 100 bytes a key.
KEYS_PER_SHARD = 1_000_000

_SHARD_SCHEMA = "shard INT, n_keys BIGINT, file STRING, bytes BIGINT"


def default_key_text(keep_list: DataFrame) -> Column:
    """The key as text: itself, BINARY in hexadecimal, TIMESTAMP as microseconds since 1970."""
    from pyspark.sql import functions as F
    from pyspark.sql import types as T

    data_type = keep_list.schema[KEY].dataType
    if isinstance(data_type, T.BinaryType):
        return F.lower(F.hex(KEY))
    if isinstance(data_type, T.TimestampType):
        return F.unix_micros(KEY).cast("string")
    return F.col(KEY).cast("string")


def build_keep_trie(
    keep_list: DataFrame,
    path: str,
    n_keep: int,
    *,
    key: str | None = None,
    shards: int | None = None,
) -> dict[str, Any]:
    """Write the keys of `keep_list` as tries that `KeepTrie` opens.

    Parameters
    ----------
    keep_list : DataFrame
        The keep list, read back from its committed table.
    path : str
        New directory, reachable from the workers.
    n_keep : int
        Rows of `keep_list`.
    key : str, optional
        SQL expression on the keep list's columns for the text to store (``concat(key, '.jpg')``).
    shards : int, optional
        How many; by default one a million keys.

    Returns
    -------
    dict
        The manifest: ``n_keys``, ``n_shards`` and a ``shards`` list.

    Raises
    ------
    ConfigError
        When `key` is no valid expression.
    InputError
        When it is null for a kept row.
    """
    from pyspark.sql import functions as F

    n_shards = shards or max(1, -(-n_keep // KEYS_PER_SHARD))
    texts = keep_list.select(_key_text(keep_list, key).alias("text"))
    n_null = 0 if key is None else texts.where(F.col("text").isNull()).count()
    if n_null:
        raise InputError(
            f"trie.key {key!r} is null for {n_null:,} kept rows", mend="use coalesce() in the expression"
        )
    shard = F.pmod(F.crc32(F.encode("text", "UTF-8")), F.lit(n_shards)).cast("int")

    def to_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return in_blocks(batches, n_shards, lambda table: table.column("shard").to_numpy())

    def write_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for number, rows in whole_parts(batches):
            keys = rows.column("text").cast(pa.binary()).to_pylist()
            yield pa.RecordBatch.from_pylist([_write_shard(path, number, keys, n_shards)], _arrow_schema())

    blocks = texts.withColumn("shard", shard).mapInArrow(to_shards, BLOCKS)
    written = together(blocks, n_shards).mapInArrow(write_shards, _SHARD_SCHEMA).collect()
    # A task that ran twice left a second file; what the manifest does not name is not part of the trie.
    named = sorted((row.asDict() for row in written), key=lambda row: row["shard"])
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "n_keys": sum(row["n_keys"] for row in named),
        "n_shards": n_shards,
        "shard_function": "crc32(utf8(key)) % n_shards",
        "shards": named,
    }
    files.write_bytes(files.join(path, MANIFEST), json.dumps(manifest, indent=1).encode())
    return manifest


def _arrow_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [("shard", pa.int32()), ("n_keys", pa.int64()), ("file", pa.string()), ("bytes", pa.int64())]
    )


def _key_text(keep_list: DataFrame, key: str | None) -> Column:
    from pyspark.sql import functions as F

    if key is None:
        return default_key_text(keep_list)
    text = F.expr(key).cast("string")
    try:
        _ = keep_list.select(text).schema
    except Exception as error:
        if not condition_of(error):
            raise
        raise ConfigError(
            f"trie.key {key!r}: {first_line(error)}",
            mend=f"use a SQL expression on the columns {', '.join(keep_list.columns)}",
        ) from error
    return text


def _write_shard(path: str, number: int, keys: list[bytes], n_shards: int) -> dict[str, Any]:
    import marisa_trie

    # The same file as marisa_trie.Trie makes of strings, in half the time.
    trie = marisa_trie.BinaryTrie(keys)
    if keys and shard_of(keys[0], n_shards) != number:
        raise InputError(f"shard {number} holds keys of another shard: Spark's crc32 is not Python's")
    content = trie.tobytes()
    name = f"{number:05d}-{uuid4().hex[:8]}.marisa"
    files.write_bytes(files.join(path, name), content)
    return {"shard": number, "n_keys": len(trie), "file": name, "bytes": len(content)}
