"""Semantic deduplication within clusters (SemDeDup, arXiv 2303.09540), exact at any cluster size.

Imports numpy, `arrow`, `compat`, `errors`, `group_joins`, `tiles`, `pairwise`, `files` and `select`; pyspark,
pyarrow and `components` inside functions.

The samples of a cluster are put in an order. A sample is a duplicate when its cosine similarity to an earlier
one is above ``1 - eps``. So its similarity to the most similar earlier sample decides for every eps at once.
Identical vectors have similarity 1, and are duplicates for every eps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from spark_dbp.columns import CLUSTER_ID, DUPLICATE_OF, KEY, QUOTA, RANK, SIMILARITY, VECTOR
from spark_dbp.engine.arrow import CommittedTable, measure_key_bytes
from spark_dbp.engine.group_joins import join_groups
from spark_dbp.engine.mapped_rows import to_frame, write_and_read_back
from spark_dbp.engine.tiles import (
    Tile,
    compare_tiles_in_files,
    compare_tiles_of_rows,
    count_tile_rows,
    write_tiles,
)
from spark_dbp.errors import ConfigError
from spark_dbp.kernels.pairwise import MostSimilarEarlier, find_spanning_pairs, find_threshold
from spark_dbp.lake import files
from spark_dbp.stages.select import select

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame

_PAIR = [KEY, DUPLICATE_OF, SIMILARITY]


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
        New directory, which may be deleted once the result is written. Where `assignments` is a committed
        table, workers write the tiles there; else only Spark writes to it.
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

    Raises
    ------
    ConfigError
        When `which_to_keep` is no order.

    Notes
    -----
    A task holds two tiles, each of 12 MiB of vectors and at most as much of keys, and 4 MiB of scores,
    whatever the size of the cluster.
    """
    from pyspark.sql import functions as F

    if which_to_keep == "stratified":
        raise ConfigError(
            "which_to_keep 'stratified' is no order in which one duplicate comes before another",
            mend="give one of hard, easy, random",
        )
    sizes = to_frame(assignments).groupBy(CLUSTER_ID).agg(F.count(F.lit(1)).alias(QUOTA))
    ranks = select(assignments, sizes, which_to_keep=which_to_keep, seed=seed).select(KEY, CLUSTER_ID, RANK)
    alone = sizes.where(F.col(QUOTA) == 1).select(CLUSTER_ID)  # a single sample has nothing to compare with
    ranks = ranks.join(F.broadcast(alone), CLUSTER_ID, "left_anti")
    ranked = to_frame(samples).select(KEY, VECTOR).join(ranks, KEY)
    n_rows = count_tile_rows(dim, measure_key_bytes(assignments))
    compare = partial(_compare_tiles, threshold=find_threshold(eps), connected=groups == "connected")
    if isinstance(assignments, CommittedTable):
        tile_path = files.join(scratch, "tiles")
        found = compare_tiles_in_files(
            write_tiles(ranked, tile_path, n_rows), tile_path, dim, ranked, compare
        )
    else:
        found = compare_tiles_of_rows(ranked, sizes, n_rows, compare)
    return found if groups == "earlier" else _first_of_groups(found, ranks, scratch)


def _compare_tiles(
    tile: Tile, earlier: Iterator[Tile], threshold: float, connected: bool
) -> Iterator[pa.RecordBatch]:
    """What is found when a tile is compared with the earlier ones of its cluster, and with itself."""
    find = _find_connections if connected else _find_most_similar
    return find(tile, earlier, threshold)


def _find_most_similar(tile: Tile, earlier: Iterator[Tile], threshold: float) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.compute as pc

    found = MostSimilarEarlier(tile.matrix, threshold)
    originals = pa.nulls(len(tile.keys), tile.keys.type)
    for other in chain(earlier, [tile]):
        if other is tile:
            found.compare_itself(tile.number)
        else:
            found.compare(other.matrix, other.number)
        is_here = found.tile == other.number
        originals = pc.replace_with_mask(originals, is_here, other.keys.take(pa.array(found.row[is_here])))
    rows = pa.array(np.flatnonzero(found.tile >= 0))
    if len(rows):
        similarity = pa.array(found.similarity).take(rows)
        yield pa.RecordBatch.from_arrays([tile.keys.take(rows), originals.take(rows), similarity], _PAIR)


def _find_connections(tile: Tile, earlier: Iterator[Tile], threshold: float) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    for other in chain(earlier, [tile]):
        for rows, columns in find_spanning_pairs(tile.matrix, other.matrix, threshold, other is tile):
            pair = [tile.keys.take(pa.array(rows)), other.keys.take(pa.array(columns))]
            yield pa.RecordBatch.from_arrays([*pair, pa.nulls(len(rows), pa.float64())], _PAIR)


def _first_of_groups(edges: DataFrame, ranks: DataFrame, scratch: str) -> DataFrame:
    from pyspark.sql import functions as F

    from spark_dbp.engine.components import find_components

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
