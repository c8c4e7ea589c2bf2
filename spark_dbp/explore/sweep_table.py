"""The result of a sweep: rows that print as a table. Imports `text_table`; others in functions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from spark_dbp.explore.text_table import format_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

# Of the orders, the ones of which the mean distance is known within a bound.
_NOT_BOUND = "random"


@dataclass(frozen=True)
class SweepRow:
    """What one combination of settings would keep.

    Attributes
    ----------
    keep_ratio : float or None
        None where the run has n_keep and no ratio was asked for.
    temperature : float
    complexity : str
    n_keep : int or None
        Samples that are kept. None, as all that follows, where `feasible` is false.
    at_floor, saturated : int or None
        Clusters at their floor, and clusters kept whole, as in the summary of a run.
    weight_ratio : float or None
        Largest weight over smallest; None also where the smallest is 0.
    effective_clusters : float or None
        exp of the entropy of the shares of the kept samples: so many clusters of equal quotas are as even.
    smallest_quota, largest_quota : int or None
    mean_distance_kept, mean_distance_kept_error : float or None
        Mean distance to the centroid of what is kept, and by how much it may be off. For ``random`` the mean
        that is expected, and three standard errors.
    overlap : float or None
        Share of the samples that the run kept which stay. None unless the order is hard or easy.
    current : bool
        Whether these are the settings of the run.
    feasible : bool
        Whether there are such quotas.
    hint : str or None
        What is odd about the settings, or why they cannot be.
    """

    keep_ratio: float | None
    temperature: float
    complexity: str
    n_keep: int | None = None
    at_floor: int | None = None
    saturated: int | None = None
    weight_ratio: float | None = None
    effective_clusters: float | None = None
    smallest_quota: int | None = None
    largest_quota: int | None = None
    mean_distance_kept: float | None = None
    mean_distance_kept_error: float | None = None
    overlap: float | None = None
    current: bool = False
    feasible: bool = True
    hint: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Its values by name, for JSON."""
        return asdict(self)

    def add_hint(self, text: str) -> SweepRow:
        """A copy with one more hint, before the others."""
        return replace(self, hint=text if self.hint is None else f"{text}; {self.hint}")


_HEADS = (
    "keep_ratio",
    "temperature",
    "complexity",
    "kept",
    "at floor",
    "whole",
    "weights",
    "effective",
    "quotas",
    "mean distance",
    "stay",
)
_LEFT = ("complexity",)
# What a narrow terminal shows last.
_LEAST = ("effective", "mean distance", "weights", "quotas", "stay", "complexity")
_EXPLAINED = (
    "at floor, whole: clusters; weights: largest / smallest; effective: number of equal clusters that are as "
    "even; stay: share of what this run kept"
)


class Sweep:
    """Rows for combinations of settings. It prints as a table, also in a notebook.

    Attributes
    ----------
    rows : list of SweepRow
        In the order of complexity, ratio, temperature as they were asked for.
    now : SweepRow
        What the run's own settings keep, whether or not they are among the rows.
    about : dict
        What is the same for all: ``run``, ``rows_to_prune``, ``clusters``, ``which_to_keep``,
        ``min_per_cluster``, ``cluster_balance``, ``n_neighbors``.
    """

    def __init__(self, rows: list[SweepRow], now: SweepRow, about: dict[str, Any]) -> None:
        self.rows, self.now, self.about = rows, now, about

    def __iter__(self) -> Iterator[SweepRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> SweepRow:
        return self.rows[number]

    def to_dicts(self) -> list[dict[str, Any]]:
        """A dict of JSON values for each row."""
        return [row.to_dict() for row in self.rows]

    def to_pandas(self) -> pd.DataFrame:
        """A row for each row, a column for each attribute of `SweepRow`."""
        import pandas as pd

        return pd.DataFrame(self.to_dicts())

    def plot(self) -> Figure:
        """Draw the rows over the keep ratio, or over the temperature where there are more of these."""
        from spark_dbp.explore.plots import draw_sweep

        return draw_sweep(self)

    def _list_shown(self) -> list[SweepRow]:
        """All rows, and before them that of the run where it is not among them."""
        return self.rows if any(row.current for row in self.rows) else [self.now, *self.rows]

    def _list_notes(self, shown: list[SweepRow]) -> list[str]:
        return list(dict.fromkeys(row.hint for row in shown if row.hint is not None))

    def describe(self) -> str:
        """One line on what is the same for all rows."""
        about = self.about
        floor = f"floor {about['min_per_cluster']:,}"
        if about["cluster_balance"]:
            floor += f", cluster_balance {about['cluster_balance']:g}"
        return (
            f"{about['rows_to_prune']:,} samples in {about['clusters']:,} clusters, "
            f"{about['which_to_keep']}{' first' if about['which_to_keep'] in ('hard', 'easy') else ''}, "
            f"{floor}"
        )

    def format(self, width: int | None = None) -> str:
        """The table as text; for a terminal of so many columns without those that it has no room for."""
        shown = self._list_shown()
        notes = self._list_notes(shown)
        marks = [
            " ".join(
                (["this run"] if row.current else [])
                + ([f"[{notes.index(row.hint) + 1}]"] if row.hint is not None else [])
            )
            for row in shown
        ]
        rows = [self._format_row(row) for row in shown]
        # What all rows share says least.
        least = sorted(_LEAST, key=lambda name: len({row[_HEADS.index(name)] for row in rows}) > 1)
        table = format_table(_HEADS, rows, left=_LEFT, least=least, width=width, tails=marks)
        more = [_EXPLAINED, *(f"[{number}] {note}" for number, note in enumerate(notes, 1))]
        return "\n".join([self.describe(), *table, *more])

    def __str__(self) -> str:
        return self.format()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        shown = self._list_shown()
        notes = self._list_notes(shown)
        head = "".join(f"<th>{escape(name)}</th>" for name in (*_HEADS, ""))
        body = []
        for row in shown:
            cells = "".join(
                f"<td style='text-align:{'left' if name in _LEFT else 'right'}'>{escape(cell)}</td>"
                for name, cell in zip(_HEADS, self._format_row(row, "±"), strict=True)
            )
            mark = "this run " if row.current else ""
            mark += f"[{notes.index(row.hint) + 1}]" if row.hint is not None else ""
            weight = " style='font-weight:bold'" if row.current else ""
            body.append(f"<tr{weight}>{cells}<td style='text-align:left'>{mark}</td></tr>")
        lines = [_EXPLAINED, *(f"[{number}] {note}" for number, note in enumerate(notes, 1))]
        return (
            f"<div>{escape(self.describe())}</div><table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}"
            f"</tbody></table><div><small>{'<br>'.join(map(escape, lines))}</small></div>"
        )

    def _format_row(self, row: SweepRow, plus_minus: str = "+-") -> list[str]:
        settings = [
            "n_keep" if row.keep_ratio is None else f"{row.keep_ratio:g}",
            f"{row.temperature:g}",
            row.complexity,
        ]
        if not row.feasible:
            return [*settings, *["-"] * (len(_HEADS) - len(settings))]
        sign = "~" if self.about["which_to_keep"] == _NOT_BOUND else ""
        assert row.mean_distance_kept is not None
        assert row.mean_distance_kept_error is not None
        # The mean is rounded, so the error covers that too.
        error = _round_up(row.mean_distance_kept_error + 5e-5)
        return [
            *settings,
            f"{row.n_keep:,}",
            f"{row.at_floor:,}",
            f"{row.saturated:,}",
            "inf" if row.weight_ratio is None else f"{row.weight_ratio:.3g}",
            f"{row.effective_clusters:,.1f}",
            f"{row.smallest_quota:,}-{row.largest_quota:,}",
            f"{sign}{row.mean_distance_kept:.4f} {plus_minus}{error:.4f}",
            "-" if row.overlap is None else f"{row.overlap:.1%}",
        ]


def _round_up(value: float) -> float:
    """To four digits after the point, upwards.

    Examples
    --------
    >>> _round_up(0.00012), _round_up(0.0001)
    (0.0002, 0.0001)
    """
    rounded = round(value, 4)
    return rounded if rounded >= value else round(rounded + 1e-4, 4)
