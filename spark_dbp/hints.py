"""What is odd about a run, or about settings, and what to try. Imports nothing of ours.

The summary of a run, the end of `spark-dbp run` and the rows of a sweep say the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# From these shares on: little is left to choose; a step has taken much; many clusters are kept whole.
_NEARLY_ALL, _MUCH, _MANY = 0.95, 0.5, 0.25
# Methods of deduplication: run.json counts what each left out as "... duplicates".
_METHODS = ("exact", "minhash", "semantic")


def hint_at_quotas(found: Mapping[str, Any], *, keeps_all: bool, counts: bool = False) -> str | None:
    """What keeps quotas from showing which clusters are complex.

    Parameters
    ----------
    found : mapping
        From `stages.quota.describe_quotas`.
    keeps_all : bool
        Whether all samples are kept.
    counts : bool
        Whether to give the numbers; rows of a sweep have them beside the hint.

    Returns
    -------
    str or None
        None where nothing does.

    Examples
    --------
    >>> quotas = {"nearly_equal": True, "mostly_bound": False, "saturated": 0, "at_floor": 0}
    >>> hint_at_quotas(quotas, keeps_all=False)
    'nearly equal weights: the temperature is so high that the complexities hardly count'
    """
    if keeps_all:
        return "all samples are kept, so no other setting changes anything"
    if found.get("nearly_equal"):
        ratio = f", the largest {found['weight_ratio']:.2g} times the smallest" if counts else ""
        return f"nearly equal weights{ratio}: the temperature is so high that the complexities hardly count"
    if not found.get("mostly_bound"):
        return None
    who = f"{found['saturated'] + found['at_floor']:,} of {found['clusters']:,}" if counts else "most"
    if found["saturated"] > found["at_floor"]:
        what = f"{who} clusters are kept whole or at their floor"
        return f"{what}, so the weights hardly count: keep fewer samples"
    return (
        f"{who} clusters are kept whole or at their floor: the temperature is low for so few samples, or the "
        "floor (prune.min_per_cluster, prune.cluster_balance) high"
    )


def list_hints(document: Mapping[str, Any]) -> list[str]:
    """What is odd about a finished run, and what to try.

    Parameters
    ----------
    document : mapping
        Content of ``run.json``.

    Returns
    -------
    list of str
        In the order of the steps that they are about.
    """
    dropped, config = document["accounting"]["dropped"], document["config"]
    left = document["accounting"]["rows_in"] - dropped.get("input.filter", 0)
    return [
        *_judge_dedup(document, dropped, config),
        *_judge_filter(dropped, config, left),
        *_judge_quotas(document),
    ]


def _judge_dedup(
    document: Mapping[str, Any], dropped: Mapping[str, int], config: Mapping[str, Any]
) -> list[str]:
    wanted = config.get("dedup") or {}
    found = [
        f"dedup.{method} removed nothing: without it the answer is the same, and the run quicker"
        for method in _METHODS
        if wanted.get(method) and dropped.get(f"{method} duplicates") == 0
    ]
    info = document["stages"].get("semantic_dedup", {}).get("info", {})
    for row in info.get("sweep", []):
        if row["eps"] == info.get("eps") and row["share"] > _MUCH:
            found.append(
                f"dedup.semantic.eps {row['eps']:g} removed {row['share']:.0%} of the samples it compared: "
                "look at its pairs in spark-dbp report, and at smaller eps in spark-dbp sweep"
            )
    return found


def _judge_filter(dropped: Mapping[str, int], config: Mapping[str, Any], left: int) -> list[str]:
    if not config.get("score_filter") or "score_filter" not in dropped:
        return []
    n = sum(rows for reason, rows in dropped.items() if reason.startswith("score"))
    if n == 0:
        return ["score_filter left nothing out"]
    return [f"score_filter left out {n / left:.0%} of the samples"] if n > 0.9 * left else []


def _judge_quotas(document: Mapping[str, Any]) -> list[str]:
    summary, prune = document["summary"], document["config"].get("prune") or {}
    kept, reached, clusters = document["accounting"]["kept"], summary["rows_to_prune"], summary["clusters"]
    found = hint_at_quotas(summary, keeps_all=kept == reached, counts=True)
    if found is not None:
        temperature = summary.get("proposed_temperature")
        if temperature is not None and kept < reached:
            ratio = summary["proposed_weight_ratio"]
            spread = f" (largest weight {ratio:.2g} times the smallest)" if ratio is not None else ""
            found += f"; try --set prune.temperature={temperature:g}{spread}"
        return [found]
    if kept >= _NEARLY_ALL * reached:
        return [
            f"{kept / reached:.1%} of the samples are kept, so pruning changes little: lower prune.keep_ratio"
        ]
    if clusters > 1 and summary["saturated"] >= _MANY * clusters:
        what = f"{summary['saturated']:,} of {clusters:,} clusters are kept whole"
        if str(prune.get("complexity", "d_")).startswith("d_"):
            at = f" (now {prune['temperature']:g})" if "temperature" in prune else ""
            return [f"{what}: raise prune.temperature{at}, or keep fewer samples"]
        return [f"{what}: keep fewer samples"]
    return []
