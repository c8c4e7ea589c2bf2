"""What other prune settings would keep: exact quotas for each combination, from statistics, without Spark.

Imports numpy, `config`, `errors`, `hints`, the stage `quota`, `run_clusters` and `sweep_table`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from spark_dbp.config import Complexity, PruneConfig
from spark_dbp.errors import ConfigError, InfeasibleError
from spark_dbp.explore.run_clusters import RunClusters
from spark_dbp.explore.sweep_table import Sweep, SweepRow
from spark_dbp.hints import hint_at_quotas
from spark_dbp.stages.quota import (
    WITHOUT_TEMPERATURE,
    describe_quotas,
    propose_temperature,
    share_out,
    weigh_clusters,
)

if TYPE_CHECKING:
    from spark_dbp.runs import Run

# One number or several, or what float() makes one of.
Numbers = float | str | Iterable[float | str]

# Orders in which what a smaller quota keeps is the beginning of what a larger one keeps.
_NESTED = ("hard", "easy")
# `find_temperature` first tries temperatures at which the logarithm of the largest weight over the smallest
# is one of these. Then it halves the gap, to this many digits.
_SPREADS = 10.0 ** np.arange(-2, 3.01, 0.125)
_DIGITS = 3


def sweep(
    run: Run,
    keep_ratio: Numbers | None = None,
    temperature: Numbers | None = None,
    complexity: str | Iterable[str] | None = None,
) -> Sweep:
    """The quotas that `prune_again` would set, for each combination of settings.

    Parameters
    ----------
    run : Run
    keep_ratio : float or iterable of float, optional
        In (0, 1], of the rows that reached pruning. By default the run's, or its n_keep.
    temperature : float or iterable of float, optional
        Above 0. By default the run's.
    complexity : str or iterable of str, optional
        What the weights rest on, as ``prune.complexity``. By default the run's.

    Returns
    -------
    Sweep
        A row for each combination; all other settings are the run's. It prints as a table.

    Raises
    ------
    ConfigError
        When a value is none that the setting takes.
    DamagedRunError
        When a table of the run cannot be read.

    Notes
    -----
    O(k log k) for each combination of k clusters; nothing but `cluster_stats` and `quotas` is read.

    Examples
    --------
    >>> for row in sweep(open_run("run"), keep_ratio=[0.1, 0.3]):  # doctest: +SKIP
    ...     print(row.keep_ratio, row.n_keep, row.saturated, row.overlap)
    """
    clusters = RunClusters(run)
    ratios = _list_ratios(keep_ratio, clusters.prune)
    temperatures = _list_temperatures(temperature, clusters.prune)
    kinds = _list_complexities(complexity, clusters.prune)
    solver = _Solver(clusters, len(temperatures) > 1)
    rows = [solver.solve(r, t, c) for c, r, t in product(kinds, ratios, temperatures)]
    return _gather(solver, rows)


def find_temperature(
    run: Run,
    saturated_at_most: int,
    keep_ratio: Numbers | None = None,
    complexity: str | Iterable[str] | None = None,
) -> Sweep:
    """The lowest temperature with at most so many clusters kept whole: that of the most unequal weights.

    Parameters
    ----------
    run : Run
    saturated_at_most : int
        At least 0.
    keep_ratio, complexity
        As for `sweep`.

    Returns
    -------
    Sweep
        A row for each ratio and complexity. Where no temperature will do, it is not feasible, and says why.

    Raises
    ------
    ConfigError, DamagedRunError
        As for `sweep`; also for a complexity that uses no temperature.

    Notes
    -----
    The number of saturated clusters mostly grows as the temperature falls, but it need not. At a temperature
    near 0 one cluster has all the weight, and the others get equal quotas, so fewer may be saturated there.
    Where large clusters are complex, fewer may be saturated at some temperature than at a higher one.

    So exact quotas are computed at 41 temperatures, from nearly equal weights to a single one that counts.
    From the highest that will do, the search goes down to the first that will not, and halves the gap between
    the two. The temperature has three digits.

    Examples
    --------
    >>> find_temperature(open_run("run"), 5)[0].temperature  # doctest: +SKIP
    """
    if type(saturated_at_most) is not int or saturated_at_most < 0:
        raise ConfigError(
            f"saturated at most {saturated_at_most!r} is no number of clusters", mend="give 0 or more"
        )
    clusters = RunClusters(run)
    ratios = _list_ratios(keep_ratio, clusters.prune)
    kinds = _list_complexities(complexity, clusters.prune)
    for kind in kinds:
        if kind in WITHOUT_TEMPERATURE:
            raise ConfigError(
                f"the weights of complexity {kind} do not depend on a temperature",
                mend="give a complexity that does: d_intra*d_inter, d_intra or d_inter",
            )
    solver = _Solver(clusters)
    rows = [_search(solver, r, c, saturated_at_most) for c, r in product(kinds, ratios)]
    return _gather(solver, rows)


def _gather(solver: _Solver, rows: list[SweepRow]) -> Sweep:
    prune = solver.clusters.prune
    now = solver.solve(prune.keep_ratio, prune.temperature, prune.complexity)
    about = {
        "run": solver.clusters.run.path,
        "rows_to_prune": solver.clusters.n_rows,
        "clusters": solver.n_used,
        "which_to_keep": prune.which_to_keep,
        "min_per_cluster": prune.min_per_cluster,
        "cluster_balance": prune.cluster_balance,
        "n_neighbors": prune.n_neighbors,
    }
    return Sweep(rows, now, about)


class _Solver:
    """Computes rows of a sweep."""

    def __init__(self, clusters: RunClusters, several_temperatures: bool = False) -> None:
        self.clusters = clusters
        self.several_temperatures = several_temperatures
        self.n_used = int((clusters.n_items > 0).sum())
        self._weigh = lru_cache(maxsize=64)(self._weigh_anew)

    def _weigh_anew(self, complexity: str, temperature: float) -> Any:
        c = self.clusters
        return weigh_clusters(c.n_items, c.d_intra, c.d_inter, complexity=complexity, temperature=temperature)

    def set_quotas(self, keep_ratio: float | None, temperature: float, complexity: str) -> dict[str, Any]:
        """As the run does it. Raises InfeasibleError when no quotas add up."""
        prune = self.clusters.prune
        how = PruneConfig(keep_ratio=keep_ratio) if keep_ratio else PruneConfig(n_keep=prune.n_keep)
        values, weight = self._weigh(complexity, temperature)
        return share_out(
            self.clusters.n_items,
            values,
            weight,
            how.count_to_keep(self.clusters.n_rows),
            prune.min_per_cluster,
            prune.cluster_balance,
        )

    def list_spread(self, complexity: str) -> float:
        """Largest complexity less the smallest."""
        values = self._weigh(complexity, 1.0)[0]
        return float(np.nanmax(values) - np.nanmin(values))

    def count_saturated(self, keep_ratio: float | None, temperature: float, complexity: str) -> int:
        quota = self.set_quotas(keep_ratio, temperature, complexity)["quota"]
        return int(((quota == self.clusters.n_items) & (quota > 0)).sum())

    def solve(self, keep_ratio: float | None, temperature: float, complexity: str) -> SweepRow:
        """All that a row says."""
        clusters, prune = self.clusters, self.clusters.prune
        # Of the settings, `keep_ratio` is None only where the run has n_keep.
        now = (prune.keep_ratio, prune.temperature, prune.complexity)
        settings: dict[str, Any] = {
            "keep_ratio": keep_ratio,
            "temperature": temperature,
            "complexity": complexity,
            "current": (keep_ratio, temperature, complexity) == now,
        }
        try:
            plan = self.set_quotas(keep_ratio, temperature, complexity)
        except InfeasibleError as error:
            return SweepRow(**settings, feasible=False, hint=f"{error.what}; {error.mend}")
        quota = plan["quota"]
        found = describe_quotas(clusters.n_items, plan, complexity)
        mean, error_of_mean = clusters.distances.bound_mean(quota)
        overlap = None
        if prune.which_to_keep in _NESTED:
            overlap = int(np.minimum(quota, clusters.quota).sum()) / int(clusters.quota.sum())
        return SweepRow(
            **settings,
            n_keep=int(quota.sum()),
            at_floor=found["at_floor"],
            saturated=found["saturated"],
            weight_ratio=found["weight_ratio"],
            effective_clusters=_count_effective(quota),
            smallest_quota=found["quotas"][0],
            largest_quota=found["quotas"][1],
            mean_distance_kept=mean,
            mean_distance_kept_error=error_of_mean,
            overlap=overlap,
            hint=self._give_hint(plan, found, complexity),
        )

    def _give_hint(self, plan: dict[str, Any], found: dict[str, Any], complexity: str) -> str | None:
        """What is odd about a setting, and what to try."""
        quota, used = plan["quota"], self.clusters.n_items > 0
        has_temperature = complexity not in WITHOUT_TEMPERATURE
        keeps_all = int(quota.sum()) == self.clusters.n_rows
        if not has_temperature and self.several_temperatures and not keeps_all:
            return f"complexity {complexity} uses no temperature"
        what, proposed = hint_at_quotas(found, keeps_all=keeps_all), found["proposed_temperature"]
        if keeps_all:
            return what
        few = 2 * int((plan["target"][used] < 1).sum()) > self.n_used
        if what is None and has_temperature and self.n_used > 1 and few:
            what = (
                "the temperature is so low that most targets are below one sample: these clusters share out "
                "what is left over, whatever their complexity"
            )
            proposed = propose_temperature(plan["complexity"])
        return what if what is None or proposed is None else f"{what}; try temperature {proposed:g}"


def _count_effective(quota: Any) -> float:
    """The exponential of the entropy of the shares: so many clusters, all of them equal, would be as even."""
    shares = quota[quota > 0] / quota.sum()
    return math.exp(-math.fsum((shares * np.log(shares)).tolist()))


def _search(solver: _Solver, keep_ratio: float | None, complexity: str, most: int) -> SweepRow:
    """The row of the lowest temperature that will do, in the range that holds the highest one that does."""
    spread = solver.list_spread(complexity)
    now = solver.clusters.prune.temperature
    try:
        if spread <= 0:  # all weights are equal, whatever the temperature
            counts = {now: solver.count_saturated(keep_ratio, now, complexity)}
        else:
            tried = sorted({_round(spread / s) for s in _SPREADS.tolist()}, reverse=True)
            counts = {t: solver.count_saturated(keep_ratio, t, complexity) for t in tried if t > 0}
    except InfeasibleError:  # whatever the temperature
        return solver.solve(keep_ratio, now, complexity)
    tried = list(counts)
    good = [t for t in tried if counts[t] <= most]
    if not good:
        best = min(tried, key=lambda t: counts[t])
        return SweepRow(
            keep_ratio=keep_ratio,
            temperature=best,
            complexity=complexity,
            feasible=False,
            saturated=counts[best],
            hint=f"no temperature has at most {most:,} clusters kept whole; the fewest are {counts[best]:,}, "
            f"at temperature {best:g}: keep fewer samples",
        )
    top = bottom = good[0]
    below = None
    for temperature in tried[tried.index(top) + 1 :]:
        if counts[temperature] > most:
            below = temperature
            break
        bottom = temperature
    while below is not None and (middle := _round((below + bottom) / 2)) not in (below, bottom):
        if solver.count_saturated(keep_ratio, middle, complexity) <= most:
            bottom = middle
        else:
            below = middle
    hint = f"the lowest temperature with at most {most:,} clusters kept whole"
    if below is None:
        hint += "; any lower one will do as well"
    elif lower := [t for t in good if t < below]:
        hint += (
            f"; right below there are more, but not at {lower[0]:g}, where few clusters have all the weight"
        )
    if top != tried[0]:
        hint += f"; above {top:g} there are more again"
    return solver.solve(keep_ratio, bottom, complexity).add_hint(hint)


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS - 1}e}")


def _list_ratios(given: Numbers | None, prune: PruneConfig) -> list[float | None]:
    if given is None:
        return [prune.keep_ratio]
    return list(_check_numbers("keep_ratio", given, lambda x: 0 < x <= 1, "above 0 and at most 1"))


def _list_temperatures(given: Numbers | None, prune: PruneConfig) -> list[float]:
    if given is None:
        return [prune.temperature]
    return _check_numbers("temperature", given, lambda x: 0 < x < math.inf, "above 0")


def _check_numbers(name: str, given: Any, is_good: Any, range_: str) -> list[float]:
    values = given if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    found = []
    for value in values:
        try:
            number = math.nan if isinstance(value, bool | np.bool_) else float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not is_good(number):
            raise ConfigError(f"{name} {value!r} is no number {range_}", mend=f"give numbers {range_}")
        found.append(number)
    return _list_once(name, found)


def _list_complexities(given: str | Iterable[str] | None, prune: PruneConfig) -> list[str]:
    if given is None:
        return [prune.complexity]
    found = [given] if isinstance(given, str) else list(given)
    known = get_args(Complexity)
    for name in found:
        if name not in known:
            raise ConfigError(f"complexity {name!r} is not known", mend=f"give one of {', '.join(known)}")
    return _list_once("complexity", found)


def _list_once(name: str, values: list[Any]) -> list[Any]:
    if not values:
        raise ConfigError(f"{name} is given without a value", mend="give at least one, or leave it out")
    return list(dict.fromkeys(values))
