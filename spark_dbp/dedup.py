"""The deduplication steps of a run: exact, then MinHash, then semantic, each on the survivors of the others.

Imports the stages, `tables` and the store; `pipeline` calls `deduplicate` between ingest and clustering.
"""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from spark_dbp.columns import DUPLICATE_OF, KEY, METHOD, SIMILARITY
from spark_dbp.config import RunConfig, SemanticConfig
from spark_dbp.engine.arrow import CommittedTable, to_frame
from spark_dbp.engine.compat import column
from spark_dbp.engine.mapped import MappedRows
from spark_dbp.errors import SparkDbpError
from spark_dbp.io.sources import Source
from spark_dbp.kernels.signatures import plan_bands
from spark_dbp.lake.digest import add_digests
from spark_dbp.lake.store import FinishedStep, RunDirectory, StepWriter
from spark_dbp.stages import kmeans
from spark_dbp.stages.exact_dedup import exact_dedup
from spark_dbp.stages.ingest import type_of
from spark_dbp.stages.minhash_dedup import minhash_dedup
from spark_dbp.stages.semantic_dedup import count_by_eps, semantic_dedup
from spark_dbp.tables import read_samples, read_table, write_arrow, write_frame

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def deduplicate(
    store: RunDirectory, spark: SparkSession, config: RunConfig, source: Source, samples: FinishedStep
) -> tuple[FinishedStep, dict[str, int]]:
    """Run the deduplications that the configuration asks for.

    Parameters
    ----------
    store : RunStore
    spark : SparkSession
    config : RunConfig
    source : Source
        The input, whose columns exact and MinHash deduplication look at.
    samples : Stage
        The ingest stage.

    Returns
    -------
    survivors : Stage
        What the following stages read in place of the ingest stage.
    dropped : dict of str to int
        Rows left out, by method.
    """
    wanted = config.dedup
    found: list[FinishedStep] = []
    if wanted.exact is not None:
        found.append(_exact(store, spark, config, source, samples))
    if wanted.minhash is not None:
        found.append(_minhash(store, spark, config, source, samples, list(found)))
    if wanted.semantic is not None:
        found.append(_semantic(store, spark, config, wanted.semantic, samples, list(found)))
    if not found:
        return samples, {}
    survivors = _survivors(store, spark, samples, found)
    return survivors, survivors.info["duplicates"]


def check_columns(config: RunConfig, source: DataFrame) -> None:
    """Refuse columns for deduplication that the input does not have, before anything is computed.

    Raises
    ------
    InputError
    """
    exact, minhash = config.dedup.exact, config.dedup.minhash
    for name in exact.columns if exact else []:
        type_of(source, name, "columns", section="dedup.exact")
    if minhash is not None:
        type_of(source, minhash.column, "column", section="dedup.minhash")
    for section, settings in (("dedup.exact", exact), ("dedup.minhash", minhash)):
        if settings is not None and settings.order_by is not None:
            type_of(source, settings.order_by, "order_by", section=section)


def _exact(
    store: RunDirectory, spark: SparkSession, config: RunConfig, source: Source, samples: FinishedStep
) -> FinishedStep:
    settings = config.dedup.exact
    assert settings is not None

    def build(writer: StepWriter) -> None:
        rows = _input_rows(store, spark, source, samples, [])
        found = exact_dedup(rows, key=config.input.key, columns=settings.columns, order_by=settings.order_by)
        write_frame(writer, spark, "exact_duplicates", found)
        source.check_unchanged()

    depends = {"the samples": samples.content, "dedup.exact": settings.model_dump()}
    return store.stage("exact_dedup", "Finding exact duplicates", depends, build)


def _minhash(
    store: RunDirectory,
    spark: SparkSession,
    config: RunConfig,
    source: Source,
    samples: FinishedStep,
    earlier: list[FinishedStep],
) -> FinishedStep:
    settings = config.dedup.minhash
    assert settings is not None

    def build(writer: StepWriter) -> None:
        scratch = writer.new_directory("scratch")
        found = minhash_dedup(
            _input_rows(store, spark, source, samples, earlier),
            key=config.input.key,
            column=settings.column,
            threshold=settings.threshold,
            num_perm=settings.num_perm,
            ngram=settings.ngram,
            tokens=settings.tokens,
            normalize=settings.normalize,
            order_by=settings.order_by,
            scratch=scratch,
        )
        write_frame(writer, spark, "minhash_duplicates", found)
        source.check_unchanged()
        writer.discard("scratch")
        plan = plan_bands(settings.threshold, settings.num_perm)
        writer.stage.info.update(bands=plan.bands, rows=plan.rows, expected_recall=plan.expected_recall)

    depends = {**_fingerprints(samples, earlier), "dedup.minhash": settings.model_dump()}
    return store.stage("minhash_dedup", "Finding near-duplicate texts", depends, build)


def _semantic(
    store: RunDirectory,
    spark: SparkSession,
    config: RunConfig,
    settings: SemanticConfig,
    samples: FinishedStep,
    earlier: list[FinishedStep],
) -> FinishedStep:
    n_rows = samples.info["n_rows"] - sum(_n_duplicates(stage) for stage in earlier)

    def left() -> DataFrame | CommittedTable:
        committed = read_samples(store, spark, samples)
        return _without(store, spark, committed.frame, earlier) if earlier else committed

    def build_clusters(writer: StepWriter) -> None:
        rows = left()
        if settings.n_clusters is None:
            cluster_ids, centroids = kmeans.compute_mean_centroids(rows)
        else:
            model = kmeans.SphericalKMeans(
                settings.n_clusters,
                n_iter=settings.n_iter,
                max_points_per_centroid=settings.max_points_per_centroid,
                seed=settings.seed,
                name="dedup.semantic.n_clusters",
            ).fit(rows, n_rows)
            cluster_ids = np.arange(settings.n_clusters, dtype=np.int32)
            centroids = model.centroids_
        write_arrow(writer, spark, "semantic_centroids", kmeans.centroids_table(cluster_ids, centroids))
        assigned: DataFrame | MappedRows
        if settings.n_clusters is None:
            assigned = kmeans.assign_given(rows, cluster_ids, centroids)
        else:
            assigned = kmeans.plan_assignment(rows, centroids)
        write_frame(writer, spark, "semantic_assignments", assigned, expected_rows=n_rows)

    clustering = settings.model_dump(exclude={"eps", "groups", "which_to_keep"})
    title = "Clustering for semantic deduplication"
    depends = {**_fingerprints(samples, earlier), "dedup.semantic": clustering}
    clusters = store.stage("semantic_clusters", title, depends, build_clusters)

    def build(writer: StepWriter) -> None:
        scratch = writer.new_directory("scratch")
        pairs = semantic_dedup(
            left(),
            read_table(store, spark, clusters, "semantic_assignments"),
            eps=settings.all_eps[0] if settings.groups == "connected" else max(settings.all_eps),
            dim=samples.info["dimension"],
            scratch=scratch,
            which_to_keep=settings.which_to_keep,
            seed=settings.seed,
            groups=settings.groups,
        )
        written = write_frame(writer, spark, "semantic_pairs", pairs)
        writer.discard("scratch")
        if settings.groups == "earlier":
            sweep = count_by_eps(written, settings.all_eps, n_rows)
        else:
            removed = writer.stage.rows["semantic_pairs"]
            sweep = [{"eps": settings.all_eps[0], "removed": removed, "share": removed / n_rows}]
        writer.stage.info.update(eps=settings.all_eps[0], groups=settings.groups, sweep=sweep)

    compared = settings.model_dump(include={"eps", "groups", "which_to_keep", "seed"})
    title = "Finding semantic duplicates"
    depends = {"the semantic clusters": clusters.content, "dedup.semantic": compared}
    return store.stage("semantic_dedup", title, depends, build)


def _survivors(
    store: RunDirectory, spark: SparkSession, samples: FinishedStep, found: list[FinishedStep]
) -> FinishedStep:
    def build(writer: StepWriter) -> None:
        frames = [_duplicates_of(store, spark, stage) for stage in found]
        write_frame(writer, spark, "duplicates", reduce(lambda a, b: a.unionByName(b), frames))
        counts = {f"{stage.name.removesuffix('_dedup')} duplicates": _n_duplicates(stage) for stage in found}
        committed = read_samples(store, spark, samples)
        rest = _without(store, spark, committed.frame, found)
        n_rows = samples.info["n_rows"] - sum(counts.values())
        write_frame(writer, spark, "survivors", rest, expected_rows=n_rows)
        keys = writer.stage.key_digests
        if add_digests(keys["survivors"], keys["duplicates"]) != samples.info["keys"]:
            raise SparkDbpError(
                "survivors and duplicates together do not have the keys of the samples",
                mend="if the input table gives other rows each time it is read, write it to a file first; "
                "else please report this as a bug",
            )
        writer.stage.info.update(samples.info, n_rows=n_rows, keys=keys["survivors"], duplicates=counts)

    depends = _fingerprints(samples, found)
    return store.stage("survivors", "Leaving the duplicates out", depends, build)


def _fingerprints(samples: FinishedStep, earlier: list[FinishedStep]) -> dict[str, Any]:
    return {"the samples": samples.content, **{stage.name: stage.content for stage in earlier}}


def _n_duplicates(stage: FinishedStep) -> int:
    if stage.name == "semantic_dedup":
        return int(stage.info["sweep"][0]["removed"])
    return stage.rows[f"{stage.name.removesuffix('_dedup')}_duplicates"]


def _duplicates_of(store: RunDirectory, spark: SparkSession, stage: FinishedStep) -> DataFrame:
    """``key``, ``duplicate_of``, ``method``, ``similarity`` FLOAT of what a stage removes."""
    from pyspark.sql import functions as F

    if stage.name != "semantic_dedup":
        return read_table(store, spark, stage, f"{stage.name.removesuffix('_dedup')}_duplicates")
    pairs = read_table(store, spark, stage, "semantic_pairs")
    if stage.info["groups"] == "earlier":
        pairs = pairs.where(F.col(SIMILARITY) > 1 - stage.info["eps"])
    similarity = F.col(SIMILARITY).cast("float").alias(SIMILARITY)
    return pairs.select(KEY, DUPLICATE_OF, F.lit("semantic").alias(METHOD), similarity)


def _without(
    store: RunDirectory, spark: SparkSession, frame: DataFrame, found: list[FinishedStep]
) -> DataFrame:
    for stage in found:
        frame = frame.join(_duplicates_of(store, spark, stage).select(KEY), KEY, "left_anti")
    return frame


def _input_rows(
    store: RunDirectory,
    spark: SparkSession,
    source: Source,
    samples: FinishedStep,
    earlier: list[FinishedStep],
) -> DataFrame:
    """Rows of the input, with all their columns, that are good and survive so far."""
    from pyspark.sql import functions as F

    rows = source.rows()
    key = column(source.config.key)
    if samples.info["dropped"]:
        name = f"good_key_{uuid4().hex}"  # the input's columns have any name but this
        good = to_frame(read_samples(store, spark, samples)).select(F.col(KEY).alias(name))
        rows = rows.join(good, key == F.col(name), "left_semi")
    for stage in earlier:
        name = f"duplicate_key_{uuid4().hex}"
        gone = _duplicates_of(store, spark, stage).select(F.col(KEY).alias(name))
        rows = rows.join(gone, key == F.col(name), "left_anti")
    return rows
