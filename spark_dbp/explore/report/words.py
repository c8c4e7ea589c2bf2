"""Say in sentences what the figures of the report show. Imports numpy and `clusters`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from spark_dbp.explore.report.clusters import Clusters

_ORDERS = {
    "hard": "the samples farthest from its centroid",
    "easy": "the samples nearest to its centroid",
    "random": "samples at random, by a hash of the key",
    "stratified": "samples evenly over the distances",
}


@dataclass(frozen=True)
class Step:
    """A step of the funnel: rows that reach it, and how many it leaves out."""

    name: str
    before: int
    dropped: int


def list_steps(account: dict[str, Any]) -> list[Step]:
    """Where the rows went, in the order of the job; reasons that left nothing out are not listed.

    Examples
    --------
    >>> dropped = {"input.filter": 0, "exact duplicates": 2, "pruned": 4}
    >>> list_steps({"rows_in": 9, "dropped": dropped, "kept": 3})
    [Step(name='exact duplicates', before=9, dropped=2), Step(name='pruned', before=7, dropped=4)]
    """
    steps, rows = [], account["rows_in"]
    for name, dropped in account["dropped"].items():
        if dropped:
            steps.append(Step(name, rows, dropped))
            rows -= dropped
    return steps


def write_count(n: int, one: str, several: str | None = None) -> str:
    """A number with its noun.

    Examples
    --------
    >>> write_count(1, "cluster"), write_count(1200, "cluster")
    ('1 cluster', '1,200 clusters')
    """
    return f"{n:,} {one if n == 1 else several or one + 's'}"


def write_share(part: float, whole: float) -> str:
    """A share in percent, never rounded to 0 or 100 where it is neither.

    Examples
    --------
    >>> write_share(1, 3), write_share(1, 10**6), write_share(0, 5), write_share(5, 5)
    ('33.3%', 'under 0.1%', '0%', '100%')
    """
    if not part or not whole:
        return "0%"
    if part == whole:
        return "100%"
    share = 100 * part / whole
    if share < 0.1:
        return "under 0.1%"
    if 99.9 < share < 100:
        return "over 99.9%"
    return f"{share:.1f}%"


def say_summary(document: dict[str, Any]) -> str:
    """What the run did, in a sentence."""
    account, summary = document["accounting"], document["summary"]
    reached = summary["rows_to_prune"]
    early = account["rows_in"] - reached
    kept = f"{account['kept']:,} of {write_count(account['rows_in'], 'row')} are kept."
    rest = f"Filters and deduplication left out {early:,}; the other {reached:,}" if early else "They"
    clusters = write_count(summary["clusters"], "concept cluster")
    order = _ORDERS[summary["which_to_keep"]]
    return f"{kept} {rest} fall into {clusters}, each with a quota of its own, filled with {order}."


def say_funnel(account: dict[str, Any]) -> str:
    return f"{write_share(account['kept'], account['rows_in'])} of the rows are kept"


def say_complexity(clusters: Clusters) -> str:
    """How much the clusters differ in complexity."""
    if len(clusters) < 2:
        return "There is one cluster"
    ratio = float(clusters.complexity.max() / max(float(clusters.complexity.min()), 1e-300))
    if not ratio >= 1.05:
        return "All clusters are about equally complex"
    most, least = (
        int(clusters.cluster_id[i]) for i in (clusters.complexity.argmax(), clusters.complexity.argmin())
    )
    if ratio > 1e6:
        return f"Cluster {most} is far more complex than cluster {least}"
    times = f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}"
    return f"Cluster {most} is {times} times as complex as cluster {least}"


def say_quotas(clusters: Clusters) -> str:
    """How many quotas are bound."""
    whole, floor = int(clusters.saturated.sum()), int(clusters.at_floor.sum())
    if len(clusters) == 1:
        rows = write_count(int(clusters.n_items[0]), "row")
        return f"The cluster keeps {int(clusters.quota[0]):,} of its {rows}"
    if not whole and not floor:
        return "Every cluster keeps more than its floor and less than all it has"
    parts = [f"{whole:,} {'is' if whole == 1 else 'are'} kept whole"] if whole else []
    parts += [f"{floor:,} {'keeps' if floor == 1 else 'keep'} only the floor"] if floor else []
    return f"Of {write_count(len(clusters), 'cluster')}, {' and '.join(parts)}"


def say_weights(clusters: Clusters, prune: dict[str, Any]) -> str:
    """What the temperature does to the weights."""
    smallest, largest = float(clusters.weight.min()), float(clusters.weight.max())
    if prune["complexity"] == "uniform":
        return "Every cluster has the same weight"
    if prune["complexity"] == "cluster_size":
        return "Weights are proportional to the sizes of the clusters"
    if len(clusters) < 2 or not largest > smallest:
        return f"At temperature {prune['temperature']:g} all weights are equal"
    ratio = largest / smallest if smallest > 0 else np.inf
    times = f"{ratio:.1f}" if ratio < 100 else f"{ratio:,.0f}" if ratio < 1e6 else "more than a million"
    return f"At temperature {prune['temperature']:g} the largest weight is {times} times the smallest"


def say_distances(summary: dict[str, Any]) -> str:
    """Whether the kept samples are farther out than all."""
    all_, kept = summary["mean_distance"], summary["mean_distance_kept"]
    if abs(all_ - kept) < 0.0005:
        return f"Kept samples are as far out as all: {all_:.3f} on average"
    what = "farther out" if kept > all_ else "nearer"
    return f"Kept samples are {what}: {kept:.3f} on average, against {all_:.3f} for all"


def say_kmeans(kmeans: dict[str, Any]) -> str:
    """How far k-means had come."""
    history = kmeans["history"]
    first, last = history[0]["objective"], history[-1]["objective"]
    moved = history[-1]["n_moved"]
    rest = f"{write_count(moved, 'row')} still moved in the last" if moved else "nothing moved in the last"
    return f"From {first:.3f} to {last:.3f} in {write_count(len(history), 'pass', 'passes')}; {rest}"


def say_duplicates(counts: dict[str, int]) -> str:
    """How many duplicates each method found."""
    total = sum(counts.values())
    parts = ", ".join(f"{n:,} {method}" for method, n in counts.items())
    return f"{write_count(total, 'duplicate')} left out before clustering: {parts}"
