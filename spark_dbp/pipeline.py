"""The story of a run: which stage follows which, and what each one reads and writes.

Imports the stages, the store and the session; knows none of the mathematics.

::

    input ─ ingest ─► samples ─ cluster ─► centroids ─ assign ─► assignments ─ cluster_stats ─► cluster_stats
                                                                     │                              │ quota
                       keep_trie ◄─ keep_trie ─ keep_list ◄─ select ─┴──────────── quotas ◄─────────┘
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import (
    CLUSTER_ID,
    D_INTER,
    D_INTRA,
    DISTANCE,
    KEY,
    N_ITEMS,
    QUOTA,
    TARGET,
    WEIGHT,
)
from spark_dbp.config import PruneConfig, RunConfig, TrieConfig
from spark_dbp.dedup import check_columns, deduplicate
from spark_dbp.engine.mapped import MappedRows
from spark_dbp.engine.session import bound_batches, get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import ConfigError, InfeasibleError, SparkDbpError
from spark_dbp.io import centroids as given_centroids
from spark_dbp.io.sources import Source, open_source
from spark_dbp.lake import files
from spark_dbp.lake.digest import digest_columns
from spark_dbp.lake.store import FinishedStep, RunDirectory, StepWriter, open_run_directory
from spark_dbp.runs import Run, open_run
from spark_dbp.secrets import HIDDEN, redact
from spark_dbp.stages import kmeans
from spark_dbp.stages.cluster_stats import cluster_stats, complete_stats, mean_distance
from spark_dbp.stages.ingest import check_samples, good_samples, ingest, type_of
from spark_dbp.stages.keep_trie import build_keep_trie, check_key_expression
from spark_dbp.stages.quota import plan_quotas
from spark_dbp.stages.select import plan_selection
from spark_dbp.tables import (
    read_centroids,
    read_committed,
    read_samples,
    read_table,
    write_arrow,
    write_frame,
)

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


def run(config: RunConfig, spark: SparkSession | None = None, *, fresh: bool = False) -> Run:
    """Run the whole job: from an embeddings table to a keep list and its tries.

    Stages that an earlier run in the same directory finished with the same input and settings are
    reused. Progress goes to the logger ``spark_dbp``.

    Parameters
    ----------
    config : RunConfig
    spark : SparkSession, optional
        Classic or Connect; by default the active, the platform's or a new local one.
    fresh : bool
        Reuse nothing of an earlier run.

    Returns
    -------
    Run

    Raises
    ------
    ConfigError, InputError, ConflictError
        With a message that names what is wrong and what mends it. Nothing is committed then.
    """
    spark = spark or get_session(config.spark)
    with open_run_directory(config.output.path) as store, guard_session(spark), translate_errors():
        if fresh:
            store.forget()
        source = open_source(spark, config)
        with bound_batches(spark, source.snapshot.bytes_per_row):
            with translate_errors(source.name):
                _check_early(spark, config, source)
                store.n_rows = source.snapshot.rows
                ingested = _ingest(store, spark, config, source)
                samples, duplicates = deduplicate(store, spark, config, source, ingested)
            store.n_rows = n_rows = samples.info["n_rows"]
            centroids = _cluster(store, spark, config, samples)
            assignments = _assign(store, spark, config, samples, centroids)
        stats, quotas = _plan(store, spark, config.prune, centroids, assignments, n_rows)
        _keep(store, spark, config.prune, config.trie, assignments, stats, quotas)
        account = {
            "rows_in": source.snapshot.rows,
            "dropped": {
                "input.filter": samples.info["filtered"],
                **samples.info["dropped"],
                **duplicates,
                "pruned": n_rows - quotas.info["n_keep"],
            },
            "kept": quotas.info["n_keep"],
        }
        _commit(store, spark, config, asdict(source.snapshot), account)
    return open_run(config.output.path)


def prune_again(
    source: Run, out: str, settings: Iterable[str] = (), spark: SparkSession | None = None
) -> Run:
    """Prune a finished run again with other ``prune`` or ``trie`` settings, without clustering.

    Parameters
    ----------
    source : Run
    out : str
        Directory of the new run; its run.json refers to the tables of `source` that it shares.
    settings : iterable of str
        Items like ``prune.keep_ratio=0.2``.
    spark : SparkSession, optional

    Returns
    -------
    Run

    Raises
    ------
    ConfigError
        Also when a setting outside ``prune``, ``trie`` and ``spark`` is named.
    """
    settings = list(settings)
    for item in settings:
        if item.split(".")[0] not in ("prune", "trie", "spark"):
            raise ConfigError(
                f"--set {item!r} cannot change when pruning again",
                mend="only prune.*, trie.* and spark.* can; run the job anew for other settings",
            )
    out = files.normalize(out)
    if out == source.path:
        raise ConfigError(f"--out {out} is the run to prune again", mend="name another directory")
    config = _config_of(source).with_settings([*settings, f"output.path={out}"])
    spark = spark or get_session(config.spark)
    with open_run_directory(out) as store, guard_session(spark), translate_errors():
        shared = [name for name in source.document["stages"] if name not in _PRUNING]
        if config.prune.n_neighbors == source.document["config"]["prune"]["n_neighbors"]:
            shared.append("cluster_stats")
        store.adopt(_seen_from(source, store, name) for name in shared)
        n_rows = source.document["summary"]["rows_to_prune"]
        store.n_rows = n_rows
        centroids, assignments = store.stages["cluster"], store.stages["assign"]
        stats, quotas = _plan(store, spark, config.prune, centroids, assignments, n_rows)
        _keep(store, spark, config.prune, config.trie, assignments, stats, quotas)
        account = dict(source.document["accounting"])
        n_keep = quotas.info["n_keep"]
        account["dropped"] = {**account["dropped"], "pruned": n_rows - n_keep}
        account["kept"] = n_keep
        _commit(store, spark, config, source.document["input"], account, source=source)
    return open_run(out)


_PRUNING = ("cluster_stats", "quota", "select", "keep_trie")


def _check_early(spark: SparkSession, config: RunConfig, source: Source) -> None:
    """Refuse at once what a late stage would refuse after hours."""
    key_type = type_of(source.table, config.input.key, "key")
    check_key_expression(spark, key_type, config.trie.key)
    check_columns(config, source.table)
    if config.input.centroids is not None:
        given_centroids.read_centroids(spark, config.input.centroids)


# The stages. Each names what its result depends on, builds its tables, and reads them back.


def _ingest(store: RunDirectory, spark: SparkSession, config: RunConfig, source: Source) -> FinishedStep:
    given = config.input

    def build(writer: StepWriter) -> None:
        samples = ingest(
            source.rows(),
            key=given.key,
            embedding=given.embedding if given.needs_embedding else None,
            cluster_id=given.cluster_id,
            distance_to_centroid=given.distance_to_centroid,
        )
        written = write_frame(writer, spark, "samples", samples)
        source.check_unchanged(writer.stage.rows["samples"])
        report = check_samples(written, given.on_bad_rows)
        _, (keys,) = digest_columns(good_samples(written, report.dimension), [KEY])
        filtered = source.snapshot.rows - writer.stage.rows["samples"]
        writer.stage.info.update(asdict(report), keys=keys, filtered=filtered)
        if config.cluster.n_clusters is not None and given.cluster_id is None:
            kmeans.check_n_clusters(config.cluster.n_clusters, report.n_rows)
        _n_keep(config.prune, report.n_rows)

    depends = {
        "the input": asdict(source.snapshot),
        "input": {**given.model_dump(exclude={"centroids"}), "needs_embedding": given.needs_embedding},
    }
    return store.stage("ingest", "Reading and checking the samples", depends, build)


def _cluster(
    store: RunDirectory, spark: SparkSession, config: RunConfig, samples: FinishedStep
) -> FinishedStep:
    if config.input.cluster_id is not None:
        return _take_clusters(store, spark, config, samples)
    settings = config.cluster

    def build(writer: StepWriter) -> None:
        assert settings.n_clusters is not None
        model = kmeans.SphericalKMeans(
            settings.n_clusters,
            n_iter=settings.n_iter,
            train=settings.train,
            init=settings.init,
            tol=settings.tol,
            max_points_per_centroid=settings.max_points_per_centroid,
            seed=settings.seed,
        ).fit(read_samples(store, spark, samples), samples.info["n_rows"])
        cluster_ids = np.arange(settings.n_clusters, dtype=np.int32)
        write_arrow(writer, spark, "centroids", kmeans.centroids_table(cluster_ids, model.centroids_))
        history = [asdict(iteration) for iteration in model.history_]
        writer.stage.info.update(n_train=model.n_train_, history=history)

    depends = {"the samples": samples.content, "cluster": settings.model_dump()}
    return store.stage("cluster", f"Clustering into {settings.n_clusters:,} concepts", depends, build)


def _take_clusters(
    store: RunDirectory, spark: SparkSession, config: RunConfig, samples: FinishedStep
) -> FinishedStep:
    path = config.input.centroids

    def build(writer: StepWriter) -> None:
        frame = read_samples(store, spark, samples)
        if path is None:
            cluster_ids, centroids = kmeans.compute_mean_centroids(frame)
        else:
            cluster_ids, centroids = given_centroids.read_centroids(spark, path)
            given_centroids.check_centroids(
                frame.frame, cluster_ids, centroids, samples.info["dimension"], path
            )
        write_arrow(writer, spark, "centroids", kmeans.centroids_table(cluster_ids, centroids))

    depends = {
        "the samples": samples.content,
        "input.centroids": [path, given_centroids.snapshot(spark, path) if path else None],
    }
    title = "Taking the centroids as given" if path else "Averaging the given clusters"
    return store.stage("cluster", title, depends, build)


def _assign(
    store: RunDirectory, spark: SparkSession, config: RunConfig, samples: FinishedStep, cluster: FinishedStep
) -> FinishedStep:
    def build(writer: StepWriter) -> None:
        frame = read_samples(store, spark, samples)
        cluster_ids, centroids = read_centroids(store, cluster)
        assigned: DataFrame | MappedRows
        if config.input.cluster_id is None:
            assigned = kmeans.plan_assignment(frame, centroids)
        elif config.input.distance_to_centroid is None:
            assigned = kmeans.assign_given(frame, cluster_ids, centroids)
        else:
            assigned = frame.frame.select(KEY, CLUSTER_ID, DISTANCE)
        expected = {"expected_rows": samples.info["n_rows"], "expected_keys": samples.info["keys"]}
        write_frame(writer, spark, "assignments", assigned, **expected)

    depends = {"the samples": samples.content, "the centroids": cluster.content}
    return store.stage("assign", "Assigning every sample to its centroid", depends, build)


def _plan(
    store: RunDirectory,
    spark: SparkSession,
    prune: PruneConfig,
    cluster: FinishedStep,
    assignments: FinishedStep,
    n_rows: int,
) -> tuple[FinishedStep, FinishedStep]:
    def build_stats(writer: StepWriter) -> None:
        frame = cluster_stats(read_committed(store, spark, assignments, "assignments"))
        table = complete_stats(frame, *read_centroids(store, cluster), prune.n_neighbors)
        write_arrow(writer, spark, "cluster_stats", table)

    depends = {"the assignments": assignments.content, "prune.n_neighbors": prune.n_neighbors}
    stats = store.stage("cluster_stats", "Measuring d_intra and d_inter", depends, build_stats)

    def build_quotas(writer: StepWriter) -> None:
        table = files.read_parquet(store.at(stats.tables["cluster_stats"]))
        columns = {name: table.column(name).to_numpy() for name in (CLUSTER_ID, N_ITEMS, D_INTRA, D_INTER)}
        n_keep = _n_keep(prune, n_rows)
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
        import pyarrow as pa

        quotas = {CLUSTER_ID: columns[CLUSTER_ID], N_ITEMS: columns[N_ITEMS]}
        quotas |= {WEIGHT: plan["weight"], TARGET: plan["target"], QUOTA: plan["quota"]}
        write_arrow(writer, spark, "quotas", pa.table(quotas))
        writer.stage.info.update(_quota_facts(columns[N_ITEMS], plan["quota"], plan["floor"]), n_keep=n_keep)

    settings = prune.model_dump(exclude={"which_to_keep", "seed"})
    depends = {"the statistics": stats.content, "rows": n_rows, "prune": settings}
    return stats, store.stage("quota", "Setting the quotas", depends, build_quotas)


def _keep(
    store: RunDirectory,
    spark: SparkSession,
    prune: PruneConfig,
    trie: TrieConfig,
    assignments: FinishedStep,
    stats: FinishedStep,
    quotas: FinishedStep,
) -> None:
    n_keep = quotas.info["n_keep"]

    def build_keep_list(writer: StepWriter) -> None:
        kept = plan_selection(
            read_committed(store, spark, assignments, "assignments"),
            read_table(store, spark, quotas, "quotas"),
            which_to_keep=prune.which_to_keep,
            seed=prune.seed,
            stats=read_table(store, spark, stats, "cluster_stats"),
        )
        write_frame(writer, spark, "keep_list", kept, expected_rows=n_keep)

    depends = {
        "the quotas": quotas.content,
        "prune": {"which_to_keep": prune.which_to_keep, "seed": prune.seed},
    }
    keep_list = store.stage("select", f"Keeping the {n_keep:,} samples", depends, build_keep_list)

    def build_trie(writer: StepWriter) -> None:
        kept = read_committed(store, spark, keep_list, "keep_list")
        path = writer.new_directory("keep_trie")
        manifest = build_keep_trie(kept, path, n_keep, key=trie.key, shards=trie.shards)
        writer.report("keep_trie", manifest["n_keys"])

    depends = {"the keep list": keep_list.content, "trie": trie.model_dump()}
    store.stage("keep_trie", "Writing the trie", depends, build_trie)


def _commit(
    store: RunDirectory,
    spark: SparkSession,
    config: RunConfig,
    snapshot: dict[str, Any],
    account: dict[str, Any],
    source: Run | None = None,
) -> None:
    if account["rows_in"] != account["kept"] + sum(account["dropped"].values()):
        raise SparkDbpError(f"rows do not add up: {account}", mend="please report this as a bug")
    quotas = store.stages["quota"].info

    def mean_of(stage: str, table: str) -> float:
        return mean_distance(read_table(store, spark, store.stages[stage], table))

    store.commit(
        {
            "config": config.redacted(),
            "versions": {
                "spark": spark.version,
                "python": platform.python_version(),
                "numpy": np.__version__,
            },
            "input": snapshot,
            "accounting": account,
            "base_run": source and {"path": redact(source.path), "run_id": source.document["run_id"]},
            "kmeans": store.stages["cluster"].info,
            "summary": {
                "rows_to_prune": account["kept"] + account["dropped"]["pruned"],
                "which_to_keep": config.prune.which_to_keep,
                **{name: value for name, value in quotas.items() if name != "n_keep"},
                "mean_distance": mean_of("assign", "assignments"),
                "mean_distance_kept": mean_of("select", "keep_list"),
            },
        }
    )


# Small things.


def _n_keep(prune: PruneConfig, n_rows: int) -> int:
    n_keep = prune.n_keep_of(n_rows)
    if not 1 <= n_keep <= n_rows:
        asked = f"prune.n_keep {n_keep:,}" if prune.n_keep else f"prune.keep_ratio {prune.keep_ratio}"
        raise InfeasibleError(
            f"{asked} of {n_rows:,} rows cannot be kept", mend=f"keep between 1 and {n_rows:,} rows"
        )
    return n_keep


def _quota_facts(n_items: Any, quota: Any, floor: Any) -> dict[str, Any]:
    used = n_items > 0
    return {
        "clusters": int(used.sum()),
        "empty_clusters": int((~used).sum()),
        "cluster_sizes": [int(n_items[used].min()), int(n_items[used].max())],
        "quotas": [int(quota[used].min()), int(quota[used].max())],
        "saturated": int((used & (quota == n_items)).sum()),
        "at_floor": int((used & (quota == floor) & (quota < n_items)).sum()),
    }


def _config_of(source: Run) -> RunConfig:
    values = source.document["config"]
    hidden = [name for name, value in values["spark"].items() if value == HIDDEN]
    for name in hidden:  # a secret was never written down; the session has to bring its own
        del values["spark"][name]
    prune = {name: value for name, value in values["prune"].items() if value is not None}
    return RunConfig.from_dict({**values, "prune": prune}, source=f"{source.path}/run.json")


def _seen_from(source: Run, store: RunDirectory, name: str) -> FinishedStep:
    """A stage of `source`, its tables as seen from the new run."""
    stage = FinishedStep(**source.document["stages"][name])
    stage.tables = {
        table: files.make_relative(source.table_path(table), store.path) for table in stage.tables
    }
    return stage
