"""Let Spark read whole files that workers do not reach. Imports `compat`, `files` and `paths`.

pyspark inside functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from spark_dbp.engine.compat import count_shuffle_partitions
from spark_dbp.lake import files
from spark_dbp.lake.paths import to_spark_source

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

# Spark reads a file as one value, which may have 2 GiB and is held several times.
MOST_BYTES = 1 << 30
# Bytes of a piece. Spark hands up to 10,000 rows to a worker at once.
_PIECE_BYTES = 16 << 10


def read_whole_files(spark: SparkSession, paths: Sequence[str]) -> DataFrame:
    """``path`` and ``content`` of files that only Spark reaches."""
    return spark.read.format("binaryFile").load(list(map(to_spark_source, paths))).select("path", "content")


def iter_contents(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[str, Any]]:
    """Path and content of each file of `read_whole_files`."""
    for batch in batches:
        for uri, content in zip(batch.column(0).to_pylist(), batch.column(1), strict=True):
            yield files.normalize(uri), memoryview(content.as_buffer())


def bring_groups(spark: SparkSession, groups: Sequence[Sequence[str]]) -> DataFrame:
    """Bring all files of a group to one task, in pieces.

    Parameters
    ----------
    spark : SparkSession
    groups : sequence of sequence of str
        Paths of files, each in one group only, and of `MOST_BYTES` in all.

    Returns
    -------
    DataFrame
        For `iter_groups`. Empty files are not there.
    """
    from pyspark.sql import functions as F

    number_of = {path: number for number, group in enumerate(groups) for path in group}
    contents = read_whole_files(spark, list(number_of))
    uris = [row.path for row in contents.select("path").collect()]  # no content is read for it
    found = [(uri, number_of[files.normalize(uri)]) for uri in uris]
    numbers = spark.createDataFrame(found, "path STRING, number INT")
    last = F.expr(f"CAST(greatest(octet_length(content) - 1, 0) DIV {_PIECE_BYTES} AS INT)")
    numbered = contents.select("path", "content", F.explode(F.sequence(F.lit(0), last)).alias("piece"))
    body = F.expr(f"substring(content, piece * {_PIECE_BYTES} + 1, {_PIECE_BYTES})").alias("body")
    pieces = numbered.select("path", "piece", body)
    n_tasks = max(1, min(len(groups), count_shuffle_partitions(spark)))
    brought = pieces.join(F.broadcast(numbers), "path").select("number", "path", "piece", "body")
    return brought.repartition(n_tasks, "number").sortWithinPartitions("number", "path", "piece")


def iter_groups(batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[int, Mapping[str, bytes]]]:
    """Number of each group of `bring_groups`, and the contents of its files by their paths."""
    held: dict[str, bytearray] = {}
    current = -1
    for batch in batches:
        uris, bodies = batch.column(1).to_pylist(), batch.column(3)
        for number, uri, body in zip(batch.column(0).to_pylist(), uris, bodies, strict=True):
            if number != current:
                if held:
                    yield current, _take(held)
                current = number
            held.setdefault(uri, bytearray()).extend(body.as_buffer())
    if held:
        yield current, _take(held)


def _take(held: dict[str, bytearray]) -> Mapping[str, bytes]:
    found = {files.normalize(uri): body for uri, body in held.items()}
    held.clear()
    return found  # type: ignore[return-value]  # which nobody changes any more
