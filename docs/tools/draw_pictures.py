"""Draw the pictures of docs/concepts.md and README from a real run. Imports `spark_dbp` and matplotlib.

The run is `spark-dbp demo`: 1,797 handwritten digits. `make pictures` makes one and draws; or name one that
is there: ``python docs/tools/draw_pictures.py demo-run/run``.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from spark_dbp import open_run, plan_quotas
from spark_dbp.demo_data import load_digits
from spark_dbp.runs import Run

# Of rows of images, in images.
_PITCH = 1.55
PICTURES = Path(__file__).resolve().parents[1] / "pictures"
KEPT, CUT, MUTED, INK = "#0072B2", "#D55E00", "#c3c8ce", "#333333"
STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#777777",
    "axes.labelcolor": INK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "font.size": 9,
    "legend.frameon": False,
    "savefig.dpi": 140,
    "savefig.facecolor": "white",
}


class Digits:
    """The run with its images: a row for each image, sorted by cluster, nearest to the centroid first."""

    def __init__(self, run: Run) -> None:
        self.stats = pq.read_table(run.table_path("cluster_stats")).sort_by("cluster_id").to_pydict()
        self.quota = np.array(
            pq.read_table(run.table_path("quotas")).sort_by("cluster_id")["quota"].to_pylist()
        )
        rows = pq.read_table(run.table_path("assignments")).to_pylist()
        rows.sort(key=lambda row: (row["cluster_id"], row["distance_to_centroid"], row["key"]))
        self.cluster = np.array([row["cluster_id"] for row in rows])
        self.distance = np.array([row["distance_to_centroid"] for row in rows])
        digits, numbers = load_digits(), [int(row["key"][7:11]) for row in rows]
        self.images, pixels = digits.images[numbers], digits.data[numbers]
        self.vectors = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
        kept = set(pq.read_table(run.table_path("keep_list"))["key"].to_pylist())
        self.kept = np.array([row["key"] in kept for row in rows])
        self.complexity = np.array(self.stats["complexity"])

    def number(self, name: str, cluster: int) -> float:
        """A statistic of a cluster."""
        return float(self.stats[name][cluster])


def draw_rows(figure: Any, digits: Digits, clusters: list[int], n_images: int) -> None:
    """For each of some clusters its images from the nearest to the farthest, the kept ones framed."""
    axes = figure.subplots()
    axes.set_axis_off()
    for row, cluster in enumerate(clusters):
        members = np.flatnonzero(digits.cluster == cluster)
        at = -_PITCH * row
        for place, one in enumerate(np.linspace(0, len(members) - 1, n_images).round().astype(int)):
            sample, box = members[one], (place, place + 0.92, at, at + 0.92)
            kept = bool(digits.kept[sample])
            axes.imshow(digits.images[sample], cmap="gray_r", extent=box, alpha=1.0 if kept else 0.35)
            axes.add_patch(
                Rectangle(
                    (place, at), 0.92, 0.92, fill=False, lw=1.6 if kept else 0.5,
                    edgecolor=KEPT if kept else MUTED,
                )
            )  # fmt: skip
        axes.text(
            0, at + 1.0,
            f"$d_{{intra}}$ {digits.number('d_intra', cluster):.3f}, "
            f"$d_{{inter}}$ {digits.number('d_inter', cluster):.3f}: "
            f"keeps {digits.quota[cluster]} of {len(members)}",
            color=INK, fontsize=8.5, va="bottom",
        )  # fmt: skip
    axes.set(xlim=(-0.1, n_images), ylim=(-_PITCH * (len(clusters) - 1) - 0.5, 1.45), aspect="equal")
    bottom = -_PITCH * (len(clusters) - 1) - 0.12
    axes.text(0, bottom, "nearest to the centroid", fontsize=8, color="#666666", va="top")
    axes.text(n_images - 0.08, bottom, "farthest", fontsize=8, color="#666666", va="top", ha="right")


def draw_clusters(axes: Any, digits: Digits, marked: list[int]) -> Any:
    """d_intra against d_inter of each cluster, coloured by complexity, with some of them named."""
    x, y = np.array(digits.stats["d_inter"]), np.array(digits.stats["d_intra"])
    sizes = np.array(digits.stats["n_items"])
    low, high = x.min() - 0.006, x.max() + 0.006
    curve = np.linspace(low, high, 50)
    for level in (0.011, 0.014, 0.017, 0.020):
        axes.plot(curve, level / curve, color="#d5d9de", lw=0.8, ls="--", zorder=0)
    points = axes.scatter(x, y, s=sizes * 1.6, c=digits.complexity, cmap="viridis", edgecolor="white", lw=0.6)
    for cluster in marked:
        axes.scatter(x[cluster], y[cluster], s=sizes[cluster] * 1.6, fc="none", edgecolor=CUT, lw=1.6)
    axes.set(
        xlabel="$d_{inter}$: to other centroids", ylabel="$d_{intra}$: within the cluster", xlim=(low, high)
    )
    axes.set_ylim(0.04, 0.104)
    return points


def draw_overview(digits: Digits) -> Figure:
    """The picture of README: clusters by complexity, and what is kept of simple and of complex ones."""
    order = np.argsort(digits.complexity)
    marked = [int(order[place]) for place in (0, 8, 14, 18)]
    figure = Figure(figsize=(9.6, 3.6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.9])
    axes = left.subplots()
    points = draw_clusters(axes, digits, marked)
    axes.set_title("20 clusters of handwritten digits")
    left.colorbar(points, ax=axes, label="complexity", location="bottom", shrink=0.9, aspect=30)
    draw_rows(right, digits, marked, 14)
    right.suptitle("Simple clusters keep little, complex ones much", x=0.03, ha="left", fontsize=10)
    return figure


def draw_space(digits: Digits) -> Figure:
    """All samples in two dimensions: by the complexity of their cluster, and what is kept."""
    centred = digits.vectors - digits.vectors.mean(axis=0)
    _, _, axes_of_space = np.linalg.svd(centred, full_matrices=False)
    x, y = (centred @ axes_of_space[:2].T).T
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    points = left.scatter(x, y, s=7, c=digits.complexity[digits.cluster], cmap="viridis", lw=0)
    for cluster in range(len(digits.complexity)):
        inside = digits.cluster == cluster
        left.plot(x[inside].mean(), y[inside].mean(), "o", ms=5, mfc="white", mec=INK, mew=1)
    left.set_title("1,797 samples, 20 centroids")
    figure.colorbar(points, ax=left, label="complexity of the cluster")
    right.scatter(x[~digits.kept], y[~digits.kept], s=5, color=MUTED, lw=0, label="pruned")
    right.scatter(x[digits.kept], y[digits.kept], s=8, color=KEPT, lw=0, label="kept")
    right.set_title(f"{int(digits.kept.sum())} are kept, hard first")
    right.legend(loc="upper right", markerscale=2)
    for axes in (left, right):
        axes.set(xticks=[], yticks=[])
    return figure


def draw_temperature(digits: Digits) -> Figure:
    """Quotas by complexity at some temperatures, with the caps."""
    sizes, order = np.array(digits.stats["n_items"]), np.argsort(digits.complexity)
    figure = Figure(figsize=(9, 3.1), layout="constrained")
    for axes, temperature in zip(figure.subplots(1, 4, sharey=True), (0.1, 0.02, 0.005, 0.001), strict=True):
        quota = plan_quotas(
            sizes, digits.stats["d_intra"], digits.stats["d_inter"], n_keep=539, temperature=temperature
        )["quota"]
        whole = quota == sizes
        axes.bar(range(20), sizes[order], color="#eceef1", width=0.9)
        colours = [CUT if one else KEPT for one in whole[order]]
        axes.bar(range(20), quota[order], color=colours, width=0.9)
        axes.set(title=f"temperature {temperature}", xticks=[], xlabel="clusters by complexity →")
        if whole.any():
            axes.text(
                0.03, 0.95, f"{int(whole.sum())} kept whole", transform=axes.transAxes, color=CUT, va="top"
            )
    figure.axes[0].set_ylabel("samples; coloured: kept")
    return figure


def draw_choices(digits: Digits, cluster: int) -> Figure:
    """Which samples of one cluster each of the four ways keeps."""
    inside = np.flatnonzero(digits.cluster == cluster)
    distance, n = digits.distance[inside], len(inside)
    quota = n // 3
    rank = n - np.arange(n)  # 1 for the farthest
    evenly = (2 * rank * quota + n) // (2 * n) > (2 * (rank - 1) * quota + n) // (2 * n)
    ways = {
        "hard": rank <= quota,
        "easy": rank > n - quota,
        "random": np.isin(np.arange(n), np.random.default_rng(0).permutation(n)[:quota]),
        "stratified": evenly,
    }
    figure = Figure(figsize=(9, 2.5), layout="constrained")
    axes = figure.subplots()
    for row, kept in enumerate(ways.values()):
        axes.vlines(distance[~kept], -row - 0.33, -row + 0.33, color=MUTED, lw=1)
        axes.vlines(distance[kept], -row - 0.38, -row + 0.38, color=KEPT, lw=1.4)
    axes.set_yticks([0, -1, -2, -3], list(ways))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("distance to the centroid")
    axes.set_title(f"One cluster of {n} samples with a quota of {quota}: kept samples are blue")
    return figure


def draw_all(run: Run) -> dict[str, Figure]:
    """Every picture, by its name."""
    digits = Digits(run)
    largest = int(np.argmax(digits.stats["n_items"]))
    return {
        "overview": draw_overview(digits),
        "space": draw_space(digits),
        "temperature": draw_temperature(digits),
        "choices": draw_choices(digits, largest),
    }


def main() -> None:
    """Draw, from a run that is named or that is made."""
    with tempfile.TemporaryDirectory() as directory, matplotlib.rc_context(STYLE):
        if sys.argv[1:]:
            run = open_run(sys.argv[1])
        else:
            from spark_dbp import run as make_run
            from spark_dbp import start_local_session
            from spark_dbp.demo import demo_config

            run = make_run(demo_config(directory), start_local_session({}))
        PICTURES.mkdir(exist_ok=True)
        for name, figure in draw_all(run).items():
            drawn = io.BytesIO()
            figure.savefig(drawn, metadata={"Software": None})
            few = Image.open(drawn).convert("RGB").quantize(128)  # a third of the bytes
            few.save(PICTURES / f"{name}.png", optimize=True)
            print(PICTURES / f"{name}.png")


if __name__ == "__main__":
    main()
