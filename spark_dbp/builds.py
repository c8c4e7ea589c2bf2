"""How each step is built: read what it needs from the job, call a stage, write its tables.

Imports `job`, the stages, `engine`, `kernels`; pyspark inside functions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import asdict
from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from spark_dbp.build_samples import check_feasible
from spark_dbp.columns import (
    CLUSTER_ID,
    D_INTER,
    D_INTRA,
    DISTANCE,
    DUPLICATE_OF,
    KEY,
    METHOD,
    N_ITEMS,
    QUOTA,
    SIMILARITY,
    TARGET,
    VECTOR,
    WEIGHT,
)
from spark_dbp.config_base import name_column
from spark_dbp.engine.mapped_rows import MappedRows
from spark_dbp.errors import InfeasibleError, InputError, SparkDbpError
from spark_dbp.io.centroids import check_centroids
from spark_dbp.job import Job
from spark_dbp.kernels.histogram import WHOLE_DISTANCE_SQL, to_whole_distances
from spark_dbp.kernels.pairwise import find_threshold
from spark_dbp.kernels.signatures import plan_bands
from spark_dbp.kernels.vectors import make_centroids_table
from spark_dbp.lake.digest import add_digests
from spark_dbp.loaders.keep_trie import MANIFEST
from spark_dbp.stages import kmeans
from spark_dbp.stages.cluster_stats import cluster_stats, complete_stats
from spark_dbp.stages.exact_dedup import exact_dedup
from spark_dbp.stages.keep_trie import build_keep_trie
from spark_dbp.stages.minhash_dedup import minhash_dedup
from spark_dbp.stages.quota import describe_quotas, plan_quotas
from spark_dbp.stages.select import plan_selection
from spark_dbp.stages.semantic_dedup import count_by_eps, semantic_dedup

if TYPE_CHECKING:
    import numpy.typing as npt
    import pyarrow as pa
    from pyspark.sql import DataFrame

    Centroids = tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]

log = logging.getLogger("spark_dbp")


# Deduplication. `rows` is the table of the samples that are left so far.


def build_exact_duplicates(job: Job, rows: str) -> None:
    """Find rows that agree in all of some columns."""
    settings = job.config.dedup.exact
    assert settings is not None
    found = exact_dedup(
        job.read_as_input(rows),
        key=str(job.config.input.key),
        columns=[str(column) for column in settings.columns],
        order_by=name_column(settings.order_by),
    )
    job.write_table("exact_duplicates", found)


def build_minhash_duplicates(job: Job, rows: str) -> None:
    """Find texts that are nearly the same."""
    settings = job.config.dedup.minhash
    assert settings is not None
    found = minhash_dedup(
        job.read_as_input(rows),
        key=str(job.config.input.key),
        scratch=job.new_directory("scratch"),
        **{
            **settings.model_dump(),
            "column": str(settings.column),
            "order_by": name_column(settings.order_by),
        },
    )
    job.write_table("minhash_duplicates", found)
    job.delete_directory("scratch")
    plan = plan_bands(settings.threshold, settings.num_perm)
    job.note(bands=plan.bands, rows=plan.rows, expected_recall=plan.expected_recall)


def build_semantic_clusters(job: Job, rows: str) -> None:
    """Cluster what is left into many small clusters, for semantic deduplication."""
    settings = job.config.dedup.semantic
    assert settings is not None
    assert settings.n_clusters is not None
    samples = job.open_vectors(rows)
    model = kmeans.SphericalKMeans(
        settings.n_clusters,
        n_iter=settings.n_iter,
        max_points_per_centroid=settings.max_points_per_centroid,
        seed=settings.seed,
        name="dedup.semantic.n_clusters",
    ).fit(samples, job.count_rows(rows))
    cluster_ids = np.arange(settings.n_clusters, dtype=np.int32)
    job.write_small_table("semantic_centroids", make_centroids_table(cluster_ids, model.centroids_))
    _write_assignments(job, "semantic_assignments", rows, kmeans.plan_assignment(samples, model.centroids_))


def build_given_semantic_clusters(job: Job, rows: str) -> None:
    """Take the clusters for semantic deduplication as they are given, and the distances where they are.

    Other distances are measured: to the given centroids, or else to the means of what is left. Where only
    the distances are given, there are no centroids to write.
    """
    given, centroids = job.config.input, None
    if given.centroids is not None:
        centroids = _read_given_centroids(job, rows)
    elif given.distance_to_centroid is None:
        centroids = kmeans.compute_mean_centroids(job.open_vectors(rows))
    if centroids is not None:
        job.write_small_table("semantic_centroids", make_centroids_table(*centroids))
    _write_assignments(job, "semantic_assignments", rows, _assign_given(job, rows, centroids))


def build_semantic_pairs(job: Job, rows: str) -> None:
    """Find samples that are very like an earlier one of their cluster, and count them for every eps."""
    settings = job.config.dedup.semantic
    assert settings is not None
    n_rows = job.count_rows(rows)
    pairs = semantic_dedup(
        job.open_vectors(rows),
        job.open_table("semantic_assignments"),
        eps=settings.all_eps[0] if settings.groups == "connected" else max(settings.all_eps),
        dim=job.info("samples")["dimension"],
        scratch=job.new_directory("scratch"),
        which_to_keep=settings.which_to_keep,
        seed=settings.seed,
        groups=settings.groups,
    )
    written = job.write_table("semantic_pairs", pairs)
    job.delete_directory("scratch")
    if settings.groups == "earlier":
        sweep = count_by_eps(written.frame, settings.all_eps, n_rows)
    else:
        share = written.rows / n_rows
        sweep = [{"eps": settings.all_eps[0], "removed": written.rows, "share": share}]
    job.note(eps=settings.all_eps[0], groups=settings.groups, sweep=sweep)


def build_survivors(
    job: Job, table: str, found: Iterable[str], with_vectors: bool, carried: Iterable[str] = ()
) -> None:
    """Commit who is left after the deduplications so far: the one place where duplicates are left out.

    Parameters
    ----------
    job : Job
    table : str
        Name of the table to write.
    found : iterable of str
        Tables of duplicates.
    with_vectors : bool
        Whether the vectors are written again, beside the keys.
    carried : iterable of str
        Columns of the input that the next method looks at.
    """
    found = list(found)
    duplicates = reduce(lambda a, b: a.unionByName(b), [_read_duplicates(job, name) for name in found])
    if table == "survivors":  # the last ones: the table of all duplicates goes with them
        written = job.write_table("duplicates", duplicates)
        duplicates, gone = written.frame, [written.key_digest]
    else:
        gone = [job.digest_keys(name) for name in found]
    names = [KEY, CLUSTER_ID, DISTANCE, *(job.info("samples")["carried"][name] for name in carried)]
    samples = job.read_table("samples")
    wide = samples.select(
        [name for name in samples.columns if name in names or (name == VECTOR and with_vectors)]
    )
    counts = {_name_method(name): _count_duplicates(job, name) for name in found}
    n_rows = job.count_rows("samples") - sum(counts.values())
    # One join for all methods, since it may move every vector.
    rest = wide.join(duplicates.select(KEY), KEY, "left_anti")
    survivors = job.write_table(table, rest, expected_rows=n_rows)
    if add_digests(survivors.key_digest, *gone) != job.digest_keys("samples"):
        raise SparkDbpError(
            "survivors and duplicates together do not have the keys of the samples",
            mend="please report this as a bug",
        )
    job.note(duplicates={f"{method} duplicates": n for method, n in counts.items()})
    try:
        check_feasible(job.config, n_rows)
    except InputError as error:
        removed = " and ".join(f"{n:,} by dedup.{method}" for method, n in counts.items())
        raise InfeasibleError(
            f"deduplication left {n_rows:,} of {job.count_rows('samples'):,} rows ({removed} left out): "
            f"{error.what}",
            mend=f"see whether what dedup compares tells the rows apart; or {error.mend}",
        ) from None


def _name_method(table: str) -> str:
    return table.split("_")[0]


def _count_duplicates(job: Job, table: str) -> int:
    if table == "semantic_pairs":
        return int(job.info(table)["sweep"][0]["removed"])
    return job.count_rows(table)


def _read_duplicates(job: Job, table: str) -> DataFrame:
    """``key``, ``duplicate_of``, ``method``, ``similarity`` FLOAT of what a method leaves out."""
    from pyspark.sql import functions as F

    rows = job.read_table(table)
    if table != "semantic_pairs":
        return rows
    if job.info(table)["groups"] == "earlier":
        rows = rows.where(F.col(SIMILARITY) > find_threshold(job.info(table)["eps"]))
    similarity = F.col(SIMILARITY).cast("float").alias(SIMILARITY)
    return rows.select(KEY, DUPLICATE_OF, F.lit("semantic").alias(METHOD), similarity)


# Clusters.


def build_centroids(job: Job, rows: str) -> None:
    """Cluster the samples."""
    settings = job.config.cluster
    assert settings.n_clusters is not None
    model = kmeans.SphericalKMeans(**settings.model_dump()).fit(job.open_vectors(rows), job.count_rows(rows))
    cluster_ids = np.arange(settings.n_clusters, dtype=np.int32)
    job.write_small_table("centroids", make_centroids_table(cluster_ids, model.centroids_))
    job.note(n_train=model.n_train_, history=[asdict(iteration) for iteration in model.history_])


def build_mean_centroids(job: Job, rows: str) -> None:
    """Take the means of the clusters that the data has already."""
    job.write_small_table(
        "centroids", make_centroids_table(*kmeans.compute_mean_centroids(job.open_vectors(rows)))
    )


def build_given_centroids(job: Job, rows: str) -> None:
    """Take the centroids that the user brings with clustered data."""
    job.write_small_table("centroids", make_centroids_table(*_read_given_centroids(job, rows)))


def _read_given_centroids(job: Job, rows: str) -> Centroids:
    """The given centroids, one for every cluster of `rows`."""
    cluster_ids, centroids = job.given_centroids.read()
    dimension = job.info("samples")["dimension"]
    check_centroids(job.read_table(rows), cluster_ids, centroids, dimension, job.given_centroids.path)
    return cluster_ids, centroids


def build_assignments(job: Job, rows: str) -> None:
    """Assign every sample to its nearest centroid; or measure, or take, the distances of given clusters."""
    assigned: DataFrame | MappedRows
    if job.list_columns(rows) == [KEY, CLUSTER_ID, DISTANCE]:
        job.share_table("assignments", rows)
        return
    if job.config.input.cluster_id is None:
        assigned = kmeans.plan_assignment(job.open_vectors(rows), job.read_centroids()[1])
    else:
        assigned = _assign_given(job, rows, job.read_centroids())
    _write_assignments(job, "assignments", rows, assigned)


def _assign_given(job: Job, rows: str, centroids: Centroids | None) -> DataFrame:
    """The given clusters, with the given distances where there are any, or else those to `centroids`."""
    if job.config.input.distance_to_centroid is not None:
        return job.read_table(rows).select(KEY, CLUSTER_ID, DISTANCE)
    assert centroids is not None
    return kmeans.assign_given(job.open_vectors(rows), *centroids)


def _write_assignments(job: Job, table: str, rows: str, assigned: DataFrame | MappedRows) -> None:
    job.write_table(table, assigned, expected_rows=job.count_rows(rows), expected_keys=job.digest_keys(rows))


# Pruning.


def build_cluster_stats(job: Job) -> None:
    """Measure d_intra and d_inter."""
    stats = cluster_stats(job.open_table("assignments"))
    table = complete_stats(stats, *job.read_centroids(), job.config.prune.n_neighbors)
    job.write_small_table("cluster_stats", table)


def build_quotas(job: Job) -> None:
    """Set the quotas, on the driver."""
    import pyarrow as pa

    prune = job.config.prune
    stats = job.read_small_table("cluster_stats")
    columns = {name: stats.column(name).to_numpy() for name in (CLUSTER_ID, N_ITEMS, D_INTRA, D_INTER)}
    n_keep = prune.count_to_keep(int(columns[N_ITEMS].sum()))
    plan = plan_quotas(
        columns[N_ITEMS],
        columns[D_INTRA],
        columns[D_INTER],
        n_keep,
        complexity=prune.complexity,
        temperature=prune.temperature,
        min_per_cluster=prune.min_per_cluster,
        cluster_balance=prune.cluster_balance,
    )
    quotas = {CLUSTER_ID: columns[CLUSTER_ID], N_ITEMS: columns[N_ITEMS]}
    quotas |= {WEIGHT: plan["weight"], TARGET: plan["target"], QUOTA: plan["quota"]}
    job.write_small_table("quotas", pa.table(quotas))
    job.note(**describe_quotas(columns[N_ITEMS], plan, prune.complexity), n_keep=n_keep)


def build_keep_list(job: Job) -> None:
    """Rank the samples of every cluster and keep as many as its quota says."""
    from pyspark.sql import functions as F

    prune = job.config.prune
    kept = plan_selection(
        job.open_table("assignments"),
        job.read_small_table("quotas"),
        which_to_keep=prune.which_to_keep,
        seed=prune.seed,
        stats=job.read_small_table("cluster_stats"),
    )
    written = job.write_table(
        "keep_list",
        kept,
        expected_rows=job.info("quotas")["n_keep"],
        totals={"distance": F.expr(WHOLE_DISTANCE_SQL)},
        count=_add_distances,
    )
    job.note(whole_distance=written.totals["distance"])


def _add_distances(rows: pa.Table, _: npt.NDArray[np.uint64]) -> dict[str, int]:
    return {"distance": int(to_whole_distances(rows.column(DISTANCE).to_numpy()).sum())}


def build_trie(job: Job) -> None:
    """Write the kept keys for data loaders."""
    trie = job.config.trie
    manifest = build_keep_trie(
        job.open_table("keep_list"),
        job.new_directory("keep_trie"),
        job.count_rows("keep_list"),
        key=trie.key,
        shards=trie.shards,
    )
    names = [MANIFEST, *(shard["file"] for shard in manifest["shards"])]
    job.report_table("keep_trie", manifest["n_keys"], names)
