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
from spark_dbp.engine.arrow import CommittedTable, map_batches, measure_key_bytes
from spark_dbp.engine.blocks import (
    BLOCKS,
    make_block,
    number_tasks,
    read_block,
    read_parts,
    shuffle_blocks,
    split_into_blocks,
)
from spark_dbp.engine.compat import (
    collect_arrow,
    count_shuffle_partitions,
    map_in_arrow,
    send_to_partitions,
)
from spark_dbp.engine.mapped_rows import to_frame, write_and_read_back
from spark_dbp.engine.spark_errors import read_condition, read_first_line
from spark_dbp.errors import ConfigError, InputError
from spark_dbp.lake import files
from spark_dbp.lake.paths import to_spark_source
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
# Bytes of shards that the driver holds at a time, where it writes them.
_DRIVER_BYTES = 64 << 20

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
    n_tasks = _count_tasks(to_frame(keep_list).sparkSession, n_shards, n_keep, key_bytes)

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
            shard = _build_shard(rows.column("text").to_pylist())
            yield pa.RecordBatch.from_pylist([_write_shard(draft, number, *shard)], _arrow_schema())

    texts = keep_list if key is None else _write_expression(to_frame(keep_list), key)
    blocks = shuffle_blocks(map_batches(texts, [KEY], to_shards, BLOCKS), n_tasks)
    if isinstance(keep_list, CommittedTable):
        rows = map_in_arrow(blocks, write_shards, _SHARD_SCHEMA).collect()
        written = [row.asDict() for row in rows]
    else:
        written = _write_by_driver(blocks, draft)
    named = sorted(written, key=lambda row: row["shard"])
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


def _count_tasks(spark: SparkSession, n_shards: int, n_keys: int, key_bytes: float) -> int:
    """Tasks that build or read the shards. A task for each small shard would cost more than it saves."""
    return min(n_shards, max(_fewest_shards(n_keys, key_bytes), count_shuffle_partitions(spark)))


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
    from pyspark.sql import functions as F

    frame = to_frame(keep_list)
    looked_up: DataFrame | CommittedTable = keep_list
    if key is not None:
        looked_up = frame.select(to_key_text(frame, key).alias(KEY))
    elif trie.version == 1:
        looked_up = frame.select(_write_key_as_version_1(frame).alias(KEY))
    text_type = to_frame(looked_up).schema[KEY].dataType.simpleString()
    n_shards = trie.n_shards
    n_tasks = _count_tasks(frame.sparkSession, n_shards, len(trie), measure_key_bytes(keep_list))
    tasks = number_tasks(frame, n_tasks)

    def to_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return split_into_blocks(list_texts(batches), n_shards, part_of, tasks)

    def list_texts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for batch in batches:
            texts = trie.list_texts(list_key_values(batch.column(0), text_type))
            yield pa.RecordBatch.from_arrays([pa.array(texts, pa.binary())], ["text"])

    def part_of(rows: pa.Table) -> npt.NDArray[np.uint32]:
        return find_shards(rows.column("text").to_pylist(), n_shards)

    def to_block(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for file, content in zip(*batch.columns, strict=True):
                number = trie.shard_files.get(file.as_py())
                if number is not None:
                    yield make_block(int(tasks[number % n_tasks]), number, content.as_py())

    def look_up(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import marisa_trie
        import pyarrow as pa

        number = -1
        shard: Any = frozenset()
        for batch in batches:
            for part, is_key, content in zip(*batch.columns, strict=True):
                if part.as_py() != number:
                    number, shard = part.as_py(), frozenset()
                if not is_key.as_py():
                    shard = marisa_trie.BinaryTrie().frombytes(content.as_py())
                    continue
                texts = read_block(content).column(0).to_pylist()
                missing = [text for text in texts if text not in shard]
                yield pa.RecordBatch.from_arrays([pa.array(missing, pa.binary())], [KEY])

    # Each shard comes to a task, and after it all keys that must be in it.
    keys = map_batches(looked_up, [KEY], to_shards, BLOCKS).withColumn("is_key", F.lit(True))
    shards = map_in_arrow(read_shards(frame.sparkSession, trie.path), to_block, BLOCKS)
    both = shards.withColumn("is_key", F.lit(False)).unionByName(keys)
    sent = send_to_partitions(both, n_tasks, "task").sortWithinPartitions("part", "is_key")
    return map_in_arrow(sent.select("part", "is_key", "rows"), look_up, f"{KEY} BINARY")


def read_shards(spark: SparkSession, path: str) -> DataFrame:
    """The files of a trie, as Spark reads them: ``file``, ``content``."""
    from pyspark.sql import functions as F

    found = spark.read.format("binaryFile").option("pathGlobFilter", "*.marisa").load(to_spark_source(path))
    return found.select(F.substring_index("path", "/", -1).alias("file"), "content")


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


def _build_shard(keys: list[bytes]) -> tuple[int, bytes]:
    """Number of different keys, and their trie."""
    import marisa_trie

    # This makes the same bytes as marisa_trie.Trie does for strings, in half the time.
    trie = marisa_trie.BinaryTrie(keys)
    return len(trie), trie.tobytes()


def _write_shard(path: str, number: int, n_keys: int, content: bytes) -> dict[str, Any]:
    """Write a shard. Returns its entry in the manifest."""
    name = f"{number:05d}-{uuid4().hex[:8]}.marisa"
    files.write_bytes(files.join(path, name), content)
    return {
        "shard": number,
        "n_keys": n_keys,
        "file": name,
        "bytes": len(content),
        "crc32": crc32(content),
    }


def _write_by_driver(blocks: DataFrame, draft: str) -> list[dict[str, Any]]:
    """Let the workers build the shards, Spark write them as rows, and the driver write these as files.

    The driver holds few shards at a time.
    """

    def build_shards(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        for number, rows in read_parts(batches):
            n_keys, content = _build_shard(rows.column("text").to_pylist())
            numbers = {"shard": pa.array([number], pa.int32()), "n_keys": pa.array([n_keys], pa.int64())}
            yield pa.RecordBatch.from_pydict({**numbers, "content": pa.array([content], pa.binary())})

    from pyspark.sql import functions as F

    as_rows = files.join(draft, "rows")
    schema = "shard INT, n_keys BIGINT, content BINARY"
    shards = write_and_read_back(map_in_arrow(blocks, build_shards, schema), as_rows)
    sizes = shards.select("shard", F.octet_length("content")).collect()
    written = []
    for numbers in _gather_small(sorted((row[0], row[1]) for row in sizes)):
        found = collect_arrow(shards.where(F.col("shard").isin(numbers)))
        for batch in found.to_batches():
            for number, n_keys, content in zip(*batch.columns, strict=True):
                of_shard = (number.as_py(), n_keys.as_py(), content.as_py())
                written.append(_write_shard(draft, *of_shard))
    files.delete(as_rows)
    return written


def _gather_small(sizes: list[tuple[int, int]]) -> Iterator[list[int]]:
    """Numbers of shards that the driver may hold together; a shard that is larger comes alone.

    Examples
    --------
    >>> list(_gather_small([(0, 40 << 20), (1, 20 << 20), (2, 5 << 20)]))
    [[0, 1], [2]]
    """
    numbers: list[int] = []
    held = 0
    for number, size in sizes:
        if numbers and held + size > _DRIVER_BYTES:
            yield numbers
            numbers, held = [], 0
        numbers.append(number)
        held += size
    if numbers:
        yield numbers
