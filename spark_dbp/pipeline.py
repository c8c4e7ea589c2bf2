"""The story of a run: which step follows which, and what each one needs and writes.

Imports `steps`, `job`, `builds`, `accounting` and the checks of stages; knows none of the mathematics.

::

    input ─ ingest ─► samples ─ dedup ─► survivors ─ cluster ─► centroids
                                             └────── assign ◄──────┘
                                                       ▼
              cluster_stats ◄─ cluster_stats ─── assignments ─── select ─► keep_list ─ keep_trie ─► keep_trie
                    └────────────── quota ─► quotas ──────────────┘

`plan_steps` declares the steps; `run` carries them out in order, `prune_again` those after the clustering.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from spark_dbp import builds
from spark_dbp.accounting import account_for_rows, commit_run
from spark_dbp.columns import find_type
from spark_dbp.config import RunConfig
from spark_dbp.engine.session import get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import ConfigError
from spark_dbp.io.sources import open_source
from spark_dbp.job import Job
from spark_dbp.kernels.signatures import plan_bands
from spark_dbp.lake import files
from spark_dbp.lake.store import FinishedStep, RunDirectory, open_run_directory
from spark_dbp.runs import Run, open_run
from spark_dbp.stages.exact_dedup import check_comparable, check_order
from spark_dbp.stages.keep_trie import check_key_expression
from spark_dbp.stages.minhash_dedup import check_text
from spark_dbp.steps import CENTROIDS, INPUT, Needs, Step

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def plan_steps(config: RunConfig) -> list[Step]:
    """The steps that a run of this configuration takes, in their order.

    Parameters
    ----------
    config : RunConfig

    Returns
    -------
    list of Step
        Nothing is run or read.

    Examples
    --------
    >>> config = RunConfig.from_dict({"input": {"path": "e"}, "output": {"path": "o"},
    ...                               "cluster": {"n_clusters": 9}, "prune": {"keep_ratio": 0.5}})
    >>> [step.name for step in plan_steps(config)]
    ['ingest', 'cluster', 'assign', 'cluster_stats', 'quota', 'select', 'keep_trie']
    """
    has_dedup = any(config.dedup.model_dump().values())
    clustering = _plan_clustering(config, "survivors" if has_dedup else "samples")
    dedup = _plan_dedup(config, later_passes=sum(step.vector_passes for step in clustering))
    has_vectors = any(step.vector_passes for step in [*dedup, *clustering])
    return [_plan_ingest(config, has_vectors), *dedup, *clustering, *_plan_pruning()]


def _plan_ingest(config: RunConfig, has_vectors: bool) -> Step:
    given = config.input
    carried = [name for name in config.dedup.columns if name != given.key]
    columns = [given.key, given.cluster_id, given.distance_to_centroid, *carried]
    columns.insert(1, given.embedding if has_vectors else None)
    keys = (
        "path",
        "table",
        "key",
        "embedding",
        "filter",
        "cluster_id",
        "distance_to_centroid",
        "on_bad_rows",
    )
    return Step(
        "ingest",
        "Reading and checking the samples",
        needs=Needs(
            sources=(INPUT,),
            settings=tuple(f"input.{key}" for key in keys),
            columns=tuple(name for name in dict.fromkeys(columns) if name is not None),
        ),
        writes=("samples",),
        build=partial(builds.build_samples, has_vectors=has_vectors, carried=carried),
    )


def _plan_dedup(config: RunConfig, later_passes: int) -> list[Step]:
    """Exact, then MinHash, then semantic deduplication, each on the survivors of those before.

    Who is left is committed after each of them. The vectors are written again only where the steps that
    follow go over them more than once.
    """
    dedup = config.dedup
    steps: list[Step] = []
    rows, found = "samples", []
    if dedup.exact is not None:
        steps.append(
            Step(
                "exact_dedup",
                "Finding exact duplicates",
                needs=Needs(tables=(rows,), settings=("dedup.exact",)),
                writes=("exact_duplicates",),
                build=partial(builds.build_exact_duplicates, rows=rows),
            )
        )
        found.append("exact_duplicates")
        if dedup.minhash is not None:
            texts = [name for name in (dedup.minhash.column, dedup.minhash.order_by) if name is not None]
            carried = [name for name in dict.fromkeys(texts) if name != config.input.key]
            steps.append(_plan_survivors("exact_survivors", found, 0, carried))
            rows = "exact_survivors"
    if dedup.minhash is not None:
        steps.append(
            Step(
                "minhash_dedup",
                "Finding near-duplicate texts",
                needs=Needs(tables=(rows,), settings=("dedup.minhash",)),
                writes=("minhash_duplicates",),
                build=partial(builds.build_minhash_duplicates, rows=rows),
            )
        )
        found.append("minhash_duplicates")
    if dedup.semantic is not None:
        semantic = _plan_semantic(config, f"{found[-1].split('_')[0]}_survivors" if found else "samples")
        if found:
            passes = sum(step.vector_passes for step in semantic)
            steps.append(_plan_survivors(semantic[0].needs.tables[0], found, passes))
        steps += semantic
        found.append("semantic_pairs")
    return [*steps, _plan_survivors("survivors", found, later_passes)] if found else []


def _plan_survivors(table: str, found: list[str], later_passes: int, carried: Iterable[str] = ()) -> Step:
    return Step(
        table,
        "Leaving the duplicates out",
        needs=Needs(tables=("samples", *found)),
        writes=(table, "duplicates") if table == "survivors" else (table,),
        build=partial(
            builds.build_survivors,
            table=table,
            found=tuple(found),
            with_vectors=later_passes > 1,
            carried=tuple(carried),
        ),
        vector_passes=1 if later_passes > 1 else 0,
    )


def _plan_semantic(config: RunConfig, rows: str) -> list[Step]:
    """Clusters of its own, or the given ones; then the comparison within them."""
    given, semantic = config.input, config.dedup.semantic
    assert semantic is not None
    compared = ("eps", "groups", "which_to_keep", "seed")
    if semantic.n_clusters is not None:
        title, build = "Clustering for semantic deduplication", builds.build_semantic_clusters
        clusters = ("n_clusters", "n_iter", "max_points_per_centroid", "seed")
        needs = Needs(tables=(rows,), settings=tuple(f"dedup.semantic.{key}" for key in clusters))
        passes, has_centroids = 2, True
    else:
        title = "Taking the clusters for semantic deduplication as given"
        build = builds.build_given_semantic_clusters
        needs = Needs(tables=(rows,), settings=("dedup.semantic.n_clusters",))
        if given.centroids is not None:
            needs = replace(needs, settings=(*needs.settings, "input.centroids"), sources=(CENTROIDS,))
        measures = given.distance_to_centroid is None
        averages = measures and given.centroids is None
        passes, has_centroids = measures + averages, measures or given.centroids is not None
    return [
        Step(
            "semantic_clusters",
            title,
            needs,
            ("semantic_centroids", "semantic_assignments") if has_centroids else ("semantic_assignments",),
            partial(build, rows=rows),
            vector_passes=passes,
        ),
        Step(
            "semantic_dedup",
            "Finding semantic duplicates",
            needs=Needs(
                tables=(rows, "semantic_assignments"),
                settings=tuple(f"dedup.semantic.{key}" for key in compared),
            ),
            writes=("semantic_pairs",),
            build=partial(builds.build_semantic_pairs, rows=rows),
            vector_passes=1,
        ),
    ]


def _plan_clustering(config: RunConfig, rows: str) -> list[Step]:
    """Centroids and assignments of the samples in the table `rows`."""
    given = config.input
    if given.cluster_id is None:
        title, build = f"Clustering into {config.cluster.n_clusters:,} concepts", builds.build_centroids
        needs = Needs(tables=(rows,), settings=("cluster",))
        passes = 1 + (config.cluster.n_iter if config.cluster.train == "full" else 0)
    elif given.centroids is None:
        title, build = "Averaging the given clusters", builds.build_mean_centroids
        needs, passes = Needs(tables=(rows,)), 1
    else:
        title, build = "Taking the centroids as given", builds.build_given_centroids
        needs, passes = Needs(tables=(rows,), settings=("input.centroids",), sources=(CENTROIDS,)), 0
    return [
        Step("cluster", title, needs, ("centroids",), partial(build, rows=rows), vector_passes=passes),
        Step(
            "assign",
            "Assigning every sample to its centroid",
            needs=Needs(tables=(rows, "centroids")),
            writes=("assignments",),
            build=partial(builds.build_assignments, rows=rows),
            vector_passes=0 if given.distance_to_centroid else 1,
        ),
    ]


def _plan_pruning() -> list[Step]:
    """From the assignments to what is kept: of these steps, `prune_again` carries out those that change."""
    quotas = ("keep_ratio", "n_keep", "temperature", "complexity", "min_per_cluster", "cluster_balance")
    return [
        Step(
            "cluster_stats",
            "Measuring d_intra and d_inter",
            needs=Needs(tables=("assignments", "centroids"), settings=("prune.n_neighbors",)),
            writes=("cluster_stats",),
            build=builds.build_cluster_stats,
        ),
        Step(
            "quota",
            "Setting the quotas",
            needs=Needs(tables=("cluster_stats",), settings=tuple(f"prune.{key}" for key in quotas)),
            writes=("quotas",),
            build=builds.build_quotas,
        ),
        Step(
            "select",
            "Keeping the {n_keep:,} samples",
            needs=Needs(
                tables=("assignments", "cluster_stats", "quotas"),
                settings=("prune.which_to_keep", "prune.seed"),
            ),
            writes=("keep_list",),
            build=builds.build_keep_list,
        ),
        Step(
            "keep_trie",
            "Writing the trie",
            needs=Needs(tables=("keep_list",), settings=("trie",)),
            writes=("keep_trie",),
            build=builds.build_trie,
        ),
    ]


def run(config: RunConfig, spark: SparkSession | None = None, *, fresh: bool = False) -> Run:
    """Run the whole job: from an embeddings table to a keep list and its tries.

    Steps that an earlier run in the same directory finished with the same input and settings are
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
    with open_run_directory(config.output.path) as directory, guard_session(spark), translate_errors():
        if fresh:
            directory.forget()
        steps = plan_steps(config)
        job = Job(config, spark, directory, open_source(spark, **_locate_input(config, steps)))
        with translate_errors(job.source.name):
            _check_early(job)
        for step in steps:
            job.carry_out(step)
        commit_run(job, asdict(job.source.snapshot), account_for_rows(job))
    return open_run(config.output.path)


def _locate_input(config: RunConfig, steps: list[Step]) -> dict[str, Any]:
    given = config.input
    columns = [name for step in steps for name in step.needs.columns]
    return {
        "paths": given.paths,
        "table": given.table,
        "predicate": given.filter,
        "columns": list(dict.fromkeys(columns)),
    }


def _check_early(job: Job) -> None:
    """Refuse at once what a late step would refuse after hours."""
    config, frame = job.config, job.source.frame
    key_type = find_type(frame, config.input.key, "input.key")
    check_key_expression(job.spark, key_type, config.trie.key)
    exact, minhash = config.dedup.exact, config.dedup.minhash
    if exact is not None:
        check_comparable(frame, exact.columns)
    if minhash is not None:
        check_text(frame, minhash.column)
        plan_bands(minhash.threshold, minhash.num_perm)
    for section, settings in (("dedup.exact", exact), ("dedup.minhash", minhash)):
        if settings is not None and settings.order_by is not None:
            check_order(frame, settings.order_by, f"{section}.order_by")
    if config.input.centroids is not None:
        job.given_centroids.read()


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
    before = source.config()
    config = before.with_settings([*settings, f"output.path={out}"])
    spark = spark or get_session(config.spark)
    steps = plan_steps(config)
    # Steps before the first one with other settings are shared; quotas and what follows never are.
    first = next(i for i, step in enumerate(steps) if step.name == "quota" or _differs(step, before, config))
    anew = {step.name: step for step in steps[first:]}
    with open_run_directory(out) as directory, guard_session(spark), translate_errors():
        directory.adopt(
            _see_from(source, directory, name) for name in source.document["stages"] if name not in anew
        )
        job = Job(config, spark, directory)
        for step in anew.values():
            job.carry_out(step)
        account = dict(source.document["accounting"])
        n_rows, n_keep = job.count_rows("assignments"), job.count_rows("keep_list")
        account["dropped"] = {**account["dropped"], "pruned": n_rows - n_keep}
        account["kept"] = n_keep
        commit_run(job, source.document["input"], account, base=source)
    return open_run(out)


def _differs(step: Step, before: RunConfig, config: RunConfig) -> bool:
    return any(before.value_at(path) != config.value_at(path) for path in step.needs.settings)


def _see_from(source: Run, directory: RunDirectory, name: str) -> FinishedStep:
    """A step of `source`, its tables as seen from another run directory."""
    step = FinishedStep(**source.document["stages"][name])
    step.tables = {
        table: files.make_relative(source.table_path(table), directory.path) for table in step.tables
    }
    return step
