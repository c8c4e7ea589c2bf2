"""Say for each step whether an earlier run in the same place has it, and why not.

Imports `steps`, `config`, `lake` and `engine.expressions`. What a step depends on comes from
`steps.resolve_needs`, and is compared by `lake.store`: as a run does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from spark_dbp._version import __version__
from spark_dbp.config import RunConfig
from spark_dbp.engine.expressions import find_calls
from spark_dbp.explore.plan.seen import UNKNOWN, Seen
from spark_dbp.lake.marks import FORMAT_VERSION, FinishedStep, hash_leaves, list_changed, make_fingerprint
from spark_dbp.lake.store import EarlierSteps
from spark_dbp.steps import Facts, Step, name_table, resolve_needs

# Stands for the hash of a table that will be another one.
_ANEW = "computed anew"


@dataclass
class Judged:
    """What a run would do about a step.

    Attributes
    ----------
    step : Step
    status : {"new", "changed", "follows", "damaged", "reused"}
        ``new``: no earlier run finished it. ``changed``: something that it needs itself did. ``follows``:
        only steps before it did. ``damaged``: its files did.
    why : str
        Empty where it is reused.
    changed : list of str
        What changed of its own: keys of the configuration, the input.
    follows : list of str
        Steps before it that are computed anew, and whose tables it reads.
    known : FinishedStep or None
        The step as the earlier run finished it.
    if_same : list of str
        What was taken as unchanged, because a plan does not see it.
    """

    step: Step
    status: str
    why: str = ""
    changed: list[str] = field(default_factory=list)
    follows: list[str] = field(default_factory=list)
    known: FinishedStep | None = None
    if_same: list[str] = field(default_factory=list)

    @property
    def is_reused(self) -> bool:
        """Whether a run would take it over."""
        return self.status == "reused"


def judge_steps(steps: Iterable[Step], config: RunConfig, seen: Seen, earlier: EarlierSteps) -> list[Judged]:
    """What a run of these steps would do in the place of an earlier one, or of none.

    Parameters
    ----------
    steps : iterable of Step
        From `plan_steps`, in their order.
    config : RunConfig
    seen : Seen
    earlier : EarlierSteps

    Returns
    -------
    list of Judged
    """
    hashes: dict[str, Any] = {}
    writers: dict[str, str] = {}
    judged = []
    for step in steps:
        facts = Facts(
            snapshot_input=lambda: seen.snapshot or UNKNOWN,
            digest_shards=lambda: seen.shards or UNKNOWN,
            snapshot_centroids=lambda: seen.centroids_snapshot,
            identify_encoder=lambda _: UNKNOWN,
            name_type=seen.name_type,
            read_setting=seen.read_setting,
            value_at=lambda path: _find_value(config, path),
            hash_table=hashes.__getitem__,
        )
        one = _judge(step, resolve_needs(step.needs, facts), writers, earlier)
        judged.append(one)
        for table in step.writes:
            writers[table] = step.name
            is_same = one.known is not None and one.status in ("reused", "damaged")
            if is_same and one.known is not None and table in one.known.tables:
                hashes[table] = one.known.hash_table(table)
            else:
                hashes[table] = _ANEW
    return judged


def _find_value(config: RunConfig, path: str) -> Any:
    """A value of the configuration; `UNKNOWN` where it has SQL that a session evaluates first (the date)."""
    of_moment = any(
        find_calls(text) for place, text in config.list_sql() if f"{place}.".startswith(f"{path}.")
    )
    return UNKNOWN if of_moment else config.value_at(path)


def _judge(step: Step, needed: dict[str, Any], writers: dict[str, str], earlier: EarlierSteps) -> Judged:
    tables = {name_table(table): table for table in step.needs.tables}
    follows = [writers[table] for name, table in tables.items() if needed[name] == _ANEW]
    follows = list(dict.fromkeys(follows))
    known = earlier.read_earlier(step.name)
    if known is None:
        return Judged(step, "new", "it was not finished before", follows=follows)
    leaves, unknown = _hash_known(needed, known)
    difference = earlier.find_difference(known, leaves)
    if not difference:
        return Judged(step, "reused", known=known, if_same=unknown)
    if known.fingerprint == make_fingerprint(step.name, leaves):
        return Judged(step, "damaged", difference, [], follows, known, unknown)
    changed = [name for name in list_changed(known, leaves) if needed.get(name) != _ANEW]
    is_old = (known.version, known.format_version) != (__version__, FORMAT_VERSION)
    if changed or is_old or not follows:
        own = difference if is_old or not changed else f"{', '.join(changed)} changed"
        return Judged(step, "changed", own, changed, follows, known, unknown)
    return Judged(step, "follows", f"{', '.join(follows)} computed anew", [], follows, known, unknown)


def _hash_known(needed: dict[str, Any], known: FinishedStep) -> tuple[dict[str, str], list[str]]:
    """Hashes of what is needed; what is not known has that of the earlier run, and is named."""
    leaves: dict[str, str] = {}
    unknown = []
    for name, value in needed.items():
        if isinstance(value, dict):
            leaves |= hash_leaves({name: {part: v for part, v in value.items() if v is not UNKNOWN}})
            missing = [f"{name}.{part}" for part, v in value.items() if v is UNKNOWN]
        else:
            leaves |= {} if value is UNKNOWN else hash_leaves({name: value})
            missing = [name] if value is UNKNOWN else []
        for path in missing:
            leaves |= {k: v for k, v in known.depends.items() if k == path or k.startswith(f"{path}.")}
        unknown += missing
    return leaves, unknown
