"""Semantic deduplication within clusters (SemDeDup, arXiv 2303.09540), exact at any cluster size.

Imports numpy, `arrow`, `compat`, `group_joins`, `tiles`, `pairwise`, `files` and `select`; pyspark, pyarrow
and `components` inside functions.

The samples of a cluster are put in an order. A sample is a duplicate when its cosine similarity to an earlier
one is above ``1 - eps``. So its similarity to the most similar earlier sample decides for every eps at once.
Identical vectors have similarity 1, and are duplicates for every eps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from spark_dbp.columns import CLUSTER_ID, DUPLICATE_OF, KEY, QUOTA, RANK, SIMILARITY, VECTOR
from spark_dbp.engine.arrow import CommittedTable, measure_key_bytes, to_frame, write_and_read_back
from spark_dbp.engine.compat import map_in_arrow
from spark_dbp.engine.group_joins import join_groups
from spark_dbp.engine.tiles import TileReader, TileRef, count_tile_rows, write_tiles
from spark_dbp.kernels.pairwise import MostSimilarEarlier, find_spanning_pairs, find_threshold
from spark_dbp.lake import files
from spark_dbp.stages.select import select

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

# Dot products in the share of one task: few enough to spread the work, enough to be worth starting a task.
_PRODUCTS_A_TASK = 2**28


def semantic_dedup(
    samples: DataFrame | CommittedTable,
    assignments: DataFrame | CommittedTable,
    *,
    eps: float,
    dim: int,
    scratch: str,
    which_to_keep: str = "hard",
    seed: int = 0,
    groups: str = "earlier",
) -> DataFrame:
    """Every sample whose similarity to an earlier sample of its cluster is above ``1 - eps``.

    Parameters
    ----------
    samples : DataFrame or CommittedTable
        ``key`` and ``vector``.
    assignments : DataFrame or CommittedTable
        ``key``, ``cluster_id``, ``distance_to_centroid`` of these samples.
    eps : float
        In (0, 1). Where several are to be tried, the largest of them.
    dim : int
        Dimension of the vectors.
    scratch : str
        New directory for the tiles, reachable from the workers. It may be deleted once the result is written.
    which_to_keep : {"hard", "easy", "random"}
        The order: farthest from the centroid first, nearest first, or by a hash of the key.
    seed : int
        For ``random`` only.
    groups : {"earlier", "connected"}
        ``earlier`` is SemDeDup's rule. ``connected`` keeps only the first of all samples that pairs above
        ``1 - eps`` connect, directly or through others. It removes the same samples or more.

    Returns
    -------
    DataFrame
        ``earlier``: ``key``, ``duplicate_of`` (the most similar earlier sample; of equally similar ones the
        first), ``similarity`` DOUBLE (1 for identical vectors, below 1 for others). ``connected``:
        ``duplicate_of`` is the first of the connected samples, and ``similarity`` is null.

    Notes
    -----
    A task holds two tiles, each of 12 MiB of vectors and at most as much of keys, and 4 MiB of scores,
    whatever the size of the cluster.
    """
    from pyspark.sql import functions as F

    sizes = to_frame(assignments).groupBy(CLUSTER_ID).agg(F.count(F.lit(1)).alias(QUOTA))
    ranks = select(assignments, sizes, which_to_keep=which_to_keep, seed=seed).select(KEY, CLUSTER_ID, RANK)
    alone = sizes.where(F.col(QUOTA) == 1).select(CLUSTER_ID)  # a single sample has nothing to compare with
    ranks = ranks.join(F.broadcast(alone), CLUSTER_ID, "left_anti")
    vectors = to_frame(samples).select(KEY, VECTOR)
    tile_path = files.join(scratch, "tiles")
    n_rows = count_tile_rows(dim, measure_key_bytes(assignments))
    refs = write_tiles(vectors.join(ranks, KEY), tile_path, n_rows)
    if groups == "connected":
        return _first_of_groups(samples, ranks, refs, tile_path, dim, find_threshold(eps), scratch)
    return _over_tiles(samples, refs, tile_path, dim, find_threshold(eps), connected=False)


def _shares(refs: list[TileRef]) -> list[list[tuple[int, int]]]:
    """Split the work into shares of about equal size: pairs of (first tile of the cluster, tile to compare).

    Both are indexes in `refs`.
    """
    shares: list[tuple[int, list[tuple[int, int]]]] = []
    first = rows_before = 0
    for place, ref in enumerate(refs):
        if refs[first].cluster_id != ref.cluster_id:
            first, rows_before = place, 0
        products = ref.n_items * (rows_before + ref.n_items)
        rows_before += ref.n_items
        if not shares or shares[-1][0] + products > _PRODUCTS_A_TASK:
            shares.append((0, []))
        work, places = shares[-1]
        places.append((first, place))
        shares[-1] = (work + products, places)
    # Later tiles of a large cluster are compared with the most tiles, so they start first.
    return [places for _, places in sorted(shares, key=lambda share: -share[0])]


def _over_tiles(
    samples: DataFrame | CommittedTable,
    refs: list[TileRef],
    path: str,
    dim: int,
    threshold: float,
    connected: bool,
) -> DataFrame:
    from pyspark.sql import types as T

    shares = _shares(refs)
    frame = to_frame(samples)
    key_type = frame.schema[KEY].dataType

    def compare(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        reader = TileReader(path, dim)
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for first, place in shares[number]:
                    work = _edges if connected else _most_similar
                    yield from work(reader, refs[place], refs[first:place], threshold)

    schema = T.StructType(
        [
            T.StructField(KEY, key_type),
            T.StructField(DUPLICATE_OF, key_type),
            T.StructField(SIMILARITY, T.DoubleType()),
        ]
    )
    n_tasks = max(1, len(shares))
    return map_in_arrow(frame.sparkSession.range(0, len(shares), 1, n_tasks), compare, schema)


def _most_similar(
    reader: TileReader, ref: TileRef, before: list[TileRef], threshold: float
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    found = MostSimilarEarlier(reader.matrix(ref), threshold)
    for other in before:
        found.compare(reader.matrix(other), other.tile)
    found.compare_itself(ref.tile)
    keys = reader.keys(ref)
    for other in [*before, ref]:
        rows = np.flatnonzero(found.tile == other.tile)
        if rows.size:
            originals = keys if other is ref else reader.keys(other)
            yield pa.RecordBatch.from_arrays(
                [
                    keys.take(pa.array(rows)),
                    originals.take(pa.array(found.row[rows])),
                    pa.array(found.similarity[rows]),
                ],
                [KEY, DUPLICATE_OF, SIMILARITY],
            )


def _edges(
    reader: TileReader, ref: TileRef, before: list[TileRef], threshold: float
) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    block, keys = reader.matrix(ref), reader.keys(ref)
    for other in [*before, ref]:
        itself = other is ref
        right = block if itself else reader.matrix(other)
        other_keys = keys if itself else reader.keys(other)
        for rows, columns in find_spanning_pairs(block, right, threshold, itself):
            yield pa.RecordBatch.from_arrays(
                [
                    keys.take(pa.array(rows)),
                    other_keys.take(pa.array(columns)),
                    pa.nulls(len(rows), pa.float64()),
                ],
                [KEY, DUPLICATE_OF, SIMILARITY],
            )


def _first_of_groups(
    samples: DataFrame | CommittedTable,
    ranks: DataFrame,
    refs: list[TileRef],
    path: str,
    dim: int,
    threshold: float,
    scratch: str,
) -> DataFrame:
    from pyspark.sql import functions as F

    from spark_dbp.engine.components import find_components

    edges = _over_tiles(samples, refs, path, dim, threshold, connected=True)
    edges = edges.select(F.col(KEY).alias("a"), F.col(DUPLICATE_OF).alias("b"))
    pairs = write_and_read_back(edges, files.join(scratch, "pairs"))
    members = find_components(pairs, files.join(scratch, "components"))
    ranked = members.join(ranks, members["node"] == ranks[KEY]).select(KEY, RANK, "component")
    firsts = ranked.groupBy("component").agg(
        F.min(F.struct(RANK, KEY)).alias("first"), F.count(F.lit(1)).alias("times")
    )
    return (
        join_groups(ranked, firsts, ["component"])
        .where(F.col(KEY) != F.col(f"first.{KEY}"))
        .select(
            KEY,
            F.col(f"first.{KEY}").alias(DUPLICATE_OF),
            F.lit(None).cast("double").alias(SIMILARITY),
        )
    )


def count_by_eps(pairs: DataFrame, eps: list[float], n_rows: int) -> list[dict[str, float]]:
    """How many samples each eps would remove.

    Parameters
    ----------
    pairs : DataFrame
        From `semantic_dedup` with ``groups="earlier"`` and the largest of `eps`.
    eps : list of float
    n_rows : int
        Number of samples that were compared.

    Returns
    -------
    list of dict
        ``eps``, ``removed``, ``share``, in the order of `eps`.
    """
    from pyspark.sql import functions as F

    removed = [F.when(F.col(SIMILARITY) > find_threshold(value), 1) for value in eps]
    counts = [F.count(column).alias(str(i)) for i, column in enumerate(removed)]
    row = pairs.agg(*counts).collect()[0]
    return [
        {"eps": value, "removed": int(row[i]), "share": int(row[i]) / n_rows} for i, value in enumerate(eps)
    ]
