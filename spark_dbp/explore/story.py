"""The story of a key, for people and for programs. Imports `quota` for the names of weights; no Spark."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal
from html import escape
from typing import Any

from spark_dbp.stages.quota import WITHOUT_TEMPERATURE

KEPT, PRUNED, UNKNOWN = "kept", "pruned", "unknown"
SATURATED, AT_FLOOR = "saturated", "floor"

_ORDERS = {
    "hard": "farthest from the centroid first",
    "easy": "nearest to the centroid first",
    "random": "by a hash of the key",
    "stratified": "farthest first; kept evenly over all of them",
}
_WIDTH = 14


@dataclass
class Explanation:
    """What became of a key, and why.

    ``str`` tells it for people, ``to_dict`` for programs; a notebook shows a table.

    Attributes
    ----------
    key : object
        As JSON has it: a number or a boolean where it is one, hexadecimal for BINARY, else a text.
    kept : bool
    reason : str
        ``kept``, ``pruned``, or the reason by which run.json accounts for the row: ``input.filter``,
        ``exact duplicates``, ``score_filter``, ...; ``unknown`` for a key that is not found.
    step : str or None
        The step of the run that decided.
    cluster_id, distance_to_centroid, rank, n_items, quota
        None for a key that was not clustered. `rank` counts all `n_items` rows of the cluster; 1 is the
        first in the order of ``which_to_keep`` (for ``stratified`` that of ``hard``).
    which_to_keep : str or None
    smallest_quota : int or None
        The smallest quota of the cluster with which the key is kept; None for ``stratified``.
    missed_by : int or None
        By how many samples the quota is too small; 0 for a key that is kept.
    keep_ratio, n_keep : float, int or None
        About the smallest keep ratio with which the key is kept, and how many samples that keeps in all.
    quota_of : dict
        Why the quota is so: ``by`` (``prune.complexity``), ``complexity`` (its value), ``d_intra``,
        ``d_inter``, ``complexity_rank`` (1 is the highest of ``n_clusters``), ``weight``, ``target``,
        ``floor``, ``bound`` (``saturated``, ``floor``, or null).
    duplicate_of : list of dict
        ``key``, ``method``, ``similarity``: what it repeats, what that repeats, and so on.
    original : Explanation or None
        What became of the last of these.
    score : dict
        ``score``, ``group``, ``limit``: of the score filter.
    where : dict
        ``input``, ``file``, ``status`` (``unchanged``, ``changed`` or ``not looked at``), ``why``.
    near_misses : list
        Keys that look alike, of a key that is not found.
    notes : list of str
    """

    key: Any
    kept: bool = False
    reason: str = UNKNOWN
    step: str | None = None
    cluster_id: int | None = None
    distance_to_centroid: float | None = None
    rank: int | None = None
    n_items: int | None = None
    quota: int | None = None
    which_to_keep: str | None = None
    smallest_quota: int | None = None
    missed_by: int | None = None
    keep_ratio: float | None = None
    n_keep: int | None = None
    quota_of: dict[str, Any] = field(default_factory=dict)
    duplicate_of: list[dict[str, Any]] = field(default_factory=list)
    original: Explanation | None = None
    score: dict[str, Any] = field(default_factory=dict)
    where: dict[str, Any] = field(default_factory=dict)
    near_misses: list[Any] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, by the names of the attributes."""
        values = dict(vars(self))
        values["original"] = self.original.to_dict() if self.original is not None else None
        return values

    def list_items(self) -> list[tuple[str, str]]:
        """The story as pairs of a label and a text."""
        items = [("verdict", self._tell_verdict())]
        items += [("in the input", text) for text in self._tell_where()]
        for one in self.duplicate_of:
            alike = f", similarity {one['similarity']:.4f}" if one["similarity"] is not None else ""
            items.append(("duplicate of", f"{one['key']} ({one['method']}{alike})"))
        if self.original is not None:
            items.append(("that one", self.original._tell_verdict()))
        if self.score:
            items.append(("score", self._tell_score()))
        if self.cluster_id is not None:
            items += self._tell_cluster()
        if self.near_misses:
            items.append(("keys alike", ", ".join(map(str, self.near_misses))))
        return items + [("note", text) for text in self.notes]

    def _tell_verdict(self) -> str:
        if self.reason == KEPT:
            rank = f": rank {self.rank:,}, quota {self.quota:,}" if self.rank and self.quota else ""
            return f"kept{rank}"
        if self.reason == PRUNED:
            missed = f", missed by {self.missed_by:,}" if self.missed_by else ""
            return f"dropped: pruned{missed}"
        if self.reason == UNKNOWN:
            return "unknown: there is no such key in this run"
        return f"dropped: {self.reason} (step {self.step})"

    def _tell_where(self) -> list[str]:
        place, why = self.where.get("file"), self.where.get("why")
        found = [place] if place else []
        if why:
            found.append(why)
        return found

    def _tell_score(self) -> str:
        of = f" in group {self.score['group']}" if self.score.get("group") is not None else ""
        return f"{self.score['score']}{of}; {self.score['limit']}"

    def _tell_cluster(self) -> list[tuple[str, str]]:
        assert self.distance_to_centroid is not None
        of, items = self.quota_of, f"{self.n_items:,}"
        near = f"cluster {self.cluster_id} of {items} samples, distance {self.distance_to_centroid:.4f}"
        found = [
            ("cluster", f"{near} (mean {of['d_intra']:.4f})"),
            ("rank", f"{self.rank:,} of {items}, {_ORDERS[str(self.which_to_keep)]}"),
            ("quota", f"{self.quota:,}: {self._tell_quota()}"),
        ]
        if self.smallest_quota is None:
            return found
        text = f"a quota of {self.smallest_quota:,} keeps it"
        if self.keep_ratio is not None:
            ratio = f"{Decimal(repr(self.keep_ratio)):f}"
            text += f"; about from prune.keep_ratio={ratio} on ({self.n_keep:,} samples in all)"
        return [*found, ("needs", text)]

    def _tell_quota(self) -> str:
        of = self.quota_of
        if of["by"] in WITHOUT_TEMPERATURE:
            why = {"cluster_size": "by the size of the cluster", "uniform": "as every cluster"}[of["by"]]
        else:
            why = f"{of['by'].replace('*', ' * ')} = {of['complexity']:.4g}"
            why += f" ({of['complexity_rank']:,} of {of['n_clusters']:,} from the highest)"
        text = f"{why}, weight {of['weight']:.4g}, target {of['target']:,.1f}"
        if of["bound"] == SATURATED:
            return f"{text}; the cluster is kept whole"
        if of["bound"] == AT_FLOOR:
            return f"{text}; raised to the floor of {of['floor']:,}"
        more = (self.quota or 0) - of["target"]
        if abs(more) < 1:
            return text
        what = f"{abs(more):,.0f} {'more' if more > 0 else 'fewer'}"
        return f"{text}; {what} because other clusters are kept whole or at their floor"

    def __str__(self) -> str:
        lines = [f"key {self.key}", *(f"  {label:<{_WIDTH}}{text}" for label, text in self.list_items())]
        return "\n".join(map(escape_controls, lines))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th style='text-align:left'>{escape(label)}</th>"
            f"<td style='text-align:left'>{escape(text)}</td></tr>"
            for label, text in [("key", str(self.key)), *self.list_items()]
        )
        return f"<table>{rows}</table>"


def escape_controls(text: str) -> str:
    """A text without what would move a terminal's cursor: a key may hold anything.

    Examples
    --------
    >>> escape_controls("a b\\n\\x1b[1m")
    'a b\\\\n\\\\x1b[1m'
    """
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


class Explanations(list[Explanation]):
    """Several of them, which print one after the other."""

    def __str__(self) -> str:
        return "\n\n".join(map(str, self))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return "".join(one._repr_html_() for one in self)
