"""See before a run whether its quotas can be met. Imports `build_samples`, `config` and `stages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_dbp.build_samples import check_feasible
from spark_dbp.config import PruneConfig, RunConfig
from spark_dbp.errors import InfeasibleError, InputError
from spark_dbp.explore.plan.seen import Count, Seen
from spark_dbp.stages.kmeans import check_n_clusters
from spark_dbp.stages.quota import find_floors

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True)
class Feasibility:
    """Whether the quotas can be met, as far as it can be known before the clusters are.

    Attributes
    ----------
    is_ok : bool
    why : str
        What is known; or what cannot be.
    mend : str
        What to change; empty where nothing must be.
    """

    is_ok: bool
    why: str
    mend: str = ""


def refuse_infeasible(config: RunConfig, seen: Seen) -> None:
    """Refuse numbers of clusters and of samples to keep that the input surely has not.

    Raises
    ------
    InputError
        As a run would raise it, after the input was read.
    """
    if seen.rows.kind == "about":
        return
    semantic = config.dedup.semantic
    if semantic is not None and semantic.n_clusters is not None:
        check_n_clusters(semantic.n_clusters, seen.rows.n, "dedup.semantic.n_clusters")
    check_feasible(config, seen.rows.n)


def judge_quotas(
    config: RunConfig, rows: Count, k: Count, sizes: npt.NDArray[np.int64] | None = None
) -> Feasibility:
    """Whether floors and the number to keep go together.

    Parameters
    ----------
    config : RunConfig
    rows : Count
        That reach pruning.
    k : Count
        Clusters.
    sizes : ndarray of int64, shape (k,), optional
        Of the clusters, where an earlier run knows them.
    """
    prune = config.prune
    try:
        n_keep = prune.count_to_keep(rows.n)
    except InfeasibleError as error:
        return Feasibility(False, error.what, error.mend)
    try:
        check_feasible(config, rows.n)
    except InputError as error:
        return Feasibility(False, error.what, error.mend)
    if sizes is not None:
        return _judge_sizes(prune, n_keep, sizes)
    is_bound = rows.kind != "exact"
    bound = {"exact": "", "at most": "at most ", "about": "about "}[rows.kind]
    n_text = f"{bound if prune.n_keep is None else ''}{n_keep:,}"
    floor = max(prune.min_per_cluster, int(prune.cluster_balance * n_keep / max(1, k.n)))
    least = min(floor * k.n, rows.n)
    if least > n_keep and k.kind != "at most":
        return Feasibility(
            False,
            f"cannot keep {n_keep:,} samples: {k.n:,} clusters of {floor:,} at least need {least:,}, unless "
            "many clusters are smaller than that",
            f"keep at least {least:,}, or lower prune.min_per_cluster to {n_keep // max(1, k.n):,}, or "
            f"cluster into at most {n_keep // max(1, floor):,}",
        )
    if prune.n_keep is not None and is_bound:
        return Feasibility(
            True,
            f"prune.n_keep {n_keep:,} of {rows}: met only where at least {n_keep:,} rows reach pruning",
        )
    if least > n_keep:
        return Feasibility(
            True, f"{n_text} kept; met where at most {n_keep // max(1, floor):,} clusters have rows"
        )
    more = ", where all rows reach pruning" if rows.kind == "at most" else ""
    return Feasibility(
        True, f"{n_text} of {rows.n:,} kept{more}; floors of {k} clusters take {least:,} of these"
    )


def _judge_sizes(prune: PruneConfig, n_keep: int, sizes: npt.NDArray[np.int64]) -> Feasibility:
    least = int(find_floors(sizes, n_keep, prune.min_per_cluster, prune.cluster_balance).sum())
    rows = f"{n_keep:,} of {int(sizes.sum()):,}"
    if least > n_keep:
        return Feasibility(
            False,
            f"cannot keep {rows} samples: the clusters' floors need at least {least:,}",
            f"keep at least {least:,}, or lower prune.min_per_cluster and prune.cluster_balance",
        )
    return Feasibility(True, f"{rows} kept; floors of the {len(sizes):,} clusters take {least:,} of these")
