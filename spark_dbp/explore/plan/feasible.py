"""See before a run whether its quotas can be met. Imports `build_samples`, `config` and `stages`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from spark_dbp.build_samples import check_feasible
from spark_dbp.config import PruneConfig, RunConfig
from spark_dbp.errors import InputError
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
        What to change; where `is_ok`, only if the condition that `why` names is not met.
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
        check_feasible(config, rows.n)
    except InputError as error:  # as InfeasibleError is
        if rows.kind == "about":
            return Feasibility(True, f"met only if there are more rows than {rows}: {error.what}", error.mend)
        return Feasibility(False, error.what, error.mend)
    if sizes is not None:
        return _judge_sizes(prune, n_keep, sizes)
    bound = {"exact": "", "at most": "at most ", "about": "about "}[rows.kind]
    n_text = f"{bound if prune.n_keep is None else ''}{n_keep:,}"
    floor = max(prune.min_per_cluster, int(prune.cluster_balance * n_keep / max(1, k.n)))
    least = min(floor * k.n, rows.n)
    if least > n_keep:
        return _judge_floors(prune, n_keep, n_text, floor, rows, k)
    if prune.n_keep is not None and rows.kind != "exact":
        return Feasibility(
            True, f"prune.n_keep {n_keep:,} of {rows}: met only if at least {n_keep:,} rows reach pruning"
        )
    more = ", where all rows reach pruning" if rows.kind == "at most" else ""
    return Feasibility(
        True, f"{n_text} of {rows.n:,} kept{more}; floors of {k} clusters take {least:,} of these"
    )


def _judge_floors(
    prune: PruneConfig, n_keep: int, n_text: str, floor: int, rows: Count, k: Count
) -> Feasibility:
    """Of floors that take more than is kept where all clusters are as large as that; a small one takes less.

    All rows may lie in one cluster. So what floors take at least is that of one cluster, with all rows.
    """
    least = min(floor * k.n, rows.n)
    mend = (
        f"keep at least {least:,}, or lower prune.min_per_cluster to {n_keep // max(1, k.n):,}, or cluster "
        f"into at most {n_keep // max(1, floor):,}"
    )
    if rows.kind == "exact" and min(prune.min_per_cluster, rows.n) > n_keep:
        least = min(prune.min_per_cluster, rows.n)
        return Feasibility(
            False, f"cannot keep {n_keep:,} samples: the floor of a single cluster is {least:,}", mend
        )
    return Feasibility(
        True,
        f"{n_text} of {rows}: met only if the clusters' floors ({floor:,} rows each, or all of a smaller "
        f"cluster) take at most {n_keep:,} together; {k} clusters as large as that would take {least:,}",
        mend,
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
