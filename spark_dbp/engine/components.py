"""Find the connected components of a table of pairs, on Spark.

Imports `arrow`, `compat`, `digest` and `files`; pyspark, pyarrow, numpy and scipy inside functions.

The method is that of Kiveris et al., "Connected Components in MapReduce and Beyond" (SoCC 2014). It applies a
large-star and a small-star operation in turn: every node tells its neighbours the smallest node it knows,
until all pairs of a component point at its smallest node. The number of rounds grows with the logarithm of
the longest path. When few enough pairs are left, one task finishes them in memory.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.mapped_rows import write_and_read_back
from spark_dbp.lake import files
from spark_dbp.lake.digest import digest_table

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

log = logging.getLogger("spark_dbp")

# Up to this many pairs, one task holds all of them in memory.
_ONE_TASK_PAIRS = 500_000


def find_components(edges: DataFrame, scratch: str) -> DataFrame:
    """Component of every node that occurs in a pair of different nodes.

    Parameters
    ----------
    edges : DataFrame
        ``a`` and ``b``, nodes of one atomic type. Pairs may repeat, in either direction. It is read several
        times, so give a table that was written, not a long computation.
    scratch : str
        New directory, reachable from the workers. The result is read from it.

    Returns
    -------
    DataFrame
        ``node``, and ``component``, the smallest node of its component.

    Notes
    -----
    Neither the driver nor a worker holds all pairs of a node, because minima are combined before the shuffle.
    Each round is written and read back, because Spark's plan would otherwise grow with every round.
    """
    from pyspark.sql import functions as F

    larger, smaller = F.greatest("a", "b"), F.least("a", "b")
    pairs = edges.where("a != b").select(larger.alias("node"), smaller.alias("parent"))
    if edges.count() <= _ONE_TASK_PAIRS:
        return _in_one_task(pairs)
    pairs, before, number = pairs.distinct(), None, 0
    while True:
        pairs = write_and_read_back(pairs, files.join(scratch, f"round-{number}"))
        now = digest_table(pairs)
        if number:
            files.delete(files.join(scratch, f"round-{number - 1}"))
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

    def connect(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components as components_of

        parts = list(batches)
        if not parts:
            return
        # Compare values in Arrow, not in Python: there NaN, and times in a zone with daylight saving, do not
        # compare as they do in Spark.
        values = pa.concat_arrays([part.column(side) for side in (0, 1) for part in parts])
        encoded = values.dictionary_encode()
        order = pc.sort_indices(encoded.dictionary)
        nodes = encoded.dictionary.take(order)
        rank = np.empty(len(nodes), dtype=np.int32)
        rank[order.to_numpy()] = np.arange(len(nodes), dtype=np.int32)
        a, b = rank[encoded.indices.to_numpy()].reshape(2, -1)
        graph = coo_array((np.ones(len(a), dtype=bool), (a, b)), shape=(len(nodes), len(nodes)))
        _, label = components_of(graph, directed=False)
        _, smallest = np.unique(label, return_index=True)
        yield pa.RecordBatch.from_arrays(
            [nodes, nodes.take(pa.array(smallest[label]))], ["node", "component"]
        )

    node = pairs.schema["node"].dataType
    schema = T.StructType([T.StructField("node", node), T.StructField("component", node)])
    return map_in_arrow(pairs.coalesce(1), connect, schema)


def _large_star(pairs: DataFrame) -> DataFrame:
    """Point every larger neighbour of a node at the smallest node among the node and its neighbours."""
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
    """Point a node and its smaller neighbours at the smallest node among them."""
    from pyspark.sql import functions as F

    least = pairs.groupBy("node").agg(F.min("parent").alias("least"))
    others = pairs.join(least, "node").where(F.col("parent") != F.col("least"))
    return (
        others.select(F.col("parent").alias("node"), F.col("least").alias("parent"))
        .unionByName(least.select("node", F.col("least").alias("parent")))
        .distinct()
    )
