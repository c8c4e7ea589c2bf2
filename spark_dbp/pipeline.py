"""The story of a run: which step follows which, and what each one needs and writes.

Imports `steps`, `config`, what builds the steps, and names of session settings; knows no mathematics.

::

    images, texts ─ embed ─► embeddings
                                 ▼
    input ─────────── ingest ─► samples ─ dedup ─► survivors ─ score_filter ─► filtered ─ cluster ─► centroids
                                                                                  └────── assign ◄──────┘
                                                                                            ▼
              cluster_stats ◄───────── cluster_stats ───────────────────────────── assignments ─┐
                    └────────────── quota ─► quotas ────────────────────────────────────── select ─► keep_list
                                                                                                        │
                                                                          keep_trie ◄─ keep_trie ───────┘

`plan_steps` declares the steps. `runner.run` carries them out in order, `runner.prune_again` those after the
clustering.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Any

from spark_dbp import build_embeddings, build_samples, build_score_filter, builds
from spark_dbp.config import RunConfig
from spark_dbp.config_base import SqlColumn, name_column
from spark_dbp.config_embed import MAIN, find_table
from spark_dbp.engine.expressions import find_names
from spark_dbp.engine.session import READ_SETTINGS, TIME_ZONE
from spark_dbp.steps import CENTROIDS, INPUT, SHARDS, Needs, Step


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
    rows = "survivors" if has_dedup else "samples"
    clustering = _plan_clustering(config, rows if config.score_filter is None else "filtered")
    filters = _plan_score_filter(config, rows, _count_passes(clustering))
    dedup = _plan_dedup(config, later_passes=_count_passes(filters or clustering))
    has_vectors = bool(_count_passes([*dedup, *filters, *clustering]))
    ingest = _plan_embedded_samples() if config.embeds_main else _plan_ingest(config, has_vectors)
    return [*_plan_embed(config), ingest, *dedup, *filters, *clustering, *_plan_pruning(config)]


def plan_opening(
    config: RunConfig, steps: Iterable[Step], written: Iterable[tuple[str, str]]
) -> dict[str, Any]:
    """How the input is opened: what `io.sources.open_source`, or the like of it, takes beside its place.

    Parameters
    ----------
    config : RunConfig
    steps : iterable of Step
        From `plan_steps`. They say which columns are read, and in which order these are digested.
    written : iterable of (str, str)
        All SQL as the user wrote it, by the key that has it.

    Returns
    -------
    dict
    """
    columns = [name for step in steps for name in step.needs.columns]
    return {
        "predicate": config.input.filter,
        "columns": list(dict.fromkeys(columns)),
        "computed": [(setting, text) for setting, text in config.list_sql() if text in columns],
        "written": written,
    }


def list_compared(config: RunConfig) -> list[str]:
    """Columns of the input whose values are told apart: of a folder's name they must keep every character."""
    exact, minhash = config.dedup.exact, config.dedup.minhash
    compared = [config.input.key, *(exact.columns if exact else []), *([minhash.column] if minhash else [])]
    if config.score_filter is not None and config.score_filter.within is not None:
        compared.append(config.score_filter.within)
    names = [find_names(column.sql) if isinstance(column, SqlColumn) else [column] for column in compared]
    return list(dict.fromkeys(name for of_column in names for name in of_column))


def _count_passes(steps: Iterable[Step]) -> int:
    return sum(step.vector_passes for step in steps)


def _list_carried(config: RunConfig) -> list[str]:
    """Columns of the input that steps after ingest read."""
    scores = config.score_filter.columns if config.score_filter is not None else []
    return [name for name in dict.fromkeys([*config.dedup.columns, *scores]) if name != str(config.input.key)]


def _plan_embed(config: RunConfig) -> list[Step]:
    """Listing the samples of shards, where they are the input; then a step for each section of ``embed``."""
    steps = []
    if config.shards:
        steps.append(
            Step(
                "list_shards",
                "Listing the samples of the shards",
                needs=Needs(sources=(SHARDS,)),
                writes=("shard_samples",),
                build=build_embeddings.build_shard_samples,
            )
        )
    keys = ("key", "filter", "on_bad_rows")
    of_section = ["images", "texts", "encoder", "revision", "weights", "options", "dtype", "max_pixels"]
    of_section += ["on_bad_items", "max_bad_share"]
    for section in config.embed:
        carried = _list_carried(config) if section.name == MAIN else []
        columns = [str(config.input.key), section.item_column, *carried]
        settings = [f"input.{key}" for key in keys] + [f"embed.{section.name}.{key}" for key in of_section]
        steps.append(
            Step(
                f"embed_{section.name}",
                f"Embedding {section.kind} as {section.name}",
                needs=Needs(
                    sources=(INPUT,),
                    settings=tuple(settings),
                    columns=tuple(dict.fromkeys(column for column in columns if column is not None)),
                    carried=tuple(carried),
                    session=READ_SETTINGS,
                    encoders=(section.name,),
                ),
                writes=(section.table, section.rejected_table, f"{section.table}_files"),
                build=partial(build_embeddings.build_embeddings, name=section.name, carried=carried),
            )
        )
    return steps


def _plan_embedded_samples() -> Step:
    return Step(
        "ingest",
        "Taking the embeddings as the samples",
        needs=Needs(tables=("embeddings",)),
        writes=("samples",),
        build=build_samples.build_embedded_samples,
    )


def _plan_ingest(config: RunConfig, has_vectors: bool) -> Step:
    given, carried = config.input, _list_carried(config)
    embedding = given.embedding if has_vectors else None
    columns = [given.key, embedding, given.cluster_id, given.distance_to_centroid, *carried]
    keys = (
        "path",
        "table",
        "format",
        "options",
        "key",
        "embedding",
        "embedding_binary",
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
            columns=tuple(dict.fromkeys(str(column) for column in columns if column is not None)),
            carried=tuple(carried),
            session=READ_SETTINGS,
        ),
        writes=("samples",),
        build=partial(build_samples.build_samples, has_vectors=has_vectors, carried=carried),
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
            texts = [name_column(dedup.minhash.column), name_column(dedup.minhash.order_by)]
            carried = [name for name in dict.fromkeys(texts) if name not in (None, str(config.input.key))]
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
    if not found:
        return []
    scores = config.score_filter.columns if config.score_filter is not None else []
    carried = [name for name in dict.fromkeys(scores) if name != str(config.input.key)]
    return [*steps, _plan_survivors("survivors", found, later_passes, carried)]


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


def _plan_score_filter(config: RunConfig, rows: str, later_passes: int) -> list[Step]:
    """Leave samples out by their score, of those in the table `rows`; nothing without such a filter."""
    settings = config.score_filter
    if settings is None:
        return []
    names = settings.clip_score.names if settings.clip_score is not None else ()
    embeddings = [find_table(config.embed, name) for name in names]
    return [
        Step(
            "score_filter",
            "Leaving samples out by their score",
            needs=Needs(tables=tuple(dict.fromkeys([rows, *embeddings])), settings=("score_filter",)),
            writes=("filtered",),
            build=partial(build_score_filter.build_filtered, rows=rows, with_vectors=later_passes > 1),
            vector_passes=int(later_passes > 1 or "samples" in embeddings),
        )
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


def _plan_pruning(config: RunConfig) -> list[Step]:
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
            needs=Needs(
                tables=("keep_list",),
                settings=("trie",),
                session=() if config.trie.key is None else (TIME_ZONE,),
            ),
            writes=("keep_trie",),
            build=builds.build_trie,
        ),
    ]
