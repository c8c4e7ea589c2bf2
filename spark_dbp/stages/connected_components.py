"""Connected components of a table of pairs, on Spark.

Imports `files`, `digest`; pyspark and pyarrow inside functions.

Alternates the large-star and small-star steps of Kiveris et al., "Connected Components in MapReduce and
Beyond" (SoCC 2014): every node hands its neighbours the smallest node it knows, until all pairs of a
component point at its smallest node. The number of rounds grows with the logarithm of the longest path.
Pairs that are few enough for one task's memory are finished in one, by union-find.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from spark_dbp import files
from spark_dbp.digest import table_digest

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

log = logging.getLogger("spark_dbp")

# A task's union-find takes about 300 bytes a pair.
_ONE_TASK_PAIRS = 500_000


def connected_components(edges: DataFrame, scratch: str) -> DataFrame:
    """Component of every node that occurs in a pair of different nodes.

    Parameters
    ----------
    edges : DataFrame
        ``a`` and ``b``, nodes of one atomic type; pairs may repeat, in either direction.
    scratch : str
        New directory, reachable from the workers; the result is read from it.

    Returns
    -------
    DataFrame
        ``node``, ``component``: the smallest node of its component.

    Notes
    -----
    Neither driver nor workers hold the pairs of a node: minima are combined before the shuffle. A round
    is written and read back, for plans would grow with every round otherwise.
    """
    from pyspark.sql import functions as F

    spark = edges.sparkSession
    larger, smaller = F.greatest("a", "b"), F.least("a", "b")
    pairs = edges.where("a != b").select(larger.alias("node"), smaller.alias("parent")).distinct()
    before, number = None, 0
    while True:
        path = files.join(scratch, f"round-{number}")
        pairs.write.parquet(files.spark_path(path))
        pairs = spark.read.parquet(files.spark_path(path))
        now = table_digest(pairs)
        if number:
            files.delete_tree(files.join(scratch, f"round-{number - 1}"))
            log.info("  connecting pairs, round %d: %s pairs", number, f"{now[0]:,}")
        if now == before or now[0] == 0:
            break
        if now[0] <= _ONE_TASK_PAIRS:
            return _in_one_task(pairs)
        before, number = now, number + 1
        pairs = _small_star(_large_star(pairs))
    roots = pairs.select(F.col("parent").alias("node"), F.col("parent").alias("component")).distinct()
    return pairs.select("node", F.col("parent").alias("component")).unionByName(roots)


def _in_one_task(pairs: DataFrame) -> DataFrame:
    from pyspark.sql import types as T

    def union_find(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa

        parent: dict[Any, Any] = {}

        def root(node: Any) -> Any:
            while parent.setdefault(node, node) != node:
                parent[node] = parent[parent[node]]
                node = parent[node]
            return node

        types = None
        for batch in batches:
            types = batch.column(0).type
            for a, b in zip(batch.column(0).to_pylist(), batch.column(1).to_pylist(), strict=True):
                a, b = root(a), root(b)
                if a != b:  # Python orders texts and bytes as Spark does
                    parent[max(a, b)] = min(a, b)
        if parent:
            nodes = list(parent)
            columns = [pa.array(nodes, types), pa.array([root(node) for node in nodes], types)]
            yield pa.RecordBatch.from_arrays(columns, ["node", "component"])

    node = pairs.schema["node"].dataType
    schema = T.StructType([T.StructField("node", node), T.StructField("component", node)])
    return pairs.coalesce(1).mapInArrow(union_find, schema)


def _large_star(pairs: DataFrame) -> DataFrame:
    """Point every larger neighbour of a node at the smallest of the node and its neighbours."""
    from pyspark.sql import functions as F

    turned = pairs.select(F.col("parent").alias("node"), F.col("node").alias("parent"))
    both = pairs.unionByName(turned)
    least = both.groupBy("node").agg(F.min("parent").alias("least"))
    least = least.select("node", F.least("node", "least").alias("least"))
    return (
        both.join(least, "node")
        .where(F.col("parent") > F.col("node"))
        .select(F.col("parent").alias("node"), F.col("least").alias("parent"))
        .distinct()
    )


def _small_star(pairs: DataFrame) -> DataFrame:
    """Point a node and its smaller neighbours at the smallest of them."""
    from pyspark.sql import functions as F

    least = pairs.groupBy("node").agg(F.min("parent").alias("least"))
    others = pairs.join(least, "node").where(F.col("parent") != F.col("least"))
    return (
        others.select(F.col("parent").alias("node"), F.col("least").alias("parent"))
        .unionByName(least.select("node", F.col("least").alias("parent")))
        .distinct()
    )
