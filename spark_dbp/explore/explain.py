"""What became of some keys, and why: from the tables of a finished run, and a look at its input.

Imports numpy, `columns`, `engine`, `kernels`, `lake`, `runs` and what is beside it; pyspark inside functions.

Every table is gone over once for all keys. The rank of a sample among all of its cluster follows from the
histogram of distances, and from the samples in the same bin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from spark_dbp.columns import (
    CLUSTER_ID,
    COMPLEXITY,
    D_INTER,
    D_INTRA,
    DISTANCE,
    DUPLICATE_OF,
    KEY,
    METHOD,
    SIMILARITY,
    TARGET,
    WEIGHT,
)
from spark_dbp.engine.session import describe_jobs, get_session, guard_session
from spark_dbp.engine.spark_errors import translate_errors
from spark_dbp.errors import ConfigError
from spark_dbp.explore.given_input import FILTER, GivenInput, reopen_input, show_file
from spark_dbp.explore.key_lookup import KeyLookup
from spark_dbp.explore.keys import read_tokens, show_tokens, to_json_value
from spark_dbp.explore.quota_curve import QuotaCurve
from spark_dbp.explore.run_tables import RunTables, read_zone
from spark_dbp.explore.story import (
    AT_FLOOR,
    KEPT,
    PRUNED,
    SATURATED,
    UNKNOWN,
    Explanation,
    Explanations,
)
from spark_dbp.secrets import redact
from spark_dbp.stages.quota import WITHOUT_TEMPERATURE

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from spark_dbp.runs import Run

MOST_KEYS = 1000
# Of so many unknown keys, near-misses are looked for.
_MOST_ALIKE = 5


def explain(
    run: Run,
    keys: Any,
    spark: SparkSession | None = None,
    *,
    look_at_input: bool = True,
) -> Explanations:
    """Tell what became of some keys, and why.

    Parameters
    ----------
    run : Run
    keys : sequence, or a single key
        Texts, or values of the key's type. BINARY is hexadecimal in a text.
    spark : SparkSession, optional
        By default the session of `get_session`.
    look_at_input : bool
        Whether to look up where the keys lie in the input. For keys that no table of the run holds it is
        looked at in any case, where rows were left out of which the run holds no keys.

    Returns
    -------
    Explanations
        A list of `Explanation`, in the order of `keys`. One whose ``reason`` is ``unknown`` has no such key.

    Raises
    ------
    ConfigError
        When a key cannot be one of the run's type, or there are more than a thousand.
    InputError
        When a table of the run is missing.

    Examples
    --------
    >>> print(explain(open_run("demo-run/run"), ["digit-0007"]))  # doctest: +SKIP
    """
    given = [keys] if isinstance(keys, str | bytes) or not isinstance(keys, Iterable) else list(keys)
    if not given:
        return Explanations()
    if len(given) > MOST_KEYS:
        raise ConfigError(
            f"{len(given):,} keys are too many to explain one by one; {MOST_KEYS:,} are the most",
            mend="spark_dbp.verdicts has a row for each input row: join it",
        )
    spark = spark or get_session()
    run.reach_storage(spark)
    described = describe_jobs(spark, "spark-dbp explain: looking keys up")
    with guard_session(spark, read_zone(run)), described, translate_errors(f"run {run.path}"):
        return _Explainer(RunTables(run, spark), given, look_at_input).tell()


class _Explainer:
    """Collects what the tables say of some keys, each table once."""

    def __init__(self, tables: RunTables, keys: Sequence[Any], look_at_input: bool) -> None:
        self.tables, self.run, self.prune = tables, tables.run, tables.config.prune
        self.looks = look_at_input
        self.key_type = self.tables.read("assignments").schema[KEY].dataType
        named = read_tokens(tables.spark, keys, self.key_type)
        self.wanted = [token for token, _ in named]
        self.shown = dict(named)
        lookup = KeyLookup(tables, self.key_type, self.wanted)
        # What duplicates repeat is explained with them.
        self.links = lookup.follow_duplicates()
        self.lookup = lookup
        self.shown |= show_tokens(
            tables.spark, [t for t in lookup.tokens if t not in self.shown], self.key_type
        )

    def tell(self) -> Explanations:
        lookup = self.lookup
        assigned = lookup.find_assignments()
        ranks = lookup.count_before(assigned)
        kept = lookup.find_kept()
        told: dict[bytes, Explanation] = {}
        for token in lookup.tokens:
            one = told[token] = Explanation(to_json_value(self.shown[token], self.key_type))
            if token in assigned:
                self._tell_cluster(one, assigned[token], ranks[token], token in kept)
        left = [token for token in lookup.tokens if token not in assigned and token not in self.links]
        self._tell_left_out(told, lookup.find_left_out(left))
        if self.tables.config.score_filter is not None:
            self._tell_scores(told)
        self._tell_places(told)
        for token in lookup.tokens:
            if token in self.links:
                self._tell_duplicate(told, token)
        self._tell_alike(told)
        return Explanations(told[token] for token in self.wanted)

    # Clusters.

    @cached_property
    def _measure(self) -> Any:
        """What weighs every cluster: the product of ``complexity``, or what stands in its place."""
        of, by = self.tables.clusters, self.prune.complexity
        if by in WITHOUT_TEMPERATURE:
            return of.n_items if by == "cluster_size" else np.ones(len(of.n_items))
        return np.prod([{D_INTRA: of.d_intra, D_INTER: of.d_inter}[name] for name in by.split("*")], axis=0)

    @cached_property
    def _curve(self) -> QuotaCurve:
        return QuotaCurve(self.tables.clusters.n_items, self.tables.clusters.weight, self.prune)

    def _tell_cluster(self, one: Explanation, row: dict[str, Any], rank: int, is_kept: bool) -> None:
        of, measure = self.tables.clusters, self._measure
        one.cluster_id, one.distance_to_centroid = int(row[CLUSTER_ID]), float(row[DISTANCE])
        at = of.find_row(one.cluster_id)
        one.rank, one.n_items, one.quota = rank, int(of.n_items[at]), int(of.quota[at])
        one.which_to_keep, one.kept = self.prune.which_to_keep, is_kept
        one.reason, one.step = (KEPT if is_kept else PRUNED), "select"
        floor, used = int(of.floor[at]), of.n_items > 0
        one.quota_of = {
            "by": self.prune.complexity,
            COMPLEXITY: float(measure[at]),
            D_INTRA: float(of.d_intra[at]),
            D_INTER: float(of.d_inter[at]),
            WEIGHT: float(of.weight[at]),
            TARGET: float(of.target[at]),
            "complexity_rank": 1 + int((measure[used] > measure[at]).sum()),
            "n_clusters": int(used.sum()),
            "floor": floor,
            "bound": SATURATED if one.quota == one.n_items else AT_FLOOR if one.quota == floor else None,
        }
        if self.prune.which_to_keep == "stratified":
            one.notes.append("stratified keeps evenly over the ranks, so a larger quota need not keep it")
            return
        one.smallest_quota, one.missed_by = rank, max(0, rank - one.quota)
        found = self._curve.find_ratio(at, rank)
        if found is not None:
            one.keep_ratio, one.n_keep = found

    # Rows that were left out before they were clustered.

    def _tell_duplicate(self, told: dict[bytes, Explanation], token: bytes) -> None:
        one, last = told[token], token
        while last in self.links and len(one.duplicate_of) < len(told):
            link = self.links[last]
            last = link[DUPLICATE_OF]
            one.duplicate_of.append(
                {"key": told[last].key, METHOD: link[METHOD], SIMILARITY: link[SIMILARITY]}
            )
        method = one.duplicate_of[0][METHOD]
        one.reason, one.step = f"{method} duplicates", f"{method}_dedup"
        one.original = told[last]

    def _tell_left_out(self, told: dict[bytes, Explanation], found: dict[bytes, tuple[str, str]]) -> None:
        for token, (step, reason) in found.items():
            told[token].step, told[token].reason = step, reason

    def _tell_scores(self, told: dict[bytes, Explanation]) -> None:
        settings = self.tables.config.score_filter
        assert settings is not None
        if settings.keep_fraction is not None:
            limit = f"the best {settings.keep_fraction:g} stay"
            limit += " of each group" if settings.within is not None else ""
        elif settings.at_least is not None:
            limit = f"at least {settings.at_least:g} stays"
        else:
            limit = f"{settings.expr} must be true"
        for token, (score, group, reason) in self.lookup.find_scores().items():
            one = told[token]
            one.score = {"score": score, "group": group, "limit": limit}
            if one.reason == UNKNOWN and one.cluster_id is None:
                one.step, one.reason = "score_filter", reason

    # The input.

    @cached_property
    def _input(self) -> GivenInput:
        return reopen_input(self.tables)

    def _tell_places(self, told: dict[bytes, Explanation]) -> None:
        unknown = [t for t, one in told.items() if one.reason == UNKNOWN and t not in self.links]
        outside = self.lookup.count_outside()
        asked = list(dict.fromkeys(self.wanted)) if self.looks else unknown if outside else []
        if not asked:
            return
        given = self._input
        if given.source is None:
            for token in asked:
                self._tell_that_it_changed(told[token], given, outside, token in unknown)
            return
        with translate_errors(given.name):
            found = self.lookup.find_in_input(given, asked)
            bad = self.lookup.find_bad_rows(given, [token for token in unknown if token in found])
        for token in asked:
            one, (passes, file) = told[token], found.get(token, (False, None))
            one.where = {
                "input": given.name,
                "file": redact(show_file(file)),
                "status": "unchanged",
                "why": "",
            }
            if token not in found:
                one.where["why"] = f"not in {given.name}" if token in unknown else ""
            elif not file:
                one.where["why"] = given.name
            if token in unknown and token in found:
                one.step = self.tables.first_step
                one.reason = bad.get(token, UNKNOWN) if passes else FILTER

    def _tell_that_it_changed(
        self, one: Explanation, given: GivenInput, outside: dict[str, int], is_unknown: bool
    ) -> None:
        one.where = {"input": given.name, "file": None, "status": "changed", "why": given.why_not}
        if is_unknown and outside:
            rows = " and ".join(f"{n:,} for {reason!r}" for reason, n in outside.items())
            one.notes.append(
                f"it is in no table of the run; rows were left out of which the run holds no keys ({rows}), "
                "and without the input as it was nobody can say whether this is one of them"
            )

    def _tell_alike(self, told: dict[bytes, Explanation]) -> None:
        unknown = [t for t in dict.fromkeys(self.wanted) if told[t].reason == UNKNOWN][:_MOST_ALIKE]
        if unknown:
            alike = self.lookup.find_alike([self.shown[token] for token in unknown])
            for token in unknown:
                shown = alike.get(self.shown[token], [])
                told[token].near_misses = [to_json_value(text, self.key_type) for text in shown]
