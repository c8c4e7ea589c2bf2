"""spark_dbp: Density-Based Pruning of web-scale datasets on Spark and Parquet.

Importing this package imports neither pyspark nor numpy: names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from spark_dbp._version import __version__

if TYPE_CHECKING:
    from spark_dbp.config import RunConfig
    from spark_dbp.loaders.keep_trie import KeepTrie
    from spark_dbp.pipeline import prune_again, run
    from spark_dbp.runs import Run, open_run
    from spark_dbp.stages.cluster_stats import cluster_stats
    from spark_dbp.stages.ingest import check_samples, good_samples, ingest
    from spark_dbp.stages.kmeans import SphericalKMeans
    from spark_dbp.stages.quota import plan_quotas, solve_quotas
    from spark_dbp.stages.select import select

_HOME = {
    "KeepTrie": "keep.trie",
    "Run": "runs",
    "RunConfig": "config",
    "SphericalKMeans": "stages.kmeans",
    "check_samples": "stages.ingest",
    "cluster_stats": "stages.cluster_stats",
    "good_samples": "stages.ingest",
    "ingest": "stages.ingest",
    "open_run": "runs",
    "plan_quotas": "stages.quota",
    "prune_again": "pipeline",
    "run": "pipeline",
    "select": "stages.select",
    "solve_quotas": "stages.quota",
}

__all__ = [
    "KeepTrie",
    "Run",
    "RunConfig",
    "SphericalKMeans",
    "__version__",
    "check_samples",
    "cluster_stats",
    "good_samples",
    "ingest",
    "open_run",
    "plan_quotas",
    "prune_again",
    "run",
    "select",
    "solve_quotas",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'spark_dbp' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"spark_dbp.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
