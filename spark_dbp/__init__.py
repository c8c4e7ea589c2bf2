"""spark_dbp: Density-Based Pruning of web-scale datasets on Spark and Parquet.

Importing this package imports neither pyspark nor numpy: names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spark_dbp._version import __version__

if TYPE_CHECKING:
    from spark_dbp import loaders
    from spark_dbp.config import RunConfig
    from spark_dbp.engine.session import get_session, start_local_session
    from spark_dbp.exchange.export import export
    from spark_dbp.exchange.import_embeddings import import_embeddings
    from spark_dbp.exchange.index_shards import index_shards
    from spark_dbp.exchange.reshard import reshard
    from spark_dbp.explore.choose_eps import find_eps
    from spark_dbp.explore.diff import diff
    from spark_dbp.explore.explain import explain
    from spark_dbp.explore.plan.make import plan
    from spark_dbp.explore.report.show import show_cluster
    from spark_dbp.explore.report.write import write_report
    from spark_dbp.explore.sweep import find_temperature, sweep
    from spark_dbp.explore.verdicts import verdicts
    from spark_dbp.explore.verify import verify
    from spark_dbp.kernels.quota_solver import solve_quotas
    from spark_dbp.loaders.keep_trie import KeepTrie
    from spark_dbp.pipeline import plan_steps
    from spark_dbp.runner import prune_again, run
    from spark_dbp.runs import Run, open_run
    from spark_dbp.stages.check_samples import check_samples, good_samples
    from spark_dbp.stages.clip_score import clip_score
    from spark_dbp.stages.cluster_stats import cluster_stats, complete_stats
    from spark_dbp.stages.embed import embed_images, embed_texts
    from spark_dbp.stages.exact_dedup import exact_dedup
    from spark_dbp.stages.ingest import ingest
    from spark_dbp.stages.keep_trie import build_keep_trie
    from spark_dbp.stages.kmeans import SphericalKMeans
    from spark_dbp.stages.list_shards import read_webdataset
    from spark_dbp.stages.minhash_dedup import minhash_dedup
    from spark_dbp.stages.quota import plan_quotas
    from spark_dbp.stages.read_embeddings import read_embeddings
    from spark_dbp.stages.score_filter import score_filter
    from spark_dbp.stages.select import select
    from spark_dbp.stages.semantic_dedup import semantic_dedup

# Public names, and the modules that they live in. They stay, whatever module that is.
_HOME = {
    "KeepTrie": "loaders.keep_trie",
    "Run": "runs",
    "RunConfig": "config",
    "SphericalKMeans": "stages.kmeans",
    "build_keep_trie": "stages.keep_trie",
    "check_samples": "stages.check_samples",
    "clip_score": "stages.clip_score",
    "cluster_stats": "stages.cluster_stats",
    "complete_stats": "stages.cluster_stats",
    "diff": "explore.diff",
    "embed_images": "stages.embed",
    "embed_texts": "stages.embed",
    "exact_dedup": "stages.exact_dedup",
    "explain": "explore.explain",
    "export": "exchange.export",
    "find_eps": "explore.choose_eps",
    "find_temperature": "explore.sweep",
    "get_session": "engine.session",
    "good_samples": "stages.check_samples",
    "import_embeddings": "exchange.import_embeddings",
    "index_shards": "exchange.index_shards",
    "ingest": "stages.ingest",
    "minhash_dedup": "stages.minhash_dedup",
    "open_run": "runs",
    "plan": "explore.plan.make",
    "plan_quotas": "stages.quota",
    "plan_steps": "pipeline",
    "prune_again": "runner",
    "read_embeddings": "stages.read_embeddings",
    "read_webdataset": "stages.list_shards",
    "reshard": "exchange.reshard",
    "run": "runner",
    "score_filter": "stages.score_filter",
    "select": "stages.select",
    "semantic_dedup": "stages.semantic_dedup",
    "show_cluster": "explore.report.show",
    "solve_quotas": "kernels.quota_solver",
    "start_local_session": "engine.session",
    "verdicts": "explore.verdicts",
    "sweep": "explore.sweep",
    "verify": "explore.verify",
    "write_report": "explore.report.write",
}

__all__ = [
    "KeepTrie",
    "Run",
    "RunConfig",
    "SphericalKMeans",
    "__version__",
    "build_keep_trie",
    "check_samples",
    "clip_score",
    "cluster_stats",
    "complete_stats",
    "diff",
    "embed_images",
    "embed_texts",
    "exact_dedup",
    "explain",
    "export",
    "find_eps",
    "find_temperature",
    "get_session",
    "good_samples",
    "import_embeddings",
    "index_shards",
    "ingest",
    "loaders",
    "minhash_dedup",
    "open_run",
    "plan",
    "plan_quotas",
    "plan_steps",
    "prune_again",
    "read_embeddings",
    "read_webdataset",
    "reshard",
    "run",
    "score_filter",
    "select",
    "semantic_dedup",
    "show_cluster",
    "solve_quotas",
    "start_local_session",
    "sweep",
    "verdicts",
    "verify",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "loaders":
        return importlib.import_module("spark_dbp.loaders")
    if name not in _HOME:
        raise AttributeError(f"module 'spark_dbp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"spark_dbp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
