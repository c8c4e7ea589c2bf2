"""Figures of a run: clusters, quotas, distances, sweeps.

Imports numpy, `run_clusters`, `sweep`, kernels and the stage `quota`; matplotlib in functions.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

import numpy as np

from spark_dbp.errors import ConfigError
from spark_dbp.explore.run_clusters import RunClusters
from spark_dbp.explore.sweep import sweep
from spark_dbp.kernels.histogram import BINS_PER_UNIT
from spark_dbp.stages.quota import SPREAD, propose_temperature

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from spark_dbp.explore.sweep_table import Sweep, SweepRow
    from spark_dbp.runs import Run

# Colours that people with any colour vision tell apart (Okabe and Ito).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MUTED, _KEPT, _CUT = "#b8bec6", "#0072B2", "#D55E00"
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.labelcolor": "#333333",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "figure.dpi": 110,
    "figure.facecolor": "white",
    "grid.color": "#e6e8eb",
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "spark-dbp",  # names in the file do not depend on chance
    "xtick.color": "#555555",
    "ytick.color": "#555555",
}
# With more clusters than this, points are small and without edges.
_MANY = 2000
_RATIOS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)

_Parameters = ParamSpec("_Parameters")


def check_matplotlib() -> None:
    """Raise ConfigError where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError(
            "figures need matplotlib, which is not installed", mend="pip install 'spark-dbp[notebook]'"
        ) from None


def _in_style(draw: Callable[_Parameters, Figure]) -> Callable[_Parameters, Figure]:
    """Draw with the settings above, and leave those of the session as they are."""

    @wraps(draw)
    def draw_in_style(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> Figure:
        check_matplotlib()
        import matplotlib

        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return draw_in_style


def encode_figure(figure: Figure, kind: str) -> bytes:
    """A figure as a file: ``png``, ``svg`` or ``pdf``. The same figure gives the same bytes."""
    import matplotlib

    without = {"png": "Software", "svg": "Date", "pdf": "CreationDate"}[kind]
    drawn = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(drawn, format=kind, metadata={without: None})
    return drawn.getvalue()


@_in_style
def draw_clusters(run: Run) -> Figure:
    """d_intra against d_inter of every cluster, coloured by complexity: the figure of the paper.

    See `Run.plot_clusters`.
    """
    clusters = RunClusters(run)
    used = clusters.n_items > 0
    x, y, colour = clusters.d_inter[used], clusters.d_intra[used], clusters.complexity[used]
    figure, (axes,) = _make_figure(1, 6.6, 4.6)
    order = np.argsort(-clusters.n_items[used], kind="stable")  # small ones on top
    points = axes.scatter(
        x[order], y[order], s=_size_points(clusters.n_items[used])[order], c=colour[order], **_POINTS
    )
    axes.set(
        xlabel="$d_{inter}$: mean distance to the nearest centroids",
        ylabel="$d_{intra}$: mean distance to the own centroid",
        title=f"{int(used.sum()):,} clusters; area: samples; dashed: equal complexity",
    )
    axes.margins(0.08)
    _draw_equal_complexity(axes, colour)
    figure.colorbar(points, ax=axes, label="complexity  $d_{intra} \\cdot d_{inter}$")
    return figure


@_in_style
def draw_quotas(run: Run) -> Figure:
    """Quota against size of every cluster, with floor and saturation. See `Run.plot_quotas`."""
    clusters = RunClusters(run)
    used = clusters.n_items > 0
    size, quota = clusters.n_items[used], clusters.quota[used]
    figure, (axes,) = _make_figure(1, 6.6, 4.6)
    ends = np.array([size.min() / 1.15, size.max() * 1.15])
    ratio = int(quota.sum()) / clusters.n_rows
    axes.plot(ends, ends, color="#333333", lw=1, label="kept whole")
    axes.plot(ends, ratio * ends, color="#333333", lw=1, ls=":", label=f"{ratio:.3g} of each")
    floor = int(clusters.floor.max())  # that of clusters which are no smaller
    if floor > 1:
        axes.axhline(floor, color=_CUT, lw=1, ls="--", label=f"floor {floor:,}")
    shown = quota > 0  # a logarithm has no place for 0
    points = axes.scatter(
        size[shown],
        quota[shown],
        s=_size_points(np.ones(len(size), dtype=np.int64))[shown],
        c=clusters.complexity[used][shown],
        **_POINTS,
    )
    saturated = int((quota == size).sum())
    none = f"; {int((~shown).sum()):,} with a quota of 0 are not shown" if not shown.all() else ""
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="samples in the cluster",
        ylabel="quota: samples that are kept",
        title=f"{int(quota.sum()):,} of {clusters.n_rows:,} samples kept; "
        f"{saturated:,} of {len(size):,} clusters whole{none}",
    )
    _write_plain_numbers(axes)
    axes.legend(loc="upper left")
    figure.colorbar(points, ax=axes, label="complexity  $d_{intra} \\cdot d_{inter}$")
    return figure


@_in_style
def draw_distances(run: Run, cluster: int) -> Figure:
    """Histogram of the distances of one cluster, and what is kept of it. See `Run.plot_distances`."""
    clusters = RunClusters(run)
    row = clusters.find_row(cluster)
    which, quota = clusters.prune.which_to_keep, int(clusters.quota[row])
    bins, n_items, kept = clusters.distances.count_kept(row, quota)
    n_rows = int(clusters.n_items[row])
    # Bars of several bins: more of them for more samples, but at most about sixty.
    width, most = 1, min(60, max(12, int(2 * n_rows**0.5)))
    while (bins[-1] - bins[0]) // width > most:
        width *= 2
    first = int(bins[0]) // width
    places = bins // width - first
    heights = np.bincount(places, n_items)
    kept_heights = np.bincount(places, kept, len(heights))
    edges = (first + np.arange(len(heights))) * width / BINS_PER_UNIT
    figure, (axes,) = _make_figure(1, 6.6, 3.8)
    how: dict[str, Any] = {
        "width": width / BINS_PER_UNIT,
        "align": "edge",
        "edgecolor": "white",
        "linewidth": 0.4,
    }
    axes.bar(edges, heights - kept_heights, color=_MUTED, bottom=kept_heights, label="left out", **how)
    about = "kept (expected)" if which == "random" else "kept"
    axes.bar(edges, kept_heights, color=_KEPT, label=about, **how)
    cut = clusters.distances.find_cut(row, quota)
    if cut is not None:
        axes.axvline(cut, color=_CUT, lw=1.5, label=f"cut, at about {cut:.3f}")
    axes.set(
        xlabel="distance to the centroid (1 - cosine)",
        ylabel="samples",
        title=f"cluster {int(clusters.cluster_id[row])}: {quota:,} of {n_rows:,} kept, {which}; "
        f"$d_{{intra}}$ {clusters.d_intra[row]:.3f}, $d_{{inter}}$ {clusters.d_inter[row]:.3f}",
    )
    axes.set_ylim(top=1.06 * float(heights.max()))
    axes.locator_params(axis="y", integer=True)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def plan_sweep(
    run: Run,
    keep_ratio: float | Iterable[float] | None,
    temperature: float | Iterable[float] | None,
    complexity: str | Iterable[str] | None,
) -> Sweep:
    """The sweep that is asked for; where nothing is, ratios from 0.05 to 0.9 and a few temperatures."""
    if keep_ratio is None and temperature is None and complexity is None:
        clusters = RunClusters(run)
        of_run = clusters.prune.temperature
        proposed = propose_temperature(clusters.complexity, SPREAD) or of_run
        others = {float(f"{proposed * factor:.0e}") for factor in (0.3, 10)}
        keep_ratio, temperature = _RATIOS, sorted({of_run, proposed, *others})
    return sweep(run, keep_ratio, temperature, complexity)


@_in_style
def draw_sweep(found: Sweep) -> Figure:
    """What a sweep found, over the keep ratio or the temperature. See `Run.plot_sweep`."""
    over, other = ("keep_ratio", "temperature")
    if len({row.temperature for row in found}) > len({row.keep_ratio for row in found}):
        over, other = other, over
    about = found.about
    lines: dict[tuple[str, float | None], list[SweepRow]] = {}
    for row in found:
        lines.setdefault((row.complexity, getattr(row, other)), []).append(row)
    has_overlap = any(row.overlap is not None for row in found)
    figure, panels = _make_figure(4 if has_overlap else 3, 9.6, 6.4)
    several = len({name for name, _ in lines}) > 1
    for number, ((name, value), rows) in enumerate(lines.items()):
        label = f"{name}, {_label(other, value)}" if several else _label(other, value)
        rows = [row for row in rows if row.feasible]
        places = [_place(row, over, about) for row in rows]
        _draw_line(panels, places, rows, label, number)
    for axes, title in zip(panels, _PANELS, strict=False):
        axes.set(title=title, xlabel=over.replace("_", " "))
        if over == "temperature":
            axes.set_xscale("log")
            _write_plain_numbers(axes, "x")
    panels[0].set_ylim(bottom=0)
    panels[0].locator_params(axis="y", integer=True)
    panels[1].axhline(about["clusters"], color="#333333", lw=1, ls=":")
    if has_overlap:
        panels[3].set_ylim(0, 1.03)
    _mark_run(panels, found, over)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize="small")
    figure.suptitle(found.describe(), fontsize="medium")
    return figure


_PANELS = (
    "clusters kept whole (dashed: at their floor)",
    "effective number of clusters (dotted: all)",
    "mean distance of the kept",
    "share of what this run kept that stays",
)
_RING: dict[str, Any] = {
    "marker": "o",
    "ms": 10,
    "mfc": "none",
    "mec": "#333333",
    "mew": 1.3,
    "ls": "none",
    "clip_on": False,
}
_POINTS: dict[str, Any] = {"cmap": "viridis", "alpha": 0.85, "linewidths": 0.3, "edgecolors": "white"}


def _place(row: SweepRow, over: str, about: dict[str, Any]) -> float:
    """Where a row stands: its temperature, or its ratio (n_keep of the run gives one where there is none)."""
    if over == "temperature" or row.keep_ratio is not None:
        return float(getattr(row, over))
    return (row.n_keep or 0) / int(about["rows_to_prune"])


def _draw_line(
    panels: list[Axes], places: list[float], rows: list[SweepRow], label: str, number: int
) -> None:
    order = np.argsort(places, kind="stable").tolist()
    x, rows = [places[at] for at in order], [rows[at] for at in order]
    colour, marker = _COLOURS[number % len(_COLOURS)], "os^D"[number // len(_COLOURS) % 4]
    how: dict[str, Any] = {"color": colour, "marker": marker, "ms": 4, "lw": 1.6}
    panels[0].plot(x, _list(rows, "saturated"), label=label, **how)
    panels[0].plot(x, _list(rows, "at_floor"), **{**how, "ls": "--", "lw": 1, "ms": 2})
    panels[1].plot(x, _list(rows, "effective_clusters"), **how)
    mean = _list(rows, "mean_distance_kept")
    error = _list(rows, "mean_distance_kept_error")
    panels[2].plot(x, mean, **how)
    panels[2].fill_between(x, mean - error, mean + error, color=colour, alpha=0.2, lw=0)
    if len(panels) > 3:
        panels[3].plot(x, _list(rows, "overlap"), **how)


def _list(rows: list[SweepRow], name: str) -> Any:
    return np.array([getattr(row, name) for row in rows], dtype=float)


def _mark_run(panels: list[Axes], found: Sweep, over: str) -> None:
    """A ring around the settings of the run, where they can be placed."""
    now = found.now
    if not now.feasible:
        return
    at = _place(now, over, found.about)
    values: tuple[Any, ...] = (now.saturated, now.effective_clusters, now.mean_distance_kept, now.overlap)
    for axes, value in zip(panels, values, strict=False):
        label = "this run" if axes is panels[0] else None
        axes.plot(
            [at],
            [value],
            "o",
            ms=10,
            mfc="none",
            mec="#333333",
            mew=1.3,
            ls="none",
            label=label,
            clip_on=False,
        )


def _label(name: str, value: float | None) -> str:
    return "n_keep of the run" if value is None else f"{name.replace('_', ' ')} {value:.3g}"


def _draw_equal_complexity(axes: Axes, complexity: Any) -> None:
    """Faint curves of d_intra * d_inter = constant, at some quantiles."""
    (x_low, x_high), (y_low, y_high) = axes.get_xlim(), axes.get_ylim()
    x = np.linspace(max(x_low, 1e-9), x_high, 200)
    for level in np.unique(np.quantile(complexity, [0.05, 0.35, 0.65, 0.95])):
        axes.plot(x, level / x, color="#a9b0b8", lw=0.7, ls="--", zorder=0)
    axes.set(xlim=(x_low, x_high), ylim=(y_low, y_high))


def _size_points(n_items: Any) -> Any:
    """Areas of points, in proportion to sizes as far as both ends can be seen."""
    largest, total = (12.0, 4.0) if len(n_items) > _MANY else (220.0, 30.0)
    if (n_items == n_items[0]).all():
        return np.full(len(n_items), total)
    return np.maximum(largest * n_items / n_items.max(), largest / 20)


def _write_plain_numbers(axes: Axes, which: str = "both") -> None:
    """Numbers on a logarithmic axis as people write them."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    for name in ("x", "y") if which == "both" else (which,):
        axis = getattr(axes, f"{name}axis")
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.12g}"))
        low, high = getattr(axes, f"get_{name}lim")()
        if high < 300 * low:  # few powers of ten in sight: label some of those between
            axis.set_minor_formatter(
                FuncFormatter(lambda value, _: f"{value:,.12g}" if f"{value:e}"[0] in "25" else "")
            )
        else:
            axis.set_minor_formatter(NullFormatter())


def _make_figure(n_panels: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure that shows once where a notebook's cell ends with it, and opens no window."""
    columns = 1 if n_panels == 1 else 2
    if "ipykernel" in sys.modules:  # a notebook shows figures once pyplot has been asked for one
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=(width, height), layout="constrained")
        plt.close(figure)
    else:
        from matplotlib.figure import Figure as PlainFigure

        figure = PlainFigure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(-(-n_panels // columns), columns, squeeze=False).ravel()
    for axes in grid[n_panels:]:
        axes.set_axis_off()
    return figure, list(grid[:n_panels])
