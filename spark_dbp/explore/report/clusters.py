"""The clusters of a run that have samples, and what the figures of the report need of them. Imports numpy,
`run_clusters` and `runs`.

What the page holds is bounded, whatever k is: at most `MOST_LISTED` clusters are points and rows of the
table, beyond that the figures show counts in cells.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from spark_dbp.explore.run_clusters import RunClusters

if TYPE_CHECKING:
    from spark_dbp.runs import Run

# Clusters that are points of the figures and rows of the table; those whose histogram is there; those with
# examples.
MOST_LISTED, MOST_HISTOGRAMS, MOST_IN_FULL = 2000, 500, 60
# A histogram of the page has at most so many bars; a figure of counts so many cells along its sides.
_MOST_BARS, _CELLS = 64, (56, 36)

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Clusters(RunClusters):
    """The clusters of a run that have samples, and what the page shows of them. O(k) memory; no Spark.

    Raises
    ------
    DamagedRunError
        As `RunClusters`.
    """

    def __init__(self, run: Run) -> None:
        super().__init__(run, with_empty=False)

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
        known = self.distances
        return _to_bars(known.bins, known.n_items, known.count_all_kept(self.quota))

    def make_histogram(self, row: int) -> dict[str, Any]:
        """Those of one cluster, and where it is cut; None where there is no cut."""
        quota = int(self.quota[row])
        bars = _to_bars(*self.distances.count_kept(row, quota))
        return {**bars, "cut": self.distances.find_cut(row, quota)}


def _to_bars(bins: Ints, n_items: Ints, kept: Floats) -> dict[str, Any]:
    """A histogram as few bars: start and width in bins; samples, and kept ones, of each.

    What ``random`` keeps of a bar is expected, and no whole number. The page has whole ones, off by less than
    one, which add up to what is kept.

    Examples
    --------
    >>> _to_bars(np.array([3, 4, 5]), np.array([1, 1, 2]), np.array([0.5, 0.5, 1.0]))
    {'start': 3, 'width': 1, 'n': [1, 1, 2], 'kept': [1, 0, 1]}
    """
    if not len(bins):
        return {"start": 0, "width": 1, "n": [], "kept": []}
    low, high = int(bins.min()), int(bins.max())
    width = next(1 << s for s in range(12) if (high >> s) - (low >> s) < _MOST_BARS)
    start = low // width
    place = bins // width - start
    n_bars = high // width - start + 1
    samples, expected = (np.bincount(place, values, n_bars) for values in (n_items, kept))
    whole = np.minimum(np.diff(np.floor(np.cumsum(expected) + 0.5), prepend=0), samples)
    counts = {name: of.astype(np.int64).tolist() for name, of in (("n", samples), ("kept", whole))}
    return {"start": start * width, "width": width, **counts}


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
