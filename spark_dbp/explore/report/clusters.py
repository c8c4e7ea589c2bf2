"""The clusters of a run as arrays, and what the figures of the report need of them. Imports numpy,
`columns`, kernels, the stage `quota` and `runs`.

What the page holds is bounded, whatever k is: at most `MOST_LISTED` clusters are points and rows of the
table, beyond that the figures show counts in cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.columns import (
    BIN,
    CLUSTER_ID,
    COMPLEXITY,
    D_INTER,
    D_INTRA,
    HISTOGRAM,
    N_ITEMS,
    QUOTA,
    TARGET,
    WEIGHT,
)
from spark_dbp.kernels.histogram import BINS_PER_UNIT, N_BINS
from spark_dbp.kernels.ranking import count_spread
from spark_dbp.lake import parquet_files
from spark_dbp.stages.quota import plan_quotas

if TYPE_CHECKING:
    from spark_dbp.runs import Run

# Clusters that are points of the figures and rows of the table; those whose histogram is there; those with
# examples.
MOST_LISTED, MOST_HISTOGRAMS, MOST_IN_FULL = 2000, 500, 60
# A histogram of the page has at most so many bars; a figure of counts so many cells along its sides.
_MOST_BARS, _CELLS = 64, (56, 36)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Clusters:
    """Columns of `cluster_stats` and `quotas`, and the floors, of clusters with samples; each of shape (k,).

    Attributes
    ----------
    which_to_keep : str
    bins : tuple of three ndarray
        Of all histograms: the row of the cluster, the number of the bin, the samples in it. Rising.
    """

    cluster_id: Ints
    n_items: Ints
    d_intra: Floats
    d_inter: Floats
    complexity: Floats
    weight: Floats
    target: Floats
    quota: Ints
    floor: Ints
    which_to_keep: str
    bins: tuple[Ints, Ints, Ints]

    def __len__(self) -> int:
        return len(self.cluster_id)

    @property
    def saturated(self) -> npt.NDArray[np.bool_]:
        """Which are kept whole."""
        return self.quota == self.n_items

    @property
    def at_floor(self) -> npt.NDArray[np.bool_]:
        """Which of the others keep only their floor."""
        return (self.quota == self.floor) & ~self.saturated

    @cached_property
    def kept(self) -> Ints:
        """Kept samples of each bin of `bins`; for ``random`` about so many."""
        row, _, n = self.bins
        if not len(row):
            return n
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        before = np.cumsum(n) - n
        before -= np.repeat(before[starts], np.diff(np.append(starts, len(row))))  # nearer samples
        size, quota = self.n_items[row], self.quota[row]
        if self.which_to_keep == "easy":
            return np.clip(quota - before, 0, n)
        farther = size - before - n
        if self.which_to_keep == "hard":
            return np.clip(quota - farther, 0, n)
        # `random` keeps about as many of each bin as `stratified` does.
        return count_spread(farther + n, size, quota) - count_spread(farther, size, quota)

    def choose_in_full(self) -> dict[int, list[str]]:
        """Rows of the clusters with examples, at the ends of every scale, and why each is among them.

        The first ones matter most: where the page is full, later ones are left out.
        """
        order = np.lexsort((self.cluster_id, self.complexity))
        by_size = np.lexsort((self.cluster_id, self.n_items))
        lists = {
            "most complex": order[::-1],
            "least complex": order,
            "largest": by_size[::-1],
            "smallest": by_size,
            "kept whole": by_size[::-1][self.saturated[by_size[::-1]]],
            "at its floor": by_size[::-1][self.at_floor[by_size[::-1]]],
        }
        chosen: dict[int, list[str]] = {}
        for number in range(min(len(self), MOST_IN_FULL)):
            for why, rows in lists.items():
                if number < len(rows) and (rows[number] in chosen or len(chosen) < MOST_IN_FULL):
                    chosen.setdefault(int(rows[number]), []).append(why if number < 5 else "")
        return {row: [why for why in whys if why] for row, whys in chosen.items()}

    def choose_listed(self, in_full: dict[int, list[str]]) -> Ints:
        """Rows of the clusters that are listed: all, or those in full and others evenly by complexity."""
        if len(self) <= MOST_LISTED:
            return np.arange(len(self))
        order = np.lexsort((self.cluster_id, self.complexity))
        rest = order[~np.isin(order, list(in_full))]
        n_more = MOST_LISTED - len(in_full)
        spread = rest[(np.arange(n_more) * len(rest)) // n_more]
        return np.sort(np.concatenate([np.fromiter(in_full, np.int64), spread]))

    def sum_histogram(self) -> dict[str, Any]:
        """The distances of all samples, and of the kept ones."""
        _, bins, n = self.bins
        return _to_bars(bins, n, self.kept)

    def make_histogram(self, row: int) -> dict[str, Any]:
        """Those of one cluster."""
        first, last = np.searchsorted(self.bins[0], [row, row + 1])
        return _to_bars(self.bins[1][first:last], self.bins[2][first:last], self.kept[first:last])


def read_clusters(run: Run) -> Clusters:
    """Read the statistics and the quotas of a run. O(k) memory; no Spark."""
    stats = parquet_files.read_parquet(run.table_path("cluster_stats")).sort_by(CLUSTER_ID)
    quotas = parquet_files.read_parquet(run.table_path("quotas")).sort_by(CLUSTER_ID)
    n_items = stats.column(N_ITEMS).to_numpy()
    used = np.flatnonzero(n_items > 0)

    def take(table: Any, name: str) -> Any:
        return table.column(name).to_numpy()[used]

    prune, quota = run.config().prune, quotas.column(QUOTA).to_numpy()
    plan = plan_quotas(
        n_items,
        np.nan_to_num(stats.column(D_INTRA).to_numpy()),
        np.nan_to_num(stats.column(D_INTER).to_numpy()),
        int(quota.sum()),
        complexity="uniform",  # the floor depends on neither weights nor temperature
        min_per_cluster=prune.min_per_cluster,
        cluster_balance=prune.cluster_balance,
    )
    of_stats = {name: take(stats, name) for name in (CLUSTER_ID, N_ITEMS, D_INTRA, D_INTER, COMPLEXITY)}
    of_quotas = {name: take(quotas, name) for name in (WEIGHT, TARGET, QUOTA)}
    return Clusters(
        **of_stats,
        **of_quotas,
        floor=plan["floor"][used],
        which_to_keep=prune.which_to_keep,
        bins=_read_bins(stats, used),
    )


def _read_bins(stats: Any, used: Ints) -> tuple[Ints, Ints, Ints]:
    lists = stats.column(HISTOGRAM).combine_chunks()
    offsets = lists.offsets.to_numpy().astype(np.int64)
    entries = lists.flatten()
    of_stats = np.repeat(np.arange(len(lists)), np.diff(offsets))
    number = np.full(len(lists), -1)
    number[used] = np.arange(len(used))
    row, bins, n = (
        np.asarray(column, dtype=np.int64)
        for column in (number[of_stats], entries.field(BIN).to_numpy(), entries.field(N_ITEMS).to_numpy())
    )
    order = np.lexsort((bins, row))
    return row[order], bins[order], n[order]


def _to_bars(bins: Ints, n_items: Ints, kept: Ints) -> dict[str, Any]:
    """A histogram as few bars: start and width in bins; samples, and kept ones, of each."""
    if not len(bins):
        return {"start": 0, "width": 1, "n": [], "kept": []}
    low, high = int(bins.min()), int(bins.max())
    width = next(1 << s for s in range(12) if (high >> s) - (low >> s) < _MOST_BARS)
    start = low // width
    place = bins // width - start
    n_bars = high // width - start + 1
    counted = (np.bincount(place, values, n_bars).astype(np.int64).tolist() for values in (n_items, kept))
    return {"start": start * width, "width": width, **dict(zip(("n", "kept"), counted, strict=True))}


def find_cut(clusters: Clusters, row: int) -> float | None:
    """The distance at which ``hard`` and ``easy`` stop keeping, to a bin; None where there is none.

    Examples
    --------
    >>> one = Clusters(*(np.array([value]) for value in (7, 10, .1, .1, .01, 1., 4., 4, 1)), "hard",
    ...                (np.zeros(2, int), np.array([100, 200]), np.array([6, 4])))
    >>> find_cut(one, 0)
    0.1953125
    """
    if clusters.which_to_keep not in ("hard", "easy") or clusters.saturated[row]:
        return None
    first, last = np.searchsorted(clusters.bins[0], [row, row + 1])
    reached = clusters.bins[1][first:last][clusters.kept[first:last] > 0]
    if not len(reached):
        return None
    edge = reached.min() if clusters.which_to_keep == "hard" else reached.max() + 1
    return float(min(edge, N_BINS) / BINS_PER_UNIT)


def list_columns(clusters: Clusters, rows: Ints) -> dict[str, list[Any]]:
    """The columns of some clusters, for the page."""
    return {
        "id": clusters.cluster_id[rows].tolist(),
        "n": clusters.n_items[rows].tolist(),
        "quota": clusters.quota[rows].tolist(),
        "floor": clusters.floor[rows].tolist(),
        "intra": round_numbers(clusters.d_intra[rows]),
        "inter": round_numbers(clusters.d_inter[rows]),
        "complexity": round_numbers(clusters.complexity[rows]),
        "weight": round_numbers(clusters.weight[rows]),
        "target": round_numbers(clusters.target[rows]),
    }


def count_in_cells(clusters: Clusters) -> dict[str, list[list[float]]]:
    """Where there are more clusters than points: cells of two figures.

    Each is ``[x1, x2, y1, y2, clusters, value]``. ``complexity``:
    d_intra and d_inter, the value is the mean complexity. ``quota``: logarithms (base 10)
    of size and quota, the value is the share that is kept.
    """
    quotas = np.log10(np.maximum(clusters.quota, 0.5))
    return {
        "complexity": list(_count_cells(clusters.d_intra, clusters.d_inter, clusters.complexity)),
        "quota": list(_count_cells(np.log10(clusters.n_items), quotas, clusters.quota / clusters.n_items)),
    }


def _count_cells(x: Floats, y: Floats, values: Floats) -> Iterator[list[float]]:
    edges, place = [], []
    for column, n_cells in zip((x, y), _CELLS, strict=True):
        low, high = float(column.min()), float(column.max())
        step = (high - low) / n_cells or 1.0
        edges.append((low, step))
        place.append(np.minimum(((column - low) / step).astype(np.int64), n_cells - 1))
    cell = place[0] * _CELLS[1] + place[1]
    n = np.bincount(cell)
    mean = np.bincount(cell, values) / np.maximum(n, 1)
    for number in np.flatnonzero(n):
        i, j = divmod(int(number), _CELLS[1])
        sides = (edges[0][0] + edges[0][1] * at for at in (i, i + 1))
        others = (edges[1][0] + edges[1][1] * at for at in (j, j + 1))
        yield [*map(round_number, (*sides, *others)), int(n[number]), round_number(float(mean[number]))]


def round_number(value: float) -> float:
    """Six digits, which is more than a figure shows."""
    return float(f"{value:.6g}")


def round_numbers(values: Floats) -> list[float]:
    return [round_number(value) for value in values.tolist()]
